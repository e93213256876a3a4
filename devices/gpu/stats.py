"""Counters of a display."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
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
        contexts: of 3D, that the guest has now.
        submissions: of commands to contexts.
        submission_bytes: of them.
        transfers_3d: of pixels and other data, either way.
        reads: of pixels back from the renderer, for whoever looks.
        read_bytes: of them.
        renderers: that were started.
        renderers_lost: of them, that ended unasked.
    """

    commands: int
    errors: dict[str, int]
    transfers: int
    transfer_bytes: int
    flushes: int
    cursor_commands: int
    resources: int
    bytes: int
    contexts: int
    submissions: int
    submission_bytes: int
    transfers_3d: int
    reads: int
    read_bytes: int
    renderers: int
    renderers_lost: int

    @classmethod
    def of(cls, gpu: Any) -> Self:
        """Of a ``struct gpu *``."""
        raw = ffi.new("struct gpu_stats *")
        lib.gpu_stats(gpu, raw)
        errors = {name: raw.errors[i] for i, name in enumerate(ERRORS) if raw.errors[i]}
        plain = (field.name for field in fields(cls) if field.name != "errors")
        return cls(errors=errors, **{name: getattr(raw, name) for name in plain})

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
        if not self.renderers:
            return
        yield Metric("gpu_contexts", "gauge", "3D contexts that the guest has.", self.contexts)
        yield Metric("gpu_submissions_total", "counter", "Commands to 3D contexts.", self.submissions)
        yield Metric("gpu_submission_bytes_total", "counter", "Of them, bytes.", self.submission_bytes)
        yield Metric("gpu_transfers_3d_total", "counter", "Transfers of 3D resources, either way.", self.transfers_3d)
        yield Metric("gpu_reads_total", "counter", "Times that pixels came back from the renderer.", self.reads)
        yield Metric("gpu_read_bytes_total", "counter", "Pixels that came back, bytes.", self.read_bytes)
        yield Metric("gpu_renderers_total", "counter", "Renderers that were started.", self.renderers)
        yield Metric("gpu_renderers_lost_total", "counter", "Renderers that ended unasked.", self.renderers_lost)
