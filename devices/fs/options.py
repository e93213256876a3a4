"""What ``vhost fs`` and a ``[[device]]`` table of type "fs" take."""

from __future__ import annotations

import importlib
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from devices.fs import passthrough_options as folder
from devices.fs import sandbox
from devices.fs.device import Fs
from devices.fs.filesystem import Filesystem
from devices.fs.passthrough import Passthrough
from devices.fs.server import Server
from devices.fs.serving import PythonServer
from vhost.device import Device
from vhost.plugin import ConfigError, DeviceType, Option

__all__ = ["OPTIONS", "TYPE", "open_fs"]

OPTIONS = (
    *folder.OPTIONS,
    Option("filesystem", "text", "a file system in Python instead of a folder: the class's MODULE:NAME",
           metavar="CLASS"),
    Option("argument", "texts", "what that class is made with, in order", metavar="TEXT"),
    Option("notifications", "flag", "tell guests whose drivers have a queue for it what that class says has changed",
           False),
    # the device
    Option("tag", "text", "by which the guest mounts it; QEMU and cloud-hypervisor have their own option", "vhost",
           metavar="TAG"),
    Option("num-request-queues", "int", "queues for requests; the guest may use fewer", 4, minimum=1, maximum=64),
    Option("queue-size", "int", "largest queue the front-end may ask for", 1024, minimum=2, maximum=32768),
    *sandbox.OPTIONS,
)  # fmt: skip


def _python(values: Mapping[str, Any]) -> Server:
    """The server of the file system that the option names."""
    text = values["filesystem"]
    module, _, attribute = text.partition(":")
    if not module or not attribute:
        raise ConfigError(f"filesystem {text!r} is not MODULE:NAME, such as examples.memory_fs:MemoryFilesystem")
    try:
        kind: Any = getattr(importlib.import_module(module), attribute)
    except ImportError as exc:
        raise ConfigError(f"filesystem {text!r} cannot be imported: {exc}") from exc
    except AttributeError:
        raise ConfigError(f"filesystem {text!r}: module {module} has no {attribute}") from None
    try:
        made = kind(*(values["argument"] or ()))
    except (TypeError, ValueError, OSError) as exc:
        raise ConfigError(f"filesystem {text!r}: {exc}") from exc
    if not isinstance(made, Filesystem):
        raise ConfigError(f"filesystem {text!r} is no devices.fs.Filesystem")
    return PythonServer(made)


def _device(server: Server, values: Mapping[str, Any]) -> Fs:
    try:
        return Fs(
            server,
            tag=values["tag"],
            request_queues=values["num_request_queues"],
            queue_size=values["queue_size"],
            notifications=values["notifications"],
        )
    except ValueError as exc:
        raise ConfigError(str(exc)) from exc


@asynccontextmanager
async def open_fs(values: Mapping[str, Any]) -> AsyncIterator[Device]:
    """The device that option values (of `OPTIONS`) describe; its server is closed at the exit.

    Raises:
        ConfigError: the user can mend it.
    """
    if values["filesystem"] is not None:
        if values["shared_dir"] is not None:
            raise ConfigError("shared-dir and filesystem were given; a device serves one of them")
        async with _python(values) as server:
            yield _device(server, values)
        return
    server = folder.open_passthrough(values)
    async with server:
        device = _device(server, values)
        root = os.open(server.path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            device.confinement = sandbox.confinement_of(values, root, file_handles=_by_handle(server, values))
            yield device
        finally:
            os.close(root)


def _by_handle(server: Passthrough, values: Mapping[str, Any]) -> bool:
    """Files are found by handles of their file system."""
    return values["inode_file_handles"] != "never" and server.handles_note is None


TYPE = DeviceType(
    name="fs",
    backend_type="fs",
    summary="a shared folder, or a file system in Python (virtio-fs)",
    options=OPTIONS,
    open=open_fs,
    features=("migrate-precopy", "separate-options"),
    parameter_help=(
        "Mount it in the guest by its tag: mount -t virtiofs TAG /mnt. Guest memory has to be shared: with QEMU, "
        "-object memory-backend-memfd,id=mem,size=SIZE,share=on -machine memory-backend=mem."
    ),
)
