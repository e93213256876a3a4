"""``vhost bench``: load on any back-end's socket, a generator per device type; and results compared and plotted."""

from __future__ import annotations

import importlib
from importlib.metadata import EntryPoint, entry_points

import click

__all__ = ["command"]

GROUP = "vhost.loads"
#: what is done with results, whatever device they are of: command -> module whose ``command`` it is
TOOLS = {"compare": "vhost.bench.compare", "plot": "vhost.bench.plot"}


def _loads() -> dict[str, EntryPoint]:
    return {found.name: found for found in entry_points(group=GROUP)}


class Loads(click.Group):
    """Finds load generators by the entry points of `vhost.loads`; each names a click command."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Device types with a load generator, then what is done with results."""
        return [*sorted(_loads()), *TOOLS]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of that name, or None."""
        loaded: object
        if cmd_name in TOOLS:
            loaded = importlib.import_module(TOOLS[cmd_name]).command
        elif found := _loads().get(cmd_name):
            loaded = found.load()
        else:
            return None
        assert isinstance(loaded, click.Command)
        return loaded


command = Loads("bench", help="Measure a vhost-user back-end, ours or anybody's, through its socket.")
