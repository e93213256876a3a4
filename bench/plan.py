"""What a run of the suite is asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

from bench.rounds import Cell
from devices.blk.load import Workload


@dataclass(frozen=True)
class Plan:
    """What the command line asks for.

    Attributes:
        runtime, warmup: seconds per run.
        depths: requests in flight.
        wanted: parts of names; only contenders with one of them take part; empty: all.
        say: prints a line.
    """

    runtime: float
    warmup: float
    depths: tuple[int, ...]
    wanted: tuple[str, ...]
    say: Callable[[str], None]

    def chosen(self, cells: Iterable[Cell]) -> list[Cell]:
        """Only those contenders that take part; where the base does not, the first is it."""
        found = []
        for cell in cells:
            cell.contenders = [
                each for each in cell.contenders if not self.wanted or any(part in each.name for part in self.wanted)
            ]
            if cell.base and cell.base not in cell.names:
                cell.base = cell.names[0] if cell.names else ""
            if cell.contenders:
                found.append(cell)
        return found

    def workload(self, depth: int, **more: Any) -> Workload:
        """4 KiB random reads."""
        return replace(Workload(depth=depth, runtime=self.runtime, warmup=self.warmup), **more)
