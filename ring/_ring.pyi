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
    RING_ADDR_GPA: Final[int]
    RING_ADDR_UADDR: Final[int]
    RING_BATCH_MAX: Final[int]
    RING_CHAIN_MAX: Final[int]
    RING_DRV_INDIRECT_MAX: Final[int]
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
    RING_INLINE_IOV: Final[int]
    RING_IOV_MAX: Final[int]
    RING_LOG_PAGE: Final[int]
    RING_MEM_MAX_REGIONS: Final[int]
    RING_MEM_NOTOUCH: Final[int]
    RING_MEM_RO: Final[int]
    RING_MISS: Final[int]
    RING_PERM_READ: Final[int]
    RING_PERM_WRITE: Final[int]
    RING_POLL_ADAPTIVE: Final[int]
    RING_POLL_ALWAYS: Final[int]
    RING_POLL_NEVER: Final[int]
    RING_SIZE_MAX: Final[int]
    RING_VQ_BROKEN: Final[int]
    RING_VQ_RUNNING: Final[int]
    RING_VQ_STOPPED: Final[int]

    def ring_chain_read(self, _0: CData, _1: int, _2: CData, _3: int, /) -> int:
        """uint32_t(*)(struct ring_chain *, uint32_t, void *, uint32_t)"""
    def ring_chain_write(self, _0: CData, _1: int, _2: CData, _3: int, /) -> int:
        """uint32_t(*)(struct ring_chain *, uint32_t, void *, uint32_t)"""
    def ring_drv_add(self, _0: CData, _1: CData, _2: int, _3: int, _4: int, _5: int, /) -> int:
        """int(*)(struct ring_drv *, struct ring_drv_buf *, uint32_t, uint32_t, uint64_t, int)"""
    def ring_drv_calls_off(self, _0: CData, /) -> None:
        """void(*)(struct ring_drv *)"""
    def ring_drv_calls_on(self, _0: CData, /) -> int:
        """int(*)(struct ring_drv *)"""
    def ring_drv_free(self, _0: CData, /) -> None:
        """void(*)(struct ring_drv *)"""
    def ring_drv_free_slots(self, _0: CData, /) -> int:
        """uint32_t(*)(struct ring_drv *)"""
    def ring_drv_layout(self, _0: int, _1: int, _2: int, _3: CData, /) -> int:
        """int(*)(uint32_t, uint64_t, uint32_t, struct ring_drv_layout *)"""
    def ring_drv_new(self, _0: CData, _1: int, _2: int, _3: int, _4: int, _5: int, /) -> CData:
        """struct ring_drv *(*)(void *, uint64_t, uint32_t, uint64_t, uint32_t, uint32_t)"""
    def ring_drv_pending(self, _0: CData, /) -> int:
        """uint32_t(*)(struct ring_drv *)"""
    def ring_drv_poll(self, _0: CData, _1: CData, _2: int, /) -> int:
        """int(*)(struct ring_drv *, struct ring_drv_used *, int)"""
    def ring_drv_post(self, _0: CData, _1: CData, _2: int, /) -> int:
        """int(*)(struct ring_drv *, uint16_t *, uint32_t)"""
    def ring_drv_prepare(self, _0: CData, _1: int, _2: int, _3: int, _4: int, _5: int, /) -> int:
        """int(*)(struct ring_drv *, uint64_t, uint64_t, uint32_t, uint32_t, int)"""
    def ring_drv_publish(self, _0: CData, /) -> int:
        """int(*)(struct ring_drv *)"""
    def ring_drv_remember(self, _0: CData, /) -> int:
        """int(*)(struct ring_drv *)"""
    def ring_drv_take(self, _0: CData, _1: CData, _2: int, /) -> int:
        """int(*)(struct ring_drv *, struct ring_drv_taken *, int)"""
    def ring_inflight_bytes(self, _0: int, _1: int, /) -> int:
        """uint64_t(*)(uint32_t, int)"""
    def ring_iotlb_clear(self, _0: CData, /) -> None:
        """void(*)(struct ring_iotlb *)"""
    def ring_iotlb_free(self, _0: CData, /) -> None:
        """void(*)(struct ring_iotlb *)"""
    def ring_iotlb_invalidate(self, _0: CData, _1: int, _2: int, /) -> int:
        """int(*)(struct ring_iotlb *, uint64_t, uint64_t)"""
    def ring_iotlb_misses(self, _0: CData, _1: CData, _2: int, /) -> int:
        """int(*)(struct ring_iotlb *, struct ring_iotlb_miss *, int)"""
    def ring_iotlb_new(self) -> CData:
        """struct ring_iotlb *(*)()"""
    def ring_iotlb_update(self, _0: CData, _1: int, _2: int, _3: int, _4: int, /) -> int:
        """int(*)(struct ring_iotlb *, uint64_t, uint64_t, uint64_t, uint32_t)"""
    def ring_mem_add(self, _0: CData, _1: int, _2: int, _3: int, _4: int, _5: int, _6: int, /) -> int:
        """int(*)(struct ring_mem *, int, uint64_t, uint64_t, uint64_t, uint64_t, uint32_t)"""
    def ring_mem_add_mapped(self, _0: CData, _1: CData, _2: int, _3: int, _4: int, _5: int, /) -> int:
        """int(*)(struct ring_mem *, void *, uint64_t, uint64_t, uint64_t, uint32_t)"""
    def ring_mem_clear(self, _0: CData, /) -> None:
        """void(*)(struct ring_mem *)"""
    def ring_mem_faulted(self, _0: CData, /) -> int:
        """int(*)(struct ring_mem *)"""
    def ring_mem_free(self, _0: CData, /) -> None:
        """void(*)(struct ring_mem *)"""
    def ring_mem_log_clear(self, _0: CData, /) -> None:
        """void(*)(struct ring_mem *)"""
    def ring_mem_log_gpa(self, _0: CData, _1: int, _2: int, /) -> None:
        """void(*)(struct ring_mem *, uint64_t, uint64_t)"""
    def ring_mem_log_set(self, _0: CData, _1: int, _2: int, _3: int, /) -> int:
        """int(*)(struct ring_mem *, int, uint64_t, uint64_t)"""
    def ring_mem_new(self) -> CData:
        """struct ring_mem *(*)()"""
    def ring_mem_regions(self, _0: CData, _1: CData, _2: int, /) -> int:
        """int(*)(struct ring_mem *, struct ring_region_info *, int)"""
    def ring_mem_remove(self, _0: CData, _1: int, _2: int, _3: int, /) -> int:
        """int(*)(struct ring_mem *, uint64_t, uint64_t, uint64_t)"""
    def ring_mem_translate(self, _0: CData, _1: int, _2: int, _3: int, _4: int, _5: CData, _6: int, /) -> int:
        """int(*)(struct ring_mem *, int, uint64_t, uint64_t, int, struct ring_iov *, int)"""
    def ring_shared_base(self, _0: CData, /) -> CData:
        """void *(*)(struct ring_shared *)"""
    def ring_shared_faulted(self, _0: CData, /) -> int:
        """int(*)(struct ring_shared *)"""
    def ring_shared_map(self, _0: int, _1: int, _2: int, _3: CData, /) -> int:
        """int(*)(int, uint64_t, uint64_t, struct ring_shared * *)"""
    def ring_shared_unmap(self, _0: CData, /) -> None:
        """void(*)(struct ring_shared *)"""
    def ring_source_pause(self, _0: CData, _1: int, /) -> None:
        """void(*)(struct ring_source *, int)"""
    def ring_source_set_kick(self, _0: CData, _1: int, /) -> int:
        """int(*)(struct ring_source *, int)"""
    def ring_source_wake(self, _0: CData, /) -> None:
        """void(*)(struct ring_source *)"""
    def ring_strerror(self, _0: int, /) -> CData:
        """char *(*)(int)"""
    def ring_uffd_copy(self, _0: int, _1: int, _2: int, _3: int, /) -> int:
        """int(*)(int, uint64_t, uint64_t, uint64_t)"""
    def ring_uffd_open(self) -> int:
        """int(*)()"""
    def ring_uffd_read(self, _0: int, _1: CData, /) -> int:
        """int(*)(int, uint64_t *)"""
    def ring_uffd_register(self, _0: int, _1: int, _2: int, /) -> int:
        """int(*)(int, uint64_t, uint64_t)"""
    def ring_uffd_unregister(self, _0: int, _1: int, _2: int, /) -> int:
        """int(*)(int, uint64_t, uint64_t)"""
    def ring_uffd_wake(self, _0: int, _1: int, _2: int, /) -> int:
        """int(*)(int, uint64_t, uint64_t)"""
    def ring_vq_base(self, _0: CData, /) -> int:
        """uint32_t(*)(struct ring_vq *)"""
    def ring_vq_break(self, _0: CData, _1: int, _2: int, /) -> None:
        """void(*)(struct ring_vq *, int, uint64_t)"""
    def ring_vq_error(self, _0: CData, _1: CData, /) -> int:
        """int(*)(struct ring_vq *, uint64_t *)"""
    def ring_vq_flush(self, _0: CData, /) -> int:
        """int(*)(struct ring_vq *)"""
    def ring_vq_free(self, _0: CData, /) -> None:
        """void(*)(struct ring_vq *)"""
    def ring_vq_in_flight(self, _0: CData, /) -> int:
        """uint32_t(*)(struct ring_vq *)"""
    def ring_vq_index(self, _0: CData, /) -> int:
        """uint32_t(*)(struct ring_vq *)"""
    def ring_vq_kicks_off(self, _0: CData, /) -> None:
        """void(*)(struct ring_vq *)"""
    def ring_vq_kicks_on(self, _0: CData, /) -> int:
        """int(*)(struct ring_vq *)"""
    def ring_vq_leave(self, _0: CData, _1: CData, /) -> int:
        """int(*)(struct ring_vq *, struct ring_chain *)"""
    def ring_vq_new(self, _0: CData, _1: int, /) -> CData:
        """struct ring_vq *(*)(struct ring_mem *, uint32_t)"""
    def ring_vq_overlaps(self, _0: CData, _1: CData, _2: int, /) -> int:
        """int(*)(struct ring_vq *, void *, uint64_t)"""
    def ring_vq_pop(self, _0: CData, _1: CData, _2: int, /) -> int:
        """int(*)(struct ring_vq *, struct ring_chain * *, int)"""
    def ring_vq_push(self, _0: CData, _1: CData, _2: int, /) -> None:
        """void(*)(struct ring_vq *, struct ring_chain *, uint32_t)"""
    def ring_vq_push_batch(self, _0: CData, _1: CData, _2: CData, _3: int, /) -> None:
        """void(*)(struct ring_vq *, struct ring_chain * *, uint32_t *, int)"""
    def ring_vq_ready(self, _0: CData, /) -> int:
        """int(*)(struct ring_vq *)"""
    def ring_vq_remap(self, _0: CData, /) -> int:
        """int(*)(struct ring_vq *)"""
    def ring_vq_resubmits(self, _0: CData, /) -> int:
        """uint32_t(*)(struct ring_vq *)"""
    def ring_vq_set_call(self, _0: CData, _1: int, /) -> None:
        """void(*)(struct ring_vq *, int)"""
    def ring_vq_set_err(self, _0: CData, _1: int, /) -> None:
        """void(*)(struct ring_vq *, int)"""
    def ring_vq_set_logging(self, _0: CData, _1: int, _2: int, _3: int, /) -> None:
        """void(*)(struct ring_vq *, int, int, uint64_t)"""
    def ring_vq_size(self, _0: CData, /) -> int:
        """uint32_t(*)(struct ring_vq *)"""
    def ring_vq_start(self, _0: CData, _1: CData, /) -> int:
        """int(*)(struct ring_vq *, struct ring_vq_config *)"""
    def ring_vq_state(self, _0: CData, /) -> int:
        """int(*)(struct ring_vq *)"""
    def ring_vq_stats(self, _0: CData, _1: CData, /) -> None:
        """void(*)(struct ring_vq *, struct ring_vq_stats *)"""
    def ring_vq_stop(self, _0: CData, /) -> None:
        """void(*)(struct ring_vq *)"""
    def ring_vq_unpop(self, _0: CData, _1: int, /) -> int:
        """int(*)(struct ring_vq *, int)"""
    def ring_worker_add(self, _0: CData, _1: CData, /) -> int:
        """int(*)(struct ring_worker *, struct ring_source *)"""
    def ring_worker_free(self, _0: CData, /) -> None:
        """void(*)(struct ring_worker *)"""
    def ring_worker_has_uring(self, _0: CData, /) -> int:
        """int(*)(struct ring_worker *)"""
    def ring_worker_new(self, _0: CData, /) -> CData:
        """struct ring_worker *(*)(struct ring_worker_options *)"""
    def ring_worker_park(self, _0: CData, /) -> None:
        """void(*)(struct ring_worker *)"""
    def ring_worker_remove(self, _0: CData, _1: CData, /) -> int:
        """int(*)(struct ring_worker *, struct ring_source *)"""
    def ring_worker_resume(self, _0: CData, /) -> None:
        """void(*)(struct ring_worker *)"""
    def ring_worker_run(self, _0: CData, /) -> int:
        """int(*)(struct ring_worker *)"""
    def ring_worker_stats(self, _0: CData, _1: CData, /) -> None:
        """void(*)(struct ring_worker *, struct ring_worker_stats *)"""
    def ring_worker_stop(self, _0: CData, /) -> None:
        """void(*)(struct ring_worker *)"""

ffi: _FFI
lib: _Lib
