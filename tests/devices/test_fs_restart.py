"""The back-end ends under a running guest, killed or in good order: with a state file the next one goes on."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import peerlib
import pytest
import trio
from fslives import Guest, running
from fsrig import (
    END,
    F_OFD_SETLK,
    NONE,
    READ,
    ROOT,
    WRITE,
    Mount,
    errno_of,
    is_locked,
    name,
    needs_root,
    set_lock,
    until,
    who_locks,
)

from devices.fs.config import Opcode
from vhost.constants import ProtocolFeature
from vhost.frontend import Frontend


@pytest.fixture
def here() -> Iterator[Path]:
    with peerlib.short_folder() as folder:
        yield folder


async def _use(guest: Guest, mount: Mount) -> dict[str, int]:
    """Files open, locked, looked up; what the guest knows of them."""
    await mount.start()
    (guest.shared / "a" / "b").mkdir(parents=True)
    (guest.shared / "a" / "b" / "deep").write_bytes(b"deep down")
    deep = (await mount.walk("a/b/deep")).nodeid
    forgotten = (await mount.walk("a")).nodeid
    await mount.forget(forgotten, 2)
    one, fh = await mount.create(ROOT, "one")
    two, other = await mount.create(ROOT, "two")
    await mount.write(one.nodeid, fh, b"before")
    await set_lock(mount, one.nodeid, fh, WRITE, 0, 9, 5, pid=55)
    await set_lock(mount, one.nodeid, fh, READ, 20, 29, 5, pid=55)
    await set_lock(mount, one.nodeid, fh, NONE, 3, 4, 5, pid=55)
    await set_lock(mount, two.nodeid, other, WRITE, 0, END, 1, flock=True)
    closed = await mount.open(one.nodeid)
    await mount.release(one.nodeid, closed)
    return {"deep": deep, "one": one.nodeid, "fh": fh, "two": two.nodeid, "other": other, "closed": closed}


async def _go_on(guest: Guest, mount: Mount, known: dict[str, int]) -> None:
    """All of that is what it was."""
    one, fh, two, other = (known[key] for key in ("one", "fh", "two", "other"))
    assert (await mount.getattr(known["deep"])).size == 9
    assert (await mount.walk("a/b/deep")).nodeid == known["deep"]
    assert await mount.read(one, fh, 100) == b"before"
    await mount.write(one, fh, b"after ")
    assert (guest.shared / "one").read_bytes() == b"after "
    assert [(await who_locks(mount, one, fh, byte))[0] for byte in (0, 3, 5, 10, 25, 30)] == [
        WRITE, NONE, WRITE, NONE, READ, NONE,
    ]  # fmt: skip
    assert await who_locks(mount, one, fh, 7) == (WRITE, 55)
    assert is_locked(guest.shared / "one")
    with (guest.shared / "two").open() as host, pytest.raises(BlockingIOError):
        fcntl.flock(host, fcntl.LOCK_SH | fcntl.LOCK_NB)
    await mount.write(one, fh, b"before")
    assert await errno_of(mount.read(one, known["closed"], 1)) == errno.EBADF
    new, new_fh = await mount.create(ROOT, f"new{len(os.listdir(guest.shared))}")
    assert new.nodeid not in known.values()
    await mount.release(new.nodeid, new_fh)
    assert await errno_of(set_lock(mount, two, other, WRITE, 0, END, 1, flock=True)) == 0


@needs_root
@pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
async def test_killed(here: Path, packed: bool) -> None:
    """SIGKILL, several times: node ids, open files and locks are there again; what was closed is not."""
    async with running(here, packed=packed) as guest:
        async with guest.connected() as mount:
            known = await _use(guest, mount)
            guest.kill()
        assert not is_locked(guest.shared / "one")
        for _ in range(3):
            guest.start()
            async with guest.connected() as mount:
                await _go_on(guest, mount, known)
                guest.kill()
        guest.start()
        async with guest.connected() as mount:
            await mount.flush(known["one"], known["fh"], owner=5)
            assert not is_locked(guest.shared / "one")
            await mount.destroy()
        assert stat.S_IMODE((here / "state").stat().st_mode) == 0o600


@pytest.mark.parametrize("handles", ["prefer", "never"])
async def test_ended(here: Path, handles: str) -> None:
    """SIGTERM: without file handles, too; then killed; and another end, from what was taken over."""
    async with running(here, "--inode-file-handles", handles) as guest:
        async with guest.connected() as mount:
            known = await _use(guest, mount)
            assert guest.backend is not None
            assert await trio.to_thread.run_sync(guest.backend.end) == 0
        assert not is_locked(guest.shared / "one")
        for _ in range(2):
            guest.start()
            assert guest.backend is not None
            async with guest.connected() as mount:
                await _go_on(guest, mount, known)
                assert await trio.to_thread.run_sync(guest.backend.end) == 0
        guest.start()
        async with guest.connected() as mount:
            await _go_on(guest, mount, known)


async def test_the_front_end_goes(here: Path) -> None:
    """Then the guest is gone: nothing is kept of it, and nothing comes back."""
    async with running(here) as guest:
        async with guest.connected() as mount:
            known = await _use(guest, mount)
        await until(lambda: not is_locked(guest.shared / "one"))
        guest.kill()
        guest.start()
        async with guest.connected() as mount:
            assert await errno_of(mount.getattr(known["deep"])) in (errno.EIO, errno.ESTALE)
            await mount.start()
            assert (await mount.walk("a/b/deep")).attr.size == 9


@needs_root
@pytest.mark.parametrize("end", ["killed", "ended"])
async def test_a_lock_that_is_waited_for(here: Path, end: str) -> None:
    """It is waited for in the next process, and had there."""
    async with running(here) as guest, guest.connected() as mount:
        known = await _use(guest, mount)
        with (guest.shared / "one").open("r+b") as host:
            lock = struct.pack("hhqqi", WRITE, os.SEEK_SET, 100, 10, 0)
            fcntl.fcntl(host, F_OFD_SETLK, lock)
            args = mount.lock_args(known["fh"], 7, WRITE, 100, 109)
            _, answer = guest.leave(mount, Opcode.SETLKW, known["one"], args, 1 << 20)
            mount.fe.queues[1].kick()
            await mount.getattr(known["one"])
            if end == "killed":
                guest.kill()
            else:
                assert guest.backend is not None
                assert await trio.to_thread.run_sync(guest.backend.end) == 0
            guest.start()
            async with guest.connected() as again:
                await again.getattr(known["one"])
                assert 1 << 20 not in guest.rings[1].back
                host.close()
                await until(lambda: 1 << 20 in guest.rings[1].back)
                assert guest.error(answer) == 0
                assert (await who_locks(again, known["one"], known["fh"], 105))[0] == WRITE


@needs_root
async def test_what_was_done_but_not_answered(here: Path) -> None:
    """Requests that the killed process had carried out: the next one answers as if it did it now."""
    async with running(here) as guest:
        async with guest.connected() as mount:
            known = await _use(guest, mount)
            for made in ("dir", "renamed"):
                await mount.mkdir(ROOT, made)
            await mount.symlink(ROOT, "link", "target")
            (guest.shared / "linked").hardlink_to(guest.shared / "one")
            guest.kill()
            pair = struct.pack("<II", 0o755, 0)
            done = [
                (Opcode.MKDIR, ROOT, pair + name("dir"), 0),
                (Opcode.MKDIR, ROOT, pair + name("one"), errno.EEXIST),  # of another kind: not ours
                (Opcode.SYMLINK, ROOT, name("link") + name("target"), 0),
                (Opcode.SYMLINK, ROOT, name("link") + name("elsewhere"), errno.EEXIST),
                (Opcode.LINK, ROOT, struct.pack("<Q", known["one"]) + name("linked"), 0),
                (Opcode.LINK, ROOT, struct.pack("<Q", known["two"]) + name("linked"), errno.EEXIST),
                (Opcode.UNLINK, ROOT, name("gone"), 0),
                (Opcode.RENAME, ROOT, struct.pack("<Q", ROOT) + name("old") + name("renamed"), 0),
                (Opcode.RENAME, ROOT, struct.pack("<Q", ROOT) + name("old") + name("nowhere"), errno.ENOENT),
                (Opcode.CREATE, ROOT, struct.pack("<IIII", os.O_RDWR | os.O_EXCL, 0o644, 0, 0) + name("two"), 0),
            ]
            answers = []
            for turn, (opcode, node, args, _) in enumerate(done):
                number, answer = guest.leave(mount, opcode, node, args, turn + (1 << 20))
                guest.mark(number, turn + 1)
                answers.append(answer)
        guest.start()
        async with guest.connected() as mount:
            await until(lambda: len([token for token in guest.rings[1].back if token >= 1 << 20]) == len(done))
            assert [guest.error(answer) for answer in answers] == [error for *_, error in done]
            # the same, not replayed
            assert await errno_of(mount.mkdir(ROOT, "dir")) == errno.EEXIST
            assert await errno_of(mount.unlink(ROOT, "gone")) == errno.ENOENT
            await _go_on(guest, mount, known)


def _said(command: list[str]) -> str:
    """What a command says that fails."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode not in (0, -9)
    return done.stderr


async def test_state_files_that_cannot_be_used(here: Path) -> None:
    """One at a time; not over something else; damaged ones are said to be so, and the folder is served."""
    async with running(here) as guest:
        async with guest.connected() as mount:
            await _use(guest, mount)
            second = await trio.to_thread.run_sync(
                _said,
                [*guest.command[:3], str(here / "other"), *guest.command[4:]],
            )
            assert "another process uses the state file" in second
            guest.kill()
        with (here / "state").open("r+b") as file:
            file.seek(4096)
            file.write(b"nonsense")
        guest.start()
        async with guest.connected(inflight=False) as mount:
            assert "nothing was taken over" in guest.backend.words  # type: ignore[union-attr]
            await mount.start()
            assert (await mount.walk("a/b/deep")).attr.size == 9
    (here / "state").write_text("a shopping list")
    assert "is no state file" in await trio.to_thread.run_sync(_said, guest.command)
    assert (here / "state").read_text() == "a shopping list"


async def test_offered_only_with_a_state_file(here: Path) -> None:
    """Without one no request may be carried out twice."""
    async with running(here) as guest:
        async with Frontend.connect(str(here / "s")) as fe:
            assert ProtocolFeature.INFLIGHT_SHMFD in fe.protocol
        assert guest.backend is not None
    with peerlib.vhost_fs() as plain:
        async with Frontend.connect(str(plain.path)) as fe:
            assert ProtocolFeature.INFLIGHT_SHMFD not in fe.protocol
