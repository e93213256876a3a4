"""Results in files: JSON with everything, CSV with a line per run, and what tells one cell from another."""

from __future__ import annotations

import csv
import json
import os
import platform
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

from vhost.errors import VhostError

__all__ = ["ResultError", "Run", "append_csv", "cell_of", "load", "machine", "save_json"]

FORMAT: Final = 1
"""Of the JSON files; counts up when a reader of old ones would be misled."""

#: options that say how long and how often, not what: runs that differ only in them are of one cell
NOT_OF_THE_CELL: Final = frozenset({"runtime", "warmup", "seed", "cpus", "hugepages"})
PACKAGES: Final = ("vhostkit", "trio", "cffi")
_MACHINE_COLUMNS: Final = ("time", "commit", "cpu", "cpus", "kernel", "version")


class ResultError(VhostError):
    """A file of results cannot be read or written; the text says which and why."""


@dataclass(frozen=True, slots=True)
class Run:
    """One measurement.

    Attributes:
        device: type of the load, such as ``blk``.
        backend: what was measured, a name for people.
        options: of the load.
        values: figures by name; those of nested parts with a dot, as ``latency.p50_us``.
        machine: as `machine()` gives it.
    """

    device: str
    backend: str
    options: Mapping[str, Any]
    values: Mapping[str, float]
    machine: Mapping[str, Any]

    @classmethod
    def of_result(cls, device: str, backend: str, result: Mapping[str, Any], where: Mapping[str, Any]) -> Run:
        """From a load generator's result as a dict: its ``workload`` is the options, its numbers are the values."""
        return cls(device, backend, dict(result.get("workload", {})), _numbers(result), dict(where))


def _numbers(tree: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    found: dict[str, float] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and key != "workload":
            found |= _numbers(value, f"{prefix}{key}.")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            found[prefix + key] = value
    return found


def cell_of(run: Run) -> tuple[str, str, tuple[tuple[str, str], ...]]:
    """What runs must have in common to be compared: device, back-end, options that matter, as text."""
    options = {key: _text(value) for key, value in run.options.items() if key not in NOT_OF_THE_CELL}
    # an empty field of a CSV: this run has no such option
    return run.device, run.backend, tuple(sorted((key, text) for key, text in options.items() if text))


def _text(value: object) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, Sequence):
        return "+".join(map(_text, value))
    return str(value)


# --- where and when


def machine() -> dict[str, Any]:
    """Processor, kernel, versions, commit and date, for a result that is kept."""
    return {
        "cpu": _cpu_model(),
        "cpus": os.cpu_count() or 0,
        "usable_cpus": len(os.sched_getaffinity(0)),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "versions": {package: _version(package) for package in PACKAGES},
        "commit": _commit(),
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    models = (line.split(":", 1)[1].strip() for line in lines if line.startswith(("model name", "CPU part")))
    return next(models, platform.machine())


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _commit() -> str:
    """Of the source tree this runs from; empty where it is installed."""
    here = Path(__file__)
    git = ["git", "-C", str(here.parent)]
    try:
        # a virtual environment may lie in a tree that is somebody else's
        ours = subprocess.run(
            [*git, "ls-files", "--error-unmatch", here.name], capture_output=True, check=False, timeout=5
        )
        if ours.returncode:
            return ""
        done = subprocess.run(
            [*git, "describe", "--always", "--dirty"], capture_output=True, text=True, check=False, timeout=5
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip()


# --- files


def save_json(path: Path, device: str, backend: str, result: Mapping[str, Any], where: Mapping[str, Any]) -> None:
    """Write one result with all its detail.

    Raises: ResultError: the file cannot be written.
    """
    data = {"format": FORMAT, "device": device, "backend": backend, "machine": where, "result": result}
    try:
        path.write_text(json.dumps(data, indent=1) + "\n")
    except OSError as error:
        raise ResultError(f"cannot write {path}: {error.strerror}") from error


def append_csv(path: Path, *runs: Run) -> None:
    """Append a line per run; a new file gets a line of column names first, of all options and figures there are.

    Raises: ResultError: the file cannot be written, or lacks a column.
    """
    rows = [_row(run) for run in runs]
    columns = list(dict.fromkeys(column for row in rows for column in row))
    try:
        with path.open("a+", newline="", encoding="utf-8") as file:
            file.seek(0)
            first = file.readline()
            have = next(csv.reader([first])) if first else columns
            if not set(columns) <= set(have):
                raise ResultError(f"{path} has other columns than this version writes; append to another file")
            writer = csv.DictWriter(file, fieldnames=have, restval="")
            if not first:
                writer.writeheader()
            writer.writerows(rows)
    except OSError as error:
        raise ResultError(f"cannot append to {path}: {error.strerror}") from error


def _row(run: Run) -> dict[str, str]:
    where = {**run.machine, "version": run.machine.get("versions", {}).get("vhostkit", "")}
    row = {column: _text(where.get(column, "")) for column in _MACHINE_COLUMNS}
    row |= {"device": run.device, "backend": run.backend}
    row |= {f"option.{key}": _text(value) for key, value in run.options.items()}
    return row | {f"value.{key}": f"{value:.6g}" for key, value in run.values.items()}


def load(path: Path) -> list[Run]:
    """The runs in a file: of one load (``--json``, ``--csv``) or of a whole suite (``make bench``).

    Raises: ResultError: it cannot be read, or is no such file.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ResultError(f"cannot read {path}: {error}") from error
    try:
        runs = _from_json(json.loads(text)) if text.lstrip().startswith("{") else _from_csv(text.splitlines())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ResultError(f"{path} holds no results of vhost bench: {type(error).__name__}: {error}") from error
    if not runs:
        raise ResultError(f"{path} holds no results of vhost bench")
    return runs


def _from_json(data: Mapping[str, Any]) -> list[Run]:
    if data.get("format", FORMAT) != FORMAT:
        raise ValueError(f"format {data['format']} is of another version")
    where = data["machine"]
    if "result" in data:
        return [Run.of_result(data.get("device", "blk"), data.get("backend", "back-end"), data["result"], where)]
    runs = []
    for cell in data["cells"]:
        device = cell.get("device", data.get("device", "blk"))
        # what a suite says of a cell, such as the store behind the disk, tells cells apart too
        extra = {key: value for key, value in cell.items() if isinstance(value, str) and key != "device"}
        for backend, results in cell["results"].items():
            for result in results:
                run = Run.of_result(device, backend, result, where)
                runs.append(Run(run.device, run.backend, {**extra, **run.options}, run.values, run.machine))
    return runs


def _from_csv(lines: Iterable[str]) -> list[Run]:
    runs = []
    for row in csv.DictReader(lines):
        if None in row or None in row.values():
            raise ValueError("a line has another number of columns than the first")
        options = {key[7:]: value for key, value in row.items() if key.startswith("option.")}
        values = {key[6:]: float(value) for key, value in row.items() if key.startswith("value.") and value}
        where = {key: row[key] for key in _MACHINE_COLUMNS}
        runs.append(Run(row["device"], row["backend"], options, values, where))
    return runs
