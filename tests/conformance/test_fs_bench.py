"""`python -m bench fs-*` works, a smoke of seconds beside virtiofsd where it is installed; results are read again."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import peerlib
import pytest
from click.testing import CliRunner

from bench import fs_memory
from bench.fs_peers import NATIVE, C, ours_name
from bench.fs_scale import MANY, ONE
from bench.fs_suite import LOCAL_LOCKS
from devices.fs.bench import command
from devices.fs.load import OPERATIONS, Workload
from vhost.bench import cell_of, load

OURS = {ours_name(), ours_name(packed=True)}
MORE = {"create": {ours_name(more=LOCAL_LOCKS)}}


def bench(*args: str) -> str:
    # virtiofsd in Rust comes from another release: tests/interop drives it
    wanted = [word for name in ("vhost fs", C, "native") for word in ("--peer", name)]
    ran = subprocess.run(
        [sys.executable, "-m", "bench", "--quick", *wanted, *args],
        cwd=peerlib.ROOT, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


@pytest.mark.slow
def test_sections(tmp_path: Path) -> None:
    out, lines = tmp_path / "r.json", tmp_path / "r.csv"
    said = bench("fs-meta", "fs-names", "fs-sleep", "--depth", "4", "--json", str(out), "--csv", str(lines))
    assert "at least 0.85 x system calls, native" in said
    cells: list[dict[str, Any]] = json.loads(out.read_text())["cells"]
    assert [cell["load"] for cell in cells] == [
        "getattr, 4", "lookup, 4", "list, 4", "create, 4", "getattr, sleeping, 4", "lookup, sleeping, 4",
        "read 4 KiB, sleeping, 4", "write 4 KiB, sleeping, 4",
    ]  # fmt: skip
    for cell in cells:
        asleep = "sleeping" in cell["load"]
        assert {name for name in cell["results"] if name.startswith("vhost")} == (
            {ours_name(polling=False), ours_name(packed=True, polling=False)}
            if asleep
            else OURS | MORE.get(cell["load"].split(",")[0], set())
        )
        assert NATIVE in cell["results"]
        for (run,) in cell["results"].values():
            # on a busy machine two that poll wait for each other's slices, longer than this measures
            assert run["iops"] > (10 if asleep else -1)
            assert run.get("errors", 0) == 0
        assert max(run["iops"] for (run,) in cell["results"].values()) > 10
    assert [cell_of(run) for run in load(out)] == [cell_of(run) for run in load(lines)]


@pytest.mark.slow
def test_queues_and_workers(tmp_path: Path) -> None:
    out = tmp_path / "r.json"
    said = bench("fs-scale", "--json", str(out))
    assert f"at least 1.6 x {ONE}" in said
    cells = json.loads(out.read_text())["cells"]
    assert [cell["load"] for cell in cells] == [
        "getattr, sleeping, 16", "read 4 KiB, sleeping, 16", "read 1 MiB, sleeping, 2",
    ]  # fmt: skip
    for cell in cells:
        assert list(cell["results"]) == [ONE, MANY, NATIVE, f"{NATIVE}, 2 processes"]
        assert [cell["results"][name][0]["workload"]["queues"] for name in (ONE, MANY)] == [1, 4]


def test_what_a_file_costs() -> None:
    ran = CliRunner().invoke(fs_memory.main, ["--files", "2000", "--peer", "vhost fs"], catch_exceptions=False)
    assert ran.exit_code == 0, ran.output
    found = re.findall(r"handles: (\w+) +(-?\d+) B +(-?\d+) B +([\d,]+)", ran.output)
    assert [handles for handles, *_ in found] == ["prefer", "never"]
    assert all(int(each) < 2000 for _, each, *_ in found)
    assert int(found[1][3].replace(",", "")) >= 200


def test_command(tmp_path: Path) -> None:
    """Every load of `vhost bench fs` on ours, with all that comes back compared, and nothing left behind."""
    out, lines = tmp_path / "r.json", tmp_path / "r.csv"
    memory = "/dev/shm" if Path("/dev/shm").is_dir() else None  # a disk may stand still for longer than this measures
    with peerlib.short_folder() as path, tempfile.TemporaryDirectory(prefix="vhost-fs-", dir=memory) as shared:
        share = Path(shared)
        program = str(Path(sys.executable).with_name("vhost"))
        words = [
            program,
            "fs",
            "--socket-path",
            str(path / "s"),
            "--shared-dir",
            str(share),
            "--num-request-queues",
            "2",
        ]
        with peerlib.running(words, path / "s", path / "log"):
            for number, op in enumerate(OPERATIONS):
                args = ["--socket-path", str(path / "s"), "--op", op, "--size", "1m", "--runtime", "0.1", "--verify"]
                args += ["--files", "400"] if op == "list" else []
                args += [["--packed"], ["--sleep"], ["--queues", "2", "--threads", "1"]][number % 3]
                args += ["--json", str(out), "--csv", str(lines), "--name", "ours"]
                ran = CliRunner().invoke(command, args, catch_exceptions=False)
                assert ran.exit_code == 0, ran.output
                assert ran.output.splitlines()[0].strip().startswith((op, f"random {op}"))
                result = json.loads(out.read_text())["result"]
                assert result["errors"] == 0
                assert result["operations"] > 10
                assert result["latency"]["p50_us"] > 0
                assert not list(share.iterdir())
    runs = load(lines)
    assert [run.options["op"] for run in runs] == list(OPERATIONS)
    assert {run.backend for run in runs} == {"ours"}


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"op": "chmod"}, "is none of"),
        ({"block_bytes": 12}, "multiple of 8"),
        ({"op": "read", "size": 512}, "has no block"),
        ({"block_bytes": 1 << 20, "piece_bytes": 512}, "larger pieces"),
        ({"depth": 0}, "depth 0"),
        ({"threads": 2}, "every thread needs a queue"),
        ({"op": "create", "threads": 2, "queues": 2}, "one thread"),
        ({"folder": "a/b"}, "no name of a folder"),
    ],
)
def test_nonsense(changed: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Workload(**changed).check()
