"""`python -m bench net-*` works: a smoke of seconds of ours; testpmd itself is driven in test_net_load.py."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import peerlib
import pytest

from bench.net_peers import ours_name
from vhost.bench import cell_of, load


@pytest.mark.slow
def test_sections(tmp_path: Path) -> None:
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("both sides poll: needs two processors")
    out, lines = tmp_path / "r.json", tmp_path / "r.csv"
    words = ["net-rx", "net-switch", "--peer", "vhost net", "--json", str(out), "--csv", str(lines)]
    ran = subprocess.run(
        [sys.executable, "-m", "bench", "--quick", *words],
        cwd=peerlib.ROOT, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout + ran.stderr
    cells: list[dict[str, Any]] = json.loads(out.read_text())["cells"]
    assert [cell["load"] for cell in cells] == ["64 B", "1518 B", "64 B", "1518 B", "64 KiB TSO"]
    for cell in cells:
        assert set(cell["results"]) == {ours_name(), ours_name(packed=True)}
        assert all(run["errors"] == 0 for runs in cell["results"].values() for run in runs)
    assert [cell_of(run) for run in load(out)] == [cell_of(run) for run in load(lines)]


@pytest.mark.slow
def test_idle(tmp_path: Path) -> None:
    """A card on NAT whose driver is silent: hardly any CPU, also where other tests run beside."""
    out = tmp_path / "r.json"
    ran = subprocess.run(
        [sys.executable, "-m", "bench", "--quick", "net-idle", "--peer", "vhost net, packed", "--json", str(out)],
        cwd=peerlib.ROOT, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout + ran.stderr
    cells: list[dict[str, Any]] = json.loads(out.read_text())["cells"]
    assert {"null", "user"} <= {cell["load"] for cell in cells} <= {"null", "user", "tap"}
    for cell in cells:
        ((run,),) = cell["results"].values()
        assert run["backend_cpu_percent"] < 5, cell["load"]
