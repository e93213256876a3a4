"""``make bench``: our devices, their peers and baselines, driven by the same front-end, in turns.

    python -m bench [SECTION]... [--rounds N] [--runtime S] [--quick] [--json FILE] [--csv FILE]

See bench/README.md for the method.
"""

from __future__ import annotations

import os
from pathlib import Path

import click
from rich.console import Console
from rich.progress import Progress

from bench import cost, duty, echo, fs_scale, fs_suite, gpu_suite, net_idle, net_suite, report, rounds, stores
from bench.borrowed import guard
from bench.plan import Plan
from bench.rounds import Cell
from bench.stage import Stage
from vhost.bench import ResultError, machine

OPENED = {
    **dict.fromkeys(stores.SECTIONS, stores.opened),
    "cost": cost.opened,
    "idle": duty.opened,
    "rate": duty.opened,
    "python": echo.opened,
    **dict.fromkeys(net_suite.SECTIONS, net_suite.opened),
    "net-idle": net_idle.opened,
    **dict.fromkeys(fs_suite.SECTIONS, fs_suite.opened),
    "fs-scale": fs_scale.opened,
    **dict.fromkeys(gpu_suite.SECTIONS, gpu_suite.opened),
}
DEPTHS = (1, 32, 128)
LEGEND = """Medians of the rounds, with least and most; ratios are of neighbouring runs. polling: front-end and back-end
have a processor each; sleeping: they share one. CPU is the back-end's; CPU µs, kicks and calls are per request."""


def _run(section: str, plan: Plan, times: int, console: Console) -> list[Cell]:
    if section in ("idle", "net-idle"):
        times = min(times, 2)  # seconds each, and they differ by nothing
    with Stage() as stage, OPENED[section](section, stage, plan) as (title, cells):
        if not cells:
            return []
        with Progress(console=console, transient=True) as progress:
            total = sum(len(cell.contenders) for cell in cells) * times
            task = progress.add_task(section, total=total)
            rounds.run(stage, cells, times, lambda: progress.advance(task))
        report.show(cells, f"{section}: {title}; {times} round{'s' if times > 1 else ''}", console)
        return cells


@click.command()
@click.argument("sections", nargs=-1, type=click.Choice(tuple(OPENED)), metavar="[SECTION]...")
@click.option("--rounds", "times", type=click.IntRange(1), default=5, show_default=True)
@click.option("--runtime", type=float, default=0.4, show_default=True, help="Seconds per run.")
@click.option("--quick", is_flag=True, help="One short round of each, to see that it works; not for comparing.")
@click.option("--depth", "depths", multiple=True, type=click.IntRange(1, 1024), help="Requests in flight; repeatable.")
@click.option("--peer", "wanted", multiple=True, metavar="TEXT", help="Only what has TEXT in its name; repeatable.")
@click.option("--json", "json_path", type=click.Path(dir_okay=False, path_type=Path), help="Also write all results.")
@click.option("--csv", "csv_path", type=click.Path(dir_okay=False, path_type=Path), help="Also append a line per run.")
def main(
    sections: tuple[str, ...], times: int, runtime: float, quick: bool, depths: tuple[int, ...],
    wanted: tuple[str, ...], json_path: Path | None, csv_path: Path | None,
) -> None:  # fmt: skip
    """Measure ours beside its peers, all SECTIONs or some: null, memory, file, tmpfs, cost, idle, rate,
    python; net-tx, net-rx, net-echo, net-switch, net-foreign, net-rate, net-idle; fs-meta, fs-data, fs-big, fs-names,
    fs-sleep, fs-scale; gpu-display, gpu-alone, gpu-3d.
    """
    guard()
    console = Console()
    console.width = max(console.width, 150)  # a log is wide enough
    if quick:
        times, runtime = 1, 0.1
    said: set[str] = set()

    def say(line: str) -> None:
        if line not in said:
            console.print(line, style="yellow", soft_wrap=True)
            said.add(line)

    if len(os.sched_getaffinity(0)) < 2:
        say("only one processor: the polling rows say nothing")
    plan = Plan(runtime, min(0.15, runtime), depths or DEPTHS, wanted, say)
    done: list[Cell] = []
    failed = []
    for section in sections or OPENED:
        try:
            done += _run(section, plan, times, console)
        except click.ClickException as error:
            # the others are worth having
            console.print(f"{section}: {error.format_message()}", style="red", soft_wrap=True, markup=False)
            failed.append(section)
    if not done and not failed:
        why = f": no name has {' or '.join(wanted)} in it" if wanted else ""
        raise click.ClickException(f"nothing is left to measure{why}")
    console.print(LEGEND, style="dim")
    try:
        report.write(done, machine(), times, json_path, csv_path)
    except (ResultError, OSError) as error:
        raise click.ClickException(str(error)) from error
    if failed:
        raise click.ClickException(f"not measured: {', '.join(failed)}")
