"""``vhost ctl``: ask a running server through its control socket."""

from __future__ import annotations

import json
from typing import Any

import click
import trio
from rich.console import Console
from rich.table import Table

from vhost.control import ControlError, call
from vhost.errors import VhostError


def _value(text: str) -> Any:
    """A parameter's value: JSON where it is JSON (numbers, true, null), text otherwise."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _params(words: tuple[str, ...]) -> dict[str, Any]:
    params = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals:
            raise click.UsageError(f"{word!r} is not NAME=VALUE")
        params[name.replace("-", "_")] = _value(value)
    return params


def _show_help(result: dict[str, Any]) -> None:
    table = Table("method", "parameters", "", box=None)
    for name, entry in result.items():
        table.add_row(name, ", ".join(f"{k}: {v}" for k, v in entry["params"].items()), entry["help"])
    Console().print(table)


@click.command("ctl", short_help="Control a running server")
@click.option("--socket", "-s", "path", required=True, metavar="PATH", help="its --control socket")
@click.option("--json", "as_json", is_flag=True, help="print the result as JSON")
@click.argument("method", default="help")
@click.argument("params", nargs=-1, metavar="[NAME=VALUE]...")
def command(path: str, as_json: bool, method: str, params: tuple[str, ...]) -> None:
    """Call METHOD of the server behind PATH; without one, list the methods.

    vhost ctl -s /run/vhost.sock resize device=vm0 size=20G
    """
    try:
        result = trio.run(call, path, method, _params(params))
    except ControlError as exc:
        raise VhostError(exc.message) from exc
    except OSError as exc:
        raise VhostError(f"no server answers at {path}: {exc.strerror or exc}") from exc
    if as_json:
        click.echo(json.dumps(result, indent=2))
    elif method == "help":
        _show_help(result)
    elif isinstance(result, str):
        click.echo(result)
    elif result is not None:
        click.echo(json.dumps(result, indent=2))
