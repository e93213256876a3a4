"""``vhost bench fs``: options, table and JSON around the load generator."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from rich.console import Console

from devices.fs.load import OPERATIONS, Result, Workload, measure
from vhost.bench import params

__all__ = ["command"]


@click.command("fs")
@click.option("--socket-path", "path", required=True, metavar="PATH", help="Socket the back-end listens on.")
@click.option(
    "--op", type=click.Choice(tuple(OPERATIONS)), default="getattr", show_default=True,
    help="; ".join(f"{name}: {words}" for name, words in OPERATIONS.items()) + ".",
)  # fmt: skip
@click.option(
    "--bs", "block_bytes", type=params.SIZE, default="4k", show_default=True, help="Bytes per READ, WRITE, listing."
)
@click.option(
    "--pieces-of", "piece_bytes", type=params.SIZE, default="0", help="Bytes per descriptor of data; all in one."
)
@click.option("--iodepth", "depth", type=int, default=16, show_default=True, help="Operations in flight per queue.")
@click.option("--queues", type=int, default=1, show_default=True, help="Request queues.")
@click.option("--threads", type=int, default=1, show_default=True, help="Front-end threads; they share the queues.")
@click.option("--queue-size", type=int, default=0, help="Entries; as many as the depth needs if not given.")
@click.option("--files", type=int, default=0, help="1000, or 10000 to be listed; with data one per queue.")
@click.option("--size", type=params.SIZE, default="64m", show_default=True, help="Bytes of each file with data.")
@click.option("--random/--sequential", default=True, help="Files and blocks.  [default: random]")
@params.ring_options()
@params.time_options("Operations")
@click.option("--verify", is_flag=True, help="Compare contents, inodes and listings with what they must be.")
@click.option("--folder", default="vhost-bench", show_default=True, help="In the shared one; made if it is not there.")
@click.option("--keep", is_flag=True, help="Leave what was made; else it is removed at the end.")
@params.front_end_options
@click.option("--seed", type=int, default=1, show_default=True)
@params.result_options
def command(path: str, json_path: str | None, csv_path: str | None, name: str | None, **options: Any) -> None:
    """Drive the shared folder behind a vhost-user socket and say what it costs both sides.

    Works in a folder of its own in the shared one.
    """
    workload = Workload(**options)
    result = params.drive(measure, path, workload)
    show(result, Console())
    params.keep(result, "fs", name or Path(path).stem, json_path, csv_path, "operations")


def show(result: Result, console: Console) -> None:
    """The result as a table."""
    workload, latency = result.workload, result.latency
    rows = [("operations/s", f"{result.iops:,.0f}")]
    if result.requests != result.operations:
        rows.append(("requests/s", f"{result.requests / result.seconds:,.0f}"))
    if workload.op == "list":
        rows.append(("entries/s", f"{result.entries_per_second:,.0f}"))
    if workload.has_data:
        rows.append(("bandwidth", f"{result.bytes_per_second / 2**20:,.1f} MiB/s"))
    batches = [("replies per look, mean / max", f"{result.batch_mean:.1f} / {result.batch_max}")]
    rows += [*params.latency_rows(latency), *params.cost_rows(result, "operation", batches)]
    params.show_rows(f"{_what(workload)}, {_how(workload)}", rows, result, console)


def _what(workload: Workload) -> str:
    if not workload.has_data:
        return workload.op
    order = ("random" if workload.random else "sequential") if workload.op in ("read", "write") else ""
    return " ".join(filter(None, (order, workload.op, f"{workload.block_bytes} B")))


def _how(workload: Workload) -> str:
    queues = f"{workload.queues} queue{'s' if workload.queues > 1 else ''}"
    return params.how(workload, [f"depth {workload.depth}", queues], "operation")
