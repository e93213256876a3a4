"""Counters of a display."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Self

from devices.gpu._gpu import ffi, lib
from vhost import Metric

__all__ = ["GpuStats"]

#: by the reply's number less 0x1200
ERRORS = ("unspec", "out_of_memory", "invalid_scanout_id", "invalid_resource_id", "invalid_context_id",
          "invalid_parameter")  # fmt: skip


@dataclass(frozen=True, slots=True)
class GpuStats:
    """What a display has counted.

    Attributes:
        commands: on the control queue.
        errors: of them, answered with an error, by its name.
        transfers: of pixels from the guest.
        transfer_bytes: of them.
        flushes: times the guest said what has changed.
        cursor_commands: on the cursor queue.
        resources: that the guest has now.
        bytes: of host memory for them.
    """

    commands: int
    errors: dict[str, int]
    transfers: int
    transfer_bytes: int
    flushes: int
    cursor_commands: int
    resources: int
    bytes: int

    @classmethod
    def of(cls, gpu: Any) -> Self:
        """Of a ``struct gpu *``."""
        raw = ffi.new("struct gpu_stats *")
        lib.gpu_stats(gpu, raw)
        errors = {name: raw.errors[i] for i, name in enumerate(ERRORS) if raw.errors[i]}
        return cls(
            raw.commands, errors, raw.transfers, raw.transfer_bytes, raw.flushes, raw.cursor_commands, raw.resources,
            raw.bytes,
        )  # fmt: skip

    def metrics(self) -> Iterator[Metric]:
        """As Prometheus has them."""
        yield Metric("gpu_commands_total", "counter", "Commands on the control queue.", self.commands)
        for name in ERRORS:
            yield Metric(
                "gpu_errors_total",
                "counter",
                "Commands answered with an error.",
                self.errors.get(name, 0),
                {"error": name},
            )
        yield Metric("gpu_transfer_bytes_total", "counter", "Pixels from the guest, bytes.", self.transfer_bytes)
        yield Metric("gpu_flushes_total", "counter", "Times the guest said what has changed.", self.flushes)
        yield Metric("gpu_cursor_commands_total", "counter", "Commands on the cursor queue.", self.cursor_commands)
        yield Metric("gpu_resources", "gauge", "Resources that the guest has.", self.resources)
        yield Metric("gpu_resource_bytes", "gauge", "Host memory for them.", self.bytes)
