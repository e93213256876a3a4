"""The ratchet: instructions per request may not grow by more than 5 % without `ratchet.json` saying so."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

FILE: Final = Path(__file__).resolve().parent / "ratchet.json"
GROWTH: Final = 0.05


@dataclass(frozen=True)
class Kept:
    """What `ratchet.json` holds: counts, and the compiler they belong to."""

    compiler: str
    counts: dict[str, float]


def load(file: Path = FILE) -> Kept:
    """The counts that are kept."""
    data = json.loads(file.read_text())
    return Kept(str(data["compiler"]), {str(key): float(value) for key, value in data["instructions"].items()})


def save(compiler: str, counts: Mapping[str, float], file: Path = FILE) -> None:
    """Replace the counts that are kept."""
    rounded = {key: round(value, 1) for key, value in counts.items()}
    file.write_text(json.dumps({"compiler": compiler, "instructions": rounded}, indent=1) + "\n")


def problems(kept: Kept, counts: Mapping[str, float]) -> list[str]:
    """What grew too much, is new, or is gone; empty if all is well."""
    found = []
    for key in [*kept.counts, *(key for key in counts if key not in kept.counts)]:
        if key not in counts:
            found.append(f"{key}: no longer measured")
        elif key not in kept.counts:
            found.append(f"{key}: not in {FILE.name} yet")
        elif counts[key] > kept.counts[key] * (1 + GROWTH):
            growth = counts[key] / kept.counts[key] - 1
            found.append(
                f"{key}: {counts[key]:.1f} instructions per request, {growth:+.1%} over {kept.counts[key]:.1f}"
            )
    return found


def slack(kept: Kept, counts: Mapping[str, float]) -> list[str]:
    """What shrank so much that the ratchet could be tightened."""
    return [
        f"{key}: {counts[key]:.1f} instructions per request, {counts[key] / before - 1:+.1%}"
        for key, before in kept.counts.items()
        if key in counts and counts[key] < before * (1 - GROWTH)
    ]
