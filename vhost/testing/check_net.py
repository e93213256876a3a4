"""Clauses about virtio-net, as far as they show without knowing what the card is plugged into. [VIRTIO 1.3, 5.1]"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from vhost.constants import FrontendRequest as F
from vhost.constants import ProtocolFeature as P
from vhost.constants import VirtioFeature
from vhost.messages import VringState
from vhost.testing.peer import Failure, Peer, Ring
from vhost.testing.report import Suite, Trial

NET = Suite()

_INDIRECT = int(VirtioFeature.INDIRECT_DESC)

_CSUM, _GUEST_CSUM, _MTU, _CTRL_VQ = 0, 1, 3, 17
#: bit -> bits of which one must be offered too [VIRTIO 1.3, 5.1.3.1]
_NEEDS = {
    7: (_GUEST_CSUM,),
    8: (_GUEST_CSUM,),
    9: (7, 8),
    10: (_GUEST_CSUM,),
    54: (_GUEST_CSUM,),
    55: (_GUEST_CSUM,),
    11: (_CSUM,),
    12: (_CSUM,),
    13: (11, 12),
    14: (_CSUM,),
    56: (_CSUM,),
    18: (_CTRL_VQ,),
    19: (_CTRL_VQ,),
    20: (18,),
    21: (_CTRL_VQ,),
    22: (_CTRL_VQ,),
    23: (_CTRL_VQ,),
}

_HEADER = struct.Struct("<BBHHHHH")
#: broadcast, from a locally administered address, of an experimental type (IEEE 802)
_FRAME = b"\xff" * 6 + b"\x52\x54\0\0\0\1" + b"\x88\xb5" + bytes(range(46))


def _header(*fields: int) -> bytes:
    """flags, gso_type, hdr_len, gso_size, csum_start, csum_offset, num_buffers; the rest is 0."""
    return _HEADER.pack(*fields, *([0] * (7 - len(fields))))


def _send(ring: Ring, data: bytes, cut: Sequence[int] = (), *, indirect: bool = False) -> None:
    """One frame, header included, in pieces; `cut`: bytes of the first ones."""
    out = []
    for n in (*cut, len(data)):
        piece, data = data[:n], data[n:]
        if piece:
            out.append(ring.peer.put(piece))
    ring.submit(out, [], indirect=indirect)


def _taken(ring: Ring, count: int = 1) -> None:
    for used in ring.wait(count):
        if used.length:
            raise Failure(f"{used.length} bytes are said to be written to a frame that was sent")


def _pair(trial: Trial, features: int) -> tuple[Ring, Ring]:
    receive, transmit = trial.peer().bring_up(features, queues=2)
    return receive, transmit


@NET("VIRTIO 5.1.2", "there is a pair of rings at least")
def _numbers(trial: Trial) -> None:
    peer = trial.peer().handshake()
    peer.need(P.MQ)
    count = peer.ask_u64(F.GET_QUEUE_NUM)
    if count < 2:
        raise Failure(f"GET_QUEUE_NUM is answered by {count}")


@NET("VIRTIO 5.1.3.1", "features that need others are offered with them")
def _dependencies(trial: Trial) -> None:
    features = trial.peer().handshake().features
    for bit, others in _NEEDS.items():
        if features >> bit & 1 and not any(features >> other & 1 for other in others):
            raise Failure(f"feature {bit} is offered without {' or '.join(map(str, others))}")


@NET.layouts("VIRTIO 5.1.6.2", "frames that are sent are taken")
def _frames(trial: Trial, features: int) -> None:
    _, transmit = _pair(trial, features)
    for _ in range(3):
        for _ in range(32):
            _send(transmit, _header() + _FRAME)
        _taken(transmit, 32)


@NET.layouts("VIRTIO 2.7.4", "nothing is assumed of how a frame is cut into descriptors")
def _pieces(trial: Trial, features: int) -> None:
    _, transmit = _pair(trial, features)
    for cut in ((12,), (10, 2), (1, 1, 1, 1, 8), (12, 14), (13,), (30, 1, 1)):
        _send(transmit, _header() + _FRAME, cut)
        _taken(transmit)


@NET.layouts("VIRTIO 2.7.5.3", "frames in indirect descriptors are taken")
def _indirect(trial: Trial, features: int) -> None:
    with Peer(trial.connect()).handshake() as peer:
        peer.need_feature(_INDIRECT)
    _, transmit = _pair(trial, features | _INDIRECT)
    for cut in ((12,), (5, 7, 14)):
        _send(transmit, _header() + _FRAME, cut, indirect=True)
        _taken(transmit)


@NET.layouts("VIRTIO 5.1.6.2", "frames without room for addresses, or without a whole header, do no harm")
def _runts(trial: Trial, features: int) -> None:
    _, transmit = _pair(trial, features)
    for length in (1, 11, 12, 13, 25):
        _send(transmit, (_header() + _FRAME)[:length])
        _taken(transmit)
    _send(transmit, _header() + _FRAME)
    _taken(transmit)


@NET.layouts("VIRTIO 5.1.6.2", "headers that say what is not so do no harm")
def _lies(trial: Trial, features: int) -> None:
    offloads = sum(1 << bit for bit in (_CSUM, 11, 12, 13, 14, 56))
    _, transmit = _pair(trial, features | offloads)
    for lie in (
        (1, 0, 0, 0, 0xFFFF, 0xFFFF),
        (1, 0, 0, 0, len(_FRAME) - 1, 0),
        (1, 0, 0, 0, 34, 0xFFF0),
        (1, 1, 54, 0, 34, 16),
        (1, 1, 0xFFFF, 1, 34, 16),
        (1, 1, 54, 0xFFFF, 34, 16),
        (0, 1, 54, 1448, 34, 16),
        (1, 4, 0, 1, 0, 0),
        (1, 5, 42, 1, 34, 6),
        (1, 0x85, 42, 1, 34, 6),
        (0xFF, 0x7F, 1, 1, 1, 1, 0xFFFF),
    ):
        _send(transmit, _header(*lie) + _FRAME)
        _taken(transmit)


@NET.layouts("VIRTIO 5.1.6.2", "frames longer than any may be do no harm")
def _giants(trial: Trial, features: int) -> None:
    _, transmit = _pair(trial, features)
    for length in (65535 + 14, 70000, 300000):
        _send(transmit, _header() + _FRAME.ljust(length, b"\0"), (12, 60000, 60000))
        _taken(transmit)
    _send(transmit, _header() + _FRAME)
    _taken(transmit)


@NET.layouts("VIRTIO 5.1.6.3", "receive buffers too small for anything do no harm")
def _small_buffers(trial: Trial, features: int) -> None:
    receive, transmit = _pair(trial, features)
    for size in (1, 11, 12, 20):
        receive.submit([], [receive.peer.room(size)])
    for _ in range(4):
        _send(transmit, _header() + _FRAME)
        _taken(transmit)


@NET.layouts("rst Ring states", "frames sent on a disabled ring are taken and dropped")
def _disabled(trial: Trial, features: int) -> None:
    peer = trial.peer()
    _, transmit = peer.bring_up(features, queues=2)
    peer.need_feature(VirtioFeature.PROTOCOL_FEATURES)
    peer.enable(transmit, False)
    _send(transmit, _header() + _FRAME)
    _taken(transmit)
    peer.enable(transmit)
    _send(transmit, _header() + _FRAME)
    _taken(transmit)


@NET.layouts("rst VHOST_USER_GET_VRING_BASE", "a ring that was stopped goes on where it was")
def _restart(trial: Trial, features: int) -> None:
    peer = trial.peer()
    _, transmit = peer.bring_up(features, queues=2)
    for _ in range(3):
        for _ in range(5):
            _send(transmit, _header() + _FRAME)
        _taken(transmit, 5)
        base = peer.stop(transmit)
        peer.start(transmit, base=base)


@NET("rst VHOST_USER_SET_VRING_ENABLE", "rings may be enabled before there is anything to them, as QEMU does")
def _early(trial: Trial) -> None:
    peer = trial.peer().handshake()
    peer.need_feature(VirtioFeature.PROTOCOL_FEATURES)
    for on in (1, 0, 1):
        for index in (0, 1):
            peer.ok(F.SET_VRING_ENABLE, VringState(index, on))
    peer.set_features((VirtioFeature.PROTOCOL_FEATURES | VirtioFeature.VERSION_1) & peer.features)
    peer.share_memory()
    _, transmit = (peer.start(peer.ring(index, 64)) for index in (0, 1))
    _send(transmit, _header() + _FRAME)
    _taken(transmit)


@NET("rst VHOST_USER_NET_SET_MTU", "an MTU that every network has is taken")
def _mtu(trial: Trial) -> None:
    peer = trial.peer().handshake()
    peer.need(P.MTU)
    peer.ok(F.NET_SET_MTU, 1280)


@NET("rst VHOST_USER_SEND_RARP", "a migrated guest is announced, and frames go on")
def _rarp(trial: Trial) -> None:
    peer = trial.peer()
    _, transmit = peer.bring_up(0, queues=2)
    peer.need(P.RARP)
    peer.ok(F.SEND_RARP, int.from_bytes(b"\x52\x54\0\0\0\1", "little"))
    _send(transmit, _header() + _FRAME)
    _taken(transmit)
