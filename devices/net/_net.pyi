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
    NET_CAPTURE_NAME: Final[int]
    NET_CAPTURE_PATH: Final[int]
    NET_CAPTURE_RING_MAX: Final[int]
    NET_CAPTURE_RING_MIN: Final[int]
    NET_DROPS: Final[int]
    NET_DROP_DOWN: Final[int]
    NET_DROP_ERROR: Final[int]
    NET_DROP_FILTER: Final[int]
    NET_DROP_FULL: Final[int]
    NET_DROP_GIANT: Final[int]
    NET_DROP_HEADER: Final[int]
    NET_DROP_ISOLATED: Final[int]
    NET_DROP_LIMIT: Final[int]
    NET_DROP_NONE: Final[int]
    NET_DROP_NO_BUFFER: Final[int]
    NET_DROP_NO_PEER: Final[int]
    NET_DROP_RUNT: Final[int]
    NET_DROP_TOO_SMALL: Final[int]
    NET_DROP_VLAN: Final[int]
    NET_FD_HEADER: Final[int]
    NET_FRAME_BYTES_MAX: Final[int]
    NET_PAIRS_MAX: Final[int]
    NET_SWITCH_ENTRIES_MAX: Final[int]
    NET_SWITCH_ISOLATED: Final[int]
    NET_SWITCH_LEARNT: Final[int]
    NET_SWITCH_PIN: Final[int]
    NET_SWITCH_PINNED: Final[int]
    NET_SWITCH_PORTS: Final[int]
    NET_SWITCH_TRUNK: Final[int]
    NET_SWITCH_VLAN_MAX: Final[int]
    NET_TAKES_CSUM: Final[int]
    NET_TAKES_ECN: Final[int]
    NET_TAKES_TSO4: Final[int]
    NET_TAKES_TSO6: Final[int]
    NET_TAKES_UFO: Final[int]
    NET_TAKES_USO: Final[int]
    NET_TAP_UNKNOWN: Final[int]
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

    def net_capture_add(self, _0: CData, _1: CData | bytes | None, /) -> CData:
        """struct net_capture *(*)(struct net_capture_file *, char *)"""
    def net_capture_close(self, _0: CData, /) -> int:
        """int(*)(struct net_capture_file *)"""
    def net_capture_file_stats(self, _0: CData, _1: CData, /) -> None:
        """void(*)(struct net_capture_file *, struct net_capture_file_stats *)"""
    def net_capture_open(self, _0: CData | bytes | None, _1: CData, _2: CData, /) -> CData:
        """struct net_capture_file *(*)(char *, struct net_capture_options *, int *)"""
    def net_capture_remove(self, _0: CData, /) -> None:
        """void(*)(struct net_capture *)"""
    def net_capture_set_on(self, _0: CData, _1: int, /) -> None:
        """void(*)(struct net_capture *, int)"""
    def net_capture_stats(self, _0: CData, _1: CData, /) -> None:
        """void(*)(struct net_capture *, struct net_capture_stats *)"""
    def net_capture_sync(self, _0: CData, /) -> None:
        """void(*)(struct net_capture_file *)"""
    def net_dev_announce(self, _0: CData, /) -> int:
        """int(*)(struct net_dev *)"""
    def net_dev_get_mac(self, _0: CData, _1: CData, /) -> None:
        """void(*)(struct net_dev *, uint8_t *)"""
    def net_dev_new(self, _0: int, /) -> CData:
        """struct net_dev *(*)(uint32_t)"""
    def net_dev_port(self, _0: CData, /) -> CData:
        """struct net_port *(*)(struct net_dev *)"""
    def net_dev_rarp(self, _0: CData, _1: CData, /) -> int:
        """int(*)(struct net_dev *, uint8_t *)"""
    def net_dev_reset(self, _0: CData, _1: CData, /) -> None:
        """void(*)(struct net_dev *, uint8_t *)"""
    def net_dev_set_announce(self, _0: CData, _1: int, /) -> None:
        """void(*)(struct net_dev *, int)"""
    def net_dev_set_features(self, _0: CData, _1: int, /) -> None:
        """void(*)(struct net_dev *, uint64_t)"""
    def net_dev_set_mac(self, _0: CData, _1: CData, /) -> None:
        """void(*)(struct net_dev *, uint8_t *)"""
    def net_dev_set_shared(self, _0: CData, _1: int, /) -> None:
        """void(*)(struct net_dev *, int)"""
    def net_echo_new(self) -> CData:
        """struct net_port *(*)()"""
    def net_fdlink_error(self, _0: CData, _1: int, /) -> int:
        """int(*)(struct net_port *, uint32_t)"""
    def net_fdlink_new(self, _0: CData, /) -> CData:
        """struct net_port *(*)(struct net_fdlink_config *)"""
    def net_fdlink_set_max_frame(self, _0: CData, _1: int, /) -> None:
        """void(*)(struct net_port *, uint32_t)"""
    def net_fdlink_start(self, _0: CData, _1: int, _2: int, /) -> CData:
        """struct ring_source *(*)(struct net_port *, uint32_t, int)"""
    def net_fdlink_stop(self, _0: CData, _1: int, /) -> None:
        """void(*)(struct net_port *, uint32_t)"""
    def net_null_new(self) -> CData:
        """struct net_port *(*)()"""
    def net_port_connect(self, _0: CData, _1: CData, /) -> None:
        """void(*)(struct net_port *, struct net_port *)"""
    def net_port_free(self, _0: CData, /) -> None:
        """void(*)(struct net_port *)"""
    def net_port_set_capture(self, _0: CData, _1: CData, /) -> None:
        """void(*)(struct net_port *, struct net_capture *)"""
    def net_port_set_down(self, _0: CData, _1: int, /) -> None:
        """void(*)(struct net_port *, int)"""
    def net_port_stats(self, _0: CData, _1: CData, /) -> None:
        """void(*)(struct net_port *, struct net_port_stats *)"""
    def net_queue_free(self, _0: CData, /) -> int:
        """int(*)(struct ring_source *)"""
    def net_queue_new(self, _0: CData, _1: CData, _2: int, /) -> CData:
        """struct ring_source *(*)(struct net_dev *, struct ring_vq *, uint32_t)"""
    def net_queue_set_enabled(self, _0: CData, _1: int, /) -> None:
        """void(*)(struct ring_source *, int)"""
    def net_source_new(self, _0: int, /) -> CData:
        """struct net_port *(*)(uint32_t)"""
    def net_source_start(self, _0: CData, _1: CData, _2: int, /) -> int:
        """int(*)(struct net_port *, struct net_dev *, uint32_t)"""
    def net_source_stop(self, _0: CData, _1: CData, _2: int, /) -> None:
        """void(*)(struct net_port *, struct net_dev *, uint32_t)"""
    def net_switch_flush(self, _0: CData, _1: CData, /) -> None:
        """void(*)(struct net_switch *, struct net_port *)"""
    def net_switch_free(self, _0: CData, /) -> None:
        """void(*)(struct net_switch *)"""
    def net_switch_new(self, _0: int, _1: int, /) -> CData:
        """struct net_switch *(*)(uint32_t, uint64_t)"""
    def net_switch_port_learnt(self, _0: CData, /) -> int:
        """uint32_t(*)(struct net_port *)"""
    def net_switch_port_new(self, _0: CData, _1: CData, _2: CData, /) -> CData:
        """struct net_port *(*)(struct net_switch *, struct net_switch_config *, int *)"""
    def net_switch_port_number(self, _0: CData, /) -> int:
        """uint32_t(*)(struct net_port *)"""
    def net_switch_port_set(self, _0: CData, _1: CData, /) -> int:
        """int(*)(struct net_port *, struct net_switch_config *)"""
    def net_switch_set_ageing(self, _0: CData, _1: int, /) -> None:
        """void(*)(struct net_switch *, uint32_t)"""
    def net_switch_skip(self, _0: CData, _1: int, /) -> None:
        """void(*)(struct net_switch *, uint32_t)"""
    def net_switch_stats(self, _0: CData, _1: CData, /) -> None:
        """void(*)(struct net_switch *, struct net_switch_stats *)"""
    def net_switch_table(self, _0: CData, _1: CData, _2: int, /) -> int:
        """uint32_t(*)(struct net_switch *, struct net_switch_entry *, uint32_t)"""
    def net_tap_set_offload(self, _0: int, _1: int, /) -> int:
        """int(*)(int, uint32_t)"""
    def net_tap_takes(self, _0: int, /) -> int:
        """uint32_t(*)(int)"""

ffi: _FFI
lib: _Lib
