"""``vhost bench compare``: are new results worse than old ones?"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import click
from rich.console import Console
from rich.table import Table

from vhost.bench.results import Run, cell_of, load

__all__ = ["Comparison", "command", "compare"]

#: figures compared if nothing is asked for
DEFAULT: Final = ("iops", "packets_per_second", "latency.p50_us", "latency.p99_us", "backend_cpu_us")
#: more of these is better; less of all others
MORE_IS_BETTER: Final = frozenset({"iops", "bytes_per_second", "packets_per_second", "batch_mean", "requests"})

Cell = tuple[str, str, tuple[tuple[str, str], ...]]


@dataclass(frozen=True, slots=True)
class Comparison:
    """One figure of one cell.

    Attributes:
        ratio: median of the new runs over median of the old ones.
        worse: by how much it is worse, 0.1 for 10 %; negative: better.
        beyond_spread: no new run is within what the old ones spread over. True also where there is one run of each:
            nothing is known of the spread then.
    """

    cell: Cell
    metric: str
    old: tuple[float, ...]
    new: tuple[float, ...]
    ratio: float
    worse: float
    beyond_spread: bool


def compare(old: Iterable[Run], new: Iterable[Run], metrics: Sequence[str] = DEFAULT) -> list[Comparison]:
    """Every figure that both have, cell by cell in the old one's order."""
    before, after = _by_cell(old), _by_cell(new)
    found = []
    for cell, runs in before.items():
        for metric in metrics:
            olds = _values(runs, metric)
            news = _values(after.get(cell, ()), metric)
            if olds and news and statistics.median(olds) > 0:
                found.append(_compared(cell, metric, olds, news))
    return found


def _compared(cell: Cell, metric: str, old: tuple[float, ...], new: tuple[float, ...]) -> Comparison:
    ratio = statistics.median(new) / statistics.median(old)
    if metric in MORE_IS_BETTER:
        return Comparison(cell, metric, old, new, ratio, 1 - ratio, max(new) < min(old))
    return Comparison(cell, metric, old, new, ratio, ratio - 1, min(new) > max(old))


def _by_cell(runs: Iterable[Run]) -> dict[Cell, list[Run]]:
    found: dict[Cell, list[Run]] = {}
    for run in runs:
        found.setdefault(cell_of(run), []).append(run)
    return found


def _values(runs: Iterable[Run], metric: str) -> tuple[float, ...]:
    return tuple(run.values[metric] for run in runs if metric in run.values)


def differing(cells: Iterable[Cell]) -> dict[Cell, str]:
    """Short names: only what tells these cells apart."""
    cells = list(dict.fromkeys(cells))
    seen: dict[str, set[str]] = {}
    for _, _, options in cells:
        for key, value in options:
            seen.setdefault(key, set()).add(value)
    names = {}
    for cell in cells:
        device, backend, options = cell
        varying = [f"{key} {value}" for key, value in options if len(seen[key]) > 1]
        names[cell] = ", ".join([f"{device} {backend}", *varying])
    return names


def _spread(values: Sequence[float]) -> str:
    middle = (
        f"{statistics.median(values):,.4g}" if statistics.median(values) < 1e4 else f"{statistics.median(values):,.0f}"
    )
    if len(values) == 1:
        return middle
    return f"{middle} ±{(max(values) - min(values)) / 2 / statistics.median(values):.0%}" if any(values) else middle


def table_of(found: Sequence[Comparison], threshold: float, title: str) -> Table:
    """A line per figure; regressions in red, gains in green."""
    table = Table(title=title)
    for name in ("cell", "figure"):
        table.add_column(name)
    for name in ("old", "new", "ratio"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("")
    names = differing(each.cell for each in found)
    previous: Cell | None = None
    for each in found:
        if each.cell != previous and previous is not None:
            table.add_section()
        word, style = _verdict(each, threshold)
        first = names[each.cell] if each.cell != previous else ""
        table.add_row(first, each.metric, _spread(each.old), _spread(each.new), f"{each.ratio:.2f}", word, style=style)
        previous = each.cell
    return table


def _verdict(each: Comparison, threshold: float) -> tuple[str, str]:
    if each.worse > threshold:
        return ("worse", "red") if each.beyond_spread else ("worse, within the spread", "yellow")
    if each.worse < -threshold:
        return "better", "green"
    return "", ""


def _machines(old: Sequence[Run], new: Sequence[Run]) -> str | None:
    """A sentence if they were not measured on the same kind of machine."""

    def kinds(runs: Iterable[Run]) -> set[tuple[str, str]]:
        return {(str(run.machine.get("cpu", "")), str(run.machine.get("cpus", ""))) for run in runs}

    if kinds(old) == kinds(new):
        return None
    return f"measured on different machines: {_words(kinds(old))}; and {_words(kinds(new))}"


def _words(kinds: Iterable[tuple[str, str]]) -> str:
    return " and ".join(f"{cpu or 'unknown'} ({cpus} processors)" for cpu, cpus in sorted(kinds))


@click.command("compare")
@click.argument("old", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("new", type=click.Path(exists=True, dir_okay=False, path_type=Path), nargs=-1, required=True)
@click.option(
    "--metric", "metrics", multiple=True, help=f"Figure to compare, may be repeated.  [default: {', '.join(DEFAULT)}]"
)
@click.option(
    "--threshold", type=click.FloatRange(0), default=10, show_default=True, help="Percent that count as worse."
)
def command(old: Path, new: tuple[Path, ...], metrics: tuple[str, ...], threshold: float) -> None:
    """Compare results of earlier with newer ones, CSV or JSON.

    Exit status 1 if a figure is worse by more than the threshold and no new run is within the old ones' spread.
    """
    console = Console()
    console.width = max(console.width, 112)
    before = load(old)
    regressions = 0
    compared = 0
    for path in new:
        after = load(path)
        if warning := _machines(before, after):
            console.print(f"{warning}. Ratios of different machines say little.", style="yellow", soft_wrap=True)
        found = compare(before, after, metrics or DEFAULT)
        compared += len(found)
        regressions += sum(each.beyond_spread and each.worse > threshold / 100 for each in found)
        console.print(table_of(found, threshold / 100, f"{path.name} against {old.name}"))
        _say_missing(console, before, after)
    if not compared:
        raise click.ClickException(
            f"nothing in {old} has its like in {', '.join(map(str, new))}: {_why_nothing(metrics)}"
        )
    if regressions:
        console.print(
            f"{regressions} {'figure is' if regressions == 1 else 'figures are'} worse by more than {threshold:g} %"
        )
        sys.exit(1)


def _why_nothing(metrics: Sequence[str]) -> str:
    if metrics:
        return f"do they hold {', '.join(metrics)}?"
    return "compare runs of the same load and back-end name"


def _say_missing(console: Console, before: Sequence[Run], after: Sequence[Run]) -> None:
    olds: Mapping[Cell, object] = _by_cell(before)
    news: Mapping[Cell, object] = _by_cell(after)
    for cells, where in ((olds.keys() - news.keys(), "old"), (news.keys() - olds.keys(), "new")):
        if cells:
            console.print(f"only in the {where} results: {len(cells)} cells", style="dim")
