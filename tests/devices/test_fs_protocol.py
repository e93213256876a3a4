"""Requests of virtio-fs as any server gets them: lengths, negotiation, order, waiting. [VIRTIO 1.3, 5.11; fuse.h]"""

from __future__ import annotations

import errno
import json
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from fsrig import (
    ARGUMENTS,
    EVERY_FLAG,
    NAME_COUNTS,
    ROOT,
    Entry,
    Mount,
    errno_of,
    groups,
    guest,
    mounted,
    name,
    security_context,
    serving,
    until,
)

import vhost
from devices.fs import Fs, NullServer
from devices.fs.config import InitFlag, Opcode
from vhost.frontend import PERSONALITIES, Personality

#: bytes of the reply
REPLIES = {
    Opcode.LOOKUP: 128, Opcode.GETATTR: 104, Opcode.SETATTR: 104, Opcode.SYMLINK: 128, Opcode.MKNOD: 128,
    Opcode.MKDIR: 128, Opcode.LINK: 128, Opcode.OPEN: 16, Opcode.WRITE: 8, Opcode.STATFS: 80, Opcode.INIT: 24,
    Opcode.OPENDIR: 16, Opcode.GETLK: 24, Opcode.CREATE: 144, Opcode.BMAP: 8, Opcode.IOCTL: 16, Opcode.POLL: 8,
    Opcode.LSEEK: 8, Opcode.COPY_FILE_RANGE: 8, Opcode.TMPFILE: 144, Opcode.STATX: 288, Opcode.COPY_FILE_RANGE_64: 8,
}  # fmt: skip
SILENT = {Opcode.FORGET, Opcode.BATCH_FORGET, Opcode.INTERRUPT, Opcode.NOTIFY_REPLY}
HEADER = 40


@asynccontextmanager
async def null(**how: Any) -> AsyncIterator[Mount]:
    """A guest of a server that knows no files."""
    async with mounted(NullServer(EVERY_FLAG), **how) as mount:
        yield mount


@asynccontextmanager
async def null_fs(**how: Any) -> AsyncIterator[tuple[Mount, Fs]]:
    """Likewise, and the device."""
    queues = how.pop("queues", 1)
    async with (
        NullServer(EVERY_FLAG) as server,
        serving(server, request_queues=queues, **how) as (fs, path),
        guest(path, queues=queues) as mount,
    ):
        yield mount, fs


async def raw_error(mount: Mount, out: list[bytes], room: list[int], queue: int = 1) -> int | None:
    """The errno of a crafted request; None: it was given back without an answer."""
    used, back = await mount.raw(out, room, queue)
    reply = b"".join(back)[:used]
    if not used:
        return None
    length, error, _ = struct.unpack_from("<IiQ", reply)
    assert length == used
    return -error


# INIT


async def test_init_agrees_on_what_both_can() -> None:
    can = InitFlag.DO_READDIRPLUS | InitFlag.WRITEBACK_CACHE | InitFlag.SECURITY_CTX | InitFlag.SPLICE_READ
    async with mounted(NullServer(can), init=False) as mount:
        reply = await mount.start()
        core = (
            InitFlag.ASYNC_READ
            | InitFlag.BIG_WRITES
            | InitFlag.MAX_PAGES
            | InitFlag.INIT_EXT
            | InitFlag.PARALLEL_DIROPS
            | InitFlag.ABORT_ERROR
        )
        assert reply.flags == core | (can & ~InitFlag.SPLICE_READ)
        assert (reply.major, reply.minor, reply.time_gran) == (7, 45, 1)
        assert (reply.max_write, reply.max_pages) == (1 << 20, 256)
        offered = InitFlag.WRITEBACK_CACHE | InitFlag.SECURITY_CTX  # without INIT_EXT the upper half does not count
        reply = await mount.start(offered, minor=31, readahead=4096)
        assert reply.flags == InitFlag.WRITEBACK_CACHE
        assert (reply.minor, reply.max_readahead) == (31, 4096)
        assert (reply.max_write, reply.max_pages) == (32 * 4096, 32)
        assert (await mount.start(minor=99)).minor == 45


async def test_init_leaves_out_what_makes_no_sense() -> None:
    async with null(init=False) as mount:
        flags = (await mount.start()).flags
        assert InitFlag.HANDLE_KILLPRIV not in flags
        assert InitFlag.AUTO_INVAL_DATA not in flags
        assert InitFlag.NO_EXPORT_SUPPORT not in flags
        assert InitFlag.POSIX_ACL in flags
        assert InitFlag.POSIX_ACL not in (await mount.start(EVERY_FLAG & ~InitFlag.DONT_MASK)).flags
        assert InitFlag.POSIX_ACL not in (await mount.start(EVERY_FLAG & ~InitFlag.SETXATTR_EXT)).flags
        assert InitFlag.READDIRPLUS_AUTO not in (await mount.start(EVERY_FLAG & ~InitFlag.DO_READDIRPLUS)).flags
        assert InitFlag.HANDLE_KILLPRIV in (await mount.start(EVERY_FLAG & ~InitFlag.HANDLE_KILLPRIV_V2)).flags
        assert InitFlag.HAS_INODE_DAX not in (await mount.start(EVERY_FLAG & ~InitFlag.MAP_ALIGNMENT)).flags


async def test_init_of_other_versions() -> None:
    async with null(init=False) as mount:
        assert await errno_of(mount.start(minor=30)) == errno.EPROTO
        assert await errno_of(mount.start(major=6)) == errno.EPROTO
        later = await mount.start(major=8)
        assert (later.major, later.flags, later.max_write) == (7, 0, 0)
        assert await errno_of(mount.getattr()) == errno.EIO  # it was only told which major to come with
        short = await mount.ask(Opcode.INIT, 0, struct.pack("<IIII", 7, 31, 0, 1), room=24)
        assert len(short) == 24
        assert await errno_of(mount.getattr()) == errno.ENOSYS


async def test_nothing_without_init() -> None:
    async with null(init=False) as mount:
        assert await errno_of(mount.lookup(ROOT, "x")) == errno.EIO
        await mount.forget(1)
        await mount.start()
        assert await errno_of(mount.lookup(ROOT, "x")) == errno.ENOENT
        await mount.destroy()
        assert await errno_of(mount.lookup(ROOT, "x")) == errno.EIO


# Lengths


async def test_every_opcode_with_every_length() -> None:
    """Arguments that are too short are EINVAL and nothing else; whatever comes, the next request is answered."""
    async with null(queues=2) as mount:
        for opcode in Opcode:
            if opcode is Opcode.INIT:
                continue
            need = ARGUMENTS.get(opcode, 0)
            for length in range(need + 12):
                for fill in (b"\0", b"\xff", b"a"):
                    body = fill * length
                    room = 0 if opcode in SILENT else 16 + REPLIES.get(opcode, 0)
                    out = [mount.header(opcode, ROOT, length) + body]
                    error = await raw_error(mount, out, [room] if room else [])
                    if opcode in SILENT:
                        assert error is None
                    elif length < need and not (opcode is Opcode.SETXATTR and length >= 8):
                        assert error == errno.EINVAL, (opcode, length)
                    else:
                        assert error is not None, (opcode, length)
            if opcode is Opcode.DESTROY:
                await mount.start()
        assert await errno_of(mount.lookup(ROOT, "x")) == errno.ENOENT


async def test_room_for_the_reply() -> None:
    async with null() as mount:
        for opcode, need in REPLIES.items():
            body = bytes(ARGUMENTS.get(opcode, 0)) + b"a\0b\0"[: 2 * NAME_COUNTS.get(opcode, 0)]
            if opcode is Opcode.INIT:
                body = struct.pack("<IIII", 7, 45, 0, 0)
            request = [mount.header(opcode, ROOT, len(body)) + body]
            assert await raw_error(mount, request, [16 + need - 1]) == errno.EINVAL, opcode
            assert await raw_error(mount, request, [16 + need]) != errno.EINVAL, opcode


async def test_requests_that_nobody_can_answer_do_no_harm() -> None:
    async with null_fs() as (mount, fs):
        good = mount.header(Opcode.GETATTR, ROOT, 16) + bytes(16)
        for out, room in (([bytes(39)], [64]), ([good], [15]), ([good], []), ([b"x"], [])):
            assert await raw_error(mount, out, room) is None
        for length in (0, 39, len(good) + 1, 0xFFFFFFFF):
            lie = struct.pack("<I", length) + good[4:]
            assert await raw_error(mount, [lie], [200]) == errno.EINVAL
        assert await raw_error(mount, [struct.pack("<I", 50) + good[4:]], [200]) == errno.EINVAL  # cut in the arguments
        assert await raw_error(mount, [good + b"more"], [200]) == errno.ENOSYS  # what is too much is left alone
        assert fs.stats.malformed == 9


async def test_unknown_opcodes() -> None:
    async with null_fs() as (mount, fs):
        for opcode in (0, 7, 19, 54, 63, 4096, 436207616, 0xFFFFFFFF):
            assert (await mount.call(opcode))[0] == errno.ENOSYS
        assert fs.stats.requests[0] == 8


async def test_pieces_may_begin_and_end_anywhere() -> None:
    async with null() as mount:
        body = struct.pack("<QQIIQII", 1, 0, 5, 0, 0, 0, 0) + b"hello"
        request = mount.header(Opcode.WRITE, ROOT, len(body)) + body
        for cut in range(1, len(request), 3):
            used, back = await mount.raw([request[:cut], request[cut:]], [7, 9, 3, 20])
            assert used == 24
            assert b"".join(back)[16:20] == struct.pack("<I", 5)
        single = [request[i : i + 2] for i in range(0, len(request), 2)]
        used, back = await mount.raw([*single[:40], b"".join(single[40:])], [4] * 8, indirect=True)
        assert used == 24
        for room in ([3000, 1096], [1] * 40 + [4056], 4096, 5000):
            assert await mount.read(ROOT, 1, 4096, room=room) == bytes(4096)


async def test_replies_do_not_exceed_what_was_asked() -> None:
    async with null() as mount:
        args = struct.pack("<QQIIQII", 1, 0, 10, 0, 0, 0, 0)
        used, back = await mount.raw([mount.header(Opcode.READ, ROOT, len(args)) + args], [16 + 100])
        assert used == 26
        assert back[0][16:26] == bytes(10)
        assert len(await mount.read(ROOT, 1, 1 << 20, room=[1 << 19, 1 << 19])) == 1 << 20
        assert len(await mount.read(ROOT, 1, 0xFFFFFFFF, room=512)) == 512
        assert await mount.read(ROOT, 1, 0, room=512) == b""


async def test_names() -> None:
    async with null() as mount:

        async def lookup(text: bytes) -> int:
            return (await mount.call(Opcode.LOOKUP, ROOT, text))[0]

        assert await lookup(b"x" * 255 + b"\0") == errno.ENOENT
        assert await lookup(b"x" * 256 + b"\0") == errno.ENAMETOOLONG
        assert await lookup(b"x" * 9000 + b"\0") == errno.ENAMETOOLONG
        assert await lookup(b"x" * 255) == errno.EINVAL
        assert await lookup(b"x" * 256) == errno.ENAMETOOLONG
        assert await lookup(b"\0") == errno.EINVAL
        assert await lookup(b"") == errno.EINVAL
        for old, new, error in (
            (b"a\0", b"b\0", errno.ENOSYS),
            (b"a\0", b"b", errno.EINVAL),
            (b"a", b"", errno.EINVAL),
        ):
            assert (await mount.call(Opcode.RENAME, ROOT, bytes(8) + old + new))[0] == error
        assert (await mount.symlink(ROOT, "l", "t" * 4095)).attr.size == 4095
        assert await errno_of(mount.symlink(ROOT, "l", "t" * 4096)) == errno.ENAMETOOLONG
        assert await errno_of(mount.symlink(ROOT, "l", "")) == errno.EINVAL
        made = await mount.mkdir(ROOT, "a\0b")  # the name ends at the first NUL
        assert (made.attr.ino, made.attr.rdev) == (1, 1)


async def test_data_is_as_long_as_the_arguments_say() -> None:
    async with null() as mount:
        write = struct.pack("<QQIIQII", 1, 0, 6, 0, 0, 0, 0)
        assert (await mount.call(Opcode.WRITE, ROOT, write, data=b"12345"))[0] == errno.EINVAL
        error, reply = await mount.call(Opcode.WRITE, ROOT, write, data=b"1234567")
        assert (error, reply[:4]) == (0, struct.pack("<I", 6))
        ioctl = struct.pack("<QIIQII", 1, 0, 0, 0, 0, 0xFFFFFFFF)
        assert (await mount.call(Opcode.IOCTL, ROOT, ioctl))[0] == errno.EINVAL
        assert (await mount.call(Opcode.REMOVEMAPPING, ROOT, struct.pack("<I", 0x10000001)))[0] == errno.EINVAL
        assert (await mount.call(Opcode.REMOVEMAPPING, ROOT, struct.pack("<I", 1), data=bytes(16)))[0] == errno.ENOSYS
        for args in (struct.pack("<II", 2, 0) + bytes(16), struct.pack("<II", 0x10000001, 0) + bytes(16)):
            await mount.call(Opcode.BATCH_FORGET, 0, args)
        xattr = struct.pack("<II", 0, 0) + b"user.a\0"
        assert (await mount.call(Opcode.GETXATTR, ROOT, xattr, room=7))[0] == errno.EINVAL
        assert (await mount.call(Opcode.GETXATTR, ROOT, xattr, room=8))[0] == errno.ENOSYS


async def test_both_forms_of_setxattr() -> None:
    async with null() as mount:
        for flags, head in ((EVERY_FLAG, "<IIII"), (EVERY_FLAG & ~InitFlag.SETXATTR_EXT, "<II")):
            await mount.start(flags)
            for value in (b"", b"value", bytes(9000)):
                args = struct.pack("<II", len(value), 0).ljust(struct.calcsize(head), b"\0") + name("user.key")
                assert await mount.ask(Opcode.SETXATTR, ROOT, args, data=value) == struct.pack("<II", len(value), 8)
                assert await mount.ask(Opcode.SETXATTR, ROOT, args + value) == struct.pack("<II", len(value), 8)
            for n in (255, 256):
                args = struct.pack("<II", 3, 0).ljust(struct.calcsize(head), b"\0") + name("k" * n)
                error, _ = await mount.call(Opcode.SETXATTR, ROOT, args, data=b"abc")
                assert error == (errno.ENAMETOOLONG if n == 256 else 0)
                assert (await mount.call(Opcode.SETXATTR, ROOT, args, data=b"ab"))[0] in (
                    errno.EINVAL,
                    errno.ENAMETOOLONG,
                )


async def test_extensions() -> None:
    """Groups and a security context, in one request and in either order; the old form without a length."""
    async with null() as mount:
        args = struct.pack("<II", 0o755, 0) + name("dir")

        async def mkdir(ext: bytes, **how: Any) -> Entry:
            return Entry.unpack(await mount.ask(Opcode.MKDIR, ROOT, args, ext=ext, **how))

        plain = await mkdir(b"")
        assert (plain.attr.nlink, plain.attr.blocks) == (0, 0)
        context = security_context("security.selinux", b"\1\2\3")
        for ext in (groups(5, 6) + context, context + groups(5, 6)):
            made = await mkdir(ext)
            assert (made.attr.nlink, made.attr.gid) == (2, 11)
            assert (made.attr.blocks, made.attr.uid, made.attr.mode) == (3, 6, 16)
        assert (await mkdir(struct.pack("<II", 8, 0))).attr.blocks == 0  # no context
        assert (await mkdir(groups(*range(32)))).attr.nlink == 32
        for bad in (
            groups(*range(33)),
            struct.pack("<IIII", 16, 32, 9, 0),  # fewer groups than it says
            struct.pack("<II", 8, 32),
            struct.pack("<II", 4, 32),
            struct.pack("<II", 0xFFFFFFFF, 32),
            struct.pack("<II", 8, 1),  # a context that is not there
            struct.pack("<II", 8, 2) + bytes(8),
            struct.pack("<IIII", 24, 1, 100, 0) + b"sel\0aaaa",  # shorter than it says
            struct.pack("<IIII", 24, 1, 0, 0) + b"selinuxx",  # a name without end
        ):
            assert (await mount.call(Opcode.MKDIR, ROOT, args, ext=bad))[0] == errno.EINVAL, bad
        old = Entry.unpack(await mount.ask(Opcode.MKDIR, ROOT, args + context))  # as 7.36 sends it
        assert (old.attr.blocks, old.attr.mode) == (3, 16)
        await mount.start(EVERY_FLAG & ~InitFlag.SECURITY_CTX)
        assert Entry.unpack(await mount.ask(Opcode.MKDIR, ROOT, args + context)).attr.blocks == 0
        lie = mount.header(Opcode.MKDIR, ROOT, len(args), ext=8 * 0xFFFF) + args
        assert await raw_error(mount, [lie], [200]) == errno.EINVAL


# The queue of high priority


async def test_hiprio_takes_what_never_waits() -> None:
    async with null_fs() as (mount, fs):
        assert (await mount.call(Opcode.GETATTR, ROOT, bytes(16), queue=0))[0] == errno.EIO
        await mount.forget(1, 5)
        await mount.batch_forget((1, 2), (3, 4))
        await mount.batch_forget()
        used, _ = await mount.raw([mount.header(Opcode.FORGET, 1, 8) + bytes(8)], [64], 1)  # on any queue
        assert used == 0
        early = [mount.header(Opcode.INTERRUPT, 0, 8) + struct.pack("<Q", 12345)]
        assert await raw_error(mount, early, [16], 0) == errno.EAGAIN  # it may be on its way: send it again
        assert await raw_error(mount, early, [], 0) is None
        assert fs.stats.requests[Opcode.FORGET] == 2
        assert fs.stats.requests[Opcode.BATCH_FORGET] == 2


# Waiting


async def test_interrupt_ends_what_waits() -> None:
    async with null_fs(queues=2) as (mount, fs), trio.open_nursery() as nursery:
        answers: dict[str, int] = {}

        async def wait(text: str, unique: int, queue: int) -> None:
            answers[text], _ = await mount.call(Opcode.LOOKUP, ROOT, name(text), unique=unique, queue=queue)

        nursery.start_soon(wait, "wait", 1002, 1)
        nursery.start_soon(wait, "stuck", 1004, 2)
        await until(lambda: fs.stats.again > 2 and fs.stats.slow == 1)
        assert await errno_of(mount.lookup(ROOT, "x")) == errno.ENOENT  # others are not held up
        assert await errno_of(mount.lookup(ROOT, "x")) == errno.ENOENT
        assert not answers
        await mount.call(Opcode.INTERRUPT, 0, struct.pack("<Q", 1002))
        await until(lambda: answers == {"wait": errno.EINTR})
        await mount.call(Opcode.INTERRUPT, 0, struct.pack("<Q", 1004))
        await until(lambda: answers == {"wait": errno.EINTR, "stuck": errno.EINTR})


async def test_slow_ones_come_back_from_threads() -> None:
    async with null_fs(queues=2) as (mount, fs):
        fs.server.set_threads(4)  # type: ignore[attr-defined]
        done = 0

        async def slow() -> None:
            nonlocal done
            for _ in range(50):
                assert await errno_of(mount.lookup(ROOT, "slow")) == errno.ENOENT
                done += 1

        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(slow)
        assert done == fs.stats.slow == 500
        assert 1 <= fs.session()["threads"]["now"] <= 4


async def test_more_threads_than_allowed_are_not_made() -> None:
    async with null_fs() as (mount, fs), trio.open_nursery() as nursery:
        fs.server.set_threads(3)  # type: ignore[attr-defined]
        ends = 0

        async def stuck(unique: int) -> None:
            nonlocal ends
            error, _ = await mount.call(Opcode.LOOKUP, ROOT, name("stuck"), unique=unique)
            assert error == errno.EINTR
            ends += 1

        for unique in range(2, 22, 2):
            nursery.start_soon(stuck, unique)
        await until(lambda: fs.session()["threads"] == {"now": 3, "most": 3, "waiting": 7})
        assert await errno_of(mount.lookup(ROOT, "x")) == errno.ENOENT
        for unique in range(2, 22, 2):
            await mount.call(Opcode.INTERRUPT, 0, struct.pack("<Q", unique))
        await until(lambda: ends == 10)


async def test_a_device_that_stops_ends_what_waits() -> None:
    """EAGAIN, not EINTR: Linux hands an EINTR without a signal on as an error that no program knows."""
    async with null_fs() as (mount, fs), trio.open_nursery() as nursery:
        answers = []

        async def wait() -> None:
            answers.append((await mount.call(Opcode.LOOKUP, ROOT, name("wait")))[0])

        nursery.start_soon(wait)
        await until(lambda: fs.stats.again > 0)
        with trio.fail_after(60):
            await fs.quiesce()
        await until(lambda: answers == [errno.EAGAIN])
        await fs.resume()
        assert await errno_of(mount.lookup(ROOT, "x")) == errno.ENOENT
        nursery.start_soon(wait)
        again = fs.stats.again
        await until(lambda: fs.stats.again > again)
        await mount.fe.stop_queue(mount.fe.queues[1])
        assert fs.stats.cancelled == 2


async def test_init_ends_all_others_first() -> None:
    """A guest that boots again sends no word about what the last one waited for."""
    async with null_fs(queues=2) as (mount, fs), trio.open_nursery() as nursery:
        events: list[str] = []

        async def ask(text: str, unique: int) -> None:
            error, _ = await mount.call(Opcode.LOOKUP, ROOT, name(text), unique=unique, queue=1)
            events.append(f"{text} {errno.errorcode[error]}")

        nursery.start_soon(ask, "wait", 2002)
        nursery.start_soon(ask, "stuck", 2004)
        await until(lambda: fs.stats.again > 0 and fs.stats.slow == 1)
        await mount.start(queue=2)
        await until(lambda: len(events) == 2)
        assert sorted(events) == ["stuck EINTR", "wait EINTR"]
        assert await errno_of(mount.lookup(ROOT, "x")) == errno.ENOENT


async def test_inits_at_once() -> None:
    """One at a time is carried out; those that wait for it meanwhile are ended by it, as all others are."""
    async with null_fs(queues=4, workers=vhost.WorkerOptions(count=2)) as (mount, _):
        results: list[int] = []

        async def init(queue: int) -> None:
            results.append(await errno_of(mount.start(queue=queue)))

        async with trio.open_nursery() as nursery:
            for i in range(40):
                nursery.start_soon(init, 1 + i % 4)
                nursery.start_soon(lambda i=i: errno_of(mount.lookup(ROOT, "slow", queue=1 + i % 3)))
        assert set(results) <= {0, errno.EINTR}
        assert 0 in results
        assert await errno_of(mount.lookup(ROOT, "x")) == errno.ENOENT


async def test_a_guest_that_goes_away_takes_all_with_it() -> None:
    async with NullServer(EVERY_FLAG) as server, serving(server) as (fs, path):
        async with guest(path) as mount, trio.open_nursery() as nursery:
            nursery.start_soon(mount.call, Opcode.LOOKUP, ROOT, name("wait"))
            nursery.start_soon(mount.call, Opcode.LOOKUP, ROOT, name("stuck"))
            await until(lambda: fs.stats.again > 0 and fs.stats.slow == 1)
            nursery.cancel_scope.cancel()
        await until(lambda: not fs._queues)
        async with guest(path, init=False) as mount:
            assert await errno_of(mount.lookup(ROOT, "x")) == errno.EIO
            await mount.start()
            assert await errno_of(mount.lookup(ROOT, "x")) == errno.ENOENT


async def test_the_state_of_a_session_moves() -> None:
    async with NullServer(EVERY_FLAG) as server, serving(server) as (_, path):
        async with guest(path) as mount:
            session = server.session
            assert mount.init is not None
            assert (session.minor, session.flags, session.max_write) == (45, int(mount.init.flags), 1 << 20)
        async with NullServer(EVERY_FLAG) as other:
            other.session = session
            async with serving(other) as (_, there), guest(there, init=False) as mount:
                assert await errno_of(mount.lookup(ROOT, "x")) == errno.ENOENT
        async with NullServer(0) as less:
            with pytest.raises(ValueError, match="does not implement"):
                less.session = session


# Queues, workers, front-ends


@pytest.mark.parametrize("packed", [False, True])
async def test_many_queues_on_several_workers(packed: bool) -> None:
    workers = vhost.WorkerOptions(count=2)
    async with null(queues=4, workers=workers, packed=packed, size=16) as mount:
        counts = dict.fromkeys(range(1, 5), 0)

        async def work(queue: int, text: str) -> None:
            for i in range(60):
                assert await errno_of(mount.lookup(ROOT, text, queue=queue)) == errno.ENOENT
                assert await mount.write(ROOT, 1, bytes(i * 50 + 1), queue=queue) == i * 50 + 1
                assert await mount.read(ROOT, 1, i * 50 + 1, queue=queue) == bytes(i * 50 + 1)
                await mount.forget(1)
                counts[queue] += 1

        async with trio.open_nursery() as nursery:
            for queue in counts:
                nursery.start_soon(work, queue, "x")
                nursery.start_soon(work, queue, "slow")
        assert set(counts.values()) == {120}


async def test_configuration_space() -> None:
    async with null(tag="größe", request_queues=3, queues=3) as mount:
        space = await mount.fe.get_config(0, 40)
        assert space[:36].rstrip(b"\0").decode() == "größe"
        assert int.from_bytes(space[36:40], "little") == 3
        assert mount.fe.num_queues == 4


@pytest.mark.parametrize("who", PERSONALITIES, ids=lambda who: who.name)
async def test_front_ends(who: Personality) -> None:
    async with null(personality=who) as mount:
        assert await errno_of(mount.lookup(ROOT, "x")) == errno.ENOENT
        assert await mount.read(ROOT, 1, 8192) == bytes(8192)


def test_arguments_are_checked() -> None:
    server = NullServer()
    for how in ({"tag": ""}, {"tag": "x" * 37}, {"tag": "a\0"}, {"request_queues": 0}, {"queue_size": 1}):
        with pytest.raises(ValueError, match=r"tag|request_queues|queue_size"):
            Fs(server, **how)  # type: ignore[arg-type]
    for most in (0, 257):
        with pytest.raises(ValueError, match="threads"):
            server.set_threads(most)
    server.close()
    with pytest.raises(RuntimeError, match="closed"):
        _ = server.ptr


# What is counted


async def test_counters_and_controls() -> None:
    async with null_fs() as (mount, fs):
        await mount.write(ROOT, 1, bytes(1000))
        await mount.read(ROOT, 1, 500)
        assert await errno_of(mount.lookup(ROOT, "x")) == errno.ENOENT
        shown = fs.controls()["stats"]()
        assert json.loads(json.dumps(shown)) == shown
        assert shown["ops"]["lookup"]["requests"] == shown["ops"]["lookup"]["errors"] == 1
        assert shown["ops"]["write"]["p50_us"] > 0
        assert shown["bytes_in"] == 1000
        assert shown["bytes_out"] == 500 + 8 + 64
        session = fs.controls()["session"]()
        assert session["mounted"]
        assert session["protocol"] == session["driver"] == "7.45"
        assert "WRITEBACK_CACHE" in session["flags"]
        assert "PASSTHROUGH" in session["not_used"]
        assert fs.controls()["set_threads"](most=5) == 5
        info = fs.controls()["info"]()
        assert info["tag"] == "vhost"
        metrics = {(m.name, m.labels.get("op")): m for m in fs.metrics()}
        assert metrics["fs_requests_total", "read"].value == 1
        assert metrics["fs_mounted", None].value == 1
        assert metrics["fs_latency_seconds", None].buckets[-1][1] == 4
