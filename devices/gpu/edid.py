"""What a monitor says of itself: EDID 1.4 [VESA E-EDID A2], with DisplayID for modes it has no room for."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from math import ceil, gcd
from typing import Final

__all__ = ["edid_of"]

BLOCK: Final = 128
_MANUFACTURER: Final = "VHK"
_PRODUCT: Final = 1
#: pixels per inch that a guest computes where it does not know better
_DPI: Final = 96
#: largest number a detailed timing of the base block holds, pixels
_BASE_MAX: Final = 4095
#: the smallest clock of a descriptor, kHz
_CLOCK_MIN: Final = 10000
#: and the largest of one of the base block
_BASE_CLOCK_MAX: Final = 655350


@dataclass(frozen=True, slots=True)
class _Timing:
    """Times of a mode, with reduced blanking [VESA CVT 1.2, 4]: pixels, lines, kHz."""

    width: int
    height: int
    clock: int
    h_blank: int
    h_front: int
    h_sync: int
    v_blank: int
    v_front: int
    v_sync: int

    @classmethod
    def of(cls, width: int, height: int, refresh: int) -> _Timing:
        h_blank, h_front, h_sync, v_front = 160, 48, 32, 3
        v_sync = _sync_lines(width, height)
        line_us = (1e6 / refresh - 460) / height  # the blanking is 460 us at least
        v_blank = max(ceil(460 / line_us), v_front + v_sync + 6)
        # small and slow ones: more blanking, so that the clock is one that descriptors can hold
        lines = ceil(_CLOCK_MIN * 1000 / refresh / (width + h_blank))
        v_blank = min(max(v_blank, lines - height), max(v_blank, _BASE_MAX))
        h_blank = max(h_blank, ceil(_CLOCK_MIN * 1000 / refresh / (height + v_blank)) - width)
        clock = ceil(refresh * (width + h_blank) * (height + v_blank) / 1000)
        return cls(width, height, -(-clock // 10) * 10, h_blank, h_front, h_sync, v_blank, v_front, v_sync)


def _sync_lines(width: int, height: int) -> int:
    """Lines of vertical sync, by which receivers tell the aspect ratio."""
    shared = gcd(width, height)
    known = {(4, 3): 4, (16, 9): 5, (8, 5): 6, (5, 4): 7, (5, 3): 7}
    return known.get((width // shared, height // shared), 10)


def _millimetres(pixels: int) -> int:
    return round(pixels * 25.4 / _DPI)


def _detailed(t: _Timing, width_mm: int, height_mm: int) -> bytes:
    """A detailed timing descriptor: 18 bytes."""
    return struct.pack(
        "<H16B",
        t.clock // 10,
        t.width & 0xFF, t.h_blank & 0xFF, t.width >> 8 << 4 | t.h_blank >> 8,
        t.height & 0xFF, t.v_blank & 0xFF, t.height >> 8 << 4 | t.v_blank >> 8,
        t.h_front & 0xFF, t.h_sync & 0xFF, (t.v_front & 0xF) << 4 | t.v_sync & 0xF,
        t.h_front >> 8 << 6 | t.h_sync >> 8 << 4 | t.v_front >> 4 << 2 | t.v_sync >> 4,
        width_mm & 0xFF, height_mm & 0xFF, (width_mm >> 8 & 0xF) << 4 | height_mm >> 8 & 0xF,
        0, 0, 0x1A,  # no border; separate syncs, horizontal positive, vertical negative: reduced blanking
    )  # fmt: skip


def _descriptor(tag: int, data: bytes) -> bytes:
    return bytes([0, 0, 0, tag, 0]) + data.ljust(13, b" ")


def _text(tag: int, text: str) -> bytes:
    data = text.encode("ascii", "replace")[:13]
    return _descriptor(tag, data if len(data) == 13 else data + b"\n")


def _ranges(t: _Timing, refresh: int) -> bytes:
    """Limits wide enough for smaller modes, too: Hz, kHz, 10 MHz."""
    line = t.clock / (t.width + t.h_blank)
    line_khz, least, most = min(max(ceil(line), 49), 510), max(min(int(line), 15), 1), max(refresh, 61)
    offsets = (2 if most > 255 else 0) | (8 if line_khz > 255 else 0)
    clock = min(max(ceil(t.clock / 10000), 7), 255)
    data = (
        bytes([min(24, refresh), most - 255 * (most > 255), least, line_khz - 255 * (line_khz > 255), clock, 1]) + b"\n"
    )
    return bytes([0, 0, 0, 0xFD, offsets]) + data.ljust(13, b" ")


def _summed(block: bytes) -> bytes:
    return block + bytes([-sum(block) % 256])


def _block(tag: int, data: bytes, revision: int = 0) -> bytes:
    return bytes([tag, revision, len(data)]) + data


def _display_id(t: _Timing, name: str, serial: int) -> bytes:
    """An extension block: DisplayID 1.3 with one timing of type I, whose fields are 16 bits wide, and what it needs."""
    title = name.encode("ascii", "replace")[:13]
    product = _MANUFACTURER.encode() + struct.pack("<HIBBB", _PRODUCT, serial, 1, 2026 - 2000, len(title)) + title
    size = _millimetres(t.width) * 10, _millimetres(t.height) * 10
    aspect = min(max(t.width, t.height) * 100 // min(t.width, t.height) - 100, 255)
    parameters = struct.pack("<4H4B", *size, t.width, t.height, 0, 120, aspect, 0x77)  # gamma 2.2, 8 bits a colour
    interface = bytes([0x02, 0, 0, 0, 0, 0, 0x01, 0, 0, 0])  # RGB of 8 bits, sRGB
    timing = (t.clock // 10 - 1).to_bytes(3, "little") + bytes([0x88])  # preferred, aspect not told
    timing += struct.pack(
        "<8H",
        t.width - 1, t.h_blank - 1, 0x8000 | (t.h_front - 1), t.h_sync - 1,
        t.height - 1, t.v_blank - 1, t.v_front - 1, t.v_sync - 1,
    )  # fmt: skip
    data = _block(0, product) + _block(1, parameters) + _block(3, timing) + _block(0x0F, interface)
    section = _summed(bytes([0x13, 121, 3, 0]) + data.ljust(121, b"\0"))
    return _summed(b"\x70" + section)


def edid_of(width: int, height: int, refresh: int = 60, *, name: str = "vhost", serial: int = 0) -> bytes:
    """The EDID of a monitor whose preferred mode is this one.

    Args:
        width: pixels, 16 to 16384.
        height: likewise.
        refresh: Hz, 1 to 510.
        name: of the monitor, up to 13 characters of ASCII.
        serial: by which a guest tells monitors apart.

    Returns:
        128 bytes, or 256 where the mode does not fit into the base block.

    Raises:
        ValueError: an argument out of range.
    """
    if not (16 <= width <= 16384 and 16 <= height <= 16384):
        raise ValueError(f"{width}x{height} is no mode; both are 16 to 16384 pixels")
    if not 1 <= refresh <= 510:
        raise ValueError(f"refresh is {refresh}; give 1 to 510 Hz")
    timing = _Timing.of(width, height, refresh)
    large = max(width, height) > _BASE_MAX or timing.clock > _BASE_CLOCK_MAX
    base = _Timing.of(1920, 1080, 60) if large else timing
    size = [min(max(_millimetres(side), 10), 2550) for side in (width, height)]  # what the base block can say
    first, second, third = (ord(letter) - ord("A") + 1 for letter in _MANUFACTURER)
    head = b"\0\xff\xff\xff\xff\xff\xff\0" + struct.pack(">H", first << 10 | second << 5 | third)
    head += struct.pack("<HI4B", _PRODUCT, serial, 1, 2026 - 1990, 1, 4)
    head += bytes(
        [
            0xA5,  # digital, 8 bits a colour, DisplayPort
            round(size[0] / 10), round(size[1] / 10),
            120,  # gamma 2.2
            0x06,  # sRGB; the first timing is the native one
        ]
    )  # fmt: skip
    head += bytes.fromhex("ee91a3544c99260f5054")  # chromaticity of sRGB
    head += bytes([0x21, 0x08, 0x00])  # 640x480, 800x600, 1024x768 at 60 Hz
    head += b"\1\1" * 8  # no standard timings
    block = head + _detailed(base, *size)
    block += _text(0xFC, name) + _ranges(timing, refresh)
    block += _text(0xFF, str(serial)) + bytes([int(large)])
    return _summed(block) + (_display_id(timing, name, serial) if large else b"")
