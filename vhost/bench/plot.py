"""``vhost bench plot``: throughput over depth or rate, and latency over throughput."""

from __future__ import annotations

import importlib
import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import click

from vhost.bench.results import ResultError, Run, cell_of, load

__all__ = ["Series", "command", "draw", "series_of"]

#: options that make an axis, the likeliest first, and what they are called there
AXES: Final = {
    "depth": "requests in flight per queue",
    "rate": "requests/s asked for",
    "block_bytes": "bytes per request",
    "frame": "bytes per frame",
    "queues": "queues",
    "threads": "front-end threads",
}
LEGEND_COLUMNS: Final = 2
#: names a load for people; what it is made of stands in other options
LABEL: Final = "load"
#: figures that are a throughput, and what is counted
RATES: Final = {"iops": "requests/s", "packets_per_second": "packets/s", "frames_per_second": "frames/s"}


@dataclass(frozen=True, slots=True)
class Series:
    """A line of the plot: where it is on the axis, and medians of the runs there."""

    name: str
    x: tuple[float, ...]
    rate: tuple[float, ...]
    p50_us: tuple[float, ...]
    p99_us: tuple[float, ...]


def comparable(runs: Iterable[Run], device: str | None = None) -> tuple[list[Run], str]:
    """Those of one device that have a throughput, and what that is called; idle back-ends have none.

    Raises: ResultError: none is left, or they are of several devices.
    """
    runs = [run for run in runs if device in (None, run.device)]
    found = {name: [run for run in runs if name in run.values] for name in RATES}
    devices = sorted({run.device for those in found.values() for run in those})
    if len(devices) > 1:
        raise ResultError(f"these results are of {' and '.join(devices)}; choose one with --device")
    for name, those in found.items():
        if those:
            return those, name
    raise ResultError(f"none of these results {f'of {device} ' if device else ''}has a throughput")


def axis_of(runs: Iterable[Run], asked: str | None = None) -> str:
    """The option that differs among `runs`.

    Raises: ResultError: none does, or not all have the one asked for.
    """
    runs = list(runs)
    if asked is not None:
        if any(asked not in run.options for run in runs):
            raise ResultError(f"not all of these results have the option {asked}")
        return asked
    for name in AXES:
        if len({str(run.options.get(name)) for run in runs}) > 1:
            return name
    raise ResultError(f"these results are all of one load; a curve needs some that differ in {', '.join(AXES)}")


def series_of(runs: Iterable[Run], axis: str, rate: str = "iops") -> list[Series]:
    """Lines of runs that differ only in `axis`, named by what tells the lines apart."""
    lines: dict[tuple[Any, ...], dict[float, list[Run]]] = {}
    for run in runs:
        device, backend, options = cell_of(run)
        rest = tuple(option for option in options if option[0] not in (axis, LABEL))
        lines.setdefault((device, backend, rest), {}).setdefault(float(run.options[axis]), []).append(run)
    varying = _varying([rest for _, _, rest in lines])
    backends = {backend for _, backend, _ in lines}
    found = []
    for (device, backend, rest), points in lines.items():
        words = [backend] if len(backends) > 1 or not varying else []
        words += [f"{key} {value}" for key, value in rest if key in varying]
        places = sorted(points)
        figures = [
            tuple(_median(points[place], metric) for place in places)
            for metric in (rate, "latency.p50_us", "latency.p99_us")
        ]
        found.append(Series(", ".join(words) or device, tuple(places), *figures))
    return found


def _varying(options: Sequence[tuple[tuple[str, str], ...]]) -> set[str]:
    seen: dict[str, set[str]] = {}
    for each in options:
        for key, value in each:
            seen.setdefault(key, set()).add(value)
    return {key for key, values in seen.items() if len(values) > 1}


def _median(runs: Sequence[Run], metric: str) -> float:
    """Not a number where no run has it: nothing is drawn there."""
    values = [run.values[metric] for run in runs if metric in run.values]
    return statistics.median(values) if values else math.nan


def draw(series: Sequence[Series], axis: str, title: str, out: Path, rate: str = "iops") -> None:
    """Two panels into `out`: throughput over `axis`, latency over throughput.

    Raises: ResultError: matplotlib is missing, or cannot write such a file.
    """
    try:
        figure_module = importlib.import_module("matplotlib.figure")
    except ImportError:
        raise ResultError("plots need matplotlib: pip install 'vhostkit[plot]'") from None
    rows = -(-len(series) // LEGEND_COLUMNS)
    figure = figure_module.Figure(figsize=(11, 4.5 + 0.2 * rows), layout="constrained")
    left, right = figure.subplots(1, 2)
    for number, line in enumerate(series):
        colour = f"C{number % 10}"
        thousands = [value / 1e3 for value in line.rate]
        left.plot(line.x, thousands, marker="o", color=colour, label=line.name)
        right.plot(thousands, line.p50_us, marker="o", color=colour)
        right.plot(thousands, line.p99_us, marker=".", linestyle="--", color=colour)
    left.set_xlabel(AXES.get(axis, axis))
    left.set_ylabel(f"thousand {RATES.get(rate, rate)}")
    right.set_xlabel(f"thousand {RATES.get(rate, rate)}")
    right.set_ylabel("latency, µs: p50 solid, p99 dashed")
    right.set_yscale("log")
    if _spans(line.x for line in series):
        left.set_xscale("log", base=2)
        places = sorted({place for line in series for place in line.x})
        left.set_xticks(places, [f"{place:,g}" for place in places])
    for axes in (left, right):
        axes.grid(visible=True, alpha=0.3)
    left.set_ylim(bottom=0)
    figure.legend(loc="outside lower center", ncols=LEGEND_COLUMNS, fontsize="small")
    figure.suptitle(title)
    try:
        figure.savefig(out)
    except (OSError, ValueError) as error:
        raise ResultError(f"cannot write {out}: {error}") from error


def _spans(places: Iterable[tuple[float, ...]]) -> bool:
    """Whether they reach so far that only powers fit."""
    values = [value for each in places for value in each]
    return min(values) > 0 and max(values) / min(values) >= 8


@click.command("plot")
@click.argument("files", type=click.Path(exists=True, dir_okay=False, path_type=Path), nargs=-1, required=True)
@click.option(
    "-o", "--output", "out", type=click.Path(dir_okay=False, path_type=Path), required=True, help="PNG, SVG or PDF."
)
@click.option("--x", "axis", type=click.Choice(tuple(AXES)), help="The axis; if not given the first that differs.")
@click.option("--device", help="Results of this device only, as blk or net.")
@click.option("--title", help="Above the panels; if not given what all results have in common.")
def command(files: tuple[Path, ...], out: Path, axis: str | None, device: str | None, title: str | None) -> None:
    """Plot results (JSON or CSV) of several loads: throughput, and the latency it comes at."""
    if out.suffix not in (".png", ".svg", ".pdf"):
        raise click.UsageError(f"{out.name}: the name must end in .png, .svg or .pdf")
    everything = [run for path in files for run in load(path)]
    runs, rate = comparable(everything, device)
    axis = axis_of(runs, axis)
    draw(series_of(runs, axis, rate), axis, title or _title(runs), out, rate)
    left_out = len(everything) - len(runs)
    click.echo(f"{out}: {len(runs)} results" + (f"; {left_out} left out" if left_out else ""))


def _title(runs: Sequence[Run]) -> str:
    first = runs[0]
    words = [first.device]
    for key in ("rw", "block_bytes"):
        values = {str(run.options.get(key)) for run in runs}
        if len(values) == 1 and key in first.options:
            words.append(f"{first.options[key]} B" if key == "block_bytes" else str(first.options[key]))
    words.append(str(first.machine.get("cpu", "")))
    return ", ".join(filter(None, words))
