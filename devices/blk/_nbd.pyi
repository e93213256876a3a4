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
    BLK_NBD_AT_CONNECT: Final[int]
    BLK_NBD_AT_HANDSHAKE: Final[int]
    BLK_NBD_AT_SETUP: Final[int]
    BLK_NBD_AT_URI: Final[int]
    BLK_NBD_TEXT: Final[int]
    RING_E_ADDR: Final[int]
    RING_E_AVAIL: Final[int]
    RING_E_DEVICE: Final[int]
    RING_E_DUP: Final[int]
    RING_E_FAULT: Final[int]
    RING_E_HEAD: Final[int]
    RING_E_ID: Final[int]
    RING_E_INDIRECT: Final[int]
    RING_E_INFLIGHT: Final[int]
    RING_E_IOVECS: Final[int]
    RING_E_LEN: Final[int]
    RING_E_LOG: Final[int]
    RING_E_LOOP: Final[int]
    RING_E_NEXT: Final[int]
    RING_E_NOREGION: Final[int]
    RING_E_ORDER: Final[int]
    RING_E_OVERLAP: Final[int]
    RING_E_PERM: Final[int]
    RING_E_RANGE: Final[int]
    RING_E_RING: Final[int]
    RING_E_SHORT: Final[int]
    RING_E_SIZE: Final[int]
    RING_E_SLOTS: Final[int]
    RING_E_STATE: Final[int]
    RING_MISS: Final[int]

    def blk_nbd_open(self, _0: CData, _1: CData, _2: CData, /) -> CData:
        """struct blk_store *(*)(struct blk_nbd_config *, struct blk_nbd_info *, struct blk_nbd_failure *)"""
    def blk_nbd_status(self, _0: CData, _1: CData, /) -> None:
        """void(*)(struct blk_store *, struct blk_nbd_status *)"""
    def blk_nbd_sync(self, _0: CData, /) -> int:
        """int(*)(struct blk_store *)"""

ffi: _FFI
lib: _Lib
