"""``vhost bench blk``: options, table and JSON around the load generator."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import trio
from rich.console import Console
from rich.table import Table

from devices.blk.load import PATTERNS, Result, Workload, measure
from vhost.bench import Run, append_csv, machine, save_json
from vhost.errors import VhostError
from vhost.plugin import parse_rate, parse_size

__all__ = ["command", "machine"]


class _Parsed(click.ParamType[Any]):
    def __init__(self, name: str, parse: Any) -> None:
        self.name = name
        self._parse = parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            return self._parse(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


def _cpus(text: str | tuple[int, ...]) -> tuple[int, ...]:
    if isinstance(text, tuple):
        return text
    try:
        return tuple(int(part) for part in text.split(",") if part)
    except ValueError:
        raise ValueError(f"{text!r} is no list of processors; write 0 or 0,2") from None


SIZE = _Parsed("size", parse_size)
RATE = _Parsed("rate", parse_rate)
CPUS = _Parsed("cpus", _cpus)


@click.command("blk")
@click.option("--socket-path", "path", required=True, metavar="PATH", help="Socket the back-end listens on.")
@click.option("--rw", type=click.Choice(tuple(PATTERNS)), default="randread", show_default=True)
@click.option("--bs", "block_bytes", type=SIZE, default="4k", show_default=True, help="Bytes per request.")
@click.option("--iodepth", "depth", type=int, default=32, show_default=True, help="Requests in flight per queue.")
@click.option("--queues", type=int, default=1, show_default=True)
@click.option("--threads", type=int, default=1, show_default=True, help="Front-end threads; they share the queues.")
@click.option("--queue-size", type=int, default=0, help="Entries; as many as the depth needs if not given.")
@click.option("--rwmixread", "read_percent", type=click.IntRange(0, 100), default=70, show_default=True)
@click.option("--packed/--split", default=False, help="Ring layout.  [default: split]")
@click.option("--poll/--sleep", default=True, help="What the front-end does while waiting.  [default: poll]")
@click.option("--event-idx/--no-event-idx", default=True)
@click.option("--indirect/--no-indirect", default=True)
@click.option("--runtime", type=float, default=2, show_default=True, help="Seconds measured.")
@click.option("--warmup", type=float, default=0.5, show_default=True, help="Seconds before that.")
@click.option("--rate", type=RATE, default="0", help="Requests/s, evenly spaced; 0: as fast as they come back.")
@click.option("--verify", is_flag=True, help="Write a pattern first and check every read. Destroys what is there.")
@click.option("--size", type=SIZE, default="0", help="Bytes of the disk to use; all if not given.")
@click.option("--hugepages", is_flag=True, help="Guest memory in 2 MiB pages.")
@click.option("--regions", type=int, default=1, show_default=True, help="Memory regions; data spread over them.")
@click.option("--cpu", "cpus", type=CPUS, default="", metavar="LIST", help="Processor of each front-end thread.")
@click.option("--seed", type=int, default=1, show_default=True)
@click.option("--write-ok", is_flag=True, help="Yes, overwrite the disk: needed by every pattern that writes.")
@click.option("--json", "json_path", type=click.Path(dir_okay=False), help="Also write the result to this file.")
@click.option("--csv", "csv_path", type=click.Path(dir_okay=False), help="Also append a line to this file.")
@click.option("--name", help="What the results call the back-end.  [default: the socket's file name]")
def command(
    path: str, write_ok: bool, json_path: str | None, csv_path: str | None, name: str | None, **options: Any
) -> None:
    """Drive the disk behind a vhost-user socket and say what it costs both sides."""
    workload = Workload(**options)
    if (PATTERNS[workload.rw][0] != 100 or workload.verify) and not write_ok:
        raise click.UsageError(f"{workload.rw} overwrites the disk behind {path}; add --write-ok if that is meant")
    try:
        result = trio.run(measure, path, workload)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    except VhostError as error:
        raise click.ClickException(str(error)) from error
    show(result, Console())
    _keep(result.as_dict(), name or Path(path).stem, json_path, csv_path)
    if result.errors:
        raise click.ClickException(f"{result.errors} requests went wrong; the first: {result.first_error}")


def _keep(result: dict[str, Any], name: str, json_path: str | None, csv_path: str | None) -> None:
    where = machine()
    if json_path is not None:
        save_json(Path(json_path), "blk", name, result, where)
    if csv_path is not None:
        append_csv(Path(csv_path), Run.of_result("blk", name, result, where))


def show(result: Result, console: Console) -> None:
    """The result as a table."""
    workload, latency = result.workload, result.latency
    table = Table(title=f"{workload.rw} {workload.block_bytes} B, {_how(workload)}", show_header=False)
    table.add_column(justify="left")
    table.add_column(justify="right")
    for name, value in (
        ("requests/s", f"{result.iops:,.0f}"),
        ("bandwidth", f"{result.bytes_per_second / 2**20:,.1f} MiB/s"),
        ("latency p50 / p99 / p99.9", f"{latency.p50_us:.2f} / {latency.p99_us:.2f} / {latency.p999_us:.2f} µs"),
        ("latency mean / max", f"{latency.mean_us:.2f} / {latency.max_us:.2f} µs"),
        ("front-end CPU per request", f"{result.frontend_cpu_us:.3f} µs"),
        ("back-end CPU per request", _or_unknown(result.backend_cpu_us, "{:.3f} µs")),
        ("back-end CPU", _or_unknown(result.backend_cpu_percent, "{:.0f} %")),
        ("kicks per request", f"{result.kicks:.4f}"),
        ("notifications per request", f"{result.calls:.4f}"),
        ("completions per look, mean / max", f"{result.batch_mean:.1f} / {result.batch_max}"),
        ("context switches per request, front-end", f"{result.frontend_switches:.4f}"),
        ("context switches per request, back-end", _or_unknown(result.backend_switches, "{:.4f}")),
        ("errors", str(result.errors)),
    ):
        table.add_row(name, value)
    if workload.rate:
        table.add_row("sent late", str(result.late))
    console.print(table)


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
        parts.append(f"{workload.rate:,} requests/s asked")
    return ", ".join(parts)


def _or_unknown(value: float | None, form: str) -> str:
    return "not known" if value is None else form.format(value)
