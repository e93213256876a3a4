"""virtio-blk: a disk for any guest, served from a file, a block device, memory or an NBD server.

::

    async with FileImage.open("disk.img") as image:
        await vhost.serve(Blk(image, num_queues=4), "/run/vm0-blk.sock")
"""

from devices.blk.config import BlkConfig, BlkFeature
from devices.blk.device import Blk, Limits
from devices.blk.stats import BlkStats
from devices.blk.stores import (
    FaultStore,
    FileStore,
    MemoryStore,
    NullStore,
    Store,
    StoreError,
    Topology,
    parse_store,
)

#: an image file, by the name users look for
FileImage = FileStore

__all__ = [
    "Blk",
    "BlkConfig",
    "BlkFeature",
    "BlkStats",
    "FaultStore",
    "FileImage",
    "FileStore",
    "Limits",
    "MemoryStore",
    "NullStore",
    "Store",
    "StoreError",
    "Topology",
    "parse_store",
]
