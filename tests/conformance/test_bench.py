"""`python -m bench` works: a smoke of seconds of every section, and its results are read by `vhost bench`."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import peerlib
import pytest

from vhost.bench import cell_of, load


def bench(*args: str) -> str:
    command = [sys.executable, "-m", "bench", "--quick", *args]
    ran = subprocess.run(command, cwd=peerlib.ROOT, capture_output=True, text=True, check=False, timeout=120)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


def cells(path: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(path.read_text())["cells"]
    return found


OURS = {"vhost blk, split, polling", "vhost blk, packed, polling"}
SLEEPING = {"vhost blk, split", "vhost blk, packed"}


def test_null(tmp_path: Path) -> None:
    peerlib.needs_storage_daemon()
    out, lines = tmp_path / "r.json", tmp_path / "r.csv"
    said = bench("null", "--depth", "1", "--depth", "32", "--json", str(out), "--csv", str(lines))
    assert "SPDK" in said
    assert "at least 8 x qemu-storage-daemon" in said
    assert "met" in said or "missed by" in said
    found = cells(out)
    assert [cell["load"] for cell in found] == ["polling, 1", "polling, 32", "sleeping, 1", "sleeping, 32"]
    assert set(found[0]["results"]) >= {*OURS, *SLEEPING, "qemu-storage-daemon"}
    assert set(found[2]["results"]) == {*SLEEPING, "qemu-storage-daemon"}
    for cell in found:
        assert all(run["requests"] > 10 and run["errors"] == 0 for runs in cell["results"].values() for run in runs)
    from_json, from_csv = load(out), load(lines)
    assert [cell_of(run) for run in from_json] == [cell_of(run) for run in from_csv]
    assert [run.values["iops"] for run in from_json] == pytest.approx([run.values["iops"] for run in from_csv], 1e-5)


@pytest.mark.parametrize("section", ["memory", "file", "tmpfs"])
def test_stores(section: str, tmp_path: Path) -> None:
    out, lines = tmp_path / "r.json", tmp_path / "r.csv"
    said = bench(section, "--depth", "8", "--json", str(out), "--csv", str(lines))
    if section == "tmpfs" and "there is no tmpfs" in said:
        pytest.skip("no tmpfs that takes O_DIRECT")
    polling, sleeping = cells(out)
    baseline = {"memory": ("memcpy, random 4 KiB", "cc")}.get(section, ("fio io_uring, native", "fio"))
    assert set(polling["results"]) >= OURS | ({baseline[0]} if shutil.which(baseline[1]) else set())
    assert set(sleeping["results"]) >= SLEEPING
    assert all(runs[0]["iops"] > 10 for cell in (polling, sleeping) for runs in cell["results"].values())
    assert [cell_of(run) for run in load(out)] == [cell_of(run) for run in load(lines)]


def test_a_selection_that_leaves_nothing() -> None:
    command = [sys.executable, "-m", "bench", "--quick", "null", "--peer", "nonesuch"]
    ran = subprocess.run(command, cwd=peerlib.ROOT, capture_output=True, text=True, check=False, timeout=60)
    assert ran.returncode == 1
    assert "no name has nonesuch in it" in ran.stderr
