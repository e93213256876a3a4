"""vhost-user back-ends as processes: ours and, to prove the harness and the suite itself, qemu-storage-daemon."""

from __future__ import annotations

import contextlib
import shutil
import sys
from collections.abc import AsyncIterator, Sequence
from functools import partial
from pathlib import Path

import trio

from guestlib.process import GuestError, Proc, listening, started, until


class Backend:
    """A running back-end: its process and the socket it serves."""

    def __init__(self, proc: Proc, socket: Path) -> None:
        self.proc = proc
        self.socket = socket

    @property
    def log(self) -> str:
        """All it has printed."""
        return self.proc.log.read_text(errors="replace")

    async def kill(self) -> None:
        """SIGKILL: a crash."""
        await self.proc.kill()

    async def terminate(self, timeout: float = 60) -> int:
        """SIGTERM; its exit status."""
        return await self.proc.terminate(timeout)


def vhost_program() -> Path:
    """The ``vhost`` command beside the running Python."""
    return Path(sys.executable).with_name("vhost")


async def ctl(control: Path, *words: str) -> str:
    """``vhost ctl --json``; what it prints."""
    command = [str(vhost_program()), "ctl", "--socket", str(control), "--json", *words]
    return (await trio.run_process(command, capture_stdout=True)).stdout.decode()


@contextlib.asynccontextmanager
async def vhost(
    folder: Path, sockets: Sequence[Path], *args: str | Path, name: str = "vhost", clean: bool = True
) -> AsyncIterator[Backend]:
    """Run ``vhost ARGS…`` until it listens on all of ``sockets``; at the end SIGTERM, which must give status 0.

    Args:
        folder: where its log goes.
        clean: whether to insist on the clean end; off for a block that kills it.
    """
    log = folder / f"{name}.log"
    async with started(name, [vhost_program(), *args], log, env={"PYTHONUNBUFFERED": "1"}) as proc:
        for socket in sockets:
            await until(partial(listening, socket), proc, f"listening on {socket.name}")
        yield Backend(proc, sockets[0])
        if clean:
            if proc.returncode is not None:
                raise proc.fail(f"had ended by itself with status {proc.returncode}")
            status = await proc.terminate()
            if status != 0:
                raise proc.fail(f"SIGTERM gave status {status}, not 0")


@contextlib.asynccontextmanager
async def vhost_blk(
    folder: Path,
    image: Path,
    *,
    socket: Path | None = None,
    num_queues: int = 1,
    args: Sequence[str | Path] = (),
    name: str = "vhost-blk",
    clean: bool = True,
) -> AsyncIterator[Backend]:
    """Our block back-end on ``image``; ``args`` are further options of ``vhost blk``."""
    socket = socket or folder / f"{name}.sock"
    command: list[str | Path] = [
        "blk",
        "--socket-path",
        socket,
        "--blk-file",
        image,
        "--num-queues",
        str(num_queues),
        *args,
    ]
    async with vhost(folder, [socket], *command, name=name, clean=clean) as backend:
        yield backend


@contextlib.asynccontextmanager
async def storage_daemon(
    folder: Path,
    image: Path,
    *,
    socket: Path | None = None,
    num_queues: int = 1,
    read_only: bool = False,
    name: str = "storage-daemon",
    share: bool = False,
) -> AsyncIterator[Backend]:
    """qemu-storage-daemon exporting the raw ``image``; ``share`` leaves it unlocked, as migration needs."""
    program = shutil.which("qemu-storage-daemon")
    if program is None:
        raise GuestError("qemu-storage-daemon is not installed; install the Debian package qemu-system-common")
    socket = socket or folder / f"{name}.sock"
    locking = "off" if share else "auto"
    writable = "off" if read_only else "on"
    export = f"type=vhost-user-blk,id=e,node-name=disk,addr.type=unix,addr.path={socket},writable={writable}"
    command = [
        program,
        "--blockdev",
        f"driver=file,filename={image},node-name=file,locking={locking},discard=unmap",
        "--blockdev",
        f"driver=raw,file=file,node-name=disk,discard=unmap,read-only={'on' if read_only else 'off'}",
        "--export",
        f"{export},num-queues={num_queues}",
    ]
    async with started(name, command, folder / f"{name}.log") as proc:
        await until(lambda: listening(socket), proc, f"listening on {socket.name}")
        yield Backend(proc, socket)
