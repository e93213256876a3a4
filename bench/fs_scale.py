"""Section fs-scale: four queues on two workers beside one queue on one, both ends free to use both processors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bench.contend import Contender, Figures
from bench.fs_peers import FsBackend, Native, ours, ours_name, shared
from bench.fs_suite import PAGE, label, place, workload_of
from bench.peers import MIB
from bench.plan import Plan
from bench.rounds import Cell
from bench.stage import Live, Stage
from devices.fs.load import Workload

QUEUES, WORKERS = 4, 2
ONE = ours_name(polling=False, more="1 queue, 1 worker")
MANY = ours_name(polling=False, more=f"{QUEUES} queues, {WORKERS} workers")
#: in flight per queue
LOADS = (("getattr", PAGE, 16), ("read", PAGE, 16), ("read", MIB, 2))


@dataclass(frozen=True)
class Free(FsBackend):
    """Neither end is kept to a processor."""

    def _own(self, workload: Any, stage: Stage) -> Any:
        return replace(super()._own(workload, stage), cpus=())

    def look(self, stage: Stage, live: Live, workload: Any, *, together: bool) -> Figures:
        live.pin(stage.places.front, stage.places.back)
        return super().look(stage, live, workload, together=together)


def contenders(share: Path) -> Iterator[Contender]:
    """Ours; then the host's calls by one process and by two."""
    for name, queues, workers in ((ONE, 1, 1), (MANY, QUEUES, WORKERS)):
        peer = ours(share, polling=False, options=("--workers", str(workers)), more=name.split(", ", 2)[2])
        yield Free(peer, more=(("queues", queues),))
    for processes in (1, WORKERS):
        yield Native(share, processes=processes)


def cells_of(plan: Plan, share: Path) -> list[Cell]:
    """Of small requests the cost is compared: the front-end takes as much of the processors as the back-end."""

    def cell(workload: Workload) -> Cell:
        figure = "iops" if workload.block_bytes == MIB else "per_cpu_second"
        those = list(contenders(share))
        return Cell("fs-scale", label(workload), workload, those, ONE, False, figure, "fs")

    loads = (workload_of(plan, op, block, depth=depth, poll=False) for op, block, depth in LOADS)
    return plan.chosen(map(cell, loads))


@contextmanager
def opened(_section: str, _stage: Stage, plan: Plan) -> Iterator[tuple[str, list[Cell]]]:
    """Title and cells; the folder is there until the end."""
    with shared(place()) as share:
        yield "queues and workers; ratio of requests per CPU second, of 1 MiB of requests", cells_of(plan, share)
