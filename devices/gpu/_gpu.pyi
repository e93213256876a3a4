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
    GPU_3D_LOST: Final[int]
    GPU_3D_NONE: Final[int]
    GPU_3D_STARTING: Final[int]
    GPU_3D_UP: Final[int]
    GPU_CURSOR_SIDE: Final[int]
    GPU_EDID_BYTES_MAX: Final[int]
    GPU_ERRAND_CLEAR: Final[int]
    GPU_ERRAND_MAP: Final[int]
    GPU_ERRAND_UNMAP: Final[int]
    GPU_ERRORS: Final[int]
    GPU_SCANOUTS_MAX: Final[int]
    GPU_SIDE_MAX: Final[int]
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

    def gpu_3d_behind(self, _0: CData, _1: int, /) -> int:
        """int(*)(struct gpu *, uint32_t)"""
    def gpu_3d_blobs(self, _0: CData, /) -> int:
        """int(*)(struct gpu *)"""
    def gpu_3d_capsets(self, _0: CData, _1: int, /) -> int:
        """int(*)(struct gpu *, int)"""
    def gpu_3d_enable(self, _0: CData, _1: int, /) -> int:
        """int(*)(struct gpu *, uint32_t)"""
    def gpu_3d_fail(self, _0: CData, /) -> None:
        """void(*)(struct gpu *)"""
    def gpu_3d_lost(self, _0: CData, /) -> None:
        """void(*)(struct gpu *)"""
    def gpu_3d_memory(self) -> int:
        """int(*)()"""
    def gpu_3d_progress(self, _0: CData, _1: CData, _2: CData, _3: CData, /) -> None:
        """void(*)(struct gpu *, uint64_t *, uint32_t *, uint32_t *)"""
    def gpu_3d_ready(self, _0: CData, _1: CData, _2: int, /) -> int:
        """int(*)(struct gpu *, void *, uint64_t)"""
    def gpu_3d_region(self, _0: CData, _1: int, _2: int, _3: int, _4: int, _5: int, /) -> int:
        """int(*)(struct gpu *, int, uint64_t, uint64_t, uint64_t, int)"""
    def gpu_3d_source(self, _0: CData, /) -> CData:
        """struct ring_source *(*)(struct gpu *)"""
    def gpu_3d_start(self, _0: CData, _1: int, _2: int, _3: int, _4: int, /) -> int:
        """int(*)(struct gpu *, int, int, int, int)"""
    def gpu_3d_state(self, _0: CData, /) -> int:
        """int(*)(struct gpu *)"""
    def gpu_answer(self, _0: CData, /) -> None:
        """void(*)(struct gpu *)"""
    def gpu_dmabuf(self, _0: CData, _1: int, _2: CData, /) -> int:
        """int(*)(struct gpu *, uint32_t, struct gpu_dmabuf *)"""
    def gpu_errand_done(self, _0: CData, _1: int, /) -> None:
        """void(*)(struct gpu *, int)"""
    def gpu_errand_next(self, _0: CData, _1: CData, /) -> int:
        """int(*)(struct gpu *, struct gpu_errand *)"""
    def gpu_free(self, _0: CData, /) -> None:
        """void(*)(struct gpu *)"""
    def gpu_new(self, _0: int, _1: CData, /) -> CData:
        """struct gpu *(*)(uint32_t, struct gpu_limits *)"""
    def gpu_picture(self, _0: CData, _1: int, _2: CData, /) -> None:
        """void(*)(struct gpu *, uint32_t, struct gpu_picture *)"""
    def gpu_queue_free(self, _0: CData, /) -> None:
        """void(*)(struct ring_source *)"""
    def gpu_queue_new(self, _0: CData, _1: CData, _2: CData, _3: int, /) -> CData:
        """struct ring_source *(*)(struct gpu *, struct ring_vq *, struct ring_mem *, int)"""
    def gpu_read(self, _0: CData, _1: int, _2: CData, _3: CData, _4: int, _5: int, /) -> int:
        """int(*)(struct gpu *, uint32_t, struct gpu_rect *, uint8_t *, uint64_t, int)"""
    def gpu_read_cursor(self, _0: CData, _1: int, _2: CData, /) -> None:
        """void(*)(struct gpu *, uint32_t, uint8_t *)"""
    def gpu_reset(self, _0: CData, /) -> None:
        """void(*)(struct gpu *)"""
    def gpu_set_asked(self, _0: CData, _1: int, /) -> None:
        """void(*)(struct gpu *, int)"""
    def gpu_set_features(self, _0: CData, _1: int, /) -> None:
        """void(*)(struct gpu *, uint64_t)"""
    def gpu_set_looked(self, _0: CData, _1: int, /) -> None:
        """void(*)(struct gpu *, int)"""
    def gpu_set_mode(self, _0: CData, _1: int, _2: CData, /) -> None:
        """void(*)(struct gpu *, uint32_t, struct gpu_mode *)"""
    def gpu_set_watcher(self, _0: CData, _1: int, /) -> None:
        """void(*)(struct gpu *, int)"""
    def gpu_set_window(self, _0: CData, _1: int, _2: int, /) -> None:
        """void(*)(struct gpu *, uint64_t, int)"""
    def gpu_shot_free(self, _0: CData, /) -> None:
        """void(*)(struct gpu_shot *)"""
    def gpu_shot_new(self, _0: CData, _1: int, _2: CData, /) -> CData:
        """struct gpu_shot *(*)(struct gpu *, uint32_t, struct gpu_rect *)"""
    def gpu_shot_send(self, _0: CData, _1: int, _2: int, /) -> int:
        """int(*)(struct gpu_shot *, int, int)"""
    def gpu_stats(self, _0: CData, _1: CData, /) -> None:
        """void(*)(struct gpu *, struct gpu_stats *)"""
    def gpu_take_damage(self, _0: CData, _1: int, /) -> None:
        """void(*)(struct gpu *, uint32_t)"""
    def gpu_watch(self, _0: CData, /) -> None:
        """void(*)(struct gpu *)"""

ffi: _FFI
lib: _Lib
