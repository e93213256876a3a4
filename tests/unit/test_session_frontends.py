"""The orders in which real front-ends speak, replayed."""

import itertools

import pytest
from sessionlib import CONFIG, GUEST, MODERN, F, P, Peer, V, addr

from vhost import actions as a
from vhost import wire
from vhost.constants import DeviceType
from vhost.messages import (
    Config,
    Inflight,
    LogBase,
    MemRegion,
    MemTable,
    StateTransfer,
    VringAddr,
    VringFd,
    VringState,
)
from vhost.session import Options

FULL = int(MODERN | 0x40)


def qemu_init(peer: Peer, *, config: int = 57) -> None:
    """`vhost_dev_init` and a device's realize."""
    peer.ask(F.GET_FEATURES)
    offered = peer.ask(F.GET_PROTOCOL_FEATURES)
    assert isinstance(offered, int)
    peer.send(F.SET_PROTOCOL_FEATURES, offered)
    assert peer.ask(F.GET_QUEUE_NUM) == 4
    assert peer.ask(F.GET_MAX_MEM_SLOTS) == 509
    assert peer.acked(F.SET_BACKEND_REQ_FD, fds=1) == 0
    peer.send(F.SET_OWNER)
    peer.ask(F.GET_FEATURES)
    for index in range(4):
        peer.send(F.SET_VRING_CALL, VringFd(index, has_fd=True), fds=1)
        peer.send(F.SET_VRING_ERR, VringFd(index, has_fd=True), fds=1)
    if config:
        assert peer.ask(F.GET_CONFIG, Config(0, config, 0, bytes(config))) == Config(0, config, 0, CONFIG[:config])


def qemu_start(peer: Peer, features: int, *, rings: int, inflight: bool = True, base: int = 0) -> None:
    """`vhost_dev_start` of a blk device of which the guest set up `rings`; STATUS comes along."""
    peer.send(F.SET_FEATURES, features)
    peer.ask(F.GET_STATUS)
    peer.send(F.SET_STATUS, 0xB)
    if inflight:
        area = peer.ask(F.GET_INFLIGHT_FD, Inflight(0, 0, 4, 128))
        assert isinstance(area, Inflight)
        peer.send(F.SET_INFLIGHT_FD, area, fds=1)
    for index in range(4):
        peer.send(F.SET_VRING_CALL, VringFd(index, has_fd=True), fds=1)
    peer.send(F.SET_FEATURES, features)
    assert peer.acked(F.ADD_MEM_REG, GUEST, fds=1) == 0
    for index in range(rings):
        peer.send(F.SET_VRING_NUM, VringState(index, 128))
        peer.send(F.SET_VRING_BASE, VringState(index, base))
        peer.send(F.SET_VRING_ADDR, addr(index))
        peer.send(F.SET_VRING_KICK, VringFd(index, has_fd=True), fds=1)
    for index in range(4):
        assert peer.acked(F.SET_VRING_ENABLE, VringState(index, 1)) == 0
    peer.ask(F.GET_STATUS)
    peer.send(F.SET_STATUS, 0xF)
    for index in range(rings):
        peer.send(F.SET_VRING_CALL, VringFd(index, has_fd=True), fds=1)


def qemu_stop(peer: Peer, *, rings: int) -> None:
    for index in range(4):
        peer.acked(F.SET_VRING_ENABLE, VringState(index, 0))
    for index in range(rings):
        assert peer.ask(F.GET_VRING_BASE, VringState(index, 0)) == VringState(index, peer.base)
    peer.send(F.SET_STATUS, 0)
    assert peer.acked(F.REM_MEM_REG, GUEST) == 0


def starts(peer: Peer) -> list[a.QueueConfig]:
    return [action.config for action in peer.done if isinstance(action, a.StartQueue)]


def test_qemu_blk_boots_firmware_then_linux_twice() -> None:
    """RESET_DEVICE at each virtio reset, also before the first start; SeaBIOS negotiates less than Linux."""
    peer = Peer()
    qemu_init(peer)
    peer.send(F.RESET_DEVICE)
    peer.send(F.RESET_DEVICE)
    qemu_start(peer, 0x1_4000_0040, rings=1)
    assert peer.session.started == (0,)
    qemu_stop(peer, rings=1)
    peer.send(F.RESET_DEVICE)
    for _ in range(2):
        qemu_start(peer, FULL, rings=4)
        assert peer.session.started == (0, 1, 2, 3)
        qemu_stop(peer, rings=4)
        peer.send(F.RESET_DEVICE)
    assert peer.session.started == ()
    assert [config.features for config in starts(peer)] == [0x1_4000_0040] + [FULL] * 8
    assert all(not config.enabled for config in starts(peer)), "ENABLE comes after KICK"


def test_qemu_stops_and_continues_where_it_was() -> None:
    peer = Peer()
    qemu_init(peer)
    qemu_start(peer, FULL, rings=2)
    peer.base = 777
    qemu_stop(peer, rings=2)
    peer.done.clear()
    qemu_start(peer, FULL, rings=2, base=777)
    assert [config.base for config in starts(peer)] == [777, 777]


def test_qemu_migrates_out_and_fails_and_goes_on() -> None:
    peer = Peer()
    qemu_init(peer)
    qemu_start(peer, FULL, rings=2)
    peer.ask(F.SET_LOG_BASE, LogBase(0x8000, 0), fds=1)
    assert peer.acked(F.SET_FEATURES, FULL | V.LOG_ALL) == 0
    for index in range(2):
        assert peer.acked(F.SET_VRING_ADDR, addr(index, log=0xE000 + 0x8000 * index)) == 0
    qemu_stop(peer, rings=2)
    assert peer.ask(F.SET_DEVICE_STATE_FD, StateTransfer(0, 0), fds=1) == 0x100
    assert peer.ask(F.CHECK_DEVICE_STATE) == 0
    qemu_start(peer, FULL, rings=2)
    assert a.SetLogging(False) in peer.done
    assert not starts(peer)[-1].log


def test_qemu_net_repeats_per_pair() -> None:
    """Two queue pairs: everything per-device once, the rest once per pair; ENABLE before SET_FEATURES."""
    peer = Peer(device_id=DeviceType.NET, protocol_features=P.MQ | P.REPLY_ACK | P.CONFIGURE_MEM_SLOTS, config_size=0)
    for pair in range(2):
        peer.ask(F.GET_FEATURES)
        offered = peer.ask(F.GET_PROTOCOL_FEATURES)
        assert isinstance(offered, int)
        peer.send(F.SET_PROTOCOL_FEATURES, offered)
        if pair == 0:
            peer.ask(F.GET_QUEUE_NUM)
        peer.ask(F.GET_MAX_MEM_SLOTS)
        if pair == 0:
            peer.send(F.SET_OWNER)
        peer.ask(F.GET_FEATURES)
        for index in (2 * pair, 2 * pair + 1):
            peer.send(F.SET_VRING_CALL, VringFd(index, has_fd=True), fds=1)
            peer.send(F.SET_VRING_ERR, VringFd(index, has_fd=True), fds=1)
            peer.acked(F.SET_VRING_ENABLE, VringState(index, 1))
    for pair in range(2):
        peer.send(F.SET_FEATURES, FULL)
        if pair == 0:
            assert peer.acked(F.ADD_MEM_REG, GUEST, fds=1) == 0
        for index in (2 * pair, 2 * pair + 1):
            peer.ring(index)
            peer.send(F.SET_VRING_KICK, VringFd(index, has_fd=True), fds=1)
    assert peer.session.started == (0, 1, 2, 3)
    assert all(config.enabled for config in starts(peer))
    assert sum(isinstance(action, a.SetFeatures) for action in peer.done) == 1, "rings of pair 0 run at the second"
    for index in range(4):
        peer.ask(F.GET_VRING_BASE, VringState(index, 0))
        peer.send(F.SET_VRING_ENABLE, VringState(0, 1))
        peer.send(F.SET_VRING_ENABLE, VringState(1, 1))


def test_qemu_asks_for_more_pairs_than_there_are() -> None:
    peer = Peer()
    peer.negotiate()
    for index in range(4, 8):
        peer.send(F.SET_VRING_CALL, VringFd(index, has_fd=True), fds=1)
        peer.send(F.SET_VRING_ERR, VringFd(index, has_fd=True), fds=1)
        assert peer.acked(F.SET_VRING_ENABLE, VringState(index, 1)) == 1
    assert peer.ask(F.GET_VRING_BASE, VringState(7, 0)) == VringState(7, 0)


def test_qemu_gpu_restarts_with_a_new_socket_each_time() -> None:
    peer = Peer(device_id=DeviceType.GPU, features=0x3, config_size=16, num_queues=2)
    peer.negotiate()
    for _ in range(2):
        assert peer.ask(F.GET_CONFIG, Config(0, 16, 0, bytes(16))) == Config(0, 16, 0, CONFIG[:16])
    for _ in range(3):
        peer.send(F.GPU_SET_SOCKET, fds=1)
        peer.send(F.SET_FEATURES, 0x101_7000_0002)
        peer.memory()
        peer.start(0, size=64)
        peer.start(1, size=16)
        for index in range(2):
            peer.send(F.SET_VRING_ENABLE, VringState(index, 0))
            peer.ask(F.GET_VRING_BASE, VringState(index, 0))
        peer.send(F.RESET_DEVICE)
    assert sum(isinstance(action, a.SetGpuSocket) for action in peer.done) == 3


def test_qemu_without_protocol_features() -> None:
    """A back-end whose bit 30 the front-end does not know: one ring, enabled at once."""
    peer = Peer(num_queues=1)
    peer.ask(F.GET_FEATURES)
    peer.send(F.SET_OWNER)
    peer.ask(F.GET_FEATURES)
    peer.send(F.SET_VRING_CALL, VringFd(0, has_fd=True), fds=1)
    peer.send(F.SET_FEATURES, int(V.VERSION_1))
    peer.memory()
    peer.start(0, enable=False)
    assert starts(peer)[0].enabled


def test_cloud_hypervisor_wants_an_answer_to_everything() -> None:
    """NEED_REPLY on all messages from the moment REPLY_ACK is acknowledged; one answer to each."""
    peer = Peer()
    peer.send(F.SET_OWNER)
    peer.ask(F.GET_FEATURES)
    peer.ask(F.GET_PROTOCOL_FEATURES)
    protocol = P.CONFIG | P.MQ | P.CONFIGURE_MEM_SLOTS | P.REPLY_ACK | P.INFLIGHT_SHMFD | P.LOG_SHMFD | P.DEVICE_STATE
    assert peer.acked(F.SET_PROTOCOL_FEATURES, int(protocol)) == 0
    peer.replies = 0
    count = itertools.count(1)

    def one(request: F, payload: object = None, fds: int = 0) -> object:
        answer = peer.ask(request, payload, need=True, fds=fds)  # type: ignore[arg-type]
        assert peer.replies == next(count)
        return answer

    assert one(F.GET_QUEUE_NUM) == 4
    assert one(F.GET_CONFIG, Config(0, 60, 1, bytes(60))) == Config(0, 60, 1, CONFIG)
    # LOG_ALL is acknowledged from the start, without a log
    assert one(F.SET_FEATURES, int(MODERN | V.LOG_ALL | 0x40)) == 0
    table = MemTable(tuple(MemRegion(i << 24, 1 << 24, i << 24, 0) for i in range(32)))
    assert one(F.SET_MEM_TABLE, table, fds=32) == 0
    for index in range(4):
        assert one(F.SET_VRING_NUM, VringState(index, 128)) == 0
    area = one(F.GET_INFLIGHT_FD, Inflight(0, 0, 4, 128))
    assert one(F.SET_INFLIGHT_FD, area, fds=1) == 0
    for index in range(4):
        at = 0x8000 * (index + 1)
        place = VringAddr(index, 0, at, at + 0x6000, at + 0x5000, 0)
        assert one(F.SET_VRING_ADDR, place) == 0
        assert one(F.SET_VRING_BASE, VringState(index, 12)) == 0
        if index:  # a queue without an MSI-X vector gets no call descriptor at all
            assert one(F.SET_VRING_CALL, VringFd(index, has_fd=True), fds=1) == 0
        assert one(F.SET_VRING_KICK, VringFd(index, has_fd=True), fds=1) == 0
    for index in range(4):
        assert one(F.SET_VRING_ENABLE, VringState(index, 1)) == 0
    assert peer.session.started == (0, 1, 2, 3)
    # pause and resume
    for num in (0, 1):
        for index in range(4):
            assert one(F.SET_VRING_ENABLE, VringState(index, num)) == 0
    # a dirty-log poll: a new log each time
    for _ in range(3):
        assert one(F.SET_LOG_BASE, LogBase((32 << 24) // 0x8000 + 1, 0), fds=1) == LogBase((32 << 24) // 0x8000 + 1, 0)
    # memory hot-plug
    assert one(F.ADD_MEM_REG, MemRegion(1 << 32, 1 << 24, 1 << 32, 0), fds=1) == 0
    # snapshot
    for index in range(4):
        assert one(F.GET_VRING_BASE, VringState(index, 0)) == VringState(index, 0x1234)
    assert one(F.SET_DEVICE_STATE_FD, StateTransfer(0, 0), fds=1) == 0x100
    assert one(F.CHECK_DEVICE_STATE) == 0


def test_cloud_hypervisor_generic_reads_config_anywhere() -> None:
    """It dies if a read fails."""
    peer = Peer(config_size=5)
    peer.negotiate()
    for offset in range(0, 256, 4):
        answer = peer.ask(F.GET_CONFIG, Config(offset, 4, 0, bytes(4)), need=True)
        assert isinstance(answer, Config)
        assert len(answer.data) == 4


def test_firecracker() -> None:
    """CONFIG only, no REPLY_ACK: nothing is answered that has no answer of its own."""
    peer = Peer()
    peer.send(F.SET_OWNER)
    peer.ask(F.GET_FEATURES)
    peer.ask(F.GET_PROTOCOL_FEATURES)
    assert peer.send(F.SET_PROTOCOL_FEATURES, int(P.CONFIG)) is None
    assert peer.ask(F.GET_CONFIG, Config(0, 60, 1, bytes(60))) == Config(0, 60, 1, CONFIG)
    assert peer.send(F.SET_FEATURES, int(V.VERSION_1 | V.EVENT_IDX | V.PROTOCOL_FEATURES)) is None
    peer.memory()
    for request, payload, fds in (
        (F.SET_VRING_NUM, VringState(0, 256), 0),
        (F.SET_VRING_ADDR, addr(0), 0),
        (F.SET_VRING_BASE, VringState(0, 0), 0),
        (F.SET_VRING_CALL, VringFd(0, has_fd=True), 1),
        (F.SET_VRING_KICK, VringFd(0, has_fd=True), 1),
        (F.SET_VRING_ENABLE, VringState(0, 1), 0),
    ):
        assert peer.send(request, payload, fds=fds, need=True) is None
    assert peer.session.started == (0,)
    assert peer.kinds() == ["EnableQueue"]


def test_crosvm() -> None:
    peer = Peer(Options(shmem=True), device_id=DeviceType.GPU, shmem={1: 1 << 30})
    peer.send(F.SET_OWNER)
    peer.ask(F.GET_FEATURES)
    peer.ask(F.GET_PROTOCOL_FEATURES)
    peer.send(F.SET_PROTOCOL_FEATURES, int(P.CONFIG | P.MQ | P.BACKEND_REQ | P.DEVICE_STATE | P.SHMEM | P.REPLY_ACK))
    peer.ask(F.GET_SHMEM_CONFIG)
    peer.send(F.SET_BACKEND_REQ_FD, fds=1)
    for offset in (0, 4, 8, 12):
        peer.ask(F.GET_CONFIG, Config(offset, 4, 1, bytes(4)))
    peer.send(F.SET_FEATURES, int(V.VERSION_1 | V.EVENT_IDX | V.PROTOCOL_FEATURES))
    peer.memory()
    for index in range(4):
        peer.send(F.SET_VRING_NUM, VringState(index, 128))
        peer.send(F.SET_VRING_ADDR, addr(index))
        peer.send(F.SET_VRING_BASE, VringState(index, 0))
        peer.send(F.SET_VRING_CALL, VringFd(index, has_fd=True), fds=1)
        peer.send(F.SET_VRING_KICK, VringFd(index, has_fd=True), fds=1)
        peer.send(F.SET_VRING_ENABLE, VringState(index, 1))
    assert peer.session.started == (0, 1, 2, 3)


@pytest.mark.parametrize("inband", [False, True])
def test_user_mode_linux(inband: bool) -> None:
    """Call descriptors first, the kick only when all rings are set up; in-band: no descriptors at all."""
    peer = Peer(Options(inband_notifications=inband))
    peer.send(F.SET_OWNER)
    peer.ask(F.GET_FEATURES)
    peer.ask(F.GET_PROTOCOL_FEATURES)
    protocol = P.REPLY_ACK | P.BACKEND_REQ | P.CONFIG | (P.INBAND_NOTIFICATIONS if inband else P(0))
    peer.send(F.SET_PROTOCOL_FEATURES, int(protocol))
    assert peer.acked(F.SET_BACKEND_REQ_FD, fds=1) == 0
    for offset in (0, 20, 34):
        assert peer.ask(F.GET_CONFIG, Config(offset, 4, 0, bytes(4)))
    peer.send(F.SET_FEATURES, FULL)
    # its table has room for two regions and says so in the size
    table = MemTable((GUEST,))
    assert peer.raw(F.SET_MEM_TABLE, wire_of(table) + bytes(32), flags=9, fds=1) is not None
    for index in range(2):
        peer.send(F.SET_VRING_CALL, VringFd(index, has_fd=not inband), fds=0 if inband else 1)
        peer.send(F.SET_VRING_NUM, VringState(index, 128))
        peer.send(F.SET_VRING_BASE, VringState(index, 0))
        peer.send(F.SET_VRING_ADDR, addr(index))
    for index in range(2):
        peer.send(F.SET_VRING_KICK, VringFd(index, has_fd=not inband), fds=0 if inband else 1)
        peer.send(F.SET_VRING_ENABLE, VringState(index, 1))
    assert peer.session.started == (0, 1)
    assert [config.polled for config in starts(peer)] == [inband, inband]
    if inband:
        assert peer.acked(F.VRING_KICK, VringState(1, 0)) == 0
        assert peer.last == [a.KickQueue(1)]


def wire_of(table: MemTable) -> bytes:
    return wire.build_payload(table)


def test_dpdk_virtio_user_packed() -> None:
    """MQ, REPLY_ACK, STATUS; the base of a packed ring has its lower half only."""
    peer = Peer(max_queue_size=1024)
    peer.negotiate(protocol=int(P.MQ | P.REPLY_ACK | P.STATUS), features=int(MODERN | V.RING_PACKED))
    peer.memory()
    peer.send(F.SET_STATUS, 0xB)
    for index in range(2):
        peer.send(F.SET_VRING_NUM, VringState(index, 256))
        peer.send(F.SET_VRING_BASE, VringState(index, 0x8000))
        peer.send(F.SET_VRING_ADDR, addr(index))
        peer.send(F.SET_VRING_CALL, VringFd(index, has_fd=True), fds=1)
        peer.send(F.SET_VRING_KICK, VringFd(index, has_fd=True), fds=1)
        peer.send(F.SET_VRING_ENABLE, VringState(index, 1))
    peer.send(F.SET_STATUS, 0xF)
    assert [config.base for config in starts(peer)] == [0x8000_8000, 0x8000_8000]
    assert starts(peer)[0].packed
