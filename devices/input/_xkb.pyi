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
    STROKE_ALT_GR: Final[int]
    STROKE_SHIFT: Final[int]

    def xkb_strokes(self, _0: CData | bytes | None, _1: CData | bytes | None, _2: CData, _3: int, /) -> int:
        """int32_t(*)(char *, char *, struct stroke *, uint32_t)"""

ffi: _FFI
lib: _Lib
