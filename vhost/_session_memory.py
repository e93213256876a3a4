"""Handlers of messages about guest memory: regions, postcopy, dirty log, IOTLB. See session.py."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise

from vhost._session_rings import check_in_memory
from vhost._session_state import U64, Plan, Postcopy, Refused, SessionState, one_fd
from vhost.actions import (
    AddRegion,
    IotlbInvalidate,
    IotlbUpdate,
    PostcopyAdvise,
    PostcopyEnd,
    PostcopyListen,
    PostcopyRegister,
    Region,
    RemoveRegion,
    SetLog,
    SetLogFd,
    SetMemTable,
)
from vhost.constants import (
    LOG_PAGE_SIZE,
    DeviceType,
    FrontendRequest,
    IotlbPerm,
    IotlbType,
    ProtocolFeature,
    VirtioFeature,
)
from vhost.errors import ProtocolError
from vhost.fds import Fds, OwnedFd
from vhost.messages import Iotlb, LogBase, MemRegion, MemTable, Message

_NOT_SHARED = "is the guest's memory shared (QEMU: share=on, cloud-hypervisor: shared=on)?"


def _text(region: MemRegion) -> str:
    return f"region at {region.gpa:#x} ({region.size:#x} bytes)"


def _check_region(region: MemRegion) -> None:
    if region.size == 0:
        raise Refused(f"{_text(region)} is empty")
    if region.gpa + region.size > U64:
        raise Refused(f"{_text(region)} reaches beyond the guest's address space")
    if region.uaddr + region.size > U64:
        raise Refused(f"{_text(region)}: front-end address {region.uaddr:#x} plus size overflows")
    if region.mmap_offset + region.size >= U64 // 2:
        raise Refused(f"{_text(region)}: file offset {region.mmap_offset:#x} plus size overflows")


def _check_overlap(regions: Sequence[MemRegion]) -> None:
    ordered = sorted(regions, key=lambda region: region.gpa)
    for low, high in pairwise(ordered):
        if low.gpa + low.size > high.gpa:
            raise Refused(f"{_text(high)} overlaps the {_text(low)}")


def _check_slots(state: SessionState, count: int) -> None:
    if count > state.device.max_mem_slots:
        raise Refused(f"{count} memory regions, at most {state.device.max_mem_slots} are taken")


def set_mem_table(state: SessionState, message: Message) -> Plan:
    """SET_MEM_TABLE: all of guest memory at once."""
    payload = message.payload
    assert isinstance(payload, MemTable)
    regions = payload.regions
    if not regions:
        raise Refused(f"it has no memory regions; {_NOT_SHARED}")
    if len(regions) != len(message.fds):
        raise Refused(f"{len(regions)} memory regions came with {len(message.fds)} file descriptors; {_NOT_SHARED}")
    _check_slots(state, len(regions))
    for region in regions:
        _check_region(region)
    _check_overlap(regions)
    for ring in state.started_rings:
        check_in_memory(state, ring, regions)
    postcopy = state.postcopy is Postcopy.LISTENING
    action = SetMemTable(tuple(Region(region, message.fds.pop()) for region in regions), postcopy)

    def done(result: object) -> Message | None:
        state.regions = list(regions)
        state.removed.clear()
        if not postcopy:
            return None
        if not isinstance(result, Sequence) or len(result) != len(regions):
            raise TypeError(f"SetMemTable with postcopy must return {len(regions)} addresses, not {result!r}")
        state.awaiting_ack = FrontendRequest.SET_MEM_TABLE
        return message.reply(MemTable(tuple(map(_at, regions, result))))

    def failed() -> None:
        state.regions = []

    return Plan([action], done, failed)


def _at(region: MemRegion, uaddr: int) -> MemRegion:
    return replace(region, uaddr=uaddr)


def add_mem_reg(state: SessionState, message: Message) -> Plan:
    """ADD_MEM_REG: one region more."""
    region = message.payload
    if not isinstance(region, MemRegion):
        raise Refused("an acknowledgement where none was due")
    _check_region(region)
    postcopy = state.postcopy is Postcopy.LISTENING
    if region in state.regions and not postcopy and state.device.device_id == DeviceType.NET:
        return Plan()  # QEMU 7.2 says everything about memory once for each pair of a card's queues
    _check_slots(state, len(state.regions) + 1)
    _check_overlap([*state.regions, region])
    if not len(message.fds):
        raise Refused(f"no file descriptor came with the {_text(region)}; {_NOT_SHARED}")
    action = AddRegion(Region(region, message.fds.pop()), postcopy)

    def done(result: object) -> Message | None:
        state.regions.append(region)
        state.removed.clear()
        if not postcopy:
            return None
        if not isinstance(result, int):
            raise TypeError(f"AddRegion with postcopy must return an address, not {result!r}")
        state.awaiting_ack = FrontendRequest.ADD_MEM_REG
        return message.reply(_at(region, result))

    return Plan([action], done)


def rem_mem_reg(state: SessionState, message: Message) -> Plan:
    """REM_MEM_REG: matched by guest address, front-end address and size; the offset is not sent by all."""
    wanted = message.payload
    assert isinstance(wanted, MemRegion)
    key = wanted.gpa, wanted.uaddr, wanted.size
    for region in state.regions:
        if (region.gpa, region.uaddr, region.size) == key:
            break
    else:
        if key in state.removed:
            return Plan()  # another queue pair's copy of the message, see add_mem_reg
        raise Refused(f"{_text(wanted)} is not in the memory table")
    rest = [other for other in state.regions if other is not region]
    for ring in state.started_rings:
        try:
            check_in_memory(state, ring, rest)
        except Refused:
            raise Refused(f"running ring {ring.index} lies in the {_text(region)}") from None

    def done(_result: object) -> None:
        state.regions = rest
        if state.device.device_id == DeviceType.NET:
            state.removed.append(key)

    return Plan([RemoveRegion(region)], done)


def postcopy_ack(state: SessionState, message: Message) -> Plan:
    """The front-end took over our addresses: after that it serves page faults.

    Raises: ProtocolError: something else came, so that front-end and we no longer agree.
    """
    due = state.awaiting_ack
    assert due is not None
    if message.request != due or message.payload not in (0, MemTable(())) or len(message.fds):
        raise ProtocolError(f"came where an acknowledgement of {due.name} was due", message.request)
    state.awaiting_ack = None
    return Plan([PostcopyRegister()], silent=True)


def postcopy_advise(state: SessionState, message: Message) -> Plan:
    """POSTCOPY_ADVISE: answer with a userfaultfd."""
    if state.postcopy is not Postcopy.OFF:
        raise Refused("postcopy was advised already")

    def done(result: object) -> Message:
        if not isinstance(result, OwnedFd):
            raise TypeError(f"PostcopyAdvise must return an OwnedFd, not {result!r}")
        state.postcopy = Postcopy.ADVISED
        return message.reply(None, Fds([result.move()]))

    return Plan([PostcopyAdvise()], done)


def postcopy_listen(state: SessionState, message: Message) -> Plan:
    """POSTCOPY_LISTEN: memory that comes from now on is empty and filled by faults."""
    if state.postcopy is not Postcopy.ADVISED:
        raise Refused("POSTCOPY_ADVISE must come first")
    if state.regions:
        raise Refused("memory regions were already set")

    def done(_result: object) -> Message:
        state.postcopy = Postcopy.LISTENING
        return message.reply(0)

    return Plan([PostcopyListen()], done)


def postcopy_end(state: SessionState, message: Message) -> Plan:
    """POSTCOPY_END: all pages are here."""
    if state.postcopy is Postcopy.OFF:
        raise Refused("postcopy was not begun")

    def done(_result: object) -> Message:
        state.postcopy = Postcopy.OFF
        return message.reply(0)

    return Plan([PostcopyEnd()], done)


def set_log_base(state: SessionState, message: Message) -> Plan:
    """SET_LOG_BASE: answered by the 16-byte echo, which all front-ends understand (QEMU takes any size)."""
    payload = message.payload
    if not isinstance(payload, LogBase):
        raise Refused("the dirty log must come as shared memory, with LOG_SHMFD negotiated")
    if payload.mmap_size == 0:
        raise Refused("the dirty log is empty")
    if payload.mmap_offset + payload.mmap_size >= U64 // 2:
        raise Refused(f"offset {payload.mmap_offset:#x} and size {payload.mmap_size:#x} do not fit a file")
    last = max((region.gpa + region.size - 1 for region in state.regions), default=0)
    needed = last // LOG_PAGE_SIZE // 8 + 1
    if payload.mmap_size < needed:
        raise Refused(f"a dirty log of {payload.mmap_size} bytes is too small, guest memory needs {needed}")
    action = SetLog(payload.mmap_size, payload.mmap_offset, one_fd(message))
    answered = ProtocolFeature.LOG_SHMFD in state.protocol
    done: Callable[[object], Message | None] = lambda _result: message.reply(payload) if answered else None  # noqa: E731
    return Plan([action], done)


def set_log_fd(_state: SessionState, message: Message) -> Plan:
    """SET_LOG_FD: eventfd to kick after logging."""
    return Plan([SetLogFd(one_fd(message))])


def iotlb_msg(state: SessionState, message: Message) -> Plan:
    """IOTLB_MSG: update or invalidation. Always answered by a u64."""
    payload = message.payload
    assert isinstance(payload, Iotlb)
    if not state.offered & VirtioFeature.ACCESS_PLATFORM:
        raise Refused("no IOMMU was offered")
    # QEMU's flush of everything is 2^64 bytes from 0, which it writes as 0.
    everything = payload.type == IotlbType.INVALIDATE and payload.iova == 0 and payload.size == 0
    if (payload.size == 0 and not everything) or payload.iova + payload.size > U64:
        raise Refused(f"{payload.size:#x} bytes at iova {payload.iova:#x} are empty or wrap around")
    answer = message.reply(0)
    if payload.type == IotlbType.INVALIDATE:
        return Plan([IotlbInvalidate(payload.iova, payload.size)], lambda _result: answer)
    if payload.type != IotlbType.UPDATE:
        raise Refused(f"IOTLB message type {payload.type} is not for a back-end")
    if payload.uaddr + payload.size > U64:
        raise Refused(f"{payload.size:#x} bytes at address {payload.uaddr:#x} wrap around")
    if payload.perm & ~(IotlbPerm.READ | IotlbPerm.WRITE):
        raise Refused(f"unknown permissions {payload.perm:#x}")
    action = IotlbUpdate(payload.iova, payload.size, payload.uaddr, payload.perm)
    return Plan([action], lambda _result: answer)
