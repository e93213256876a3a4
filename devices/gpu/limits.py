"""What a display may offer, and what its guest may use."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntFlag
from typing import Final

__all__ = ["MEMORY_2D", "MEMORY_3D", "GpuFeature", "Limits"]

#: bytes that do for desktops, textures and all: a guest that gets no more draws nothing then
MEMORY_2D: Final = 512 << 20
MEMORY_3D: Final = 2 << 30


class GpuFeature(IntFlag):
    """Feature bits [VIRTIO 1.3, 5.7.3]."""

    VIRGL = 1 << 0
    EDID = 1 << 1
    RESOURCE_UUID = 1 << 2
    RESOURCE_BLOB = 1 << 3
    CONTEXT_INIT = 1 << 4


@dataclass(frozen=True, slots=True)
class Limits:
    """What one guest may use.

    Attributes:
        resources: most that it may have at once, 1 to 2^31.
        bytes: most host memory for them, 1 to 2^50.
        contexts: of 3D, 1 to 65536: each program that draws has one.
    """

    resources: int = 4096
    bytes: int = MEMORY_2D
    contexts: int = 256

    def __post_init__(self) -> None:
        if not 1 <= self.resources <= 1 << 31:
            raise ValueError(f"limit of resources is {self.resources}; give 1 or more")
        if not 1 <= self.bytes <= 1 << 50:
            raise ValueError(f"limit of memory is {self.bytes}; give 1 byte or more")
        if not 1 <= self.contexts <= 1 << 16:
            raise ValueError(f"limit of contexts is {self.contexts}; give 1 to 65536")
