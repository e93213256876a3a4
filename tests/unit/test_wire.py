"""Every payload, both directions, byte for byte, in the byte order of the machine."""

import os
import struct
import sys

import pytest

from vhost import wire
from vhost.constants import HEADER_SIZE, MAX_PAYLOAD, BackendRequest, FrontendRequest
from vhost.errors import ProtocolError
from vhost.fds import Fds
from vhost.messages import (
    BACKEND_SPECS,
    FRONTEND_SPECS,
    Config,
    HostNotifier,
    Inflight,
    Iotlb,
    LogBase,
    MemRegion,
    MemTable,
    Message,
    RawMessage,
    SharedObject,
    ShmemConfig,
    ShmemMap,
    StateTransfer,
    VringAddr,
    VringFd,
    VringState,
)

F = FrontendRequest
B = BackendRequest

REGION = MemRegion(gpa=0x100000, size=0x2000, uaddr=0x7F00_0000_0000, mmap_offset=0x1000)

# (request, payload object, its bytes)
FRONTEND = [
    (F.GET_FEATURES, None, b""),
    (F.SET_FEATURES, 0x1_4000_0040, struct.pack("=Q", 0x1_4000_0040)),
    (F.SET_MEM_TABLE, MemTable(()), bytes(8)),
    (
        F.SET_MEM_TABLE,
        MemTable((REGION, REGION)),
        struct.pack("=II", 2, 0) + 2 * struct.pack("=4Q", 0x100000, 0x2000, 0x7F00_0000_0000, 0x1000),
    ),
    (F.SET_LOG_BASE, LogBase(0x8000, 0x1000), struct.pack("=QQ", 0x8000, 0x1000)),
    (F.SET_LOG_BASE, 0x1234, struct.pack("=Q", 0x1234)),
    (F.SET_VRING_NUM, VringState(3, 256), struct.pack("=II", 3, 256)),
    (F.SET_VRING_ADDR, VringAddr(1, 1, 2, 3, 4, 5), struct.pack("=IIQQQQ", 1, 1, 2, 3, 4, 5)),
    (F.SET_VRING_KICK, VringFd(255, has_fd=True), struct.pack("=Q", 255)),
    (F.SET_VRING_CALL, VringFd(2, has_fd=False), struct.pack("=Q", 0x102)),
    (F.SET_VRING_ERR, VringFd(0x10002, has_fd=True), struct.pack("=Q", 0x10002)),
    (F.IOTLB_MSG, Iotlb(1, 2, 3, 3, 2), struct.pack("=QQQBB6x", 1, 2, 3, 3, 2)),
    (F.GET_CONFIG, Config(0, 4, 0, b"abcd"), struct.pack("=III", 0, 4, 0) + b"abcd"),
    (F.SET_CONFIG, Config(32, 1, 1, b"\1"), struct.pack("=III", 32, 1, 1) + b"\1"),
    (F.CREATE_CRYPTO_SESSION, b"anything", b"anything"),
    (F.GET_INFLIGHT_FD, Inflight(1, 2, 3, 4), struct.pack("=QQHH4x", 1, 2, 3, 4)),
    (F.ADD_MEM_REG, REGION, struct.pack("=5Q", 0, 0x100000, 0x2000, 0x7F00_0000_0000, 0x1000)),
    (F.ADD_MEM_REG, 0, bytes(8)),
    (F.REM_MEM_REG, REGION, struct.pack("=5Q", 0, 0x100000, 0x2000, 0x7F00_0000_0000, 0x1000)),
    (F.GET_SHARED_OBJECT, SharedObject(bytes(range(16))), bytes(range(16))),
    (F.GET_SHARED_OBJECT, None, b""),
    (F.SET_DEVICE_STATE_FD, StateTransfer(1, 0), struct.pack("=II", 1, 0)),
]

BACKEND = [
    (B.IOTLB_MSG, Iotlb(1, 2, 3, 3, 1), struct.pack("=QQQBB6x", 1, 2, 3, 3, 1)),
    (B.CONFIG_CHANGE_MSG, None, b""),
    (B.VRING_HOST_NOTIFIER_MSG, HostNotifier(1, True, 4096, 8192), struct.pack("=QQQ", 1, 4096, 8192)),
    (B.VRING_HOST_NOTIFIER_MSG, HostNotifier(1, False, 4096, 0), struct.pack("=QQQ", 0x101, 4096, 0)),
    (B.VRING_CALL, VringState(1, 0), struct.pack("=II", 1, 0)),
    (B.SHARED_OBJECT_ADD, SharedObject(bytes(16)), bytes(16)),
    (B.SHMEM_MAP, ShmemMap(1, 2, 3, 4, 1), struct.pack("=B7x4Q", 1, 2, 3, 4, 1)),
]


def raw(request: int, payload: bytes, flags: int = 1, fds: Fds | None = None) -> RawMessage:
    return RawMessage(request, flags, payload, Fds() if fds is None else fds)


@pytest.mark.parametrize(("request_", "payload", "data"), FRONTEND)
def test_front_end_requests_both_ways(request_: F, payload: object, data: bytes) -> None:
    message = Message(request_, payload)  # type: ignore[arg-type]
    encoded = wire.encode(message)
    assert encoded == struct.pack("=III", request_, 1, len(data)) + data
    decoded = wire.decode_request(raw(request_, data))
    assert decoded == message
    assert decoded.request is request_


@pytest.mark.parametrize(("request_", "payload", "data"), BACKEND)
def test_back_end_requests_both_ways(request_: B, payload: object, data: bytes) -> None:
    message = Message(request_, payload)  # type: ignore[arg-type]
    assert wire.encode(message) == struct.pack("=III", request_, 1, len(data)) + data
    assert wire.decode_backend_request(raw(request_, data)) == message


@pytest.mark.parametrize(
    ("request_", "data", "payload"),
    [
        (F.GET_FEATURES, struct.pack("=Q", 5), 5),
        (F.SET_FEATURES, struct.pack("=Q", 1), 1),
        (F.SET_MEM_TABLE, struct.pack("=Q", 1), 1),
        (F.SET_MEM_TABLE, struct.pack("=II4Q", 1, 0, 1, 2, 3, 4), MemTable((MemRegion(1, 2, 3, 4),))),
        (F.ADD_MEM_REG, struct.pack("=Q", 0), 0),
        (F.ADD_MEM_REG, struct.pack("=5Q", 0, 1, 2, 3, 4), MemRegion(1, 2, 3, 4)),
        (F.SET_LOG_BASE, b"", None),
        (F.SET_LOG_BASE, bytes(8), 0),
        (F.SET_LOG_BASE, struct.pack("=QQ", 7, 8), LogBase(7, 8)),
        (F.GET_VRING_BASE, struct.pack("=II", 1, 77), VringState(1, 77)),
        (F.GET_CONFIG, b"", None),
        (F.GET_CONFIG, struct.pack("=III", 0, 2, 0) + b"xy", Config(0, 2, 0, b"xy")),
        (F.POSTCOPY_ADVISE, b"", None),
        (F.GET_INFLIGHT_FD, struct.pack("=QQHH", 1, 2, 3, 4), Inflight(1, 2, 3, 4)),
        (F.GET_SHMEM_CONFIG, struct.pack("=II256Q", 1, 0, 0, 4096, *[0] * 254), ShmemConfig.of({1: 4096})),
        (F.GET_STATUS, struct.pack("=Q", 15), 15),
        (77, struct.pack("=Q", 1), 1),
    ],
)
def test_replies(request_: int, data: bytes, payload: object) -> None:
    decoded = wire.decode_reply(raw(request_, data, flags=5))
    assert decoded.payload == payload
    assert decoded.is_reply
    rebuilt = wire.encode(Message(request_, decoded.payload, 5))
    assert rebuilt[:HEADER_SIZE] == struct.pack("=III", request_, 5, len(rebuilt) - HEADER_SIZE)
    assert rebuilt[HEADER_SIZE:].startswith(data)


def test_back_end_replies() -> None:
    assert wire.decode_backend_reply(raw(B.SHARED_OBJECT_LOOKUP, bytes(8), flags=5)).payload == 0
    assert wire.decode_backend_reply(raw(B.CONFIG_CHANGE_MSG, struct.pack("=Q", 1), flags=5)).payload == 1


def test_shmem_config_counts_its_regions() -> None:
    config = ShmemConfig.of({0: 4096, 3: 8192})
    data = wire.build_payload(config)
    assert len(data) == 2056
    assert struct.unpack_from("=II4Q", data) == (2, 0, 4096, 0, 0, 8192)


def test_unknown_requests_stay_bytes() -> None:
    decoded = wire.decode_request(raw(4711, b"\1\2\3"))
    assert (decoded.request, decoded.payload, decoded.name) == (4711, b"\1\2\3", "message 4711")


@pytest.mark.parametrize("request_", sorted(set(FRONTEND_SPECS) - {F.CREATE_CRYPTO_SESSION}))
def test_every_front_end_request_refuses_odd_sizes(request_: int) -> None:
    """A crypto session's layout is not ours to judge."""
    sizes = [1, 7, 11, 39, 41]
    if request_ in {F.GET_CONFIG, F.SET_CONFIG}:
        sizes = [0, 1, 11]
    for size in sizes:
        data = b"\xff" * size
        with pytest.raises(ProtocolError, match=F(request_).name):
            wire.decode_request(raw(request_, data))


@pytest.mark.parametrize("request_", sorted(BACKEND_SPECS))
def test_every_back_end_request_refuses_odd_sizes(request_: int) -> None:
    with pytest.raises(ProtocolError, match=B(request_).name):
        wire.decode_backend_request(raw(request_, bytes(13)))


def test_memory_table_shorter_than_its_count() -> None:
    data = struct.pack("=II4Q", 2, 0, 1, 2, 3, 4)
    with pytest.raises(ProtocolError, match="ends too early"):
        wire.decode_request(raw(F.SET_MEM_TABLE, data))
    with pytest.raises(ProtocolError, match="ends too early"):
        wire.decode_request(raw(F.SET_MEM_TABLE, struct.pack("=II", 0xFFFFFFFF, 0)))


def test_memory_table_may_be_followed_by_zeros_only() -> None:
    """UML's virtio_uml sends room for two regions where it has one."""
    one = struct.pack("=II4Q", 1, 0, 1, 2, 3, 4)
    assert wire.decode_request(raw(F.SET_MEM_TABLE, one + bytes(32))).payload == MemTable((MemRegion(1, 2, 3, 4),))
    with pytest.raises(ProtocolError, match="follow"):
        wire.decode_request(raw(F.SET_MEM_TABLE, one + bytes(31) + b"\1"))


def test_requests_and_replies_are_not_mixed_up() -> None:
    with pytest.raises(ProtocolError, match="reply"):
        wire.decode_request(raw(F.GET_FEATURES, b"", flags=5))
    with pytest.raises(ProtocolError, match="reply"):
        wire.decode_reply(raw(F.GET_FEATURES, bytes(8), flags=1))


@pytest.mark.parametrize(
    ("flags", "size", "words"),
    [
        (0, 0, "version 1"),
        (2, 0, "version 1"),
        (3, 0, "version 1"),
        (0x11, 0, "reserved"),
        (0x80000001, 0, "reserved"),
        (1, MAX_PAYLOAD + 1, "4097 bytes"),
        (1, 0xFFFFFFFF, "payload"),
    ],
)
def test_bad_headers(flags: int, size: int, words: str) -> None:
    with pytest.raises(ProtocolError, match=words):
        wire.parse_header(struct.pack("=III", 1, flags, size))


def test_headers_both_ways() -> None:
    header = wire.Header(F.GET_STATUS, 9, MAX_PAYLOAD)
    assert wire.parse_header(wire.build_header(header)) == header


def test_extra_fds_are_closed_and_all_on_error() -> None:
    fds = [os.memfd_create("x") for _ in range(3)]
    message = wire.decode_request(raw(F.SET_VRING_KICK, bytes(8), fds=Fds(fds)))
    assert message.fds.filenos() == fds[:1]
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fds[1])
    message.close()
    fd = os.memfd_create("x")
    with pytest.raises(ProtocolError):
        wire.decode_request(raw(F.SET_VRING_KICK, bytes(7), fds=Fds([fd])))
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


def test_members_that_do_not_fit_are_our_error() -> None:
    with pytest.raises(ValueError, match="cannot send"):
        wire.encode(Message(F.SET_FEATURES, 1 << 64))
    with pytest.raises(ValueError, match="too large"):
        wire.encode(Message(F.SET_CONFIG, bytes(MAX_PAYLOAD + 1)))
    with pytest.raises(TypeError, match="not a payload"):
        wire.build_payload("text")  # type: ignore[arg-type]


def test_byte_order_is_the_machines() -> None:
    assert wire.build_payload(1) == (1).to_bytes(8, sys.byteorder)
