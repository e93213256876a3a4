"""virtio-net: a network card for any guest, on a tap, on user-mode NAT or on a switch in this process.

::

    async with EchoLink() as link:
        await vhost.serve(Net(link), "/run/vm0-net.sock")
"""

from devices.net.config import NetFeature
from devices.net.device import Net
from devices.net.links import EchoLink, LinkError, NetLink, NullLink, SourceLink
from devices.net.links.switch import Rules, Switch
from devices.net.stats import NetStats

__all__ = [
    "EchoLink",
    "LinkError",
    "Net",
    "NetFeature",
    "NetLink",
    "NetStats",
    "NullLink",
    "Rules",
    "SourceLink",
    "Switch",
]
