"""What load generators of all devices have in common: the back-end's cost, latencies, threads that run the C part."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import trio

from vhost.frontend import Frontend
from vhost.frontend.link import Link

__all__ = ["BackendCost", "Latency", "Spent", "histogram_of", "pinned", "run_threads"]


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


def histogram_of(
    stats: Sequence[Any], buckets: int, value: Callable[[int], int], us_per_tick: float
) -> list[tuple[float, int]]:
    """The sum of the generators' histograms (`hist` of their statistics): microseconds, and how many had it."""
    found: dict[int, int] = {}
    for stat in stats:
        for bucket in range(buckets):
            if count := stat.hist[bucket]:
                found[bucket] = found.get(bucket, 0) + count
    return [(value(bucket) * us_per_tick, count) for bucket, count in sorted(found.items())]


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


def pinned(cpu: int | None, function: Callable[[], int]) -> int:
    """Call `function` on this thread, on processor `cpu` if one is given."""
    before = os.sched_getaffinity(0)
    try:
        if cpu is not None:
            os.sched_setaffinity(0, {cpu})
        return function()
    finally:
        os.sched_setaffinity(0, before)


async def run_threads(
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
