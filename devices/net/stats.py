"""Counters of a port: read while it runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from devices.net._net import ffi, lib
from vhost import Metric

__all__ = ["DROP_REASONS", "NetStats"]

#: why frames are dropped, in the order of the C enum, from 1
DROP_REASONS = (
    "runt", "giant", "header", "no_buffer", "too_small", "down", "no_peer", "full", "error", "filter", "vlan", "limit",
    "isolated",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class NetStats:
    """What a port has counted, from the point of view of whoever owns it.

    Attributes:
        in_frames: delivered to it, and their bytes; out is what it sent.
        in_segments: frames that were cut for it.
        in_checksums: checksums that were filled in for it.
        dropped: reason -> frames, on the way to it or sent by it.
    """

    in_frames: int = 0
    in_bytes: int = 0
    out_frames: int = 0
    out_bytes: int = 0
    in_segments: int = 0
    in_checksums: int = 0
    dropped: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, port: Any) -> NetStats:
        """Read those of `port`, a ``struct net_port *``."""
        out = ffi.new("struct net_port_stats *")
        lib.net_port_stats(port, out)
        return cls(
            out.in_frames,
            out.in_bytes,
            out.out_frames,
            out.out_bytes,
            out.in_segments,
            out.in_checksums,
            {reason: out.dropped[i] for i, reason in enumerate(DROP_REASONS, 1)},
        )

    def as_dict(self) -> dict[str, Any]:
        """For the control socket; reasons that never were are left out."""
        return {
            "in": {"frames": self.in_frames, "bytes": self.in_bytes},
            "out": {"frames": self.out_frames, "bytes": self.out_bytes},
            "segments": self.in_segments,
            "checksums": self.in_checksums,
            "dropped": {reason: n for reason, n in self.dropped.items() if n},
        }

    def metrics(self, prefix: str = "net", labels: Mapping[str, str] | None = None) -> Iterator[Metric]:
        """As Prometheus wants them; `labels` are on every one."""
        base = dict(labels or {})
        for way, frames, size in (("in", self.in_frames, self.in_bytes), ("out", self.out_frames, self.out_bytes)):
            label = base | {"direction": way}
            yield Metric(f"{prefix}_frames_total", "counter", "Frames, in is to the guest.", frames, label)
            yield Metric(f"{prefix}_bytes_total", "counter", "Bytes of those frames.", size, label)
        yield Metric(f"{prefix}_segments_total", "counter", "Frames cut for the guest.", self.in_segments, base)
        yield Metric(f"{prefix}_checksums_total", "counter", "Checksums filled in.", self.in_checksums, base)
        for reason, n in self.dropped.items():
            yield Metric(f"{prefix}_dropped_total", "counter", "Frames dropped.", n, base | {"reason": reason})
