"""``vhost bench net``: options, table and JSON around the load generator."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import trio
from rich.console import Console
from rich.table import Table

from devices.net.load import MODES, Result, Workload, measure
from vhost.bench import Run, append_csv, machine, save_json
from vhost.bench.params import CPUS, RATE, SIZE, or_unknown
from vhost.errors import VhostError

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
@click.option("--frame", type=SIZE, default="64", show_default=True, help="Bytes; above 1518: TCP to be cut (TSO).")
@click.option("--burst", type=int, default=32, show_default=True, help="Frames given and taken at once.")
@click.option("--window", type=int, default=0, help="Frames under way per queue pair; what fits if not given.")
@click.option("--flood", is_flag=True, help="No window: what finds no room at the other end is lost.")
@click.option("--queues", "pairs", type=int, default=1, show_default=True, help="Queue pairs.")
@click.option("--threads", type=int, default=1, show_default=True, help="Front-end threads; they share the queues.")
@click.option("--queue-size", type=int, default=256, show_default=True, help="Entries.")
@click.option("--packed/--split", default=False, help="Ring layout.  [default: split]")
@click.option("--poll/--sleep", default=True, help="What the front-end does while waiting.  [default: poll]")
@click.option("--event-idx/--no-event-idx", default=True)
@click.option("--mergeable/--no-mergeable", default=True, help="Receive buffers.")
@click.option("--buffer", type=SIZE, default="0", help="Bytes of a receive buffer; chosen if not given.")
@click.option("--runtime", type=float, default=2, show_default=True, help="Seconds measured.")
@click.option("--warmup", type=float, default=0.5, show_default=True, help="Seconds before that.")
@click.option("--rate", type=RATE, default="0", help="Frames/s, evenly spaced; 0: as fast as they go.")
@click.option("--verify", is_flag=True, help="Give every frame contents of its own and compare what comes back.")
@click.option("--hugepages", is_flag=True, help="Guest memory in 2 MiB pages.")
@click.option("--cpu", "cpus", type=CPUS, default="", metavar="LIST", help="Processor of each front-end thread.")
@click.option("--json", "json_path", type=click.Path(dir_okay=False), help="Also write the result to this file.")
@click.option("--csv", "csv_path", type=click.Path(dir_okay=False), help="Also append a line to this file.")
@click.option("--name", help="What the results call the back-end.  [default: the socket's file name]")
def command(
    paths: tuple[str, ...], json_path: str | None, csv_path: str | None, name: str | None, **options: Any
) -> None:
    """Drive the network card behind a vhost-user socket and say what it costs both sides."""
    workload = Workload(**options)
    try:
        result = trio.run(measure, paths, workload)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    except VhostError as error:
        raise click.ClickException(str(error)) from error
    show(result, Console())
    kept, where, called = result.as_dict(), machine(), name or Path(paths[0]).stem
    if json_path is not None:
        save_json(Path(json_path), "net", called, kept, where)
    if csv_path is not None:
        append_csv(Path(csv_path), Run.of_result("net", called, kept, where))
    if result.errors:
        raise click.ClickException(f"{result.errors} frames went wrong; the first: {result.first_error}")


def show(result: Result, console: Console) -> None:
    """The result as a table."""
    workload, latency = result.workload, result.latency
    table = Table(title=f"{workload.mode}, {workload.frame} B, {_how(workload)}", show_header=False)
    table.add_column(justify="left")
    table.add_column(justify="right")
    rows = [
        ("packets/s", f"{result.packets_per_second:,.0f}"),
        ("bandwidth", f"{result.bits_per_second / 1e9:,.2f} Gbit/s"),
        ("front-end CPU per packet", f"{result.frontend_cpu_us:.4f} µs"),
        ("back-end CPU per packet", or_unknown(result.backend_cpu_us, "{:.4f} µs")),
        ("back-end CPU", or_unknown(result.backend_cpu_percent, "{:.0f} %")),
        ("kicks per packet", f"{result.kicks:.4f}"),
        ("notifications per packet", f"{result.calls:.4f}"),
        ("packets given at once, mean", f"{result.tx_batch_mean:.1f}"),
        ("packets found at once, mean / max", f"{result.rx_batch_mean:.1f} / {result.rx_batch_max}"),
        ("context switches per packet, front-end", f"{result.frontend_switches:.4f}"),
        ("context switches per packet, back-end", or_unknown(result.backend_switches, "{:.4f}")),
    ]
    if latency is not None:
        rows += [
            ("latency p50 / p99 / p99.9", f"{latency.p50_us:.2f} / {latency.p99_us:.2f} / {latency.p999_us:.2f} µs"),
            ("latency mean / max", f"{latency.mean_us:.2f} / {latency.max_us:.2f} µs"),
            ("lost", f"{result.lost:,} of {result.sent:,}"),
            ("out of order", f"{result.reordered:,}"),
        ]
    if result.foreign:
        rows.append(("of other origin", f"{result.foreign:,}"))
    if workload.rate:
        rows.append(("sent late", f"{result.late:,}"))
    rows.append(("errors", str(result.errors)))
    for row in rows:
        table.add_row(*row)
    console.print(table)


def _how(workload: Workload) -> str:
    parts = [
        f"{workload.pairs} queue pair{'s' if workload.pairs > 1 else ''}",
        "packed" if workload.packed else "split",
        "mergeable" if workload.mergeable else "whole buffers",
        "polling" if workload.poll else "sleeping",
    ]
    if workload.threads > 1:
        parts.append(f"{workload.threads} threads")
    if workload.rate:
        parts.append(f"{workload.rate:,} packets/s asked")
    return ", ".join(parts)
