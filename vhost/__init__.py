"""vhost-user: protocol, session, server and front-end. Public names; the code is in the modules."""

from vhost.errors import ConnectionClosed, DeviceError, ProtocolError, QueueBroken, VhostError

__all__ = [
    "ConnectionClosed",
    "DeviceError",
    "ProtocolError",
    "QueueBroken",
    "VhostError",
]
