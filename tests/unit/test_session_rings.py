"""Ring states: when a ring starts, stops, is enabled; what may change while it runs."""

import itertools

import pytest
from sessionlib import EVERYTHING, GUEST, MODERN, F, P, Peer, V, addr, ready

from vhost import actions as a
from vhost.constants import VRING_ADDR_LOG
from vhost.errors import ProtocolError
from vhost.messages import LogBase, VringAddr, VringFd, VringState
from vhost.session import Options

PACKED = MODERN | V.RING_PACKED


def config(peer: Peer) -> a.QueueConfig:
    """Configuration of the ring that the last message started."""
    starts = [action for action in peer.last if isinstance(action, a.StartQueue)]
    assert len(starts) == 1, peer.last
    return starts[0].config


PIECES = {
    "num": (F.SET_VRING_NUM, VringState(0, 64), 0),
    "base": (F.SET_VRING_BASE, VringState(0, 5), 0),
    "addr": (F.SET_VRING_ADDR, addr(0), 0),
    "kick": (F.SET_VRING_KICK, VringFd(0, has_fd=True), 1),
}


@pytest.mark.parametrize("order", list(itertools.permutations(PIECES)))
def test_any_order_starts_with_the_last_piece(order: tuple[str, ...]) -> None:
    peer = ready()
    for piece in order[:-1]:
        request, payload, fds = PIECES[piece]
        peer.send(request, payload, fds=fds)
        assert peer.session.started == ()
    request, payload, fds = PIECES[order[-1]]
    peer.send(request, payload, fds=fds)
    assert peer.session.started == (0,)
    assert (config(peer).size, config(peer).base, config(peer).polled) == (64, 5, False)


def test_kick_without_descriptor_starts_a_polled_ring() -> None:
    peer = ready()
    peer.ring(0)
    peer.send(F.SET_VRING_KICK, VringFd(0, has_fd=False))
    assert peer.last[0] == a.SetKick(0, None)
    assert config(peer).polled


def test_enable_before_anything_else() -> None:
    """QEMU's net enables rings before SET_FEATURES, many times, on rings without addresses."""
    peer = Peer()
    for _ in range(3):
        for index in range(4):
            peer.send(F.SET_VRING_ENABLE, VringState(index, 1))
    assert peer.done == []
    peer.negotiate()
    peer.memory()
    peer.start(0, enable=False)
    assert config(peer).enabled


def test_without_protocol_features_rings_are_enabled_at_once() -> None:
    peer = Peer()
    peer.send(F.SET_FEATURES, int(V.VERSION_1))
    peer.memory()
    peer.start(0, enable=False)
    assert config(peer).enabled
    peer.send(F.SET_VRING_ENABLE, VringState(0, 0))
    assert peer.last == [], "nothing can disable them"


def test_protocol_features_bit_may_come_under_running_rings() -> None:
    peer = Peer()
    peer.send(F.SET_FEATURES, int(V.VERSION_1))
    peer.memory()
    peer.start(0, enable=False)
    peer.start(1, enable=True)
    peer.send(F.SET_FEATURES, int(V.VERSION_1 | V.PROTOCOL_FEATURES))
    assert peer.last == [a.SetFeatures(int(V.VERSION_1 | V.PROTOCOL_FEATURES)), a.DisableQueue(0)]
    peer.send(F.SET_FEATURES, int(V.VERSION_1))
    assert peer.last == [a.SetFeatures(int(V.VERSION_1)), a.EnableQueue(0)]


def test_restart_needs_addresses_and_kick_and_knows_its_base() -> None:
    peer = ready()
    peer.start(0, size=32)
    peer.base = 99
    peer.send(F.GET_VRING_BASE, VringState(0, 0))
    peer.send(F.SET_VRING_KICK, VringFd(0, has_fd=True), fds=1)
    assert peer.session.started == ()
    peer.send(F.SET_VRING_ADDR, addr(0))
    assert (config(peer).base, config(peer).size, config(peer).enabled) == (99, 32, True)


def test_after_reset_the_base_must_be_set_again() -> None:
    peer = ready()
    peer.start(0)
    peer.send(F.RESET_DEVICE)
    peer.send(F.SET_VRING_NUM, VringState(0, 128))
    peer.send(F.SET_VRING_ADDR, addr(0))
    peer.send(F.SET_VRING_KICK, VringFd(0, has_fd=True), fds=1)
    assert peer.session.started == ()
    peer.send(F.SET_VRING_BASE, VringState(0, 0))
    assert peer.session.started == (0,)


def test_running_ring_gets_new_descriptors() -> None:
    peer = ready()
    peer.start(0)
    for request, kind in ((F.SET_VRING_KICK, a.SetKick), (F.SET_VRING_CALL, a.SetCall), (F.SET_VRING_ERR, a.SetErr)):
        assert peer.acked(request, VringFd(0, has_fd=True), fds=1) == 0
        assert [type(action) for action in peer.last] == [kind]
    assert peer.session.started == (0,)


def test_running_ring_keeps_its_shape() -> None:
    peer = ready()
    peer.start(0, size=128)
    assert peer.acked(F.SET_VRING_NUM, VringState(0, 128)) == 0, "the same again"
    assert peer.acked(F.SET_VRING_NUM, VringState(0, 64)) == 1
    assert peer.acked(F.SET_VRING_BASE, VringState(0, 1)) == 1
    assert peer.acked(F.SET_VRING_ADDR, moved(0)) == 1
    assert peer.session.started == (0,)


def moved(index: int) -> VringAddr:
    at = addr(index)
    return VringAddr(index, 0, at.desc, at.used + 0x100, at.avail, 0)


def test_logging_of_a_running_ring() -> None:
    """Migration: SET_LOG_BASE, SET_FEATURES with LOG_ALL, SET_VRING_ADDR with the log flag; and back."""
    peer = ready()
    peer.start(0)
    peer.send(F.SET_LOG_BASE, LogBase(0x1000, 0), fds=1)
    peer.send(F.SET_FEATURES, int(MODERN | V.LOG_ALL), need=True)
    assert peer.last == [a.SetLogging(True)]
    assert peer.acked(F.SET_VRING_ADDR, addr(0, log=0xE000)) == 0
    assert peer.last == [a.SetQueueLog(0, 0xE000)]
    peer.send(F.SET_FEATURES, MODERN)
    assert peer.last == [a.SetLogging(False)]
    peer.send(F.SET_VRING_ADDR, addr(0))
    assert peer.last == [a.SetQueueLog(0, None)]


def test_ring_that_starts_under_migration_logs() -> None:
    peer = ready(features=MODERN | V.LOG_ALL)
    peer.ring(0, log=0xE000)
    peer.send(F.SET_VRING_KICK, VringFd(0, has_fd=True), fds=1)
    assert config(peer).log
    assert config(peer).log_addr == 0xE000


def test_other_features_do_not_change_under_running_rings() -> None:
    peer = ready()
    peer.start(0)
    assert peer.acked(F.SET_FEATURES, int(MODERN & ~V.EVENT_IDX)) == 1
    assert peer.acked(F.SET_FEATURES, MODERN) == 0, "the same again, as for each queue pair"
    assert peer.last == []
    with pytest.raises(ProtocolError, match=r"change while rings run: EVENT_IDX \(29\)"):
        peer.send(F.SET_FEATURES, int(MODERN & ~V.EVENT_IDX))


# Sizes


@pytest.mark.parametrize(
    ("size", "result"), [(0, 1), (1, 0), (2, 0), (3, 1), (768, 1), (1024, 0), (2048, 1), (1 << 31, 1)]
)
def test_split_sizes(size: int, result: int) -> None:
    assert ready().acked(F.SET_VRING_NUM, VringState(0, size)) == result


@pytest.mark.parametrize(("size", "result"), [(0, 1), (1, 0), (3, 0), (32767, 0), (32768, 0), (32769, 1)])
def test_packed_sizes(size: int, result: int) -> None:
    assert ready(features=PACKED, max_queue_size=32768).acked(F.SET_VRING_NUM, VringState(0, size)) == result


def test_size_is_judged_again_when_the_layout_is_known() -> None:
    peer = Peer()
    peer.send(F.SET_VRING_NUM, VringState(0, 100))
    peer.send(F.SET_FEATURES, MODERN)
    peer.memory()
    peer.send(F.SET_VRING_BASE, VringState(0, 0))
    peer.send(F.SET_VRING_ADDR, addr(0))
    with pytest.raises(ProtocolError, match="SET_VRING_KICK: ring 0: size 100 of a split ring is not a power of two"):
        peer.send(F.SET_VRING_KICK, VringFd(0, has_fd=True), fds=1)


def test_repeated_set_up_is_idempotent() -> None:
    peer = ready()
    for _ in range(1000):
        peer.send(F.SET_VRING_NUM, VringState(0, 128))
        peer.send(F.SET_VRING_CALL, VringFd(0, has_fd=True), fds=1)
    peer.start(0)
    assert peer.session.started == (0,)


# Bases


@pytest.mark.parametrize(
    ("base", "canonical"),
    [(0x8000_8000, 0x8000_8000), (0x8000, 0x8000_8000), (0x0005_8007, 0x0005_8007), (0x7F_007F, 0x7F_007F)],
)
def test_packed_bases(base: int, canonical: int) -> None:
    peer = ready(features=PACKED)
    peer.start(0, base=base, enable=False)
    assert config(peer).packed
    assert config(peer).base == canonical


@pytest.mark.parametrize("base", [0x8000_8080, 0x8080_8000])
def test_packed_base_outside_the_ring(base: int) -> None:
    peer = ready(features=PACKED)
    with pytest.raises(ProtocolError, match="outside its 128 entries"):
        peer.start(0, base=base)


def test_split_base_has_16_bits() -> None:
    peer = ready()
    assert peer.acked(F.SET_VRING_BASE, VringState(0, 0xFFFF)) == 0
    assert peer.acked(F.SET_VRING_BASE, VringState(0, 0x10000)) == 1


# Addresses


@pytest.mark.parametrize(("field", "shift"), [("desc", 8), ("avail", 1), ("used", 2)])
def test_split_alignment(field: str, shift: int) -> None:
    at = addr(0)
    values = {name: getattr(at, name) for name in ("index", "flags", "desc", "used", "avail", "log")}
    values[field] += shift
    assert ready().acked(F.SET_VRING_ADDR, VringAddr(**values)) == 1


@pytest.mark.parametrize(("field", "shift"), [("desc", 8), ("avail", 2), ("used", 2)])
def test_packed_alignment(field: str, shift: int) -> None:
    at = addr(0)
    values = {name: getattr(at, name) for name in ("index", "flags", "desc", "used", "avail", "log")}
    values[field] += shift
    assert ready(features=PACKED).acked(F.SET_VRING_ADDR, VringAddr(**values)) == 1


def test_unknown_address_flags() -> None:
    at = addr(0)
    bad = VringAddr(0, VRING_ADDR_LOG | 2, at.desc, at.used, at.avail, 0)
    assert ready().acked(F.SET_VRING_ADDR, bad) == 1


@pytest.mark.parametrize(
    "desc", [0, 0x1000, GUEST.uaddr - 16, GUEST.uaddr + GUEST.size, GUEST.uaddr + GUEST.size - 16, (1 << 64) - 16]
)
def test_ring_outside_memory(desc: int) -> None:
    peer = ready()
    at = addr(0)
    peer.send(F.SET_VRING_NUM, VringState(0, 128))
    peer.send(F.SET_VRING_BASE, VringState(0, 0))
    peer.send(F.SET_VRING_ADDR, VringAddr(0, 0, desc, at.used, at.avail, 0))
    assert peer.acked(F.SET_VRING_KICK, VringFd(0, has_fd=True), fds=1) == 1
    assert peer.last == []
    peer.send(F.SET_VRING_ADDR, at)
    assert peer.acked(F.SET_VRING_KICK, VringFd(0, has_fd=True), fds=1) == 0
    assert peer.session.started == (0,)


def test_ring_before_memory_says_what_may_be_wrong() -> None:
    peer = Peer()
    peer.negotiate()
    peer.ring(0)
    with pytest.raises(ProtocolError, match="not in guest memory; is all of the guest's memory shared"):
        peer.send(F.SET_VRING_KICK, VringFd(0, has_fd=True), fds=1)


def test_ring_at_the_very_end_of_memory() -> None:
    peer = ready()
    end = GUEST.uaddr + GUEST.size
    peer.send(F.SET_VRING_NUM, VringState(0, 128))
    peer.send(F.SET_VRING_BASE, VringState(0, 0))
    peer.send(F.SET_VRING_ADDR, VringAddr(0, 0, end - 16 * 128, end - 0x1000, end - 0x2000, 0))
    peer.send(F.SET_VRING_KICK, VringFd(0, has_fd=True), fds=1)
    assert peer.session.started == (0,)


def test_iommu_addresses_are_not_judged_here() -> None:
    peer = ready(Options(iommu=True), features=MODERN | V.ACCESS_PLATFORM)
    peer.send(F.SET_VRING_NUM, VringState(0, 128))
    peer.send(F.SET_VRING_BASE, VringState(0, 0))
    peer.send(F.SET_VRING_ADDR, VringAddr(0, 0, 0x1000, 0x3000, 0x2000, 0))
    peer.send(F.SET_VRING_KICK, VringFd(0, has_fd=True), fds=1)
    assert config(peer).addr_kind is a.AddressKind.IOVA


def test_guest_physical_ring_addresses() -> None:
    peer = Peer(Options(gpa_addresses=True))
    peer.negotiate(protocol=int(EVERYTHING | P.GPA_ADDRESSES))
    peer.memory()
    peer.send(F.SET_VRING_NUM, VringState(0, 128))
    peer.send(F.SET_VRING_BASE, VringState(0, 0))
    peer.send(F.SET_VRING_ADDR, VringAddr(0, 0, 0x1000, 0x3000, 0x2000, 0))
    peer.send(F.SET_VRING_KICK, VringFd(0, has_fd=True), fds=1)
    assert config(peer).addr_kind is a.AddressKind.GPA


# Failures below


def test_a_start_that_fails_is_told_and_can_be_tried_again() -> None:
    peer = ready()
    peer.ring(0)
    peer.fail = (a.StartQueue,)
    assert peer.acked(F.SET_VRING_KICK, VringFd(0, has_fd=True), fds=1) == 1
    assert peer.session.started == ()
    peer.fail = ()
    assert peer.acked(F.SET_VRING_KICK, VringFd(0, has_fd=True), fds=1) == 0
    assert peer.session.started == (0,)


def test_a_start_that_fails_unheard_closes() -> None:
    peer = ready()
    peer.ring(0)
    peer.fail = (a.StartQueue,)
    with pytest.raises(ProtocolError, match="SET_VRING_KICK: told to fail"):
        peer.send(F.SET_VRING_KICK, VringFd(0, has_fd=True), fds=1)
    assert peer.session.closed


@pytest.mark.parametrize(("request_", "payload"), [(F.GET_VRING_BASE, VringState(0, 0)), (F.RESET_DEVICE, None)])
def test_a_stop_that_fails_closes(request_: F, payload: VringState | None) -> None:
    """Whatever were answered would be untrue: requests may be in flight, memory may still be written."""
    peer = ready()
    peer.start(0)
    peer.fail = (a.StopQueue,)
    with pytest.raises(ProtocolError, match="told to fail"):
        peer.send(request_, payload, need=True)
    assert peer.session.closed


# Rings that do not exist


@pytest.mark.parametrize("index", [4, 255])
def test_rings_beyond_the_last_do_no_harm(index: int) -> None:
    """QEMU sets up as many rings as its user asked for; its own message explains more than a lost connection."""
    peer = ready()
    states = (F.SET_VRING_NUM, F.SET_VRING_BASE, F.SET_VRING_ENABLE, F.SET_VRING_ENDIAN)
    for request in states:
        assert peer.acked(request, VringState(index, 0)) == 1
        assert peer.send(request, VringState(index, 0)) is None
    for request in (F.SET_VRING_KICK, F.SET_VRING_CALL, F.SET_VRING_ERR):
        assert peer.acked(request, VringFd(index, has_fd=True), fds=1) == 1
        assert peer.send(request, VringFd(index, has_fd=True), fds=1) is None
    assert peer.acked(F.SET_VRING_ADDR, VringAddr(index, 0, 0, 0, 0, 0)) == 1
    assert peer.ask(F.GET_VRING_BASE, VringState(index, 0)) == VringState(index, 0)
    assert peer.done == []


@pytest.mark.parametrize("index", [0x10000, 0x10001, 0xFFFFFFFF])
def test_indexes_are_not_cut_to_16_bits(index: int) -> None:
    """CVE-2020-10723 was a 32-bit index cut down to one that exists."""
    peer = ready()
    assert peer.acked(F.SET_VRING_NUM, VringState(index, 16)) == 1
    assert peer.acked(F.SET_VRING_KICK, VringFd(index & ~0x100, has_fd=True), fds=1) == 1
    assert peer.done == []
