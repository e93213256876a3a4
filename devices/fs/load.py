"""Load on any vhost-user-fs back-end: a C generator on our front-end's rings, and what it costs both sides.

result = await measure("/run/vm0-fs.sock", Workload(op="getattr", depth=16))
print(result.iops, result.latency.p99_us)
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from devices.fs._load import ffi, lib
from devices.fs.load_client import ROOT, Client, Node
from ring._ring import lib as ring_lib
from vhost.bench.generate import BackendCost, Calls, Generator, Latency, Measured, Spent, Sum, run_generators
from vhost.constants import ProtocolFeature, VirtioFeature
from vhost.errors import DeviceError, VhostError
from vhost.frontend import Frontend, Memory, NativeRing
from vhost.frontend.core import Target

__all__ = ["OPERATIONS", "Result", "Workload", "measure"]

OPERATIONS: Final = {
    "getattr": "GETATTR of many files",
    "lookup": "LOOKUP of many names",
    "read": "READ of files",
    "write": "WRITE to files",
    "list": "READDIRPLUS of a folder, from its first entry to its last and again",
    "create": "CREATE, WRITE, FLUSH, RELEASE, UNLINK and FORGET of a new file",
}
_OPS: Final = {
    "getattr": lib.FS_LOAD_GETATTR, "lookup": lib.FS_LOAD_LOOKUP, "read": lib.FS_LOAD_READ,
    "write": lib.FS_LOAD_WRITE, "list": lib.FS_LOAD_LIST, "create": lib.FS_LOAD_CREATE,
}  # fmt: skip
_DATA: Final = ("read", "write")
_FILES: Final = {"getattr": 1000, "lookup": 1000, "list": 10_000}
_DRAIN_S: Final = 10
_FILL_S: Final = 120
_PROTOCOL: Final = ~int(ProtocolFeature.STATUS)
"""A back-end that was told of device states waits for them."""

_ERRORS: Final = {
    lib.GEN_E_LENGTH: "a reply has {info} bytes",
    lib.GEN_E_DATA: "a file holds something else at byte {info}",
    lib.FS_LOAD_E_UNIQUE: "a reply, to opcode {info}, has another request's number",
    lib.FS_LOAD_E_INODE: "inode {info}, or its size, is not what was looked up",
    lib.FS_LOAD_E_LISTING: "a listing has {info} of the folder's files, or one twice",
}


@dataclass(frozen=True, slots=True)
class Workload:
    """What to do to a shared folder.

    Attributes:
        op: one of OPERATIONS.
        block_bytes: of a READ, a WRITE, the file that is created; the room for entries of a READDIRPLUS. Multiple of 8.
        piece_bytes: of a descriptor of data, as a guest has pages; 0: one for all.
        depth: operations in flight per queue, 1-1024.
        queues, threads: request queues; threads share them evenly.
        queue_size: entries; 0: as many as `depth` needs, at least 128.
        files: how many; 0: 1000, to be listed 10000, with data one per queue.
        size: bytes of each file with data.
        random: files and blocks at random; else in order.
        packed, event_idx, indirect: ring features; event_idx and indirect as far as offered.
        poll: the front-end polls; else it sleeps on call eventfds.
        runtime, warmup: seconds.
        rate: operations/s in all, evenly spaced; 0: as fast as they come back.
        verify: contents, inodes and listings are compared.
        folder: name in the shared folder; what is not there is made, and removed at the end.
        keep: leave it.
        hugepages: guest memory in 2 MiB pages.
        cpus: processor of each front-end thread; empty: not pinned.
    """

    op: str = "getattr"
    block_bytes: int = 4096
    piece_bytes: int = 0
    depth: int = 16
    queues: int = 1
    threads: int = 1
    queue_size: int = 0
    files: int = 0
    size: int = 64 << 20
    random: bool = True
    packed: bool = False
    event_idx: bool = True
    indirect: bool = True
    poll: bool = True
    runtime: float = 2
    warmup: float = 0.5
    rate: int = 0
    verify: bool = False
    folder: str = "vhost-bench"
    keep: bool = False
    hugepages: bool = False
    cpus: Sequence[int] = ()
    seed: int = 1

    @property
    def names(self) -> list[str]:
        """Of the files it works on."""
        if self.op in _DATA:
            return [f"d{number:06}-{self.size}" for number in range(self.files or self.queues)]
        return [f"f{number:06}" for number in range(self.files or _FILES.get(self.op, 0))]

    @property
    def has_data(self) -> bool:
        """Whether requests carry blocks."""
        return self.op in (*_DATA, "list", "create")

    @property
    def pieces(self) -> int:
        """Descriptors of a request's block."""
        return -(-self.block_bytes // self.piece_bytes) if self.piece_bytes else 1

    @property
    def stride(self) -> int:
        """Bytes from one block of memory to the next: whole pages."""
        return -(-self.block_bytes // 4096) * 4096 if self.has_data else 0

    @property
    def entries(self) -> int:
        """Of a queue."""
        most = self.depth * (1 if self.indirect else 4 + self.pieces)
        return self.queue_size or 1 << (max(128, most) - 1).bit_length()

    def check(self) -> None:
        """Raises: ValueError: it makes no sense."""
        if self.op not in OPERATIONS:
            raise ValueError(f"operation {self.op!r} is none of {', '.join(OPERATIONS)}")
        if not 8 <= self.block_bytes <= 1 << 30 or self.block_bytes % 8 or self.piece_bytes % 8:
            raise ValueError(f"a block of {self.block_bytes} bytes is no multiple of 8, or not up to 1 GiB")
        if self.pieces > lib.FS_LOAD_PIECES:
            raise ValueError(f"{self.pieces} pieces of a block, at most {lib.FS_LOAD_PIECES}; use larger pieces")
        if self.op in _DATA and self.size < self.block_bytes:
            raise ValueError(f"a file of {self.size} bytes has no block of {self.block_bytes}")
        if self.op == "list" and self.block_bytes < 4096:
            raise ValueError("room for entries of a listing is 4096 bytes at least")
        if not 1 <= self.depth <= lib.GEN_DEPTH:
            raise ValueError(f"depth {self.depth} is not 1 to {lib.GEN_DEPTH}")
        if not 0 <= self.files < 1_000_000:
            raise ValueError(f"{self.files} files are not 1 to 999999")
        if not 1 <= self.threads <= self.queues:
            raise ValueError(f"{self.threads} threads for {self.queues} queues: every thread needs a queue")
        if self.threads > 1 and self.op == "create":
            raise ValueError("one thread creates files: there is one queue for what is forgotten")
        if self.queues > lib.GEN_QUEUES:
            raise ValueError(f"{self.queues} queues, at most {lib.GEN_QUEUES} are driven")
        if not self.folder or "/" in self.folder or self.folder in (".", ".."):
            raise ValueError(f"{self.folder!r} is no name of a folder in the shared one")
        if missing := set(self.cpus) - os.sched_getaffinity(0):
            raise ValueError(f"this process may not run on processor {min(missing)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Result(Measured[Workload]):
    """One run. Counts per operation are over those that were through within the measured time."""

    operations: int
    requests: int
    """FUSE requests that were answered."""
    iops: float
    """Operations per second."""
    entries_per_second: float
    """Of listings; 0 for other operations."""
    bytes_per_second: float
    latency: Latency
    batch_mean: float
    batch_max: int


class _Generator(Generator):
    """One thread's `struct fs_load` with its queues and buffers."""

    calls = Calls(lib, "fs_load")

    def __init__(self, workload: Workload, number: int, folder: int, files: Any, indirect: bool) -> None:
        config = ffi.new("struct fs_load_config *")
        config.op, config.depth = _OPS[workload.op], workload.depth
        config.block_bytes, config.piece_bytes = workload.block_bytes, workload.piece_bytes
        config.random, config.poll, config.indirect = workload.random, workload.poll, indirect
        config.verify, config.seed, config.number = workload.verify, workload.seed, number
        config.uid, config.gid = os.geteuid(), os.getegid()
        config.rate = workload.rate // workload.threads
        config.folder = folder
        super().__init__(workload.cpus, number)
        self._workload = workload
        self._kept: list[Any] = [files]
        self._ptr = lib.fs_load_new(config)
        if self._ptr == ffi.NULL:
            raise ValueError("the generator cannot drive this load")
        lib.fs_load_set_files(self._ptr, files, len(files))

    def add(self, frontend: Frontend, number: int, listings: Sequence[int]) -> None:
        """Request queue `number`, with handles of open folders where they are listed."""
        workload, memory, queue = self._workload, frontend.memory, frontend.queues[1 + number]
        assert isinstance(queue.ring, NativeRing)
        slots = memory.alloc(lib.FS_LOAD_SLOT_BYTES * workload.depth, 4096)
        place = {"slots": ffi.cast("void *", memory.hva(slots)), "slots_gpa": slots, "data_stride": workload.stride}
        if workload.has_data:
            data = memory.alloc(workload.stride * workload.depth, 4096)
            place |= {"data": ffi.cast("void *", memory.hva(data)), "data_gpa": data}
        code = lib.fs_load_add_queue(
            self._ptr, queue.ring.driver.ptr, queue.kick_fd, queue.call_fd, ffi.new("struct fs_load_memory *", place),
            ffi.new("uint64_t[]", list(listings)) if listings else ffi.NULL, number, workload.queues,
        )  # fmt: skip
        if code < 0:
            raise DeviceError(f"cannot drive queue {number}: {os.strerror(-code)}")

    def forget_on(self, frontend: Frontend) -> None:
        """The high-priority queue."""
        memory, queue = frontend.memory, frontend.queues[0]
        assert isinstance(queue.ring, NativeRing)
        slots = memory.alloc(lib.FS_LOAD_SLOT_BYTES * lib.FS_LOAD_FORGETS, 4096)
        where = ffi.cast("void *", memory.hva(slots))
        code = lib.fs_load_set_hiprio(self._ptr, queue.ring.driver.ptr, queue.kick_fd, where, slots)
        if code < 0:
            raise DeviceError(f"cannot drive the high-priority queue: {os.strerror(-code)}")

    def set_op(self, op: str, verify: bool) -> None:
        lib.fs_load_set_op(self._ptr, _OPS[op], verify)


async def measure(target: Target, workload: Workload, *, look: Callable[[], None] | None = None) -> Result:
    """Connect, make the files, warm up, measure, drain, remove what was made.

    Args:
        target: path of the back-end's socket, or a connected socket, which is taken over.
        look: called once the load is over, while the back-end still knows all files.

    Raises:
        ValueError: the workload makes no sense.
        VhostError: no connection, or the back-end lacks what is asked for.
        DeviceError: it returned nonsense, refused something, or stopped answering.

    Cancellation: the generator stops within a round; files stay where they are.
    """
    workload.check()
    with Memory(_memory_bytes(workload), hugepages=workload.hugepages) as memory:
        async with Frontend.connect(target, memory=memory, protocol=_PROTOCOL) as frontend:
            await _start(frontend, workload)
            try:
                return await _session(frontend, workload, look)
            except OSError as error:
                raise DeviceError(f"while the files were prepared: {error.strerror}") from error


async def _start(frontend: Frontend, workload: Workload) -> None:
    if not frontend.features_offered & VirtioFeature.VERSION_1:
        raise VhostError("the back-end offers no VIRTIO 1.0 device; this front-end drives no older ones")
    # a back-end that answers nothing may have any number
    if ProtocolFeature.MQ in frontend.protocol and frontend.num_queues < 1 + workload.queues:
        raise VhostError(
            f"the back-end has {frontend.num_queues - 1} request queues, {workload.queues} were asked for; "
            "start it with more"
        )
    await frontend.start(
        queues=1 + workload.queues, size=workload.entries, packed=workload.packed, event_idx=workload.event_idx,
        indirect=workload.indirect, features=0, serve=False, indirect_max=4 + workload.pieces,
    )  # fmt: skip
    for queue in frontend.queues.values():
        assert isinstance(queue.ring, NativeRing)
        if ring_lib.ring_drv_remember(queue.ring.driver.ptr) < 0:
            raise MemoryError


def _memory_bytes(workload: Workload) -> int:
    ring_bytes = workload.entries * (16 + 2 + 8 + 16 * (4 + workload.pieces))
    buffers = workload.depth * (workload.stride + lib.FS_LOAD_SLOT_BYTES)
    return ((1 + workload.queues) * (ring_bytes + (64 << 10)) + workload.queues * buffers + (4 << 20)) & -(2 << 20)


async def _session(frontend: Frontend, workload: Workload, look: Callable[[], None] | None) -> Result:
    with Client(frontend, frontend.queues[1]) as client:
        await client.init()
        if workload.op in ("write", "create") and client.max_write < workload.block_bytes:
            raise VhostError(f"the back-end takes at most {client.max_write} bytes in a WRITE")
        async with _files(client, workload) as (folder, nodes, fresh):
            result = await _drive(frontend, client, workload, folder, nodes, fresh)
            if look is not None:
                look()
        await client.destroy()
    await frontend.stop()
    return result


@asynccontextmanager
async def _files(client: Client, workload: Workload) -> AsyncIterator[tuple[int, list[Node], list[int]]]:
    """The folder, its files that the load is about, and which of them were made now; removes those at the end."""
    (found,) = await client.lookup(ROOT, [workload.folder])
    # a listing takes what is there, unless it is to be compared
    names = [] if found and workload.op == "list" and not workload.verify else workload.names
    folder = found or await client.mkdir(ROOT, workload.folder)
    there = await client.lookup(folder.node, names)
    absent = [number for number, node in enumerate(there) if node is None]
    made = await client.create(folder.node, [names[number] for number in absent])
    for number, node in zip(absent, made, strict=True):
        there[number] = node
    yield folder.node, [node for node in there if node is not None], absent
    if not workload.keep:
        await client.remove(folder.node, [names[number] for number in absent])
        if found is None:
            await client.remove(ROOT, [workload.folder], folders=True)


async def _drive(
    frontend: Frontend, client: Client, workload: Workload, folder: int, nodes: list[Node], fresh: list[int]
) -> Result:
    handles: list[int] = []
    if workload.op in _DATA:
        fill = bool(fresh) or workload.verify
        how = os.O_RDWR if fill or workload.op == "write" else os.O_RDONLY
        handles = await client.open([node.node for node in nodes], how)
    sizes = [workload.size if workload.op in _DATA else node.size for node in nodes]
    files = ffi.new("struct fs_load_file[]", len(nodes))
    for number, (node, name, size) in enumerate(zip(nodes, workload.names, sizes, strict=False)):
        entry = files[number]
        entry.node, entry.ino, entry.size, entry.name = node.node, node.ino, size, name.encode()
        entry.fh = handles[number] if handles else 0
    generators: list[_Generator] = []
    indirect = bool(frontend.features & VirtioFeature.INDIRECT_DESC)
    try:
        generators += [_Generator(workload, number, folder, files, indirect) for number in range(workload.threads)]
        for number in range(workload.queues):
            open_folders = [folder] * workload.depth if workload.op == "list" else []
            listings = await client.open(open_folders, os.O_RDONLY, folders=True)
            generators[number % len(generators)].add(frontend, number, listings)
        if workload.op == "create":
            generators[0].forget_on(frontend)
        return await _measured(frontend, workload, generators, fill=workload.op in _DATA and fill)
    finally:
        for generator in generators:
            generator.close()


async def _measured(frontend: Frontend, workload: Workload, generators: Sequence[_Generator], *, fill: bool) -> Result:
    run = partial(run_generators, [frontend], generators)
    if fill:
        await _all_blocks(frontend, workload, generators, "write")
    if workload.warmup:
        await run(workload.warmup, lib.GEN_RUN)
    cost = BackendCost([frontend])
    before = cost.now()
    await run(workload.runtime, lib.GEN_RUN)
    result = _result(frontend, workload, generators, cost.now().since(before))
    await run(_DRAIN_S, lib.GEN_DRAIN)
    if workload.verify and workload.op == "write":
        await _all_blocks(frontend, workload, generators, "read")
    return result


async def _all_blocks(frontend: Frontend, workload: Workload, generators: Sequence[_Generator], op: str) -> None:
    for generator in generators:
        generator.set_op(op, workload.verify)
    await run_generators([frontend], generators, _FILL_S, lib.GEN_ONCE)
    for generator in generators:
        if (stats := generator.stats).run.errors:
            doing = "writing the files" if op == "write" else "reading what was written"
            raise DeviceError(f"while {doing}: {_error_of(stats)}")
        generator.set_op(workload.op, workload.verify)


def _error_of(stats: Any) -> str:
    kind, info = stats.run.first_error, stats.run.first_error_info
    if kind == lib.FS_LOAD_E_STATUS:
        return f"a request failed: {os.strerror(info)}"
    return _ERRORS.get(kind, "error {info}").format(info=info)


def _result(frontend: Frontend, workload: Workload, generators: Sequence[_Generator], spent: Spent) -> Result:
    found = Sum(generators, _error_of)
    done, requests = found.total("done"), found.own("requests")
    return Result(
        operations=done,
        requests=requests,
        iops=done / found.seconds,
        entries_per_second=found.own("entries") / found.seconds,
        bytes_per_second=found.own("bytes") / found.seconds,
        latency=found.latency,
        batch_mean=requests / max(found.total("batches"), 1),
        batch_max=found.max_batch,
        **found.measured(workload, frontend, done, spent),
    )
