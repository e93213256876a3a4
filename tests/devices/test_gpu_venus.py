"""Vulkan by libvirglrenderer (Venus): its protocol in memory that the guest maps, done by Mesa with the CPU."""

from __future__ import annotations

import itertools
import mmap
import os
import random
import signal
import struct
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path

import pytest
import trio
from gpurig import Cmd, Guest, Rect, Resp, descendants, display, driver

import vhost
from devices.gpu import Gpu
from devices.gpu.render import Kind, RendererError, open_renderer

_virgl = pytest.importorskip("devices.gpu.render._virgl", reason="not built: install libvirglrenderer-dev")
if not _virgl.lib.render_vulkan():
    pytest.skip("this libvirglrenderer has no Venus: install that of Debian 12 or newer", allow_module_level=True)
if not list(Path("/usr/share/vulkan/icd.d").glob("lvp_icd*")):
    pytest.skip("no Vulkan by the CPU: install mesa-vulkan-drivers", allow_module_level=True)

FEATURES = 0x1F
VENUS = 4
PAGE = 4096
SIZE = 16 * PAGE
SHMID = 1
FENCE, RING = 1, 2

# numbers of commands, as the protocol has them
CREATE_INSTANCE, ENUMERATE_DEVICES, DEVICE_PROPERTIES, INSTANCE_VERSION = 0, 2, 6, 137
CREATE_DEVICE, ALLOCATE, DEVICE_QUEUE = 11, 21, 155
SET_REPLY, CREATE_RING = 178, 188
#: handles, which a driver chooses
INSTANCE, DEVICE, LOGICAL, MEMORY, QUEUE = 0x1001, 0x2001, 0x3001, 0x4001, 0x5001
NUMBERS = itertools.count(100)


def call(number: int, form: str = "", *values: object, reply: bool = True) -> bytes:
    return struct.pack(f"<ii{form}", number, reply, *values)


def reply_at(resource: int, offset: int, size: int) -> bytes:
    """Where answers go from here on."""
    return call(SET_REPLY, "QIQQ", 1, resource, offset, size, reply=False)


def create_instance() -> bytes:
    info = struct.pack("<iQIQIQIQ", 1, 0, 0, 0, 0, 0, 0, 0)
    return call(CREATE_INSTANCE, "Q", 1) + info + struct.pack("<QQQ", 0, 1, INSTANCE)


def enumerate_devices() -> bytes:
    return call(ENUMERATE_DEVICES, "QQIQQ", INSTANCE, 1, 1, 1, DEVICE)


def create_device() -> bytes:
    """With one queue."""
    queue = struct.pack("<iQIIIQf", 2, 0, 0, 0, 1, 1, 1.0)
    info = struct.pack("<iQIIQ", 3, 0, 0, 1, 1) + queue + struct.pack("<IQIQQ", 0, 0, 0, 0, 0)
    return call(CREATE_DEVICE, "QQ", DEVICE, 1) + info + struct.pack("<QQQ", 0, 1, LOGICAL)


def allocate(size: int) -> bytes:
    return call(ALLOCATE, "QQ", LOGICAL, 1) + struct.pack("<iQQIQQQ", 5, 0, size, 0, 0, 1, MEMORY)


def device_queue(ring: int) -> bytes:
    """Its queue, whose fences are that ring's."""
    timeline = struct.pack("<iQI", 1000384005, 0, ring)
    info = struct.pack("<iQ", 1000145003, 1) + timeline + struct.pack("<III", 0, 0, 0)
    return call(DEVICE_QUEUE, "QQ", LOGICAL, 1) + info + struct.pack("<QQ", 1, QUEUE)


def create_ring(number: int, resource: int, *, head: int, tail: int, status: int, buffer: int, size: int) -> bytes:
    info = struct.pack("<iQII", 1000384000, 0, 0, resource)
    info += struct.pack("<10Q", 0, SIZE, 10**9, head, tail, status, buffer, size, 0, 0)
    return call(CREATE_RING, "QQ", number, 1, reply=False) + info


@asynccontextmanager
async def rendered(kind: Kind = "venus", *, confined: bool = True) -> AsyncIterator[tuple[Gpu, Guest]]:
    try:
        async with open_renderer(kind, confined=confined) as renderer:
            gpu = Gpu(renderer=renderer, host_memory=16 << 20)
            async with display(gpu, features=FEATURES) as guest:
                yield gpu, guest
    except RendererError as error:
        if "virgl_render_server" in str(error):
            pytest.skip(str(error))
        raise


async def create(guest: Guest, context: int, capset: int = VENUS) -> Resp:
    body = struct.pack("<II64s", 9, capset, b"a program")
    return (await guest.command(Cmd.CTX_CREATE, body, context=context)).type


async def blob(guest: Guest, resource: int, context: int, *, number: int = 0, size: int = SIZE) -> Resp:
    """Memory of a context's; number 0 is shared memory, and others are a Vulkan device's."""
    body = struct.pack("<4IQQ", resource, 2, 1, 0, number, size)
    return (await guest.command(Cmd.CREATE_BLOB, body, context=context)).type


@contextmanager
def seen(guest: Guest, at: int) -> Iterator[mmap.mmap]:
    """What is mapped there, as the guest sees it."""
    back = guest.fe.backchannel
    assert back is not None
    with mmap.mmap(back.shmem_fds[SHMID, at].fileno(), SIZE) as window:
        yield window


async def ready(guest: Guest, context: int = 1, resource: int = 5, at: int = 0) -> None:
    """A context, and memory of it in the guest's window."""
    assert await create(guest, context) == Resp.OK_NODATA
    assert await blob(guest, resource, context) == Resp.OK_NODATA
    reply = await guest.command(Cmd.MAP_BLOB, struct.pack("<IIQ", resource, 0, at))
    assert (reply.type, reply.data) == (Resp.OK_MAP_INFO, struct.pack("<II", 1, 0)), "cached"


async def submit(guest: Guest, context: int, stream: bytes, ring: int = 0) -> Resp:
    """Commands, with a fence of a ring; back when it has come that far."""
    body = struct.pack("<II", len(stream), 0) + stream
    number = next(NUMBERS)
    head = struct.pack("<IIQIB3x", Cmd.SUBMIT_3D, FENCE | RING, number, context, ring)
    _, (back, *_) = await guest.fe.queues[0].request([head + body], [24])
    kind, *echoed = struct.unpack("<IIQIB3x", back)
    assert echoed == [FENCE | RING, number, context, ring]
    return Resp(kind)


def version_of(window: mmap.mmap, at: int) -> tuple[int, int] | None:
    number, result, there, version = struct.unpack_from("<iiQI", window, at)
    return (version >> 22, version >> 12 & 0x3FF) if (number, result, there) == (INSTANCE_VERSION, 0, 1) else None


async def works(guest: Guest, context: int = 1, at: int = 0, resource: int = 5) -> None:
    """A command is answered into memory that both see."""
    with seen(guest, at) as window:
        window[PAGE : PAGE + 20] = bytes(20)
        stream = reply_at(resource, PAGE, PAGE) + call(INSTANCE_VERSION, "Q", 1)
        assert await submit(guest, context, stream) == Resp.OK_NODATA
        version = version_of(window, PAGE)
        assert version is not None
        assert (1, 1) <= version < (2, 0)


async def test_vulkan_of_the_host() -> None:
    async with rendered() as (gpu, guest):
        assert struct.unpack("<I", await guest.fe.get_config(12, 4)) == (1,)
        told = await guest.do(Cmd.GET_CAPSET_INFO, struct.pack("<II", 0, 0))
        kind, version, size, _ = struct.unpack("<4I", told)
        assert (kind, version) == (VENUS, 0)
        caps = await guest.do(Cmd.GET_CAPSET, struct.pack("<II", VENUS, 0))
        assert len(caps) == size
        wire_format, xml, _, protocol, shared = struct.unpack_from("<5I", caps)
        assert wire_format < 10
        assert (xml >> 22, xml >> 12 & 0x3FF) >= (1, 3), "the Vulkan that it knows"
        assert protocol > 0
        assert shared == 1, "blobs of number 0"
        await ready(guest)
        await works(guest)
        with seen(guest, 0) as window:
            stream = reply_at(5, PAGE, 8 * PAGE) + create_instance() + enumerate_devices()
            assert await submit(guest, 1, stream) == Resp.OK_NODATA
            made = struct.unpack_from("<iiQQ", window, PAGE)
            assert made == (CREATE_INSTANCE, 0, 1, INSTANCE)
            found = struct.unpack_from("<iiQIQQ", window, PAGE + 24)
            assert found == (ENUMERATE_DEVICES, 0, 1, 1, 1, DEVICE)
            stream = reply_at(5, PAGE, PAGE) + call(DEVICE_PROPERTIES, "QQ", DEVICE, 1)
            assert await submit(guest, 1, stream) == Resp.OK_NODATA
            number, there = struct.unpack_from("<iQ", window, PAGE)
            *_, kind, length = struct.unpack_from("<IIIIiQ", window, PAGE + 12)
            name = bytes(window[PAGE + 40 : PAGE + 40 + length]).partition(b"\0")[0].decode()
            assert (number, there, kind, length) == (DEVICE_PROPERTIES, 1, 4, 256), "a CPU"
            assert name.startswith("llvmpipe")
        await guest.unref(5)
        await guest.do(Cmd.CTX_DESTROY, context=1)
        assert (gpu.stats.resources, gpu.stats.bytes, gpu.stats.contexts) == (0, 0, 0)


async def test_fences_of_a_queue_and_memory_of_a_device() -> None:
    async with rendered() as (_, guest):
        await ready(guest)
        with seen(guest, 0) as window:
            for number, stream in (
                (CREATE_INSTANCE, create_instance()),
                (ENUMERATE_DEVICES, enumerate_devices()),
                (CREATE_DEVICE, create_device()),
                (ALLOCATE, allocate(SIZE)),
                (DEVICE_QUEUE, device_queue(1)),
            ):
                assert await submit(guest, 1, reply_at(5, PAGE, PAGE) + stream) == Resp.OK_NODATA
                done, result = struct.unpack_from("<ii", window, PAGE)
                assert (done, result) == (number, number == DEVICE_QUEUE), "which has no result, but a pointer"
        for ring in (1, 0, 1):
            assert await submit(guest, 1, b"", ring) == Resp.OK_NODATA
        # memory that only its driver knows how to map
        assert await blob(guest, 9, 1, number=MEMORY) == Resp.OK_NODATA
        reply = await guest.command(Cmd.MAP_BLOB, struct.pack("<IIQ", 9, 0, SIZE))
        assert reply.type in (Resp.ERR_UNSPEC, Resp.OK_MAP_INFO), "refused, unless the driver has dma-bufs"
        await works(guest)


@pytest.mark.long
async def test_commands_through_a_ring() -> None:
    """As Mesa's driver does it: a ring in shared memory that both read and write, without a command for each."""
    async with rendered() as (_, guest):
        await ready(guest)
        stream = create_ring(7, 5, head=0, tail=64, status=128, buffer=PAGE, size=PAGE)
        assert await submit(guest, 1, stream) == Resp.OK_NODATA
        with seen(guest, 0) as window:
            stream = reply_at(5, 4 * PAGE, PAGE) + call(INSTANCE_VERSION, "Q", 1)
            window[PAGE : PAGE + len(stream)] = stream
            struct.pack_into("<I", window, 64, len(stream))
            with trio.fail_after(60):
                while struct.unpack_from("<I", window, 0) != (len(stream),):
                    await trio.sleep(0.005)
            assert version_of(window, 4 * PAGE) is not None


@pytest.mark.parametrize("kind", ["venus", pytest.param("virgl+venus", marks=pytest.mark.long)])
async def test_guests_that_cannot_map_get_none(kind: Kind, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    opengl = 2 if "virgl" in kind else 0
    async with open_renderer(kind) as renderer, trio.open_nursery() as nursery:
        path = str(tmp_path / "s")
        await nursery.start(partial(vhost.serve, Gpu(renderer=renderer), path, options=vhost.Options(shmem=False)))
        async with driver(path, features=FEATURES) as guest:
            assert struct.unpack("<I", await guest.fe.get_config(12, 4)) == (opengl,)
            for command, body in (
                (Cmd.GET_CAPSET_INFO, struct.pack("<II", opengl, 0)),
                (Cmd.GET_CAPSET, struct.pack("<II", VENUS, 0)),
            ):
                assert (await guest.command(command, body)).type == Resp.ERR_INVALID_PARAMETER
            assert await create(guest, 1) == Resp.ERR_INVALID_PARAMETER
            assert await create(guest, 1, 2) == (Resp.OK_NODATA if opengl else Resp.ERR_INVALID_PARAMETER)
        nursery.cancel_scope.cancel()
    assert caplog.messages == ["no Vulkan for this guest: its front-end maps no memory of ours (SHMEM)"]


@pytest.mark.long
async def test_beside_opengl(caplog: pytest.LogCaptureFixture) -> None:
    async with rendered("virgl+venus") as (_, guest):
        sets = set()
        for index in range(3):
            told = await guest.do(Cmd.GET_CAPSET_INFO, struct.pack("<II", index, 0))
            sets.add(struct.unpack_from("<I", told)[0])
        assert sets == {1, 2, VENUS}
        await ready(guest)
        await works(guest)
        # memory is of Vulkan's contexts alone
        assert await create(guest, 2, 2) == Resp.OK_NODATA
        assert await blob(guest, 6, 2) == Resp.ERR_INVALID_PARAMETER
        assert not caplog.messages


async def test_2d_beside_it() -> None:
    """Linux tells each context of each framebuffer that it opens, of which Vulkan knows nothing."""
    async with rendered() as (gpu, guest):
        await ready(guest)
        await guest.paint(0, 9, 64, 32, bytes([1, 2, 3, 255]) * (64 * 32))
        both = struct.pack("<II", 9, 0)
        await guest.do(Cmd.CTX_ATTACH, both, context=1)
        guest.draw(9, bytes([7, 8, 9, 255]) * (64 * 32))
        await guest.transfer(9, Rect(0, 0, 64, 32))
        await guest.flush(9, Rect(0, 0, 64, 32))
        assert gpu.picture().pixel(5, 5) == (9, 8, 7)
        await guest.do(Cmd.CTX_DETACH, both, context=1)
        await guest.unref(9)
        # OpenGL's resources are not to be had
        assert (await guest.command(Cmd.CREATE_3D, Guest.in_3d(6, 64, 64))).type == Resp.ERR_INVALID_PARAMETER
        assert await create(guest, 2, 2) == Resp.ERR_INVALID_PARAMETER
        await works(guest)


def _status(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def _servers() -> list[int]:
    """The library's server and its processes, one for each context."""
    return [
        pid for pid in descendants(os.getpid()) if Path(os.readlink(f"/proc/{pid}/exe")).name == "virgl_render_server"
    ]


async def _gone(pids: list[int]) -> None:
    with trio.fail_after(60):
        while any(Path(f"/proc/{pid}").exists() and _status(pid)["State"][0] != "Z" for pid in pids):
            await trio.sleep(0.005)


async def test_its_processes_are_sealed_and_end() -> None:
    async with rendered() as (gpu, guest):
        await ready(guest)
        server, one = _servers()
        await ready(guest, 2, 6, SIZE)
        first = _servers()
        (two,) = set(first) - {server, one}
        for pid in first:
            status = _status(pid)
            assert (status["Seccomp"], status["NoNewPrivs"], int(status["CapEff"], 16)) == ("2", "1", 0)
            assert len(status["NSpid"].split()) == len(_status(os.getpid())["NSpid"].split()) + 1
            for kind in ("pid", "mnt", "net", "ipc"):
                assert os.readlink(f"/proc/{pid}/ns/{kind}") != os.readlink(f"/proc/self/ns/{kind}")
            if not os.geteuid():
                assert not Path(f"/proc/{pid}/root/home").exists()
            assert Path(f"/proc/{pid}/oom_score_adj").read_text().strip() == "1000"
        # one that is stuck: its context goes, and it with it
        os.kill(two, signal.SIGSTOP)
        await guest.do(Cmd.CTX_DESTROY, context=2)
        await _gone([two])
        await works(guest)
        # another guest's life: other processes
        os.kill(one, signal.SIGSTOP)
        gpu.reset()
        await ready(guest)
        await works(guest)
        await _gone(first)
        second = _servers()
        assert len(second) == 2
    await _gone(second)


async def test_the_end_of_one_process(caplog: pytest.LogCaptureFixture) -> None:
    async with rendered() as (gpu, guest):
        await ready(guest)
        server, one = _servers()
        await ready(guest, 2, 6, SIZE)
        (other,) = {*_servers()} - {server, one}
        # of a context: that one is lost
        os.kill(other, signal.SIGKILL)
        await submit(guest, 2, call(INSTANCE_VERSION, "Q", 1))
        assert await blob(guest, 8, 2) != Resp.OK_NODATA
        await works(guest)
        assert not caplog.messages
        # of the server: the guest's 3D
        os.kill(server, signal.SIGKILL)
        with trio.fail_after(60):
            while not gpu.stats.renderers_lost:
                await trio.sleep(0.005)
        assert (await guest.command(Cmd.GET_DISPLAY_INFO)).type == Resp.OK_DISPLAY_INFO
        gpu.reset()
        await ready(guest)
        await works(guest)
    (said,) = caplog.messages
    assert "the 3D renderer has ended (its Vulkan server has ended)" in said


@pytest.mark.long
async def test_what_guests_do_wrong() -> None:
    async with rendered() as (gpu, guest):
        await ready(guest, 1, 5, 0)
        await ready(guest, 2, 6, SIZE)
        assert await blob(guest, 7, 1, number=99) == Resp.ERR_INVALID_PARAMETER, "no such memory"
        await works(guest, 2, SIZE, 6)
        # a ring that no queue has, one that cannot be: answered, whatever that does to the context
        for ring in (0, 1, 63, 64, 255):
            assert await create(guest, 10 + ring) == Resp.OK_NODATA
            await submit(guest, 10 + ring, b"", ring)
        await guest.do(Cmd.CTX_DESTROY, context=1)
        # answers to nowhere, commands that are none
        chance = random.Random(5)
        for context in range(300, 330):
            assert await create(guest, context) == Resp.OK_NODATA
            words = [
                chance.choice((0, 1, 6, SIZE, 1 << 31, chance.getrandbits(32))) for _ in range(chance.randint(1, 40))
            ]
            words[0] = chance.choice((0, 2, 6, 137, 178, 180, 188, 190, chance.getrandbits(9)))
            await submit(guest, context, struct.pack(f"<{len(words)}I", *words))
            await guest.do(Cmd.CTX_DESTROY, context=context)
        await works(guest, 2, SIZE, 6)
        assert gpu.stats.renderers_lost == 0


async def test_what_users_do_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RENDER_SERVER_EXEC_PATH", "/nowhere/virgl_render_server")
    command = [
        sys.executable,
        "-c",
        "from vhost.cli import main; main()",
        "gpu",
        "--socket-path",
        "/nowhere",
        "--venus",
    ]
    done = await trio.run_process(command, capture_stderr=True, check=False)
    words = "vhost: venus: there is no virgl_render_server, which does Vulkan; install it (Debian: virgl-server)"
    assert (done.returncode, done.stderr.decode().strip()) == (1, words)
