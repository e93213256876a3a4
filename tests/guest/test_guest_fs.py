"""fio and walks in a guest, as `python -m bench.guest_fs` runs them: seconds, to see that it works, not how fast."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from guestlib import AssetError, UmlDevice, boot_uml
from guestlib.fs import FS, mount
from guestlib.trixie import virtiofsd

from bench.guest_fs import Peer, in_c, running, rust
from bench.guest_uml import relayed, tree_cpu_ns
from vhost.bench import load

pytestmark = [pytest.mark.guest, pytest.mark.timeout(300)]

ROOT = Path(__file__).parents[2]
C = Path("/usr/lib/qemu/virtiofsd")


@pytest.mark.long
@pytest.mark.parametrize("guest", ["qemu", "uml"])
@pytest.mark.skipif(shutil.which("fio") is None, reason="fio is not installed; it is in the Debian package fio")
def test_loads(tmp_path: Path, guest: str) -> None:
    names = {"vhost fs"}
    try:
        virtiofsd()
        names |= {"virtiofsd in Rust"}
    except AssetError:
        pass  # named and left out
    if C.exists():
        names |= {"virtiofsd in C"}
    out = tmp_path / "result.json"
    command = [
        sys.executable,
        "-m",
        "bench.guest_fs",
        "--guest",
        guest,
        "--rounds",
        "1",
        "--runtime",
        "0.2",
        "--files",
        "40",
    ]
    command += ["--json", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert ("find, cold: at least 1.3 x virtiofsd in Rust, measured" in done.stdout) is (len(names) > 1)
    cells = json.loads(out.read_text())["cells"]
    assert len(cells) == 8
    assert all(set(cell["results"]) == names for cell in cells)
    for run in load(out):
        assert run.values["rate"] > 0
        assert run.values["guest_cpu_us"] > 0
        assert run.values["backend_cpu_us"] >= 0


@pytest.mark.parametrize("make", [rust, in_c])
async def test_relay(tmp_path: Path, make: Callable[[Path, str], Peer]) -> None:
    """User-mode Linux mounts virtiofsd, with a relay between them."""
    share = tmp_path / "share"
    share.mkdir()
    (share / "file").write_text("of the host\n")
    try:
        peer = make(share, "auto")
    except AssetError as error:
        pytest.skip(str(error))
    async with contextlib.AsyncExitStack() as stack:
        _, socket = await stack.enter_async_context(running(peer, tmp_path))
        way = await stack.enter_async_context(relayed(socket, peer.tag))
        guest = await stack.enter_async_context(boot_uml(tmp_path, UmlDevice(way, FS), memory_mib=256))
        await mount(guest, peer.tag)
        before = tree_cpu_ns(guest.proc.pid)
        assert await guest.output(f"cat /{peer.tag}/file; echo of the guest >/{peer.tag}/new") == "of the host"
        assert tree_cpu_ns(guest.proc.pid) > before
        await guest.power_off()
    assert (share / "new").read_text() == "of the guest\n"
