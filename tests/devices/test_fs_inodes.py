"""Passthrough: what a guest knows. Numbers, descriptors and memory stay bounded, and no name is lost over it."""

from __future__ import annotations

import errno
import os
import resource
import struct
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from devices.fs import Passthrough, PassthroughError
from devices.fs.config import Opcode
from devices.fs.passthrough import raise_nofile
from tests.fsrig import ROOT, Dirent, Mount, errno_of, mounted

MANY = 3000


@asynccontextmanager
async def folder(path: Path, **options: Any) -> AsyncIterator[tuple[Mount, Passthrough]]:
    """A guest that has `path` mounted, and what serves it."""
    server = Passthrough(path, **options)
    async with mounted(server) as mount:
        yield mount, server


@pytest.fixture
def crowd(tmp_path: Path) -> Path:
    """A folder of many files."""
    path = tmp_path / "crowd"
    path.mkdir()
    for number in range(MANY):
        os.close(os.open(path / f"file-{number:05}", os.O_CREAT | os.O_WRONLY, 0o644))
    return path


def has_handles(path: Path) -> bool:
    try:
        Passthrough(path, inode_file_handles="always").close()
    except PassthroughError:
        return False
    return True


def open_fds() -> int:
    return len(os.listdir("/proc/self/fd"))


@contextmanager
def few_fds(left: int) -> Iterator[None]:
    """This process may open `left` more files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(map(int, os.listdir("/proc/self/fd")))
    holes = [os.dup(0) for _ in range(highest + 1 - open_fds())]
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 2 + left, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for fd in holes:
            os.close(fd)


async def test_few_descriptors_for_many_files(crowd: Path) -> None:
    if not has_handles(crowd):
        pytest.skip("no file handles here")
    async with folder(crowd, max_fds=16) as (mount, server):
        before = open_fds()
        listed = await mount.list(plus=True, size=65536)
        assert len(listed) == MANY + 2
        known = [entry.entry.nodeid for entry in listed if entry.entry is not None and entry.entry.nodeid]
        assert len(set(known)) == MANY
        for node, entry in zip(known[::7], [e for e in listed if e.name[0] != "."][::7], strict=True):
            attr = await mount.getattr(node)
            assert attr.ino == entry.ino
        stats = server.stats
        assert (stats.inodes, stats.files) == (MANY + 1, 0)
        assert stats.fds <= 17
        assert stats.fds_evicted > MANY / 10
        assert open_fds() <= before + 16
        # the file that is opened is the one that was listed
        for number in (0, 1000, 2999):
            (crowd / f"file-{number:05}").write_text(str(number))
            found = next(e.entry for e in listed if e.name == f"file-{number:05}" and e.entry is not None)
            fh = await mount.open(found.nodeid)
            assert await mount.read(found.nodeid, fh, 100) == str(number).encode()
            await mount.release(found.nodeid, fh)
        assert stats.inode_bytes / stats.inodes < 250  # mostly the first chunk; see below for many
        await mount.batch_forget(*((node, 1) for node in known))
        assert server.stats.inodes == 1


async def test_memory_of_many_files(tmp_path: Path) -> None:
    """120 MB for each million: 96 bytes, and 4 to 8 for the hash."""
    shm = Path("/dev/shm")
    count = 20000
    path = (shm if shm.is_dir() and os.access(shm, os.W_OK) else tmp_path) / f"vhost-inodes-{os.getpid()}"
    path.mkdir()
    try:
        for number in range(count):
            os.close(os.open(path / str(number), os.O_CREAT | os.O_WRONLY))
        if not has_handles(path):
            pytest.skip("no file handles here")
        async with folder(path, max_fds=64) as (mount, server):
            fh = await mount.opendir()
            offset = 0
            while part := await mount.readdir(ROOT, fh, offset, plus=True, size=1 << 18):
                offset = part[-1].off
            stats = server.stats
            assert stats.inodes == count + 1
            assert stats.inode_bytes / count < 125
            assert stats.fds == 1
    finally:
        for number in range(count):
            (path / str(number)).unlink(missing_ok=True)
        path.rmdir()


async def test_without_handles_names_lead_to_the_others(crowd: Path) -> None:
    """Beyond the bound files are found again by their names: renamed by the guest, too; replaced by others never."""
    (crowd / "a" / "b" / "c").mkdir(parents=True)
    (crowd / "a" / "b" / "c" / "deep").write_bytes(b"deep")
    async with folder(crowd, max_fds=100, inode_file_handles="never") as (mount, server):
        before = open_fds()
        listed = await mount.list(plus=True, size=65536)
        known = {entry.name: entry.entry.nodeid for entry in listed if entry.entry is not None and entry.entry.nodeid}
        assert len(known) == MANY + 1
        deep = (await mount.walk("a/b/c/deep")).nodeid
        for name, node in list(known.items())[::7]:
            assert (await mount.getattr(node)).ino == (crowd / name).stat().st_ino
        assert server.stats.fds <= 100
        assert open_fds() <= before + 101
        one, two, three = list(known)[-3:]
        await mount.rename(ROOT, one, ROOT, "renamed")
        fh = await mount.open(known[one], os.O_RDWR)
        await mount.write(known[one], fh, b"text")
        assert (crowd / "renamed").read_bytes() == b"text"
        await mount.rename(ROOT, "a", ROOT, "moved")
        assert await mount.read(deep, await mount.open(deep), 10) == b"deep"
        await mount.rename(ROOT, two, ROOT, three, 2)  # RENAME_EXCHANGE
        for name, node in list(known.items())[: MANY // 2]:  # whose turn it is to lose their descriptors
            if not name.startswith("a"):
                await mount.getattr(node)
        for name, other in ((two, three), (three, two)):
            assert (await mount.getattr(known[name])).ino == (crowd / other).stat().st_ino
        (crowd / "renamed").rename(crowd / "by the host")
        (crowd / "renamed").write_bytes(b"another")
        for name, node in list(known.items())[: MANY // 2]:
            if not name.startswith("a"):
                await mount.getattr(node)
        assert await errno_of(mount.open(known[one])) == errno.ESTALE
        assert (await mount.lookup(ROOT, "by the host")).nodeid == known[one]
        assert await mount.read(known[one], await mount.open(known[one]), 10) == b"text"
        assert (await mount.lookup(ROOT, "renamed")).nodeid not in known.values()
        await mount.batch_forget(*((node, 10) for node in known.values()))


async def test_no_name_is_lost_for_want_of_descriptors(crowd: Path) -> None:
    for handles in ("prefer", "never"):
        async with folder(crowd, max_fds=2000, inode_file_handles=handles) as (mount, server):
            fh = await mount.opendir()
            with few_fds(20):
                listed: list[Dirent] = []
                while part := await mount.readdir(ROOT, fh, listed[-1].off if listed else 0, plus=True, size=65536):
                    listed += part
                assert len({entry.name for entry in listed}) == len(listed) == MANY + 2
                known = [e.entry.nodeid for e in listed if e.entry is not None and e.entry.nodeid]
                if handles == "never":
                    assert 0 < len(known) < 30
                else:
                    # those that were used least give theirs up
                    for node in known[:100]:
                        await mount.getattr(node)
                    assert server.stats.fds_short > 0 or server.handles_note is not None


async def test_a_number_that_is_used_again_is_another_file(tmp_path: Path) -> None:
    old = tmp_path / "old"
    for handles in ("prefer", "never"):
        async with folder(tmp_path, inode_file_handles=handles) as (mount, server):
            seen = set()
            for _ in range(20):
                old.write_text("x")
                ino = old.stat().st_ino
                entry = await mount.lookup(ROOT, "old")
                assert entry.attr.ino == ino
                assert entry.nodeid not in seen
                seen.add(entry.nodeid)
                old.unlink()
                if handles == "prefer" and server.handles_note is None:
                    assert await errno_of(mount.getattr(entry.nodeid)) in (0, errno.ESTALE)
                else:
                    assert (await mount.getattr(entry.nodeid)).nlink == 0
            assert server.stats.inodes == 21
            await mount.batch_forget(*((node, 1) for node in seen))
            assert server.stats.inodes == 1


async def test_the_same_file_is_the_same_node(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("x")
    (tmp_path / "b").hardlink_to(tmp_path / "a")
    async with folder(tmp_path) as (mount, server):
        a = await mount.lookup(ROOT, "a")
        b = await mount.lookup(ROOT, "b")
        assert a.nodeid == b.nodeid
        os.rename(tmp_path / "a", tmp_path / "c")
        assert (await mount.lookup(ROOT, "c")).nodeid == a.nodeid
        await mount.forget(a.nodeid, 2)
        assert (await mount.getattr(a.nodeid)).nlink == 2
        await mount.forget(a.nodeid, 1)
        assert await errno_of(mount.getattr(a.nodeid)) == errno.ESTALE
        again = await mount.lookup(ROOT, "b")
        assert again.nodeid != a.nodeid
        assert server.stats.inodes == 2


# Folders


async def test_listings_of_all_sizes(tmp_path: Path) -> None:
    names = {f"{'n' * (number % 200)}{number}" for number in range(700)}
    for text in names:
        (tmp_path / text).touch()
    async with folder(tmp_path) as (mount, _):
        for plus in (False, True):
            for size in (420, 1000, 4096, 1 << 17):
                listed = await mount.list(plus=plus, size=size)
                assert sorted(entry.name for entry in listed) == sorted(names | {".", ".."})
        dots = [entry for entry in await mount.list(plus=True) if entry.name in (".", "..")]
        assert all(entry.entry is not None and entry.entry.nodeid == 0 for entry in dots)
        assert {entry.ino for entry in dots} == {tmp_path.stat().st_ino}
        fh = await mount.opendir()
        # a reader that takes half of each reply and asks for the rest again
        seen: list[str] = []
        offset = 0
        while part := await mount.readdir(ROOT, fh, offset, size=2000):
            taken = part[: max(1, len(part) // 2)]
            seen += [entry.name for entry in taken]
            offset = taken[-1].off
        assert sorted(seen) == sorted(names | {".", ".."})
        # back to a place that is not in the buffer any more
        first = await mount.readdir(ROOT, fh, 0, size=4096)
        while part := await mount.readdir(ROOT, fh, part[-1].off if part else first[-1].off, size=1 << 16):
            last = part[-1]
        assert await mount.readdir(ROOT, fh, last.off, size=4096) == []
        again = await mount.readdir(ROOT, fh, first[3].off, size=4096)
        assert again[0].name == first[4].name
        # in pieces as guests have them, and too small for anything
        args = struct.pack("<QQIIQII", fh, 0, 4096, 0, 0, 0, 0)
        whole = await mount.ask(Opcode.READDIR, ROOT, args, room=4096)
        assert await mount.ask(Opcode.READDIR, ROOT, args, room=[1, 7, 100, 3988]) == whole
        assert await errno_of(mount.readdir(ROOT, fh, 0, size=20)) == errno.EINVAL
        # the start is always looked at anew
        (tmp_path / "new").touch()
        offset, found = 0, set()
        while part := await mount.readdir(ROOT, fh, offset):
            found |= {entry.name for entry in part}
            offset = part[-1].off
        assert "new" in found
        for made_up in (1, 12345, (1 << 63) - 1, 1 << 63, (1 << 64) - 1):
            await errno_of(mount.readdir(ROOT, fh, made_up))
        assert await mount.readdir(ROOT, fh, 0)


async def test_one_folder_is_listed_by_many_at_once(crowd: Path) -> None:
    async with folder(crowd, max_fds=8) as (mount, server):
        fh = await mount.opendir()

        async def read(number: int) -> None:
            seen: list[str] = []
            offset = 0
            while part := await mount.readdir(ROOT, fh, offset, size=8192, plus=number % 2 == 0):
                seen += [entry.name for entry in part]
                offset = part[-1].off
            assert len(seen) == len(set(seen)) == MANY + 2

        async with trio.open_nursery() as nursery:
            for number in range(4):
                nursery.start_soon(read, number)
        await mount.releasedir(ROOT, fh)
        assert server.stats.files == 0


# Bounds


async def test_files_that_may_be_open(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    async with folder(tmp_path, max_files=5) as (mount, server):
        node = (await mount.lookup(ROOT, "file")).nodeid
        fhs = [await mount.open(node) for _ in range(5)]
        before = open_fds()
        assert await errno_of(mount.open(node)) == errno.ENFILE
        assert await errno_of(mount.opendir()) == errno.ENFILE
        assert await errno_of(mount.create(ROOT, "new")) == errno.ENFILE
        assert open_fds() == before
        await mount.release(node, fhs[0])
        assert await mount.open(node)
        assert server.stats.files == 5


async def test_inodes_that_may_be_known(tmp_path: Path) -> None:
    for number in range(10):
        (tmp_path / str(number)).touch()
    async with folder(tmp_path, max_inodes=5) as (mount, server):
        listed = await mount.list(plus=True)
        assert len(listed) == 12
        assert sum(1 for e in listed if e.entry is not None and e.entry.nodeid) == 4
        assert server.stats.inodes == 5


async def test_a_guest_that_starts_anew_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    async with folder(tmp_path) as (mount, server):
        node = (await mount.lookup(ROOT, "file")).nodeid
        fh = await mount.open(node)
        await mount.opendir()
        await mount.destroy()
        await mount.start()
        assert (server.stats.inodes, server.stats.files) == (1, 0)
        assert await errno_of(mount.getattr(node)) == errno.ESTALE
        assert await errno_of(mount.read(node, fh, 1)) in (errno.EBADF, errno.ESTALE)
        assert (await mount.lookup(ROOT, "file")).nodeid != node


def test_folders_that_cannot_be_shared(tmp_path: Path) -> None:
    with pytest.raises(PassthroughError, match="does not exist; make the folder first"):
        Passthrough(tmp_path / "nothing")
    (tmp_path / "file").touch()
    with pytest.raises(PassthroughError, match="is no folder"):
        Passthrough(tmp_path / "file")
    for wrong in (
        {"cache": "some"},
        {"inode_file_handles": "sometimes"},
        {"max_fds": 0},
        {"timeout": -1.0},
        {"xattr": False, "posix_acl": True},
        {"writeback": True, "cache": "never"},
    ):
        with pytest.raises(ValueError, match=next(iter(wrong)).replace("xattr", "posix_acl")):
            Passthrough(tmp_path, **wrong)
    before = open_fds()
    with pytest.raises(PassthroughError, match="none that last"):
        Passthrough("/proc", inode_file_handles="always")
    server = Passthrough("/proc")
    assert server.handles_note is not None
    assert "takes a descriptor" in server.handles_note
    server.close()
    assert open_fds() == before


def test_the_limit_is_raised_and_never_lowered() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        assert raise_nofile(soft - 1) == soft
        assert raise_nofile(soft) >= soft
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 512), hard))
        assert raise_nofile(600) >= min(600, hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
