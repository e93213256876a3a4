"""Targets: what ours is to reach, as a ratio to something measured beside it, or as a plain figure."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import dataclass, replace

from bench import fs_peers, fs_scale, fs_suite, gpu_suite, net_peers
from bench.cost import MANY
from bench.peers import SPDK, STORAGE_DAEMON, ours_name
from bench.rounds import Cell, spread

FIO = "fio io_uring, native"
ANY_DEPTH: tuple[int, ...] = ()


@dataclass(frozen=True)
class Bar:
    """One target.

    Attributes:
        section, front_end, depths: the cells it is about; empty: all.
        mine: names of contenders it is about.
        than: name of the contender it is measured by; {layout}: that of `mine`; empty: the figure itself counts.
        limit: of the figure or ratio.
        most: the limit is the most it may be, else the least.
        or_than, or_limit: another measure and its limit, either of which will do.
        label: beginning of the cells' labels.
    """

    section: str
    mine: tuple[str, ...]
    than: str
    limit: float
    front_end: str = ""
    depths: tuple[int, ...] = ANY_DEPTH
    figure: str = "iops"
    most: bool = False
    or_than: str = ""
    or_limit: float = 0
    label: str = ""

    def of(self, cell: Cell) -> bool:
        """Whether it is about `cell`."""
        return (
            self.section == cell.section
            and cell.label.startswith(self.label)
            and self.front_end in ("", cell.front_end)
            and (not self.depths or cell.depth in self.depths)
        )


POLLING = (ours_name(polling=True), ours_name(packed=True, polling=True))
DEFAULT = (ours_name(), ours_name(packed=True))
NET = (net_peers.ours_name(), net_peers.ours_name(packed=True))
NET_ASLEEP = (net_peers.ours_name(polling=False), net_peers.ours_name(packed=True, polling=False))
FS = (fs_peers.ours_name(), fs_peers.ours_name(packed=True))
FS_CREATE = (*FS, fs_peers.ours_name(more=fs_suite.LOCAL_LOCKS))
FS_ASLEEP = (fs_peers.ours_name(polling=False), fs_peers.ours_name(packed=True, polling=False))
GPU = (gpu_suite.ours_name(), gpu_suite.ours_name(packed=True))
NEAR_NATIVE = 0.85

BARS = (
    Bar("null", POLLING, STORAGE_DAEMON, 8, "polling", (1,)),
    Bar("null", POLLING, STORAGE_DAEMON, 6, "polling", (32,)),
    Bar("null", POLLING, STORAGE_DAEMON, 7, "polling", (128,)),
    Bar("null", POLLING, f"{SPDK}, null, {{layout}}", 1, "polling"),
    Bar("null", DEFAULT, STORAGE_DAEMON, 1.5, "sleeping"),
    Bar("null", DEFAULT, STORAGE_DAEMON, 1, "sleeping", figure="calls", most=True),
    Bar("null", DEFAULT, STORAGE_DAEMON, 1, "sleeping", figure="backend_cpu_us", most=True),
    Bar("memory", POLLING, f"{SPDK}, malloc, {{layout}}", 1, "polling"),
    Bar("file", POLLING, STORAGE_DAEMON, 1.5, "polling"),
    Bar("file", DEFAULT, STORAGE_DAEMON, 1.5, "sleeping"),
    Bar("file", POLLING, FIO, 0.95, "polling", (32,)),
    Bar("tmpfs", POLLING, STORAGE_DAEMON, 2.5, "polling", (32,)),
    Bar("tmpfs", POLLING, FIO, 0.85, "polling", (32,)),
    *(
        Bar("cost", tuple(ours_name(more=words) for words in many), ours_name(more=one), 0.9, figure="per_cpu_second")
        for one, many in MANY.items()
    ),
    Bar("idle", DEFAULT, "", 0.1, figure="backend_cpu_percent", most=True),
    Bar("rate", DEFAULT[:1], POLLING[0], 0.5, figure="backend_cpu_percent", most=True),
    Bar("rate", DEFAULT[:1], POLLING[0], 1.2, figure="latency.p50_us", most=True),
    *(
        Bar(section, NET, f"{net_peers.TESTPMD} net_vhost, {{layout}}", limit, figure="packets_per_second")
        for section, limit in (("net-tx", 1), ("net-rx", 1), ("net-echo", 1), ("net-foreign", 1), ("net-switch", 1.5))
    ),
    Bar("net-idle", NET_ASLEEP, "", 0.1, figure="backend_cpu_percent", most=True),
    Bar("net-rate", (net_peers.ours_name(polling=False),), NET[0], 1.1, figure="latency.p50_us", most=True),
    *(
        Bar(section, mine, fs_peers.RUST, limit, "polling", (), figure, False, fs_peers.NATIVE, NEAR_NATIVE, op)
        for section, op, mine, limit, figure in (
            ("fs-meta", "getattr", FS, 1.5, "iops"),
            ("fs-meta", "lookup", FS, 2, "iops"),
            ("fs-data", "read", FS, 1.5, "iops"),
            ("fs-data", "write", FS, 3, "iops"),
            ("fs-names", "list", FS, 3, "entries_per_second"),
            ("fs-names", "create", FS_CREATE, 3, "iops"),
        )
    ),
    Bar("fs-big", FS, fs_peers.NATIVE, 0.95, "polling"),
    *(
        Bar("fs-sleep", FS_ASLEEP, fs_peers.RUST, limit, "", (), "iops", False, fs_peers.NATIVE, NEAR_NATIVE, op)
        for op, limit in (("getattr", 1.5), ("lookup", 2), ("read", 1.5), ("write", 3))
    ),
    Bar("fs-scale", (fs_scale.MANY,), fs_scale.ONE, 1.6, label="read 1 MiB"),
    *(
        Bar("fs-scale", (fs_scale.MANY,), fs_scale.ONE, 0.8, figure="per_cpu_second", label=op)
        for op in ("getattr", "read 4 KiB")
    ),
    Bar("gpu-display", GPU, gpu_suite.CONTRIB, 1.5, figure=gpu_suite.FIGURE),
    Bar("gpu-alone", GPU, gpu_suite.MEMCPY, 0.8, figure=gpu_suite.FIGURE, label="all"),
    Bar("gpu-3d", GPU, gpu_suite.CONTRIB, 1.0, figure=gpu_suite.FIGURE),
    Bar("python", ("examples/echo.py",), "", 200_000),
)


@dataclass(frozen=True)
class Verdict:
    """A target and what was measured."""

    cell: Cell
    mine: str
    bar: Bar
    words: str
    measured: str
    missed: float
    """By how much, 0.1 for 10 %; 0 or less: met."""

    def __str__(self) -> str:
        return f"missed by {max(self.missed, 0.01):.0%}" if self.missed > 0 else "met"


def verdicts(cell: Cell) -> Iterator[Verdict]:
    """Of all targets of `cell` that what was measured can tell."""
    for bar in BARS:
        if not bar.of(cell):
            continue
        for mine in bar.mine:
            than = bar.than.replace("{layout}", "packed" if ", packed" in mine else "split")
            values = cell.ratios(mine, than, bar.figure) if than else cell.values(mine, bar.figure)
            either = cell.ratios(mine, bar.or_than, bar.figure) if bar.or_than else []
            found = [_verdict(cell, bar, mine, than, values)] if values else []
            if either:
                other = replace(bar, limit=bar.or_limit)
                found.append(_verdict(cell, other, mine, bar.or_than, either))
            if found:
                yield min(found, key=lambda verdict: verdict.missed)


def _verdict(cell: Cell, bar: Bar, mine: str, than: str, values: list[float]) -> Verdict:
    middle = statistics.median(values)
    over = middle - bar.limit if bar.most else bar.limit - middle
    missed = over / bar.limit
    figure = "" if bar.figure == "iops" else f"{FIGURES.get(bar.figure, bar.figure)}: "
    words = f"{figure}{'at most' if bar.most else 'at least'} {bar.limit:,g}{f' x {than}' if than else ''}"
    return Verdict(cell, mine, bar, words, spread(values, "{:,.0f}" if middle >= 1000 else "{:,.2f}"), missed)


FIGURES = {
    "calls": "notifications",
    "backend_cpu_us": "CPU",
    "backend_cpu_percent": "CPU %",
    "latency.p50_us": "p50",
    "per_cpu_second": "req/CPU s",
    "packets_per_second": "packets/s",
    "entries_per_second": "entries/s",
    "frames_per_second": "frames/s",
}
