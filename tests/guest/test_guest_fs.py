"""fio and walks in a guest, as `python -m bench.guest_fs` runs them: seconds, to see that it works, not how fast."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from guestlib import AssetError
from guestlib.trixie import virtiofsd

from vhost.bench import load

pytestmark = [pytest.mark.guest, pytest.mark.long, pytest.mark.timeout(300)]

ROOT = Path(__file__).parents[2]
C = Path("/usr/lib/qemu/virtiofsd")


@pytest.mark.skipif(shutil.which("fio") is None, reason="fio is not installed; it is in the Debian package fio")
def test_loads(tmp_path: Path) -> None:
    names = {"vhost fs"}
    try:
        virtiofsd()
        names |= {"virtiofsd in Rust"}
    except AssetError:
        pass  # named and left out
    if C.exists():
        names |= {"virtiofsd in C"}
    out = tmp_path / "result.json"
    command = [sys.executable, "-m", "bench.guest_fs", "--rounds", "1", "--runtime", "0.2", "--files", "40"]
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
