"""``python -m bench.micro``: a table of costs; ``--check`` and ``--update`` are the ratchet."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from bench.micro import ratchet
from bench.micro.cost import ROOT, Broken, CannotMeasure, Cell, build, compiler, instructions, nanoseconds
from vhost.bench import machine

SKIPPED = 77
"""Exit status that test harnesses read as "not judged"."""


def table_of(counts: dict[Cell, float], times: dict[tuple[str, str, int], float]) -> Table:
    table = Table(title="cost of one request")
    for name in ("", "case", "at once"):
        table.add_column(name)
    for name in ("device, instructions", "driver, instructions", "both, ns"):
        table.add_column(name, justify="right")
    places = dict.fromkeys([*((cell.program, cell.case, cell.batch) for cell in counts), *times])
    for place in places:
        program, case, batch = place
        row = [counts.get(Cell(program, case, batch, end)) for end in ("device", "driver")]
        values = [*row, times.get(place)]
        table.add_row(program, case, str(batch), *("" if value is None else f"{value:,.1f}" for value in values))
    return table


def refusal(found_compiler: str) -> str | None:
    """Why counts of this compiler cannot be judged, or None."""
    kept = ratchet.load()
    if kept.compiler == found_compiler:
        return None
    return (
        f"the counts kept are of {kept.compiler}, this is {found_compiler}; other compilers make other code. "
        "`--update` on a commit known to be good keeps counts of this one."
    )


def judge(console: Console, counts: dict[str, float]) -> int:
    """Compare with what is kept; the exit status."""
    kept = ratchet.load()
    found = ratchet.problems(kept, counts)
    for line in found:
        console.print(line, style="red", soft_wrap=True)
    for line in ratchet.slack(kept, counts):
        console.print(f"{line}: `--update` keeps it", style="green", soft_wrap=True)
    if found:
        console.print("Meant so? `python -m bench.micro --update`, and the commit that changes ratchet.json says why.")
        return 1
    console.print(f"{len(counts)} counts within {ratchet.GROWTH:.0%} of {ratchet.FILE.name}")
    return 0


@click.command()
@click.option(
    "--check", is_flag=True, help="Exit status 1 if a count grew by more than 5 %, 77 if it cannot be judged."
)
@click.option("--update", is_flag=True, help="Keep today's counts.")
@click.option("--no-count", is_flag=True, help="Time only.")
@click.option("--seconds", type=float, default=0.2, show_default=True, help="Per cell, for the time.")
@click.option("--two", is_flag=True, help="Time the ring with an end on each of two processors.")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), help="Build folder.  [default: .cache/micro]")
@click.option("--json", "json_path", type=click.Path(dir_okay=False), help="Also write costs and machine to this file.")
def main(
    check: bool, update: bool, no_count: bool, seconds: float, two: bool, out: Path | None, json_path: str | None
) -> None:
    """What a request costs at the ring and through the block device: instructions and time."""
    console = Console()
    console.width = max(console.width, 100)
    out = (out or ROOT / ".cache/micro").resolve()
    if no_count and (check or update):
        raise click.UsageError("the ratchet is about counts; leave --no-count out")
    try:
        found_compiler = compiler()
        if check and not update and (why := refusal(found_compiler)):
            raise CannotMeasure(why)
        build(out)
        counts = {} if no_count else instructions(out)
        times = {} if check or update else nanoseconds(out, seconds, two=two)
    except CannotMeasure as error:
        if check and not update:
            console.print(f"not judged: {error}", soft_wrap=True)
            sys.exit(SKIPPED)
        raise click.ClickException(str(error)) from error
    except Broken as error:
        raise click.ClickException(str(error)) from error
    by_key = {cell.key: value for cell, value in counts.items()}
    if update:
        ratchet.save(found_compiler, by_key)
        console.print(f"{len(by_key)} counts kept in {ratchet.FILE.name}")
    elif check:
        sys.exit(judge(console, by_key))
    else:
        console.print(table_of(counts, times))
    if json_path is not None:
        kept = {
            "machine": machine(),
            "compiler": found_compiler,
            "instructions": by_key,
            "ns": {" ".join(map(str, place)): value for place, value in times.items()},
        }
        Path(json_path).write_text(json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    main()
