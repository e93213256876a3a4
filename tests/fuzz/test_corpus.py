"""The committed corpus, replayed under AddressSanitizer and UndefinedBehaviorSanitizer by the ordinary compiler."""

from __future__ import annotations

import runpy
import subprocess
from pathlib import Path

import cbuild
import pytest

HERE = Path(__file__).parent
#: target -> its seeds
TARGETS = {"ring": "seeds.py", "frame": "frame_seeds.py", "fuse": "fuse_seeds.py", "gpu": "gpu_seeds.py"}


@pytest.fixture(scope="module", params=TARGETS)
def target(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def replay(target: str) -> Path:
    cbuild.make("fuzz", f"{target}_replay")
    return cbuild.OUT / f"{target}_replay"


def test_corpus(target: str, replay: Path) -> None:
    corpus = HERE / "corpus" / target
    inputs = sorted(corpus.iterdir())
    assert len(inputs) >= 40
    done = subprocess.run([replay, *inputs], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    popped = {Path(name).name: int(n) for name, n in (line.split() for line in done.stdout.splitlines())}
    assert len(popped) == len(inputs)
    seeds = runpy.run_path(str(HERE / TARGETS[target]))["seeds"]()
    for name, data in seeds.items():
        assert (corpus / name).read_bytes() == data, f"{name} is stale: run tests/fuzz/{TARGETS[target]}"
        assert popped[name] > 0, f"{name} does nothing"


def test_replay_reports(replay: Path, tmp_path: Path) -> None:
    """A missing file is told; an empty one is an input like any other."""
    done = subprocess.run([replay, tmp_path / "none"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    (tmp_path / "empty").write_bytes(b"")
    done = subprocess.run([replay, tmp_path / "empty"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.split()[1]) == (0, "0")
