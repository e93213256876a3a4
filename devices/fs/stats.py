"""Counters of a file system: read from its queues while they run, kept when they go."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from devices.fs._fs import ffi, lib
from devices.fs.config import Opcode
from vhost import Metric

__all__ = ["FsStats"]

_OPS: int = lib.FS_OPS
_BUCKETS: int = lib.FS_LATENCY_BUCKETS
_SHIFT: int = lib.FS_LATENCY_SHIFT
_QUANTILES = (0.5, 0.99, 0.999)
_COUNTERS = ("bytes_in", "bytes_out", "slow", "again", "malformed", "cancelled")

#: number -> name, for those that have one; 0: unknown ones
_NAMES = {0: "unknown"} | {int(op): op.name.lower() for op in Opcode}


def _zeros() -> list[int]:
    return [0] * _OPS


@dataclass(slots=True)
class FsStats:
    """Sums over queues.

    Attributes:
        requests: answered, by opcode; 0 has those that are unknown.
        errors: of them, answered with an error.
        ticks: latencies, in ticks of `fs_tick_ns`.
        latency: requests per opcode and bucket.
        bytes_in: data of requests.
        bytes_out: of replies without their headers.
        slow: requests that were handed to a thread.
        again: times a request was put off (a lock that somebody else holds).
        malformed: requests whose lengths do not fit.
        cancelled: interrupted, or ended because the queue stopped.
    """

    requests: list[int] = field(default_factory=_zeros)
    errors: list[int] = field(default_factory=_zeros)
    ticks: list[int] = field(default_factory=_zeros)
    latency: list[list[int]] = field(default_factory=lambda: [[0] * _BUCKETS for _ in range(_OPS)])
    bytes_in: int = 0
    bytes_out: int = 0
    slow: int = 0
    again: int = 0
    malformed: int = 0
    cancelled: int = 0

    def add_queue(self, source: Any) -> None:
        """Add what the queue ``source`` (``struct ring_source *``) has counted."""
        out = ffi.new("struct fs_stats *")
        lib.fs_queue_stats(source, out)
        for op, n in enumerate(ffi.unpack(out.requests, _OPS)):
            if n:
                self.requests[op] += n
                self.errors[op] += out.errors[op]
                self.ticks[op] += out.ticks[op]
                _add(self.latency[op], ffi.unpack(out.latency[op], _BUCKETS))
        for name in _COUNTERS:
            setattr(self, name, getattr(self, name) + getattr(out, name))

    def add(self, other: FsStats) -> None:
        """Add ``other``."""
        for mine, theirs in zip(
            (self.requests, self.errors, self.ticks, *self.latency),
            (other.requests, other.errors, other.ticks, *other.latency),
            strict=True,
        ):
            _add(mine, theirs)
        for name in _COUNTERS:
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def seen(self) -> Iterator[tuple[str, int]]:
        """Name and number of opcodes that came."""
        for op, n in enumerate(self.requests):
            if n:
                yield _NAMES.get(op, str(op)), op

    def quantile(self, q: float, op: int) -> float:
        """Upper bound, in seconds, of the latency of a share ``q`` (0 to 1) of the requests ``op``; 0 without any."""
        counts = self.latency[op]
        total = sum(counts)
        passed = 0
        for bound, n in zip(_bounds(), counts, strict=True):
            passed += n
            if total and passed >= q * total:
                return bound
        return 0.0

    def as_dict(self) -> dict[str, Any]:
        """For the control socket: per operation, latencies in microseconds."""
        tick = lib.fs_tick_ns()
        ops = {
            name: {
                "requests": self.requests[op],
                "errors": self.errors[op],
                "mean_us": round(self.ticks[op] * tick / 1e3 / self.requests[op], 3),
            }
            | {f"p{q * 100:g}_us": round(self.quantile(q, op) * 1e6, 3) for q in _QUANTILES}
            for name, op in self.seen()
        }
        return {"ops": ops} | {name: getattr(self, name) for name in _COUNTERS}

    def metrics(self) -> Iterator[Metric]:
        """As Prometheus wants them."""
        tick = lib.fs_tick_ns() / 1e9
        for name, op in self.seen():
            label = {"op": name}
            yield Metric("fs_requests_total", "counter", "Requests answered.", self.requests[op], label)
            yield Metric("fs_errors_total", "counter", "Requests answered with an error.", self.errors[op], label)
            yield Metric("fs_seconds_total", "counter", "Time they took.", self.ticks[op] * tick, label)
        yield Metric("fs_bytes_total", "counter", "Data of requests and replies.", self.bytes_in, {"direction": "in"})
        yield Metric("fs_bytes_total", "counter", "Data of requests and replies.", self.bytes_out, {"direction": "out"})
        for name, text in (
            ("slow", "Requests that a thread answered."),
            ("again", "Times a request was put off."),
            ("malformed", "Requests whose lengths do not fit."),
            ("cancelled", "Requests that were interrupted."),
        ):
            yield Metric(f"fs_{name}_total", "counter", text, getattr(self, name))
        counts = [sum(column) for column in zip(*self.latency, strict=True)]
        buckets = []
        total = 0
        for bound, n in zip(_bounds(), counts, strict=True):
            total += n
            buckets.append((bound, total))
        yield Metric(
            "fs_latency_seconds",
            "histogram",
            "From taking a request to its answer.",
            sum(self.ticks) * tick,
            buckets=buckets,
        )


def _add(mine: list[int], theirs: Sequence[int]) -> None:
    for i, n in enumerate(theirs):
        if n:
            mine[i] += n


def _bounds() -> list[float]:
    """Upper ends of the buckets in seconds; the last has none."""
    tick = lib.fs_tick_ns() / 1e9
    return [float(1 << (i + _SHIFT)) * tick for i in range(_BUCKETS - 1)] + [float("inf")]
