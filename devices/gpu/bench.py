"""``vhost bench gpu``: options, table and JSON around the load generator."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from rich.console import Console

from devices.gpu.load import Result, Workload, measure
from vhost.bench import params

__all__ = ["command"]


@click.command("gpu")
@click.option("--socket-path", "path", required=True, metavar="PATH", help="Socket the back-end listens on.")
@click.option("--size", default="1920x1080", show_default=True, metavar="WxH", help="Of the picture, pixels.")
@click.option("--rect", metavar="WxH", help="Of what a frame changes, pixels; all of it if not given.")
@click.option("--words", type=int, default=0, help="Frames are of 3D: SUBMIT_3D of so many words that change state.")
@click.option("--clear/--no-clear", default=False, help="Of 3D: clear the picture in each.  [default: no-clear]")
@click.option("--iodepth", "depth", type=int, default=4, show_default=True, help="Frames in flight.")
@click.option("--display/--no-display", default=False, help="Be QEMU's display and read it.  [default: no-display]")
@click.option(
    "--pieces-of", "piece_bytes", type=params.SIZE, default="0", help="Bytes per piece of its memory; all in one."
)
@click.option("--queue-size", type=int, default=0, help="Entries; as many as the depth needs if not given.")
@click.option("--random/--sequential", default=True, help="Places of rectangles.  [default: random]")
@params.ring_options()
@params.time_options()
@click.option("--verify", is_flag=True, help="Compare what the display shows in the end with the guest's memory.")
@params.front_end_options
@click.option("--seed", type=int, default=1, show_default=True)
@params.result_options
def command(
    path: str, size: str, rect: str | None, json_path: str | None, csv_path: str | None, name: str | None,
    **options: Any,
) -> None:  # fmt: skip
    """Drive the display behind a vhost-user socket and say what it costs both sides.

    A frame is a transfer of pixels to the back-end and the flush of the same rectangle; of 3D, a submission.
    """
    try:
        workload = Workload(size=_pixels(size), rect=_pixels(rect) if rect else (), **options)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    result = params.drive(measure, path, workload)
    show(result, Console())
    params.keep(result, "gpu", name or Path(path).stem, json_path, csv_path, "commands")


def _pixels(text: str) -> tuple[int, int]:
    width, _, height = text.lower().partition("x")
    if not width.isdecimal() or not height.isdecimal():
        raise ValueError(f"{text!r} is no size; write 1920x1080")
    return int(width), int(height)


def show(result: Result, console: Console) -> None:
    """The result as a table."""
    workload, latency = result.workload, result.latency
    rows = [("frames/s", f"{result.frames_per_second:,.0f}")]
    if not workload.words:
        rows.append(("pixels of them", f"{result.bytes_per_second / 1e9:,.2f} GB/s"))
    if workload.display:
        rows += [
            ("updates/s shown", f"{result.updates_per_second:,.0f}"),
            ("pixels of them", f"{result.shown_bytes_per_second / 1e9:,.2f} GB/s"),
        ]
    rows += [*params.latency_rows(latency), *params.cost_rows(result, "frame", [])]
    params.show_rows(f"{_what(workload)}, {_how(workload)}", rows, result, console)


def _what(workload: Workload) -> str:
    if workload.words:
        return f"{workload.words} words of 3D" + (f", {'x'.join(map(str, workload.size))} cleared" * workload.clear)
    area, size = ("x".join(map(str, pair)) for pair in (workload.area, workload.size))
    return f"{area} of {size}" if workload.rect else f"all of {size}"


def _how(workload: Workload) -> str:
    display = "with a display" if workload.display else "no display"
    return params.how(workload, [f"depth {workload.depth}", display], "frame")
