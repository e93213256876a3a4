"""``vhost bench TYPE``: load on any back-end's socket. Each device type brings its own generator."""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points

import click

__all__ = ["command"]

GROUP = "vhost.loads"


def _loads() -> dict[str, EntryPoint]:
    return {found.name: found for found in entry_points(group=GROUP)}


class Loads(click.Group):
    """Finds load generators by the entry points of `vhost.loads`; each names a click command."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Device types with a load generator."""
        return sorted(_loads())

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of that name, or None."""
        found = _loads().get(cmd_name)
        if found is None:
            return None
        loaded = found.load()
        assert isinstance(loaded, click.Command)
        return loaded


command = Loads("bench", help="Measure a vhost-user back-end, ours or anybody's, through its socket.")
