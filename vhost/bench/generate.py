"""What load generators of all devices have in common: the C part and its threads, the back-end's cost, the result."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Generic, Self, TypeVar

import trio

from ring import strerror
from vhost.errors import DeviceError
from vhost.frontend import Frontend
from vhost.frontend.link import Link

__all__ = ["BackendCost", "Calls", "Generator", "Latency", "Measured", "Spent", "Sum", "run_generators"]

Work = TypeVar("Work")


@dataclass(frozen=True, slots=True)
class Latency:
    """Microseconds from sending to taking back; in a rate-limited run from when it was due."""

    mean_us: float
    p50_us: float
    p90_us: float
    p99_us: float
    p999_us: float
    max_us: float
    samples: int

    @classmethod
    def of(cls, points: Sequence[tuple[float, int]], largest: float) -> Self:
        """From a histogram: microseconds in rising order and how many there were of each; `largest` is exact."""
        total = sum(count for _, count in points)

        def at(share: float) -> float:
            seen = 0
            for value, count in points:
                seen += count
                if seen >= share * total:
                    return min(value, largest)
            return largest

        mean = sum(value * count for value, count in points) / max(total, 1)
        return cls(mean, at(0.5), at(0.9), at(0.99), at(0.999), largest, total)


def _histogram_of(
    runs: Sequence[Any], buckets: int, value: Callable[[int], int], us_per_tick: float
) -> list[tuple[float, int]]:
    """The sum of the generators' histograms (`hist` of their figures): microseconds, and how many had it."""
    found: dict[int, int] = {}
    for run in runs:
        for bucket in range(buckets):
            if count := run.hist[bucket]:
                found[bucket] = found.get(bucket, 0) + count
    return [(value(bucket) * us_per_tick, count) for bucket, count in sorted(found.items())]


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured(Generic[Work]):
    """What the result of every load has. Counts are per request, operation or packet within the measured time."""

    workload: Work
    features: int
    seconds: float
    errors: int
    first_error: str
    frontend_cpu_us: float
    """CPU time of the front-end's threads."""
    backend_cpu_us: float | None
    """CPU time of all of the back-end's threads; None where its process is not known."""
    backend_cpu_percent: float | None
    kicks: float
    calls: float
    frontend_switches: float
    """Context switches of the front-end's threads."""
    backend_switches: float | None
    late: int
    histogram: list[tuple[float, int]] = field(repr=False, default_factory=list)
    """Latency in microseconds and how many had it."""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Spent:
    """What a back-end's process used up; None: not known."""

    cpu_ns: int | None
    switches: int | None

    def since(self, before: Spent) -> Spent:
        """The difference to an earlier look."""
        return Spent(_less(self.cpu_ns, before.cpu_ns), _less(self.switches, before.switches))


def _less(after: int | None, before: int | None) -> int | None:
    return None if before is None or after is None else after - before


class BackendCost:
    """CPU time and context switches of the process behind all `frontends`, if it is one, and another than ours."""

    def __init__(self, frontends: Sequence[Frontend]) -> None:
        pids = {frontend.backend_pid for frontend in frontends}
        self.pid = pids.pop() if len(pids) == 1 and not pids & {0, os.getpid()} else None

    def now(self) -> Spent:
        """So far."""
        return Spent(None, None) if self.pid is None else Spent(_cpu_ns(self.pid), _switches(self.pid))


def _cpu_ns(pid: int) -> int | None:
    try:
        # the process's CPU clock (clock_getcpuclockid): exact, counts threads that ended too
        return time.clock_gettime_ns(~pid << 3 | 2)
    except OSError:
        return None


def _switches(pid: int) -> int | None:
    total = 0
    try:
        for status in Path(f"/proc/{pid}/task").glob("*/status"):
            total += sum(int(line.split()[1]) for line in status.read_text().splitlines() if "ctxt_switches" in line)
    except OSError:
        return None
    return total


def _pinned(cpu: int | None, function: Callable[[], int]) -> int:
    """Call `function` on this thread, on processor `cpu` if one is given."""
    before = os.sched_getaffinity(0)
    try:
        if cpu is not None:
            os.sched_setaffinity(0, {cpu})
        return function()
    finally:
        os.sched_setaffinity(0, before)


class Calls:
    """The C functions of one kind of generator: `lib`'s that begin with `prefix`."""

    def __init__(self, lib: Any, prefix: str) -> None:
        self.lib = lib
        self.run, self.stop, self.stats, self.free = (
            getattr(lib, f"{prefix}_{name}") for name in ("run", "stop", "stats", "free")
        )


class Generator:
    """One thread's generator in C; `ring/csrc/loadgen.h`.

    Args:
        cpus: processors of the front-end's threads; empty: not pinned.
        number: of this generator.
    """

    calls: ClassVar[Calls]

    def __init__(self, cpus: Sequence[int], number: int) -> None:
        self._cpu = cpus[number % len(cpus)] if cpus else None
        self._ptr: Any = None

    def run(self, seconds: float, mode: int) -> int:
        """On a thread of its own, on its processor; the GIL is released."""
        return _pinned(self._cpu, partial(self.calls.run, self._ptr, int(seconds * 1e9), mode))

    def stop(self) -> None:
        """Make `run` return soon; from any thread."""
        self.calls.stop(self._ptr)

    @property
    def stats(self) -> Any:
        """Of the last run; `run` in it is what all kinds count."""
        return self.calls.stats(self._ptr)

    def why(self, code: int) -> str:
        """What made `run` return `code`, an error."""
        run = self.stats.run
        known = run.first_error == self.calls.lib.GEN_E_RING
        return f"the back-end broke a ring: {strerror(run.first_error_info) if known else os.strerror(-code)}"

    def close(self) -> None:
        """Free it; its rings and memory are the caller's."""
        if self._ptr is not None:
            self.calls.free(self._ptr)
            self._ptr = None


async def run_generators(
    frontends: Iterable[Frontend], generators: Sequence[Generator], seconds: float, mode: int,
    *, left: str = "requests unanswered",
) -> None:  # fmt: skip
    """Run each on a thread of its own, until all are through.

    Args:
        mode: GEN_RUN, GEN_ONCE, GEN_DRAIN.
        left: what a device that stops working leaves behind.

    Raises:
        VhostError: a connection broke; its words.
        DeviceError: it broke a ring, or did not end in time.

    Cancellation: the generators stop within a round.
    """

    def stop() -> None:
        for generator in generators:
            generator.stop()

    links = [frontend.link for frontend in frontends]
    codes = await _run_threads(links, [partial(generator.run, seconds, mode) for generator in generators], stop)
    for generator, code in zip(generators, codes, strict=True):
        if code == -errno.ETIME:
            raise DeviceError(f"the back-end left {left} for {seconds:g} s")
        if code < 0:
            raise DeviceError(generator.why(code))


class Sum:
    """What several generators counted in a run, as one. `words` says what went wrong first, given the statistics."""

    def __init__(self, generators: Sequence[Generator], words: Callable[[Any], str]) -> None:
        self._stats = [generator.stats for generator in generators]
        self._runs = [stat.run for stat in self._stats]
        self._words = words
        self._us_per_tick = self._runs[0].ns / self._runs[0].ticks / 1e3
        self.seconds = max(run.ns for run in self._runs) / 1e9
        lib = generators[0].calls.lib
        self.histogram = _histogram_of(self._runs, lib.GEN_HIST, lib.gen_hist_value, self._us_per_tick)

    def total(self, name: str) -> int:
        """Of what generators of all kinds count."""
        return sum(getattr(run, name) for run in self._runs)

    def own(self, name: str) -> int:
        """Of what this kind counts."""
        return sum(getattr(stat, name) for stat in self._stats)

    @property
    def max_batch(self) -> int:
        """Most that one look found."""
        return max(int(run.max_batch) for run in self._runs)

    @property
    def latency(self) -> Latency:
        """Of all."""
        return Latency.of(self.histogram, max(run.max_ticks for run in self._runs) * self._us_per_tick)

    def measured(self, workload: object, frontend: Frontend, done: int, spent: Spent) -> dict[str, Any]:
        """The fields of `Measured`; counts are per each of `done`."""
        per = max(done, 1)
        first = next((stat for stat in self._stats if stat.run.errors), None)
        return {
            "workload": workload,
            "features": int(frontend.features),
            "seconds": self.seconds,
            "errors": self.total("errors"),
            "first_error": "" if first is None else self._words(first),
            "frontend_cpu_us": self.total("cpu_ns") / per / 1e3,
            "backend_cpu_us": None if spent.cpu_ns is None else spent.cpu_ns / per / 1e3,
            "backend_cpu_percent": None if spent.cpu_ns is None else spent.cpu_ns / self.seconds / 1e7,
            "kicks": self.total("kicks") / per,
            "calls": self.total("calls") / per,
            "frontend_switches": (self.total("voluntary") + self.total("involuntary")) / per,
            "backend_switches": None if spent.switches is None else spent.switches / per,
            "late": self.total("late"),
            "histogram": self.histogram,
        }


async def _run_threads(
    links: Iterable[Link], runs: Sequence[Callable[[], int]], stop: Callable[[], None]
) -> list[int]:  # fmt: skip
    """Call each of `runs` on a thread of its own; what they return.

    Args:
        links: connections; when one breaks, `stop` is called.
        stop: makes all of `runs` return soon; from any thread.

    Raises: VhostError: a connection broke; its words.

    Cancellation: `stop` is called, then waits for the threads.
    """
    links = list(links)
    limiter = trio.CapacityLimiter(len(runs))
    codes = [0] * len(runs)

    async def one(number: int) -> None:
        codes[number] = await trio.to_thread.run_sync(runs[number], limiter=limiter)

    async def watch(link: Link) -> None:
        try:
            await link.gone.wait()
        finally:  # cancelled or not: the threads must come back
            stop()

    async with trio.open_nursery() as nursery:
        for link in links:
            nursery.start_soon(watch, link)
        async with trio.open_nursery() as threads:
            for number in range(len(runs)):
                threads.start_soon(one, number)
        nursery.cancel_scope.cancel()
    for link in links:
        link.check()
    return codes
