"""Peers, back-ends and guests end with the benchmark that started them, even where it is killed."""

from __future__ import annotations

import sys

import click

from bench.fs_peers import TESTS


def guard() -> None:
    """For the length of the current command."""
    if str(TESTS) not in sys.path:
        sys.path.insert(0, str(TESTS))  # it is the tests' own
    from guestlib.guard import Guard

    click.get_current_context().call_on_close(Guard().close)
