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
    CONFINE_ALL: Final[int]
    CONFINE_READ: Final[int]

    def confine_chroot(self, _0: int, /) -> int:
        """int(*)(int)"""
    def confine_landlock(self, _0: CData, _1: CData, _2: int, /) -> int:
        """int(*)(int *, uint32_t *, int)"""
    def confine_landlock_abi(self) -> int:
        """int(*)()"""
    def confine_no_new_privs(self) -> int:
        """int(*)()"""
    def confine_root(self, _0: CData, _1: int, _2: CData, /) -> int:
        """int(*)(char * *, int, char * *)"""
    def confine_unshare(self, _0: int, _1: int, /) -> int:
        """int(*)(int, int)"""

ffi: _FFI
lib: _Lib
