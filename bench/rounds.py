"""Cells, their rounds in turns, and what the rounds say: medians and ratios of neighbouring runs."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bench.contend import Contender, Figures, Load
from bench.stage import Stage


@dataclass
class Cell:
    """One load, and every round's figures per contender.

    Attributes:
        section: null, memory, ...; what a selection on the command line names.
        label: the load, for tables.
        workload: what all are driven with; layout, processor and what a contender has of its own are filled in.
        contenders: in the order of their turns.
        base: name of the one that the others are compared with.
        together: front-end and back-end on one processor.
        figure: what is compared.
        device: type of the load, as results name it.
    """

    section: str
    label: str
    workload: Load
    contenders: Sequence[Contender]
    base: str = ""
    together: bool = False
    figure: str = "iops"
    device: str = "blk"
    results: dict[str, list[Figures]] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        return [contender.name for contender in self.contenders]

    @property
    def front_end(self) -> str:
        return "polling" if self.workload.poll else "sleeping"

    @property
    def depth(self) -> int | None:
        """What is in flight per queue; None: the load has no such figure."""
        return getattr(self.workload, "depth", None)

    def values(self, name: str, figure: str) -> list[float]:
        """A figure of each round, `latency.p50_us` for one of a nested part; empty: this contender has none."""
        found = [_value(figures, figure) for figures in self.results.get(name, ())]
        return [value for value in found if value is not None]

    def ratios(self, name: str, base: str, figure: str = "iops") -> list[float]:
        """Of each round, with the one of `base` measured beside it; empty: one of them has no such figure."""
        mine, theirs = self.values(name, figure), self.values(base, figure)
        return [a / b for a, b in zip(mine, theirs, strict=False) if b]


def _value(figures: Figures, figure: str) -> float | None:
    found: Any = figures
    for part in figure.split("."):
        found = found.get(part) if isinstance(found, dict) else None
    return found if isinstance(found, int | float) else None


def ratios(results: Mapping[str, Sequence[object]], name: str, base: str, figure: str) -> list[float]:
    """As `Cell.ratios`, of rounds that are objects, which all have the figure."""
    return [getattr(a, figure) / getattr(b, figure) for a, b in zip(results[name], results[base], strict=True)]


def spread(values: Sequence[float], form: str = "{:,.2f}") -> str:
    """Median, least and most."""
    if not values:
        return ""
    middle, least, most = (form.format(value) for value in (statistics.median(values), min(values), max(values)))
    return middle if len(values) == 1 else f"{middle} ({least}-{most})"


def run(stage: Stage, cells: Iterable[Cell], rounds: int, advance: Callable[[], None]) -> None:
    """Fill `cells`: all contenders of a cell in turns, so that what disturbs the machine disturbs all of them."""
    for cell in cells:
        for _ in range(rounds):
            for contender in cell.contenders:
                figures = contender.run(stage, cell.workload, together=cell.together)
                cell.results.setdefault(contender.name, []).append(figures)
                advance()
