"""Clauses about virtio-gpu, 2D: every command, with exact replies where there are such. [VIRTIO 1.3, 5.7]"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence

from vhost.constants import VirtioFeature
from vhost.frontend.rings import Buffer, Used
from vhost.testing.check_messages import get_config
from vhost.testing.peer import Failure, NotOffered, Peer, Ring
from vhost.testing.report import Probe, Suite, Trial

GPU = Suite()

_PACKED = int(VirtioFeature.RING_PACKED)
_EDID, _UUID, _BLOB = 1 << 1, 1 << 2, 1 << 3
_FENCE = 1

_HEADER = struct.Struct("<IIQIB3x")
_MODE = struct.Struct("<6I")
_SCANOUTS_MAX = 16
_SIDE = 64
_BYTES = _SIDE * _SIDE * 4
_FORMATS = (1, 2, 3, 4, 67, 68, 121, 134)
_ANY_FORMAT = _FORMATS[1]

GET_DISPLAY_INFO, CREATE_2D, UNREF, SET_SCANOUT, FLUSH, TRANSFER, ATTACH, DETACH = range(0x100, 0x108)
GET_EDID, ASSIGN_UUID, CREATE_BLOB, SET_SCANOUT_BLOB = range(0x10A, 0x10E)
UPDATE_CURSOR, MOVE_CURSOR = 0x300, 0x301
OK_NODATA, OK_DISPLAY_INFO, OK_EDID, OK_UUID = 0x1100, 0x1101, 0x1104, 0x1105
UNSPEC, OUT_OF_MEMORY, BAD_SCANOUT, BAD_RESOURCE, _BAD_CONTEXT, BAD_PARAMETER = range(0x1200, 0x1206)
_ERRORS = range(UNSPEC, BAD_PARAMETER + 1)
_NAMES = {
    OK_NODATA: "OK_NODATA", OK_DISPLAY_INFO: "OK_DISPLAY_INFO", OK_EDID: "OK_EDID", OK_UUID: "OK_RESOURCE_UUID",
    UNSPEC: "ERR_UNSPEC", OUT_OF_MEMORY: "ERR_OUT_OF_MEMORY", BAD_SCANOUT: "ERR_INVALID_SCANOUT_ID",
    BAD_RESOURCE: "ERR_INVALID_RESOURCE_ID", BAD_PARAMETER: "ERR_INVALID_PARAMETER",
}  # fmt: skip

#: 2D commands and bytes that follow their header
_LENGTHS = {
    CREATE_2D: 16, UNREF: 8, SET_SCANOUT: 24, FLUSH: 24, TRANSFER: 32, ATTACH: 8, DETACH: 8, GET_EDID: 8,
    ASSIGN_UUID: 8, CREATE_BLOB: 32, SET_SCANOUT_BLOB: 72,
}  # fmt: skip


def _head(kind: int, flags: int = 0, fence: int = 0, context: int = 0, ring: int = 0) -> bytes:
    return _HEADER.pack(kind, flags, fence, context, ring)


def _name(kind: int) -> str:
    return _NAMES.get(kind, f"{kind:#x}")


def _probe(peer: Peer) -> tuple[list[Buffer], list[Buffer]]:
    return [peer.put(_head(0x1FF))], [peer.room(_HEADER.size)]


def _judge(peer: Peer, in_: list[Buffer], used: Used) -> None:
    (kind,) = struct.unpack("<I", peer.memory.read(in_[0][0], 4))
    if used.length == 0 and kind == 0xA5A5A5A5:
        return  # the cursor's ring answers nothing
    if used.length != _HEADER.size or kind != UNSPEC:
        raise Failure(f"a command that there is not was answered with {used.length} bytes, {_name(kind)}")


PROBE = Probe(_probe, _judge)


class _Display:
    """A driver's view: the two rings, commands and their replies."""

    def __init__(self, trial: Trial, features: int) -> None:
        self.peer = trial.peer()
        self.control, self.cursor = self.peer.bring_up(features, queues=2)
        self.features = self.peer.acked_features
        self.scanouts = _scanouts(self.peer)

    def send(self, data: bytes, room: Sequence[int] = (2048,)) -> list[Buffer]:
        """One command; its reply is waited for elsewhere."""
        in_ = [self.peer.room(size) for size in room]
        self.control.submit([self.peer.put(data)] if data else [], in_)
        return in_

    def ask(self, data: bytes) -> tuple[int, bytes]:
        """One command: type of the reply, all of it."""
        ((at, _),) = self.send(data)
        (used,) = self.control.wait()
        if used.length < _HEADER.size:
            raise Failure(f"command {_kind(data)} was answered with {used.length} bytes")
        reply = self.peer.memory.read(at, used.length)
        return _HEADER.unpack_from(reply)[0], reply

    def want(self, kind: int, body: bytes, *wanted: int) -> bytes:
        """One command, answered by one of `wanted`: all of the reply."""
        got, reply = self.ask(_head(kind) + body)
        if got not in wanted:
            what = " or ".join(map(_name, wanted[:3]))
            raise Failure(f"command {kind:#x} was answered with {_name(got)} instead of {what}")
        return reply

    def picture(self, resource: int = 1) -> Buffer:
        """A resource with memory of its own."""
        self.want(CREATE_2D, _create(resource), OK_NODATA)
        at, size = self.peer.room(_BYTES)
        self.want(ATTACH, struct.pack("<IIQII", resource, 1, at, size, 0), OK_NODATA)
        return at, size


def _kind(data: bytes) -> str:
    return f"{int.from_bytes(data[:4], 'little'):#x}"


def _scanouts(peer: Peer) -> int:
    _, count = struct.unpack_from("<II", get_config(peer, 0, 16), 4)
    return int(count)


def _create(resource: int, kind: int = _ANY_FORMAT, width: int = _SIDE, height: int = _SIDE) -> bytes:
    return struct.pack("<4I", resource, kind, width, height)


def _rect(x: int, y: int, width: int, height: int, *more: int) -> bytes:
    return struct.pack(f"<4I{len(more)}I", x, y, width, height, *more)


def _transfer(x: int, y: int, width: int, height: int, offset: int = 0, resource: int = 1) -> bytes:
    return _rect(x, y, width, height) + struct.pack("<QII", offset, resource, 0)


#: rectangles that do not lie in a picture
_OUTSIDE = (
    (0, 0, _SIDE + 1, 1), (0, 0, 1, _SIDE + 1), (_SIDE, 0, 1, 1), (0, _SIDE, 1, 1), (1, 0, _SIDE, _SIDE),
    (0xFFFFFFFF, 0, 2, 2), (0, 0xFFFFFFFF, 2, 2), (1, 1, 0xFFFFFFFF, 0xFFFFFFFF), (0x80000000, 0, 0x80000000, 1),
)  # fmt: skip

Body = Callable[[_Display], None]


def _layouts(clause: str, title: str, feature: int = 0) -> Callable[[Body], Body]:
    def add(body: Body) -> Body:
        for name, bit in (("split", 0), ("packed", _PACKED)):

            @GPU(clause, f"{name}: {title}")
            def check(trial: Trial, bit: int = bit) -> None:
                with Peer(trial.connect()).handshake() as peer:
                    if bit:
                        peer.need_feature(bit)
                    if feature and not peer.features & feature:
                        raise NotOffered({_EDID: "EDID", _UUID: "RESOURCE_UUID", _BLOB: "RESOURCE_BLOB"}[feature])
                body(_Display(trial, bit | feature))

        return body

    return add


@GPU("VIRTIO 5.7.4", "there are 1 to 16 scanouts")
def _config(trial: Trial) -> None:
    count = _scanouts(trial.peer().handshake())
    if not 1 <= count <= _SCANOUTS_MAX:
        raise Failure(f"num_scanouts is {count}")


@_layouts("VIRTIO 5.7.6.8", "display info has 16 modes, those beyond num_scanouts disabled")
def _modes(display: _Display) -> None:
    reply = display.want(GET_DISPLAY_INFO, b"", OK_DISPLAY_INFO)
    if len(reply) != _HEADER.size + _SCANOUTS_MAX * _MODE.size:
        raise Failure(f"the reply has {len(reply)} bytes")
    for number, mode in enumerate(_MODE.iter_unpack(reply[_HEADER.size :])):
        if mode[4] and (number >= display.scanouts or not mode[2] or not mode[3]):
            raise Failure(f"scanout {number} of {display.scanouts} is enabled with {mode[2]}x{mode[3]} pixels")


@_layouts("VIRTIO 5.7.6.7", "fences come back with their flag, number and context, in order")
def _fences(display: _Display) -> None:
    sent = [display.send(_head(UNREF, _FENCE, 1000 + n, 7) + struct.pack("<II", 99, 0)) for n in range(16)]
    display.control.wait(len(sent))
    for number, ((at, _),) in enumerate(sent):
        kind, flags, fence, context, _ = _HEADER.unpack(display.peer.memory.read(at, _HEADER.size))
        if (kind, flags & _FENCE, fence, context) != (BAD_RESOURCE, _FENCE, 1000 + number, 7):
            raise Failure(f"fence {1000 + number} of context 7 came back as {fence} of {context}, flags {flags:#x}")


@_layouts("VIRTIO 5.7.6.7", "commands that there are not are answered with ERR_UNSPEC")
def _unknown(display: _Display) -> None:
    for kind in (0, 0x0FF, 0x1FF, 0x2FF, UPDATE_CURSOR, 0x1100, 0xFFFFFFFF):
        display.want(kind, bytes(64), UNSPEC)


@_layouts("VIRTIO 5.7.6.7", "commands that are too short are answered with an error, whatever their length")
def _short(display: _Display) -> None:
    for kind, length in _LENGTHS.items():
        for size in range(length):
            display.want(kind, bytes(size), *_ERRORS)
    for size in range(1, _HEADER.size):
        display.send(_head(GET_DISPLAY_INFO)[:size])
        display.control.wait()


@_layouts("VIRTIO 5.7.6.7", "replies that find no room do no harm")
def _no_room(display: _Display) -> None:
    for room in ((), (1,), (23,), (8, 8), (8, 15)):
        display.send(_head(UNREF) + struct.pack("<II", 99, 0), room)
        (used,) = display.control.wait()
        if used.length > sum(room):
            raise Failure(f"{used.length} bytes are said to be written to {sum(room)}")
    display.want(UNREF, struct.pack("<II", 99, 0), BAD_RESOURCE)


@_layouts("VIRTIO 5.7.6.8", "resources have numbers of their own, formats and sizes that there are")
def _resources(display: _Display) -> None:
    for number, kind in enumerate(_FORMATS, 1):
        display.want(CREATE_2D, _create(number, kind), OK_NODATA)
    display.want(CREATE_2D, _create(0), BAD_RESOURCE)
    display.want(CREATE_2D, _create(1), BAD_RESOURCE)
    for kind in (0, 5, 66, 69, 135, 0xFFFFFFFF):
        display.want(CREATE_2D, _create(99, kind), BAD_PARAMETER)
    for size in ((0, 1), (1, 0), (0xFFFFFFFF, 0xFFFFFFFF), (0x10000, 0x10000), (0x40000001, 4)):
        display.want(CREATE_2D, _create(99, _ANY_FORMAT, *size), BAD_PARAMETER, OUT_OF_MEMORY)
    for number in range(1, len(_FORMATS) + 1):
        display.want(UNREF, struct.pack("<II", number, 0), OK_NODATA)
    for number in (0, 1, 99, 0xFFFFFFFF):
        display.want(UNREF, struct.pack("<II", number, 0), BAD_RESOURCE)


@_layouts("VIRTIO 5.7.6.8", "memory is attached once, and taken away once")
def _backing(display: _Display) -> None:
    at, size = display.picture()
    entry = struct.pack("<QII", at, size, 0)
    display.want(ATTACH, struct.pack("<II", 1, 1) + entry, *_ERRORS)
    display.want(ATTACH, struct.pack("<II", 99, 1) + entry, BAD_RESOURCE)
    display.want(DETACH, struct.pack("<II", 99, 0), BAD_RESOURCE)
    display.want(DETACH, struct.pack("<II", 1, 0), OK_NODATA)
    display.want(DETACH, struct.pack("<II", 1, 0), *_ERRORS)
    for count in (0, 2, 1000, 0xFFFFFFFF, 0x10000001):  # more entries than there are, or none
        display.want(ATTACH, struct.pack("<II", 1, count) + (entry if count else b""), *_ERRORS)
    pieces = [struct.pack("<QII", at + n * 512, 512, 0) for n in range(size // 512)]
    display.want(ATTACH, struct.pack("<II", 1, len(pieces)) + b"".join(pieces), OK_NODATA)


@_layouts("VIRTIO 5.7.6.8", "transfers are of rectangles that lie in the picture")
def _transfers(display: _Display) -> None:
    display.picture()
    for rect in ((0, 0, _SIDE, _SIDE), (0, 0, 1, 1), (_SIDE - 1, _SIDE - 1, 1, 1), (3, 5, 7, 11)):
        display.want(TRANSFER, _transfer(*rect, offset=(rect[1] * _SIDE + rect[0]) * 4), OK_NODATA)
    for rect in _OUTSIDE:
        display.want(TRANSFER, _transfer(*rect), BAD_PARAMETER)
    display.want(TRANSFER, _transfer(0, 0, 1, 1, resource=99), BAD_RESOURCE)


@_layouts("VIRTIO 5.7.6.8", "transfers from beyond the memory, or from none, do no harm")
def _beyond(display: _Display) -> None:
    display.picture()
    for offset in (_BYTES, _BYTES - 4, 1 << 32, (1 << 64) - 4):
        display.want(TRANSFER, _transfer(0, 0, _SIDE, _SIDE, offset), OK_NODATA, *_ERRORS)
    display.want(DETACH, struct.pack("<II", 1, 0), OK_NODATA)
    display.want(TRANSFER, _transfer(0, 0, _SIDE, _SIDE), OK_NODATA, *_ERRORS)
    nowhere = struct.pack("<IIQII", 1, 1, (1 << 64) - 8192, _BYTES, 0)
    display.want(ATTACH, nowhere, OK_NODATA, *_ERRORS)
    display.want(TRANSFER, _transfer(0, 0, _SIDE, _SIDE), OK_NODATA, *_ERRORS)
    display.want(UNREF, struct.pack("<II", 1, 0), OK_NODATA)


@_layouts("VIRTIO 5.7.6.8", "what is flushed lies in the picture")
def _flushes(display: _Display) -> None:
    display.picture()
    display.want(FLUSH, _rect(0, 0, _SIDE, _SIDE, 1, 0), OK_NODATA)
    for rect in _OUTSIDE:
        display.want(FLUSH, _rect(*rect, 1, 0), BAD_PARAMETER)
    display.want(FLUSH, _rect(0, 0, 1, 1, 99, 0), BAD_RESOURCE)


@_layouts("VIRTIO 5.7.6.8", "scanouts show what there is, where there is one")
def _shown(display: _Display) -> None:
    display.picture()
    whole = (0, 0, _SIDE, _SIDE)
    for number in (display.scanouts, _SCANOUTS_MAX, 0xFFFFFFFF):
        display.want(SET_SCANOUT, _rect(*whole, number, 1), BAD_SCANOUT)
    display.want(SET_SCANOUT, _rect(*whole, 0, 99), BAD_RESOURCE)
    for rect in (*_OUTSIDE, (0, 0, 15, 16), (0, 0, 16, 15)):
        display.want(SET_SCANOUT, _rect(*rect, 0, 1), BAD_PARAMETER)
    for number in range(display.scanouts):
        display.want(SET_SCANOUT, _rect(*whole, number, 1), OK_NODATA)
    display.want(FLUSH, _rect(*whole, 1, 0), OK_NODATA)
    display.want(UNREF, struct.pack("<II", 1, 0), OK_NODATA)  # shown as it is
    display.want(SET_SCANOUT, _rect(0, 0, 0, 0, 0, 0), OK_NODATA)


@_layouts("VIRTIO 5.7.6.8", "an EDID is one", _EDID)
def _edids(display: _Display) -> None:
    for number in range(display.scanouts):
        reply = display.want(GET_EDID, struct.pack("<II", number, 0), OK_EDID)
        (size,) = struct.unpack_from("<I", reply, _HEADER.size)
        if len(reply) != _HEADER.size + 8 + 1024 or size % 128 or size > 1024:
            raise Failure(f"the reply has {len(reply)} bytes, the EDID {size}")
        for block in _blocks(reply[_HEADER.size + 8 :][:size]):
            if sum(block) % 256:
                raise Failure("the checksum of an EDID's block is wrong")
        if size and not reply[_HEADER.size + 8 :].startswith(b"\0\xff\xff\xff\xff\xff\xff\0"):
            raise Failure("the EDID does not begin like one")
    for number in (display.scanouts, _SCANOUTS_MAX, 0xFFFFFFFF):
        display.want(GET_EDID, struct.pack("<II", number, 0), *_ERRORS)


def _blocks(edid: bytes) -> Iterator[bytes]:
    for at in range(0, len(edid), 128):
        yield edid[at : at + 128]


@_layouts("VIRTIO 5.7.6.8", "a resource has one UUID", _UUID)
def _uuids(display: _Display) -> None:
    display.picture()
    display.picture(2)
    first, again, other = (display.want(ASSIGN_UUID, struct.pack("<II", n, 0), OK_UUID)[24:40] for n in (1, 1, 2))
    if first != again or first == other or not any(first):
        raise Failure(f"resource 1 has {first.hex()} and {again.hex()}, resource 2 {other.hex()}")
    display.want(ASSIGN_UUID, struct.pack("<II", 99, 0), BAD_RESOURCE)


@_layouts("VIRTIO 5.7.6.8", "blobs of the guest's memory are shown where they lie", _BLOB)
def _blobs(display: _Display) -> None:
    at, size = display.peer.room(_BYTES)
    entry = struct.pack("<QII", at, size, 0)

    def create(resource: int, memory: int = 1, flags: int = 3, count: int = 1, length: int = size) -> bytes:
        return struct.pack("<4IQQ", resource, memory, flags, count, 0, length) + entry

    display.want(CREATE_BLOB, create(1), OK_NODATA)
    display.want(CREATE_BLOB, create(1), BAD_RESOURCE)
    for wrong in (create(2, 9), create(2, 1, 1 << 31), create(2, count=2), create(2, length=size + 1)):
        display.want(CREATE_BLOB, wrong, *_ERRORS)

    def show(
        scanout: int,
        resource: int,
        kind: int = _ANY_FORMAT,
        stride: int = _SIDE * 4,
        offset: int = 0,
        side: int = _SIDE,
    ) -> bytes:
        head = _rect(0, 0, _SIDE, _SIDE, scanout, resource, side, side, kind, 0)
        return head + struct.pack("<8I", stride, 0, 0, 0, offset, 0, 0, 0)

    for wrong in (show(0, 1, 5), show(0, 1, stride=4), show(0, 1, offset=4), show(0, 1, stride=0xFFFFFFFC)):
        display.want(SET_SCANOUT_BLOB, wrong, *_ERRORS)
    display.want(SET_SCANOUT_BLOB, show(display.scanouts, 1), BAD_SCANOUT)
    display.want(SET_SCANOUT_BLOB, show(0, 99), BAD_RESOURCE)
    display.want(SET_SCANOUT_BLOB, show(0, 1), OK_NODATA)
    display.want(FLUSH, _rect(0, 0, _SIDE, _SIDE, 1, 0), OK_NODATA)
    display.want(UNREF, struct.pack("<II", 1, 0), OK_NODATA)


@_layouts("VIRTIO 5.7.2", "cursors that are nowhere, or nothing, do no harm")
def _cursors(display: _Display) -> None:
    display.picture()
    ring: Ring = display.cursor
    position = struct.pack("<4I", 0, 10, 10, 0)
    nowhere = struct.pack("<4I", 0xFFFFFFFF, 0xFFFFFFFF, 0, 0)
    image = struct.pack("<4I", 1, 3, 3, 0)
    for kind, body in (
        (UPDATE_CURSOR, position + image),
        (MOVE_CURSOR, position + bytes(16)),
        (UPDATE_CURSOR, position + struct.pack("<4I", 99, 0xFFFFFFFF, 0xFFFFFFFF, 0)),
        (UPDATE_CURSOR, nowhere + image),
        (MOVE_CURSOR, struct.pack("<4I", 0, 0xFFFFFFF0, 0xFFFFFFF0, 0) + bytes(16)),
        (UPDATE_CURSOR, b""),
        (GET_DISPLAY_INFO, bytes(32)),
        (UPDATE_CURSOR, position + bytes(16)),
    ):
        ring.submit([display.peer.put(_head(kind) + body)], [])
        ring.wait()
    display.want(UNREF, struct.pack("<II", 1, 0), OK_NODATA)
