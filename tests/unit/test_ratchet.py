"""The ratchet on instructions per request: it judges as it says, and what is in the tree passes it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

sys.path.insert(0, str(ROOT))  # nothing installed imports bench, so it is on no path
from bench.micro import ratchet  # noqa: E402

sys.path.remove(str(ROOT))


def test_judgement(tmp_path: Path) -> None:
    file = tmp_path / "ratchet.json"
    ratchet.save("gcc 1", {"ring a 1 device": 100.04, "ring b 1 device": 200, "ring c 1 device": 50}, file)
    kept = ratchet.load(file)
    assert kept.compiler == "gcc 1"
    same = dict(kept.counts)
    assert ratchet.problems(kept, same) == []
    assert ratchet.problems(kept, {**same, "ring a 1 device": 104.9}) == []
    (grown,) = ratchet.problems(kept, {**same, "ring a 1 device": 105.2})
    assert "ring a 1 device: 105.2 instructions per request, +5.2% over 100.0" in grown
    (new,) = ratchet.problems(kept, {**same, "ring d 1 device": 1})
    assert "not in ratchet.json yet" in new
    del same["ring b 1 device"]
    (gone,) = ratchet.problems(kept, same)
    assert "no longer measured" in gone
    assert ratchet.slack(kept, {"ring c 1 device": 40}) == ["ring c 1 device: 40.0 instructions per request, -20.0%"]


@pytest.fixture(scope="module")
def build_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both tests use what the first builds; VHOSTKIT_C_OUT keeps it between runs."""
    kept = os.environ.get("VHOSTKIT_C_OUT")
    return Path(kept) / "micro" if kept else tmp_path_factory.mktemp("micro")


@pytest.mark.slow
@pytest.mark.timeout(170)
def test_nothing_grew(build_folder: Path) -> None:
    """Builds, counts, compares: `python -m bench.micro --update` where growth is meant."""
    done = subprocess.run(
        [sys.executable, "-m", "bench.micro", "--check", "--out", str(build_folder)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode == 77:
        pytest.skip(done.stdout.strip())
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_times(build_folder: Path) -> None:
    """The clock's side works; its figures are not judged here."""
    command = [sys.executable, "-m", "bench.micro", "--no-count", "--seconds", "0.002", "--out", str(build_folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "split-indirect" in done.stdout
    assert "null-packed" in done.stdout
