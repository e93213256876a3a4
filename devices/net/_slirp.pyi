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
    NET_SLIRP_ADD: Final[int]
    NET_SLIRP_ADDR: Final[int]
    NET_SLIRP_REMOVE: Final[int]
    NET_SLIRP_SEARCH_MAX: Final[int]

    def net_slirp_connections(self, _0: CData, _1: CData | bytes | None, _2: int, /) -> int:
        """int(*)(struct net_slirp *, char *, uint32_t)"""
    def net_slirp_forward(self, _0: CData, _1: CData, _2: int, /) -> int:
        """int(*)(struct net_slirp *, struct net_slirp_forward *, int)"""
    def net_slirp_guest_forward(self, _0: CData, _1: CData, _2: int, _3: CData | bytes | None, /) -> int:
        """int(*)(struct net_slirp *, uint8_t *, uint32_t, char *)"""
    def net_slirp_start(self, _0: CData, _1: CData, /) -> CData:
        """struct net_slirp *(*)(struct net_slirp_config *, int *)"""
    def net_slirp_stats(self, _0: CData, _1: CData, /) -> None:
        """void(*)(struct net_slirp *, struct net_slirp_stats *)"""
    def net_slirp_stop(self, _0: CData, /) -> None:
        """void(*)(struct net_slirp *)"""
    def net_slirp_version(self) -> CData:
        """char *(*)()"""

ffi: _FFI
lib: _Lib
