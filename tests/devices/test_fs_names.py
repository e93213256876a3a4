"""Passthrough: names. What a guest makes, finds, renames and removes; and what it must not reach."""

from __future__ import annotations

import errno
import os
import socket
import stat
import struct
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from devices.fs import Passthrough
from devices.fs.config import InitFlag, Opcode
from devices.fs.idmap import parse_translation
from tests.fsrig import EVERY_FLAG, ROOT, Entry, Mount, errno_of, groups, mounted, name, security_context

NOREPLACE, EXCHANGE, WHITEOUT = 1, 2, 4
KILL_SUIDGID = 1 << 11
ALICE, BOB, STAFF = 31001, 31002, 31050

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root acts as others")


@asynccontextmanager
async def folder(path: Path, *, flags: int = EVERY_FLAG, **options: Any) -> AsyncIterator[Mount]:
    """A guest that has `path` mounted."""
    async with mounted(Passthrough(path, **options), flags=flags) as mount:
        yield mount


def run(*command: str | Path) -> bool:
    return subprocess.run(command, check=False, stderr=subprocess.DEVNULL).returncode == 0


def who_threads_are() -> set[tuple[str, ...]]:
    """User, group and groups of each thread of this process."""
    found = set()
    for status in Path("/proc/self/task").glob("*/status"):
        lines = status.read_text().splitlines()
        found.add(tuple(line for line in lines if line.startswith(("Uid", "Gid", "Groups", "CapEff"))))
    return found


def names(path: Path) -> list[str]:
    return sorted(os.listdir(path))


# Names that lead out


@pytest.mark.parametrize("bad", [".", "..", "a/b", "../outside", "/", "/etc", "sub/.."])
async def test_no_name_leads_out(tmp_path: Path, bad: str) -> None:
    shared = tmp_path / "shared"
    (shared / "sub").mkdir(parents=True)
    (shared / "file").write_text("x")
    before = names(tmp_path)
    async with folder(shared) as mount:
        sub = (await mount.lookup(ROOT, "sub")).nodeid
        node = (await mount.lookup(ROOT, "file")).nodeid
        tries = [
            mount.mkdir(sub, bad),
            mount.mknod(sub, bad, stat.S_IFREG | 0o644),
            mount.create(sub, bad),
            mount.symlink(sub, bad, "x"),
            mount.link(node, sub, bad),
            mount.unlink(sub, bad),
            mount.rmdir(sub, bad),
            mount.rename(ROOT, "file", sub, bad),
            mount.rename(ROOT, bad, sub, "x"),
            mount.rename(ROOT, "file", sub, bad, NOREPLACE),
        ]
        if bad not in (".", ".."):  # these two have a meaning for a guest that exports the folder, see below
            tries.append(mount.lookup(sub, bad))
        for attempt in tries:
            assert await errno_of(attempt) == errno.EINVAL
    assert names(tmp_path) == before
    assert names(shared) == ["file", "sub"]
    assert names(shared / "sub") == []


async def test_exports_stay_below_the_root(tmp_path: Path) -> None:
    inner = tmp_path / "shared" / "a" / "b"
    inner.mkdir(parents=True)
    async with folder(tmp_path / "shared") as mount:
        assert (await mount.lookup(ROOT, "..")).nodeid == ROOT
        assert (await mount.lookup(ROOT, ".")).nodeid == ROOT
        a = await mount.lookup(ROOT, "a")
        b = await mount.lookup(a.nodeid, "b")
        assert (await mount.lookup(b.nodeid, "..")).nodeid == a.nodeid
        assert (await mount.lookup(b.nodeid, ".")).nodeid == b.nodeid
        inner.rename(tmp_path / "moved-out")
        assert await errno_of(mount.lookup(b.nodeid, "..")) == errno.ESTALE


async def test_a_folder_that_becomes_a_link_leads_nowhere(tmp_path: Path) -> None:
    shared, outside = tmp_path / "shared", tmp_path / "outside"
    (shared / "sub").mkdir(parents=True)
    outside.mkdir()
    (outside / "secret").write_text("secret")
    async with folder(shared) as mount:
        sub = (await mount.lookup(ROOT, "sub")).nodeid
        (shared / "sub").rename(shared / "other")
        (shared / "sub").symlink_to(outside)
        assert await errno_of(mount.lookup(sub, "secret")) == errno.ENOENT
        link = await mount.lookup(ROOT, "sub")
        assert stat.S_ISLNK(link.attr.mode)
        assert await errno_of(mount.lookup(link.nodeid, "secret")) == errno.ENOTDIR
        assert await errno_of(mount.create(link.nodeid, "new")) == errno.ENOTDIR
        assert await errno_of(mount.opendir(link.nodeid)) == errno.ENOTDIR
        assert await errno_of(mount.open(link.nodeid)) == errno.ELOOP
    assert names(outside) == ["secret"]


@needs_root
async def test_special_files_are_seen_and_never_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    os.mknod(tmp_path / "device", stat.S_IFCHR | 0o666, os.makedev(1, 5))  # /dev/zero
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
    (tmp_path / "link").symlink_to("/etc/passwd")
    async with folder(tmp_path) as mount:
        for special in ("fifo", "device", "socket"):
            entry = await mount.lookup(ROOT, special)
            assert entry.attr.mode == (tmp_path / special).lstat().st_mode
            assert await errno_of(mount.open(entry.nodeid, os.O_RDWR)) == errno.EACCES
            assert await errno_of(mount.create(ROOT, special, os.O_RDWR)) == errno.EACCES
            assert await errno_of(mount.setattr(entry.nodeid, size=0)) == errno.EINVAL
            assert (await mount.setattr(entry.nodeid, mode=0o600)).mode & 0o777 == 0o600
        assert (await mount.lookup(ROOT, "device")).attr.rdev == 1 << 8 | 5
        assert await errno_of(mount.create(ROOT, "link", os.O_RDWR)) == errno.EACCES


async def test_numbers_that_a_guest_makes_up(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    async with folder(tmp_path) as mount:
        node = (await mount.lookup(ROOT, "file")).nodeid
        fh = await mount.opendir()
        for made_up in (0, 99, node | 1 << 32, 1 << 63, (1 << 64) - 1):
            assert await errno_of(mount.getattr(made_up)) == errno.ESTALE
            assert await errno_of(mount.lookup(made_up, "file")) == errno.ESTALE
            assert await errno_of(mount.link(made_up, ROOT, "new")) == errno.ESTALE
            assert await errno_of(mount.rename(ROOT, "file", made_up, "new")) == errno.ESTALE
            await mount.forget(made_up)
        for made_up in (0, 99, fh | 1 << 32, fh ^ 1 << 33, (1 << 64) - 1):
            assert await errno_of(mount.readdir(ROOT, made_up)) == errno.EBADF
            assert await errno_of(mount.releasedir(ROOT, made_up)) == errno.EBADF
        await mount.forget(ROOT, 1 << 40)
        await mount.forget(node, (1 << 64) - 1)
        assert await errno_of(mount.getattr(node)) == errno.ESTALE
        assert (await mount.getattr(ROOT)).mode & stat.S_IFDIR
        await mount.releasedir(ROOT, fh)
        assert await errno_of(mount.releasedir(ROOT, fh)) == errno.EBADF


# Making


async def test_makes_everything(tmp_path: Path) -> None:
    async with folder(tmp_path) as mount:
        entry, fh = await mount.create(ROOT, "file", os.O_RDWR, 0o640)
        assert stat.S_ISREG(entry.attr.mode)
        assert entry.attr.ino == (tmp_path / "file").stat().st_ino
        assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640
        await mount.release(entry.nodeid, fh)
        assert await errno_of(mount.create(ROOT, "file", os.O_RDWR | os.O_EXCL)) == errno.EEXIST
        again, fh = await mount.create(ROOT, "file", os.O_RDWR)
        assert again.nodeid == entry.nodeid
        await mount.release(again.nodeid, fh)

        sub = await mount.mkdir(ROOT, "sub", 0o750)
        assert (tmp_path / "sub").stat().st_mode & 0o7777 == 0o750
        assert await errno_of(mount.mkdir(ROOT, "sub")) == errno.EEXIST
        await mount.mknod(sub.nodeid, "fifo", stat.S_IFIFO | 0o600)
        assert stat.S_ISFIFO((tmp_path / "sub" / "fifo").stat().st_mode)
        await mount.mknod(sub.nodeid, "plain", stat.S_IFREG | 0o600)
        target = "x" * 4095
        link = await mount.symlink(sub.nodeid, "link", target)
        assert await mount.readlink(link.nodeid) == target.encode()
        assert await mount.readlink(link.nodeid, room=[1, 2, 4093]) == target.encode()
        assert await errno_of(mount.readlink(entry.nodeid)) == errno.EINVAL
        hard = await mount.link(entry.nodeid, sub.nodeid, "hard")
        assert (hard.nodeid, hard.attr.nlink) == (entry.nodeid, 2)
        soft = await mount.link(link.nodeid, sub.nodeid, "hard-link")
        assert soft.nodeid == link.nodeid

        assert await errno_of(mount.rmdir(ROOT, "sub")) == errno.ENOTEMPTY
        assert await errno_of(mount.unlink(ROOT, "sub")) in (errno.EISDIR, errno.EPERM)
        assert await errno_of(mount.rmdir(sub.nodeid, "plain")) == errno.ENOTDIR
        for child in ("fifo", "plain", "link", "hard", "hard-link"):
            await mount.unlink(sub.nodeid, child)
        await mount.rmdir(ROOT, "sub")
        assert await errno_of(mount.lookup(ROOT, "sub")) == errno.ENOENT
        assert await errno_of(mount.lookup(ROOT, "x" * 255)) == errno.ENOENT
        assert await errno_of(mount.mkdir(ROOT, "x" * 256)) == errno.ENAMETOOLONG
    assert names(tmp_path) == ["file"]


async def test_renames(tmp_path: Path) -> None:
    async with folder(tmp_path) as mount:
        sub = (await mount.mkdir(ROOT, "sub")).nodeid
        for text in ("a", "b"):
            (tmp_path / text).write_text(text)
        node = (await mount.lookup(ROOT, "a")).nodeid
        assert await errno_of(mount.rename(ROOT, "a", ROOT, "b", NOREPLACE)) == errno.EEXIST
        await mount.rename(ROOT, "a", ROOT, "b", EXCHANGE)
        assert ((tmp_path / "a").read_text(), (tmp_path / "b").read_text()) == ("b", "a")
        await mount.rename(ROOT, "b", sub, "c")
        assert (await mount.lookup(sub, "c")).nodeid == node
        await mount.rename(ROOT, "a", sub, "c")
        assert (tmp_path / "sub" / "c").read_text() == "b"
        assert await errno_of(mount.rename(ROOT, "nothing", sub, "c")) == errno.ENOENT
        assert await errno_of(mount.rename(ROOT, "sub", sub, "into-itself")) == errno.EINVAL
        assert await errno_of(mount.rename(sub, "c", ROOT, "c", 1 << 7)) == errno.EINVAL
        assert await errno_of(mount.rename(sub, "c", ROOT, "c", NOREPLACE | EXCHANGE)) == errno.EINVAL
    assert names(tmp_path) == ["sub"]


async def test_a_file_without_a_name_gets_one(tmp_path: Path) -> None:
    async with folder(tmp_path) as mount:
        args = struct.pack("<IIII", os.O_RDWR, 0o600, 0, 0) + name("/")
        reply = await mount.ask(Opcode.TMPFILE, ROOT, args, room=144)
        entry, fh = Entry.unpack(reply), int.from_bytes(reply[128:136], "little")
        assert entry.attr.nlink == 0
        assert await mount.write(entry.nodeid, fh, b"text") == 4
        assert names(tmp_path) == []
        linked = await mount.link(entry.nodeid, ROOT, "named")
        assert linked.nodeid == entry.nodeid
        await mount.release(entry.nodeid, fh)
        read_only = struct.pack("<IIII", os.O_RDONLY, 0o600, 0, 0) + name("/")
        assert await errno_of(mount.ask(Opcode.TMPFILE, ROOT, read_only, room=144)) == errno.EINVAL
    assert (tmp_path / "named").read_text() == "text"


# Who makes it


@needs_root
async def test_files_belong_to_who_makes_them(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    async with folder(tmp_path) as mount:
        alice = {"uid": ALICE, "gid": ALICE}
        entry, _ = await mount.create(ROOT, "file", os.O_RDWR, 0o666, umask=0o027, **alice)
        assert (entry.attr.uid, entry.attr.gid, entry.attr.mode & 0o777) == (ALICE, ALICE, 0o640)
        sub = await mount.mkdir(ROOT, "sub", 0o777, umask=0o022, **alice)
        assert (sub.attr.uid, sub.attr.mode & 0o777) == (ALICE, 0o755)
        assert (await mount.symlink(ROOT, "link", "x", **alice)).attr.uid == ALICE
        assert (await mount.mknod(ROOT, "fifo", stat.S_IFIFO | 0o666, **alice)).attr.uid == ALICE
        # what the folder's rights forbid is forbidden, and the thread is itself again afterwards
        (tmp_path / "sub").chmod(0o700)
        assert await errno_of(mount.create(sub.nodeid, "x", uid=BOB, gid=BOB)) == errno.EACCES
        entry, _ = await mount.create(sub.nodeid, "mine")
        assert (entry.attr.uid, entry.attr.gid) == (0, 0)
        # a file that somebody else was quicker to make is opened with no more rights than one has
        (tmp_path / "private").write_text("secret")
        (tmp_path / "private").chmod(0o600)
        assert await errno_of(mount.create(ROOT, "private", os.O_RDWR, **alice)) == errno.EACCES
        assert len(who_threads_are()) == 1


@needs_root
async def test_sgid_goes_to_members_only(tmp_path: Path) -> None:
    """CVE-2022-0358: the server's own groups must not count as the guest's."""
    shared = tmp_path / "shared"
    shared.mkdir()
    os.chown(shared, 0, STAFF)
    shared.chmod(0o2777)
    args = struct.pack("<IIII", os.O_RDWR, 0o2755, 0, 0)
    async with folder(shared) as mount:
        reply = await mount.ask(Opcode.CREATE, ROOT, args + name("no"), room=144, uid=ALICE, gid=ALICE)
        attr = Entry.unpack(reply).attr
        assert (attr.gid, attr.mode & 0o7777) == (STAFF, 0o755)
        reply = await mount.ask(
            Opcode.CREATE, ROOT, args + name("yes") + b"\0" * 4, room=144, uid=ALICE, gid=ALICE, ext=groups(STAFF)
        )
        attr = Entry.unpack(reply).attr
        assert (attr.gid, attr.mode & 0o7777) == (STAFF, 0o2755)
        sub = await mount.mkdir(ROOT, "sub", uid=ALICE, gid=ALICE)
        assert (sub.attr.gid, sub.attr.mode & 0o7777) == (STAFF, 0o2755)


@needs_root
async def test_a_guest_that_names_no_groups_has_checked_by_itself(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    os.chown(shared, BOB, STAFF)
    shared.chmod(0o770)
    async with folder(shared, flags=EVERY_FLAG & ~InitFlag.CREATE_SUPP_GROUP) as mount:
        entry, _ = await mount.create(ROOT, "file", uid=ALICE, gid=ALICE)
        assert entry.attr.uid == ALICE


@needs_root
async def test_default_acls_take_the_umasks_place(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    acl = struct.pack("<I", 2)
    for tag, perm, who in ((1, 7, -1), (2, 6, BOB), (4, 5, -1), (16, 7, -1), (32, 0, -1)):
        acl += struct.pack("<HHi", tag, perm, who)
    try:
        os.setxattr(tmp_path, "system.posix_acl_default", acl)
    except OSError as exc:
        pytest.skip(f"no ACLs here: {exc}")
    async with folder(tmp_path, posix_acl=True) as mount:
        entry, _ = await mount.create(ROOT, "file", os.O_RDWR, 0o666, umask=0o077, uid=ALICE, gid=ALICE)
        assert entry.attr.mode & 0o777 == 0o660
    assert b"system.posix_acl_access" in b" ".join(map(str.encode, os.listxattr(tmp_path / "file")))


@needs_root
async def test_new_files_have_their_security_context(tmp_path: Path) -> None:
    try:
        os.setxattr(tmp_path, "security.test", b"x")
    except OSError as exc:
        pytest.skip(f"no security attributes here: {exc}")
    ext = security_context("security.test", b"context")
    async with folder(tmp_path, security_label=True) as mount:
        assert mount.init is not None
        assert mount.init.flags & InitFlag.SECURITY_CTX
        args = struct.pack("<II", 0o755, 0) + name("folder1")
        await mount.ask(Opcode.MKDIR, ROOT, args, ext=ext, room=128)
        args = struct.pack("<IIII", os.O_RDWR, 0o644, 0, 0) + name("file123")
        await mount.ask(Opcode.CREATE, ROOT, args, ext=ext, room=144)
        assert os.getxattr(tmp_path / "folder1", "security.test") == b"context"
        assert os.getxattr(tmp_path / "file123", "security.test") == b"context"
        # where it cannot be had nothing is made
        bad = security_context("nonsense", b"context")
        error, _ = await mount.call(Opcode.MKDIR, ROOT, struct.pack("<II", 0o755, 0) + name("folder2"), ext=bad)
        assert error
        assert not (tmp_path / "folder2").exists()


@needs_root
async def test_ids_are_translated(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    uids = parse_translation(["map:0:31000:100", "squash-host:500:77:10", "forbid-guest:5000:1"])
    gids = parse_translation(["squash-guest:0:31500:1000"])
    (tmp_path / "other").write_text("")
    os.chown(tmp_path / "other", 505, 31005)
    async with folder(tmp_path, uids=uids, gids=gids) as mount:
        entry, _ = await mount.create(ROOT, "file", uid=1, gid=100)
        assert (entry.attr.uid, entry.attr.gid) == (1, 31500)
        host = (tmp_path / "file").stat()
        assert (host.st_uid, host.st_gid) == (31001, 31500)
        assert (await mount.lookup(ROOT, "other")).attr.uid == 77
        assert (await mount.setattr(entry.nodeid, uid=2, gid=3)).uid == 2
        host = (tmp_path / "file").stat()
        assert (host.st_uid, host.st_gid) == (31002, 31500)
        assert await errno_of(mount.setattr(entry.nodeid, uid=5000)) == errno.EPERM
        assert await errno_of(mount.mkdir(ROOT, "x", uid=5000)) == errno.EPERM


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("maps:0:1:1", "there is no 'maps'"),
        ("map:0:1", "write map:GUEST:HOST:COUNT"),
        ("map:0:x:1", "in decimal"),
        ("map:0:1:0", "at least one"),
        ("guest:4294967295:0:2", "from 0 to 4294967295"),
        ("guest:0:4294967295:2", "from 0 to 4294967295"),
    ],
)
def test_translations_that_cannot_be(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        parse_translation([text])
    with pytest.raises(ValueError, match="in two ranges"):
        parse_translation(["guest:0:5:10", "forbid-guest:9:1"])


# Attributes


@needs_root
async def test_attributes_are_changed(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(100))
    async with folder(tmp_path) as mount:
        node = (await mount.lookup(ROOT, "file")).nodeid
        assert (await mount.setattr(node, mode=0o4711)).mode & 0o7777 == 0o4711
        assert (await mount.setattr(node, size=10)).size == 10
        assert path.stat().st_mode & 0o7777 == 0o4711
        assert (await mount.setattr(node, size=5, valid=KILL_SUIDGID)).mode & 0o7777 == 0o711
        attr = await mount.setattr(node, mode=0o4755, uid=ALICE, gid=BOB)
        assert (attr.uid, attr.gid, attr.mode & 0o7777) == (ALICE, BOB, 0o4755)
        attr = await mount.setattr(node, atime=1000.5, mtime=2000.25)
        assert (attr.atime, attr.atimensec, attr.mtime, attr.mtimensec) == (1000, 500000000, 2000, 250000000)
        link = await mount.symlink(ROOT, "link", "file")
        await mount.setattr(link.nodeid, mtime=3000, uid=BOB)
        assert ((tmp_path / "link").lstat().st_mtime, (tmp_path / "link").lstat().st_uid) == (3000, BOB)
        assert path.stat().st_mtime == 2000.25
        fh = await mount.open(node, os.O_RDWR)
        path.unlink()
        assert (await mount.setattr(node, fh=fh, size=3)).size == 3
        assert (await mount.getattr(node, fh)).nlink == 0


async def test_statx(tmp_path: Path) -> None:
    """All that Linux asks for since 6.6: the time of birth among it."""
    path = tmp_path / "file"
    path.write_bytes(bytes(100_000))
    os.mkfifo(tmp_path / "fifo")
    async with folder(tmp_path) as mount:
        for name_ in ("file", "fifo"):
            node = (await mount.lookup(ROOT, name_)).nodeid
            reply = await mount.ask(Opcode.STATX, node, struct.pack("<IIQII", 0, 0, 0, 0, 0xFFF), room=288)
            mask, blksize, _, nlink, uid, gid, mode, ino, size, blocks, _ = struct.unpack_from(
                "<IIQIIIHxxQQQQ", reply, 32
            )
            *times, major, minor = struct.unpack_from("<qIxxxxqIxxxxqIxxxxqIxxxxII", reply, 96)
            st = (tmp_path / name_).lstat()
            assert (nlink, uid, gid, mode) == (st.st_nlink, st.st_uid, st.st_gid, st.st_mode)
            assert (ino, size, blocks, blksize) == (st.st_ino, st.st_size, st.st_blocks, st.st_blksize)
            assert (major, minor) == (0, 0)
            command = ["stat", "-c", "%.9X %.9W %.9Z %.9Y", str(tmp_path / name_)]
            said = (await trio.run_process(command, capture_stdout=True)).stdout.decode()
            seconds = [f"{times[at]}.{times[at + 1]:09}" for at in range(0, 8, 2)]
            assert mask & 0x7FF == 0x7FF
            assert seconds == said.split() or not mask & 0x800


@needs_root
async def test_access_by_mode_bits(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    os.chown(tmp_path / "file", ALICE, STAFF)
    (tmp_path / "file").chmod(0o640)
    async with folder(tmp_path) as mount:
        node = (await mount.lookup(ROOT, "file")).nodeid
        assert not await errno_of(mount.access(node, os.R_OK | os.W_OK, uid=ALICE, gid=ALICE))
        assert not await errno_of(mount.access(node, os.R_OK, uid=BOB, gid=STAFF))
        assert await errno_of(mount.access(node, os.W_OK, uid=BOB, gid=STAFF)) == errno.EACCES
        assert await errno_of(mount.access(node, os.R_OK, uid=BOB, gid=BOB)) == errno.EACCES
        assert await errno_of(mount.access(node, os.X_OK, uid=0, gid=0)) == errno.EACCES


# Policies


async def test_a_folder_that_is_only_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("text")
    (tmp_path / "sub").mkdir()
    before = (tmp_path / "file").stat()
    async with folder(tmp_path, readonly=True) as mount:
        node = (await mount.lookup(ROOT, "file")).nodeid
        changes: list[Callable[[], Any]] = [
            lambda: mount.create(ROOT, "new"),
            lambda: mount.mkdir(ROOT, "new"),
            lambda: mount.mknod(ROOT, "new", stat.S_IFREG),
            lambda: mount.symlink(ROOT, "new", "x"),
            lambda: mount.link(node, ROOT, "new"),
            lambda: mount.unlink(ROOT, "file"),
            lambda: mount.rmdir(ROOT, "sub"),
            lambda: mount.rename(ROOT, "file", ROOT, "new"),
            lambda: mount.rename(ROOT, "file", ROOT, "new", NOREPLACE),
            lambda: mount.setattr(node, mode=0o777),
            lambda: mount.setxattr(node, "user.x", b"x"),
            lambda: mount.removexattr(node, "user.x"),
        ]
        for change in changes:
            assert await errno_of(change()) == errno.EROFS
        fh = await mount.open(node, os.O_RDONLY)
        assert await mount.read(node, fh, 10) == b"text"
    assert names(tmp_path) == ["file", "sub"]
    assert (tmp_path / "file").stat().st_ctime_ns == before.st_ctime_ns


async def test_how_long_guests_trust(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for cache, seconds in (("never", 0), ("metadata", 86400), ("auto", 1), ("always", 86400)):
        async with folder(tmp_path, cache=cache) as mount:
            entry = await mount.lookup(ROOT, "file")
            assert (entry.entry_valid, entry.attr_valid) == (seconds, seconds)
            assert await errno_of(mount.lookup(ROOT, "nothing")) == errno.ENOENT
    async with folder(tmp_path, timeout=2.5, negative_timeout=0.5) as mount:
        entry = await mount.lookup(ROOT, "file")
        assert (entry.entry_valid, entry.attr_valid) == (2.5, 2.5)
        entry = await mount.lookup(ROOT, "nothing")
        assert (entry.nodeid, entry.entry_valid) == (0, 0.5)


@needs_root
async def test_mounts_below_are_announced_and_can_be_unmounted(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    (shared / "disk").mkdir(parents=True)
    if not run("mount", "-t", "tmpfs", "none", shared / "disk"):
        pytest.skip("mounts are not allowed here")
    try:
        (shared / "disk" / "file").write_text("x")
        async with folder(shared) as mount:
            disk = await mount.lookup(ROOT, "disk")
            assert disk.attr.flags == 1
            inner = await mount.lookup(disk.nodeid, "file")
            assert inner.attr.flags == 0
            listed = {entry.name: entry for entry in await mount.list(plus=True)}
            assert listed["disk"].entry is not None
            assert listed["disk"].entry.nodeid == disk.nodeid
            await mount.batch_forget((inner.nodeid, 1), (disk.nodeid, 2))
            assert run("umount", shared / "disk")
        async with folder(shared, announce_submounts=False) as mount:
            assert (await mount.lookup(ROOT, "disk")).attr.flags == 0
    finally:
        run("umount", shared / "disk")
