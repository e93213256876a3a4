"""The host's side of guestio: what a disk image must hold after a guest's numbered writes."""

from __future__ import annotations

import struct
from pathlib import Path

BLOCK = 4096
MAGIC = 0x6F69747365756721
STRIDE = 7919
_MASK = (1 << 64) - 1


def block_of(step: int, blocks: int, seed: int = 0) -> int:
    """The block that ``step`` is written to, from 0 to ``blocks`` - 1."""
    return (step * STRIDE + seed) % blocks


def content(step: int, block: int, seed: int = 0) -> bytes:
    """The 4096 bytes of ``step``."""
    x = (step * 0x9E3779B97F4A7C15 + block + seed * 1000003) & _MASK
    words = []
    for _ in range(BLOCK // 8):
        x = (x * 6364136223846793005 + 1442695040888963407) & _MASK
        words.append(x)
    data = bytearray(struct.pack("<512Q", *words))
    data[:32] = struct.pack("<4Q", MAGIC, step, block, seed)
    return bytes(data)


def lost_steps(image: Path, *, first: int, blocks: int, synced: int, seed: int = 0) -> list[str]:
    """What is wrong with ``image`` after a guest saw ``synced`` steps reach the disk: empty when nothing was lost.

    Each block must hold its last step below ``synced``, or a later one, whole. Later ones may be there or not.
    """
    last: dict[int, int] = {}
    for step in range(synced):
        last[block_of(step, blocks, seed)] = step
    wrong = []
    with image.open("rb") as disk:
        for block, step in sorted(last.items()):
            disk.seek((first + block) * BLOCK)
            data = disk.read(BLOCK)
            magic, found, at, by = struct.unpack("<4Q", data[:32])
            if (magic, at, by) != (MAGIC, block, seed):
                wrong.append(f"block {block}: step {step} was synced, but the block holds none")
            elif found < step or block_of(found, blocks, seed) != block:
                wrong.append(f"block {block}: step {step} was synced, but the block holds step {found}")
            elif data != content(found, block, seed):
                wrong.append(f"block {block}: torn, it begins as step {found}")
    return wrong


def synced(output: str) -> int:
    """The last step that guestio's ``output`` calls synced."""
    steps = [int(line.split()[1]) for line in output.splitlines() if line.startswith("synced ")]
    return steps[-1] if steps else 0
