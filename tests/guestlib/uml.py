"""User-mode Linux guests: a Linux kernel as a process, with a vhost-user front-end of its own kind (virtio_uml)."""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import trio

from guestlib import assets
from guestlib.agent import Agent
from guestlib.process import Proc, started

_count = itertools.count(1)


@dataclass(frozen=True)
class UmlDevice:
    """A vhost-user device: the back-end's socket and the virtio device id.

    1 is a network card, 2 a disk, 4 an entropy source. A card without BACKEND_REQ finds no interrupt here.
    """

    socket: Path
    virtio_id: int


class UmlGuest:
    """A running User-mode Linux; ``agent`` speaks to it."""

    def __init__(self, proc: Proc, agent: Agent) -> None:
        self.proc = proc
        self.agent = agent
        self.run = agent.run
        self.output = agent.output

    async def power_off(self, timeout: float = 60) -> None:
        """Let the guest switch itself off and its process end."""
        await self.agent.send("sync; poweroff -f")
        await self.proc.wait(timeout)


@contextlib.asynccontextmanager
async def boot_uml(
    folder: Path, *devices: UmlDevice, memory_mib: int = 128, append: str = "", timeout: float = 60
) -> AsyncIterator[UmlGuest]:
    """Run a User-mode Linux with ``devices`` for the length of the block, booted and taking commands.

    Its memory is a file, on tmpfs where there is room. Cancellation: kills it.
    """
    kernel = assets.uml_kernel()
    name = f"uml{next(_count)}"
    log = folder / f"{name}.log"
    shm = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="vhk-uml-", dir=shm) as scratch:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        stream = trio.SocketStream(trio.socket.from_stdlib_socket(ours))
        agent = Agent(name, stream, log)
        try:
            command: list[str] = [
                str(kernel.image),
                f"mem={memory_mib}M",
                f"initrd={assets.initramfs(kernel)}",
                "rdinit=/init",
                f"umid={name}-{os.getpid()}",
                f"uml_dir={scratch}",
                "con=null",
                "con0=fd:0,fd:1",
                "ssl=null",
                "ssl0=null,fd:2",
                "console=ttyS0",
                "quiet",
                "panic=-1",
                "agent=tty0",
                *(f"virtio_uml.device={d.socket}:{d.virtio_id}:{n}" for n, d in enumerate(devices)),
                *append.split(),
            ]
            env = {"TMPDIR": scratch, "HOME": scratch}
            async with started(name, command, log, env=env, stdin=theirs.fileno(), stdout=theirs.fileno()) as proc:
                theirs.close()
                await agent.wait_ready(timeout)
                yield UmlGuest(proc, agent)
        finally:
            theirs.close()
            await agent.aclose()
