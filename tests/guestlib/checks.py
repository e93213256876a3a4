"""What a guest does with a disk, and how the host looks at the image behind it."""

from __future__ import annotations

import contextlib
import hashlib
import os
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Protocol

import trio

from guestlib import seqio
from guestlib.agent import Result
from guestlib.backends import Backend, storage_daemon, vhost_blk
from guestlib.debian import AssetError
from guestlib.process import GuestError

MIB = 1 << 20


class Guest(Protocol):
    """What a QEMU and a User-mode Linux guest have in common."""

    async def run(self, script: str, *, timeout: float = 60, check: bool = True) -> Result:
        """Run a shell script in the guest; see Agent.run."""

    async def output(self, script: str, *, timeout: float = 60) -> str:
        """Its output."""


def other_backend() -> bool:
    """Whether VHOST_GUEST_BACKEND=storage-daemon asks to try the tests themselves on somebody else's back-end."""
    return os.environ.get("VHOST_GUEST_BACKEND") == "storage-daemon"


@contextlib.asynccontextmanager
async def disk(
    folder: Path,
    image: Path,
    *,
    num_queues: int = 1,
    read_only: bool = False,
    shared: bool = False,
    name: str = "disk",
    socket: Path | None = None,
    clean: bool = True,
    args: tuple[str | Path, ...] = (),
) -> AsyncIterator[Backend]:
    """The back-end under test on ``image``; ``shared`` for two of them on one image, as in a migration."""
    if other_backend():
        async with storage_daemon(
            folder, image, socket=socket, num_queues=num_queues, read_only=read_only, name=name, share=shared
        ) as backend:
            yield backend
        return
    words = [*args, *(["--read-only"] if read_only else []), *(["--lock", "shared"] if shared else [])]
    async with vhost_blk(
        folder, image, socket=socket, num_queues=num_queues, args=words, name=name, clean=clean
    ) as backend:
        yield backend


# --- the host's view


def make_image(path: Path, mebibytes: int) -> Path:
    """A sparse raw image of that size."""
    with path.open("wb") as image:
        image.truncate(mebibytes * MIB)
    return path


def _e2fs(*words: str) -> subprocess.CompletedProcess[bytes]:
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    try:
        return subprocess.run(words, capture_output=True, check=False, env={**os.environ, "PATH": path})
    except FileNotFoundError:
        raise AssetError(f"{words[0]} is not installed; install the Debian package e2fsprogs") from None


def host_fsck(image: Path, *, offset: int = 0) -> None:
    """e2fsck on the image itself; GuestError when it finds anything."""
    done = _e2fs("e2fsck", "-fn", f"{image}?offset={offset}" if offset else str(image))
    if done.returncode != 0:
        raise GuestError(
            f"e2fsck of {image.name} on the host: status {done.returncode}\n{done.stdout.decode(errors='replace')}"
        )


def host_file(image: Path, name: str, *, offset: int = 0) -> bytes:
    """The content of file ``name`` in the ext4 file system on ``image``, read without mounting it."""
    done = _e2fs("debugfs", "-R", f"cat {name}", f"{image}?offset={offset}" if offset else str(image))
    if b"File not found" in done.stderr:
        raise GuestError(f"{image.name} has no file {name}: {done.stderr.decode(errors='replace')}")
    return done.stdout


def allocated(image: Path) -> int:
    """Bytes of the file system that the image takes."""
    return image.stat().st_blocks * 512


def assert_nothing_lost(image: Path, *, first: int, blocks: int, synced: int, seed: int = 0) -> None:
    """Hold ``image`` against what guestio saw synced."""
    wrong = seqio.lost_steps(image, first=first, blocks=blocks, synced=synced, seed=seed)
    assert not wrong, f"{len(wrong)} of {blocks} blocks lost writes that were synced: " + "; ".join(wrong[:5])


# --- the guest's view


async def filesystem_roundtrip(guest: Guest, device: str = "/dev/vda", *, mebibytes: int = 8) -> str:
    """mkfs, files, unmount, read back from the disk, fsck, all in the guest; the SHA-256 of the file ``data``."""
    lines = (
        await guest.run(
            f"""
            set -e
            mkfs.ext4 -q -F {device}
            mount {device} /mnt
            dd if=/dev/urandom of=/mnt/data bs=64k count={mebibytes * 16} 2>/dev/null
            mkdir /mnt/many
            for i in $(seq 100); do echo "file $i" >/mnt/many/$i; done
            sha256sum </mnt/data
            umount /mnt
            blockdev --flushbufs {device}
            mount -o ro {device} /mnt
            sha256sum </mnt/data
            cat /mnt/many/* | sha256sum
            umount /mnt
            e2fsck -fn {device} >/tmp/fsck 2>&1 || {{ cat /tmp/fsck; exit 9; }}
            """,
            timeout=120,
        )
    ).lines
    written, read, many = (line.split()[0] for line in lines[-3:])
    assert written == read, "the guest reads back something else than it wrote"
    names = sorted(str(number) for number in range(1, 101))
    assert many == hashlib.sha256("".join(f"file {name}\n" for name in names).encode()).hexdigest()
    return written


def host_agrees(image: Path, sha256: str) -> None:
    """The file system of ``filesystem_roundtrip`` is whole on the host too, with the same data in it."""
    host_fsck(image)
    assert hashlib.sha256(host_file(image, "/data")).hexdigest() == sha256, (
        "the image holds other data than the guest wrote"
    )


class Writer:
    """A numbered writer (guestio) in the background of a guest."""

    def __init__(
        self, guest: Guest, device: str, *, first: int, blocks: int, threads: int = 4, every: int = 64, seed: int = 0
    ) -> None:
        self.guest = guest
        self.device = device
        self.first = first
        self.blocks = blocks
        self.threads = threads
        self.every = every
        self.seed = seed

    async def start(self) -> None:
        """Start it; it writes until ``stop``."""
        await self.guest.run(
            f"guestio write {self.device} {self.first} {self.blocks} 0 {self.threads} {self.every} {self.seed} "
            ">/tmp/writer 2>&1 </dev/null & echo $! >/tmp/writer.pid"
        )

    async def synced(self) -> int:
        """Steps known to be on the disk."""
        return seqio.synced(await self.guest.output("tail -n 2 /tmp/writer"))

    async def beyond(self, steps: int, timeout: float = 60) -> int:
        """Wait until more than ``steps`` steps are on the disk; how many."""
        now = 0
        with trio.move_on_after(timeout):
            while (now := await self.synced()) <= steps:
                if await self.guest.output("grep guestio: /tmp/writer || true"):
                    raise GuestError(f"the guest's writer failed: {await self.guest.output('tail -n 5 /tmp/writer')}")
                await trio.sleep(0.1)
            return now
        stuck = await self.guest.output("tail -n 3 /tmp/writer; dmesg | tail -n 5")
        raise GuestError(
            f"the guest's writer stands at step {now}, wanted beyond {steps} within {timeout:g} s\n{stuck}"
        )

    async def stop(self, timeout: float = 60) -> int:
        """Let it end after a last sync, and verify all blocks in the guest; the number of steps."""
        script = """
            kill -TERM $(cat /tmp/writer.pid)
            while kill -0 $(cat /tmp/writer.pid) 2>/dev/null; do sleep 0.1; done
            tail -n 1 /tmp/writer
        """
        last = await self.guest.output(script, timeout=timeout)
        assert last.startswith("done "), f"the guest's writer ended with: {last}"
        steps = int(last.split()[1])
        await self.verify(steps)
        return steps

    async def verify(self, steps: int) -> None:
        """The guest reads every block back and finds its last step below ``steps``."""
        words = f"guestio verify {self.device} {self.first} {self.blocks} {steps} {self.seed}"
        assert "verified" in await self.guest.output(words, timeout=60)


async def wait_size(guest: Guest, device: str, size: int, timeout: float = 60) -> None:
    """Wait until the guest's kernel says that ``device`` (such as vda) has ``size`` bytes."""
    seen = 0
    with trio.move_on_after(timeout):
        while (seen := int(await guest.output(f"cat /sys/block/{device}/size")) * 512) != size:
            await trio.sleep(0.1)
        return
    raise GuestError(f"the guest sees {seen} bytes on {device}, not {size}, {timeout:g} s after the resize")


async def has_feature(guest: Guest, bit: int, device: str = "vda") -> bool:
    """Whether the driver of ``device`` negotiated virtio feature ``bit``."""
    return (await guest.output(f"cat /sys/block/{device}/device/features"))[bit] == "1"
