"""Counters of a disk: read from its queues while they run, kept when they go."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from devices.blk._blk import ffi, lib
from vhost import Metric

__all__ = ["OPS", "BlkStats"]

#: as counted, in the order of the C enum
OPS = ("read", "write", "flush", "discard", "write_zeroes", "secure_erase", "other")

_BUCKETS: int = lib.BLK_LATENCY_BUCKETS
_SHIFT: int = lib.BLK_LATENCY_SHIFT


def _zeros(n: int) -> list[int]:
    return [0] * n


@dataclass(slots=True)
class BlkStats:
    """Sums over queues.

    Attributes:
        requests: completed, by `OPS`.
        bytes: of those that succeeded, by `OPS`.
        errors: completed with a status that is not OK, by `OPS`.
        latency: requests per bucket; bucket n ends at `bound` (n). Null and memory stores are sampled.
        latency_ticks: sum, in ticks of `blk_tick_ns`.
        throttled: times a queue waited because of a limit.
        bounced: requests that went through a buffer of ours (O_DIRECT).
        waits: requests that waited for such a buffer or for io_uring.
        at_once: requests that were a copy, of the page cache or of a file in memory, without io_uring.
        fixed: reads and writes with registered buffers.
        fixed_error: errno of the system's refusal to register one; 0: none.
    """

    requests: list[int] = field(default_factory=lambda: _zeros(len(OPS)))
    bytes: list[int] = field(default_factory=lambda: _zeros(len(OPS)))
    errors: list[int] = field(default_factory=lambda: _zeros(len(OPS)))
    latency: list[int] = field(default_factory=lambda: _zeros(_BUCKETS))
    latency_ticks: int = 0
    throttled: int = 0
    bounced: int = 0
    waits: int = 0
    at_once: int = 0
    fixed: int = 0
    fixed_error: int = 0

    def add_queue(self, source: Any) -> None:
        """Add what the queue ``source`` (``struct ring_source *``) has counted."""
        out = ffi.new("struct blk_stats *")
        lib.blk_queue_stats(source, out)
        for mine, theirs in (
            (self.requests, out.requests),
            (self.bytes, out.bytes),
            (self.errors, out.errors),
            (self.latency, out.latency),
        ):
            for i, n in enumerate(theirs):
                mine[i] += n
        self.latency_ticks += out.latency_ticks
        self.throttled += out.throttled
        self.bounced += out.bounced
        self.waits += out.waits
        self.at_once += out.at_once
        self.fixed += out.fixed
        self.fixed_error = self.fixed_error or out.fixed_error

    def add(self, other: BlkStats) -> None:
        """Add ``other``."""
        for mine, theirs in (
            (self.requests, other.requests),
            (self.bytes, other.bytes),
            (self.errors, other.errors),
            (self.latency, other.latency),
        ):
            for i, n in enumerate(theirs):
                mine[i] += n
        self.latency_ticks += other.latency_ticks
        self.throttled += other.throttled
        self.bounced += other.bounced
        self.waits += other.waits
        self.at_once += other.at_once
        self.fixed += other.fixed
        self.fixed_error = self.fixed_error or other.fixed_error

    def buckets(self) -> list[tuple[float, int]]:
        """Upper bounds in seconds and cumulative counts; the last bound is infinite."""
        tick = lib.blk_tick_ns() / 1e9
        out = []
        total = 0
        for i, n in enumerate(self.latency[:-1]):
            total += n
            out.append((float(1 << (i + _SHIFT)) * tick, total))
        out.append((float("inf"), total + self.latency[-1]))
        return out

    def quantile(self, q: float) -> float:
        """Upper bound, in seconds, of the latency of a share ``q`` (0 to 1) of the requests; 0 without any."""
        total = sum(self.latency)
        for bound, count in self.buckets():
            if total and count >= q * total:
                return bound
        return 0.0

    def as_dict(self) -> dict[str, Any]:
        """For the control socket: per operation, and latencies in microseconds."""
        ops = {
            op: {"requests": self.requests[i], "bytes": self.bytes[i], "errors": self.errors[i]}
            for i, op in enumerate(OPS)
            if self.requests[i]
        }
        latency = {f"p{q * 100:g}": round(self.quantile(q) * 1e6, 3) for q in (0.5, 0.99, 0.999)}
        return {
            "ops": ops,
            "latency_us": latency,
            "throttled": self.throttled,
            "bounced": self.bounced,
            "waits": self.waits,
            "at_once": self.at_once,
            "fixed": self.fixed,
        }

    def metrics(self) -> Iterator[Metric]:
        """As Prometheus wants them."""
        for i, op in enumerate(OPS):
            label = {"op": op}
            yield Metric("blk_requests_total", "counter", "Requests completed.", self.requests[i], label)
            yield Metric("blk_bytes_total", "counter", "Bytes of requests that succeeded.", self.bytes[i], label)
            yield Metric("blk_errors_total", "counter", "Requests completed with an error.", self.errors[i], label)
        yield Metric("blk_throttled_total", "counter", "Waits because of a limit.", self.throttled)
        yield Metric(
            "blk_latency_seconds",
            "histogram",
            "From taking a request to its completion.",
            self.latency_ticks * lib.blk_tick_ns() / 1e9,
            buckets=self.buckets(),
        )
