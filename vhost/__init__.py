"""vhost-user: protocol, session, server and front-end. Public names; the code is in the modules."""

from vhost.device import Device, Link, Metric, Source
from vhost.embed import EmbeddedDevice, Embedder, open_embedder
from vhost.errors import ConnectionClosed, DeviceError, ProtocolError, QueueBroken, VhostError
from vhost.frontend import Frontend
from vhost.listener import SocketError
from vhost.placement import Placement, WorkerOptions, by_queue, least_loaded
from vhost.server import Endpoint, Server, open_server, run_until_signal, serve, serve_fd
from vhost.session import Options

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
