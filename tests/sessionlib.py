"""A front-end without a socket: messages go through the wire format into a Session, actions to a recorder."""

import os
from typing import Any

from vhost import actions as a
from vhost import wire
from vhost.constants import FrontendRequest, HeaderFlag, ProtocolFeature, VirtioFeature
from vhost.errors import DeviceError
from vhost.fds import Fds, OwnedFd
from vhost.messages import MemRegion, MemTable, Message, Payload, RawMessage, VringAddr, VringFd, VringState
from vhost.session import DeviceDescription, Options, Session

F = FrontendRequest
P = ProtocolFeature
V = VirtioFeature

GUEST = MemRegion(gpa=0, size=0x100000, uaddr=0x7F00_0000_0000, mmap_offset=0)
MODERN = int(V.VERSION_1 | V.PROTOCOL_FEATURES | V.INDIRECT_DESC | V.EVENT_IDX)
EVERYTHING = (
    P.MQ | P.LOG_SHMFD | P.RARP | P.REPLY_ACK | P.MTU | P.BACKEND_REQ | P.PAGEFAULT | P.CONFIG | P.BACKEND_SEND_FD
    | P.INFLIGHT_SHMFD | P.RESET_DEVICE | P.CONFIGURE_MEM_SLOTS | P.STATUS | P.SHARED_OBJECT | P.DEVICE_STATE
)  # fmt: skip
CONFIG = bytes(range(1, 61))


def open_fds() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


def memfd() -> int:
    return os.memfd_create("test")


def description(**changes: Any) -> DeviceDescription:
    defaults: dict[str, Any] = {
        "device_id": 2,
        "num_queues": 4,
        "features": 0x40,
        "protocol_features": EVERYTHING,
        "config_size": len(CONFIG),
        "max_queue_size": 1024,
    }
    return DeviceDescription(**{**defaults, **changes})


class Peer:
    """Front-end and server in one.

    Attributes:
        done: actions performed, in order, over all messages; `last` those of the last message.
        fail: kinds of action that fail.
        base: what StopQueue returns.
    """

    def __init__(self, options: Options | None = None, **changes: Any) -> None:
        self.session = Session(description(**changes), options)
        self.done: list[a.Action] = []
        self.last: list[a.Action] = []
        self.fail: tuple[type, ...] = ()
        self.base = 0x1234
        self.shared_object: OwnedFd | None = None
        self.replies = 0

    def raw(self, request: int, payload: bytes, *, flags: int = 1, fds: int | list[int] = 0) -> bytes | None:
        """Send bytes; returns the answer as sent, header and payload, or None."""
        owned = Fds([memfd() for _ in range(fds)] if isinstance(fds, int) else fds)
        message = wire.decode_request(RawMessage(request, flags, payload, owned))
        self.last = []
        with self.session.handle(message) as step:
            result, error = None, None
            try:
                for action in step.actions:
                    result = self.perform(action)
            except DeviceError as failure:
                error = failure
            reply = step.finish(result, error)
        if reply is None:
            return None
        self.replies += 1
        with reply.fds:
            self.reply_fds = len(reply.fds)
            return wire.encode(reply)

    def send(
        self, request: int, payload: Payload = None, *, need: bool = False, fds: int | list[int] = 0
    ) -> bytes | None:
        """Send a message; returns the answer's bytes."""
        flags = 1 | (HeaderFlag.NEED_REPLY if need else 0)
        return self.raw(request, wire.build_payload(payload), flags=flags, fds=fds)

    def ask(self, request: int, payload: Payload = None, *, need: bool = False, fds: int = 0) -> Payload:
        """Send a message that must be answered; returns the answer's payload."""
        reply = self.send(request, payload, need=need, fds=fds)
        assert reply is not None, F(request).name
        header = wire.parse_header(reply[:12])
        assert header[:2] == (request, 5)
        return wire.decode_reply(RawMessage(request, 5, reply[12:])).payload

    def acked(self, request: int, payload: Payload = None, *, fds: int = 0) -> int:
        """Send with NEED_REPLY and return the u64 of the acknowledgement."""
        reply = self.send(request, payload, need=True, fds=fds)
        assert reply is not None
        assert reply[:12] == wire.build_header(wire.Header(request, 5, 8))
        return int.from_bytes(reply[12:], "little")

    def perform(self, action: a.Action) -> object:
        self.done.append(action)
        self.last.append(action)
        if isinstance(action, self.fail):
            raise DeviceError("told to fail")
        match action:
            case a.StopQueue():
                return self.base
            case a.GetConfig(offset=offset, size=size):
                return CONFIG[offset : offset + size]
            case a.GetInflight():
                return a.InflightArea(OwnedFd(memfd()), 0x1000, 0)
            case a.PostcopyAdvise():
                return OwnedFd(memfd())
            case a.SetMemTable(regions=regions, postcopy=True):
                return [0x5500_0000_0000 + r.where.gpa for r in regions]
            case a.AddRegion(region=region, postcopy=True):
                return 0x5500_0000_0000 + region.where.gpa
            case a.GetSharedObject():
                return self.shared_object
        return None

    def kinds(self) -> list[str]:
        """Names of the last message's actions."""
        return [type(action).__name__ for action in self.last]

    # Usual sequences

    def negotiate(self, features: int = MODERN, protocol: int | None = None) -> None:
        """What QEMU sends until the guest's driver starts; all that is offered of EVERYTHING unless told."""
        if protocol is None:
            protocol = int(EVERYTHING & self.session.offered_protocol_features)
        self.send(F.GET_FEATURES)
        self.send(F.GET_PROTOCOL_FEATURES)
        self.send(F.SET_PROTOCOL_FEATURES, protocol)
        self.send(F.SET_OWNER)
        self.send(F.SET_FEATURES, features)

    def memory(self, *regions: MemRegion) -> None:
        table = MemTable(regions or (GUEST,))
        self.send(F.SET_MEM_TABLE, table, fds=len(table.regions))

    def ring(self, index: int, *, size: int = 128, base: int = 0, log: int | None = None) -> None:
        """Everything about a ring but its kick."""
        self.send(F.SET_VRING_NUM, VringState(index, size))
        self.send(F.SET_VRING_BASE, VringState(index, base))
        self.send(F.SET_VRING_ADDR, addr(index, log))

    def start(self, index: int = 0, *, size: int = 128, base: int = 0, enable: bool = True) -> None:
        self.ring(index, size=size, base=base)
        self.send(F.SET_VRING_KICK, VringFd(index, has_fd=True), fds=1)
        if enable:
            self.send(F.SET_VRING_ENABLE, VringState(index, 1))


def addr(index: int, log: int | None = None) -> VringAddr:
    """A place for ring `index` in GUEST."""
    at = GUEST.uaddr + 0x8000 * (index + 1)
    return VringAddr(index, 0 if log is None else 1, at, at + 0x6000, at + 0x5000, log or 0)


def ready(options: Options | None = None, *, features: int = MODERN, **changes: Any) -> Peer:
    """A peer after negotiation, with memory."""
    peer = Peer(options, **changes)
    peer.negotiate(features)
    peer.memory()
    peer.done.clear()
    return peer


def message(request: int, payload: Payload = None, fds: int = 0) -> Message:
    return Message(request, payload, fds=Fds([memfd() for _ in range(fds)]))
