"""fio in guests, as `python -m bench.guest_fio` runs it: seconds, to see that it works; nobody looks at the figures."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from vhost.bench import load

pytestmark = [pytest.mark.guest, pytest.mark.timeout(300)]

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(shutil.which("fio") is None, reason="fio is not installed; it is in the Debian package fio")
@pytest.mark.parametrize(
    ("guest", "more", "names"),
    [
        ("uml", ["--store", "null", "--iodepth", "1,4"], {"vhost blk", "qemu-storage-daemon"}),
        (
            "qemu",
            ["--store", "file", "--rw", "randrw", "--iodepth", "4", "--ioengine", "io_uring"],
            {"vhost blk", "vhost blk, packed", "qemu-storage-daemon"},
        ),
    ],
    ids=["uml-null", "qemu-file"],
)
def test_fio(tmp_path: Path, guest: str, more: list[str], names: set[str]) -> None:
    out = tmp_path / "result.json"
    command = [sys.executable, "-m", "bench.guest_fio", "--guest", guest, "--rounds", "1", "--runtime", "0.5", *more]
    done = subprocess.run([*command, "--json", str(out)], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ratio" in done.stdout
    kept = json.loads(out.read_text())
    assert kept["machine"]["cpu"]
    runs = load(out)
    assert {run.backend for run in runs} == names
    assert len(runs) == len(names) * (2 if guest == "uml" else 1)
    for run in runs:
        assert run.options["guest"] == guest
        assert run.options["packed"] is run.backend.endswith("packed")
        assert run.values["iops"] > 0
        assert run.values["errors"] == 0
        assert 0 < run.values["latency.p50_us"] <= run.values["latency.p99_us"] <= run.values["latency.max_us"]
        assert run.values["backend_cpu_us"] > 0
