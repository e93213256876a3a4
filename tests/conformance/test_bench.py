"""`python -m bench` works: a smoke of seconds of every section, and its results are read by `vhost bench`."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import peerlib
import pytest

from bench import stores
from vhost.bench import cell_of, load
from vhost.bench.plot import axis_of, comparable, series_of
from vhost.bench.results import ResultError, Run


def bench(*args: str) -> str:
    command = [sys.executable, "-m", "bench", "--quick", *args]
    without = {key: value for key, value in os.environ.items() if key != "SPDK_DIR"}
    ran = subprocess.run(
        command, cwd=peerlib.ROOT, env=without, capture_output=True, text=True, check=False, timeout=120
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


def cells(path: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(path.read_text())["cells"]
    return found


OURS = {"vhost blk, split, polling", "vhost blk, packed, polling"}
SLEEPING = {"vhost blk, split", "vhost blk, packed"}


@pytest.mark.slow
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
        runs = [(cell["load"], name, run) for name, every in cell["results"].items() for run in every]
        assert not [run for run in runs if run[2]["requests"] <= 10 or run[2]["errors"]]
    from_json, from_csv = load(out), load(lines)
    assert [cell_of(run) for run in from_json] == [cell_of(run) for run in from_csv]
    assert [run.values["iops"] for run in from_json] == pytest.approx([run.values["iops"] for run in from_csv], 1e-5)


@pytest.mark.parametrize("section", ["memory", "file", "tmpfs"])
def test_stores(section: str, tmp_path: Path) -> None:
    out, lines = tmp_path / "r.json", tmp_path / "r.csv"
    if section == "tmpfs" and stores.direct_tmpfs() is None:
        pytest.skip("there is no tmpfs with room that takes O_DIRECT")
    # other peers: test_null
    wanted = [word for name in ("vhost blk", "memcpy", "fio") for word in ("--peer", name)]
    bench(section, "--depth", "8", *wanted, "--json", str(out), "--csv", str(lines))
    polling, sleeping = cells(out)
    baseline = {"memory": ("memcpy, random 4 KiB", "cc")}.get(section, ("fio io_uring, native", "fio"))
    assert set(polling["results"]) >= OURS | ({baseline[0]} if shutil.which(baseline[1]) else set())
    assert set(sleeping["results"]) >= SLEEPING
    assert all(runs[0]["iops"] > 10 for cell in (polling, sleeping) for runs in cell["results"].values())
    assert [cell_of(run) for run in load(out)] == [cell_of(run) for run in load(lines)]


@pytest.mark.slow
def test_cost_and_duty(tmp_path: Path) -> None:
    """What has other figures than a plain load is kept in the same file."""
    out, lines = tmp_path / "r.json", tmp_path / "r.csv"
    said = bench("cost", "idle", "rate", "--json", str(out), "--csv", str(lines))
    assert said.count("req/CPU s: at least 0.9 x") == 4
    assert "CPU %: at most 0.1" in said
    assert "p50: at most 1.2 x" in said
    found = cells(out)
    assert [cell["section"] for cell in found] == ["cost"] * 3 + ["idle"] + ["rate"] * 2
    for cell in found[:3]:
        one, *many = (runs[0] for runs in cell["results"].values())
        assert many
        assert all(run["errors"] == 0 and run["per_cpu_second"] > 1000 for run in (one, *many))
    assert len(found[1]["results"]) == 3 - (shutil.which("qemu-storage-daemon") is None)
    for runs in found[4]["results"].values():
        assert runs[0]["workload"]["rate"] == 10_000
        assert runs[0]["iops"] < 11_000
    assert [cell_of(run) for run in load(out)] == [cell_of(run) for run in load(lines)]
    assert [run.values.keys() for run in load(out)] == [run.values.keys() for run in load(lines)]


def test_python_device(tmp_path: Path) -> None:
    out = tmp_path / "r.json"
    assert "at least 200,000" in bench("python", "--json", str(out))
    (cell,) = cells(out)
    ((run,),) = cell["results"].values()
    assert run["iops"] > 1000
    assert 0 < run["latency"]["p50_us"] <= run["latency"]["p99_us"]
    assert run["backend_cpu_us"] > 0


@pytest.mark.slow
def test_results_are_compared_and_plotted(tmp_path: Path) -> None:
    out, lines = tmp_path / "r.json", tmp_path / "r.csv"
    for _ in range(2):
        bench("null", "--depth", "1", "--depth", "8", "--peer", "split", "--json", str(out), "--csv", str(lines))
    vhost = Path(sys.executable).with_name("vhost")
    # 1000 %: this looks at what is compared, not at the machine
    command: list[str | Path] = [vhost, "bench", "compare", lines, out, "--threshold", "1000"]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "only in" not in ran.stdout
    assert ran.stdout.count("latency.p50_us") == 6  # polling: two back-ends at two depths; sleeping: one
    pytest.importorskip("matplotlib")
    plot = tmp_path / "p.svg"
    ran = subprocess.run([vhost, "bench", "plot", out, "-o", plot], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert plot.stat().st_size > 1000


def test_what_has_no_throughput_is_left_out_of_a_plot() -> None:
    runs: tuple[tuple[str, dict[str, int], dict[str, Any]], ...] = (
        ("blk", {"depth": 1}, {"iops": 1000.0, "latency": {"p50_us": 1.0, "p99_us": 2.0}}),
        ("blk", {"depth": 8}, {"iops": 4000.0, "latency": {"p50_us": 2.0, "p99_us": 4.0}}),
        ("blk", {"depth": 8}, {"backend_cpu_percent": 0.0}),
        ("net", {"frame": 64}, {"packets_per_second": 1e6}),
        ("net", {"frame": 1518}, {"packets_per_second": 5e5}),
    )
    made = [Run.of_result(device, "x", {"workload": what, **figures}, {}) for device, what, figures in runs]
    with pytest.raises(ResultError, match="blk and net; choose one with --device"):
        comparable(made)
    blk, rate = comparable(made, "blk")
    assert (len(blk), rate) == (2, "iops")
    net, rate = comparable(made, "net")
    (line,) = series_of(net, axis_of(net), rate)
    assert line.rate == (1e6, 5e5)
    assert all(map(math.isnan, line.p50_us))
    with pytest.raises(ResultError, match="none of these results of fs has a throughput"):
        comparable(made, "fs")


def test_a_peer_that_does_not_start_spoils_its_sections_only(tmp_path: Path) -> None:
    (tmp_path / "build/bin").mkdir(parents=True)
    fake = tmp_path / "build/bin/vhost"
    fake.write_text("#!/bin/sh\necho no such luck\nexit 3\n")
    fake.chmod(0o755)
    command = [sys.executable, "-m", "bench", "--quick", "null", "python"]
    ran = subprocess.run(
        command, cwd=peerlib.ROOT, env={**os.environ, "SPDK_DIR": str(tmp_path)}, capture_output=True, text=True,
        check=False, timeout=60,
    )  # fmt: skip
    assert ran.returncode == 1
    assert "no such luck" in ran.stdout or "needs huge pages" in ran.stdout
    assert "at least 200,000" in ran.stdout
    assert "not measured: null" in ran.stderr


def test_a_selection_that_leaves_nothing() -> None:
    command = [sys.executable, "-m", "bench", "--quick", "null", "--peer", "nonesuch"]
    ran = subprocess.run(command, cwd=peerlib.ROOT, capture_output=True, text=True, check=False, timeout=60)
    assert ran.returncode == 1
    assert "no name has nonesuch in it" in ran.stderr
