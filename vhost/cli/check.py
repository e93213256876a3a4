"""``vhost check TYPE``: is this back-end's vhost-user what the specification says?"""

from __future__ import annotations

import errno
import sys
from pathlib import Path

import click
from rich.console import Console
from rich.text import Text

from vhost.testing import DEVICES, Outcome, Verdict, check_backend, connect_to

__all__ = ["command"]

_STYLES = {Verdict.PASS: "green", Verdict.FAIL: "bold red", Verdict.NOT_OFFERED: "dim", Verdict.NOT_RUN: "yellow"}


@click.command("check")
@click.argument("device", type=click.Choice(sorted(DEVICES)))
@click.option("--socket-path", "path", required=True, metavar="PATH", help="Socket the back-end listens on.")
@click.option("--write-ok", is_flag=True, help="The disk may be overwritten: also run the clauses that write.")
@click.option("--null", "null", is_flag=True, help="The disk keeps nothing: do not compare what is read.")
@click.option("--once", is_flag=True, help="It ends with each connection, and something starts it again, as virtiofsd.")
@click.option("--only", metavar="TEXT", default="", help="Only clauses whose place or title contains this.")
@click.option("--failed", "failed_only", is_flag=True, help="Print only what fails.")
def command(device: str, path: str, write_ok: bool, null: bool, once: bool, only: str, failed_only: bool) -> None:
    """Try a vhost-user back-end against the specification, clause by clause.

    Exit status 1 if it fails one, 2 if nobody answers at PATH.
    """
    console = Console(highlight=False)
    connect = connect_to(path, timeout=5)
    try:
        if not once:
            connect_to(path, timeout=2)().close()
        elif not Path(path).is_socket():
            raise FileNotFoundError(errno.ENOENT, "there is no such socket")
    except OSError as error:
        console.print(f"{path}: {error.strerror}; is the back-end running?", style="bold red")
        sys.exit(2)

    def progress(outcome: Outcome) -> None:
        if failed_only and outcome.verdict is not Verdict.FAIL:
            return
        line = Text(f"{outcome.verdict.value:11}  ", style=_STYLES[outcome.verdict])
        line.append(f"{outcome.clause}: {outcome.title}", style="default")
        if outcome.detail:
            line.append(f"\n             {outcome.detail}", style=_STYLES[outcome.verdict])
        console.print(line, soft_wrap=True)

    report = check_backend(
        connect,
        device,
        writable=write_ok,
        keeps=not null,
        once=once,
        only=lambda check: only.lower() in f"{check.clause}: {check.title}".lower(),
        progress=progress,
    )
    console.print(", ".join(f"{report.count(verdict)} {verdict.value}" for verdict in Verdict))
    sys.exit(1 if report.failed else 0)
