"""Bytes to messages and back: the layout of every payload, in the machine's own byte order.

This is the only module that knows `construct`. Rules: sizes are exact, with two tolerances that real front-ends need
(zero bytes after a memory table, a configuration buffer larger than asked); a payload that does not fit its request is
a ProtocolError; an unknown request is not an error here, its payload stays bytes. Descriptors beyond the most a request
may carry are closed here. On any error everything the raw message owned is closed.
"""

from collections.abc import Callable
from typing import Any, Final, NamedTuple

from construct import (
    Array,
    Bytes,
    ConstructError,
    GreedyBytes,
    Int8un,
    Int16un,
    Int32un,
    Int64un,
    Padding,
    Struct,
    this,
)

from vhost.constants import (
    FLAGS_KNOWN,
    MAX_PAYLOAD,
    SHMEM_REGIONS,
    VERSION_MASK,
    BackendRequest,
    FrontendRequest,
    HeaderFlag,
)
from vhost.errors import ProtocolError, request_name
from vhost.messages import (
    BACKEND_SPECS,
    FRONTEND_SPECS,
    Config,
    HostNotifier,
    Inflight,
    Iotlb,
    Kind,
    LogBase,
    MemRegion,
    MemTable,
    Message,
    Payload,
    RawMessage,
    SharedObject,
    ShmemConfig,
    ShmemMap,
    Spec,
    StateTransfer,
    VringAddr,
    VringFd,
    VringState,
)

_HEADER: Final = Struct("request" / Int32un, "flags" / Int32un, "size" / Int32un)
_U64: Final = Struct("value" / Int64un)
_VRING_STATE: Final = Struct("index" / Int32un, "num" / Int32un)
_VRING_ADDR: Final = Struct(
    "index" / Int32un, "flags" / Int32un, "desc" / Int64un, "used" / Int64un, "avail" / Int64un, "log" / Int64un
)
_REGION: Final = Struct("gpa" / Int64un, "size" / Int64un, "uaddr" / Int64un, "mmap_offset" / Int64un)
_SINGLE_REGION: Final = Struct(Padding(8), "region" / _REGION)
_MEM_TABLE: Final = Struct(
    "nregions" / Int32un, Padding(4), "regions" / Array(this.nregions, _REGION), "rest" / GreedyBytes
)
_LOG_BASE: Final = Struct("mmap_size" / Int64un, "mmap_offset" / Int64un)
_IOTLB: Final = Struct(
    "iova" / Int64un, "size" / Int64un, "uaddr" / Int64un, "perm" / Int8un, "type" / Int8un, Padding(6)
)
_CONFIG: Final = Struct("offset" / Int32un, "size" / Int32un, "flags" / Int32un, "data" / GreedyBytes)
# 20 bytes of members; C pads the struct to 24. Both sizes are taken, 24 is sent.
_INFLIGHT: Final = Struct(
    "mmap_size" / Int64un, "mmap_offset" / Int64un, "num_queues" / Int16un, "queue_size" / Int16un
)
_STATE_TRANSFER: Final = Struct("direction" / Int32un, "phase" / Int32un)
_SHARED_OBJECT: Final = Struct("uuid" / Bytes(16))
_SHMEM_CONFIG: Final = Struct("count" / Int32un, Padding(4), "sizes" / Array(SHMEM_REGIONS, Int64un))
_SHMEM_MAP: Final = Struct(
    "shmid" / Int8un,
    Padding(7),
    "fd_offset" / Int64un,
    "shm_offset" / Int64un,
    "length" / Int64un,
    "flags" / Int64un,
)
_HOST_NOTIFIER: Final = Struct("index" / Int64un, "size" / Int64un, "offset" / Int64un)


class Header(NamedTuple):
    """The 12 bytes before each payload."""

    request: int
    flags: int
    size: int


class _Codec(NamedTuple):
    """How one kind of payload is read.

    `sizes` are the exact sizes it may have; empty means from `smallest` on (the parser judges the rest).
    """

    parse: Callable[[bytes], Payload]
    sizes: tuple[int, ...] = ()
    smallest: int = 0

    def fits(self, size: int) -> bool:
        return size in self.sizes if self.sizes else size >= self.smallest


def _mem_table(data: bytes) -> MemTable:
    parsed = _MEM_TABLE.parse(data)
    if any(parsed.rest):
        raise ValueError(f"{len(parsed.rest)} bytes follow its {parsed.nregions} regions")
    return MemTable(tuple(_region(entry) for entry in parsed.regions))


def _region(parsed: Any) -> MemRegion:
    return MemRegion(parsed.gpa, parsed.size, parsed.uaddr, parsed.mmap_offset)


def _host_notifier(data: bytes) -> HostNotifier:
    parsed = _HOST_NOTIFIER.parse(data)
    which = VringFd.from_u64(parsed.index)
    return HostNotifier(which.index, which.has_fd, parsed.size, parsed.offset)


def _plain(struct: Struct, make: Callable[..., Payload], *names: str) -> Callable[[bytes], Payload]:
    def parse(data: bytes) -> Payload:
        parsed = struct.parse(data)
        return make(*(parsed[name] for name in names))

    return parse


_CODECS: Final[dict[Kind, _Codec]] = {
    Kind.NONE: _Codec(lambda _data: None, (0,)),
    Kind.U64: _Codec(_plain(_U64, int, "value"), (8,)),
    Kind.VRING_STATE: _Codec(_plain(_VRING_STATE, VringState, "index", "num"), (8,)),
    Kind.VRING_ADDR: _Codec(_plain(_VRING_ADDR, VringAddr, "index", "flags", "desc", "used", "avail", "log"), (40,)),
    Kind.VRING_FD: _Codec(lambda data: VringFd.from_u64(_U64.parse(data).value), (8,)),
    Kind.MEM_TABLE: _Codec(_mem_table, smallest=8),
    Kind.MEM_REGION: _Codec(lambda data: _region(_SINGLE_REGION.parse(data).region), (40,)),
    Kind.LOG_BASE: _Codec(_plain(_LOG_BASE, LogBase, "mmap_size", "mmap_offset"), (16,)),
    Kind.IOTLB: _Codec(_plain(_IOTLB, Iotlb, "iova", "size", "uaddr", "perm", "type"), (32,)),
    Kind.CONFIG: _Codec(_plain(_CONFIG, Config, "offset", "size", "flags", "data"), smallest=12),
    Kind.INFLIGHT: _Codec(
        _plain(_INFLIGHT, Inflight, "mmap_size", "mmap_offset", "num_queues", "queue_size"), (24, 20)
    ),
    Kind.STATE_TRANSFER: _Codec(_plain(_STATE_TRANSFER, StateTransfer, "direction", "phase"), (8,)),
    Kind.SHARED_OBJECT: _Codec(_plain(_SHARED_OBJECT, SharedObject, "uuid"), (16,)),
    Kind.SHMEM_CONFIG: _Codec(
        lambda data: ShmemConfig(tuple(_SHMEM_CONFIG.parse(data).sizes)), (8 + 8 * SHMEM_REGIONS,)
    ),
    Kind.SHMEM_MAP: _Codec(_plain(_SHMEM_MAP, ShmemMap, "shmid", "fd_offset", "shm_offset", "length", "flags"), (40,)),
    Kind.HOST_NOTIFIER: _Codec(_host_notifier, (24,)),
    Kind.RAW: _Codec(bytes),
}


def parse_header(data: bytes) -> Header:
    """Read and judge a header of exactly 12 bytes.

    Raises:
        ProtocolError: wrong version, reserved flags, or a payload larger than MAX_PAYLOAD.

    Spec: rst "Header".
    """
    parsed = _HEADER.parse(data)
    header = Header(parsed.request, parsed.flags, parsed.size)
    if header.flags & VERSION_MASK != HeaderFlag.VERSION:
        raise ProtocolError(
            f"header flags {header.flags:#x} do not say protocol version 1; is the peer speaking vhost-user?",
            header.request,
        )
    if header.flags & ~FLAGS_KNOWN:
        raise ProtocolError(f"header flags {header.flags:#x} use reserved bits", header.request)
    if header.size > MAX_PAYLOAD:
        raise ProtocolError(f"payload of {header.size} bytes, at most {MAX_PAYLOAD} are taken", header.request)
    return header


def build_header(header: Header) -> bytes:
    """The 12 bytes of a header."""
    return _HEADER.build(dict(header._asdict()))


def _parse(request: int, kinds: tuple[Kind, ...], data: bytes) -> Payload:
    for kind in kinds:
        codec = _CODECS[kind]
        if not codec.fits(len(data)):
            continue
        try:
            return codec.parse(data)
        except ConstructError as error:
            raise ProtocolError(f"payload of {len(data)} bytes ends too early", request) from error
        except ValueError as error:
            raise ProtocolError(f"malformed payload: {error}", request) from error
    wanted = " or ".join(_size_text(_CODECS[kind]) for kind in kinds)
    raise ProtocolError(f"payload has {len(data)} bytes instead of {wanted}", request)


def _size_text(codec: _Codec) -> str:
    return str(codec.sizes[0]) if codec.sizes else f"at least {codec.smallest}"


def _decode(raw: RawMessage, request: int, spec: Spec | None, *, reply: bool) -> Message:
    try:
        if bool(raw.flags & HeaderFlag.REPLY) is not reply:
            raise ProtocolError("a reply where a request was due" if not reply else "is not marked as a reply", request)
        kinds: tuple[Kind, ...]
        if spec is None:
            kinds = (Kind.U64, Kind.RAW) if reply else (Kind.RAW,)
            return Message(request, _parse(request, kinds, raw.payload), raw.flags, raw.fds)
        kinds = spec.payload
        most = spec.fds[1]
        if reply:
            kinds = spec.reply if Kind.U64 in spec.reply else (*spec.reply, Kind.U64)
            most = spec.reply_fds
        payload = _parse(request, kinds, raw.payload)
        raw.fds.trim(most)
        return Message(request, payload, raw.flags, raw.fds)
    except BaseException:
        raw.fds.close()
        raise


def _known(enum: type[FrontendRequest] | type[BackendRequest], request: int) -> int:
    try:
        return enum(request)
    except ValueError:
        return request


def decode_request(raw: RawMessage) -> Message:
    """As a back-end: a request of the front-end. Unknown requests keep their bytes.

    Resource handling: the descriptors move to the result; those beyond what it may carry are closed, on error all.

    Raises:
        ProtocolError: the payload does not fit the request, or it is a reply.
    """
    return _decode(raw, _known(FrontendRequest, raw.request), FRONTEND_SPECS.get(raw.request), reply=False)


def decode_reply(raw: RawMessage) -> Message:
    """As a front-end: an answer of the back-end. See decode_request."""
    return _decode(raw, _known(FrontendRequest, raw.request), FRONTEND_SPECS.get(raw.request), reply=True)


def decode_backend_request(raw: RawMessage) -> Message:
    """As a front-end: a request on the back-end's channel. See decode_request."""
    return _decode(raw, _known(BackendRequest, raw.request), BACKEND_SPECS.get(raw.request), reply=False)


def decode_backend_reply(raw: RawMessage) -> Message:
    """As a back-end: an answer on its own channel. See decode_request."""
    return _decode(raw, _known(BackendRequest, raw.request), BACKEND_SPECS.get(raw.request), reply=True)


def _build_region(region: MemRegion) -> dict[str, int]:
    return {
        "gpa": region.gpa,
        "size": region.size,
        "uaddr": region.uaddr,
        "mmap_offset": region.mmap_offset,
    }


def _fields(payload: Any) -> dict[str, Any]:
    return {name: getattr(payload, name) for name in payload.__slots__}


_BUILDERS: Final[dict[type, Callable[[Any], bytes]]] = {
    type(None): lambda _payload: b"",
    bytes: lambda payload: payload,
    int: lambda payload: _U64.build({"value": payload}),
    VringState: lambda payload: _VRING_STATE.build(_fields(payload)),
    VringAddr: lambda payload: _VRING_ADDR.build(_fields(payload)),
    VringFd: lambda payload: _U64.build({"value": payload.to_u64()}),
    MemRegion: lambda payload: _SINGLE_REGION.build({"region": _build_region(payload)}),
    MemTable: lambda payload: _MEM_TABLE.build(
        {"nregions": len(payload.regions), "regions": [_build_region(r) for r in payload.regions], "rest": b""}
    ),
    LogBase: lambda payload: _LOG_BASE.build(_fields(payload)),
    Iotlb: lambda payload: _IOTLB.build(_fields(payload)),
    Config: lambda payload: _CONFIG.build(_fields(payload)),
    Inflight: lambda payload: _INFLIGHT.build(_fields(payload)) + bytes(4),
    StateTransfer: lambda payload: _STATE_TRANSFER.build(_fields(payload)),
    SharedObject: lambda payload: _SHARED_OBJECT.build(_fields(payload)),
    ShmemConfig: lambda payload: _SHMEM_CONFIG.build({"count": payload.count, "sizes": payload.sizes}),
    ShmemMap: lambda payload: _SHMEM_MAP.build(_fields(payload)),
    HostNotifier: lambda payload: _HOST_NOTIFIER.build(
        {
            "index": VringFd(payload.index, payload.has_fd).to_u64(),
            "size": payload.size,
            "offset": payload.offset,
        }
    ),
}


def build_payload(payload: Payload) -> bytes:
    """Bytes of a payload, without header.

    Raises:
        ValueError: a member does not fit its field.
        TypeError: not a payload.
    """
    kind = int if isinstance(payload, int) else type(payload)
    try:
        builder = _BUILDERS[kind]
    except KeyError:
        raise TypeError(f"not a payload: {payload!r}") from None
    try:
        return builder(payload)
    except ConstructError as error:
        raise ValueError(f"cannot send {payload!r}: {error}") from error


def encode(message: Message) -> bytes:
    """Header and payload of a message; its descriptors travel beside it and stay owned by it.

    Raises:
        ValueError: a member does not fit its field, or the payload is larger than MAX_PAYLOAD.
    """
    payload = build_payload(message.payload)
    if len(payload) > MAX_PAYLOAD:
        raise ValueError(f"{request_name(message.request)}: payload of {len(payload)} bytes is too large")
    return build_header(Header(message.request, message.flags, len(payload))) + payload
