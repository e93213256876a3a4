"""Types of options that the load generators' commands share."""

from __future__ import annotations

from typing import Any

import click

from vhost.plugin import parse_rate, parse_size

__all__ = ["CPUS", "RATE", "SIZE", "or_unknown"]


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


def or_unknown(value: float | None, form: str) -> str:
    """`value` as `form` has it, or words."""
    return "not known" if value is None else form.format(value)
