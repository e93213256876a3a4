"""``vhost bench fs``: options, table and JSON around the load generator."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import trio
from rich.console import Console
from rich.table import Table

from devices.fs.load import OPERATIONS, Result, Workload, measure
from vhost.bench import Run, append_csv, machine, save_json
from vhost.bench.params import CPUS, RATE, SIZE, or_unknown
from vhost.errors import VhostError

__all__ = ["command"]


@click.command("fs")
@click.option("--socket-path", "path", required=True, metavar="PATH", help="Socket the back-end listens on.")
@click.option(
    "--op", type=click.Choice(tuple(OPERATIONS)), default="getattr", show_default=True,
    help="; ".join(f"{name}: {words}" for name, words in OPERATIONS.items()) + ".",
)  # fmt: skip
@click.option("--bs", "block_bytes", type=SIZE, default="4k", show_default=True, help="Bytes per READ, WRITE, listing.")
@click.option("--pieces-of", "piece_bytes", type=SIZE, default="0", help="Bytes per descriptor of data; all in one.")
@click.option("--iodepth", "depth", type=int, default=16, show_default=True, help="Operations in flight per queue.")
@click.option("--queues", type=int, default=1, show_default=True, help="Request queues.")
@click.option("--threads", type=int, default=1, show_default=True, help="Front-end threads; they share the queues.")
@click.option("--queue-size", type=int, default=0, help="Entries; as many as the depth needs if not given.")
@click.option("--files", type=int, default=0, help="1000, or 10000 to be listed; with data one per queue.")
@click.option("--size", type=SIZE, default="64m", show_default=True, help="Bytes of each file with data.")
@click.option("--random/--sequential", default=True, help="Files and blocks.  [default: random]")
@click.option("--packed/--split", default=False, help="Ring layout.  [default: split]")
@click.option("--poll/--sleep", default=True, help="What the front-end does while waiting.  [default: poll]")
@click.option("--event-idx/--no-event-idx", default=True)
@click.option("--indirect/--no-indirect", default=True)
@click.option("--runtime", type=float, default=2, show_default=True, help="Seconds measured.")
@click.option("--warmup", type=float, default=0.5, show_default=True, help="Seconds before that.")
@click.option("--rate", type=RATE, default="0", help="Operations/s, evenly spaced; 0: as fast as they come back.")
@click.option("--verify", is_flag=True, help="Compare contents, inodes and listings with what they must be.")
@click.option("--folder", default="vhost-bench", show_default=True, help="In the shared one; made if it is not there.")
@click.option("--keep", is_flag=True, help="Leave what was made; else it is removed at the end.")
@click.option("--hugepages", is_flag=True, help="Guest memory in 2 MiB pages.")
@click.option("--cpu", "cpus", type=CPUS, default="", metavar="LIST", help="Processor of each front-end thread.")
@click.option("--seed", type=int, default=1, show_default=True)
@click.option("--json", "json_path", type=click.Path(dir_okay=False), help="Also write the result to this file.")
@click.option("--csv", "csv_path", type=click.Path(dir_okay=False), help="Also append a line to this file.")
@click.option("--name", help="What the results call the back-end.  [default: the socket's file name]")
def command(path: str, json_path: str | None, csv_path: str | None, name: str | None, **options: Any) -> None:
    """Drive the shared folder behind a vhost-user socket and say what it costs both sides.

    Works in a folder of its own in the shared one.
    """
    workload = Workload(**options)
    try:
        result = trio.run(measure, path, workload)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    except VhostError as error:
        raise click.ClickException(str(error)) from error
    show(result, Console())
    kept, where, called = result.as_dict(), machine(), name or Path(path).stem
    if json_path is not None:
        save_json(Path(json_path), "fs", called, kept, where)
    if csv_path is not None:
        append_csv(Path(csv_path), Run.of_result("fs", called, kept, where))
    if result.errors:
        raise click.ClickException(f"{result.errors} operations went wrong; the first: {result.first_error}")


def show(result: Result, console: Console) -> None:
    """The result as a table."""
    workload, latency = result.workload, result.latency
    table = Table(title=f"{_what(workload)}, {_how(workload)}", show_header=False)
    table.add_column(justify="left")
    table.add_column(justify="right")
    rows = [("operations/s", f"{result.iops:,.0f}")]
    if result.requests != result.operations:
        rows.append(("requests/s", f"{result.requests / result.seconds:,.0f}"))
    if workload.op == "list":
        rows.append(("entries/s", f"{result.entries_per_second:,.0f}"))
    if workload.has_data:
        rows.append(("bandwidth", f"{result.bytes_per_second / 2**20:,.1f} MiB/s"))
    rows += [
        ("latency p50 / p99 / p99.9", f"{latency.p50_us:.2f} / {latency.p99_us:.2f} / {latency.p999_us:.2f} µs"),
        ("latency mean / max", f"{latency.mean_us:.2f} / {latency.max_us:.2f} µs"),
        ("front-end CPU per operation", f"{result.frontend_cpu_us:.3f} µs"),
        ("back-end CPU per operation", or_unknown(result.backend_cpu_us, "{:.3f} µs")),
        ("back-end CPU", or_unknown(result.backend_cpu_percent, "{:.0f} %")),
        ("kicks per operation", f"{result.kicks:.4f}"),
        ("notifications per operation", f"{result.calls:.4f}"),
        ("replies per look, mean / max", f"{result.batch_mean:.1f} / {result.batch_max}"),
        ("context switches per operation, front-end", f"{result.frontend_switches:.4f}"),
        ("context switches per operation, back-end", or_unknown(result.backend_switches, "{:.4f}")),
    ]
    if workload.rate:
        rows.append(("sent late", f"{result.late:,}"))
    rows.append(("errors", str(result.errors)))
    for row in rows:
        table.add_row(*row)
    console.print(table)


def _what(workload: Workload) -> str:
    if not workload.has_data:
        return workload.op
    order = ("random" if workload.random else "sequential") if workload.op in ("read", "write") else ""
    return " ".join(filter(None, (order, workload.op, f"{workload.block_bytes} B")))


def _how(workload: Workload) -> str:
    parts = [
        f"depth {workload.depth}",
        f"{workload.queues} queue{'s' if workload.queues > 1 else ''}",
        "packed" if workload.packed else "split",
        "polling" if workload.poll else "sleeping",
    ]
    if workload.threads > 1:
        parts.append(f"{workload.threads} threads")
    if workload.rate:
        parts.append(f"{workload.rate:,} operations/s asked")
    return ", ".join(parts)
