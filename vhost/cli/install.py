"""``vhost install-capabilities``: announce the back-ends to libvirt."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from vhost.capabilities import install
from vhost.errors import VhostError
from vhost.plugin import device_types


@click.command("install-capabilities", short_help="Write the JSON files by which libvirt finds the back-ends")
@click.option(
    "--dir",
    "folder",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("/etc/qemu/vhost-user"),
    show_default=True,
    help="/usr/share/qemu/vhost-user for packages, $XDG_CONFIG_HOME/qemu/vhost-user for one user",
)
@click.option(
    "--bin-dir",
    type=click.Path(path_type=Path, file_okay=False),
    help="where the launchers go; beside the vhost command unless given",
)
def command(folder: Path, bin_dir: Path | None) -> None:
    """Write one JSON file per device type, and the launcher it names."""
    try:
        written = install(list(device_types().values()), folder, bin_dir or Path(sys.argv[0]).resolve().parent)
    except OSError as exc:
        raise VhostError(f"cannot write {exc.filename}: {exc.strerror}") from exc
    for path in written:
        click.echo(path)
