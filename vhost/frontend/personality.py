"""How different VMMs speak vhost-user: which bits they take, in which order they send, when they want an answer.

A back-end that works with one of them may fail with another, so tests run with each.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from vhost.constants import FrontendRequest as F
from vhost.constants import ProtocolFeature as P
from vhost.constants import VirtioFeature

Step = Literal["num", "base", "addr", "kick", "call", "err", "enable"]


@dataclass(frozen=True, slots=True)
class Personality:
    """One VMM's manners.

    Attributes:
        name: for people.
        protocol: protocol features it acknowledges if offered.
        not_features: virtio feature bits it never acknowledges, beyond what the caller leaves out.
        owner_first: SET_OWNER comes before anything else, else after the protocol features.
        need_reply: on every message; on those where QEMU wants it; on none.
        base_is_avail: a fresh queue's base is the available index found in guest memory.
        config_flags: flags word of GET_CONFIG and SET_CONFIG.
        early: messages per ring before the first start.
        ring: messages per ring, all of them for one ring before the next.
        after: messages per ring once all rings went through `ring`.
        max_regions: of SET_MEM_TABLE.
        backend_fd_last: SET_BACKEND_REQ_FD comes after the rings are enabled.
    """

    name: str
    protocol: P
    not_features: int = 0
    owner_first: bool = False
    need_reply: Literal["all", "qemu", "none"] = "qemu"
    base_is_avail: bool = False
    config_flags: int = 0
    early: tuple[Step, ...] = ()
    before: tuple[Step, ...] = ()
    ring: tuple[Step, ...] = ("num", "base", "addr", "err", "call", "kick")
    after: tuple[Step, ...] = ("enable",)
    max_regions: int = 8
    backend_fd_last: bool = False

    def wants_reply(self, request: int, *, log: bool = False) -> bool:
        """Whether NEED_REPLY is set on `request` (REPLY_ACK is negotiated); `log`: it switches the dirty log."""
        if self.need_reply != "qemu":
            return self.need_reply == "all"
        return request in QEMU_NEED_REPLY or (log and request in (F.SET_FEATURES, F.SET_VRING_ADDR))


QEMU_NEED_REPLY: Final = frozenset(
    {
        F.SET_MEM_TABLE, F.ADD_MEM_REG, F.REM_MEM_REG, F.SET_CONFIG, F.NET_SET_MTU, F.SET_BACKEND_REQ_FD,
        F.SET_VRING_ENABLE, F.SET_VRING_KICK, F.SET_VRING_CALL, F.SET_VRING_ERR,
    }
)  # fmt: skip

_COMMON: Final = P.MQ | P.REPLY_ACK | P.CONFIG | P.BACKEND_REQ
_FULL: Final = (
    _COMMON | P.LOG_SHMFD | P.RARP | P.MTU | P.BACKEND_SEND_FD | P.INFLIGHT_SHMFD | P.RESET_DEVICE | P.STATUS
    | P.CONFIGURE_MEM_SLOTS | P.SHARED_OBJECT | P.DEVICE_STATE | P.HOST_NOTIFIER
)  # fmt: skip

PLAIN: Final = Personality("vhostkit", _FULL | P.SHMEM | P.PAGEFAULT)
"""Ours: asks for an answer wherever one may tell of an error."""

QEMU: Final = Personality(
    "QEMU 10",
    _FULL | P.PAGEFAULT,
    early=("call", "err"),
    ring=("num", "base", "addr", "kick"),
    after=("enable", "call"),
)

QEMU_7_2: Final = Personality(
    "QEMU 7.2",
    _FULL & ~(P.SHARED_OBJECT | P.DEVICE_STATE) | P.PAGEFAULT,
    early=("call", "err"),
    ring=("num", "base", "addr", "kick"),
    after=("enable", "call"),
)

CLOUD_HYPERVISOR: Final = Personality(
    "cloud-hypervisor",
    P.MQ | P.CONFIG | P.CONFIGURE_MEM_SLOTS | P.REPLY_ACK | P.INFLIGHT_SHMFD | P.LOG_SHMFD | P.DEVICE_STATE
    | P.BACKEND_REQ,
    owner_first=True,
    need_reply="all",
    base_is_avail=True,
    config_flags=1,
    before=("num",),
    ring=("addr", "base", "call", "kick"),
    max_regions=32,
    backend_fd_last=True,
)  # fmt: skip

FIRECRACKER: Final = Personality(
    "Firecracker",
    P.CONFIG,
    not_features=VirtioFeature.INDIRECT_DESC | VirtioFeature.RING_PACKED,
    owner_first=True,
    need_reply="none",
    base_is_avail=True,
    config_flags=1,
    ring=("num", "addr", "base", "call", "kick", "enable"),
    after=(),
    max_regions=32,
)

CROSVM: Final = Personality(
    "crosvm",
    P.CONFIG | P.MQ | P.BACKEND_REQ | P.DEVICE_STATE | P.SHMEM | P.REPLY_ACK,
    not_features=VirtioFeature.INDIRECT_DESC | VirtioFeature.RING_PACKED,
    owner_first=True,
    need_reply="none",
    config_flags=1,
    ring=("num", "addr", "base", "call", "kick", "enable"),
    after=(),
    max_regions=32,
)

UML: Final = Personality(
    "User-mode Linux",
    P.REPLY_ACK | P.BACKEND_REQ | P.CONFIG,
    not_features=VirtioFeature.RING_PACKED,
    owner_first=True,
    need_reply="all",
    ring=("call", "num", "base", "addr"),
    after=("kick", "enable"),
    max_regions=2,
)

PERSONALITIES: Final = (PLAIN, QEMU, QEMU_7_2, CLOUD_HYPERVISOR, FIRECRACKER, CROSVM, UML)
