"""Sections fs-*: FUSE requests a second through ours and virtiofsd, beside the same system calls without a back-end."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.contend import Contender
from bench.fs_peers import FOLDER, SIZE, FsBackend, Native, missing, ours, shared, virtiofsd
from bench.peers import MIB
from bench.plan import Plan
from bench.rounds import Cell
from bench.stage import Stage
from devices.fs.load import Workload

DEPTHS = (1, 16)
PAGE = 4096
LOCAL_LOCKS = "own locks"
#: operations and their blocks
SECTIONS: dict[str, tuple[str, tuple[tuple[str, int], ...]]] = {
    "fs-meta": ("attributes and names", (("getattr", PAGE), ("lookup", PAGE))),
    "fs-data": ("4 KiB at random", (("read", PAGE), ("write", PAGE))),
    "fs-big": ("1 MiB at random, a descriptor per page and in one piece", (("read", MIB), ("write", MIB))),
    "fs-names": ("a listing of 10,000 files, and the life of a new file of 4 KiB", (("list", PAGE), ("create", PAGE))),
    "fs-sleep": (
        "front-end and back-end asleep in turns on one processor",
        (("getattr", PAGE), ("lookup", PAGE), ("read", PAGE), ("write", PAGE)),
    ),
}


def workload_of(plan: Plan, op: str, block: int, **more: Any) -> Workload:
    """`op` with blocks of so many bytes, in the folder that `shared` makes."""
    return Workload(
        op=op, block_bytes=block, size=SIZE, folder=FOLDER, runtime=plan.runtime, warmup=plan.warmup, **more
    )


def label(workload: Workload) -> str:
    """As tables have it."""
    size = {PAGE: "4 KiB", MIB: "1 MiB"}[workload.block_bytes]
    what = f"{workload.op} {size}" if workload.op in ("read", "write") else workload.op
    pages = " by pages" if workload.piece_bytes else ""
    return f"{what}{pages}, {'' if workload.poll else 'sleeping, '}{workload.depth}"


def _cell(plan: Plan, section: str, workload: Workload, share: Path) -> list[Cell]:
    together = not workload.poll
    mine = [ours(share, packed=packed, polling=not together) for packed in (False, True)]
    if workload.op == "create":  # as virtiofsd: locks are the guest's own affair, so a close has nothing to say
        mine.append(ours(share, polling=not together, options=("--no-posix-lock",), more=LOCAL_LOCKS))
    peers = [*mine, *virtiofsd(share)]
    those: list[Contender] = [*map(FsBackend, peers), Native(share)]
    base = peers[-1].name
    figure = "entries_per_second" if workload.op == "list" else "iops"
    cell = Cell(section, label(workload), workload, those, base, together, figure, "fs")
    return plan.chosen([cell])


def _cells(plan: Plan, section: str, share: Path) -> list[Cell]:
    found = []
    depths = plan.depths if len(plan.depths) < 3 else DEPTHS
    poll = section != "fs-sleep"
    for op, block in SECTIONS[section][1]:
        for depth in depths if block == PAGE else (4,):
            for piece in (PAGE, 0) if block == MIB else (0,):
                found += _cell(
                    plan, section, workload_of(plan, op, block, depth=depth, piece_bytes=piece, poll=poll), share
                )
    return found


def place() -> Path:
    """Where the shared folder is: a tmpfs where there is one, or disks would be measured."""
    memory = Path("/dev/shm")
    return memory if memory.is_dir() else Path(tempfile.gettempdir())


@contextmanager
def opened(section: str, _stage: Stage, plan: Plan) -> Iterator[tuple[str, list[Cell]]]:
    """Title and cells; the folder is there until the end."""
    for name, where in missing():
        plan.say(f"not compared: {name} ({where})")
    with shared(place()) as share:
        yield SECTIONS[section][0], _cells(plan, section, share)
