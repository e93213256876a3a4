"""Child processes that never outlive their block, and logs that end up in the report of a failed test."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path

import trio

#: logs of the running test, newest last: (title, path); the test suite's conftest prints and empties it
LOGS: list[tuple[str, Path]] = []
#: the environment of other people's programs: a sanitizer that is preloaded into us is not of their C library
FOREIGN = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}


class GuestError(Exception):
    """A guest or back-end did not do what was asked; the text says which and shows its last words."""


def tail(path: Path, lines: int = 15) -> str:
    """The last ``lines`` of a log, readable even where it is binary or missing."""
    try:
        text = path.read_bytes().decode(errors="replace")
    except OSError:
        return ""
    return "\n".join(text.replace("\r", "").splitlines()[-lines:])


class Proc:
    """One running child, leader of a process group of its own."""

    def __init__(self, name: str, process: trio.Process, log: Path) -> None:
        self.name = name
        self.log = log
        self._process = process

    @property
    def pid(self) -> int:
        """Process id; of no use after the process was waited for."""
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """Exit status, negative for a signal, None while it runs."""
        return self._process.poll()

    async def wait(self, timeout: float) -> int:
        """Wait for the end, at most ``timeout`` s; the exit status. Raises GuestError when it still runs."""
        with trio.move_on_after(timeout):
            return await self._process.wait()
        raise GuestError(f"{self.name} still runs after {timeout:g} s\n{tail(self.log)}")

    def signal(self, number: int) -> None:
        """Send signal ``number`` to the process alone."""
        if self.returncode is None:
            os.kill(self.pid, number)

    async def terminate(self, timeout: float = 60) -> int:
        """SIGTERM, then the exit status. Raises GuestError when it does not end within ``timeout`` s."""
        self.signal(signal.SIGTERM)
        return await self.wait(timeout)

    async def kill(self) -> None:
        """SIGKILL to the whole group, as a crash would do, and wait."""
        if self.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
        await self._process.wait()

    def fail(self, what: str) -> GuestError:
        """A GuestError with the process's last words."""
        return GuestError(f"{self.name}: {what}\n{tail(self.log)}")


@contextlib.asynccontextmanager
async def started(
    name: str,
    command: Sequence[str | Path],
    log: Path,
    *,
    env: Mapping[str, str] | None = None,
    stdin: int = subprocess.DEVNULL,
    stdout: int | None = None,
    pass_fds: Sequence[int] = (),
    cwd: Path | None = None,
) -> AsyncIterator[Proc]:
    """Run ``command`` with its output in ``log`` for the length of the block; killed with all its children after it.

    Cancellation: kills it and waits.
    """
    LOGS.append((name, log))
    with log.open("ab") as out:
        process = await trio.lowlevel.open_process(
            [str(word) for word in command],
            stdin=stdin,
            stdout=out.fileno() if stdout is None else stdout,
            stderr=out.fileno(),
            start_new_session=True,
            env={**os.environ, **(env or {})},
            pass_fds=pass_fds,
            cwd=cwd,
        )
    proc = Proc(name, process, log)
    try:
        yield proc
    finally:
        with trio.CancelScope(shield=True):
            # the group may outlive its leader
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(proc.pid, signal.SIGKILL)
            await process.wait()


def listening(path: Path, pid: int | str = "self") -> bool:
    """Whether somebody in the network namespace of ``pid`` listens on the AF_UNIX socket ``path``; it is not used."""
    # the kernel cuts nothing here, and SO_ACCEPTCON is the only bit that is ever set
    for line in Path(f"/proc/{pid}/net/unix").read_text().splitlines():
        fields = line.split()
        if len(fields) == 8 and fields[7] == str(path) and int(fields[3], 16) & 0x10000:
            return True
    return False


async def until(condition: Callable[[], bool], proc: Proc, what: str, timeout: float = 60) -> None:
    """Wait until ``condition()``; GuestError when ``proc`` ends first or ``timeout`` s pass."""
    with trio.move_on_after(timeout):
        while not condition():
            if proc.returncode is not None:
                raise proc.fail(f"ended with status {proc.returncode} before {what}")
            await trio.sleep(0.02)
        return
    raise proc.fail(f"no {what} within {timeout:g} s")


async def connected(path: Path, proc: Proc, what: str, timeout: float = 60) -> trio.SocketStream:
    """Connect to the AF_UNIX socket ``path`` that ``proc`` makes."""
    await until(lambda: listening(path), proc, what, timeout)
    sock = trio.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        await sock.connect(str(path))
    except BaseException:
        sock.close()
        raise
    return trio.SocketStream(sock)
