"""A mount moves to another process: what the guest knows, has open and has locked goes on there."""

from __future__ import annotations

import errno
import fcntl
import os
import random
import shutil
import struct
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
import trio

from devices.fs import Passthrough
from tests.fsrig import (
    END,
    NONE,
    READ,
    ROOT,
    WRITE,
    Mount,
    errno_of,
    guest,
    is_locked,
    mounted,
    needs_root,
    serving,
    set_lock,
    who_locks,
)
from vhost.frontend import Frontend, Refused

_TARGET = """
import sys, trio, vhost
from devices.fs import Fs, Passthrough

async def main():
    async with Passthrough(sys.argv[1], migration=sys.argv[3]) as server, vhost.open_server() as host:
        await host.listen(Fs(server), sys.argv[2])
        await trio.sleep_forever()

trio.run(main)
"""


@asynccontextmanager
async def target(folder: Path, migration: str = "find-paths") -> AsyncIterator[str]:
    """Another process that shares `folder`; its socket."""
    with tempfile.TemporaryDirectory(prefix="vhost-fs-") as place:
        path = f"{place}/fs.sock"
        command = [sys.executable, "-c", _TARGET, str(folder), path, migration]
        async with trio.open_nursery() as nursery:
            process = await nursery.start(partial(trio.run_process, command, check=False))
            while not Path(path).exists():
                assert process.poll() is None
                await trio.sleep(0.01)
            yield path
            process.kill()


@asynccontextmanager
async def continued(path: str, state: bytes) -> AsyncIterator[Mount]:
    """The guest goes on at the socket `path`."""
    async with Frontend.connect(path, memory_size=16 << 20) as fe:
        await fe.load_state(state)
        await fe.start(queues=2, native=True, indirect_max=64)
        yield Mount(fe)


async def state_of(mount: Mount) -> bytes:
    await mount.fe.stop()
    return await mount.fe.save_state()


async def test_a_mount_moves(tmp_path: Path) -> None:
    """Numbers stay what they are: nodes, handles, positions in folders, lock owners."""
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "deep").write_bytes(b"deep down")
    (tmp_path / "a" / "link").symlink_to("b/deep")
    (tmp_path / "file").write_bytes(b"x" * 100)
    for i in range(300):
        (tmp_path / "a" / f"name{i}").touch()
    rng = random.Random(11)
    async with mounted(Passthrough(tmp_path)) as mount, target(tmp_path) as path:
        deep = await mount.walk("a/b/deep")
        link = await mount.walk("a/link")
        folder = await mount.walk("a")
        (tmp_path / "a" / "b" / "deep").rename(tmp_path / "a" / "deeper")
        node = (await mount.lookup(ROOT, "file")).nodeid
        await mount.forget((await mount.walk("a/name7")).nodeid)
        one, two = await mount.open(node, os.O_RDWR), await mount.open(node, os.O_RDWR | os.O_APPEND)
        await mount.release(node, await mount.open(node))
        await mount.write(node, one, b"before", 0)
        for _ in range(200):
            start = rng.randrange(60)
            kind = rng.choice((READ, WRITE, NONE))
            owner = rng.choice((1, 2))
            await errno_of(set_lock(mount, node, one, kind, start, start + rng.randrange(20), owner, pid=owner * 11))
        locks = [await who_locks(mount, node, one, byte) for byte in range(80)]
        assert len(set(locks)) > 3
        await set_lock(mount, node, two, WRITE, 0, END, 1, flock=True)
        listing = await mount.opendir(folder.nodeid)
        first = await mount.readdir(folder.nodeid, listing, size=4096)
        state = await state_of(mount)
        assert not is_locked(tmp_path / "file")
        async with continued(path, state) as there:
            assert is_locked(tmp_path / "file")
            assert [await who_locks(there, node, one, byte) for byte in range(80)] == locks
            other = await there.open(node, os.O_RDWR)
            assert await errno_of(set_lock(there, node, other, READ, 0, END, 5, flock=True)) == errno.EAGAIN
            await set_lock(there, node, two, NONE, 0, END, 1, flock=True)
            await set_lock(there, node, other, READ, 0, END, 5, flock=True)
            await there.flush(node, one, owner=1)
            await there.flush(node, two, owner=2)
            assert not is_locked(tmp_path / "file")
            assert await there.read(node, one, 6) == b"before"
            await there.write(node, two, b" end", 0)
            assert (tmp_path / "file").read_bytes() == b"before" + b"x" * 94 + b" end"
            assert (await there.getattr(deep.nodeid)).size == 9
            assert await there.readlink(link.nodeid) == b"b/deep"
            assert (await there.walk("a/deeper")).nodeid == deep.nodeid
            assert (await there.walk("a/name7")).nodeid not in (deep.nodeid, link.nodeid, folder.nodeid, node)
            names = [entry.name for entry in first]
            at = first[-1].off
            while part := await there.readdir(folder.nodeid, listing, at):
                names += [entry.name for entry in part]
                at = part[-1].off
            assert sorted(names) == sorted([".", "..", "b", "deeper", "link", *(f"name{i}" for i in range(300))])
            await there.releasedir(folder.nodeid, listing)
            for nodeid in (deep.nodeid, link.nodeid, folder.nodeid, node):
                await there.forget(nodeid, 10)
            assert await errno_of(there.getattr(link.nodeid)) == errno.ESTALE


@needs_root
@pytest.mark.parametrize("migration", ["find-paths", "file-handles"])
async def test_deleted_but_open(tmp_path: Path, migration: str) -> None:
    """What has no name any more is found by its handle, where that is allowed; else the guest is told."""
    async with mounted(Passthrough(tmp_path)) as mount, target(tmp_path, migration) as path:
        gone, gone_fh = await mount.create(ROOT, "gone")
        await mount.write(gone.nodeid, gone_fh, b"still here")
        kept, kept_fh = await mount.create(ROOT, "kept")
        await mount.unlink(ROOT, "gone")
        async with continued(path, await state_of(mount)) as there:
            await there.write(kept.nodeid, kept_fh, b"on")
            if migration == "file-handles":
                assert await there.read(gone.nodeid, gone_fh, 100) == b"still here"
                await there.release(gone.nodeid, gone_fh)
            else:
                assert await errno_of(there.read(gone.nodeid, gone_fh, 100)) == errno.ESTALE
                assert await errno_of(there.getattr(gone.nodeid)) == errno.ESTALE
                again, again_fh = await there.create(ROOT, "again")
                assert again.nodeid != gone.nodeid
                assert again_fh != gone_fh


async def test_to_a_copy(tmp_path: Path) -> None:
    """On another file system files are known by their paths; one that became a folder is another."""
    shm = Path("/dev/shm")
    if not shm.is_dir() or shm.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is no second file system")
    for name in ("same", "other"):
        (tmp_path / name).write_bytes(b"text")
    with tempfile.TemporaryDirectory(dir=shm) as place:
        copy = Path(place) / "copy"
        async with mounted(Passthrough(tmp_path)) as mount:
            same, other = await mount.lookup(ROOT, "same"), await mount.lookup(ROOT, "other")
            fh = await mount.open(same.nodeid, os.O_RDWR)
            shutil.copytree(tmp_path, copy)
            (copy / "other").unlink()
            (copy / "other").mkdir()
            async with target(copy) as path, continued(path, await state_of(mount)) as there:
                await there.write(same.nodeid, fh, b"TEXT")
                assert (copy / "same").read_bytes() == b"TEXT"
                assert await errno_of(there.getattr(other.nodeid)) == errno.ESTALE


async def test_replaced_meanwhile(tmp_path: Path) -> None:
    """Another file under the same name is not the one that the guest knows."""
    path = tmp_path / "file"
    path.write_bytes(b"old")
    async with mounted(Passthrough(tmp_path)) as mount:
        node = (await mount.lookup(ROOT, "file")).nodeid
        fh = await mount.open(node, os.O_RDWR)
        state = await state_of(mount)
        path.rename(tmp_path / "moved")
        path.write_bytes(b"new")
        async with Passthrough(tmp_path) as server, serving(server) as (_, socket), continued(socket, state) as there:
            assert await errno_of(there.write(node, fh, b"x")) == errno.ESTALE
            assert await errno_of(there.getattr(node)) == errno.ESTALE
    assert path.read_bytes() == b"new"


async def test_it_goes_on_here_after_all(tmp_path: Path) -> None:
    """A migration that failed: the source has its locks back."""
    (tmp_path / "file").touch()
    async with mounted(Passthrough(tmp_path)) as mount:
        node = (await mount.lookup(ROOT, "file")).nodeid
        fh = await mount.open(node, os.O_RDWR)
        await set_lock(mount, node, fh, WRITE, 0, 9, 1)
        await set_lock(mount, node, fh, WRITE, 0, END, 1, flock=True)
        bases = await mount.fe.stop()
        await mount.fe.save_state()
        assert not is_locked(tmp_path / "file")
        await mount.fe.start_queues(bases)
        await mount.write(node, fh, b"on")
        assert is_locked(tmp_path / "file")
        with (tmp_path / "file").open() as host, pytest.raises(BlockingIOError):
            fcntl.flock(host, fcntl.LOCK_SH | fcntl.LOCK_NB)


async def saved(folder: Path) -> bytes:
    """A state with something of everything."""
    async with mounted(Passthrough(folder)) as mount:
        node = (await mount.lookup(ROOT, "file")).nodeid
        fh = await mount.open(node, os.O_RDWR)
        await set_lock(mount, node, fh, WRITE, 0, 9, 1)
        await mount.opendir()
        return await state_of(mount)


async def test_states_that_are_none(tmp_path: Path) -> None:
    """Bytes from outside: refused in words or taken, never more than that; nothing stays of what was refused."""
    (tmp_path / "file").write_bytes(b"x")
    state = await saved(tmp_path)
    rng = random.Random(4)
    async with Passthrough(tmp_path) as server:
        before = len(os.listdir("/proc/self/fd"))
        for bad in (b"", b"x", state[:40], bytes(len(state))):
            with pytest.raises(ValueError, match="no state of a shared folder"):
                await server.load_state(bad)
        for size in range(0, len(state), 8):
            with pytest.raises(ValueError, match="damaged"):
                await server.load_state(state[:size])
        for _ in range(1000):
            mutant = bytearray(state)
            for _ in range(rng.randrange(1, 4)):
                mutant[rng.randrange(len(mutant))] = rng.choice((0, 1, 8, 0x7F, 0x80, 0xFF))
            try:
                await server.load_state(bytes(mutant))
            except ValueError:
                assert server.stats.inodes == 1
                assert server.stats.files == 0
        await server.load_state(state)
        assert server.stats.files == 2
        server.reset()
        assert len(os.listdir("/proc/self/fd")) == before
    async with Passthrough(tmp_path) as server, serving(server) as (_, path):
        async with Frontend.connect(path) as fe:
            with pytest.raises(Refused, match="did not get across"):
                await fe.load_state(b"nonsense")
        async with guest(path) as mount:
            assert (await mount.lookup(ROOT, "file")).attr.size == 1


def records(state: bytes) -> list[tuple[int, int, int]]:
    """Kind, place and length of each record's bytes."""
    at = int.from_bytes(state[8:12], "little")
    found = []
    while at < len(state):
        kind, length = struct.unpack_from("<II", state, at)
        found.append((kind, at + 8, length))
        at += 8 + length
    return found


async def test_a_state_leads_nowhere_else(tmp_path: Path) -> None:
    """Paths stay below the folder and follow no link; handles are only taken where that was asked for."""
    folder = tmp_path / "shared"
    folder.mkdir()
    (tmp_path / "secret").write_bytes(b"secret")
    (folder / "file").write_bytes(b"x")
    (folder / "out").symlink_to("..")
    state = await saved(folder)
    kind, at, length = next(record for record in records(state) if record[0] == 1)
    fixed = struct.unpack_from("<QQQQIiHHI", state, at)
    secret = (tmp_path / "secret").stat().st_ino
    async with Passthrough(folder) as server:
        for path in (
            b"../secret",
            b"out/secret",
            os.fsencode(tmp_path / "secret"),
            b"file/../../secret",
            b"./../secret",
        ):
            record = struct.pack("<QQQQIiHHI", *fixed[:2], secret, 0, *fixed[4:6], 0, len(path), 1) + path
            record += bytes(-len(record) % 8)
            bad = state[: at - 8] + struct.pack("<II", kind, len(record)) + record + state[at + length :]
            await server.load_state(bad)
            assert server.stats.inodes == 1
            assert server.stats.files == 1  # the folder's, which is no file of that inode
