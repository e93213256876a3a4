"""vhost-user: protocol, session, server and front-end. Public names; the code is in the modules.

What a server does not need (`Frontend`, embedding) is imported when it is first asked for: management layers start a
back-end only to read its capabilities.
"""

from typing import TYPE_CHECKING, Any

from vhost.device import Device, Link, Metric, Source
from vhost.errors import ConnectionClosed, DeviceError, ProtocolError, QueueBroken, VhostError
from vhost.listener import SocketError
from vhost.placement import Placement, WorkerOptions, by_queue, least_loaded
from vhost.server import Endpoint, Server, open_server, run_until_signal, serve, serve_fd
from vhost.session import Options

if TYPE_CHECKING:
    from vhost.embed import EmbeddedDevice, Embedder, open_embedder
    from vhost.frontend import Frontend

__all__ = [
    "ConnectionClosed",
    "Device",
    "DeviceError",
    "EmbeddedDevice",
    "Embedder",
    "Endpoint",
    "Frontend",
    "Link",
    "Metric",
    "Options",
    "Placement",
    "ProtocolError",
    "QueueBroken",
    "Server",
    "SocketError",
    "Source",
    "VhostError",
    "WorkerOptions",
    "by_queue",
    "least_loaded",
    "open_embedder",
    "open_server",
    "run_until_signal",
    "serve",
    "serve_fd",
]

_LATER = {
    "EmbeddedDevice": "vhost.embed",
    "Embedder": "vhost.embed",
    "Frontend": "vhost.frontend",
    "open_embedder": "vhost.embed",
}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module 'vhost' has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(_LATER[name]), name)
    globals()[name] = value
    return value
