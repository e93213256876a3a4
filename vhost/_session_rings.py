"""Handlers of messages about rings. Each judges a message against the state and returns a Plan; see session.py."""

import sys
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from vhost._session_state import U64, Plan, Refused, Ring, RingState, SessionState, in_force, one_fd
from vhost.actions import (
    AddressKind,
    DisableQueue,
    EnableQueue,
    GetInflight,
    InflightArea,
    KickQueue,
    SetCall,
    SetErr,
    SetInflight,
    SetKick,
    SetQueueLog,
    StartQueue,
    StopQueue,
)
from vhost.constants import MAX_QUEUE_SIZE, VRING_ADDR_LOG, ProtocolFeature
from vhost.fds import Fds
from vhost.messages import Inflight, MemRegion, Message, RingBase, VringAddr, VringFd, VringState

# Sizes and alignments of a ring's three areas [VIRTIO 1.3, 2.7 and 2.8]: (name, bytes, alignment)
_Area = tuple[str, int, int, int]


def ring_areas(addr: VringAddr, size: int, *, packed: bool) -> tuple[_Area, ...]:
    """The areas of a ring: name, address, bytes, alignment."""
    if packed:
        return (
            ("descriptor ring", addr.desc, 16 * size, 16),
            ("driver area", addr.avail, 4, 4),
            ("device area", addr.used, 4, 4),
        )
    return (
        ("descriptor table", addr.desc, 16 * size, 16),
        ("available ring", addr.avail, 6 + 2 * size, 2),
        ("used ring", addr.used, 6 + 8 * size, 4),
    )


def check_size(state: SessionState, ring: Ring, size: int, *, layout_known: bool) -> None:
    """Refuse a ring size that the layout or the device cannot have. Spec: VIRTIO 1.3, 2.7 and 2.8.10.1."""
    if not 1 <= size <= MAX_QUEUE_SIZE:
        raise Refused(f"ring {ring.index}: size {size} is not in 1-{MAX_QUEUE_SIZE}")
    if size > state.device.max_queue_size:
        raise Refused(
            f"ring {ring.index}: size {size}, this device takes at most {state.device.max_queue_size}; "
            "choose a smaller queue size in the VMM"
        )
    if layout_known and not state.packed and size & (size - 1):
        raise Refused(f"ring {ring.index}: size {size} of a split ring is not a power of two")


def _check_alignment(state: SessionState, addr: VringAddr) -> None:
    for name, where, _, alignment in ring_areas(addr, 1, packed=state.packed):
        if where % alignment:
            raise Refused(f"ring {addr.index}: {name} at {where:#x} is not aligned to {alignment} bytes")


def check_in_memory(state: SessionState, ring: Ring, regions: Iterable[MemRegion]) -> None:
    """Refuse a ring of which an area does not lie in one of `regions`. With an IOMMU nothing can be said yet."""
    if state.address_kind is AddressKind.IOVA or ring.addr is None or ring.size is None:
        return
    by_gpa = state.address_kind is AddressKind.GPA
    spans = [(r.gpa if by_gpa else r.uaddr, r.size) for r in regions]
    for name, where, size, _ in ring_areas(ring.addr, ring.size, packed=state.packed):
        if not any(start <= where and where - start <= length and size <= length - (where - start)
                   for start, length in spans):  # fmt: skip
            raise Refused(
                f"ring {ring.index}: {name} at {where:#x} ({size} bytes) is not in guest memory; "
                "is all of the guest's memory shared (QEMU: share=on, cloud-hypervisor: shared=on)?"
            )


def _start(state: SessionState, ring: Ring) -> Plan | None:
    """Plan to start the ring if it has become complete, else None. `ring` is a copy with the news in it."""
    if ring.started or not ring.kicked or ring.size is None or ring.base is None or ring.addr is None:
        return None
    check_size(state, ring, ring.size, layout_known=True)
    _check_alignment(state, ring.addr)
    base = RingBase.decode(ring.base, packed=state.packed)
    if not state.packed and ring.base > 0xFFFF:
        raise Refused(f"ring {ring.index}: base {ring.base:#x} of a split ring has more than 16 bits")
    if state.packed and (base.avail >= ring.size or base.used >= ring.size):
        raise Refused(f"ring {ring.index}: base {ring.base:#x} lies outside its {ring.size} entries")
    check_in_memory(state, ring, state.regions)
    return Plan([StartQueue(state.queue_config(ring))])


def _with(state: SessionState, ring: Ring, **news: Any) -> Plan:
    """Plan: take over `news` into the ring, and start it if that makes it complete.

    If starting fails the ring keeps the news but waits for another kick.
    """
    start = _start(state, replace(ring, **news))

    def take_over() -> None:
        for name, value in news.items():
            setattr(ring, name, value)

    def done(_result: object) -> None:
        take_over()
        if start is not None:
            ring.state = RingState.STARTED

    def failed() -> None:
        take_over()
        ring.kicked = False

    return Plan(start.actions if start else (), done, failed)


def set_vring_num(state: SessionState, message: Message) -> Plan:
    """SET_VRING_NUM."""
    payload = message.payload
    assert isinstance(payload, VringState)
    ring = state.ring(payload.index)
    if ring.started:
        if payload.num == ring.size:
            return Plan()
        raise Refused(f"ring {ring.index} is running with {ring.size} entries")
    check_size(state, ring, payload.num, layout_known=state.features_set)
    return _with(state, ring, size=payload.num)


def set_vring_base(state: SessionState, message: Message) -> Plan:
    """SET_VRING_BASE."""
    payload = message.payload
    assert isinstance(payload, VringState)
    ring = state.ring(payload.index)
    if ring.started:
        raise Refused(f"ring {ring.index} is running, its base cannot be set")
    if state.features_set and not state.packed and payload.num > 0xFFFF:
        raise Refused(f"ring {ring.index}: base {payload.num:#x} of a split ring has more than 16 bits")
    return _with(state, ring, base=payload.num)


def set_vring_addr(state: SessionState, message: Message) -> Plan:
    """SET_VRING_ADDR; on a running ring only logging may change [rst "Migration"]."""
    payload = message.payload
    assert isinstance(payload, VringAddr)
    ring = state.ring(payload.index)
    if payload.flags & ~VRING_ADDR_LOG:
        raise Refused(f"ring {ring.index}: unknown address flags {payload.flags:#x}")
    if not ring.started:
        if state.features_set:
            _check_alignment(state, payload)
        return _with(state, ring, addr=payload)
    old = ring.addr
    assert old is not None
    if (payload.desc, payload.avail, payload.used) != (old.desc, old.avail, old.used):
        raise Refused(f"ring {ring.index} is running, its addresses cannot change")

    def done(_result: object) -> None:
        ring.addr = payload

    return Plan([SetQueueLog(ring.index, payload.log if payload.flags else None)], done)


def _ring_of_fd(state: SessionState, message: Message) -> tuple[Ring, bool]:
    payload = message.payload
    assert isinstance(payload, VringFd)
    ring = state.ring(payload.index)
    if payload.has_fd and not len(message.fds):
        raise Refused(f"ring {ring.index}: no file descriptor came with it, and bit 8 does not say so")
    return ring, payload.has_fd


def set_vring_kick(state: SessionState, message: Message) -> Plan:
    """SET_VRING_KICK: starts the ring [rst "Ring states"], or gives a running one another descriptor."""
    ring, has_fd = _ring_of_fd(state, message)
    # Judge first, then take the descriptor out of the message: a refusal leaves it where it is closed.
    plan = _with(state, ring, kicked=True, polled=not has_fd)
    kick = SetKick(ring.index, message.fds.pop() if has_fd else None)
    return Plan([kick, *plan.actions], plan.done, plan.failed)


def set_vring_call(state: SessionState, message: Message) -> Plan:
    """SET_VRING_CALL, at any time."""
    ring, has_fd = _ring_of_fd(state, message)
    return Plan([SetCall(ring.index, message.fds.pop() if has_fd else None)])


def set_vring_err(state: SessionState, message: Message) -> Plan:
    """SET_VRING_ERR, at any time."""
    ring, has_fd = _ring_of_fd(state, message)
    return Plan([SetErr(ring.index, message.fds.pop() if has_fd else None)])


def set_vring_enable(state: SessionState, message: Message) -> Plan:
    """SET_VRING_ENABLE, at any time, also for rings without addresses."""
    payload = message.payload
    assert isinstance(payload, VringState)
    ring = state.ring(payload.index)
    if payload.num > 1:
        raise Refused(f"ring {ring.index}: enable is {payload.num}, it must be 0 or 1")
    enable = bool(payload.num)
    before = state.is_enabled(ring)

    def done(_result: object) -> None:
        ring.enable = enable

    after = in_force(enable, state.features)
    if not ring.started or before == after:
        return Plan(done=done)
    return Plan([EnableQueue(ring.index) if after else DisableQueue(ring.index)], done)


def _stopped(ring: Ring, base: int) -> None:
    """Forget what must be set up again; size and the base reached stay known."""
    ring.state = RingState.STOPPED
    ring.kicked = False
    ring.polled = False
    ring.addr = None
    ring.base = base


def _get_base(state: SessionState, message: Message, *, drain: bool) -> Plan:
    payload = message.payload
    assert isinstance(payload, VringState)
    ring = state.ring(payload.index)
    running = ring.started

    def done(result: object) -> Message:
        if running:
            if not isinstance(result, int):
                raise TypeError(f"StopQueue must return the ring's base, not {result!r}")
            _stopped(ring, result)
        return message.reply(VringState(ring.index, ring.base or 0))

    # A ring that does not stop leaves nothing true to answer.
    return Plan([StopQueue(ring.index, drain)] if running else (), done, fatal=True)


def get_vring_base(state: SessionState, message: Message) -> Plan:
    """GET_VRING_BASE: stops the ring; of a stopped ring it tells the base again."""
    return _get_base(state, message, drain=ProtocolFeature.GET_VRING_BASE_INFLIGHT not in state.protocol)


def get_vring_base_skip_drain(state: SessionState, message: Message) -> Plan:
    """GET_VRING_BASE_SKIP_DRAIN: likewise, leaving requests in the inflight region."""
    return _get_base(state, message, drain=False)


def vring_kick(state: SessionState, message: Message) -> Plan:
    """VRING_KICK: in-band kick of a running ring; others are ignored."""
    payload = message.payload
    assert isinstance(payload, VringState)
    ring = state.ring(payload.index)
    if ProtocolFeature.INBAND_NOTIFICATIONS not in state.protocol:
        raise Refused("INBAND_NOTIFICATIONS was not negotiated")
    return Plan([KickQueue(ring.index)] if ring.started else ())


def set_vring_endian(state: SessionState, message: Message) -> Plan:
    """SET_VRING_ENDIAN: only the machine's own order, since CROSS_ENDIAN is never offered."""
    payload = message.payload
    assert isinstance(payload, VringState)
    state.ring(payload.index)
    native = 0 if sys.byteorder == "little" else 1
    if payload.num != native:
        raise Refused(f"ring {payload.index}: only {sys.byteorder}-endian rings are supported here")
    return Plan()


def get_inflight_fd(state: SessionState, message: Message) -> Plan:
    """GET_INFLIGHT_FD: a new region."""
    payload = _inflight(state, message)

    def done(result: object) -> Message:
        if not isinstance(result, InflightArea):
            raise TypeError(f"GetInflight must return an InflightArea, not {result!r}")
        reply = Inflight(result.mmap_size, result.mmap_offset, payload.num_queues, payload.queue_size)
        return message.reply(reply, Fds([result.fd.move()]))

    return Plan([GetInflight(payload.num_queues, payload.queue_size, state.packed)], done)


def set_inflight_fd(state: SessionState, message: Message) -> Plan:
    """SET_INFLIGHT_FD: a region that may hold unfinished requests."""
    payload = _inflight(state, message)
    if payload.mmap_size == 0:
        raise Refused("the inflight region is empty")
    if payload.mmap_offset + payload.mmap_size >= U64 // 2:
        raise Refused(f"offset {payload.mmap_offset:#x} and size {payload.mmap_size:#x} do not fit a file")
    fd = one_fd(message)
    action = SetInflight(
        payload.mmap_size, payload.mmap_offset, payload.num_queues, payload.queue_size, state.packed, fd
    )
    return Plan([action])


def _inflight(state: SessionState, message: Message) -> Inflight:
    payload = message.payload
    assert isinstance(payload, Inflight)
    if state.started_rings:
        raise Refused("rings are running")
    if not 1 <= payload.num_queues <= len(state.rings):
        raise Refused(f"{payload.num_queues} queues, this device has {len(state.rings)}")
    if not 1 <= payload.queue_size <= state.device.max_queue_size:
        raise Refused(f"queue size {payload.queue_size}, this device takes 1 to {state.device.max_queue_size}")
    return payload
