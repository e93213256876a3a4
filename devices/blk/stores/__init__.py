"""Where a disk's bytes live: files and block devices, memory, nowhere (for measuring), and behind a faulty filter.

`parse_store` makes one from what a user writes: ``raw:PATH``, ``memory:SIZE``, ``null:SIZE``, ``nbd://HOST/EXPORT``,
``nbd+unix:///EXPORT?socket=PATH``.
"""

from devices.blk.stores.base import Store, StoreError, StorePtr, Topology
from devices.blk.stores.fault import FaultStore
from devices.blk.stores.file import FileStore
from devices.blk.stores.memory import MemoryStore, NullStore
from devices.blk.stores.parse import parse_store

__all__ = [
    "FaultStore",
    "FileStore",
    "MemoryStore",
    "NullStore",
    "Store",
    "StoreError",
    "StorePtr",
    "Topology",
    "parse_store",
]
