"""`make bench` works: a smoke of seconds, both back-ends, all cells."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import peerlib


def test_quick(tmp_path: Path) -> None:
    out = tmp_path / "results.json"
    peerlib.needs_storage_daemon()
    ran = subprocess.run(
        [sys.executable, "-m", "bench", "--quick", "--json", str(out)],
        cwd=peerlib.ROOT, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "SPDK" in ran.stdout
    assert "(least-most)" in ran.stdout
    cells = json.loads(out.read_text())["cells"]
    assert [(cell["poll"], cell["depth"]) for cell in cells] == [
        (poll, depth) for poll in (True, False) for depth in (1, 32, 128)
    ]
    for cell in cells:
        assert set(cell["results"]) == {"vhost blk, split", "vhost blk, packed", "qemu-storage-daemon"}
        assert all(run["requests"] > 10 and run["errors"] == 0 for runs in cell["results"].values() for run in runs)
