"""``vhost fs`` as a process: what it answers to mistakes, the control socket, metrics, a file system in Python."""

from __future__ import annotations

import fcntl
import json
import os
import stat
import subprocess
import sys
from functools import partial
from pathlib import Path

import peerlib
import pytest
import trio
from fsrig import ROOT, Mount, guest, is_locked

from devices.fs.config import Opcode

VHOST = str(Path(sys.executable).with_name("vhost"))


def vhost(*args: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([VHOST, *map(str, args)], capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ([], "give shared-dir"),
        (["--shared-dir", "/nowhere"], "/nowhere does not exist"),
        (["--shared-dir", "/etc/passwd"], "/etc/passwd is no folder"),
        (["--shared-dir", "/tmp", "--tag", "x" * 37], "a tag has 1 to 36"),
        (["--shared-dir", "/tmp", "--filesystem", "a:b"], "a device serves one of them"),
        (["--filesystem", "memory"], "is not MODULE:NAME"),
        (["--filesystem", "no_such_module:X"], "cannot be imported"),
        (["--filesystem", "os:nothing"], "module os has no nothing"),
        (["--filesystem", "pathlib:Path"], "is no devices.fs.Filesystem"),
        (["--shared-dir", "/tmp", "--notifications"], "has no notifications; file systems in Python have"),
        (["--shared-dir", "/tmp", "--dax", "always", "--state-file", "/tmp/s"], "a state file cannot bring them back"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistakes(tmp_path: Path, args: list[str], words: str) -> None:
    done = vhost("fs", "--socket-path", tmp_path / "s", *args)
    assert done.returncode not in (0, -9)
    assert words in done.stderr
    assert done.stderr.count("\n") == 1, done.stderr


def test_capabilities() -> None:
    done = vhost("fs", "--print-capabilities", "--no-such-option")
    assert json.loads(done.stdout) == {"type": "fs", "features": ["migrate-precopy", "separate-options"]}


def ctl(here: Path, *words: str) -> object:
    done = vhost("ctl", "--socket", here / "ctl", "--json", *words)
    assert (done.returncode, done.stderr) == (0, ""), done
    return json.loads(done.stdout)


async def test_a_folder_and_a_file_system_in_python() -> None:
    with peerlib.short_folder() as here:
        (here / "shared").mkdir()
        (here / "shared/file").write_text("text")
        (here / "fs.toml").write_text(
            f"""
            [server]
            control = "{here}/ctl"

            [[device]]
            type = "fs"
            name = "folder"
            socket-path = "{here}/a"
            shared-dir = "{here}/shared"
            tag = "shared"
            num-request-queues = 2
            sandbox = "none"
            seccomp = "none"

            [[device]]
            type = "fs"
            name = "memory"
            socket-path = "{here}/b"
            filesystem = "examples.memory_fs:MemoryFilesystem"
            """
        )
        command = ["env", f"PYTHONPATH={Path(__file__).parents[2]}", VHOST, "serve", str(here / "fs.toml")]
        with peerlib.running(command, here / "b", here / "log"):
            run = partial(trio.to_thread.run_sync, partial(ctl, here))
            async with guest(str(here / "a"), queues=2) as mount:
                entry = await mount.lookup(ROOT, "file")
                fh = await mount.open(entry.nodeid, os.O_RDONLY)
                assert await mount.read(entry.nodeid, fh, 100) == b"text"
                info = await run("folder.info")
                assert isinstance(info, dict)
                assert (info["tag"], info["request_queues"], info["shared_dir"]) == ("shared", 2, f"{here}/shared")
                stats = await run("folder.stats")
                assert isinstance(stats, dict)
                assert stats["ops"]["read"]["requests"] == 1
                session = await run("folder.session")
                assert isinstance(session, dict)
                assert session["mounted"]
                assert await run("folder.set_threads", "most=3") == 3
                metrics = str(await run("metrics"))
                assert 'vhost_fs_requests_total{device="folder",op="lookup"} 1' in metrics
                assert 'vhost_fs_mounted{device="folder"} 1' in metrics
            async with guest(str(here / "b")) as mount:
                made, _ = await mount.create(ROOT, "new")
                assert (await mount.lookup(ROOT, "new")).nodeid == made.nodeid
            help_ = await run("help")
            assert isinstance(help_, dict)
            assert {"folder.stats", "folder.session", "memory.info"} <= help_.keys()
            assert all(entry["help"] for entry in help_.values()), "every method says what it does"


async def use_everything(mount: Mount, node: int, *, as_others: bool = os.geteuid() == 0) -> None:
    """System calls of all kinds pass the filter, and what stays of the privileges is enough."""
    sub = await mount.mkdir(ROOT, "sub", umask=0o022)
    await mount.setxattr(node, "user.name", b"value")
    assert await mount.getxattr(node, "user.name") == b"value"
    assert "user.name" in await mount.listxattr(node)
    await mount.removexattr(node, "user.name")
    await mount.link(node, sub.nodeid, "hard")
    await mount.rename(sub.nodeid, "hard", ROOT, "moved")
    await mount.rename(ROOT, "moved", sub.nodeid, "hard", 1)
    link = await mount.symlink(ROOT, "link", "target")
    assert await mount.readlink(link.nodeid) == b"target"
    await mount.mknod(ROOT, "fifo", stat.S_IFIFO | 0o600)
    attr = await mount.setattr(node, mode=0o640, mtime=5, size=100_000, valid=1 << 11)
    assert (attr.mode & 0o777, attr.mtime) == (0o640, 5)
    assert {entry.name for entry in await mount.list(plus=True)} >= {"file", "sub", "link", "fifo"}
    assert (await mount.statfs())[5] > 0
    await mount.unlink(sub.nodeid, "hard")
    await mount.rmdir(ROOT, "sub")
    if as_others:
        made, _ = await mount.create(ROOT, "theirs", uid=31001, gid=31001)
        assert (made.attr.uid, made.attr.gid) == (31001, 31001)
        assert (await mount.setattr(node, uid=31001, gid=31002)).uid == 31001


async def test_the_usual_sandbox_serves() -> None:
    """With all that is on by default, threads for what may wait included."""
    with peerlib.short_folder() as here:
        (here / "shared").mkdir()
        (here / "shared").chmod(0o777)
        args = ["--socket-path", str(here / "s"), "--shared-dir", str(here / "shared")]
        with peerlib.running([VHOST, "fs", *args], here / "s", here / "log"):
            async with guest(str(here / "s"), queues=4) as mount:
                entry, fh = await mount.create(ROOT, "file")
                assert await mount.write(entry.nodeid, fh, bytes(100_000)) == 100_000
                await mount.fsync(entry.nodeid, fh)
                assert (await mount.getattr(entry.nodeid)).size == 100_000
                await use_everything(mount, entry.nodeid)
        assert (here / "shared/file").stat().st_size == 100_000


@pytest.mark.skipif(os.geteuid() != 0, reason="only root changes its root folder, and who it is")
@pytest.mark.parametrize(
    ("args", "user"),
    [(["--sandbox", "chroot", "--seccomp", "kill"], 0), (["--seccomp", "kill"], 31003), (["--sandbox", "none"], 31003)],
    ids=["chroot, kill", "no privileges, kill", "no privileges, no sandbox"],
)
async def test_other_sandboxes_serve(args: list[str], user: int) -> None:
    """Where a system call that was not thought of ends the process; and as a user without privileges."""
    become = ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups"] if user else []
    peerlib.needs_public_tree([*become, VHOST, "--version"])
    with peerlib.short_folder() as here:
        here.chmod(0o777)
        (here / "shared").mkdir()
        (here / "shared").chmod(0o777)
        os.chown(here / "shared", user, user)
        command = [*become, VHOST, "fs", "--socket-path", str(here / "s"), "--shared-dir", str(here / "shared"), *args]
        with peerlib.running(command, here / "s", here / "log"):
            async with guest(str(here / "s"), queues=2) as mount:
                entry, fh = await mount.create(ROOT, "file")
                assert await mount.write(entry.nodeid, fh, bytes(100_000)) == 100_000
                await mount.fsync(entry.nodeid, fh)
                args_ = mount.lock_args(fh, 7, fcntl.F_WRLCK, 0, 9)
                await mount.ask(Opcode.SETLK, entry.nodeid, args_, room=0)
                assert is_locked(here / "shared/file")
                await use_everything(mount, entry.nodeid, as_others=not user)
                found, _ = await mount.create(ROOT, "theirs, too", uid=31001, gid=31001)
                assert found.attr.uid == (user or 31001)
