"""``vhost serve CONFIG``: many devices in one process."""

from __future__ import annotations

from pathlib import Path

import click

from vhost.config import load


@click.command("serve", short_help="Serve many devices, as a configuration file says")
@click.argument("config", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--check", is_flag=True, help="only read the file and say what would be served")
def command(config: Path, check: bool) -> None:
    """Serve all devices of the TOML file CONFIG in this process.

    See docs/configuration.md for its format.
    """
    loaded = load(config)
    if check:
        for device in loaded.devices:
            where = device.connection["socket_path"] or device.connection["connect"]
            click.echo(f"{device.name}: {device.type.name} at {where}")
        return
    from vhost.cli.run import run

    run(loaded)
