"""What a renderer draws, as others can look at it."""

from __future__ import annotations

from dataclasses import dataclass

from devices.gpu.view import Rect

__all__ = ["Buffer"]


@dataclass(frozen=True, slots=True)
class Buffer:
    """A dma-buf that is shown.

    Attributes:
        serial: of the resource: no two of a display have the same.
        rect: what of it is shown, pixels.
        width: of all of it, pixels.
        stride: bytes; offset likewise, of the first pixel.
        fourcc: as DRM has it; modifier likewise, None: not known.
        flags: as the guest gave them: VIRTIO_GPU_RESOURCE_FLAG_*.
    """

    serial: int
    rect: Rect
    width: int
    height: int
    stride: int
    offset: int
    fourcc: int
    flags: int
    modifier: int | None
