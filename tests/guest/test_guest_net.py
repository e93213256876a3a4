"""Streams in a guest, as `python -m bench.guest_net` runs them: seconds, to see that it works, not how fast."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from guestlib import AssetError
from guestlib import net as netlib
from guestlib.trixie import passt

from vhost.bench import load

pytestmark = [pytest.mark.guest, pytest.mark.timeout(300)]

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(shutil.which("iperf3") is None, reason="iperf3 is not installed; it is in the package iperf3")
def test_streams(tmp_path: Path) -> None:
    try:
        with netlib.namespace():
            pass
    except AssetError as error:
        pytest.skip(str(error))
    nat = {"vhost net", "QEMU's own"}
    try:
        passt()
        nat |= {"passt"}
    except AssetError:
        pass  # named and left out
    out = tmp_path / "result.json"
    command = [sys.executable, "-m", "bench.guest_net", "--rounds", "1", "--runtime", "1", "--json", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "tap, guest to host: at least 1.2 x QEMU's own, measured" in done.stdout
    assert ("passt with --vhost-user" in done.stdout) is ("passt" not in nat)
    cells = json.loads(out.read_text())["cells"]
    assert [set(cell["results"]) for cell in cells] == [{"vhost net", "QEMU's own"}] * 2 + [nat] * 2
    runs = load(out)
    assert {(run.options["link"], run.options["way"]) for run in runs} == {
        (link, way) for link in ("tap", "nat") for way in ("out", "in")
    }
    for run in runs:
        assert run.values["bytes_per_second"] > 1e5
        assert run.values["vcpu_ns"] > 0
        assert (run.values["backend_ns"] > 0) is (run.backend != "QEMU's own")
