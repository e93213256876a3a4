"""Results of load generators: kept in files, compared, plotted."""

from __future__ import annotations

import csv
import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from vhost.bench import ResultError, Run, append_csv, cell_of, load, machine, save_json
from vhost.bench.compare import command as compare_command
from vhost.bench.compare import compare
from vhost.bench.plot import axis_of, series_of
from vhost.bench.plot import command as plot_command
from vhost.cli.bench import command as bench

WHERE = {
    "cpu": "A CPU", "cpus": 2, "kernel": "6.1", "python": "3.11", "versions": {"vhostkit": "0.1.0"},
    "commit": "abc", "time": "2026-01-01T00:00:00+0000",
}  # fmt: skip


def result(iops: float, *, p50: float = 10, depth: int = 32, **options: Any) -> dict[str, Any]:
    workload = {"rw": "randread", "block_bytes": 4096, "depth": depth, "packed": False, "runtime": 2, "cpus": [0, 1]}
    return {
        "workload": {**workload, **options},
        "iops": iops,
        "latency": {"p50_us": p50, "p99_us": 4 * p50},
        "backend_cpu_us": None,
        "first_error": "",
        "histogram": [[1.0, 2]],
    }


def run(iops: float, *, backend: str = "ours", **more: Any) -> Run:
    return Run.of_result("blk", backend, result(iops, **more), WHERE)


def write(path: Path, *runs: Run) -> Path:
    for each in runs:
        append_csv(path, each)
    return path


def test_machine_says_where_and_when() -> None:
    found = machine()
    assert found["cpu"]
    assert found["cpus"] >= 1
    assert found["kernel"]
    assert found["versions"]["vhostkit"]
    assert found["versions"]["trio"]
    assert found["time"][:2] == "20"
    if (Path(__file__).parents[2] / ".git").exists():
        assert found["commit"]


def test_values_are_numbers_by_dotted_names() -> None:
    assert run(5.0).values == {"iops": 5.0, "latency.p50_us": 10, "latency.p99_us": 40}
    assert run(5.0).options["depth"] == 32


def test_json_and_csv_say_the_same(tmp_path: Path) -> None:
    save_json(tmp_path / "r.json", "blk", "ours", result(1e5), WHERE)
    (from_json,) = load(tmp_path / "r.json")
    write(tmp_path / "r.csv", run(1e5), run(2e5))
    first, second = load(tmp_path / "r.csv")
    assert cell_of(from_json) == cell_of(first) == cell_of(second)
    assert from_json.values == first.values
    assert second.values["iops"] == 2e5
    assert first.machine["commit"] == "abc"
    assert first.machine["version"] == "0.1.0"
    lines = list(csv.reader((tmp_path / "r.csv").read_text().splitlines()))
    assert len(lines) == 3
    assert lines[0][:3] == ["time", "commit", "cpu"]


def test_only_what_matters_makes_a_cell() -> None:
    assert cell_of(run(1, runtime=9, cpus=[1], seed=7)) == cell_of(run(1, seed=8))
    assert cell_of(run(1, depth=1)) != cell_of(run(1, depth=2))
    assert cell_of(run(1, backend="theirs")) != cell_of(run(1))


def test_a_suite_is_read(tmp_path: Path) -> None:
    cells = [{"poll": True, "depth": 1, "store": "null", "results": {"a": [result(1), result(2)], "b": [result(3)]}}]
    (tmp_path / "s.json").write_text(json.dumps({"machine": WHERE, "rounds": 2, "cells": cells}))
    runs = load(tmp_path / "s.json")
    assert [(each.backend, each.values["iops"]) for each in runs] == [("a", 1), ("a", 2), ("b", 3)]
    assert runs[0].options["store"] == "null"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "holds no results"),
        ("hello\n1\n", "holds no results"),
        ("{", "holds no results"),
        ('{"machine": {}}', "holds no results"),
        ('{"format": 2, "machine": {}, "result": {}}', "format 2 is of another version"),
        ("time,commit,cpu,cpus,kernel,version,device,backend,value.iops\n1,2\n", "another number of columns"),
    ],
)
def test_what_is_no_result(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "f").write_text(text)
    with pytest.raises(ResultError, match=words):
        load(tmp_path / "f")


def test_csv_of_other_columns_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "r.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ResultError, match="has other columns"):
        append_csv(tmp_path / "r.csv", run(1))
    assert (tmp_path / "r.csv").read_text() == "a,b\n1,2\n"
    with pytest.raises(ResultError, match="cannot append"):
        append_csv(tmp_path / "none/r.csv", run(1))


def test_runs_with_other_figures_share_a_file(tmp_path: Path) -> None:
    """Columns of all; what a run lacks is empty, and is not read as a figure."""
    kept = tmp_path / "r.csv"
    idle = Run("blk", "idle", {"depth": 1}, {"backend_cpu_percent": 0.0}, WHERE)
    append_csv(kept, run(5), idle)
    append_csv(kept, idle)
    with pytest.raises(ResultError, match="has other columns"):
        append_csv(kept, Run("blk", "idle", {"depth": 1}, {"new": 1.0}, WHERE))
    loaded, first, second = load(kept)
    assert loaded.values == run(5).values
    assert first.values == second.values == {"backend_cpu_percent": 0.0}
    assert cell_of(first) == cell_of(idle)


def test_compare_tells_noise_from_regression() -> None:
    old = [run(100), run(120), run(110)]
    (noise,) = compare(old, [run(105), run(85), run(90)], ["iops"])
    assert noise.worse == pytest.approx(1 - 90 / 110)
    assert not noise.beyond_spread  # one of them is among the old ones
    (slower,) = compare(old, [run(95), run(85), run(90)], ["iops"])
    assert slower.beyond_spread
    (later,) = compare([run(1, p50=10)], [run(1, p50=15)], ["latency.p50_us"])
    assert later.worse == pytest.approx(0.5)
    assert later.beyond_spread
    assert compare(old, [run(1, depth=1)]) == []


def test_compare_command(tmp_path: Path) -> None:
    old = write(tmp_path / "old.csv", run(100), run(104), run(50, depth=1), run(50, backend="theirs"))
    same = write(tmp_path / "same.csv", run(102), run(50, depth=1))
    ran = CliRunner().invoke(bench, ["compare", str(old), str(same)])
    assert ran.exit_code == 0, ran.output
    assert "only in the old results: 1 cells" in ran.output
    worse = write(tmp_path / "worse.csv", run(60), run(50, depth=1, p50=10.9))
    ran = CliRunner().invoke(bench, ["compare", str(old), str(worse)])
    assert ran.exit_code == 1
    assert "worse" in ran.output
    assert "1 figure is worse by more than 10 %" in ran.output
    ran = CliRunner().invoke(bench, ["compare", str(old), str(worse), "--threshold", "60"])
    assert ran.exit_code == 0, ran.output
    ran = CliRunner().invoke(bench, ["compare", str(old), str(worse), "--metric", "latency.p50_us", "--threshold", "5"])
    assert ran.exit_code == 1
    other = write(tmp_path / "other.csv", run(60, rw="randwrite"))
    ran = CliRunner().invoke(compare_command, [str(old), str(other)])
    assert ran.exit_code == 1
    assert "has its like" in ran.output


def test_compare_says_when_machines_differ(tmp_path: Path) -> None:
    old = write(tmp_path / "old.csv", run(100))
    new = write(tmp_path / "new.csv", Run.of_result("blk", "ours", result(100), {**WHERE, "cpu": "Another"}))
    ran = CliRunner().invoke(compare_command, [str(old), str(new)])
    assert ran.exit_code == 0
    assert "different machines: A CPU (2 processors); and Another (2 processors)" in ran.output


def test_series() -> None:
    runs = [run(10 * depth, depth=depth, packed=packed) for packed in (False, True) for depth in (32, 1, 8)]
    assert axis_of(runs) == "depth"
    split, packed = series_of(runs, "depth")
    assert (split.name, packed.name) == ("packed no", "packed yes")
    assert split.x == (1, 8, 32)
    assert split.rate == (10, 80, 320)
    assert split.p99_us == (40, 40, 40)
    (middle,) = series_of([run(1), run(3), run(20)], "depth")
    assert middle.rate == (3,)
    with pytest.raises(ResultError, match="a curve needs"):
        axis_of([run(1), run(2)])
    with pytest.raises(ResultError, match="have the option rate"):
        axis_of(runs, "rate")


@pytest.mark.parametrize("name", ["curve.png", "curve.svg"])
def test_plot(tmp_path: Path, name: str) -> None:
    pytest.importorskip("matplotlib")
    kept = write(tmp_path / "r.csv", *(run(10 * depth, depth=depth, p50=depth) for depth in (1, 8, 32, 128)))
    out = tmp_path / name
    # a process of its own: matplotlib keeps its fonts open
    command = [Path(sys.executable).with_name("vhost"), "bench", "plot", kept, "-o", out]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    begin = out.read_bytes()[:300]
    assert begin.startswith(b"\x89PNG") if name.endswith("png") else b"<svg" in begin or b"<?xml" in begin


def test_plot_refuses(tmp_path: Path) -> None:
    kept = write(tmp_path / "r.csv", run(1))
    ran = CliRunner().invoke(plot_command, [str(kept), "-o", str(tmp_path / "x.txt")])
    assert ran.exit_code == 2
    assert "must end in" in ran.output
    ran = CliRunner().invoke(plot_command, [str(kept), "-o", str(tmp_path / "x.png")])
    assert isinstance(ran.exception, ResultError)


def test_plot_names_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.import_module

    def without(name: str, *rest: Any) -> Any:
        if name.startswith("matplotlib"):
            raise ModuleNotFoundError(name)
        return real(name, *rest)

    monkeypatch.setattr(importlib, "import_module", without)
    kept = write(tmp_path / "r.csv", run(1), run(2, depth=1))
    ran = CliRunner().invoke(plot_command, [str(kept), "-o", str(tmp_path / "x.png")])
    assert isinstance(ran.exception, ResultError)
    assert "pip install 'vhostkit[plot]'" in str(ran.exception)


def test_commands_are_listed() -> None:
    ran = CliRunner().invoke(bench, ["--help"])
    assert ran.exit_code == 0
    assert all(name in ran.output for name in ("blk", "compare", "plot"))
