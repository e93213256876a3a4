"""Memory regions, dirty log, postcopy at the session."""

import struct

import pytest
from sessionlib import EVERYTHING, GUEST, MODERN, F, P, Peer, V, addr, ready

from vhost import actions as a
from vhost.constants import DeviceType
from vhost.errors import ProtocolError
from vhost.messages import LogBase, MemRegion, MemTable, VringAddr, VringFd, VringState
from vhost.session import Options, Postcopy

END = 1 << 64

BAD_REGIONS = [
    (MemRegion(0, 0, 0, 0), "is empty"),
    (MemRegion(END - 0x1000, 0x2000, 0, 0), "beyond the guest's address space"),
    (MemRegion(1, END - 1, 1, 0), "overflows"),
    (MemRegion(0, 0x1000, END - 0x800, 0), "front-end address"),
    (MemRegion(0, 0x1000, 0, END - 0x800), "file offset"),
    (MemRegion(0, 0x1000, 0, (1 << 63) - 0x1000), "file offset"),
    (MemRegion(0xFF000, 0x2000, 0, 0), "overlaps"),
    (MemRegion(0x10, 0x10, 0, 0), "overlaps"),
]


@pytest.mark.parametrize(("region", "words"), BAD_REGIONS)
def test_bad_regions(region: MemRegion, words: str) -> None:
    peer = ready()
    assert peer.acked(F.ADD_MEM_REG, region, fds=1) == 1
    assert peer.acked(F.SET_MEM_TABLE, MemTable((GUEST, region)), fds=2) == 1
    assert peer.last == []
    with pytest.raises(ProtocolError, match=f"ADD_MEM_REG: .*{words}"):
        peer.send(F.ADD_MEM_REG, region, fds=1)
    assert peer.session.closed


def test_regions_at_the_limits() -> None:
    peer = ready()
    for region in (MemRegion(END - 0x1000, 0x1000, END - 0x1000, 0), MemRegion(0x100000, 1, 5, (1 << 63) - 2)):
        assert peer.acked(F.ADD_MEM_REG, region, fds=1) == 0


@pytest.mark.parametrize("fds", [0, 1, 3, 40])
def test_table_with_the_wrong_number_of_fds(fds: int) -> None:
    peer = ready()
    table = MemTable((GUEST, MemRegion(1 << 30, 0x1000, 0, 0)))
    assert peer.acked(F.SET_MEM_TABLE, table, fds=fds) == 1
    with pytest.raises(ProtocolError, match="2 memory regions came with"):
        peer.send(F.SET_MEM_TABLE, table, fds=fds)


def test_table_without_regions_asks_about_sharing() -> None:
    with pytest.raises(ProtocolError, match=r"no memory regions; is the guest's memory shared \(QEMU: share=on"):
        ready().send(F.SET_MEM_TABLE, MemTable(()))


def test_add_without_fd() -> None:
    assert ready().acked(F.ADD_MEM_REG, MemRegion(1 << 30, 0x1000, 0, 0)) == 1


def test_slots_have_an_end() -> None:
    peer = Peer(max_mem_slots=4)
    peer.negotiate()
    for i in range(4):
        assert peer.acked(F.ADD_MEM_REG, MemRegion(i << 20, 1 << 20, i << 20, 0), fds=1) == 0
    assert peer.acked(F.ADD_MEM_REG, MemRegion(4 << 20, 1 << 20, 4 << 20, 0), fds=1) == 1
    assert peer.acked(F.REM_MEM_REG, MemRegion(2 << 20, 1 << 20, 2 << 20, 0)) == 0
    assert peer.acked(F.ADD_MEM_REG, MemRegion(4 << 20, 1 << 20, 4 << 20, 0), fds=1) == 0
    five = MemTable(tuple(MemRegion(i << 20, 1 << 20, i << 20, 0) for i in range(5)))
    assert peer.acked(F.SET_MEM_TABLE, five, fds=5) == 1


def test_each_queue_pair_says_it_again() -> None:
    """QEMU 7.2 has a device of its own for each pair of a network card's queues, and every one tells of all memory."""
    peer = Peer(device_id=DeviceType.NET)
    peer.negotiate()
    for _ in range(3):
        assert peer.acked(F.ADD_MEM_REG, GUEST, fds=1) == 0
    moved = MemRegion(GUEST.gpa, GUEST.size, GUEST.uaddr + 0x1000, 0)
    assert peer.acked(F.ADD_MEM_REG, moved, fds=1) == 1
    for _ in range(3):
        assert peer.acked(F.REM_MEM_REG, GUEST) == 0
    assert peer.acked(F.ADD_MEM_REG, GUEST, fds=1) == 0
    assert peer.acked(F.REM_MEM_REG, moved) == 1


def test_509_regions() -> None:
    peer = ready()
    for i in range(1, 509):
        assert peer.acked(F.ADD_MEM_REG, MemRegion(i << 30, 1 << 20, i << 30, 0), fds=1) == 0
    assert peer.acked(F.ADD_MEM_REG, MemRegion(509 << 30, 1 << 20, 509 << 30, 0), fds=1) == 1


def test_a_region_that_the_server_cannot_map_is_not_remembered() -> None:
    peer = Peer()
    peer.negotiate()
    peer.fail = (a.AddRegion,)
    assert peer.acked(F.ADD_MEM_REG, GUEST, fds=1) == 1
    peer.fail = ()
    assert peer.acked(F.REM_MEM_REG, GUEST) == 1
    assert peer.acked(F.ADD_MEM_REG, GUEST, fds=1) == 0


def test_a_table_that_the_server_cannot_map_leaves_nothing() -> None:
    peer = ready()
    peer.fail = (a.SetMemTable,)
    assert peer.acked(F.SET_MEM_TABLE, MemTable((MemRegion(1 << 30, 0x1000, 0, 0),)), fds=1) == 1
    peer.fail = ()
    assert peer.acked(F.REM_MEM_REG, GUEST) == 1
    assert peer.acked(F.SET_MEM_TABLE, MemTable((GUEST,)), fds=1) == 0


def test_memory_of_a_running_ring_stays() -> None:
    peer = ready()
    peer.start(0)
    assert peer.acked(F.REM_MEM_REG, GUEST) == 1
    elsewhere = MemRegion(1 << 30, 0x1000, 0, 0)
    assert peer.acked(F.SET_MEM_TABLE, MemTable((elsewhere,)), fds=1) == 1
    assert peer.acked(F.SET_MEM_TABLE, MemTable((GUEST, elsewhere)), fds=2) == 0, "hot-plug without CONFIGURE_MEM_SLOTS"
    assert peer.acked(F.REM_MEM_REG, elsewhere) == 0
    with pytest.raises(ProtocolError, match="running ring 0 lies in the region"):
        peer.send(F.REM_MEM_REG, GUEST)


def test_rem_matches_all_three_members() -> None:
    peer = ready()
    near_misses = (
        MemRegion(GUEST.gpa + 1, GUEST.size, GUEST.uaddr, 0),
        MemRegion(GUEST.gpa, GUEST.size - 1, GUEST.uaddr, 0),
        MemRegion(GUEST.gpa, GUEST.size, GUEST.uaddr + 1, 0),
    )
    for region in near_misses:
        assert peer.acked(F.REM_MEM_REG, region) == 1
    assert peer.acked(F.REM_MEM_REG, GUEST) == 0


def test_not_offered_memory_slots() -> None:
    peer = Peer(Options(without_protocol=P.CONFIGURE_MEM_SLOTS))
    peer.negotiate()
    assert peer.acked(F.ADD_MEM_REG, GUEST, fds=1) == 1


# Dirty log


@pytest.mark.parametrize(
    ("log", "words"),
    [
        (LogBase(0, 0), "is empty"),
        (LogBase(31, 0), "too small, guest memory needs 32"),
        (LogBase(0x1000, END - 0x800), "do not fit a file"),
        (LogBase(END - 1, 0x1000), "do not fit a file"),
    ],
)
def test_bad_logs(log: LogBase, words: str) -> None:
    """CVE-2020-10722 was a size plus offset that wrapped."""
    peer = ready()
    assert peer.acked(F.SET_LOG_BASE, log, fds=1) == 1
    with pytest.raises(ProtocolError, match=words):
        peer.send(F.SET_LOG_BASE, log, fds=1)


def test_smallest_log_and_a_new_one_at_each_poll() -> None:
    """cloud-hypervisor sends a new log whenever it looks at the old one."""
    peer = ready()
    for _ in range(50):
        assert peer.ask(F.SET_LOG_BASE, LogBase(32, 0), fds=1, need=True) == LogBase(32, 0)


def test_log_without_fd() -> None:
    assert ready().acked(F.SET_LOG_BASE, LogBase(32, 0)) == 1


# Postcopy


def listening() -> Peer:
    peer = Peer()
    peer.negotiate()
    peer.send(F.POSTCOPY_ADVISE)
    assert peer.ask(F.POSTCOPY_LISTEN, need=True) == 0
    assert peer.session.postcopy is Postcopy.LISTENING
    return peer


def test_postcopy_memory_table() -> None:
    peer = listening()
    high = MemRegion(1 << 32, 0x1000, 0x1000, 0)
    reply = peer.send(F.SET_MEM_TABLE, MemTable((GUEST, high)), fds=2)
    assert reply == (
        struct.pack("=IIIII", 5, 5, 72, 2, 0)
        + struct.pack("=4Q", 0, GUEST.size, 0x5500_0000_0000, 0)
        + struct.pack("=4Q", 1 << 32, 0x1000, 0x5501_0000_0000, 0)
    )
    assert peer.raw(F.SET_MEM_TABLE, bytes(8)) is None
    assert peer.last == [a.PostcopyRegister()]
    peer.start(0)
    assert peer.session.started == (0,), "the front-end's own addresses stay in force"
    assert peer.ask(F.POSTCOPY_END, need=True) == 0
    assert peer.session.postcopy is Postcopy.OFF
    assert peer.acked(F.SET_MEM_TABLE, MemTable((GUEST, high)), fds=2) == 0, "an ordinary table again"


def test_postcopy_regions_one_by_one() -> None:
    peer = listening()
    for i in range(3):
        region = MemRegion(i << 20, 1 << 20, i << 30, 0)
        reply = peer.send(F.ADD_MEM_REG, region, fds=1)
        assert reply == struct.pack("=III5Q", 37, 5, 40, 0, i << 20, 1 << 20, 0x5500_0000_0000 + (i << 20), 0)
        assert peer.raw(F.ADD_MEM_REG, bytes(8)) is None
        assert peer.last == [a.PostcopyRegister()]


def test_postcopy_acknowledgement_is_not_acknowledged() -> None:
    peer = listening()
    peer.send(F.SET_MEM_TABLE, MemTable((GUEST,)), fds=1)
    assert peer.raw(F.SET_MEM_TABLE, bytes(8), flags=9) is None


@pytest.mark.parametrize(
    ("request_", "data", "fds"),
    [
        (F.GET_FEATURES, b"", 0),
        (F.ADD_MEM_REG, bytes(8), 0),
        (F.SET_MEM_TABLE, struct.pack("=II4Q", 1, 0, 0, 4096, 0, 0), 1),
        (F.SET_MEM_TABLE, bytes(8), 1),
    ],
)
def test_nothing_else_may_come_before_the_acknowledgement(request_: F, data: bytes, fds: int) -> None:
    peer = listening()
    peer.send(F.SET_MEM_TABLE, MemTable((GUEST,)), fds=1)
    with pytest.raises(ProtocolError, match="acknowledgement of SET_MEM_TABLE was due"):
        peer.raw(request_, data, fds=fds)
    assert peer.session.closed


def test_failed_registration_closes() -> None:
    peer = listening()
    peer.send(F.SET_MEM_TABLE, MemTable((GUEST,)), fds=1)
    peer.fail = (a.PostcopyRegister,)
    with pytest.raises(ProtocolError, match="told to fail"):
        peer.raw(F.SET_MEM_TABLE, bytes(8), flags=9)


def test_postcopy_out_of_order() -> None:
    peer = ready()
    assert peer.ask(F.POSTCOPY_LISTEN) == 1, "not advised"
    peer.send(F.POSTCOPY_ADVISE)
    assert peer.ask(F.POSTCOPY_LISTEN, need=True) == 1, "memory was there before"
    assert peer.send(F.POSTCOPY_ADVISE) == struct.pack("=III", 28, 5, 0)
    assert peer.reply_fds == 0, "advised already"
    peer = ready(Options(without_protocol=P.PAGEFAULT))
    assert peer.send(F.POSTCOPY_ADVISE) == struct.pack("=III", 28, 5, 0)
    assert peer.reply_fds == 0
    assert peer.raw(F.ADD_MEM_REG, bytes(8), flags=9) == struct.pack("=IIIQ", 37, 5, 8, 1)


def test_postcopy_that_the_host_cannot_do() -> None:
    peer = Peer()
    peer.negotiate()
    peer.fail = (a.PostcopyAdvise,)
    assert peer.send(F.POSTCOPY_ADVISE) == struct.pack("=III", 28, 5, 0)
    assert peer.reply_fds == 0
    assert peer.session.postcopy is Postcopy.OFF


def test_ring_across_two_regions_is_refused() -> None:
    low = MemRegion(0, 0x1000, 0x10000, 0)
    high = MemRegion(0x1000, 0x1000, 0x11000, 0x1000)
    peer = ready()
    peer.memory(low, high)
    peer.send(F.SET_VRING_NUM, VringState(0, 128))
    peer.send(F.SET_VRING_BASE, VringState(0, 0))
    peer.send(F.SET_VRING_ADDR, VringAddr(0, 0, 0x10C00, 0x10000, 0x10800, 0))
    assert peer.acked(F.SET_VRING_KICK, VringFd(0, has_fd=True), fds=1) == 1


def test_the_offer_is_what_these_tests_stand_on() -> None:
    assert EVERYTHING & P.PAGEFAULT
    assert MODERN & V.PROTOCOL_FEATURES
    assert addr(0).desc >= GUEST.uaddr
