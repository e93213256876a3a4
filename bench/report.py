"""Tables of cells and targets, and the files that `vhost bench compare` and `plot` read."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.bars import Verdict, verdicts
from bench.contend import SHARE
from bench.rounds import Cell, spread
from vhost.bench import Run, append_csv

#: figure, its column, how it is written, what it is divided by
COLUMNS = (
    ("iops", "k req/s", "{:,.0f}", 1e3),
    ("entries_per_second", "k entries/s", "{:,.0f}", 1e3),
    ("packets_per_second", "Mpps", "{:,.2f}", 1e6),
    ("bits_per_second", "Gbit/s", "{:,.1f}", 1e9),
    ("frames_per_second", "frames/s", "{:,.0f}", 1),
    ("updates_per_second", "shown/s", "{:,.0f}", 1),
    ("latency.p50_us", "p50 µs", "{:,.2f}", 1),
    ("busy_us", "p50/depth", "{:,.2f}", 1),
    ("backend_cpu_us", "CPU µs", "{:.3f}", 1),
    ("backend_cpu_percent", "CPU %", "{:.0f}", 1),
    ("per_cpu_second", "k req/CPU s", "{:,.0f}", 1e3),
    ("kicks", "kicks", "{:.3f}", 1),
    ("calls", "calls", "{:.3f}", 1),
)
#: left out where cost per request is compared, and shown only there
NOT_OF_COST = ("latency.p50_us", "backend_cpu_percent")
ONLY_OF_COST = ("per_cpu_second",)


def table_of(cells: Sequence[Cell], title: str) -> Table:
    """A line per contender and cell. CPU, kicks and calls are the back-end's, per request."""
    table = Table(title=title)
    for name in ("load", "what"):
        table.add_column(name, no_wrap=True)
    columns = [column for column in COLUMNS if _wanted(column[0], cells)]
    for _, name, _, _ in columns:
        table.add_column(name, justify="right", no_wrap=True)
    compared = any(cell.base for cell in cells)
    if compared:
        table.add_column("ratio", justify="right", no_wrap=True)
    for cell in cells:
        for name in cell.names:
            table.add_row(
                cell.label if name == cell.names[0] else "",
                name,
                *_columns(cell, name, columns),
                *([_ratio(cell, name)] if compared else ()),
            )
        table.add_section()
    return table


def _wanted(figure: str, cells: Sequence[Cell]) -> bool:
    if figure in (NOT_OF_COST if cells[0].figure == "per_cpu_second" else ONLY_OF_COST):
        return False
    return any(cell.values(name, figure) for cell in cells for name in cell.names)


def _columns(cell: Cell, name: str, columns: Iterable[tuple[str, str, str, float]]) -> Iterator[str]:
    for figure, _, form, unit in columns:
        values = [value / unit for value in cell.values(name, figure)]
        words = spread(values, "{:,.1f}" if figure == "iops" and values and max(values) < 100 else form)
        yield words if figure == cell.figure else words.partition(" ")[0]


def _ratio(cell: Cell, name: str) -> str:
    if not cell.base:
        return ""
    return "1" if name == cell.base else spread(cell.ratios(name, cell.base, cell.figure))


def table_of_targets(found: Iterable[Verdict]) -> Table:
    """A line per target: met, or by how much it is missed."""
    table = Table(title="targets", show_edge=False)
    for name in ("load", "what", "target"):
        table.add_column(name, no_wrap=True)
    table.add_column("measured", justify="right", no_wrap=True)
    table.add_column("")
    for verdict in found:
        style = "red" if verdict.missed > 0 else "green"
        table.add_row(verdict.cell.label, verdict.mine, verdict.words, verdict.measured, str(verdict), style=style)
    return table


def show(cells: Sequence[Cell], title: str, console: Console) -> None:
    """A section's cells, then its targets."""
    console.print(table_of(cells, title))
    found = [verdict for cell in cells for verdict in verdicts(cell)]
    if found:
        console.print(table_of_targets(found))
    if line := disturbed(cells):
        console.print(line, style="yellow", soft_wrap=True)
    console.print()


def disturbed(cells: Iterable[Cell]) -> str:
    """A sentence if something else ran beside the runs; empty if not."""
    shares = [share for cell in cells for name in cell.names for share in cell.values(name, "share")]
    poor = [share for share in shares if share < SHARE]
    if not poor:
        return ""
    return (
        f"{len(poor)} of {len(shares)} runs had to share their processors with something else "
        f"(the worst had {min(poor):.0f} %): such figures say little"
    )


# --- files


def _kept(cell: Cell) -> dict[str, Any]:
    return {"section": cell.section, "load": cell.label, "placed": "together" if cell.together else "apart"}


def as_json(cells: Iterable[Cell], where: dict[str, Any], rounds: int) -> dict[str, Any]:
    """All of it: the machine, every option, every run."""
    kept = [{"device": cell.device, **_kept(cell), "results": cell.results} for cell in cells]
    return {"machine": where, "rounds": rounds, "cells": kept}


def runs_of(cells: Iterable[Cell], where: dict[str, Any]) -> Iterator[Run]:
    """The same as `vhost bench compare` reads it."""
    for cell in cells:
        for name, results in cell.results.items():
            for figures in results:
                run = Run.of_result(cell.device, name, figures, where)
                yield Run(cell.device, name, {**_kept(cell), **run.options}, run.values, run.machine)


def write(
    cells: Sequence[Cell], where: dict[str, Any], rounds: int, json_path: Path | None, csv_path: Path | None
) -> None:
    """Into the files that were asked for.

    Raises: ResultError: one cannot be written.
    """
    if json_path is not None:
        json_path.write_text(json.dumps(as_json(cells, where, rounds), indent=1) + "\n")
    if csv_path is not None:
        append_csv(csv_path, *runs_of(cells, where))
