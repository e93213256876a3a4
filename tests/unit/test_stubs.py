"""The committed type stubs are what the built modules are."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_stubs_are_up_to_date() -> None:
    done = subprocess.run(
        [sys.executable, "tools/gen_stub.py", "--check"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_a_stale_stub_is_told() -> None:
    sys.path.insert(0, str(ROOT / "tools"))
    try:
        import gen_stub  # type: ignore[import-not-found]
    finally:
        sys.path.remove(str(ROOT / "tools"))
    text = gen_stub.stub_of("ring._ring")
    assert "def ring_vq_pop(self, _0: CData, _1: CData, _2: int, /) -> int:" in text
    assert "RING_BATCH_MAX: Final[int]" in text
