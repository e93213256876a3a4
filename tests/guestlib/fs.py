"""Shared folders and file systems for guests: back-ends, mounts, and the host's own programs to try them with."""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Protocol

from guestlib.agent import Result
from guestlib.backends import Backend, vhost
from guestlib.debian import ROOT
from guestlib.process import listening, started, until

#: virtio's number of a file system
FS = 26


class Guest(Protocol):
    """What a QEMU and a User-mode Linux guest have in common."""

    async def run(self, script: str, *, timeout: float = 60, check: bool = True) -> Result:
        """Run a shell script in the guest; see Agent.run."""

    async def output(self, script: str, *, timeout: float = 60) -> str:
        """Its output."""


@contextlib.asynccontextmanager
async def vhost_fs(
    folder: Path,
    shared: Path,
    *,
    tag: str = "share",
    args: Sequence[str | Path] = (),
    name: str = "vhost-fs",
    clean: bool = True,
) -> AsyncIterator[Backend]:
    """Our back-end with the folder ``shared``.

    Args:
        folder: where its log and its socket go.
        args: further options of ``vhost fs``.
        clean: whether to insist on the clean end; off for a block that kills it.
    """
    socket = folder / f"{name}.sock"
    command: list[str | Path] = ["fs", "--socket-path", socket, "--shared-dir", shared, "--tag", tag, *args]
    async with vhost(folder, [socket], *command, name=name, clean=clean) as backend:
        yield backend


@contextlib.asynccontextmanager
async def example_fs(folder: Path, example: str, *args: str | Path) -> AsyncIterator[Backend]:
    """An example's file system; its last argument is the socket."""
    name = example.removesuffix(".py")
    socket = folder / f"{name}.sock"
    command = [sys.executable, ROOT / "examples" / example, *args, socket]
    async with started(name, command, folder / f"{name}.log", env={"PYTHONUNBUFFERED": "1"}) as proc:
        await until(lambda: listening(socket), proc, "listening")
        yield Backend(proc, socket)
        assert await proc.terminate() == 0, proc.log.read_text()


async def mount(guest: Guest, tag: str, where: str | None = None, *, options: str = "") -> str:
    """Mount the file system called ``tag`` on a new folder; its path in the guest."""
    where = where or f"/{tag}"
    await guest.run(f"mkdir -p {where} && mount -t virtiofs {f'-o {options} ' if options else ''}{tag} {where}")
    return where


async def host_root(guest: Guest, tag: str = "root", where: str = "/host") -> str:
    """Mount the host's own root, served read-only, with what programs expect in it; run them by ``chroot``.

    Further mounts go below its ``/mnt``, where a tmpfs makes room for them.
    """
    await mount(guest, tag, where)
    await guest.run(
        f"""
        mount -t proc proc {where}/proc
        mount -t devtmpfs dev {where}/dev
        mount -t tmpfs tmp {where}/tmp
        mount -t tmpfs tmp {where}/mnt
        """
    )
    return where


def make_tree(folder: Path, *, files: int = 300, seed: int = 1) -> None:
    """Folders, files of many sizes, symbolic links, hard links, modes and times that a copy has to keep."""
    folder.mkdir(parents=True, exist_ok=True)
    state = hashlib.sha256(str(seed).encode()).digest()
    for number in range(files):
        state = hashlib.sha256(state).digest()
        parent = folder.joinpath(*(f"d{byte % 5}" for byte in state[: state[0] % 4]))
        parent.mkdir(parents=True, exist_ok=True)
        path = parent / f"f{number}"
        size = int.from_bytes(state[1:4], "little") % (1 << state[4] % 20)
        path.write_bytes((state * (size // 32 + 1))[:size])
        path.chmod(0o600 | state[5] & 0o177)
        os.utime(path, ns=(10**18 + number, 10**18 + 7 * number))
        if state[6] % 10 == 0:
            (parent / f"l{number}").symlink_to(f"f{number}")
        elif state[6] % 10 == 1:
            (parent / f"h{number}").hardlink_to(path)


def tree_sums(folder: Path) -> dict[str, str]:
    """Relative path -> SHA-256 of each file, ``-> TARGET`` of each link, ``/`` of each folder."""
    found = {}
    for parent, folders, files in os.walk(folder):
        for name in folders + files:
            path = Path(parent, name)
            key = str(path.relative_to(folder))
            if path.is_symlink():
                found[key] = f"-> {path.readlink()}"
            elif path.is_dir():
                found[key] = "/"
            else:
                found[key] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


async def guest_sums(guest: Guest, folder: str, *, timeout: float = 120) -> dict[str, str]:
    """The same as a guest sees it."""
    said = await guest.output(
        f"""
        cd {folder}
        find . -type f -print0 | xargs -0 -r sha256sum
        find . -mindepth 1 -type d | sed 's|^|/  |'
        find . -type l | while read -r link; do echo "-> $(readlink "$link")  $link"; done
        """,
        timeout=timeout,
    )
    found = {}
    for line in said.splitlines():
        value, _, path = line.partition("  ./")
        found[path] = value
    return found
