"""Messages of QEMU's display socket. Spec: vhost-user-gpu."""

from __future__ import annotations

import struct
from enum import IntEnum, IntFlag
from typing import Final

__all__ = ["Feature", "GpuRequest"]

#: flag of a reply
REPLY: Final = 1 << 2
CURSOR_SIDE: Final = 64

#: request, flags, bytes that follow
HEADER: Final = struct.Struct("=3I")
FEATURES: Final = struct.Struct("=Q")
ID: Final = struct.Struct("=I")
#: scanout, width, height
SCANOUT: Final = struct.Struct("=3I")
#: scanout, x, y
POSITION: Final = struct.Struct("=3I")
#: the same, hot spot's x and y, pixels
SHAPE: Final = struct.Struct(f"=5I{CURSOR_SIDE * CURSOR_SIDE * 4}s")
#: x, y, width, height, enabled, flags
MODE: Final = struct.Struct("=6I")
DISPLAY_INFO: Final = struct.Struct(f"=24x{16 * MODE.size}s")
#: bytes, EDID
EDID: Final = struct.Struct("=24xI4x1024s")
#: scanout, x, y, width, height of what is shown; width, height, stride, flags, fourcc of all
DMABUF: Final = struct.Struct("=9Ii")
MODIFIER: Final = struct.Struct("=Q")
#: scanout, x, y, width, height
AREA: Final = struct.Struct("=5I")
EMPTY: Final = struct.Struct("=")


class GpuRequest(IntEnum):
    """Messages."""

    GET_PROTOCOL_FEATURES = 1
    SET_PROTOCOL_FEATURES = 2
    GET_DISPLAY_INFO = 3
    CURSOR_POS = 4
    CURSOR_POS_HIDE = 5
    CURSOR_UPDATE = 6
    SCANOUT = 7
    UPDATE = 8
    DMABUF_SCANOUT = 9
    DMABUF_UPDATE = 10
    GET_EDID = 11
    DMABUF_SCANOUT2 = 12


class Feature(IntFlag):
    """Protocol features."""

    EDID = 1 << 0
    DMABUF2 = 1 << 1
