"""Keys: their numbers in Linux, and how browsers, X11 and plain text call them.

Spec: linux/input-event-codes.h; W3C UI Events KeyboardEvent code Values; X11 keysymdef.h. Where a name says what a key
writes (keysyms, text) the guest is taken to have the American layout, as QEMU's own displays do.
"""

from __future__ import annotations

from typing import Final

__all__ = ["BUTTONS", "CODES", "KEYSYMS", "LAST_KEY", "strokes"]

LAST_KEY: Final = 0x2FF
#: BTN_LEFT and its like
BUTTONS: Final = {"left": 0x110, "right": 0x111, "middle": 0x112, "side": 0x113, "extra": 0x114}
SHIFT: Final = 42

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

_PLAIN: Final = "`1234567890-=qwertyuiop[]\\asdfghjkl;'zxcvbnm,./"
_SHIFTED: Final = '~!@#$%^&*()_+QWERTYUIOP{}|ASDFGHJKL:"ZXCVBNM<>?'
_ORDER: Final = (41, *range(2, 14), *range(16, 28), 43, *range(30, 41), *range(44, 54))
#: character -> key, whether shift is held
_STROKES: Final[dict[str, tuple[int, bool]]] = {
    **{char: (key, False) for char, key in zip(_PLAIN, _ORDER, strict=True)},
    **{char: (key, True) for char, key in zip(_SHIFTED, _ORDER, strict=True)},
    " ": (57, False),
    "\n": (28, False),
    "\t": (15, False),
}

#: by X11's number
KEYSYMS: Final[dict[int, int]] = {
    **{ord(char): key for char, (key, _) in _STROKES.items() if char >= " "},
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


def strokes(text: str) -> list[tuple[int, bool]]:
    """The keys that write `text`, and whether shift is held.

    Raises:
        ValueError: a character that no key writes.
    """
    for char in text:
        if char not in _STROKES:
            raise ValueError(f"{char!r} is on no key of the American layout")
    return [_STROKES[char] for char in text]
