#!/usr/bin/env python3
"""The whole check, cheap things first; one summary at the end. Called by `make test`.

    tools/run_tests.py [PYTEST OPTIONS]

The tests are cut into jobs, each a pytest of its own. As many run side by side as there are processors, and one more,
as most wait for something now and then (LANES in the environment: another number). What measures, or polls, comes when
all have ended. What guests are made of is fetched beside the first jobs.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

ROOT = Path(__file__).resolve().parents[1]
BIN = ROOT / ".venv/bin"
#: a guest takes up to 1 GiB
LANES = int(os.environ.get("LANES") or min((os.cpu_count() or 1) + 1, 6))
#: seconds for an interrupted job to end its guests
GRACE = 20


@dataclass(frozen=True)
class Job:
    """One process: its name, its command, and whether it boots guests."""

    name: str
    command: list[str]
    guests: bool = False
    env: dict[str, str] = field(default_factory=dict)


@dataclass
class Run:
    """What has been run, and what is running."""

    results: list[tuple[str, float, bool]] = field(default_factory=list)
    running: set[subprocess.Popen[bytes]] = field(default_factory=set)
    changed: threading.Condition = field(default_factory=threading.Condition)
    ended: bool = False

    def perform(self, job: Job, *, quiet: bool = True) -> bool:
        """Run it to its end; True where nothing is wrong. What it says is printed then, or as it comes."""
        begun = time.monotonic()
        with contextlib.ExitStack() as stack:
            out = stack.enter_context(tempfile.TemporaryFile()) if quiet else None
            if not quiet:
                print(f"\n== {job.name}", flush=True)
            with self.changed:
                if self.ended:
                    return False
                process = subprocess.Popen(
                    job.command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=out, stderr=out and subprocess.STDOUT,
                    env={**os.environ, **job.env}, start_new_session=True,
                )  # fmt: skip
                self.running.add(process)
            # of pytest, 5: none of these was asked for
            good = process.wait() in ((0, 5) if "pytest" in job.command else (0,))
            took = time.monotonic() - begun
            with self.changed:
                self.running.discard(process)
                self.results.append((job.name, took, good))
                if out:
                    print(f"\n-- {job.name}: {'passed' if good else 'FAILED'}, {took:.0f} s", flush=True)
                    out.seek(0)
                    sys.stdout.buffer.write(out.read())
                    sys.stdout.buffer.flush()
        return good

    def end(self) -> None:
        """End what is running, as Ctrl-C would."""
        with self.changed:
            self.ended = True
            running = list(self.running)
            self.changed.notify_all()
        for number in (signal.SIGINT, signal.SIGKILL):
            for process in running:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, number)
            until = time.monotonic() + GRACE
            while any(process.poll() is None for process in running) and time.monotonic() < until:
                time.sleep(0.1)


def part(name: str, marks: str, files: list[str], options: list[str], *, guests: bool = False) -> Job:
    """Tests, as a job of pytest's."""
    command = [str(BIN / "python"), "-m", "pytest", "-q", "--durations=5", "-p", "no:cacheprovider", "-m", marks]
    return Job(name, [*command, *options, *files], guests=guests)


def jobs(options: list[str]) -> Iterator[Job]:
    """All of them; what takes longest comes first, as far as it need not wait for guests to be made."""
    everything = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "tests").rglob("test_*.py"))
    guests = [name for name in everything if name.startswith("tests/guest/")]
    left = [name for name in everything if name not in guests]

    def fast(name: str, *begin: str) -> Job:
        mine = [file for file in left if file.startswith(begin)]
        left[:] = [file for file in left if file not in mine]
        return part(name, "not guest and not calm", mine, options)

    yield fast("unit", "tests/unit/")
    yield fast("hostile", "tests/hostile/")
    yield fast("file systems", "tests/devices/test_fs_")
    for name in sorted(guests, key=lambda name: -(ROOT / name).stat().st_size):
        yield part(name, "guest and not long", [name], options, guests=True)
    yield fast("other front-ends and back-ends", "tests/interop/")
    yield fast("displays", "tests/devices/test_gpu", "tests/devices/test_input")
    yield fast("conformance", "tests/conformance/")
    yield fast("disks and networks", "tests/devices/")
    yield fast("what is left", "")


def lane(run: Run, todo: list[Job], assets: threading.Event, good: list[bool]) -> None:
    """Take jobs until there are none."""
    while True:
        with run.changed:
            while not run.ended:
                ready = [job for job in todo if not job.guests or assets.is_set()]
                if ready or not todo:
                    break
                run.changed.wait()
            if run.ended or not todo:
                return
            job = ready[0]
            todo.remove(job)
        if job.guests and not good[0]:
            with run.changed:
                run.results.append((f"{job.name}, for want of guests", 0, False))
        else:
            run.perform(job)


def main(options: list[str]) -> int:
    """Run all; the exit status."""
    begun = time.monotonic()
    run = Run()

    def interrupted(number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt(number)

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupted)
    assets, good = threading.Event(), [False]

    def make() -> None:
        command = [str(BIN / "python"), "-m", "guestlib", "test"]
        good[0] = run.perform(Job("what guests are made of", command, env={"PYTHONPATH": "tests"}))
        assets.set()
        with run.changed:
            run.changed.notify_all()

    todo = list(jobs(options))
    try:
        run.perform(Job("ruff", [str(BIN / "ruff"), "check", "."]), quiet=False)
        todo.insert(0, Job("mypy", [str(BIN / "mypy")]))
        print(f"\n== tests, {len(todo)} jobs, {LANES} at a time", flush=True)
        threads = [threading.Thread(target=make)]
        threads += [threading.Thread(target=lane, args=(run, todo, assets, good)) for _ in range(LANES)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        run.perform(part("calm", "calm and not guest", ["tests/interop", "tests/conformance"], options), quiet=False)
    except KeyboardInterrupt:
        print("\ninterrupted", flush=True)
        run.end()
        return 130
    print("\n== summary")
    run.results.append(("all", time.monotonic() - begun, all(good for _, _, good in run.results)))
    for name, took, passed in run.results:
        print(f"{name:40} {'passed' if passed else 'FAILED'} {took:5.0f} s")
    return 0 if run.results[-1][2] else 1


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
