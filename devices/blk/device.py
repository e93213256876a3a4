"""virtio-blk as the server sees it."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar

import trio

import ring
from devices.blk._blk import ffi, lib
from devices.blk.config import WRITEBACK_OFFSET, BlkConfig, BlkFeature
from devices.blk.stats import BlkStats
from devices.blk.stores.base import SECTOR, Can, Store, StoreError
from vhost import Device, Metric
from vhost.plugin import parse_rate, parse_size

__all__ = ["Blk", "Limits"]

log = logging.getLogger(__name__)

#: of one discard or write zeroes segment: 2 GiB, so that a request that has to write zeros ends some day
MAX_SEGMENT_SECTORS = 1 << 22
#: data segments of a request: a kernel's usual maximum, far below the longest chain that rings take
SEG_MAX = 254

_WATCH_SECONDS = 2.0

_no_uring_told = False


@dataclass(frozen=True, slots=True)
class Limits:
    """What a disk may do per second; 0: no limit. Of a total and a separate limit both hold.

    Attributes:
        iops: requests.
        read_iops: read requests.
        write_iops: all others.
        bps: bytes.
        read_bps: bytes read.
        write_bps: bytes written.
        burst_ms: how much may be saved up while the disk does less: the limits' worth of so many milliseconds.
    """

    iops: int = 0
    read_iops: int = 0
    write_iops: int = 0
    bps: int = 0
    read_bps: int = 0
    write_bps: int = 0
    burst_ms: int = 0

    def __post_init__(self) -> None:
        for item in fields(self):
            if not 0 <= getattr(self, item.name) < 1 << 53:
                raise ValueError(f"limit {item.name} is {getattr(self, item.name)}; give 0 (none) or more")


class _Queue:
    """A `vhost.Source`: one queue as a worker runs it."""

    def __init__(self, disk: Blk, ptr: Any) -> None:
        self._disk = disk
        self.ptr = ptr

    def close(self) -> None:
        """Free it; what it counted stays with the disk."""
        ptr = self.ptr
        if ptr is None:
            return
        stats = BlkStats()
        stats.add_queue(ptr)
        if lib.blk_queue_free(ptr) != 0:
            raise RuntimeError("a queue is closed after it was removed from its worker with nothing in flight")
        self.ptr = None
        self._disk._forget(self, stats)


class Blk(Device):
    """A disk.

    Args:
        store: where its bytes are; stays the caller's, who closes it after the disk.
        num_queues: request queues, 1 to 256.
        queue_size: largest size of a queue, entries; the front-end chooses.
        read_only: refuse writes even where the store takes them.
        serial: what GET_ID gives, up to 20 bytes of ASCII.
        blk_size: logical block size, a power of two from 512 to 65536; None: the store's, or 512.
        size_max: largest size of one buffer segment the driver may use, bytes; 0: not limited.
        writeback: False: the cache starts in write-through mode.
        register_buffers: register guest memory with io_uring, for requests on files; that pins it, piece by piece as
            it is used, so the guest must not give memory back while it runs (balloon, virtio-mem).
        limits: what it may do per second.

    Raises:
        StoreError: the store cannot be a disk of that kind.
        ValueError: an argument out of range.
    """

    device_id: ClassVar[int] = 2
    name: ClassVar[str] = "blk"
    backend_type: ClassVar[str] = "block"
    backend_features: ClassVar[tuple[str, ...]] = ("read-only", "blk-file")

    def __init__(
        self,
        store: Store,
        *,
        num_queues: int = 1,
        queue_size: int = 1024,
        read_only: bool = False,
        serial: str = "",
        blk_size: int | None = None,
        size_max: int = 0,
        writeback: bool = True,
        register_buffers: bool = False,
        limits: Limits | None = None,
    ) -> None:
        if not 1 <= num_queues <= 256:
            raise ValueError(f"num_queues is {num_queues}; a disk has 1 to 256 queues")
        if not 2 <= queue_size <= ring_max():
            raise ValueError(f"queue_size is {queue_size}; queues have 2 to {ring_max()} entries")
        if not serial.isascii() or len(serial) > lib.BLK_ID_BYTES:
            raise ValueError(f"serial {serial!r} is longer than {lib.BLK_ID_BYTES} ASCII characters")
        self._ptr: Any = None
        self.store = store
        self.read_only = read_only or store.read_only
        self.queue_sizes = (queue_size,) * num_queues
        self.serial = serial
        self.blk_size = _block_size(store, blk_size)
        self.size_max = size_max
        self._size = _capacity(store, self.blk_size)
        self._default_writeback = writeback
        self._writeback = writeback
        self.register_buffers = register_buffers
        self._acked = 0
        self._queues: set[_Queue] = set()
        self._past = BlkStats()
        self._make(serial)
        self._limits = Limits()
        self.set_limits_to(limits or Limits())

    def _make(self, serial: str) -> None:
        erase = Can.ERASE in self.store.can
        config = ffi.new("struct blk_config *")
        config.blk_size = self.blk_size
        config.read_only = self.read_only
        config.max_discard_sectors = config.max_zero_sectors = MAX_SEGMENT_SECTORS
        config.max_erase_sectors = MAX_SEGMENT_SECTORS if erase else 0
        config.max_segments = lib.BLK_SEGMENTS_MAX
        config.register_buffers = self.register_buffers
        config.id = serial.encode().ljust(lib.BLK_ID_BYTES, b"\0")
        ptr = lib.blk_new(self.store.ptr, config, self._size)
        if ptr == ffi.NULL:
            raise MemoryError("no memory for a disk")
        self._ptr = ffi.gc(ptr, lib.blk_free)

    # What it is

    @property
    def size(self) -> int:
        """Capacity in bytes, as guests see it."""
        return self._size

    @property
    def features(self) -> int:
        """What it offers: follows from the store."""
        can = self.store.can
        offer = BlkFeature.SEG_MAX | BlkFeature.GEOMETRY | BlkFeature.BLK_SIZE | BlkFeature.TOPOLOGY
        if self.size_max:
            offer |= BlkFeature.SIZE_MAX
        if self.num_queues > 1:
            offer |= BlkFeature.MQ
        if Can.FLUSH in can:
            offer |= BlkFeature.FLUSH
        if Can.LIFETIME in can:
            offer |= BlkFeature.LIFETIME
        if self.read_only:
            return int(offer | BlkFeature.RO)
        if Can.FLUSH in can:
            offer |= BlkFeature.CONFIG_WCE
        for ability, feature in (
            (Can.DISCARD, BlkFeature.DISCARD),
            (Can.ZERO, BlkFeature.WRITE_ZEROES),
            (Can.ERASE, BlkFeature.SECURE_ERASE),
        ):
            if ability in can:
                offer |= feature
        return int(offer)

    def config(self) -> bytes:
        """The configuration space: 60 bytes, 72 with secure erase."""
        topology = self.store.topology
        block = self.blk_size
        can = self.store.can if not self.read_only else Can(0)
        discards, zeroes, erases = Can.DISCARD in can, Can.ZERO in can, Can.ERASE in can
        alignment = max(topology.discard, block) // SECTOR
        space = BlkConfig(
            capacity=self._size // SECTOR,
            size_max=self.size_max,
            seg_max=SEG_MAX,
            blk_size=block,
            physical_exp=max(topology.physical // block, 1).bit_length() - 1,
            min_io=min(topology.min_io // block, 0xFFFF),
            opt_io=topology.opt_io // block,
            writeback=int(self._writeback),
            num_queues=self.num_queues,
            max_discard_sectors=MAX_SEGMENT_SECTORS * discards,
            max_discard_seg=lib.BLK_SEGMENTS_MAX * discards,
            discard_alignment=alignment * discards,
            max_zero_sectors=MAX_SEGMENT_SECTORS * zeroes,
            max_zero_seg=lib.BLK_SEGMENTS_MAX * zeroes,
            may_unmap=int(discards and zeroes),
            max_erase_sectors=MAX_SEGMENT_SECTORS * erases,
            max_erase_seg=lib.BLK_SEGMENTS_MAX * erases,
            erase_alignment=alignment * erases,
        )
        return space.pack(erase=erases)

    def set_config(self, offset: int, data: bytes) -> None:
        """The driver switches the write cache.

        Raises:
            ValueError: any other field, or the driver did not ask for the switch.
        """
        if offset != WRITEBACK_OFFSET or data not in (b"\0", b"\1"):
            raise ValueError(f"only the write cache (offset {WRITEBACK_OFFSET}, 0 or 1) can be written")
        if not self._acked & BlkFeature.CONFIG_WCE:
            raise ValueError("the write cache switch (CONFIG_WCE) was not negotiated")
        self._writeback = data == b"\1"
        self._apply_cache()

    # Life-cycle

    def features_acked(self, features: int) -> None:
        """Requests of features that were not acked are refused from now on."""
        self._acked = features
        if not features & BlkFeature.CONFIG_WCE:
            self._writeback = self._default_writeback
        lib.blk_set_features(self._ptr, features)
        self._apply_cache()

    def _apply_cache(self) -> None:
        # VIRTIO 1.3, 5.2.5.2: without FLUSH a driver cannot ask for durability, so it gets it with every write
        durable = not self._acked & BlkFeature.FLUSH or not self._writeback
        lib.blk_set_writethrough(self._ptr, durable)

    def make_source(self, queue: ring.Virtqueue, worker: ring.Worker) -> _Queue:
        """As `vhost.Device.make_source`."""
        global _no_uring_told
        if not worker.has_uring and not _no_uring_told:
            _no_uring_told = True
            log.warning(
                "io_uring is not available here: files are read and written by blocking calls, which is slower; "
                "in a container its seccomp profile may have to allow io_uring_setup"
            )
        ptr = lib.blk_queue_new(self._ptr, queue.ptr, queue.size)
        if ptr == ffi.NULL:
            raise MemoryError(f"no memory for a queue of {queue.size} requests")
        source = _Queue(self, ptr)
        self._queues.add(source)
        return source

    async def background(self) -> None:
        """As `vhost.Device.background`."""
        if not self.register_buffers:
            await self.store.watch()
            return
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.store.watch)
            nursery.start_soon(self._watch_buffers)

    async def _watch_buffers(self) -> None:
        """Say so if guest memory cannot be registered. Workers cannot: they never run Python."""
        while not (error := self.stats.fixed_error):  # noqa: ASYNC110 - a worker sets it, no event of trio's can
            await trio.sleep(_WATCH_SECONDS)
        log.warning(
            "guest memory could not be registered with io_uring (%s): %s goes on without; raise the limit of locked "
            "memory (ulimit -l, LimitMEMLOCK= of systemd), or leave register-buffers out",
            os.strerror(error),
            self.store.description,
        )

    def _forget(self, queue: _Queue, stats: BlkStats) -> None:
        self._queues.discard(queue)
        self._past.add(stats)

    def reset(self) -> None:
        """Forget what the driver set."""
        self._writeback = self._default_writeback
        self._acked = 0
        lib.blk_set_features(self._ptr, 0)
        self._apply_cache()

    async def quiesce(self) -> None:
        """Take no new requests, wait for those in flight, and make all of it durable; nests.

        Until `resume` the image does not change: a snapshot taken now is what the guest had written.

        Raises:
            OSError: the store could not be made durable; the disk runs on.
        """
        await super().quiesce()
        try:
            await self.store.sync()
        except BaseException:
            await self.resume()
            raise

    # Live changes

    async def resize_to(self, size: int | None = None) -> int:
        """Give the disk a new capacity; guests are told. Returns it.

        Args:
            size: bytes; None: what the store has become.

        Raises:
            StoreError: the store cannot have that size.
        """
        if size is not None and size % self.blk_size:
            raise StoreError(f"{size} is no multiple of the disk's block size, {self.blk_size} bytes")
        await self.store.resize(size)
        capacity = _capacity(self.store, self.blk_size)
        if capacity != self._size:
            self._size = capacity
            lib.blk_set_capacity(self._ptr, capacity)
            self.config_changed()
        return self._size

    @property
    def limits(self) -> Limits:
        """What holds now."""
        return self._limits

    def set_limits_to(self, limits: Limits) -> None:
        """Replace all limits."""
        raw = ffi.new("struct blk_limits *", asdict(limits))
        lib.blk_set_limits(self._ptr, raw)
        self._limits = limits

    @property
    def stats(self) -> BlkStats:
        """What its queues have counted so far."""
        sum_ = BlkStats()
        sum_.add(self._past)
        for queue in tuple(self._queues):
            sum_.add_queue(queue.ptr)
        return sum_

    # Control socket and metrics

    def controls(self) -> Mapping[str, Callable[..., Any]]:
        """As `vhost.Device.controls`."""
        return {
            "quiesce": self.quiesce,
            "resume": self.resume,
            "resize": self._resize,
            "set_limits": self._set_limits,
            "limits": self._show_limits,
            "stats": self._show_stats,
            "info": self._info,
        }

    async def _resize(self, size: int | str | None = None) -> int:
        """Grow the disk to a size such as 20G, or to what its file has become. Returns bytes."""
        return await self.resize_to(None if size is None else parse_size(size))

    def _set_limits(
        self,
        iops: int | str = 0,
        read_iops: int | str = 0,
        write_iops: int | str = 0,
        bps: int | str = 0,
        read_bps: int | str = 0,
        write_bps: int | str = 0,
        burst_ms: int = 0,
    ) -> dict[str, int]:
        """Replace all limits, per second; what is left out has none. Rates as in 5k or 100M."""
        rates = {
            "iops": iops,
            "read_iops": read_iops,
            "write_iops": write_iops,
            "bps": bps,
            "read_bps": read_bps,
            "write_bps": write_bps,
        }
        self.set_limits_to(Limits(**{name: parse_rate(rate) for name, rate in rates.items()}, burst_ms=burst_ms))
        return self._show_limits()

    def _show_limits(self) -> dict[str, int]:
        """Limits per second; 0 is none."""
        return asdict(self._limits)

    def _show_stats(self) -> dict[str, Any]:
        """Requests, bytes and errors per operation, latencies in microseconds."""
        return self.stats.as_dict()

    def _info(self) -> dict[str, Any]:
        """The disk and its store."""
        return {
            "store": self.store.description,
            "size": self._size,
            "blk_size": self.blk_size,
            "read_only": self.read_only,
            "num_queues": self.num_queues,
            "serial": self.serial,
            "writeback": self._writeback,
            "quiesced": self.quiesced,
        }

    def metrics(self) -> Iterable[Metric]:
        """As `vhost.Device.metrics`."""
        yield from self.stats.metrics()
        yield Metric("blk_capacity_bytes", "gauge", "Size of the disk.", self._size)
        yield from self.store.metrics()


def ring_max() -> int:
    """Most entries a queue may have."""
    return 32768


def _block_size(store: Store, wanted: int | None) -> int:
    logical = max(store.topology.logical, SECTOR)
    if wanted is None:
        return logical
    if wanted & (wanted - 1) or not SECTOR <= wanted <= 65536:
        raise ValueError(f"blk_size is {wanted}; give a power of two from 512 to 65536")
    if wanted < logical:
        raise StoreError(
            f"{store.description} takes only whole blocks of {logical} bytes, a block size of {wanted} is too small; "
            f"use {logical}, or leave --direct out"
        )
    return wanted


def _capacity(store: Store, blk_size: int) -> int:
    size = store.size - store.size % blk_size
    if not size:
        raise StoreError(f"{store.description} has {store.size} bytes, less than one block of {blk_size}")
    return size
