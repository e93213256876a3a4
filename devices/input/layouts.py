"""Keyboard layouts other than the American one, by libxkbcommon."""

from __future__ import annotations

import re
from typing import Any, Final

from devices.input.keys import ALT_GR, AMERICAN, SHIFT, Layout, Stroke

__all__ = ["layout_of"]

_MAX: Final = 8192
_UNICODE: Final = 0x1000000  # and the character: a keysym
_EXTRA: Final = 86  # beside the left Shift; what is elsewhere, too, is typed there
_NAME: Final = re.compile(r"([a-z][a-z0-9_-]*)(?:\(([A-Za-z0-9_-]+)\))?")

#: what QEMU's -k calls otherwise than X11
_QEMU: Final = {
    "ar": "ara", "da": "dk", "de-ch": "ch", "en-gb": "gb", "en-us": "us", "et": "ee", "fr-be": "be", "fr-ca": "ca",
    "fr-ch": "ch(fr)", "ja": "jp", "pt-br": "br", "sl": "si", "sv": "se",
}  # fmt: skip


def _easier(stroke: Any) -> tuple[int, bool, int]:
    return stroke.held.bit_count(), stroke.code == _EXTRA, stroke.code


def layout_of(name: str) -> Layout:
    """The layout that X11 calls so, with a variant in parentheses, or QEMU's ``-k``: de, gb, de(nodeadkeys), en-gb.

    Raises:
        ValueError: there is none of that name, or no libxkbcommon.
    """
    match = _NAME.fullmatch(_QEMU.get(name, name))
    if match is None:
        raise ValueError(f"{name!r} is no name of a layout; write us, de, gb or de(nodeadkeys)")
    if match[0] == AMERICAN.name:
        return AMERICAN
    try:
        from devices.input._xkb import ffi, lib
    except ImportError:
        what = "install libxkbcommon-dev and build it again"
        raise ValueError(f"{name}: this vhostkit was built without libxkbcommon, and knows us alone; {what}") from None
    found = ffi.new("struct stroke[]", _MAX)
    count = lib.xkb_strokes(match[1].encode(), (match[2] or "").encode(), found, _MAX)
    if count < 0:
        where = "/usr/share/X11/xkb (Debian: xkb-data)"
        raise ValueError(f"there is no layout {name!r} in {where}; write us, de, gb or de(nodeadkeys)")
    strokes: dict[str, Stroke] = {}
    keysyms: dict[int, int] = {}
    each: Any
    for each in sorted(found[0 : min(count, _MAX)], key=_easier):
        held = ((SHIFT,) if each.held & lib.STROKE_SHIFT else ()) + ((ALT_GR,) if each.held & lib.STROKE_ALT_GR else ())
        keysyms.setdefault(each.keysym, each.code)
        if each.text >= 0x20 and each.text != 0x7F:
            keysyms.setdefault(each.alias, each.code)
            keysyms.setdefault(_UNICODE | each.text, each.code)
            strokes.setdefault(chr(each.text), (each.code, held))
    return Layout(name, strokes, keysyms)
