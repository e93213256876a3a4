"""Display and renderer do not trust each other: whatever one writes into their memory, the other lives or ends well."""

from __future__ import annotations

import mmap
import os
import random
import struct
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import pytest
import trio
from gpurig import Cmd, Guest, Rect, Resp, display

from devices.gpu import Gpu
from devices.gpu.render import Renderer, open_renderer

# where things are (devices/gpu/render/csrc/wire.h)
HEAD, TAIL, ANSWERED, ANSWERS = 0, 64, 68, 4096
SLOTS = 2048
COMMANDS = ANSWERS + 8 * SLOTS
COMMAND_BYTES = 4 << 20
OPS = 19


@contextmanager
def shared(renderer: Renderer) -> Iterator[mmap.mmap]:
    """The memory between the two."""
    assert renderer.started is not None
    with mmap.mmap(renderer.started.memory.fileno(), COMMANDS + COMMAND_BYTES) as memory:
        yield memory


def command(op: int, data: bytes = b"", *, size: int | None = None, slot: int = -1, flags: int = 0) -> bytes:
    rounded = data + bytes(-len(data) % 8)
    head = struct.pack("<IHHiI", 16 + len(rounded) if size is None else size, op, flags, slot, len(data))
    return head + rounded


async def ends(renderer: Renderer, stream: bytes, head: int | None = None) -> str:
    """How it ends when the display has written this; nothing: it does not."""
    with shared(renderer) as memory:
        memory[COMMANDS : COMMANDS + len(stream)] = stream
        struct.pack_into("<I", memory, HEAD, len(stream) if head is None else head)
        os.eventfd_write(renderer.commands.fileno(), 1)
        how: list[str] = []
        async with trio.open_nursery() as nursery:

            async def wait() -> None:
                how.append(await renderer.ended())
                nursery.cancel_scope.cancel()

            nursery.start_soon(wait)
            with trio.fail_after(60):
                while struct.unpack_from("<I", memory, TAIL)[0] != len(stream):
                    await trio.sleep(0.005)
            nursery.cancel_scope.cancel()
    return how[0] if how else ""


WRONG = "commands of the display: Protocol error"


@pytest.mark.parametrize(
    ("stream", "head"),
    [
        (command(99), None),
        (command(1, bytes(8)), None),
        (command(4, bytes(79)), None),
        (command(4, bytes(88)), None),
        (command(14, bytes(4)), None),
        (command(1, size=8), None),
        (command(1, size=20), None),
        (command(1, size=0), None),
        (command(1, size=64), 16),
        (command(0, size=COMMAND_BYTES + 16), 64),
        (command(1), 8),
        (command(1), COMMAND_BYTES + 8),
        (command(1), 0xFFFFFFF0),
        (command(2, bytes(32)), None),  # without a descriptor
        (command(15, bytes(16)), None),
        (struct.pack("<IHHiI", 16, 13, 0, -1, 1 << 30), None),
    ],
    ids=range(16),
)
async def test_a_display_that_breaks_the_rules(stream: bytes, head: int | None) -> None:
    async with open_renderer("null") as renderer:
        assert await ends(renderer, stream, head) == WRONG


async def test_a_display_that_asks_for_anything() -> None:
    """In form, but with any numbers: answered, or its end with words; never by a signal."""
    chance = random.Random(11)
    numbers = (0, 1, 2, 3, 5, 63, 64, 65, 1 << 16, 1 << 31, (1 << 32) - 1)
    sizes = {3: 32, 4: 80, 5: 80, 6: 80, 7: 80, 8: 48, 9: 8, 11: 8, 12: 56, 13: 56, 16: 56, 17: 32, 18: 8}
    async with open_renderer("null") as renderer:
        for _ in range(30):
            stream = b""
            for _ in range(chance.randint(1, 200)):
                op = chance.choice([*range(1, OPS), 4, 8, 8, 10, 12, 13, 14])
                size = sizes.get(op, 4 * chance.randint(2, 20))
                words = [chance.choice(numbers) for _ in range(size // 4)]
                if op == 8:
                    words[4:8] = [chance.choice((1, 16, 64)) for _ in range(4)]  # of a size that can be had
                if op == 14:
                    words[2:] = [chance.choice((1, 4, 5, 99)), *words[3:]]
                stream += command(
                    op,
                    struct.pack(f"<{len(words)}I", *words),
                    slot=chance.choice((-1, 1, 5000)),
                    flags=chance.choice((0, 1, 3, 0x103, 0xFFFF)),
                )
            assert await ends(renderer, stream) in ("", WRONG)
            await renderer.start()


@asynccontextmanager
async def rendered() -> AsyncIterator[tuple[Gpu, Guest, Renderer]]:
    async with open_renderer("null") as renderer:
        gpu = Gpu(renderer=renderer)
        async with display(gpu, features=7) as guest:
            await guest.context(1)
            await guest.create_3d(5, 64, 64)
            yield gpu, guest, renderer


@pytest.mark.parametrize("what", ["count", "slot", "unused slot", "type", "tail"])
async def test_a_renderer_that_breaks_the_rules(what: str, caplog: pytest.LogCaptureFixture) -> None:
    async with rendered() as (gpu, guest, renderer):
        await guest.submit(1, [4])  # it holds fences
        async with trio.open_nursery() as nursery:

            async def waits() -> None:
                reply = await guest.submit(1, [1, 5, 0x123456], fence=1)
                assert (reply.type, reply.fence) == (Resp.ERR_UNSPEC, 1)

            nursery.start_soon(waits)
            await trio.testing.wait_all_tasks_blocked()
            with shared(renderer) as memory:
                (answered,) = struct.unpack_from("<I", memory, ANSWERED)
                slot, kind, more = {
                    "count": (0, 0x1100, 5000),
                    "slot": (SLOTS, 0x1100, 1),
                    "unused slot": (SLOTS - 1, 0x1100, 1),
                    "type": (0, 0x1234, 1),  # the slot that is used again and again
                    "tail": (0, 0x1100, 0),
                }[what]
                struct.pack_into("<II", memory, ANSWERS + 8 * (answered % SLOTS), slot, kind)
                if what == "tail":
                    struct.pack_into("<I", memory, TAIL, 1 << 30)
                struct.pack_into("<I", memory, ANSWERED, answered + more)
                os.eventfd_write(renderer.answers.fileno(), 1)
            if what == "tail":  # found when there is something to write
                assert (await guest.submit(1, [1, 5, 1])).type == Resp.ERR_UNSPEC
        # in order: 2D, and after a reset 3D, too
        assert (await guest.command(Cmd.GET_DISPLAY_INFO)).type == Resp.OK_DISPLAY_INFO
        gpu.reset()
        await guest.context(1)
        await guest.create_3d(5, 64, 64)
        await guest.show(0, 5, 64, 64)
        assert (await guest.submit(1, [1, 5, 0x123456])).type == Resp.OK_NODATA
        await guest.flush(5, Rect(0, 0, 64, 64))
        await gpu.fetch()
        assert gpu.picture().pixel(1, 1) == (0x12, 0x34, 0x56)
    assert what == "type" or "the 3D renderer has ended" in caplog.text
