"""Load on any vhost-user-gpu back-end: a C generator on our front-end's rings, and what it costs both sides.

result = await measure("/run/vm0-gpu.sock", Workload(rect=(256, 256), display=True))
print(result.frames_per_second, result.updates_per_second)
"""

from __future__ import annotations

import errno
import os
import random
import socket
import struct
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import trio

from devices.gpu._load import ffi, lib
from vhost._shelter import bare_errors
from vhost.bench.generate import BackendCost, Calls, Generator, Latency, Measured, Spent, Sum, run_generators
from vhost.constants import FrontendRequest, VirtioFeature
from vhost.errors import DeviceError, VhostError
from vhost.frontend import Frontend, Memory, NativeRing
from vhost.frontend.core import Target

__all__ = ["Result", "Workload", "measure"]

_RESOURCE: Final = 1
_B8G8R8X8: Final = 2
_PIXEL: Final = 4
_SIDE_MAX: Final = 16384
_HEADER: Final = struct.Struct("<IIQIB3x")
_CREATE_2D, _UNREF, _SET_SCANOUT, _ATTACH_BACKING = 0x101, 0x102, 0x103, 0x106
_CTX_CREATE, _CTX_ATTACH, _CREATE_3D, _SUBMIT_3D = 0x200, 0x202, 0x204, 0x207
_VIRGL: Final = 1 << 0
_CONTEXT: Final = 1
_OK: Final = 0x1100
_ENTRY: Final = struct.Struct("<QII")
_PIECES_MAX: Final = 16384
_WORDS_MAX: Final = 32760
#: of one 3D command that changes state
_COLOUR_WORDS: Final = 5
_DRAIN_S: Final = 10
_SHOWN_S: Final = 10

_ERRORS: Final = {
    lib.GPU_LOAD_E_REPLY: "a command was answered with {info:#x}",
    lib.GEN_E_LENGTH: "a reply has {info} bytes",
}


@dataclass(frozen=True, slots=True)
class Workload:
    """What a guest draws.

    Attributes:
        size: of the resource that is shown, pixels; of 3D, that is drawn to.
        rect: of what a frame changes: TRANSFER_TO_HOST_2D and RESOURCE_FLUSH; empty: all of it.
        words: of 3D: a frame is a SUBMIT_3D with its fence, of so many words that change state; 0: frames are of 2D.
        clear: of 3D: and all of the picture is cleared then.
        depth: frames in flight, 1-256.
        display: be QEMU at the other end of a display socket, and read what is shown.
        piece_bytes: the resource's memory is in pieces of so many bytes; 0: one.
        queue_size: entries; 0: as many as `depth` needs, at least 128.
        random: rectangles at random; else side by side.
        packed, event_idx, indirect: ring features; event_idx and indirect as far as offered.
        poll: the front-end polls; else it sleeps.
        runtime, warmup: seconds.
        verify: with a display: it shows in the end what the guest's memory holds.
        hugepages: guest memory in 2 MiB pages.
        cpus: processor of the front-end; empty: not pinned.
    """

    size: tuple[int, int] = (1920, 1080)
    rect: tuple[int, int] | tuple[()] = ()
    words: int = 0
    clear: bool = False
    depth: int = 4
    display: bool = False
    piece_bytes: int = 0
    queue_size: int = 0
    random: bool = True
    packed: bool = False
    event_idx: bool = True
    indirect: bool = True
    poll: bool = True
    runtime: float = 2
    warmup: float = 0.5
    verify: bool = False
    hugepages: bool = False
    cpus: Sequence[int] = ()
    seed: int = 1

    @property
    def area(self) -> tuple[int, int]:
        """Of a frame, pixels."""
        return self.rect or self.size

    @property
    def bytes(self) -> int:
        """Of the resource's memory."""
        return self.size[0] * self.size[1] * _PIXEL

    @property
    def frame_bytes(self) -> int:
        """Of a frame's pixels; 3D commands have none."""
        if self.words:
            return 0
        return self.area[0] * self.area[1] * _PIXEL

    @property
    def entries(self) -> int:
        """Of the control queue."""
        return self.queue_size or 1 << (max(128, self.depth * 4) - 1).bit_length()

    def check(self) -> None:
        """Raises: ValueError: it makes no sense."""
        if not all(16 <= side <= _SIDE_MAX for side in self.size):
            raise ValueError(f"a picture of {_times(self.size)} pixels is not 16x16 to {_SIDE_MAX}x{_SIDE_MAX}")
        if not all(1 <= side <= most for side, most in zip(self.area, self.size, strict=True)):
            raise ValueError(f"a rectangle of {_times(self.area)} pixels does not lie in one of {_times(self.size)}")
        if not 1 <= self.depth <= lib.GPU_LOAD_DEPTH:
            raise ValueError(f"depth {self.depth} is not 1 to {lib.GPU_LOAD_DEPTH}")
        if self.piece_bytes and self.bytes > self.piece_bytes * _PIECES_MAX:
            raise ValueError(f"more than {_PIECES_MAX} pieces of memory; use larger ones")
        if self.words % _COLOUR_WORDS or not 0 <= self.words <= _WORDS_MAX or (self.clear and not self.words):
            raise ValueError(f"3D commands are {_COLOUR_WORDS} to {_WORDS_MAX} words, a multiple of {_COLOUR_WORDS}")
        if self.words and self.display:
            raise ValueError("3D commands show nothing; leave the display away")
        if self.verify and not self.display:
            raise ValueError("what is shown can be compared only with a display")
        if missing := set(self.cpus) - os.sched_getaffinity(0):
            raise ValueError(f"this process may not run on processor {min(missing)}")


def _times(size: Sequence[int]) -> str:
    return "x".join(map(str, size))


@dataclass(frozen=True, slots=True, kw_only=True)
class Result(Measured[Workload]):
    """One run. Counts per frame are over those that were through within the measured time."""

    frames: int
    frames_per_second: float
    bytes_per_second: float
    """Pixels that the guest transferred."""
    updates_per_second: float
    """Messages with pixels that came to the display."""
    shown_bytes_per_second: float
    """Pixels of them."""
    latency: Latency


class _Generator(Generator):
    """`struct gpu_load`, its queue, its display."""

    calls = Calls(lib, "gpu_load")

    def __init__(self, frontend: Frontend, workload: Workload) -> None:
        super().__init__(workload.cpus, 0)
        config = ffi.new("struct gpu_load_config *")
        config.width, config.height = workload.size
        config.rect_width, config.rect_height = workload.area
        config.depth, config.resource, config.random = workload.depth, _RESOURCE, workload.random
        config.poll, config.seed = workload.poll, workload.seed
        config.indirect = bool(frontend.features & VirtioFeature.INDIRECT_DESC)
        self.workload = workload
        self._display: socket.socket | None = None
        self.news = trio.Event()  # of the display
        self._ptr = lib.gpu_load_new(config)
        if self._ptr == ffi.NULL:
            raise ValueError("the generator cannot drive this load")
        memory, queue = frontend.memory, frontend.queues[0]
        assert isinstance(queue.ring, NativeRing)
        slots = memory.alloc(lib.GPU_LOAD_SLOT_BYTES * workload.depth, 4096)
        where = ffi.cast("void *", memory.hva(slots))
        if lib.gpu_load_set_queue(self._ptr, queue.ring.driver.ptr, queue.kick_fd, queue.call_fd, where, slots) < 0:
            raise MemoryError

    async def plug(self, frontend: Frontend) -> None:
        """Be the display."""
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        self._display = ours
        with theirs:
            await frontend.send(FrontendRequest.GPU_SET_SOCKET, fds=[theirs.fileno()])
        if lib.gpu_load_set_display(self._ptr, ours.fileno(), self.workload.verify) < 0:
            raise MemoryError

    async def read_display(self) -> None:
        """For ever, or until nobody wants it any more."""
        assert self._display is not None
        while True:
            await trio.lowlevel.wait_readable(self._display)
            code = lib.gpu_load_read_display(self._ptr)
            news, self.news = self.news, trio.Event()
            news.set()
            if code < 0:
                raise DeviceError(_display_error(code))

    def set_commands(self, gpa: int, size: int) -> None:
        """3D commands that each frame is of."""
        lib.gpu_load_set_commands(self._ptr, _CONTEXT, gpa, size)

    def shown(self) -> bytes | None:
        """Pixels of the display; None: not kept, or of another size."""
        pixels = lib.gpu_load_shown(self._ptr)
        return None if pixels == ffi.NULL else bytes(ffi.buffer(pixels, self.workload.bytes))

    def why(self, code: int) -> str:
        """The display's words, if it was it."""
        return _display_error(code) if code in (-errno.EPIPE, -errno.EPROTO) else super().why(code)

    def close(self) -> None:
        """And its end of the display's socket."""
        super().close()
        if self._display is not None:
            self._display.close()


def _display_error(code: int) -> str:
    if code == -errno.EPIPE:
        return "the back-end closed the display's socket"
    return "the back-end sent nonsense on the display's socket"


async def measure(target: Target, workload: Workload) -> Result:
    """Connect, show a resource, warm up, measure, drain.

    Args:
        target: path of the back-end's socket, or a connected socket, which is taken over.

    Raises:
        ValueError: the workload makes no sense.
        VhostError: no connection, or the back-end lacks what is asked for.
        DeviceError: it returned nonsense, refused something, or stopped answering.

    Cancellation: the generator stops within a round.
    """
    workload.check()
    with Memory(_memory_bytes(workload), hugepages=workload.hugepages) as memory:
        async with Frontend.connect(target, memory=memory) as frontend:
            if not frontend.features_offered & VirtioFeature.VERSION_1:
                raise VhostError("the back-end offers no VIRTIO 1.0 device; this front-end drives no older ones")
            await frontend.start(
                queues=2, size=workload.entries, packed=workload.packed, event_idx=workload.event_idx,
                indirect=workload.indirect, features=_VIRGL if workload.words else 0, serve=False,
            )  # fmt: skip
            generator = _Generator(frontend, workload)
            try:
                return await _session(frontend, generator, workload)
            finally:
                generator.close()


def _memory_bytes(workload: Workload) -> int:
    rings = 4 * workload.words + 2 * (workload.entries * 300 + (64 << 10)) + workload.depth * lib.GPU_LOAD_SLOT_BYTES
    return (workload.bytes + rings + _PIECES_MAX * _ENTRY.size + (4 << 20)) & -(2 << 20)


@asynccontextmanager
async def _attended(frontend: Frontend, generator: _Generator) -> AsyncIterator[None]:
    """Python looks after queue and display in the block."""
    queue = frontend.queues[0]
    with bare_errors():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(queue.serve_calls)
            queue.reap()  # the generator wants no notifications, this does
            if generator.workload.display:
                nursery.start_soon(generator.read_display)
            yield
            nursery.cancel_scope.cancel()


async def _command(frontend: Frontend, kind: int, body: bytes, context: int = 0) -> None:
    head = _HEADER.pack(kind, 0, 0, context, 0)
    used, (reply,) = await frontend.queues[0].request([head + body], [_HEADER.size])
    answer = _HEADER.unpack(reply)[0] if used >= _HEADER.size else 0
    if answer != _OK:
        raise DeviceError(f"command {kind:#x} was answered with {answer:#x}, {used} bytes")


async def _prepare_2d(frontend: Frontend, workload: Workload, entries: Sequence[bytes]) -> None:
    await _command(frontend, _CREATE_2D, struct.pack("<4I", _RESOURCE, _B8G8R8X8, *workload.size))
    await _command(frontend, _ATTACH_BACKING, struct.pack("<II", _RESOURCE, len(entries)) + b"".join(entries))
    await _command(frontend, _SET_SCANOUT, struct.pack("<6I", 0, 0, *workload.size, 0, _RESOURCE))


# 3D, as virgl has it: a command's number and its words less one, then those

_SET_BLEND_COLOUR: Final = 14 | 4 << 16
_CREATE_SURFACE: Final = 1 | 8 << 8 | 5 << 16
_SET_FRAMEBUFFER: Final = 5 | 3 << 16
_CLEAR: Final = 7 | 8 << 16
_SURFACE: Final = 100


def _words(*words: int) -> bytes:
    return struct.pack(f"<{len(words)}I", *words)


async def _prepare_3d(frontend: Frontend, generator: _Generator, workload: Workload) -> None:
    """A context, what it draws to, and the commands of a frame."""
    if not frontend.features & _VIRGL:
        raise VhostError("the back-end offers no 3D; start it with --virgl")
    await _command(frontend, _CTX_CREATE, struct.pack("<II64s", 4, 0, b"load"), _CONTEXT)
    target = _RESOURCE, 2, 1, 2, *workload.size, 1, 1, 0, 0, 1, 0  # one layer, blue first, drawn to
    await _command(frontend, _CREATE_3D, _words(*target))
    await _command(frontend, _CTX_ATTACH, _words(_RESOURCE, 0), _CONTEXT)
    surface = _words(_CREATE_SURFACE, _SURFACE, _RESOURCE, 1, 0, 0, _SET_FRAMEBUFFER, 1, 0, _SURFACE)
    await _command(frontend, _SUBMIT_3D, _words(len(surface), 0) + surface, _CONTEXT)
    half = int.from_bytes(struct.pack("<f", 0.5), "little")
    commands = _words(_SET_BLEND_COLOUR, half, half, half, half) * (workload.words // _COLOUR_WORDS)
    if workload.clear:
        commands += _words(_CLEAR, 4, half, half, half, half, 0, 0, 0)
    gpa = frontend.memory.alloc(len(commands), 4096)
    frontend.memory.write(gpa, commands)
    generator.set_commands(gpa, len(commands))


async def _session(frontend: Frontend, generator: _Generator, workload: Workload) -> Result:
    if workload.display:
        await generator.plug(frontend)
    backing = frontend.memory.alloc(workload.bytes, 4096)
    frontend.memory.write(backing, random.Random(workload.seed).randbytes(1 << 16) * (workload.bytes >> 16))
    piece = workload.piece_bytes or workload.bytes
    entries = [_ENTRY.pack(backing + at, min(piece, workload.bytes - at), 0) for at in range(0, workload.bytes, piece)]
    async with _attended(frontend, generator):
        if workload.words:
            await _prepare_3d(frontend, generator, workload)
        else:
            await _prepare_2d(frontend, workload, entries)
    run = partial(run_generators, [frontend], [generator], left="commands unanswered")
    if workload.warmup:
        await run(workload.warmup, lib.GEN_RUN)
    cost = BackendCost([frontend])
    before = cost.now()
    await run(workload.runtime, lib.GEN_RUN)
    result = _result(frontend, generator, cost.now().since(before))
    await run(_DRAIN_S, lib.GEN_DRAIN)
    async with _attended(frontend, generator):
        if workload.verify:
            await _compare(frontend, generator, backing)
        await _command(frontend, _UNREF, struct.pack("<II", _RESOURCE, 0))
    await frontend.stop()
    return result


async def _compare(frontend: Frontend, generator: _Generator, backing: int) -> None:
    """All of it, once more, and then it is on the display."""
    workload = generator.workload
    rect = struct.pack("<4I", 0, 0, *workload.size)
    await _command(frontend, 0x105, rect + struct.pack("<QII", 0, _RESOURCE, 0))
    await _command(frontend, 0x104, rect + struct.pack("<II", _RESOURCE, 0))
    wanted = _colours(frontend.memory.read(backing, workload.bytes))
    with trio.move_on_after(_SHOWN_S):
        while (shown := generator.shown()) is None or _colours(shown) != wanted:
            await generator.news.wait()
        return
    raise DeviceError("the display does not show what the guest has drawn")


def _colours(pixels: bytes) -> bytes:
    """Without the fourth byte, which says nothing."""
    found = bytearray(pixels)
    found[3::4] = bytes(len(found) // 4)
    return bytes(found)


def _error_of(stats: Any) -> str:
    return _ERRORS.get(stats.run.first_error, "error {info}").format(info=stats.run.first_error_info)


def _result(frontend: Frontend, generator: _Generator, spent: Spent) -> Result:
    found, workload = Sum([generator], _error_of), generator.workload
    done = found.total("done")
    return Result(
        frames=done,
        frames_per_second=done / found.seconds,
        bytes_per_second=done * workload.frame_bytes / found.seconds,
        updates_per_second=found.own("updates") / found.seconds,
        shown_bytes_per_second=found.own("shown_bytes") / found.seconds,
        latency=found.latency,
        **found.measured(workload, frontend, done, spent),
    )
