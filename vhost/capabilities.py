"""What ``--print-capabilities`` prints and the ``*.json`` files by which libvirt finds a back-end.

Spec: QEMU ``docs/interop/vhost-user.json`` and "Backend program conventions" of ``vhost-user.rst``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from vhost.plugin import DeviceType

__all__ = ["SCHEMA_TYPES", "capabilities", "capability_file", "file_name", "install"]

#: VhostUserBackendType of the schema; a file of another type makes libvirt refuse the whole folder
SCHEMA_TYPES = frozenset(
    (
        *("9p", "balloon", "block", "caif", "console", "crypto", "gpu", "input"),
        *("net", "rng", "rpmsg", "rproc-serial", "scsi", "vsock", "fs"),
    )
)


def capabilities(device: DeviceType) -> str:
    """The JSON text that ``vhost NAME --print-capabilities`` prints."""
    return json.dumps({"type": device.backend_type, "features": list(device.features)}, indent=2)


def capability_file(device: DeviceType, binary: str) -> dict[str, Any]:
    """The content of the file that announces ``device``, served by the program ``binary`` (absolute path)."""
    return {
        "description": f"vhostkit {device.name}: {device.summary}",
        "type": device.backend_type,
        "binary": binary,
        "features": list(device.features),
    }


def file_name(device: DeviceType) -> str:
    """Its name in ``/usr/share/qemu/vhost-user``; files are taken in order, so distributors can put theirs first."""
    return f"60-vhostkit-{device.name}.json"


def install(devices: list[DeviceType], folder: Path, launcher_folder: Path) -> list[Path]:
    """Write the JSON file of each device and the launcher it names.

    The schema knows one program per type and no arguments, so each device gets a two-line launcher
    ``vhost-user-NAME`` beside the ``vhost`` command.

    Args:
        devices: What to announce; types the schema lacks are left out.
        folder: ``/usr/share/qemu/vhost-user``, ``/etc/qemu/vhost-user`` or ``$XDG_CONFIG_HOME/qemu/vhost-user``.
        launcher_folder: Where the launchers go; ``vhost`` must be found there or on the PATH.

    Returns:
        The files written.

    Raises:
        OSError: a folder cannot be written.
    """
    written = []
    folder.mkdir(parents=True, exist_ok=True)
    launcher_folder.mkdir(parents=True, exist_ok=True)
    for device in devices:
        if device.backend_type not in SCHEMA_TYPES:
            continue
        launcher = launcher_folder / f"vhost-user-{device.name}-vhostkit"
        beside = launcher_folder / "vhost"
        command = str(beside.resolve()) if beside.exists() else "vhost"
        launcher.write_text(f'#!/bin/sh\nexec {command} {device.name} "$@"\n')
        launcher.chmod(0o755)
        target = folder / file_name(device)
        target.write_text(json.dumps(capability_file(device, str(launcher.resolve())), indent=2) + "\n")
        written += [launcher, target]
    return written
