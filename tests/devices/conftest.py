"""What tests of stores share."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from nbdlib import Server


@pytest.fixture
def nbdkit(tmp_path: Path) -> Iterator:
    """Starts nbdkit with such arguments."""
    if not shutil.which("nbdkit"):
        pytest.skip("needs nbdkit (Debian: nbdkit)")
    servers: list[Server] = []

    def start(*args: str, export: str = "", name: str = "nbd.sock") -> Server:
        path = tmp_path / name
        server = Server("nbdkit", "-f", "--exit-with-parent", "-U", str(path), *args, path=path, export=export)
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.stop()


@pytest.fixture
def qemu_nbd(tmp_path: Path) -> Iterator:
    """Starts qemu-nbd with an image and more arguments."""
    if not shutil.which("qemu-nbd"):
        pytest.skip("needs qemu-nbd (Debian: qemu-utils)")
    servers: list[Server] = []

    def start(image: Path, *args: str, export: str = "disk") -> Server:
        path = tmp_path / "qemu.sock"
        command = ("qemu-nbd", "-k", str(path), "-x", export, "-t", *args, str(image))
        server = Server(*command, path=path, export=export)
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.stop(signal.SIGTERM)
