"""What ``vhost blk`` and a ``[[device]]`` table of type "blk" take."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import trio

from devices.blk.device import Blk, Limits
from devices.blk.stores.base import Store, StoreError
from devices.blk.stores.file import FileStore
from devices.blk.stores.parse import parse_store
from vhost.device import Device
from vhost.plugin import ConfigError, DeviceType, Option

__all__ = ["OPTIONS", "TYPE", "open_blk"]

OPTIONS = (
    Option("blk-file", "path", "raw image or block device to serve", metavar="PATH"),
    Option("store", "text", "what to serve instead: raw:PATH, memory:SIZE, null:SIZE, nbd://…", metavar="SPEC"),
    Option("read-only", "flag", "refuse writes", False),
    Option("direct", "flag", "bypass the page cache (O_DIRECT)", False),
    Option("lock", "choice", "lock the image against other programs", "on", choices=("on", "shared", "off")),
    Option("num-queues", "int", "request queues; the front-end may use fewer", 1, minimum=1, maximum=256),
    Option("queue-size", "int", "largest queue the front-end may ask for", 1024, minimum=2, maximum=32768),
    Option("serial", "text", "serial number the guest reads, up to 20 characters", "", metavar="TEXT"),
    Option("blk-size", "size", "logical block size, bytes; default: the store's", metavar="BYTES"),
    Option("register-buffers", "flag", "register guest memory with io_uring, which pins it: not with balloons", False),
    Option("size-max", "size", "largest segment of a request, bytes; 0: any", 0, metavar="BYTES"),
    Option("cache", "choice", "the write cache a guest finds", "writeback", choices=("writeback", "writethrough")),
    Option("iops", "rate", "requests per second; 0: no limit", 0, metavar="RATE"),
    Option("read-iops", "rate", "reads per second; 0: no limit", 0, metavar="RATE"),
    Option("write-iops", "rate", "other requests per second; 0: no limit", 0, metavar="RATE"),
    Option("bps", "rate", "bytes per second; 0: no limit", 0, metavar="RATE"),
    Option("read-bps", "rate", "bytes read per second; 0: no limit", 0, metavar="RATE"),
    Option("write-bps", "rate", "bytes written per second; 0: no limit", 0, metavar="RATE"),
    Option("burst-ms", "int", "milliseconds' worth of the limits that may be saved up", 0, minimum=0),
)


def _open_store(values: Mapping[str, Any]) -> Store:
    path, spec = values["blk_file"], values["store"]
    if (path is None) == (spec is None):
        raise ConfigError("give one of blk-file PATH and store SPEC: the disk to serve")
    how = {"read_only": values["read_only"], "direct": values["direct"], "lock": values["lock"]}
    return FileStore.open(path, **how) if spec is None else parse_store(spec, **how)


@asynccontextmanager
async def open_blk(values: Mapping[str, Any]) -> AsyncIterator[Device]:
    """The disk that option values (of `OPTIONS`) describe; its store is closed at the exit.

    Raises:
        ConfigError: the user can mend it.
    """
    try:
        store = await trio.to_thread.run_sync(partial(_open_store, values))
    except StoreError as exc:
        raise ConfigError(str(exc)) from exc
    async with store:
        try:
            disk = Blk(
                store,
                num_queues=values["num_queues"],
                queue_size=values["queue_size"],
                read_only=values["read_only"],
                serial=values["serial"],
                blk_size=values["blk_size"],
                size_max=values["size_max"],
                writeback=values["cache"] == "writeback",
                register_buffers=values["register_buffers"],
                limits=Limits(
                    iops=values["iops"],
                    read_iops=values["read_iops"],
                    write_iops=values["write_iops"],
                    bps=values["bps"],
                    read_bps=values["read_bps"],
                    write_bps=values["write_bps"],
                    burst_ms=values["burst_ms"],
                ),
            )
        except (StoreError, ValueError) as exc:
            raise ConfigError(str(exc)) from exc
        yield disk


TYPE = DeviceType(
    name="blk",
    backend_type="block",
    summary="a disk (virtio-blk)",
    options=OPTIONS,
    open=open_blk,
    features=("read-only", "blk-file"),
    parameter_help="Sizes take K, M, G and T (powers of 1024); rates take k, M and G (powers of 1000).",
)
