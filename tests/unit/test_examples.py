"""Every example runs, does what it says, and ends when asked to."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import stat
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from fsrig import ROOT, Mount, errno_of, guest

from devices.fs.config import Opcode
from vhost import Frontend

EXAMPLES = Path(__file__).parents[2] / "examples"


def example(name: str, *arguments: object) -> list[str]:
    return [sys.executable, "-X", "dev", "-W", "error", str(EXAMPLES / name), *map(str, arguments)]


@asynccontextmanager
async def running(name: str, *arguments: object) -> AsyncIterator[trio.Process]:
    """An example as a process; it must have ended well by itself or by SIGTERM."""
    process = await trio.lowlevel.open_process(example(name, *arguments), stderr=subprocess.PIPE)
    assert process.stderr is not None
    try:
        yield process
        process.send_signal(signal.SIGTERM)
        with trio.fail_after(60):
            complaint = b"".join([part async for part in process.stderr])
            assert await process.wait() == 0, complaint.decode()
        assert not complaint, complaint.decode()
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()
        await process.stderr.aclose()


def test_every_example_is_here() -> None:
    tests = Path(__file__).read_text()
    for path in EXAMPLES.glob("*.py"):
        assert f'"{path.name}"' in tests, f"{path.name} is run by no test"


async def test_rng(tmp_path: Path) -> None:
    socket = tmp_path / "s"
    async with running("rng.py", socket), Frontend.connect(socket, timeout=60, socket_timeout=60) as fe:
        await fe.start(size=64)
        length, (first, second) = await fe.queues[0].request([], [64, 1000])
        assert length == 1064
        assert len(set(second)) > 200
        assert first != second[:64]
    assert not socket.exists()


async def test_echo(tmp_path: Path) -> None:
    socket = tmp_path / "s"
    async with running("echo.py", socket), Frontend.connect(socket, timeout=60, socket_timeout=60) as fe:
        await fe.start(queues=4, packed=True)
        for number in range(40):
            data = b"number %d" % number
            assert await fe.queues[number % 4].request([data], [100]) == (len(data), [data.ljust(100, b"\0")])


@pytest.mark.parametrize("packed", [False, True])
async def test_echo_in_bursts(tmp_path: Path, packed: bool) -> None:
    """Many requests in flight, answered by the batch, each with its own bytes."""
    socket, depth, size, total = tmp_path / "s", 32, 64, 5000
    async with running("echo.py", socket), Frontend.connect(socket, timeout=60, socket_timeout=60) as fe:
        await fe.start(packed=packed, serve=False)
        queue = fe.queues[0]
        queue.ring.calls_off()
        places = [(fe.memory.alloc(size), fe.memory.alloc(size)) for _ in range(depth)]
        expected: dict[int, tuple[int, bytes]] = {}  # token: whose place, and what is to come back
        sent = 0

        def send(place: int) -> None:
            nonlocal sent
            out, in_ = places[place]
            data = b"%06d" % sent * 10
            fe.memory.write(out, data)
            queue.ring.add([(out, len(data))], [(in_, size)], sent)
            expected[sent] = place, data
            sent += 1

        for place in range(depth):
            send(place)
        with trio.fail_after(60):
            while expected:
                if queue.ring.publish():
                    queue.kick()
                for used in queue.ring.poll():
                    place, data = expected.pop(used.token)
                    assert used.length == len(data)
                    assert fe.memory.read(places[place][1], len(data)) == data
                    if sent < total:
                        send(place)
                await trio.lowlevel.checkpoint()
        assert sent == total


async def test_second_signal_ends_at_once(tmp_path: Path) -> None:
    """A request that never ends holds up the first signal for the grace time, and the second not at all."""
    socket = tmp_path / "s"
    script = tmp_path / "stuck.py"
    script.write_text(
        "import trio, vhost, sys\n"
        "class Stuck(vhost.Device):\n"
        "    device_id = 1\n"
        "    async def run(self, queue):\n"
        "        chains = []\n"
        "        async for chain in queue:\n"
        "            chains.append(chain)\n"
        "trio.run(vhost.run_until_signal, vhost.serve, Stuck(), sys.argv[1])\n"
    )
    process = await trio.lowlevel.open_process([sys.executable, str(script), str(socket)], stderr=subprocess.DEVNULL)
    try:
        async with Frontend.connect(socket, timeout=60, socket_timeout=60) as fe:
            await fe.start()
            fe.queues[0].ring.add([], [(fe.memory.alloc(64), 64)], 1)
            fe.queues[0].ring.publish()
            fe.queues[0].kick()
            await trio.sleep(0.2)
            start = trio.current_time()
            process.send_signal(signal.SIGTERM)
            await trio.sleep(0.3)
            assert process.returncode is None
            process.send_signal(signal.SIGTERM)
            with trio.fail_after(4.5):
                assert await process.wait() == 1
            assert trio.current_time() - start < 4.5  # of 5 that are left to requests in flight
    finally:
        process.kill()
        await process.wait()


async def test_embed_blk(tmp_path: Path) -> None:
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(1 << 20))
    done = await trio.run_process(example("embed_blk.py", image), capture_stdout=True)
    lines = done.stdout.decode().splitlines()
    assert lines == ["capacity: 1048576 bytes", "write: ok", "read: written without a socket"]
    assert image.read_bytes().startswith(b"written without a socket")


async def test_serve_socketpair(tmp_path: Path) -> None:
    image = tmp_path / "disk.img"
    image.write_bytes(b"boot".ljust(1 << 20, b"\0"))
    vmm = tmp_path / "vmm.py"
    vmm.write_text(
        "import socket, struct, sys, trio\n"
        "from vhost import Frontend\n"
        "async def main():\n"
        "    async with Frontend.connect(int(sys.argv[1])) as fe:\n"
        "        await fe.start()\n"
        "        header = struct.pack('<IIQ', 0, 0, 0)\n"
        "        _, (data, status) = await fe.queues[0].request([header], [512, 1])\n"
        "        assert status == b'\\0' and data.startswith(b'boot')\n"
        "trio.run(main)\n"
        "sys.exit(7)\n"
    )
    done = await trio.run_process(example("serve_socketpair.py", image, sys.executable, vmm, "{fd}"), check=False)
    assert done.returncode == 7
    assert os.path.getsize(image) == 1 << 20


@asynccontextmanager
async def _mounted(socket: Path) -> AsyncIterator[Mount]:
    """The file system served there, once it is."""
    with trio.fail_after(60):
        while not socket.exists():
            await trio.sleep(0.01)
    async with guest(str(socket)) as mount:
        yield mount


async def test_memory_fs(tmp_path: Path) -> None:
    socket = tmp_path / "s"
    async with running("memory_fs.py", socket), _mounted(socket) as mount:
        folder = await mount.mkdir(ROOT, "folder", uid=1000, gid=100)
        assert (folder.attr.uid, folder.attr.gid, folder.attr.nlink) == (1000, 100, 2)
        assert (await mount.getattr(ROOT)).nlink == 3
        made, fh = await mount.create(folder.nodeid, "file")
        data = os.urandom(300_000)
        assert await mount.write(made.nodeid, fh, data, 1000) == len(data)
        assert await mount.read(made.nodeid, fh, 1 << 20) == bytes(1000) + data
        await mount.link(made.nodeid, ROOT, "other")
        assert await errno_of(mount.link(made.nodeid, ROOT, "other")) == errno.EEXIST
        assert await errno_of(mount.rmdir(ROOT, "folder")) == errno.ENOTEMPTY
        await mount.rename(folder.nodeid, "file", ROOT, "moved")
        assert await errno_of(mount.rename(ROOT, "moved", ROOT, "other", 1)) == errno.EEXIST
        await mount.rename(ROOT, "moved", ROOT, "folder", 2)  # exchanged
        assert (await mount.lookup(ROOT, "folder")).nodeid == made.nodeid
        assert {entry.name for entry in await mount.list(plus=True)} == {".", "..", "folder", "moved", "other"}
        await mount.rmdir(ROOT, "moved")
        attr = await mount.setattr(made.nodeid, size=10, mode=0o100600)
        assert (attr.size, attr.mode, attr.nlink) == (10, stat.S_IFREG | 0o600, 2)
        assert await mount.readlink((await mount.symlink(ROOT, "link", "to/where")).nodeid) == b"to/where"
        await mount.setxattr(made.nodeid, "user.a", b"value")
        assert await errno_of(mount.setxattr(made.nodeid, "user.a", b"", 1)) == errno.EEXIST
        assert await mount.listxattr(made.nodeid) == ["user.a"]
        await mount.removexattr(made.nodeid, "user.a")
        assert await errno_of(mount.getxattr(made.nodeid, "user.a")) == errno.ENODATA
        await mount.unlink(ROOT, "folder")
        await mount.unlink(ROOT, "other")
        assert await mount.read(made.nodeid, fh, 100) == bytes(10)  # open files live on
        await mount.release(made.nodeid, fh)
        await mount.forget(made.nodeid, 100)
        blocks, free, *_ = await mount.statfs()
        assert blocks == free == 1 << 18
        assert await errno_of(mount.setattr(made.nodeid, size=1)) == errno.ESTALE


async def test_memory_fs_locks(tmp_path: Path) -> None:
    """Ranges and whole files, waiting, closing, and a guest that goes."""
    socket = tmp_path / "s"
    async with running("memory_fs.py", socket), _mounted(socket) as mount, trio.open_nursery() as nursery:
        file, fh = await mount.create(ROOT, "file")

        async def lock(owner: int, kind: int, start: int, end: int, opcode: int = Opcode.SETLK, *, flock=False) -> int:
            args = mount.lock_args(fh, owner, kind, start, end, flock=flock)
            return (await mount.call(opcode, file.nodeid, args))[0]

        async def in_the_way(owner: int, start: int, end: int) -> tuple[int, ...]:
            args = mount.lock_args(fh, owner, fcntl.F_WRLCK, start, end)
            reply = await mount.ask(Opcode.GETLK, file.nodeid, args)
            return int.from_bytes(reply[:8], "little"), int.from_bytes(reply[8:16], "little"), reply[16]

        assert await lock(1, fcntl.F_WRLCK, 0, 99) == 0
        assert await lock(1, fcntl.F_UNLCK, 40, 59) == 0
        assert await in_the_way(2, 0, (1 << 63) - 1) == (0, 39, fcntl.F_WRLCK)
        assert await in_the_way(2, 50, (1 << 63) - 1) == (60, 99, fcntl.F_WRLCK)
        assert (await in_the_way(2, 40, 59))[2] == fcntl.F_UNLCK
        assert await lock(2, fcntl.F_RDLCK, 39, 39) == errno.EAGAIN
        assert await lock(2, fcntl.F_WRLCK, 40, 59) == 0
        waited: list[int] = []

        async def wait() -> None:
            waited.append(await lock(2, fcntl.F_WRLCK, 0, 99, Opcode.SETLKW))

        nursery.start_soon(wait)
        await trio.sleep(0.05)
        assert await lock(1, fcntl.F_WRLCK, 50, 50, Opcode.SETLKW) == errno.EDEADLK
        assert await lock(3, fcntl.F_WRLCK, 0, 9, flock=True) == 0  # the other kind of lock
        assert await lock(4, fcntl.F_RDLCK, 0, 9, flock=True) == errno.EAGAIN
        assert waited == []
        await mount.flush(file.nodeid, fh, owner=1)  # closed by its process
        with trio.fail_after(60):
            while not waited:
                await trio.sleep(0.01)
        assert waited == [0]
        assert await in_the_way(1, 0, 1000) == (0, 99, fcntl.F_WRLCK)
        await mount.release(file.nodeid, fh, flags=2, owner=3)
        fh = await mount.open(file.nodeid)
        assert await lock(4, fcntl.F_WRLCK, 0, 9, flock=True) == 0


ARCHIVED = {"top.txt": b"top", "deep/er/file": os.urandom(100_000), "deep/empty": b""}


def _archive(path: Path) -> None:
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in ARCHIVED.items():
                archive.writestr(name, data)
        return
    for name, data in ARCHIVED.items():
        target = path.parent / "tree" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
    with tarfile.open(path, "w:gz") as archive:
        archive.add(path.parent / "tree", ".")


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
async def test_archive_fs(tmp_path: Path, kind: str) -> None:
    socket, path = tmp_path / "s", tmp_path / f"a.{kind}"
    _archive(path)
    async with running("archive_fs.py", path, socket), _mounted(socket) as mount:
        assert {entry.name for entry in await mount.list()} == {".", "..", "top.txt", "deep"}
        for name, data in ARCHIVED.items():
            entry = await mount.walk(name)
            assert (entry.attr.size, stat.S_ISREG(entry.attr.mode)) == (len(data), True)
            fh = await mount.open(entry.nodeid)
            assert await mount.read(entry.nodeid, fh, 1 << 20) == data
            await mount.release(entry.nodeid, fh)
        assert stat.S_ISDIR((await mount.walk("deep/er")).attr.mode)
        assert await errno_of(mount.open((await mount.walk("top.txt")).nodeid, os.O_RDWR)) == errno.EROFS
        assert await errno_of(mount.mkdir(ROOT, "new")) == errno.ENOSYS


async def test_overlay_log_fs(tmp_path: Path) -> None:
    socket, log, shared = tmp_path / "s", tmp_path / "log", tmp_path / "shared"
    shared.mkdir()
    (shared / "there").write_bytes(b"already")
    async with running("overlay_log_fs.py", shared, log, socket), _mounted(socket) as mount:
        there = await mount.lookup(ROOT, "there")
        fh = await mount.open(there.nodeid, os.O_RDWR)
        assert await mount.read(there.nodeid, fh, 100) == b"already"
        assert await mount.write(there.nodeid, fh, b"more", 7) == 4
        folder = await mount.mkdir(ROOT, "folder")
        made, other = await mount.create(folder.nodeid, "new", uid=1000, gid=100)
        assert (made.attr.uid, made.attr.gid) == (1000, 100)
        await mount.write(made.nodeid, other, b"text")
        await mount.link(made.nodeid, ROOT, "linked")
        await mount.rename(folder.nodeid, "new", ROOT, "renamed")
        assert await mount.readlink((await mount.symlink(ROOT, "link", "there")).nodeid) == b"there"
        assert (await mount.setattr(made.nodeid, size=2, mode=0o100600)).size == 2
        await mount.rmdir(ROOT, "folder")
        await mount.unlink(ROOT, "link")
        assert {entry.name for entry in await mount.list(plus=True)} == {".", "..", "there", "linked", "renamed"}
        os.mkfifo(shared / "fifo")
        assert await errno_of(mount.open((await mount.lookup(ROOT, "fifo")).nodeid)) == errno.ENXIO
    assert (shared / "there").read_bytes() == b"alreadymore"
    assert (shared / "linked").read_bytes() == b"te"
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [line["what"] for line in lines] == [
        "write", "mkdir", "create", "write", "link", "rename", "symlink", "setattr", "rmdir", "unlink",
    ]  # fmt: skip
    assert (lines[0]["path"], lines[0]["offset"], lines[0]["size"]) == (str(shared / "there"), 7, 4)
    assert (lines[2]["path"], lines[2]["uid"]) == (str(shared / "folder/new"), 1000)
