"""Stores by name, as users write them."""

from __future__ import annotations

from devices.blk.stores.base import Store, StoreError
from devices.blk.stores.file import FileStore, Lock
from devices.blk.stores.memory import MemoryStore, NullStore
from vhost.plugin import parse_size

__all__ = ["parse_store"]


def _size(spec: str, text: str) -> int:
    try:
        return parse_size(text)
    except ValueError as exc:
        raise StoreError(f"store {spec!r}: {exc}") from None


def parse_store(spec: str, *, read_only: bool = False, direct: bool = False, lock: Lock = "on") -> Store:
    """Open the store that ``spec`` names; for NBD this waits for the server.

    Args:
        spec: ``raw:PATH``, ``memory:SIZE``, ``null:SIZE``, ``nbd://HOST[:PORT]/EXPORT``, ``nbds://…``, or
            ``nbd+unix:///EXPORT?socket=PATH``; sizes as in 64M.
        read_only: refuse writes.
        direct: raw only: O_DIRECT.
        lock: raw only: see `FileStore.open`.

    Raises:
        StoreError: no such kind of store, or it cannot be opened.
    """
    kind, colon, rest = spec.partition(":")
    if not colon or not rest:
        raise StoreError(f"store {spec!r} is not KIND:WHERE, such as raw:disk.img, memory:64M or nbd://host/export")
    if kind == "raw":
        return FileStore.open(rest, read_only=read_only, direct=direct, lock=lock)
    if direct:
        raise StoreError(f"store {spec!r}: only raw files and block devices can be opened with --direct")
    if kind == "memory":
        return MemoryStore(_size(spec, rest))
    if kind == "null":
        return NullStore(_size(spec, rest))
    if kind in ("nbd", "nbds", "nbd+unix", "nbds+unix"):
        try:
            from devices.blk.stores.nbd import NbdStore
        except ImportError as exc:
            raise StoreError(
                f"store {spec!r}: this build has no NBD; install libnbd-dev and build again ({exc})"
            ) from exc
        return NbdStore.open(spec, read_only=read_only)
    raise StoreError(f"store {spec!r}: no kind {kind!r}; there are raw, memory, null, nbd, nbds, nbd+unix, nbds+unix")
