"""``vhost bench net``: options, table and JSON around the load generator."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from rich.console import Console

from devices.net.load import MODES, Result, Workload, measure
from vhost.bench import params

__all__ = ["command"]


@click.command("net")
@click.option(
    "--socket-path", "paths", required=True, multiple=True, metavar="PATH",
    help="Socket the back-end listens on; for pair and duplex a second one, where frames come out.",
)  # fmt: skip
@click.option(
    "--mode", type=click.Choice(tuple(MODES)), default="echo", show_default=True,
    help="; ".join(f"{name}: {words}" for name, words in MODES.items()) + ".",
)  # fmt: skip
@click.option(
    "--frame", type=params.SIZE, default="64", show_default=True, help="Bytes; above 1518: TCP to be cut (TSO)."
)
@click.option("--burst", type=int, default=32, show_default=True, help="Frames given and taken at once.")
@click.option("--window", type=int, default=0, help="Frames under way per queue pair; what fits if not given.")
@click.option("--flood", is_flag=True, help="No window: what finds no room at the other end is lost.")
@click.option("--queues", "pairs", type=int, default=1, show_default=True, help="Queue pairs.")
@click.option("--threads", type=int, default=1, show_default=True, help="Front-end threads; they share the queues.")
@click.option("--queue-size", type=int, default=256, show_default=True, help="Entries.")
@params.ring_options(indirect=False)
@click.option("--mergeable/--no-mergeable", default=True, help="Receive buffers.")
@click.option("--buffer", type=params.SIZE, default="0", help="Bytes of a receive buffer; chosen if not given.")
@params.time_options("Frames", "go")
@click.option("--verify", is_flag=True, help="Give every frame contents of its own and compare what comes back.")
@params.front_end_options
@params.result_options
def command(
    paths: tuple[str, ...], json_path: str | None, csv_path: str | None, name: str | None, **options: Any
) -> None:
    """Drive the network card behind a vhost-user socket and say what it costs both sides."""
    workload = Workload(**options)
    result = params.drive(measure, paths, workload)
    show(result, Console())
    params.keep(result, "net", name or Path(paths[0]).stem, json_path, csv_path, "frames")


def show(result: Result, console: Console) -> None:
    """The result as a table."""
    workload, latency = result.workload, result.latency
    batches = [
        ("packets given at once, mean", f"{result.tx_batch_mean:.1f}"),
        ("packets found at once, mean / max", f"{result.rx_batch_mean:.1f} / {result.rx_batch_max}"),
    ]
    rows = [
        ("packets/s", f"{result.packets_per_second:,.0f}"),
        ("bandwidth", f"{result.bits_per_second / 1e9:,.2f} Gbit/s"),
        *params.cost_rows(result, "packet", batches, form="{:.4f} µs"),
    ]
    if latency is not None:
        rows += [
            *params.latency_rows(latency),
            ("lost", f"{result.lost:,} of {result.sent:,}"),
            ("out of order", f"{result.reordered:,}"),
        ]
    if result.foreign:
        rows.append(("of other origin", f"{result.foreign:,}"))
    params.show_rows(f"{workload.mode}, {workload.frame} B, {_how(workload)}", rows, result, console)


def _how(workload: Workload) -> str:
    pairs = f"{workload.pairs} queue pair{'s' if workload.pairs > 1 else ''}"
    return params.how(workload, [pairs, "mergeable" if workload.mergeable else "whole buffers"], "packet")
