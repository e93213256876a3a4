"""What a scanout shows, as bytes and as a file."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vhost.errors import VhostError

__all__ = ["Mode", "Monitor", "Picture", "PictureError", "encode", "encode_frames", "parse_mode", "save", "save_frames"]

_STILLS = (".png", ".webp", ".bmp", ".tiff")
_MOVING = (".png", ".apng", ".gif", ".webp")


class PictureError(VhostError, ValueError):
    """There is no picture, or it cannot be written: one sentence."""


@dataclass(frozen=True, slots=True)
class Mode:
    """A mode of a monitor.

    Attributes:
        width: pixels.
        height: pixels.
        refresh: Hz.
    """

    width: int
    height: int
    refresh: int = 60

    def __str__(self) -> str:
        return f"{self.width}x{self.height}@{self.refresh}"


@dataclass(frozen=True, slots=True)
class Monitor:
    """A scanout as a guest is told of it.

    Attributes:
        mode: None: nothing is plugged in.
        x: place among the others, pixels.
        edid: what it says of itself; at most 1024 bytes.
    """

    mode: Mode | None
    x: int
    y: int
    edid: bytes


def parse_mode(text: str) -> Mode:
    """A mode from ``1920x1080`` or ``1920x1080@75``.

    Raises:
        ValueError: it is none.
    """
    match = re.fullmatch(r"\s*(\d+)\s*x\s*(\d+)\s*(?:@\s*(\d+))?\s*", text)
    if match is None:
        raise ValueError(f"{text!r} is not a mode; write 1920x1080 or 1920x1080@75")
    return Mode(int(match[1]), int(match[2]), int(match[3] or 60))


@dataclass(frozen=True, slots=True)
class Picture:
    """A moment of a scanout.

    Attributes:
        width: pixels.
        height: pixels.
        pixels: row after row, 4 bytes each: blue, green, red, 255.
    """

    width: int
    height: int
    pixels: bytes

    def pixel(self, x: int, y: int) -> tuple[int, int, int]:
        """Red, green, blue at a place."""
        at = (y * self.width + x) * 4
        blue, green, red = self.pixels[at : at + 3]
        return red, green, blue


def _image(picture: Picture) -> Any:
    try:
        from PIL import Image
    except ImportError:
        raise PictureError("writing pictures takes Pillow; run: pip install 'vhostkit[gpu]'") from None
    return Image.frombytes("RGB", (picture.width, picture.height), picture.pixels, "raw", "BGRX")


def _suffix(path: str | os.PathLike[str], known: Sequence[str]) -> str:
    suffix = Path(path).suffix.lower()
    if suffix not in known:
        raise PictureError(f"{os.fspath(path)}: the name ends in none of {', '.join(known)}")
    return suffix


def encode(picture: Picture, name: str | os.PathLike[str]) -> bytes:
    """What a file of that name holds: its kind follows from the name. Blocks.

    Raises:
        PictureError: another kind, or no Pillow.
    """
    kind, out = _suffix(name, _STILLS)[1:], io.BytesIO()
    _image(picture).save(out, kind.upper())
    return out.getvalue()


def save(picture: Picture, path: str | os.PathLike[str]) -> None:
    """Write one picture, as `encode` has it. Blocks.

    Raises:
        PictureError: as `encode`; the file cannot be written.
    """
    _write(path, encode(picture, path))


def _write(path: str | os.PathLike[str], data: bytes) -> None:
    try:
        Path(path).write_bytes(data)
    except OSError as exc:
        raise PictureError(f"{os.fspath(path)} cannot be written: {exc.strerror or exc}") from exc


def save_frames(frames: Sequence[Picture], milliseconds: Sequence[int], path: str | os.PathLike[str]) -> None:
    """Write an animation, as `encode_frames` has it. Blocks.

    Raises:
        PictureError: as `encode_frames`; the file cannot be written.
    """
    _write(path, encode_frames(frames, milliseconds, path))


def encode_frames(
    frames: Sequence[Picture], milliseconds: Sequence[int], path: str | os.PathLike[str]
) -> bytes:  # fmt: skip
    """What a file of that name holds: an animation (APNG, GIF, WebP), each frame shown for its time. Blocks.

    Raises:
        PictureError: as `encode`; no frames; frames that differ in size.
    """
    suffix = _suffix(path, _MOVING)
    if not frames:
        raise PictureError("nothing was shown: there is no frame")
    if len({(frame.width, frame.height) for frame in frames}) > 1:
        raise PictureError("the mode changed meanwhile; record again")
    first, *rest = map(_image, frames)
    kind, out = "PNG" if suffix == ".apng" else suffix[1:].upper(), io.BytesIO()
    first.save(out, kind, save_all=True, append_images=rest, duration=list(milliseconds), loop=0)
    return out.getvalue()
