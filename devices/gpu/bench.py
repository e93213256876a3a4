"""``vhost bench gpu``: options, table and JSON around the load generator."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import trio
from rich.console import Console
from rich.table import Table

from devices.gpu.load import Result, Workload, measure
from vhost.bench import Run, append_csv, machine, save_json
from vhost.bench.params import CPUS, SIZE, or_unknown
from vhost.errors import VhostError

__all__ = ["command"]


@click.command("gpu")
@click.option("--socket-path", "path", required=True, metavar="PATH", help="Socket the back-end listens on.")
@click.option("--size", default="1920x1080", show_default=True, metavar="WxH", help="Of the picture, pixels.")
@click.option("--rect", metavar="WxH", help="Of what a frame changes, pixels; all of it if not given.")
@click.option("--iodepth", "depth", type=int, default=4, show_default=True, help="Frames in flight.")
@click.option("--display/--no-display", default=False, help="Be QEMU's display and read it.  [default: no-display]")
@click.option("--pieces-of", "piece_bytes", type=SIZE, default="0", help="Bytes per piece of its memory; all in one.")
@click.option("--queue-size", type=int, default=0, help="Entries; as many as the depth needs if not given.")
@click.option("--random/--sequential", default=True, help="Places of rectangles.  [default: random]")
@click.option("--packed/--split", default=False, help="Ring layout.  [default: split]")
@click.option("--poll/--sleep", default=True, help="What the front-end does while waiting.  [default: poll]")
@click.option("--event-idx/--no-event-idx", default=True)
@click.option("--indirect/--no-indirect", default=True)
@click.option("--runtime", type=float, default=2, show_default=True, help="Seconds measured.")
@click.option("--warmup", type=float, default=0.5, show_default=True, help="Seconds before that.")
@click.option("--verify", is_flag=True, help="Compare what the display shows in the end with the guest's memory.")
@click.option("--hugepages", is_flag=True, help="Guest memory in 2 MiB pages.")
@click.option("--cpu", "cpus", type=CPUS, default="", metavar="NUMBER", help="Processor of the front-end.")
@click.option("--seed", type=int, default=1, show_default=True)
@click.option("--json", "json_path", type=click.Path(dir_okay=False), help="Also write the result to this file.")
@click.option("--csv", "csv_path", type=click.Path(dir_okay=False), help="Also append a line to this file.")
@click.option("--name", help="What the results call the back-end.  [default: the socket's file name]")
def command(
    path: str, size: str, rect: str | None, json_path: str | None, csv_path: str | None, name: str | None,
    **options: Any,
) -> None:  # fmt: skip
    """Drive the display behind a vhost-user socket and say what it costs both sides.

    A frame is a transfer of pixels to the back-end and the flush of the same rectangle.
    """
    try:
        workload = Workload(size=_pixels(size), rect=_pixels(rect) if rect else (), **options)
        result = trio.run(measure, path, workload)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    except VhostError as error:
        raise click.ClickException(str(error)) from error
    show(result, Console())
    kept, where, called = result.as_dict(), machine(), name or Path(path).stem
    if json_path is not None:
        save_json(Path(json_path), "gpu", called, kept, where)
    if csv_path is not None:
        append_csv(Path(csv_path), Run.of_result("gpu", called, kept, where))
    if result.errors:
        raise click.ClickException(f"{result.errors} commands went wrong; the first: {result.first_error}")


def _pixels(text: str) -> tuple[int, int]:
    width, _, height = text.lower().partition("x")
    if not width.isdecimal() or not height.isdecimal():
        raise ValueError(f"{text!r} is no size; write 1920x1080")
    return int(width), int(height)


def show(result: Result, console: Console) -> None:
    """The result as a table."""
    workload, latency = result.workload, result.latency
    table = Table(title=f"{_what(workload)}, {_how(workload)}", show_header=False)
    table.add_column(justify="left")
    table.add_column(justify="right")
    rows = [
        ("frames/s", f"{result.frames_per_second:,.0f}"),
        ("pixels of them", f"{result.bytes_per_second / 1e9:,.2f} GB/s"),
    ]
    if workload.display:
        rows += [
            ("updates/s shown", f"{result.updates_per_second:,.0f}"),
            ("pixels of them", f"{result.shown_bytes_per_second / 1e9:,.2f} GB/s"),
        ]
    rows += [
        ("latency p50 / p99 / p99.9", f"{latency.p50_us:.2f} / {latency.p99_us:.2f} / {latency.p999_us:.2f} µs"),
        ("latency mean / max", f"{latency.mean_us:.2f} / {latency.max_us:.2f} µs"),
        ("front-end CPU per frame", f"{result.frontend_cpu_us:.3f} µs"),
        ("back-end CPU per frame", or_unknown(result.backend_cpu_us, "{:.3f} µs")),
        ("back-end CPU", or_unknown(result.backend_cpu_percent, "{:.0f} %")),
        ("kicks per frame", f"{result.kicks:.4f}"),
        ("notifications per frame", f"{result.calls:.4f}"),
        ("context switches per frame, front-end", f"{result.frontend_switches:.4f}"),
        ("context switches per frame, back-end", or_unknown(result.backend_switches, "{:.4f}")),
        ("errors", str(result.errors)),
    ]
    for row in rows:
        table.add_row(*row)
    console.print(table)


def _what(workload: Workload) -> str:
    area, size = ("x".join(map(str, pair)) for pair in (workload.area, workload.size))
    return f"{area} of {size}" if workload.rect else f"all of {size}"


def _how(workload: Workload) -> str:
    parts = [
        f"depth {workload.depth}",
        "packed" if workload.packed else "split",
        "polling" if workload.poll else "sleeping",
        "with a display" if workload.display else "no display",
    ]
    return ", ".join(parts)
