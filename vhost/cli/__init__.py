"""The ``vhost`` command.

``vhost blk …`` and its like are made from what the installed device types declare (`vhost.plugin`); the other commands
are modules of this package, imported only when used, so that ``--print-capabilities`` answers at once.
"""

from __future__ import annotations

import importlib
import sys

import click

from vhost.errors import VhostError

__all__ = ["main"]

#: command -> module of this package whose ``command`` it is
COMMANDS = {
    "serve": "serve",
    "ctl": "ctl",
    "check": "check",
    "bench": "bench",
    "install-capabilities": "install",
}


class Commands(click.Group):
    """Finds commands among this package's modules and the installed device types."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Device types first."""
        from vhost.plugin import device_types

        return [*sorted(device_types()), *COMMANDS]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of that name, or None."""
        if cmd_name in COMMANDS:
            module = importlib.import_module(f"vhost.cli.{COMMANDS[cmd_name]}")
            command: click.Command = module.command
            return command
        from vhost.cli.device import device_command
        from vhost.plugin import find_device_type, is_device_type

        if not is_device_type(cmd_name):
            return None
        return device_command(find_device_type(cmd_name))


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="vhostkit")
def cli() -> None:
    """Virtio devices for any VMM, served by this process over vhost-user."""


def main(argv: list[str] | None = None) -> None:
    """Entry point of the ``vhost`` command: errors of ours are one sentence on stderr and exit status 1."""
    try:
        sys.exit(cli.main(args=argv, prog_name="vhost", standalone_mode=False))
    except click.ClickException as exc:
        exc.show()
        sys.exit(exc.exit_code)
    except click.Abort:
        sys.exit(130)
    except VhostError as exc:
        click.echo(f"vhost: {exc}", err=True)
        sys.exit(1)
