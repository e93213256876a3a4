"""``vhost bench blk``: options, table and JSON around the load generator."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from rich.console import Console

from devices.blk.load import PATTERNS, Result, Workload, measure
from vhost.bench import params

__all__ = ["command"]


@click.command("blk")
@click.option("--socket-path", "path", required=True, metavar="PATH", help="Socket the back-end listens on.")
@click.option("--rw", type=click.Choice(tuple(PATTERNS)), default="randread", show_default=True)
@click.option("--bs", "block_bytes", type=params.SIZE, default="4k", show_default=True, help="Bytes per request.")
@click.option("--iodepth", "depth", type=int, default=32, show_default=True, help="Requests in flight per queue.")
@click.option("--queues", type=int, default=1, show_default=True)
@click.option("--threads", type=int, default=1, show_default=True, help="Front-end threads; they share the queues.")
@click.option("--queue-size", type=int, default=0, help="Entries; as many as the depth needs if not given.")
@click.option("--rwmixread", "read_percent", type=click.IntRange(0, 100), default=70, show_default=True)
@params.ring_options()
@params.time_options("Requests")
@click.option("--verify", is_flag=True, help="Write a pattern first and check every read. Destroys what is there.")
@click.option("--size", type=params.SIZE, default="0", help="Bytes of the disk to use; all if not given.")
@params.front_end_options
@click.option("--regions", type=int, default=1, show_default=True, help="Memory regions; data spread over them.")
@click.option("--seed", type=int, default=1, show_default=True)
@click.option("--write-ok", is_flag=True, help="Yes, overwrite the disk: needed by every pattern that writes.")
@params.result_options
def command(
    path: str, write_ok: bool, json_path: str | None, csv_path: str | None, name: str | None, **options: Any
) -> None:
    """Drive the disk behind a vhost-user socket and say what it costs both sides."""
    workload = Workload(**options)
    if (PATTERNS[workload.rw][0] != 100 or workload.verify) and not write_ok:
        raise click.UsageError(f"{workload.rw} overwrites the disk behind {path}; add --write-ok if that is meant")
    result = params.drive(measure, path, workload)
    show(result, Console())
    params.keep(result, "blk", name or Path(path).stem, json_path, csv_path, "requests")


def show(result: Result, console: Console) -> None:
    """The result as a table."""
    workload, latency = result.workload, result.latency
    title = f"{workload.rw} {workload.block_bytes} B, {_how(workload)}"
    batches = [("completions per look, mean / max", f"{result.batch_mean:.1f} / {result.batch_max}")]
    rows = [
        ("requests/s", f"{result.iops:,.0f}"),
        ("bandwidth", f"{result.bytes_per_second / 2**20:,.1f} MiB/s"),
        *params.latency_rows(latency),
        *params.cost_rows(result, "request", batches),
    ]
    params.show_rows(title, rows, result, console)


def _how(workload: Workload) -> str:
    queues = f"{workload.queues} queue{'s' if workload.queues > 1 else ''}"
    return params.how(workload, [f"depth {workload.depth}", queues], "request")
