"""Section cost: what a request costs the back-end with several queues, many disks, many memory regions."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from bench.contend import Backend
from bench.peers import NULL_BYTES, Store, ours, ours_many
from bench.plan import Plan
from bench.rounds import Cell
from bench.stage import Stage
from vhost.constants import MAX_MEM_SLOTS

DEPTH = 32
QUEUES, WORKERS = 4, 2
DISKS = 64
#: as many as ours takes: 512 less what QEMU keeps
REGIONS = MAX_MEM_SLOTS

ONE_QUEUE, ONE_DISK, ONE_REGION = "1 queue", "1 disk", "1 region"
MANY = {
    ONE_QUEUE: (f"{QUEUES} queues, {WORKERS} workers",),
    ONE_DISK: (f"{DISKS} disks, load on one", f"{DISKS} disks, load on all"),
    ONE_REGION: (f"{REGIONS} regions",),
}


def cells_of(plan: Plan) -> list[Cell]:
    """Sleeping front-end and back-end on one processor: then the back-end's CPU time is work, not waiting."""
    null = Store("null", NULL_BYTES)
    one, load_on_one, load_on_all = ONE_DISK, *MANY[ONE_DISK]
    options = ("--num-queues", str(QUEUES), "--workers", str(WORKERS))
    contenders = {
        ONE_QUEUE: (
            Backend(ours(null, more=ONE_QUEUE)),
            Backend(ours(null, options=options, more=MANY[ONE_QUEUE][0]), more=(("queues", QUEUES),)),
        ),
        ONE_DISK: (
            Backend(ours_many(null, 1, 1, one)),
            Backend(ours_many(null, DISKS, 1, load_on_one)),
            Backend(ours_many(null, DISKS, DISKS, load_on_all)),
        ),
        ONE_REGION: (
            Backend(ours(null, more=ONE_REGION)),
            Backend(ours(null, more=MANY[ONE_REGION][0]), more=(("regions", REGIONS),)),
        ),
    }
    return plan.chosen(
        Cell(
            "cost", f"sleeping, {depth}", plan.workload(depth, poll=False, size=NULL_BYTES), those,
            those[0].name, together=True, figure="per_cpu_second",
        )
        for those in contenders.values()
        # as many blocks in flight as reach many regions
        for depth in (DEPTH * 4 if those[0].name.endswith(ONE_REGION) else DEPTH,)
    )  # fmt: skip


@contextmanager
def opened(_section: str, _stage: Stage, plan: Plan) -> Iterator[tuple[str, list[Cell]]]:
    """Title and cells."""
    yield "null store, 4 KiB random read, depth per queue; ratio of requests per CPU second", cells_of(plan)
