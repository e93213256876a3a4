"""Back-ends as processes for plain (not trio) tests: ours, examples, and qemu-storage-daemon."""

from __future__ import annotations

import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from vhost.testing import Peer, connect_to

ROOT = Path(__file__).parent.parent


class Backend:
    """A back-end that is started again when it dies, as a service manager would; `deaths` counts."""

    def __init__(self, command: Sequence[str], sock: Path, log: Path) -> None:
        self.command, self.path, self.log = list(command), sock, log
        self.deaths = 0
        self.process = self._spawn()

    def _spawn(self) -> subprocess.Popen[bytes]:
        with self.log.open("ab") as log:
            return subprocess.Popen(self.command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=ROOT)

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def words(self) -> str:
        """All it has said."""
        return self.log.read_text(errors="replace")

    def connect(self) -> socket.socket:
        end = time.monotonic() + 60
        while True:
            if self.process.poll() is not None:
                self.deaths += 1
                self.process = self._spawn()
            try:
                return connect_to(self.path, timeout=0.2)()
            except (FileNotFoundError, ConnectionRefusedError):
                if time.monotonic() > end:
                    raise

    def peer(self) -> Peer:
        return Peer(self.connect())

    def fds(self) -> int:
        return len(list(Path(f"/proc/{self.pid}/fd").iterdir()))

    def rss(self) -> int:
        """Resident memory that is its own, bytes."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        (kib,) = re.findall(r"RssAnon:\s+(\d+) kB", status)
        return int(kib) * 1024

    def settled_fds(self, most: int, seconds: float = 3) -> int:
        """Open descriptors once they are at most `most`, or after `seconds`."""
        end = time.monotonic() + seconds
        while (count := self.fds()) > most and time.monotonic() < end:
            time.sleep(0.02)
        return count

    def end(self) -> int:
        """SIGTERM; the exit status."""
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(15)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise


@contextmanager
def running(command: Sequence[str], sock: Path, log: Path, *, clean: bool = True) -> Iterator[Backend]:
    """Run `command` until the block ends; with `clean` it must end with status 0 on SIGTERM."""
    backend = Backend(command, sock, log)
    try:
        backend.connect().close()
        yield backend
    except BaseException:
        print(f"--- {' '.join(backend.command[:3])} said:\n{backend.words[-4000:]}", file=sys.stderr)
        raise
    finally:
        status = backend.end() if backend.process.poll() is None else 0
    assert not clean or status == 0, f"SIGTERM gave status {status}: {backend.words[-2000:]}"


def folder() -> Path:
    """A directory whose path is short enough for sockets."""
    return Path(tempfile.mkdtemp(prefix="vhk-"))


@contextmanager
def short_folder() -> Iterator[Path]:
    """`folder`, removed at the end."""
    path = folder()
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


@contextmanager
def vhost_blk(*args: str, store: str | None = None, size: int = 64 << 20, queues: int = 4) -> Iterator[Backend]:
    """`vhost blk` on a fresh file, or on `store`."""
    with short_folder() as path:
        image = path / "disk"
        with image.open("wb") as file:
            file.truncate(size)
        what = ["--store", store] if store else ["--blk-file", str(image)]
        program = str(Path(sys.executable).with_name("vhost"))
        command = [program, "blk", "--socket-path", str(path / "s"), *what, "--num-queues", str(queues), *args]
        with running(command, path / "s", path / "log") as backend:
            yield backend


@contextmanager
def vhost_net(*args: str) -> Iterator[Backend]:
    """`vhost net`."""
    with short_folder() as path:
        program = str(Path(sys.executable).with_name("vhost"))
        with running([program, "net", "--socket-path", str(path / "s"), *args], path / "s", path / "log") as backend:
            yield backend


@contextmanager
def vhost_fs(*args: str, folder: bool = True) -> Iterator[Backend]:
    """`vhost fs`; folder: on an empty one."""
    with short_folder() as path:
        (path / "shared").mkdir()
        program = str(Path(sys.executable).with_name("vhost"))
        what = ["--shared-dir", str(path / "shared")] if folder else []
        command = [program, "fs", "--socket-path", str(path / "s"), *what, *args]
        with running(command, path / "s", path / "log") as backend:
            yield backend


@contextmanager
def vhost_gpu(*args: str) -> Iterator[Backend]:
    """`vhost gpu`."""
    with short_folder() as path:
        program = str(Path(sys.executable).with_name("vhost"))
        with running([program, "gpu", "--socket-path", str(path / "s"), *args], path / "s", path / "log") as backend:
            yield backend


CONTRIB_GPU = Path("/usr/lib/qemu/vhost-user-gpu")


@contextmanager
def contrib_gpu() -> Iterator[Backend]:
    """QEMU's contrib vhost-user-gpu, which ends with each connection; skips where there is none."""
    if not CONTRIB_GPU.exists():
        pytest.skip("vhost-user-gpu is not installed; install the Debian package qemu-system-gui")
    with short_folder() as path:
        backend = Backend([str(CONTRIB_GPU), "--socket-path", str(path / "s")], path / "s", path / "log")
        try:
            yield backend
        except BaseException:
            print(f"--- it said:\n{backend.words[-4000:]}", file=sys.stderr)
            raise
        finally:
            backend.process.terminate()
            backend.process.wait(10)


@contextmanager
def example(name: str) -> Iterator[Backend]:
    """`examples/NAME.py`."""
    with short_folder() as path:
        command = [sys.executable, str(ROOT / "examples" / f"{name}.py"), str(path / "s")]
        with running(command, path / "s", path / "log") as backend:
            yield backend


def needs_public_tree(command: Sequence[str], user: int | None = None) -> None:
    """Skip where ``command``, as another user, may not read this tree or its Python."""
    try:
        subprocess.run(command, user=user, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this tree, or its Python, is private")


def needs_storage_daemon() -> str:
    """Its program; skips the test where it is not installed."""
    program = shutil.which("qemu-storage-daemon")
    if program is None:
        pytest.skip("qemu-storage-daemon is not installed (Debian package qemu-system-common)")
    return program


def storage_daemon_version() -> tuple[int, int]:
    """Of the installed qemu-storage-daemon."""
    said = subprocess.run([needs_storage_daemon(), "--version"], capture_output=True, text=True, check=True).stdout
    major, minor = re.findall(r"version (\d+)\.(\d+)", said)[0]
    return int(major), int(minor)


@contextmanager
def storage_daemon(*, queues: int = 4, null: bool = False, size: int = 64 << 20) -> Iterator[Backend]:
    """qemu-storage-daemon on a fresh file, or on its null store."""
    program = needs_storage_daemon()
    with short_folder() as path:
        image = path / "disk"
        with image.open("wb") as file:
            file.truncate(size)
        store = (
            f"driver=null-co,node-name=n,size={size},read-zeroes=off"
            if null
            else f"driver=file,node-name=n,filename={image},discard=unmap"
        )
        export = f"type=vhost-user-blk,id=e,node-name=n,addr.type=unix,addr.path={path / 's'},writable=on"
        command = [program, "--blockdev", store, "--export", f"{export},num-queues={queues}"]
        with running(command, path / "s", path / "log", clean=False) as backend:
            yield backend
