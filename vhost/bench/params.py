"""What the load generators' commands share: options and their types, how a run ends, rows of its table."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import click
import trio
from rich.console import Console
from rich.table import Table

from vhost.bench.generate import Latency, Measured
from vhost.bench.results import Run, append_csv, machine, save_json
from vhost.errors import VhostError
from vhost.plugin import parse_rate, parse_size

__all__ = [
    "CPUS", "RATE", "SIZE", "cost_rows", "drive", "front_end_options", "how", "keep", "latency_rows", "or_unknown",
    "result_options", "ring_options", "show_rows", "time_options",
]  # fmt: skip

Rows = list[tuple[str, str]]
Command = TypeVar("Command", bound=Callable[..., Any])
Found = TypeVar("Found")


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


def _options(*those: Callable[[Command], Command]) -> Callable[[Command], Command]:
    def add(command: Command) -> Command:
        for option in reversed(those):
            command = option(command)
        return command

    return add


def ring_options(*, indirect: bool = True) -> Callable[[Command], Command]:
    """What the rings are like, and what the front-end does beside them."""
    those: list[Callable[[Any], Any]] = [
        click.option("--packed/--split", default=False, help="Ring layout.  [default: split]"),
        click.option(
            "--poll/--sleep", default=True, help="What the front-end does while waiting.  [default: poll]"
        ),
        click.option("--event-idx/--no-event-idx", default=True),
    ]  # fmt: skip
    if indirect:
        those.append(click.option("--indirect/--no-indirect", default=True))
    return _options(*those)


def time_options(what: str = "", back: str = "come back") -> Callable[[Command], Command]:
    """How long; and how much of `what` is sent a second, where that can be said."""
    those: list[Callable[[Any], Any]] = [
        click.option("--runtime", type=float, default=2, show_default=True, help="Seconds measured."),
        click.option("--warmup", type=float, default=0.5, show_default=True, help="Seconds before that."),
    ]
    if what:
        words = f"{what}/s, evenly spaced; 0: as fast as they {back}."
        those.append(click.option("--rate", type=RATE, default="0", help=words))
    return _options(*those)


def front_end_options(command: Command) -> Command:
    """What the front-end runs on."""
    return _options(
        click.option("--hugepages", is_flag=True, help="Guest memory in 2 MiB pages."),
        click.option(
            "--cpu", "cpus", type=CPUS, default="", metavar="LIST", help="Processor of each front-end thread."
        ),
    )(command)


def result_options(command: Command) -> Command:
    """Where the result goes; for `keep`."""
    path = click.Path(dir_okay=False)
    return _options(
        click.option("--json", "json_path", type=path, help="Also write the result to this file."),
        click.option("--csv", "csv_path", type=path, help="Also append a line to this file."),
        click.option("--name", help="What the results call the back-end.  [default: the socket's file name]"),
    )(command)


def drive(measure: Callable[..., Awaitable[Found]], target: Any, workload: object) -> Found:
    """Run `measure`; what it has against the load or the back-end as a command says it."""
    try:
        return trio.run(measure, target, workload)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    except VhostError as error:
        raise click.ClickException(str(error)) from error


def keep(
    result: Measured[Any], device: str, name: str, json_path: str | None, csv_path: str | None, what: str
) -> None:  # fmt: skip
    """Write the result where the options say.

    Args:
        name: of the back-end.
        what: went wrong if anything did.

    Raises: click.ClickException: something did.
    """
    kept, where = result.as_dict(), machine()
    if json_path is not None:
        save_json(Path(json_path), device, name, kept, where)
    if csv_path is not None:
        append_csv(Path(csv_path), Run.of_result(device, name, kept, where))
    if result.errors:
        raise click.ClickException(f"{result.errors} {what} went wrong; the first: {result.first_error}")


def or_unknown(value: float | None, form: str) -> str:
    """`value` as `form` has it, or words."""
    return "not known" if value is None else form.format(value)


def latency_rows(latency: Latency) -> Rows:
    """Of a table."""
    return [
        ("latency p50 / p99 / p99.9", f"{latency.p50_us:.2f} / {latency.p99_us:.2f} / {latency.p999_us:.2f} µs"),
        ("latency mean / max", f"{latency.mean_us:.2f} / {latency.max_us:.2f} µs"),
    ]


def cost_rows(result: Measured[Any], unit: str, batches: Rows, *, form: str = "{:.3f} µs") -> Rows:
    """What a `unit` costs both sides; `batches`: how many come at once."""
    return [
        (f"front-end CPU per {unit}", form.format(result.frontend_cpu_us)),
        (f"back-end CPU per {unit}", or_unknown(result.backend_cpu_us, form)),
        ("back-end CPU", or_unknown(result.backend_cpu_percent, "{:.0f} %")),
        (f"kicks per {unit}", f"{result.kicks:.4f}"),
        (f"notifications per {unit}", f"{result.calls:.4f}"),
        *batches,
        (f"context switches per {unit}, front-end", f"{result.frontend_switches:.4f}"),
        (f"context switches per {unit}, back-end", or_unknown(result.backend_switches, "{:.4f}")),
    ]


def show_rows(title: str, rows: Iterable[tuple[str, str]], result: Measured[Any], console: Console) -> None:
    """`rows`, and what every load ends with, as a table."""
    table = Table(title=title, show_header=False)
    table.add_column(justify="left")
    table.add_column(justify="right")
    for row in rows:
        table.add_row(*row)
    if getattr(result.workload, "rate", 0):
        table.add_row("sent late", f"{result.late:,}")
    table.add_row("errors", str(result.errors))
    console.print(table)


def how(workload: Any, size: list[str], unit: str) -> str:
    """The load in words: `size` first; not all have threads and rates."""
    parts = [*size, "packed" if workload.packed else "split", "polling" if workload.poll else "sleeping"]
    if (threads := getattr(workload, "threads", 1)) > 1:
        parts.append(f"{threads} threads")
    if rate := getattr(workload, "rate", 0):
        parts.append(f"{rate:,} {unit}s/s asked")
    return ", ".join(parts)
