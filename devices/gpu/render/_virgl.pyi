# Written by tools/gen_stub.py from the built module; do not edit.

from typing import Any

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
    def render_about(self) -> CData:
        """char *(*)()"""
    def render_fork_apart(self) -> int:
        """int(*)()"""
    def render_run(self, _0: CData, _1: CData | bytes | None, _2: int, /) -> int:
        """int(*)(struct render_options *, char *, uint32_t)"""
    def render_vulkan(self) -> int:
        """uint32_t(*)()"""

ffi: _FFI
lib: _Lib
