"""Our front-end drives virtiofsd, the C one and the one in Rust: it mounts, finds, reads, writes, lists, locks."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import fsrig
import peerlib
import pytest
from fsrig import ROOT, errno_of
from guestlib.debian import AssetError
from guestlib.process import FOREIGN
from guestlib.trixie import virtiofsd

from devices.fs.config import InitFlag, Opcode
from devices.fs.load import OPERATIONS, Workload, measure
from vhost.testing import Verdict, checks_for, connect_to, run_check
from vhost.testing.check_messages import MESSAGES
from vhost.testing.check_rings import RINGS

C = Path("/usr/lib/qemu/virtiofsd")
KINDS = ("c", "rust")


@contextmanager
def serving(kind: str, share: Path, path: Path, *more: str) -> Iterator[str]:
    """A virtiofsd that has `share`; its socket. It ends with its first connection."""
    sock = str(path / "s")
    if kind == "c":
        if not C.exists():
            pytest.skip("virtiofsd in C is not installed (Debian 12's package qemu-system-common)")
        # it would make the limit of open files what this machine may not have
        command = [str(C), "-f", f"--socket-path={sock}", "-o", f"source={share}", "-o", "sandbox=chroot"]
        command += ["--rlimit-nofile=0", *more]
    else:
        try:
            command = [*virtiofsd(), "--socket-path", sock, "--shared-dir", str(share), "--sandbox", "chroot", *more]
        except AssetError as error:
            pytest.skip(str(error))
    if os.geteuid():
        pytest.skip("virtiofsd wants to be root to change its root folder")
    with (path / "log").open("wb") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=FOREIGN)
    try:
        yield sock
    except BaseException:
        print((path / "log").read_text(errors="replace")[-2000:])
        raise
    finally:
        process.terminate()
        process.wait(10)


@pytest.fixture
def share(tmp_path: Path) -> Path:
    folder = tmp_path / "share"
    folder.mkdir()
    return folder


@pytest.mark.parametrize("kind", KINDS)
async def test_a_mount(kind: str, share: Path) -> None:
    """What a guest does first, on data that host and guest compare."""
    text = os.urandom(3 << 20)
    (share / "there").write_bytes(text)
    (share / "folder").mkdir()
    os.symlink("there", share / "link")
    many = {f"file {number}" for number in range(300)}
    for name in many:
        (share / "folder" / name).touch()
    with peerlib.short_folder() as path, serving(kind, share, path) as sock:
        async with fsrig.guest(sock) as mount:
            assert mount.init is not None
            assert mount.init.major == 7
            assert mount.init.flags & InitFlag.DO_READDIRPLUS
            entry = await mount.lookup(ROOT, "there")
            assert entry.attr.size == len(text)
            assert entry.attr.ino == (share / "there").stat().st_ino
            assert (await mount.getattr(entry.nodeid)) == entry.attr
            assert await errno_of(mount.lookup(ROOT, "nothing")) == errno.ENOENT
            assert await mount.readlink((await mount.lookup(ROOT, "link")).nodeid) == b"there"

            fh = await mount.open(entry.nodeid, os.O_RDONLY)
            pieces = [await mount.read(entry.nodeid, fh, 1 << 20, at << 20, room=[1 << 19] * 2) for at in range(3)]
            assert b"".join(pieces) == text
            assert await mount.read(entry.nodeid, fh, 4096, len(text) - 100) == text[-100:]
            await mount.release(entry.nodeid, fh)

            made, fh = await mount.create(ROOT, "new", os.O_RDWR | os.O_EXCL, 0o640)
            for at in range(0, len(text), 1 << 20):
                assert await mount.write(made.nodeid, fh, text[at : at + (1 << 20)], at) == 1 << 20
            assert (share / "new").read_bytes() == text
            assert (share / "new").stat().st_mode & 0o777 == 0o640
            await mount.fsync(made.nodeid, fh)
            await mount.flush(made.nodeid, fh)
            await mount.release(made.nodeid, fh)
            assert (await mount.setattr(made.nodeid, size=5)).size == 5
            await mount.rename(ROOT, "new", ROOT, "newer")
            assert (share / "newer").read_bytes() == text[:5]
            await mount.unlink(ROOT, "newer")
            await mount.forget(made.nodeid)

            folder = await mount.lookup(ROOT, "folder")
            for plus in (False, True):
                listed = {found.name: found for found in await mount.list(folder.nodeid, plus=plus)}
                assert set(listed) - {".", ".."} == many
            assert all(
                found.entry and found.entry.attr.ino == found.ino for name, found in listed.items() if name in many
            )
            assert (await mount.statfs())[5] > 0
            error, _ = await mount.call(4000)
            assert error == errno.ENOSYS


async def test_locks_of_the_peer(share: Path) -> None:
    """Locks where the C one has them on the host: what its users ask for, and where it stops."""
    (share / "file").write_bytes(b"text")
    with peerlib.short_folder() as path, serving("c", share, path, "-o", "posix_lock") as sock:
        async with fsrig.guest(sock) as mount:
            entry = await mount.lookup(ROOT, "file")
            fh = await mount.open(entry.nodeid, os.O_RDWR)
            args = mount.lock_args(fh, 7, fcntl.F_WRLCK, 0, 9)
            error, _ = await mount.call(Opcode.SETLK, entry.nodeid, args, room=0)
            assert error == 0
            with (share / "file").open("r+b") as file, pytest.raises(BlockingIOError):
                fcntl.fcntl(file, 37, struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 10, 0))  # F_OFD_SETLK


@pytest.mark.parametrize("kind", KINDS)
async def test_loads(kind: str, share: Path) -> None:
    """Every load of `vhost bench fs`, with all that comes back compared; nothing is left behind."""
    for op in OPERATIONS:
        workload = Workload(op=op, size=1 << 20, files={"list": 700}.get(op, 0), runtime=0.1, warmup=0.02, verify=True)
        with peerlib.short_folder() as path, serving(kind, share, path) as sock:
            result = await measure(sock, workload)
        assert result.errors == 0, f"{op}: {result.first_error}"
        assert result.operations > 0
        # operations under way when the time began have some of their requests before it
        steps = 5 if op == "create" else 1
        assert result.requests >= (result.operations - result.workload.depth) * steps
        assert (result.entries_per_second > 0) is (op == "list")
        assert result.backend_cpu_us
        assert not list(share.iterdir()), op


@pytest.mark.parametrize("kind", KINDS)
async def test_ways_to_drive_it(kind: str, share: Path) -> None:
    """Asleep, without indirect tables, page by page, at a rate; kept files are found again."""
    base = Workload(op="read", size=1 << 20, runtime=0.05, warmup=0, verify=True, keep=True)
    for workload in (
        replace(base, poll=False, random=False),
        replace(base, indirect=False, event_idx=False),
        replace(base, op="write", block_bytes=1 << 19, piece_bytes=4096, depth=2),
        replace(base, rate=1000, poll=False, runtime=0.2, depth=64),
    ):
        with peerlib.short_folder() as path, serving(kind, share, path) as sock:
            result = await measure(sock, workload)
        assert result.errors == 0, result.first_error
        if workload.rate:
            assert result.operations == pytest.approx(200, abs=40)
    assert [file.stat().st_size for file in (share / "vhost-bench").iterdir()] == [1 << 20]


#: it ends the one in C; the one in Rust panics at both, and takes ../x for a path (which its root folder keeps inside)
KNOWN = {
    "c": {"split: headers that say what is not so do no harm"},
    "rust": {
        "split: headers that say what is not so do no harm",
        "split: opcodes that there are not are refused, and lengths that do not fit",
        "split: names are names, not paths: none leads out of the folder",
    },
}


@pytest.mark.parametrize("kind", KINDS)
def test_check_fs(kind: str, share: Path) -> None:
    """Our clauses about file systems ask nothing that others do not do, but for what they are known not to."""
    with peerlib.short_folder() as path, ExitStack() as running:

        def connect() -> socket.socket:
            running.close()  # it serves one connection
            return connect_to(running.enter_context(serving(kind, share, path)), timeout=5)()

        passed, failed = set(), {}
        for check in checks_for("fs"):
            if check in MESSAGES.checks or check in RINGS.checks or check.title.startswith("packed"):
                continue
            outcome = run_check(check, connect, "fs", writable=True, once=True)
            if outcome.verdict is Verdict.PASS:
                passed.add(check.title)
            elif outcome.verdict is Verdict.FAIL:
                failed[check.title] = outcome.detail
    assert failed.keys() <= KNOWN[kind], failed
    assert len(passed) >= 12
