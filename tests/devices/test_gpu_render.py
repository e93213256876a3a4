"""3D: commands to a renderer and back, its limits, its end. With the renderer that draws nothing."""

from __future__ import annotations

import logging
import os
import signal
import struct
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
import trio
from gpurig import Cmd, Guest, Rect, Resp, descendants, display, driver, plugged

from devices.gpu import Gpu, Limits
from devices.gpu import threed as keeper
from devices.gpu.render import Renderer, RendererError, _null, open_renderer
from devices.gpu.render.renderer import vulkan_server
from vhost.constants import ProtocolFeature

VIRGL = 0x7  # and EDID, UUID
FILL, CRASH, HANG, HOLD, RELEASE = 1, 2, 3, 4, 5
ALL = Rect(0, 0, 64, 64)
SIZE = 64 * 64 * 4
GRADIENT = bytes(v for y in range(64) for x in range(64) for v in (x * 4, y * 4, 128, 255))


@asynccontextmanager
async def rendered(limits: Limits | None = None, *, packed: bool = False) -> AsyncIterator[tuple[Gpu, Guest, Renderer]]:
    """A display with 3D and its driver."""
    async with open_renderer("null") as renderer:
        gpu = Gpu(renderer=renderer, limits=limits)
        async with display(gpu, features=VIRGL, packed=packed) as guest:
            yield gpu, guest, renderer


async def target(guest: Guest, resource: int = 5, context: int = 1) -> None:
    """A context and what it draws to."""
    await guest.context(context)
    await guest.create_3d(resource, 64, 64)
    await guest.attach(resource, SIZE)
    await guest.do(Cmd.CTX_ATTACH, struct.pack("<II", resource, 0), context=context)


def renderer_process() -> int:
    """The process that draws: the launcher's child."""
    _, drawing = descendants(os.getpid())
    return drawing


@pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
async def test_what_is_drawn_is_seen(packed: bool) -> None:
    async with rendered(packed=packed) as (gpu, guest, _):
        await target(guest)
        guest.draw(5, GRADIENT)
        await guest.transfer_3d(Cmd.TO_HOST_3D, 5, ALL, context=1)
        await guest.show(0, 5, 64, 64)
        await gpu.fetch()
        assert gpu.picture().pixels == GRADIENT
        # drawn by the renderer: seen after a flush
        assert (await guest.submit(1, [FILL, 5, 0x00405060])).type == Resp.OK_NODATA
        await guest.flush(5, Rect(0, 0, 64, 32))
        await gpu.fetch()
        assert gpu.picture().pixel(63, 31) == (0x40, 0x50, 0x60)
        assert gpu.picture().pixel(1, 32) == (128, 32 * 4, 4)
        # and brought back to the guest's pages, a part of it
        await guest.transfer_3d(Cmd.FROM_HOST_3D, 5, Rect(0, 0, 64, 1), context=1)
        assert guest.pixels(5, 512) == b"\x60\x50\x40\x00" * 64 + GRADIENT[256:512]
        await guest.do(Cmd.CTX_DETACH, struct.pack("<II", 5, 0), context=1)
        await guest.do(Cmd.DETACH_BACKING, struct.pack("<II", 5, 0))
        await guest.unref(5)
        await guest.do(Cmd.CTX_DESTROY, context=1)
        assert gpu.stats.resources == 0
        assert gpu.stats.bytes == 0


async def test_pixels_come_only_for_whoever_looks(tmp_path: Path) -> None:
    async with rendered() as (gpu, guest, _):
        await target(guest)
        await guest.show(0, 5, 64, 64)
        before = gpu.flushes()
        for _ in range(10):
            await guest.submit(1, [FILL, 5, 0x00405060])
            await guest.flush(5, Rect(0, 0, 64, 32))
        assert gpu.flushes() == before + 10, "whoever counts frames has them"
        assert gpu.stats.reads == 0
        # somebody comes: once, what is stale; nobody else's damage
        async with gpu.changes(pixels=False), gpu.changes() as view:
            with trio.fail_after(60):
                while gpu.picture().pixel(63, 31) != (0x40, 0x50, 0x60):
                    await anext(view)
            assert gpu.stats.reads == 1
            assert gpu.flushes() == before + 10
            # and with each flush, before the guest goes on
            await guest.submit(1, [FILL, 5, 0x00010203])
            await guest.flush(5, Rect(0, 0, 1, 1))
            assert gpu.stats.reads == 2
            assert gpu.picture().pixel(0, 0) == (1, 2, 3)
            assert gpu.picture().pixel(1, 0) == (0x40, 0x50, 0x60)
        await guest.flush(5, ALL)
        assert gpu.stats.reads == 2
        # frames of a recording are whole
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(gpu.record, tmp_path / "a.gif", 0.3, per_second=20))
            with trio.fail_after(60):
                while gpu.stats.reads == 2:
                    await trio.sleep(0.005)
            await guest.submit(1, [FILL, 5, 0x00FF0000])
            await guest.flush(5, ALL)
        assert gpu.picture().pixel(9, 9) == (0xFF, 0, 0)
        # what nobody can tell any more is not waited for
        await guest.flush(5, ALL)
        await guest.submit(1, [CRASH])
        await gpu.fetch()
        assert gpu.stats.renderers_lost == 1


async def test_counters() -> None:
    async with rendered() as (gpu, guest, _):
        await target(guest)
        await guest.submit(1, [FILL, 5, 1])
        await guest.transfer_3d(Cmd.TO_HOST_3D, 5, ALL)
        stats = gpu.stats
        assert (stats.contexts, stats.submissions, stats.submission_bytes) == (1, 1, 12)
        assert (stats.transfers_3d, stats.renderers, stats.renderers_lost) == (1, 1, 0)
        found = {metric.name: metric.value for metric in gpu.metrics()}
        assert found["gpu_submissions_total"] == 1
        assert found["gpu_contexts"] == 1
        gpu.reset()
        assert gpu.stats.contexts == 0
    assert not any("contexts" in metric.name for metric in Gpu().metrics()), "2D"


async def test_what_is_offered() -> None:
    async with rendered() as (gpu, guest, _):
        assert gpu.features & 1
        for each in (gpu, Gpu()):
            assert not each.protocol_features & ProtocolFeature.LOG_SHMFD, "what a guest made does not migrate"
        assert await guest.fe.get_config(12, 4) == struct.pack("<I", 1)
        info = await guest.command(Cmd.GET_CAPSET_INFO, struct.pack("<II", 0, 0))
        assert info.type == Resp.OK_CAPSET_INFO
        assert struct.unpack("<IIII", info.data) == (1, 1, 64, 0)
        data = await guest.command(Cmd.GET_CAPSET, struct.pack("<II", 1, 1))
        assert data.type == Resp.OK_CAPSET
        assert data.data == b"\x5a" * 64
        for kind, body in ((Cmd.GET_CAPSET_INFO, (1, 0)), (Cmd.GET_CAPSET, (2, 1)), (Cmd.GET_CAPSET, (1, 2))):
            assert (await guest.command(kind, struct.pack("<II", *body))).type == Resp.ERR_INVALID_PARAMETER
    async with display(Gpu()) as guest:
        assert (await guest.command(Cmd.GET_CAPSET_INFO, bytes(8))).type == Resp.ERR_UNSPEC
        assert (await guest.command(Cmd.CTX_CREATE, bytes(72), context=1)).type == Resp.ERR_UNSPEC


async def test_errors() -> None:
    async with rendered() as (_, guest, _):
        await target(guest)

        async def says(kind: int, body: bytes, context: int, expected: Resp) -> None:
            assert (await guest.command(kind, body, context=context)).type == expected, (kind, body, context)

        context, resource, parameter = (
            Resp.ERR_INVALID_CONTEXT_ID,
            Resp.ERR_INVALID_RESOURCE_ID,
            Resp.ERR_INVALID_PARAMETER,
        )
        create = struct.pack("<II64s", 1, 0, b"x")
        await says(Cmd.CTX_CREATE, create, 0, context)
        await says(Cmd.CTX_CREATE, create, 1, context)
        await says(Cmd.CTX_CREATE, struct.pack("<II64s", 65, 0, b"x"), 2, parameter)
        await says(Cmd.CTX_CREATE, create[:-1], 2, Resp.ERR_UNSPEC)
        await says(Cmd.CTX_DESTROY, b"", 2, context)
        for kind in (Cmd.CTX_ATTACH, Cmd.CTX_DETACH):
            await says(kind, struct.pack("<II", 5, 0), 2, context)
            await says(kind, struct.pack("<II", 6, 0), 1, resource)
        for given in (
            {"width": 0}, {"height": 0}, {"depth": 0}, {"layers": 0}, {"target": 9}, {"width": 16385},
            {"height": 1 << 31}, {"target": 0, "height": 2},
        ):  # fmt: skip
            await says(Cmd.CREATE_3D, Guest.in_3d(7, **({"width": 8, "height": 1} | given)), 0, parameter)
        await says(Cmd.CREATE_3D, Guest.in_3d(0, 8, 8), 0, resource)
        await says(Cmd.CREATE_3D, Guest.in_3d(5, 8, 8), 0, resource)
        for kind in (Cmd.TO_HOST_3D, Cmd.FROM_HOST_3D):
            box = struct.pack("<6I", 0, 0, 0, 64, 64, 1)
            await says(kind, box + struct.pack("<Q4I", 0, 6, 0, 0, 0), 1, resource)
            await says(kind, box + struct.pack("<Q4I", 0, 5, 0, 0, 0), 9, context)
            await says(kind, box + struct.pack("<Q4I", SIZE + 1, 5, 0, 0, 0), 1, parameter)
            await says(kind, box + struct.pack("<Q4I", 4, 5, 0, 0, 0), 1, parameter)
            await says(kind, box + struct.pack("<Q4I", 0, 5, 16, 0, 0), 1, parameter)
            box = struct.pack("<6I", 1, 0, 0, 64, 64, 1)
            await says(kind, box + struct.pack("<Q4I", 0, 5, 0, 0, 0), 1, parameter)
        await says(Cmd.SUBMIT_3D, struct.pack("<II", 4, 0) + bytes(4), 9, context)
        await says(Cmd.SUBMIT_3D, struct.pack("<II", 8, 0) + bytes(4), 1, parameter)
        await says(Cmd.SUBMIT_3D, struct.pack("<II", 3, 0) + bytes(4), 1, parameter)
        await says(Cmd.SUBMIT_3D, struct.pack("<II", 4, 0) + bytes(4), 1, parameter)
        await says(Cmd.SUBMIT_3D, struct.pack("<II", 0xFFFFFFFC, 0), 1, Resp.ERR_OUT_OF_MEMORY)
        await says(Cmd.ATTACH_BACKING, struct.pack("<IIQII", 5, 1, 1 << 40, 4096, 0), 0, Resp.ERR_UNSPEC)
        await says(Cmd.SET_SCANOUT, Rect(0, 0, 65, 64).pack() + struct.pack("<II", 0, 5), 0, parameter)
        await guest.create_3d(8, 64, 64, kind=31)
        await says(Cmd.ATTACH_BACKING, struct.pack("<IIQII", 8, 1, 1 << 40, 4096, 0), 0, parameter)
        await says(Cmd.SET_SCANOUT, Rect(0, 0, 64, 64).pack() + struct.pack("<II", 0, 8), 0, parameter)


async def test_limits(caplog: pytest.LogCaptureFixture) -> None:
    async with rendered(Limits(resources=3, bytes=1 << 20, contexts=2)) as (gpu, guest, _):
        await guest.context(1)
        await guest.context(2)
        body = struct.pack("<II64s", 1, 0, b"x")
        assert (await guest.command(Cmd.CTX_CREATE, body, context=3)).type == Resp.ERR_OUT_OF_MEMORY
        await guest.do(Cmd.CTX_DESTROY, context=2)
        await guest.context(3)
        no = Resp.ERR_OUT_OF_MEMORY
        assert (await guest.command(Cmd.CREATE_3D, Guest.in_3d(1, 1024, 257))).type == no
        assert (await guest.command(Cmd.CREATE_3D, Guest.in_3d(1, 64, 64, depth=16384, layers=16384))).type == no
        assert (await guest.command(Cmd.CREATE_3D, Guest.in_3d(1, 1 << 21, 1, target=0))).type == no
        assert (await guest.command(Cmd.CREATE_3D, Guest.in_3d(1, 256, 257, kind=400))).type == no, "unknown: 16 bytes"
        assert gpu.stats.bytes == 0
        await guest.create_3d(1, 512, 320)
        # a picture of it is more memory
        await guest.create_3d(2, 256, 255)
        show = Rect(0, 0, 256, 255).pack() + struct.pack("<II", 0, 2)
        assert (await guest.command(Cmd.SET_SCANOUT, show)).type == no
        await guest.unref(1)
        await guest.do(Cmd.SET_SCANOUT, show)
        await guest.create_3d(3, 16, 16)
        await guest.create_3d(4, 16, 16)
        assert (await guest.command(Cmd.CREATE_3D, Guest.in_3d(5, 16, 16))).type == no
        with trio.fail_after(60):
            while "refused memory" not in caplog.text:  # it looks now and then
                await trio.sleep(0.1)
        assert "--max-memory" in caplog.text


async def test_fences_are_in_order() -> None:
    async with rendered() as (_, guest, _):
        await target(guest)
        assert (await guest.submit(1, [HOLD])).type == Resp.OK_NODATA
        over: list[int] = []

        async def fenced(number: int, kind: int, body: bytes, context: int = 0) -> None:
            reply = await guest.command(kind, body, context=context, fence=number)
            assert (reply.flags, reply.fence) == (1, number)
            over.append(number)

        fill = struct.pack("<II3I", 12, 0, FILL, 5, 1)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fenced, 1, Cmd.SUBMIT_3D, fill, 1)
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(fenced, 2, Cmd.GET_DISPLAY_INFO, b"")  # 2D
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(fenced, 3, Cmd.SUBMIT_3D, struct.pack("<III", 4, 0, 99), 1)  # fails
            await trio.testing.wait_all_tasks_blocked()
            # what has no fence goes on
            assert (await guest.command(Cmd.GET_DISPLAY_INFO)).type == Resp.OK_DISPLAY_INFO
            assert (await guest.submit(1, [FILL, 5, 2])).type == Resp.OK_NODATA
            for number in range(1, 4):
                await trio.testing.wait_all_tasks_blocked()
                assert over == list(range(1, number))
                assert (await guest.submit(1, [RELEASE])).type == Resp.OK_NODATA


async def test_resources_of_2d_in_contexts() -> None:
    async with rendered() as (gpu, guest, _):
        await guest.context(1)
        await guest.paint(0, 3, 64, 64, GRADIENT)
        await guest.do(Cmd.CTX_ATTACH, struct.pack("<II", 3, 0), context=1)
        # the renderer has it, with what was in it
        guest.draw(3, bytes(SIZE))
        await guest.transfer_3d(Cmd.FROM_HOST_3D, 3, ALL, context=1)
        assert guest.pixels(3, SIZE) == GRADIENT
        # a transfer goes to both
        guest.draw(3, GRADIENT[::-1])
        await guest.transfer(3, ALL)
        await guest.flush(3, ALL)
        assert gpu.picture().pixel(0, 0) == (252, 128, 255)
        guest.draw(3, bytes(SIZE))
        await guest.transfer_3d(Cmd.FROM_HOST_3D, 3, ALL, context=1)
        assert guest.pixels(3, SIZE) == GRADIENT[::-1]
        await guest.do(Cmd.DETACH_BACKING, struct.pack("<II", 3, 0))
        await guest.attach(3, SIZE, [4096] * 4)
        await guest.transfer_3d(Cmd.FROM_HOST_3D, 3, ALL, context=1)
        assert guest.pixels(3, SIZE) == GRADIENT[::-1]
        await guest.unref(3)


async def test_cursor() -> None:
    async with rendered() as (gpu, guest, _):
        await guest.context(1)
        await guest.create_3d(9, 64, 64, kind=1)
        await guest.do(Cmd.CTX_ATTACH, struct.pack("<II", 9, 0), context=1)
        await guest.submit(1, [FILL, 9, 0xFF112233])
        async with gpu.changes() as view:
            await guest.cursor(9, 3, 4)
            with trio.fail_after(60):
                while gpu.cursor_image() != b"\x33\x22\x11\xff" * 4096:
                    await anext(view)


async def test_the_end_of_a_renderer(caplog: pytest.LogCaptureFixture) -> None:
    async with rendered() as (gpu, guest, _):
        await target(guest)
        await guest.show(0, 5, 64, 64)
        await guest.submit(1, [HOLD])
        async with trio.open_nursery() as nursery:

            async def waits() -> None:
                reply = await guest.submit(1, [FILL, 5, 1], fence=77)
                assert (reply.type, reply.fence) == (Resp.ERR_UNSPEC, 77)

            nursery.start_soon(waits)
            await trio.testing.wait_all_tasks_blocked()
            assert (await guest.submit(1, [CRASH])).type == Resp.ERR_UNSPEC
        # 3D fails, 2D goes on
        assert (await guest.submit(1, [FILL, 5, 1])).type == Resp.ERR_UNSPEC
        assert (await guest.command(Cmd.CREATE_3D, Guest.in_3d(6, 8, 8))).type == Resp.ERR_UNSPEC
        await guest.paint(0, 8, 64, 64, GRADIENT)
        assert gpu.picture().pixels == GRADIENT
        await guest.unref(5)
        (line,) = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
        assert line == (
            "the 3D renderer has ended (signal SIGABRT); the guest's 3D fails until it resets the display, 2D goes on"
        )
        # a reset, and all is well again: commands wait until it is there
        gpu.reset()
        await target(guest)
        assert (await guest.submit(1, [FILL, 5, 0x010203])).type == Resp.OK_NODATA
        await guest.transfer_3d(Cmd.FROM_HOST_3D, 5, ALL, context=1)
        assert guest.pixels(5, 4) == b"\3\2\1\0"


async def test_one_that_hangs_is_ended(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    async with rendered() as (_, guest, _):
        await target(guest)
        monkeypatch.setattr(keeper, "PATIENCE", 0.5)
        with trio.fail_after(60):
            assert (await guest.submit(1, [HANG])).type == Resp.ERR_UNSPEC
        await trio.testing.wait_all_tasks_blocked()
    assert "no answer in 0.5 s" in caplog.text


async def test_a_guest_that_leaves_one_that_hangs(caplog: pytest.LogCaptureFixture) -> None:
    async with open_renderer("null") as renderer:
        gpu = Gpu(renderer=renderer)
        async with plugged(gpu) as path:
            async with driver(path, features=VIRGL) as guest:
                await target(guest)
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(guest.submit, 1, [HANG])
                    await trio.testing.wait_all_tasks_blocked()
                    nursery.cancel_scope.cancel()
            async with driver(path, features=VIRGL) as guest:
                await target(guest)
                assert (await guest.submit(1, [FILL, 5, 7], fence=1)).type == Resp.OK_NODATA
    assert "no answer in 2 s" in caplog.text
    assert "gave up" not in caplog.text


async def test_each_guest_has_its_own() -> None:
    async with open_renderer("null") as renderer:
        gpu = Gpu(renderer=renderer)
        async with plugged(gpu) as path:
            async with driver(path, features=VIRGL) as guest:
                await target(guest)
                assert (await guest.submit(1, [HOLD])).type == Resp.OK_NODATA
                first = renderer_process()
            async with driver(path, features=VIRGL) as guest:
                await target(guest)  # the same names are free
                assert renderer_process() != first
                assert (await guest.submit(1, [FILL, 5, 7], fence=1)).type == Resp.OK_NODATA
                os.kill(second := renderer_process(), signal.SIGKILL)
            async with driver(path, features=VIRGL) as guest:
                await target(guest)
                assert renderer_process() not in (first, second)
    assert not descendants(os.getpid())


async def test_many_commands_at_once() -> None:
    """More than the ring holds: they wait for room, and nothing is lost."""
    async with rendered() as (_, guest, _):
        await target(guest)
        words = [FILL, 5, 0] + [0] * 60000
        done = []

        async def one(number: int) -> None:
            reply = await guest.submit(1, words, fence=number)
            assert (reply.type, reply.fence) == (Resp.ERR_INVALID_PARAMETER, number)
            done.append(number)

        async with trio.open_nursery() as nursery:
            for number in range(1, 25):
                nursery.start_soon(one, number)
        assert len(done) == 24


async def test_memory_that_comes_and_goes() -> None:
    async with rendered() as (_, guest, _):
        await target(guest)
        region = guest.fe.memory.add(1 << 32, 1 << 20)
        await guest.fe.share(region)
        pages = [(region.gpa, SIZE)]
        await guest.create_3d(6, 64, 64)
        await guest.do(Cmd.ATTACH_BACKING, struct.pack("<II", 6, 1) + guest.entries(pages))
        guest.fe.memory.write(region.gpa, GRADIENT)
        await guest.transfer_3d(Cmd.TO_HOST_3D, 6, ALL)
        await guest.fe.unshare(region)
        box = struct.pack("<6I", 0, 0, 0, 64, 64, 1)
        reply = await guest.command(Cmd.TO_HOST_3D, box + struct.pack("<Q4I", 0, 6, 0, 0, 0))
        assert reply.type == Resp.ERR_UNSPEC
        guest.draw(5, GRADIENT)
        await guest.transfer_3d(Cmd.TO_HOST_3D, 5, ALL)
        guest.draw(5, bytes(SIZE))
        await guest.transfer_3d(Cmd.FROM_HOST_3D, 5, ALL)
        assert guest.pixels(5, SIZE) == GRADIENT


async def test_fences_of_rings() -> None:
    """Those of one ring come in order; they wait for no other ring, and nothing waits for them."""
    async with open_renderer("null") as renderer, display(Gpu(renderer=renderer), features=0x17) as guest:
        for context in (1, 2, 3):
            await guest.do(Cmd.CTX_CREATE, struct.pack("<II64s", 1, context != 3, b"x"), context=context)
        over: list[tuple[int, int]] = []
        await guest.submit(1, [HOLD])

        async def fenced(context: int, ring: int) -> None:
            head = struct.pack("<IIQIB3x", Cmd.SUBMIT_3D, 3, 10 * context + ring, context, ring)
            _, (back, *_) = await guest.fe.queues[0].request([head + struct.pack("<III", 4, 0, HOLD)], [24])
            assert struct.unpack("<IIQIB3x", back) == (Resp.OK_NODATA, 3, 10 * context + ring, context, ring)
            over.append((context, ring))

        async with trio.open_nursery() as nursery:
            for context, ring in ((1, 1), (1, 2), (1, 255), (2, 1), (2, 3)):
                nursery.start_soon(fenced, context, ring)
            await trio.testing.wait_all_tasks_blocked()
            # a fence of 2D, while they are under way
            assert (await guest.command(Cmd.GET_DISPLAY_INFO, fence=5)).fence == 5
            assert not over
            await guest.submit(1, [6, 2])
            await guest.submit(1, [6, 255])
            await trio.testing.wait_all_tasks_blocked()
            assert over == [(1, 2), (1, 255)]
            # with their context they end
            await guest.do(Cmd.CTX_DESTROY, context=2)
            await trio.testing.wait_all_tasks_blocked()
            assert sorted(over[2:]) == [(2, 1), (2, 3)]
            await guest.submit(1, [6, 1])
        assert over[-1] == (1, 1)
        # contexts without rings: one line of time
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fenced, 3, 1)
            await trio.testing.wait_all_tasks_blocked()
            await guest.submit(1, [RELEASE])
        assert over[-1] == (3, 1)


async def test_renderers_are_sealed() -> None:
    async with open_renderer("null"):
        status = dict(
            line.split(":\t", 1)
            for line in Path(f"/proc/{renderer_process()}/status").read_text().splitlines()
            if ":\t" in line
        )
        assert status["Seccomp"] == "2"
        assert status["NoNewPrivs"] == "1"
        assert int(status["CapEff"], 16) == 0
        assert Path(f"/proc/{renderer_process()}/oom_score_adj").read_text().strip() == "1000"
        assert not list(Path(f"/proc/{renderer_process()}/root").glob("home"))


async def test_what_users_do_wrong() -> None:
    with pytest.raises(RendererError, match="render node /dev/null/x: Not a directory; 'ls /dev/dri' shows"):
        async with open_renderer("null", node="/dev/null/x"):
            pass
    with pytest.raises(RendererError, match="/dev/null is no render node"):
        async with open_renderer("null", node="/dev/null"):
            pass
    for words, said in (
        (["--render-node", "/dev/null"], "vhost: render-node is the GPU that draws 3D; give --virgl with it"),
    ):
        command = [
            sys.executable,
            "-c",
            "from vhost.cli import main; main()",
            "gpu",
            "--socket-path",
            "/nowhere",
            *words,
        ]
        done = await trio.run_process(command, capture_stderr=True, check=False)
        assert (done.returncode, done.stderr.decode().strip()) == (1, said)
    with pytest.raises(RendererError, match=r"built without Venus .*; install one"):
        vulkan_server(_null)
    async with open_renderer("null") as renderer:
        Gpu(renderer=renderer)
        with pytest.raises(ValueError, match="limit of contexts is 0"):
            Limits(contexts=0)
