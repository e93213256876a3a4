"""What cards are plugged into."""

from devices.net.links.base import LinkError, NetLink, PortPtr
from devices.net.links.echo import EchoLink, NullLink, SourceLink

__all__ = ["EchoLink", "LinkError", "NetLink", "NullLink", "PortPtr", "SourceLink"]
