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
    BLK_CAN_DISCARD: Final[int]
    BLK_CAN_ERASE: Final[int]
    BLK_CAN_FLUSH: Final[int]
    BLK_CAN_LIFETIME: Final[int]
    BLK_CAN_WRITE: Final[int]
    BLK_CAN_ZERO: Final[int]
    BLK_DISCARD: Final[int]
    BLK_ERASE: Final[int]
    BLK_FLUSH: Final[int]
    BLK_ID_BYTES: Final[int]
    BLK_LATENCY_BUCKETS: Final[int]
    BLK_LATENCY_SHIFT: Final[int]
    BLK_OPS: Final[int]
    BLK_OTHER: Final[int]
    BLK_READ: Final[int]
    BLK_SECTOR: Final[int]
    BLK_SEGMENTS_MAX: Final[int]
    BLK_WRITE: Final[int]
    BLK_ZERO: Final[int]
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

    def blk_fault_delay(self, _0: CData, _1: int, _2: int, /) -> None:
        """void(*)(struct blk_store *, uint32_t, uint64_t)"""
    def blk_fault_errors(self, _0: CData, _1: int, _2: int, _3: int, /) -> None:
        """void(*)(struct blk_store *, uint32_t, uint32_t, int)"""
    def blk_fault_new(self, _0: CData, /) -> CData:
        """struct blk_store *(*)(struct blk_store *)"""
    def blk_fault_seen(self, _0: CData, /) -> int:
        """uint64_t(*)(struct blk_store *)"""
    def blk_file_new(self, _0: CData, /) -> CData:
        """struct blk_store *(*)(struct blk_file_config *)"""
    def blk_free(self, _0: CData, /) -> None:
        """void(*)(struct blk *)"""
    def blk_memory_base(self, _0: CData, /) -> CData:
        """void *(*)(struct blk_store *)"""
    def blk_memory_new(self, _0: int, /) -> CData:
        """struct blk_store *(*)(uint64_t)"""
    def blk_new(self, _0: CData, _1: CData, _2: int, /) -> CData:
        """struct blk *(*)(struct blk_store *, struct blk_config *, uint64_t)"""
    def blk_null_new(self) -> CData:
        """struct blk_store *(*)()"""
    def blk_queue_free(self, _0: CData, /) -> int:
        """int(*)(struct ring_source *)"""
    def blk_queue_new(self, _0: CData, _1: CData, _2: int, /) -> CData:
        """struct ring_source *(*)(struct blk *, struct ring_vq *, uint32_t)"""
    def blk_queue_stats(self, _0: CData, _1: CData, /) -> None:
        """void(*)(struct ring_source *, struct blk_stats *)"""
    def blk_set_capacity(self, _0: CData, _1: int, /) -> None:
        """void(*)(struct blk *, uint64_t)"""
    def blk_set_features(self, _0: CData, _1: int, /) -> None:
        """void(*)(struct blk *, uint64_t)"""
    def blk_set_limits(self, _0: CData, _1: CData, /) -> None:
        """void(*)(struct blk *, struct blk_limits *)"""
    def blk_set_writethrough(self, _0: CData, _1: int, /) -> None:
        """void(*)(struct blk *, int)"""
    def blk_store_can(self, _0: CData, /) -> int:
        """uint32_t(*)(struct blk_store *)"""
    def blk_store_free(self, _0: CData, /) -> None:
        """void(*)(struct blk_store *)"""
    def blk_tick_ns(self) -> float:
        """double(*)()"""

ffi: _FFI
lib: _Lib
