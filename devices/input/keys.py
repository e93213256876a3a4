"""Keys: their numbers in Linux, and how browsers, X11 and plain text call them.

Spec: linux/input-event-codes.h; W3C UI Events KeyboardEvent code Values; X11 keysymdef.h. What a key writes (keysyms,
text) depends on the guest's layout; the American one is here, others are libxkbcommon's (`devices.input.layouts`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

__all__ = ["ALT_GR", "AMERICAN", "BUTTONS", "CODES", "LAST_KEY", "NAMED", "SCANCODES", "SHIFT", "Layout", "Stroke"]

LAST_KEY: Final = 0x2FF
#: BTN_LEFT and its like
BUTTONS: Final = {"left": 0x110, "right": 0x111, "middle": 0x112, "side": 0x113, "extra": 0x114}
SHIFT: Final = 42
ALT_GR: Final = 100

#: by KeyboardEvent.code
CODES: Final[dict[str, int]] = {
    "Escape": 1,
    **{f"Digit{n % 10}": n + 1 for n in range(1, 11)},
    "Minus": 12,
    "Equal": 13,
    "Backspace": 14,
    "Tab": 15,
    **{f"Key{letter}": 16 + i for i, letter in enumerate("QWERTYUIOP")},
    "BracketLeft": 26,
    "BracketRight": 27,
    "Enter": 28,
    "ControlLeft": 29,
    **{f"Key{letter}": 30 + i for i, letter in enumerate("ASDFGHJKL")},
    "Semicolon": 39,
    "Quote": 40,
    "Backquote": 41,
    "ShiftLeft": SHIFT,
    "Backslash": 43,
    **{f"Key{letter}": 44 + i for i, letter in enumerate("ZXCVBNM")},
    "Comma": 51,
    "Period": 52,
    "Slash": 53,
    "ShiftRight": 54,
    "NumpadMultiply": 55,
    "AltLeft": 56,
    "Space": 57,
    "CapsLock": 58,
    **{f"F{n}": 58 + n for n in range(1, 11)},
    "NumLock": 69,
    "ScrollLock": 70,
    "Numpad7": 71,
    "Numpad8": 72,
    "Numpad9": 73,
    "NumpadSubtract": 74,
    "Numpad4": 75,
    "Numpad5": 76,
    "Numpad6": 77,
    "NumpadAdd": 78,
    "Numpad1": 79,
    "Numpad2": 80,
    "Numpad3": 81,
    "Numpad0": 82,
    "NumpadDecimal": 83,
    "IntlBackslash": 86,
    "F11": 87,
    "F12": 88,
    "IntlRo": 89,
    "Convert": 92,
    "KanaMode": 93,
    "NonConvert": 94,
    "NumpadEnter": 96,
    "ControlRight": 97,
    "NumpadDivide": 98,
    "PrintScreen": 99,
    "AltRight": 100,
    "Home": 102,
    "ArrowUp": 103,
    "PageUp": 104,
    "ArrowLeft": 105,
    "ArrowRight": 106,
    "End": 107,
    "ArrowDown": 108,
    "PageDown": 109,
    "Insert": 110,
    "Delete": 111,
    "AudioVolumeMute": 113,
    "AudioVolumeDown": 114,
    "AudioVolumeUp": 115,
    "Power": 116,
    "NumpadEqual": 117,
    "Pause": 119,
    "NumpadComma": 121,
    "Lang1": 122,
    "Lang2": 123,
    "IntlYen": 124,
    "MetaLeft": 125,
    "MetaRight": 126,
    "ContextMenu": 127,
    "Sleep": 142,
    **{f"F{n}": 170 + n for n in range(13, 25)},
}

#: by XT scancode; bit 7 stands for e0 before it, as in RFB's QEMU extended key events
SCANCODES: Final[dict[int, int]] = {
    **{code: code for code in (*range(0x01, 0x54), 0x56, 0x57, 0x58)},
    0x54: 99, 0x55: 186, 0x59: 117, 0x5A: 190, 0x5D: 183, 0x5E: 184, 0x5F: 185, 0x6D: 193, 0x6F: 194, 0x70: 93,
    0x71: 123, 0x72: 122, 0x73: 89, 0x74: 191, 0x76: 85, 0x77: 91, 0x78: 90, 0x79: 92, 0x7B: 94, 0x7D: 124, 0x7E: 121,
    0x83: 187, 0x84: 189, 0x90: 165, 0x99: 163, 0x9C: 96, 0x9D: 97, 0xA0: 113, 0xA1: 140, 0xA2: 164, 0xA4: 166,
    0xAE: 114, 0xB0: 115, 0xB2: 172, 0xB5: 98, 0xB7: 99, 0xB8: 100, 0xC6: 119, 0xC7: 102, 0xC8: 103, 0xC9: 104,
    0xCB: 105, 0xCD: 106, 0xCF: 107, 0xD0: 108, 0xD1: 109, 0xD2: 110, 0xD3: 111, 0xDB: 125, 0xDC: 126, 0xDD: 127,
    0xDE: 116, 0xDF: 142, 0xE3: 143, 0xE5: 217, 0xE6: 156, 0xE7: 173, 0xE8: 128, 0xE9: 159, 0xEA: 158, 0xEB: 157,
    0xEC: 155, 0xED: 226, 0xF7: 188, 0xF9: 192,
}  # fmt: skip

_PLAIN: Final = "`1234567890-=qwertyuiop[]\\asdfghjkl;'zxcvbnm,./"
_SHIFTED: Final = '~!@#$%^&*()_+QWERTYUIOP{}|ASDFGHJKL:"ZXCVBNM<>?'
_ORDER: Final = (41, *range(2, 14), *range(16, 28), 43, *range(30, 41), *range(44, 54))
#: by X11's number: keys that are called the same in every layout
NAMED: Final[dict[int, int]] = {
    **{0xFFBD + n: CODES[f"F{n}"] for n in range(1, 25)},
    **{0xFFB0 + n: CODES[f"Numpad{n}"] for n in range(10)},
    **{
        sym: CODES[name]
        for sym, name in (
            (0xFF08, "Backspace"), (0xFF09, "Tab"), (0xFE20, "Tab"), (0xFF0D, "Enter"), (0xFF13, "Pause"),
            (0xFF14, "ScrollLock"), (0xFF15, "PrintScreen"), (0xFF1B, "Escape"), (0xFFFF, "Delete"),
            (0xFF50, "Home"), (0xFF51, "ArrowLeft"), (0xFF52, "ArrowUp"), (0xFF53, "ArrowRight"),
            (0xFF54, "ArrowDown"), (0xFF55, "PageUp"), (0xFF56, "PageDown"), (0xFF57, "End"),
            (0xFF61, "PrintScreen"), (0xFF63, "Insert"), (0xFF67, "ContextMenu"), (0xFF6B, "Pause"),
            (0xFF7E, "AltRight"), (0xFF7F, "NumLock"), (0xFF8D, "NumpadEnter"), (0xFFAA, "NumpadMultiply"),
            (0xFFAB, "NumpadAdd"), (0xFFAC, "NumpadComma"), (0xFFAD, "NumpadSubtract"), (0xFFAE, "NumpadDecimal"),
            (0xFFAF, "NumpadDivide"), (0xFFBD, "NumpadEqual"), (0xFF95, "Numpad7"), (0xFF96, "Numpad4"),
            (0xFF97, "Numpad8"), (0xFF98, "Numpad6"), (0xFF99, "Numpad2"), (0xFF9A, "Numpad9"), (0xFF9B, "Numpad3"),
            (0xFF9C, "Numpad1"), (0xFF9D, "Numpad5"), (0xFF9E, "Numpad0"), (0xFF9F, "NumpadDecimal"),
            (0xFFE1, "ShiftLeft"), (0xFFE2, "ShiftRight"), (0xFFE3, "ControlLeft"), (0xFFE4, "ControlRight"),
            (0xFFE5, "CapsLock"), (0xFFE7, "AltLeft"), (0xFFE8, "AltRight"), (0xFFE9, "AltLeft"),
            (0xFFEA, "AltRight"), (0xFFEB, "MetaLeft"), (0xFFEC, "MetaRight"), (0xFE03, "AltRight"),
        )
    },
}  # fmt: skip

#: a key, and those that are held meanwhile
Stroke = tuple[int, tuple[int, ...]]


class Layout:
    """Which keys write what.

    Args:
        name: what users call it.
        strokes: what writes a character.
        keysyms: X11's numbers of what keys write; those of `NAMED` need not be among them.
    """

    def __init__(self, name: str, strokes: Mapping[str, Stroke], keysyms: Mapping[int, int]) -> None:
        self.name = name
        self._strokes = {**strokes, "\n": (CODES["Enter"], ()), "\t": (CODES["Tab"], ())}
        self.keysyms = {**keysyms, **NAMED}

    def strokes(self, text: str) -> list[Stroke]:
        """What writes `text`.

        Raises:
            ValueError: a character that no key writes.
        """
        for char in text:
            if char not in self._strokes:
                raise ValueError(f"{char!r} is on no key of the layout {self.name}")
        return [self._strokes[char] for char in text]


def _american() -> Layout:
    strokes: dict[str, Stroke] = {" ": (CODES["Space"], ())}
    strokes |= {char: (key, ()) for char, key in zip(_PLAIN, _ORDER, strict=True)}
    strokes |= {char: (key, (SHIFT,)) for char, key in zip(_SHIFTED, _ORDER, strict=True)}
    return Layout("us", strokes, {ord(char): key for char, (key, _) in strokes.items()})


AMERICAN: Final = _american()
