# Written by tools/gen_stub.py from the built module; do not edit.

from typing import Any, Final

from _cffi_backend import FFI

CData = FFI.CData

class _FFI(FFI):
    # what is made here is a struct, an array or a number: its fields are known to C only
    def new(self, cdecl: Any, init: Any = ...) -> Any: ...
    def cast(self, cdecl: Any, value: Any) -> Any: ...
    def from_buffer(self, *args: Any, **kwargs: Any) -> Any: ...
    def string(self, cdata: CData, maxlen: int = ...) -> Any: ...
    def unpack(self, cdata: CData, length: int) -> Any: ...
    def addressof(self, *args: Any) -> Any: ...
    def gc(self, cdata: CData, destructor: Any, size: int = ...) -> Any: ...

class _Lib:
    VNC_ASKS: Final[int]
    VNC_CHALLENGE: Final[int]
    VNC_CURSOR_SIDE: Final[int]
    VNC_ENDED: Final[int]
    VNC_KEY: Final[int]
    VNC_NAME_MAX: Final[int]
    VNC_POINTER: Final[int]
    VNC_RESIZE: Final[int]
    VNC_ROOM: Final[int]
    VNC_SIDE_MAX: Final[int]
    VNC_WAITS: Final[int]

    def vnc_answer(self, _0: CData, _1: CData | bytes | None, /) -> None:
        """void(*)(uint8_t *, char *)"""
    def vnc_events(self, _0: CData, _1: CData, _2: int, /) -> int:
        """uint32_t(*)(struct vnc *, struct vnc_event *, uint32_t)"""
    def vnc_free(self, _0: CData, /) -> None:
        """void(*)(struct vnc *)"""
    def vnc_new(self, _0: int, _1: int, _2: int, _3: int, _4: int, _5: CData | bytes | None, _6: int, /) -> CData:
        """struct vnc *(*)(int, int, uint32_t, uint32_t, uint32_t, char *, int)"""
    def vnc_post(self, _0: CData, _1: int, _2: int, _3: int, _4: int, _5: int, _6: int, _7: CData, /) -> None:
        """void(*)(struct vnc *, uint32_t, uint32_t, uint32_t, uint32_t, uint32_t, uint32_t, struct vnc_cursor *)"""
    def vnc_room(self, _0: CData, _1: int, _2: int, /) -> CData:
        """uint8_t *(*)(struct vnc *, uint32_t, uint32_t)"""
    def vnc_state(self, _0: CData, /) -> int:
        """uint32_t(*)(struct vnc *)"""

ffi: _FFI
lib: _Lib
