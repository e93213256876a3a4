"""`python -m bench gpu-*` works, a smoke of seconds beside contrib's where it is installed; results are read again."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import peerlib
import pytest

from bench.gpu_suite import CONTRIB, CONTRIB_PROGRAM, MEMCPY, ours_name
from vhost.bench import cell_of, load


@pytest.mark.slow
def test_sections(tmp_path: Path) -> None:
    out, lines = tmp_path / "r.json", tmp_path / "r.csv"
    command = [sys.executable, "-m", "bench", "--quick", "gpu-display", "gpu-alone", "--depth", "2"]
    ran = subprocess.run(
        [*command, "--json", str(out), "--csv", str(lines)],
        cwd=peerlib.ROOT, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout + ran.stderr
    cells = json.loads(out.read_text())["cells"]
    assert [cell["load"] for cell in cells] == ["all, 2", "256x256, 2", "16x16, 2"] * 2
    ours = {ours_name(), ours_name(packed=True)}
    for cell in cells:
        display = cell["section"] == "gpu-display"
        expected = ours | ({CONTRIB} if display and CONTRIB_PROGRAM.exists() else set())
        assert set(cell["results"]) == expected | ({MEMCPY} if cell["load"].startswith("all") else set())
        for (run,) in cell["results"].values():
            assert run["frames_per_second"] > 1
            assert run.get("errors", 0) == 0
    assert f"at least 0.8 x {MEMCPY}" in ran.stdout
    assert [cell_of(run) for run in load(out)] == [cell_of(run) for run in load(lines)]
