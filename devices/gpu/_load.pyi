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
    GEN_DEPTH: Final[int]
    GEN_DRAIN: Final[int]
    GEN_E_DATA: Final[int]
    GEN_E_LENGTH: Final[int]
    GEN_E_OWN: Final[int]
    GEN_E_RING: Final[int]
    GEN_HIST: Final[int]
    GEN_ONCE: Final[int]
    GEN_QUEUES: Final[int]
    GEN_RUN: Final[int]
    GPU_LOAD_DEPTH: Final[int]
    GPU_LOAD_E_REPLY: Final[int]
    GPU_LOAD_SLOT_BYTES: Final[int]
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

    def gen_hist_value(self, _0: int, /) -> int:
        """uint64_t(*)(uint32_t)"""
    def gpu_load_free(self, _0: CData, /) -> None:
        """void(*)(struct gpu_load *)"""
    def gpu_load_new(self, _0: CData, /) -> CData:
        """struct gpu_load *(*)(struct gpu_load_config *)"""
    def gpu_load_read_display(self, _0: CData, /) -> int:
        """int(*)(struct gpu_load *)"""
    def gpu_load_run(self, _0: CData, _1: int, _2: int, /) -> int:
        """int(*)(struct gpu_load *, uint64_t, int)"""
    def gpu_load_set_commands(self, _0: CData, _1: int, _2: int, _3: int, /) -> None:
        """void(*)(struct gpu_load *, uint32_t, uint64_t, uint32_t)"""
    def gpu_load_set_display(self, _0: CData, _1: int, _2: int, /) -> int:
        """int(*)(struct gpu_load *, int, int)"""
    def gpu_load_set_queue(self, _0: CData, _1: CData, _2: int, _3: int, _4: CData, _5: int, /) -> int:
        """int(*)(struct gpu_load *, struct ring_drv *, int, int, void *, uint64_t)"""
    def gpu_load_shown(self, _0: CData, /) -> CData:
        """uint8_t *(*)(struct gpu_load *)"""
    def gpu_load_stats(self, _0: CData, /) -> CData:
        """struct gpu_load_stats *(*)(struct gpu_load *)"""
    def gpu_load_stop(self, _0: CData, /) -> None:
        """void(*)(struct gpu_load *)"""

ffi: _FFI
lib: _Lib
