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
    FS_LATENCY_BUCKETS: Final[int]
    FS_LATENCY_SHIFT: Final[int]
    FS_OPS: Final[int]
    FS_THREADS_MAX: Final[int]
    FS_WRITE_MAX: Final[int]
    PASS_HANDLES_ALWAYS: Final[int]
    PASS_HANDLES_NEVER: Final[int]
    PASS_HANDLES_PREFER: Final[int]
    PASS_RANGE_FORBID: Final[int]
    PASS_RANGE_MAP: Final[int]
    PASS_RANGE_SQUASH: Final[int]
    PASS_WINDOW_CUTS: Final[int]
    PASS_WINDOW_UNIT: Final[int]
    PASS_XATTR_ALL: Final[int]
    PASS_XATTR_BAD: Final[int]
    PASS_XATTR_CLIENT: Final[int]
    PASS_XATTR_OK: Final[int]
    PASS_XATTR_PREFIX: Final[int]
    PASS_XATTR_SERVER: Final[int]
    PASS_XATTR_UNSUPPORTED: Final[int]
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

    def fs_null_new(self, _0: int, /) -> CData:
        """struct fs_server *(*)(uint64_t)"""
    def fs_py_attr(self, _0: CData, _1: CData, /) -> int:
        """uint32_t(*)(struct fs_py_slot *, struct fs_py_attr *)"""
    def fs_py_count(self, _0: CData, _1: int, /) -> int:
        """uint32_t(*)(struct fs_py_slot *, uint32_t)"""
    def fs_py_created(self, _0: CData, _1: CData, _2: int, _3: int, /) -> int:
        """uint32_t(*)(struct fs_py_slot *, struct fs_py_attr *, uint64_t, uint32_t)"""
    def fs_py_data(self, _0: CData, _1: CData, _2: int, /) -> int:
        """uint32_t(*)(struct fs_py_slot *, void *, uint32_t)"""
    def fs_py_decode(self, _0: CData, _1: CData, /) -> int:
        """int(*)(struct fs_py_slot *, struct ring_chain *)"""
    def fs_py_dirent(
        self,
        _0: CData,
        _1: int,
        _2: int,
        _3: int,
        _4: CData | bytes | None,
        _5: int,
        _6: CData,
        /,
    ) -> int:
        """int(*)(struct fs_py_slot *, uint64_t, uint64_t, uint32_t, char *, uint32_t, struct fs_py_attr *)"""
    def fs_py_entry(self, _0: CData, _1: CData, /) -> int:
        """uint32_t(*)(struct fs_py_slot *, struct fs_py_attr *)"""
    def fs_py_fail(self, _0: CData, _1: int, /) -> int:
        """uint32_t(*)(struct fs_py_slot *, int)"""
    def fs_py_flags(self, _0: CData, /) -> int:
        """uint64_t(*)(struct fs_py_server *)"""
    def fs_py_forget(self, _0: CData, _1: int, _2: CData, _3: CData, /) -> int:
        """int(*)(struct fs_py_req *, uint32_t, uint64_t *, uint64_t *)"""
    def fs_py_init(self, _0: CData, /) -> int:
        """uint32_t(*)(struct fs_py_slot *)"""
    def fs_py_listed(self, _0: CData, /) -> int:
        """uint32_t(*)(struct fs_py_slot *)"""
    def fs_py_lock(self, _0: CData, _1: int, _2: int, _3: int, _4: int, /) -> int:
        """uint32_t(*)(struct fs_py_slot *, uint64_t, uint64_t, uint32_t, uint32_t)"""
    def fs_py_none(self, _0: CData, /) -> int:
        """uint32_t(*)(struct fs_py_slot *)"""
    def fs_py_offset(self, _0: CData, _1: int, /) -> int:
        """uint32_t(*)(struct fs_py_slot *, uint64_t)"""
    def fs_py_opened(self, _0: CData, _1: int, _2: int, /) -> int:
        """uint32_t(*)(struct fs_py_slot *, uint64_t, uint32_t)"""
    def fs_py_read(self, _0: CData, _1: int, _2: CData, _3: int, /) -> int:
        """uint32_t(*)(struct fs_py_req *, uint32_t, void *, uint32_t)"""
    def fs_py_ready(self, _0: CData, /) -> int:
        """int(*)(struct fs_py_server *)"""
    def fs_py_req(self, _0: CData, /) -> CData:
        """struct fs_py_req *(*)(struct fs_py_slot *)"""
    def fs_py_reset(self, _0: CData, /) -> None:
        """void(*)(struct fs_py_server *)"""
    def fs_py_server_free(self, _0: CData, /) -> None:
        """void(*)(struct fs_py_server *)"""
    def fs_py_server_new(self, _0: int, /) -> CData:
        """struct fs_py_server *(*)(uint64_t)"""
    def fs_py_slot_free(self, _0: CData, /) -> None:
        """void(*)(struct fs_py_slot *)"""
    def fs_py_slot_new(self, _0: CData, /) -> CData:
        """struct fs_py_slot *(*)(struct fs_py_server *)"""
    def fs_py_statfs(self, _0: CData, _1: CData, /) -> int:
        """uint32_t(*)(struct fs_py_slot *, struct fs_py_statfs *)"""
    def fs_queue_free(self, _0: CData, /) -> int:
        """int(*)(struct ring_source *)"""
    def fs_queue_new(self, _0: CData, _1: CData, _2: int, _3: int, /) -> CData:
        """struct ring_source *(*)(struct fs_server *, struct ring_vq *, uint32_t, int)"""
    def fs_queue_stats(self, _0: CData, _1: CData, /) -> None:
        """void(*)(struct ring_source *, struct fs_stats *)"""
    def fs_server_cancel(self, _0: CData, /) -> None:
        """void(*)(struct fs_server *)"""
    def fs_server_free(self, _0: CData, /) -> None:
        """void(*)(struct fs_server *)"""
    def fs_server_leave(self, _0: CData, /) -> None:
        """void(*)(struct fs_server *)"""
    def fs_server_reset(self, _0: CData, /) -> None:
        """void(*)(struct fs_server *)"""
    def fs_server_session(self, _0: CData, _1: CData, /) -> None:
        """void(*)(struct fs_server *, struct fs_session *)"""
    def fs_server_set_session(self, _0: CData, _1: CData, /) -> int:
        """int(*)(struct fs_server *, struct fs_session *)"""
    def fs_server_set_threads(self, _0: CData, _1: int, /) -> None:
        """void(*)(struct fs_server *, uint32_t)"""
    def fs_tick_ns(self) -> float:
        """double(*)()"""
    def pass_get_stats(self, _0: CData, _1: CData, /) -> None:
        """void(*)(struct fs_server *, struct pass_stats *)"""
    def pass_keep_again(self, _0: CData, /) -> None:
        """void(*)(struct fs_server *)"""
    def pass_keep_deleted(self, _0: CData, _1: CData, _2: int, /) -> int:
        """uint32_t(*)(struct fs_server *, int *, uint32_t)"""
    def pass_keep_end(self, _0: CData, /) -> int:
        """int(*)(struct fs_server *)"""
    def pass_keep_load(self, _0: CData, _1: int, _2: CData, _3: int, _4: CData, /) -> int:
        """int(*)(struct fs_server *, int, int *, uint32_t, struct pass_state *)"""
    def pass_new(self, _0: CData, _1: CData, /) -> CData:
        """struct fs_server *(*)(struct pass_options *, int *)"""
    def pass_state_free(self, _0: CData, /) -> None:
        """void(*)(struct pass_state *)"""
    def pass_state_load(self, _0: CData, _1: CData, _2: int, _3: int, _4: CData, /) -> int:
        """int(*)(struct fs_server *, uint8_t *, uint64_t, int, struct pass_state *)"""
    def pass_state_resume(self, _0: CData, /) -> int:
        """uint64_t(*)(struct fs_server *)"""
    def pass_state_save(self, _0: CData, _1: CData, /) -> int:
        """int(*)(struct fs_server *, struct pass_state *)"""
    def pass_try_handles(self, _0: int, /) -> int:
        """int(*)(int)"""
    def pass_window_close(self, _0: CData, /) -> None:
        """void(*)(struct fs_server *)"""
    def pass_window_done(self, _0: CData, _1: CData, _2: int, /) -> None:
        """void(*)(struct fs_server *, struct pass_errand *, int)"""
    def pass_window_epoch(self, _0: CData, /) -> int:
        """uint64_t(*)(struct fs_server *)"""
    def pass_window_next(self, _0: CData, /) -> CData:
        """struct pass_errand *(*)(struct fs_server *)"""
    def pass_window_open(self, _0: CData, _1: int, /) -> int:
        """int(*)(struct fs_server *, uint64_t)"""

ffi: _FFI
lib: _Lib
