"""Files that the guest deleted and has open, kept by a service manager while no back-end runs."""

from __future__ import annotations

import errno
import os
import socket
import stat
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from selectors import EVENT_READ, DefaultSelector

import peerlib
import pytest
import trio
from fslives import Guest
from fsrig import ROOT, errno_of, needs_root, until

from devices.fs.fdstore import FdStore

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


@needs_root
@pytest.mark.parametrize("handles", ["prefer", "never"])
async def test_they_survive(here: Path, manager: Manager, handles: str) -> None:
    """A clean end, and kills; by handles or by the descriptors themselves. Nothing is kept of what is closed."""
    guest = Guest(here, "--inode-file-handles", handles)
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
                    if turn == 2 and number == 2 and handles == "never":
                        continue  # its name is lost with a kill
                    assert await mount.read(entry.nodeid, fh, 100) == b"text %d" % (number + 10 * turn)
                    await mount.write(entry.nodeid, fh, b"text %d" % (number + 10 * turn + 10))
                    attr = await mount.getattr(entry.nodeid)
                    assert (attr.nlink, stat.S_ISREG(attr.mode)) == (number == 2, True)
                assert stat.S_ISDIR((await mount.getattr(folder.nodeid, listing)).mode)
                assert guest.backend is not None
                assert handles == "never" or "lost" not in guest.backend.words
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
                    await until(lambda: len(manager.kept) == 2 and "FDSTOREREMOVE" in manager.said)
                    guest.kill()
        guest.start()
        async with guest.connected() as mount:
            assert await mount.read(last.nodeid, last_fh, 100) == b"last"
            assert await mount.read(files[1][0].nodeid, files[1][1], 100) == b"text 31"
            assert await errno_of(mount.read(files[0][0].nodeid, files[0][1], 100)) in (errno.EBADF, errno.ESTALE)
            await mount.start()
            assert (await mount.lookup(ROOT, "named")).attr.size == 7
            await until(lambda: manager.kept == [])
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
