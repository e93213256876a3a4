"""Files that the guest deleted and has open, kept by a service manager while no back-end runs."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from selectors import EVENT_READ, DefaultSelector

import peerlib
import pytest
import trio
from fslives import Guest
from fsrig import ROOT, errno_of, needs_root, until

from devices.fs.fdstore import FdStore
from vhost.testing import connect_to

SYSTEMD = Path("/lib/systemd/systemd")

#: asks the manager for what it keeps, and becomes the service
_LAUNCHER = """
import fcntl, os, socket, sys
place, *command = sys.argv[1:]
with socket.socket(socket.AF_UNIX) as sock:
    sock.connect(place + "/launch")
    names, fds, _, _ = socket.recv_fds(sock, 65536, 253)
high = [fcntl.fcntl(fd, fcntl.F_DUPFD, 100) for fd in fds]
os.closerange(3, 100)
for at, fd in enumerate(high):
    os.dup2(fd, 3 + at)
os.closerange(3 + len(fds), 400)
os.environ.update(NOTIFY_SOCKET=place + "/notify", LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(len(fds)))
os.environ["LISTEN_FDNAMES"] = names.decode()[1:]
os.execv(command[0], command)
"""


class Manager:
    """As systemd with ``FileDescriptorStoreMax=``, as far as descriptors go."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.kept: list[tuple[str, int]] = []
        self.said: list[str] = []
        self._notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._notify.bind(str(place / "notify"))
        self._launch = socket.socket(socket.AF_UNIX)
        self._launch.bind(str(place / "launch"))
        self._launch.listen()
        self._end, self._ended = socket.socketpair()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def launched(self, command: list[str]) -> list[str]:
        """The command that runs `command` as its service."""
        return [sys.executable, "-c", _LAUNCHER, str(self.place), *command]

    def _serve(self) -> None:
        with DefaultSelector() as selector:
            for sock in (self._notify, self._launch, self._ended):
                selector.register(sock, EVENT_READ)
            while True:
                for key, _ in selector.select():
                    if key.fileobj is self._ended:
                        return
                    if key.fileobj is self._notify:
                        self._told()
                    else:
                        with self._launch.accept()[0] as sock:
                            names = ":".join(["", *(name for name, _ in self.kept)])
                            socket.send_fds(sock, [names.encode() or b":"], [fd for _, fd in self.kept])

    def _told(self) -> None:
        text, fds, _, _ = socket.recv_fds(self._notify, 4096, 253)
        words = dict(line.split("=", 1) for line in text.decode().splitlines())
        self.said += words
        if "FDSTORE" in words:
            self.kept += [(words["FDNAME"], fd) for fd in fds]
            return
        gone = fds
        if "FDSTOREREMOVE" in words:
            gone += [fd for name, fd in self.kept if name == words["FDNAME"]]
            self.kept = [(name, fd) for name, fd in self.kept if name != words["FDNAME"]]
        for fd in gone:
            os.close(fd)

    def close(self) -> None:
        self._end.close()
        self._thread.join()
        for sock in (self._notify, self._launch, self._ended):
            sock.close()
        for _, fd in self.kept:
            os.close(fd)


@pytest.fixture
def here() -> Iterator[Path]:
    with peerlib.short_folder() as folder:
        yield folder


@pytest.fixture
def manager(here: Path) -> Iterator[Manager]:
    one = Manager(here)
    try:
        yield one
    finally:
        one.close()


async def _end(guest: Guest) -> None:
    assert guest.backend is not None
    assert await trio.to_thread.run_sync(guest.backend.end) == 0


async def test_they_survive(here: Path, manager: Manager) -> None:
    """A clean end and kills, without file handles: by the descriptors themselves. Nothing that is closed is kept."""
    guest = Guest(here, "--inode-file-handles", "never")
    guest.command = manager.launched(guest.command)
    guest.start()
    try:
        async with guest.connected() as mount:
            await mount.start()
            files = [await mount.create(ROOT, name) for name in ("one", "two", "named")]
            for number, (entry, fh) in enumerate(files):
                await mount.write(entry.nodeid, fh, b"text %d" % number)
            folder = await mount.mkdir(ROOT, "folder")
            listing = await mount.opendir(folder.nodeid)
            await mount.rmdir(ROOT, "folder")
            for name in ("one", "two"):
                await mount.unlink(ROOT, name)
            await _end(guest)
            assert len(manager.kept) == 3
        for turn in range(3):
            guest.start()
            async with guest.connected() as mount:
                for number, (entry, fh) in enumerate(files):
                    if turn == 2 and number == 2:
                        continue  # its name is lost with a kill
                    assert await mount.read(entry.nodeid, fh, 100) == b"text %d" % (number + 10 * turn)
                    await mount.write(entry.nodeid, fh, b"text %d" % (number + 10 * turn + 10))
                    attr = await mount.getattr(entry.nodeid)
                    assert (attr.nlink, stat.S_ISREG(attr.mode)) == (number == 2, True)
                assert stat.S_ISDIR((await mount.getattr(folder.nodeid, listing)).mode)
                assert guest.backend is not None
                assert len(manager.kept) == 3
                if turn == 0:
                    await _end(guest)
                elif turn == 1:
                    guest.kill()
                else:
                    last, last_fh = await mount.create(ROOT, "last")
                    await mount.write(last.nodeid, last_fh, b"last")
                    await mount.unlink(ROOT, "last")
                    await mount.release(files[0][0].nodeid, files[0][1])
                    await mount.releasedir(folder.nodeid, listing)
                    await until(lambda: len(manager.kept) == 2 and "FDSTOREREMOVE" in manager.said, 20)
                    guest.kill()
        guest.start()
        async with guest.connected() as mount:
            assert await mount.read(last.nodeid, last_fh, 100) == b"last"
            assert await mount.read(files[1][0].nodeid, files[1][1], 100) == b"text 31"
            assert await errno_of(mount.read(files[0][0].nodeid, files[0][1], 100)) in (errno.EBADF, errno.ESTALE)
            await mount.start()
            assert (await mount.lookup(ROOT, "named")).attr.size == 7
            await until(lambda: manager.kept == [], 20)
    finally:
        guest.close()


@needs_root
async def test_nobody_keeps_them(here: Path) -> None:
    """Then it is said that they are lost."""
    guest = Guest(here)
    guest.start()
    try:
        async with guest.connected() as mount:
            await mount.start()
            entry, fh = await mount.create(ROOT, "one")
            await mount.unlink(ROOT, "one")
            await _end(guest)
        assert guest.backend is not None
        assert "1 files that the guest has open and deleted are lost with this process" in guest.backend.words
        guest.start()
        async with guest.connected() as mount:
            assert await errno_of(mount.read(entry.nodeid, fh, 1)) in (errno.EBADF, errno.ESTALE)
    finally:
        guest.close()


class Systemd:
    """A user's systemd, in a mount namespace of its own, with one service; systemctl is how one speaks to it.

    One at a time on this machine: two would take the same control groups for theirs.
    """

    def __init__(self, place: Path, command: list[str]) -> None:
        self.place = place
        self.turn = SYSTEMD.open("rb")
        fcntl.flock(self.turn, fcntl.LOCK_EX)
        (place / "run").mkdir(mode=0o700)
        (place / "units").mkdir()
        (place / "units/default.target").write_text("[Unit]\nWants=fs.service\n")
        (place / "units/fs.service").write_text(
            f"[Unit]\nDefaultDependencies=no\nStartLimitIntervalSec=0\n[Service]\nExecStart={' '.join(command)}\n"
            "Restart=always\nRestartSec=100ms\n"
            f"FileDescriptorStoreMax=64\nNotifyAccess=main\nStandardError=append:{place}/log\n"
        )
        own = {"XDG_RUNTIME_DIR": str(place / "run"), "SYSTEMD_UNIT_PATH": str(place / "units")}
        self.environment = {**os.environ, **own}
        script = "mount -t tmpfs tmpfs /run && mkdir -p /run/systemd/system && exec /lib/systemd/systemd --user"
        with (place / "systemd").open("wb") as log:
            self.process = subprocess.Popen(
                ["unshare", "-m", "--propagation", "private", "sh", "-c", f"{script} --log-target=console"],
                env=self.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip

    def ctl(self, *words: str) -> str:
        command = ["systemctl", "--user", *words]
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, check=False, timeout=30)
        return (done.stdout + done.stderr).strip()

    @property
    def log(self) -> str:
        return (self.place / "log").read_text()

    def show(self, name: str) -> int:
        said = self.ctl("show", "--value", "-p", name, "fs.service")
        return int(said) if said.isdigit() else 0

    def again(self, *words: str) -> None:
        """Have the service ended by a command of systemctl's; the next one listens."""
        old = self.show("MainPID")
        said = self.ctl(*words, "fs.service")
        assert not said, said
        self.wait(lambda: self.show("MainPID") not in (0, old))
        connect_to(self.place / "s", timeout=10)().close()

    def wait(self, condition: Callable[[], bool]) -> None:
        end = time.monotonic() + 60
        while not condition():
            assert time.monotonic() < end, (self.place / "systemd").read_text()
            time.sleep(0.02)

    def close(self) -> None:
        try:
            self.ctl("stop", "fs.service")
            self.process.send_signal(signal.SIGRTMIN + 24)  # without units that would stop others
            self.process.wait(10)
        finally:
            self.process.kill()
            self.process.wait()
            self.turn.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes a mount namespace here")
@pytest.mark.skipif(not SYSTEMD.exists(), reason="systemd is in the Debian package of that name")
async def test_systemd(here: Path) -> None:
    """The service manager that it is made for: restarted, killed, and nothing is left with it when nothing is open."""
    guest = Guest(here)
    ctl = trio.to_thread.run_sync
    systemd = await ctl(Systemd, here, guest.command)
    try:
        await ctl(systemd.wait, lambda: systemd.process.poll() is not None or systemd.show("MainPID") != 0)
        if systemd.process.poll() is not None:
            pytest.skip(f"systemd does not run here: {(here / 'systemd').read_text()}")
        await ctl(lambda: connect_to(here / "s", timeout=10)().close())
        async with guest.connected() as mount:
            await mount.start()
            entry, fh = await mount.create(ROOT, "one")
            await mount.write(entry.nodeid, fh, b"text")
            await mount.unlink(ROOT, "one")
            await ctl(systemd.again, "restart")
        for _ in range(2):
            async with guest.connected() as mount:
                assert await mount.read(entry.nodeid, fh, 100) == b"text"
                assert await ctl(systemd.show, "NFileDescriptorStore") == 1
                await ctl(systemd.again, "kill", "--signal=KILL")
        async with guest.connected() as mount:
            await mount.release(entry.nodeid, fh)
            await ctl(systemd.wait, lambda: systemd.show("NFileDescriptorStore") == 0)
        assert "lost" not in systemd.log
    finally:
        await ctl(systemd.close)
        guest.close()


def test_managers_that_are_not_there(here: Path, caplog: pytest.LogCaptureFixture) -> None:
    """None; one whose socket is gone, one that never answers, one that keeps things for somebody else."""
    state = str(here / "state")
    assert FdStore.of(state, {}) is None
    assert FdStore.of(state, {"NOTIFY_SOCKET": "vsock:2:1"}) is None
    assert FdStore.of(state, {"NOTIFY_SOCKET": str(here / "gone")}) is None
    assert "cannot be reached" in caplog.text
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(f"\0{here}")
        store = FdStore.of(state, {"NOTIFY_SOCKET": f"@{here}"})
        assert store is not None
        pid, mine = str(os.getpid()), store._prefix
        assert store.taken({"LISTEN_PID": "1", "LISTEN_FDNAMES": f"{mine}1-1"}) == []
        assert store.taken({"LISTEN_PID": pid, "LISTEN_FDNAMES": f"other:x{mine}"}) == []
        assert store.taken({}) == []
        with (here / "file").open("w") as file:
            assert store.keep([file.fileno()] * 2) == 2
            text, fds, _, _ = socket.recv_fds(sock, 100, 2)
            st = os.fstat(file.fileno())
            assert text.decode() == f"FDSTORE=1\nFDNAME={mine}{st.st_dev:x}-{st.st_ino:x}\n"
            assert [os.fstat(fd).st_ino for fd in fds] == [st.st_ino]
            os.close(fds[0])
            assert store.keep([]) == 0
            assert sock.recv(100) == text.replace(b"FDSTORE=", b"FDSTOREREMOVE=")
            sock.shutdown(socket.SHUT_RDWR)
            assert store.keep([file.fileno()], wait=True) == 0
        assert "takes no descriptors" in caplog.text
        store.close()
