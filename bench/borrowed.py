"""What benchmarks borrow from the tests: guests, programs of another release, and a guard over what is started."""

from __future__ import annotations

import sys
from pathlib import Path

import click

TESTS = Path(__file__).resolve().parent.parent / "tests"


def borrow() -> None:
    """From here on what the tests have can be imported."""
    if str(TESTS) not in sys.path:
        sys.path.insert(0, str(TESTS))


def guard() -> None:
    """Peers, back-ends and guests end with the current command, even where it is killed."""
    borrow()
    from guestlib.guard import Guard

    click.get_current_context().call_on_close(Guard().close)
