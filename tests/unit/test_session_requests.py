"""Every request of the front-end: what it does, and its answer byte for byte."""

import os
import struct

import pytest
from sessionlib import CONFIG, EVERYTHING, GUEST, MODERN, F, P, Peer, V, addr, description, memfd, ready

from vhost import actions as a
from vhost.constants import MAX_MEM_SLOTS, DeviceType
from vhost.errors import ProtocolError
from vhost.fds import OwnedFd
from vhost.messages import (
    Config,
    Inflight,
    Iotlb,
    LogBase,
    MemRegion,
    MemTable,
    SharedObject,
    ShmemConfig,
    StateTransfer,
    VringFd,
    VringState,
)
from vhost.session import Options, offered_features, offered_protocol_features


def u64_reply(request: int, value: int) -> bytes:
    return struct.pack("=IIIQ", request, 5, 8, value)


OFFERED = 0x40 | MODERN | V.LOG_ALL | V.RING_PACKED


def test_1_get_features() -> None:
    assert Peer().send(F.GET_FEATURES) == u64_reply(1, OFFERED)
    peer = Peer()
    peer.negotiate()
    assert peer.send(F.GET_FEATURES, need=True) == u64_reply(1, OFFERED), "one answer, NEED_REPLY or not"


def test_2_set_features() -> None:
    peer = Peer()
    assert peer.send(F.SET_FEATURES, MODERN | 0x40) is None
    assert peer.last == [a.SetFeatures(MODERN | 0x40)]
    assert peer.session.features == MODERN | 0x40
    peer.send(F.SET_PROTOCOL_FEATURES, P.REPLY_ACK)
    assert peer.send(F.SET_FEATURES, MODERN, need=True) == u64_reply(2, 0)


def test_2_ring_reset_is_tolerated_though_not_offered() -> None:
    """QEMU's vhost-user-gpu acknowledges bit 40 whatever is offered."""
    peer = Peer(device_id=DeviceType.GPU, features=0x3)
    peer.send(F.SET_FEATURES, 0x101_7000_0002)
    assert peer.last == [a.SetFeatures(0x1_7000_0002)]


def test_2_unoffered_features_are_refused_in_words() -> None:
    with pytest.raises(ProtocolError, match=r"SET_FEATURES: .*not offered.*ACCESS_PLATFORM \(33\)"):
        Peer().send(F.SET_FEATURES, MODERN | V.ACCESS_PLATFORM)
    peer = ready()
    assert peer.acked(F.SET_FEATURES, 1 << 63) == 1
    assert peer.session.features == MODERN


def test_3_set_owner() -> None:
    peer = ready()
    assert peer.send(F.SET_OWNER) is None
    assert peer.acked(F.SET_OWNER) == 0
    assert peer.last == []


def test_4_reset_owner_disables_all_rings() -> None:
    peer = ready()
    peer.start(0)
    peer.start(1, enable=False)
    assert peer.send(F.RESET_OWNER) is None
    assert peer.last == [a.DisableQueue(0)]
    assert peer.session.started == (0, 1)
    peer.send(F.SET_VRING_ENABLE, VringState(0, 1))
    assert peer.last == [a.EnableQueue(0)]


def test_5_set_mem_table() -> None:
    peer = ready()
    regions = (GUEST, MemRegion(0x100000, 0x1000, 0, 0x2000))
    assert peer.send(F.SET_MEM_TABLE, MemTable(regions), fds=2) is None
    [action] = peer.last
    assert isinstance(action, a.SetMemTable)
    assert tuple(region.where for region in action.regions) == regions
    assert not action.postcopy
    assert peer.send(F.SET_MEM_TABLE, MemTable(regions), need=True, fds=2) == u64_reply(5, 0)


def test_6_set_log_base_echoes_16_bytes() -> None:
    peer = ready()
    reply = peer.send(F.SET_LOG_BASE, LogBase(0x2000, 0x1000), fds=1)
    assert reply == struct.pack("=IIIQQ", 6, 5, 16, 0x2000, 0x1000)
    [action] = peer.last
    assert isinstance(action, a.SetLog)
    assert (action.size, action.offset) == (0x2000, 0x1000)
    assert peer.send(F.SET_LOG_BASE, LogBase(0x2000, 0x1000), fds=1, need=True) == reply


def test_6_without_log_shmfd_there_is_no_answer() -> None:
    peer = Peer()
    peer.negotiate(protocol=int(EVERYTHING & ~P.LOG_SHMFD))
    assert peer.send(F.SET_LOG_BASE, LogBase(0x2000, 0), fds=1) is None
    assert peer.acked(F.SET_LOG_BASE, LogBase(0x2000, 0), fds=1) == 0
    with pytest.raises(ProtocolError, match="must come as shared memory"):
        peer.send(F.SET_LOG_BASE, 0x1234)


def test_7_set_log_fd() -> None:
    peer = ready()
    assert peer.send(F.SET_LOG_FD, fds=1) is None
    assert peer.kinds() == ["SetLogFd"]
    assert peer.acked(F.SET_LOG_FD) == 1, "no descriptor"


def test_8_to_12_a_ring_starts() -> None:
    peer = ready()
    peer.send(F.SET_VRING_NUM, VringState(1, 256))
    peer.send(F.SET_VRING_BASE, VringState(1, 77))
    peer.send(F.SET_VRING_ADDR, addr(1, log=0x5000))
    assert peer.done == []
    fd = memfd()
    assert peer.send(F.SET_VRING_KICK, VringFd(1, has_fd=True), fds=[fd]) is None
    kick, start = peer.last
    assert isinstance(kick, a.SetKick)
    assert kick.index == 1
    at = addr(1)
    assert start == a.StartQueue(
        a.QueueConfig(
            index=1, size=256, packed=False, base=77, desc=at.desc, avail=at.avail, used=at.used,
            addr_kind=a.AddressKind.UADDR, features=MODERN, enabled=False, log=False, log_addr=0x5000, polled=False,
        )
    )  # fmt: skip
    assert peer.session.started == (1,)


@pytest.mark.parametrize("request_", [F.SET_VRING_NUM, F.SET_VRING_BASE])
def test_8_10_acknowledgement(request_: F) -> None:
    assert ready().send(request_, VringState(0, 16), need=True) == u64_reply(request_, 0)


def test_9_acknowledgement() -> None:
    assert ready().send(F.SET_VRING_ADDR, addr(0), need=True) == u64_reply(9, 0)


def test_11_get_vring_base_stops_and_may_come_twice() -> None:
    peer = ready()
    peer.start(2)
    assert peer.send(F.GET_VRING_BASE, VringState(2, 0)) == struct.pack("=IIIII", 11, 5, 8, 2, 0x1234)
    assert peer.last == [a.StopQueue(2, drain=True)]
    assert peer.session.started == ()
    assert peer.send(F.GET_VRING_BASE, VringState(2, 0), need=True) == struct.pack("=IIIII", 11, 5, 8, 2, 0x1234)
    assert peer.last == []


def test_11_of_a_ring_that_never_ran() -> None:
    peer = ready()
    assert peer.ask(F.GET_VRING_BASE, VringState(0, 0)) == VringState(0, 0)
    peer.send(F.SET_VRING_BASE, VringState(0, 9))
    assert peer.ask(F.GET_VRING_BASE, VringState(0, 0)) == VringState(0, 9)


@pytest.mark.parametrize(
    ("request_", "kind"), [(F.SET_VRING_KICK, a.SetKick), (F.SET_VRING_CALL, a.SetCall), (F.SET_VRING_ERR, a.SetErr)]
)
def test_12_to_14_descriptors(request_: F, kind: type) -> None:
    peer = ready()
    assert peer.send(request_, VringFd(3, has_fd=True), fds=1, need=True) == u64_reply(request_, 0)
    [action] = peer.last
    assert isinstance(action, kind)
    assert action.index == 3
    assert isinstance(action.fd, OwnedFd)
    peer.send(request_, VringFd(3, has_fd=False))
    assert peer.last == [kind(3, None)]
    assert peer.acked(request_, VringFd(3, has_fd=True)) == 1, "a descriptor was announced and none came"


def test_15_16_protocol_features() -> None:
    peer = Peer()
    assert peer.send(F.GET_PROTOCOL_FEATURES) == u64_reply(15, int(EVERYTHING))
    assert peer.send(F.SET_PROTOCOL_FEATURES, P.MQ | P.REPLY_ACK) is None
    assert peer.last == [a.SetProtocolFeatures(0x9)]
    assert peer.session.protocol_features == P.MQ | P.REPLY_ACK
    assert peer.acked(F.SET_PROTOCOL_FEATURES, P.XEN_MMAP) == 1
    assert peer.session.protocol_features == P.MQ | P.REPLY_ACK


def test_16_reply_ack_counts_for_the_message_that_brings_it() -> None:
    assert Peer().send(F.SET_PROTOCOL_FEATURES, P.REPLY_ACK, need=True) == u64_reply(16, 0)
    assert Peer().send(F.SET_PROTOCOL_FEATURES, P.MQ, need=True) is None


def test_17_get_queue_num_counts_rings() -> None:
    assert Peer().send(F.GET_QUEUE_NUM) == u64_reply(17, 4)


def test_18_set_vring_enable() -> None:
    peer = ready()
    peer.start(0, enable=False)
    assert peer.acked(F.SET_VRING_ENABLE, VringState(0, 1)) == 0
    assert peer.last == [a.EnableQueue(0)]
    peer.send(F.SET_VRING_ENABLE, VringState(0, 1))
    assert peer.last == []
    peer.send(F.SET_VRING_ENABLE, VringState(0, 0))
    assert peer.last == [a.DisableQueue(0)]
    assert peer.acked(F.SET_VRING_ENABLE, VringState(0, 2)) == 1


def test_19_send_rarp() -> None:
    peer = ready(device_id=1)
    peer.send(F.SEND_RARP, int.from_bytes(b"\x52\x54\x00\xaa\xbb\xcc\0\0", "little"))
    assert peer.last == [a.SendRarp(b"\x52\x54\x00\xaa\xbb\xcc")]


def test_20_net_set_mtu() -> None:
    peer = ready(device_id=1)
    assert peer.acked(F.NET_SET_MTU, 9000) == 0
    assert peer.last == [a.SetMtu(9000)]
    assert peer.acked(F.NET_SET_MTU, 67) == 1
    assert peer.acked(F.NET_SET_MTU, 65536) == 1


def test_21_set_backend_req_fd() -> None:
    peer = ready()
    assert peer.acked(F.SET_BACKEND_REQ_FD, fds=1) == 0
    assert peer.kinds() == ["SetBackendChannel"]
    assert peer.acked(F.SET_BACKEND_REQ_FD) == 1


def test_22_iotlb_messages_are_always_answered() -> None:
    peer = ready(Options(iommu=True))
    assert peer.session.offered_features & V.ACCESS_PLATFORM
    assert peer.send(F.IOTLB_MSG, Iotlb(0x1000, 0x2000, 0x7000, 3, 2)) == u64_reply(22, 0)
    assert peer.last == [a.IotlbUpdate(0x1000, 0x2000, 0x7000, 3)]
    assert peer.send(F.IOTLB_MSG, Iotlb(0x1000, 0x2000, 0, 0, 3), need=True) == u64_reply(22, 0)
    assert peer.last == [a.IotlbInvalidate(0x1000, 0x2000)]
    for bad in (Iotlb(0, 1, 0, 3, 1), Iotlb(0, 0, 0, 3, 2), Iotlb(2, (1 << 64) - 1, 0, 3, 3), Iotlb(0, 1, 0, 4, 2)):
        assert peer.send(F.IOTLB_MSG, bad) == u64_reply(22, 1)
    assert peer.send(F.IOTLB_MSG, Iotlb(0, 2, (1 << 64) - 1, 3, 2)) == u64_reply(22, 1)
    assert peer.send(F.IOTLB_MSG, Iotlb(0, (1 << 64) - 1, 0, 0, 3)) == u64_reply(22, 0), "everything"
    assert peer.send(F.IOTLB_MSG, Iotlb(0, 0, 0, 0, 3)) == u64_reply(22, 0)
    assert peer.last == [a.IotlbInvalidate(0, 0)], "QEMU's mask of everything plus one is 0"
    assert ready().send(F.IOTLB_MSG, Iotlb(0, 1, 0, 3, 2)) == u64_reply(22, 1), "no IOMMU was offered"


def test_23_set_vring_endian_takes_the_machines_order() -> None:
    peer = ready()
    assert peer.acked(F.SET_VRING_ENDIAN, VringState(0, 0)) == 0
    assert peer.acked(F.SET_VRING_ENDIAN, VringState(0, 1)) == 1


def test_24_get_config() -> None:
    peer = ready()
    reply = peer.send(F.GET_CONFIG, Config(0, 57, 0, bytes(57)))
    assert reply == struct.pack("=IIIIII", 24, 5, 69, 0, 57, 0) + CONFIG[:57]
    assert peer.last == [a.GetConfig(0, 57)]
    assert peer.send(F.GET_CONFIG, Config(58, 4, 1, bytes(4)), need=True) == (
        struct.pack("=IIIIII", 24, 5, 16, 58, 4, 1) + CONFIG[58:] + bytes(2)
    ), "zeros beyond the device's own"
    assert peer.last == [a.GetConfig(58, 2)]
    assert peer.ask(F.GET_CONFIG, Config(200, 56, 0, bytes(56))) == Config(200, 56, 0, bytes(56))
    assert peer.last == []


def test_24_errors_have_no_payload() -> None:
    peer = ready()
    empty = struct.pack("=III", 24, 5, 0)
    assert peer.send(F.GET_CONFIG, Config(200, 57, 0, bytes(57))) == empty
    assert peer.send(F.GET_CONFIG, Config(0xFFFFFFFF, 0xFFFFFFFF, 0, b"")) == empty
    peer.fail = (a.GetConfig,)
    assert peer.send(F.GET_CONFIG, Config(0, 4, 0, bytes(4)), need=True) == empty
    bare = ready(protocol_features=EVERYTHING & ~P.CONFIG, config_size=0)
    bare_reply = bare.send(F.GET_CONFIG, Config(0, 4, 0, bytes(4)))
    assert bare_reply == empty


def test_24_a_larger_buffer_comes_back_as_large() -> None:
    """SPDK's front-end sends 256 bytes whatever it asks for."""
    reply = ready().send(F.GET_CONFIG, Config(0, 8, 0, bytes(256)))
    assert reply == struct.pack("=IIIIII", 24, 5, 268, 0, 8, 0) + CONFIG[:8] + bytes(248)


def test_24_size_without_buffer() -> None:
    assert ready().ask(F.GET_CONFIG, Config(0, 8, 0, b"")) == Config(0, 8, 0, CONFIG[:8])


def test_25_set_config() -> None:
    peer = ready()
    assert peer.acked(F.SET_CONFIG, Config(32, 1, 0, b"\1")) == 0
    assert peer.last == [a.SetConfig(32, b"\1", 0)]
    for bad in (Config(60, 1, 0, b"x"), Config(0, 2, 0, b"x"), Config(0, 0, 0, b""), Config(0xFFFFFFFF, 2, 0, b"xy")):
        assert peer.acked(F.SET_CONFIG, bad) == 1
    peer.fail = (a.SetConfig,)
    assert peer.acked(F.SET_CONFIG, Config(32, 1, 0, b"\1")) == 1


def test_26_27_crypto_sessions_are_refused() -> None:
    peer = ready()
    assert peer.acked(F.CREATE_CRYPTO_SESSION, bytes(100)) == 1
    assert peer.acked(F.CLOSE_CRYPTO_SESSION, 5) == 1
    assert peer.send(F.CLOSE_CRYPTO_SESSION, 5) is None
    with pytest.raises(ProtocolError, match="CREATE_CRYPTO_SESSION: crypto sessions are not supported"):
        peer.send(F.CREATE_CRYPTO_SESSION, bytes(100))


def test_28_to_30_postcopy() -> None:
    peer = Peer()
    peer.negotiate()
    assert peer.send(F.POSTCOPY_ADVISE) == struct.pack("=III", 28, 5, 0)
    assert peer.reply_fds == 1
    assert peer.send(F.POSTCOPY_LISTEN, need=True) == u64_reply(29, 0)
    assert peer.kinds() == ["PostcopyListen"]
    assert peer.send(F.POSTCOPY_END) == u64_reply(30, 0)
    assert peer.kinds() == ["PostcopyEnd"]
    assert peer.send(F.POSTCOPY_END) == u64_reply(30, 1), "not begun"


def test_31_get_inflight_fd() -> None:
    peer = ready()
    reply = peer.send(F.GET_INFLIGHT_FD, Inflight(0, 0, 4, 128))
    assert reply == struct.pack("=IIIQQHH4x", 31, 5, 24, 0x1000, 0, 4, 128)
    assert peer.reply_fds == 1
    assert peer.last == [a.GetInflight(4, 128, packed=False)]


def test_31_refusal_is_an_empty_region() -> None:
    peer = ready()
    assert peer.ask(F.GET_INFLIGHT_FD, Inflight(0, 0, 5, 128)) == Inflight(0, 0, 5, 128)
    assert peer.reply_fds == 0
    assert peer.ask(F.GET_INFLIGHT_FD, Inflight(0, 0, 4, 0)) == Inflight(0, 0, 4, 0)
    peer.fail = (a.GetInflight,)
    assert peer.ask(F.GET_INFLIGHT_FD, Inflight(0, 0, 4, 64)) == Inflight(0, 0, 4, 64)


def test_32_set_inflight_fd() -> None:
    peer = ready()
    assert peer.acked(F.SET_INFLIGHT_FD, Inflight(0x1000, 0x2000, 4, 128), fds=1) == 0
    [action] = peer.last
    assert isinstance(action, a.SetInflight)
    assert (action.size, action.offset, action.num_queues, action.queue_size) == (0x1000, 0x2000, 4, 128)
    for bad in (Inflight(0, 0, 4, 128), Inflight(1, 0, 5, 128), Inflight(1, 0, 4, 2048), Inflight(1 << 63, 0, 4, 128)):
        assert peer.acked(F.SET_INFLIGHT_FD, bad, fds=1) == 1
    assert peer.acked(F.SET_INFLIGHT_FD, Inflight(0x1000, 0, 4, 128)) == 1


def test_33_gpu_set_socket() -> None:
    peer = ready(device_id=DeviceType.GPU)
    assert peer.acked(F.GPU_SET_SOCKET, fds=1) == 0
    assert peer.kinds() == ["SetGpuSocket"]
    assert peer.send(F.GPU_SET_SOCKET, fds=1) is None
    assert ready().acked(F.GPU_SET_SOCKET, fds=1) == 1


def test_34_reset_device() -> None:
    peer = ready()
    peer.start(0)
    peer.start(3)
    assert peer.send(F.RESET_DEVICE) is None
    assert peer.last == [a.StopQueue(0), a.StopQueue(3), a.ResetDevice()]
    assert peer.session.started == ()
    assert not any(ring.enable for ring in peer.session.rings)
    assert peer.ask(F.GET_VRING_BASE, VringState(0, 0)) == VringState(0, 0), "indexes are forgotten"
    assert peer.send(F.RESET_DEVICE, need=True) == u64_reply(34, 0), "twice in a normal boot of QEMU"
    peer.start(0)
    assert peer.session.started == (0,), "memory stayed"


def test_35_in_band_kick() -> None:
    peer = Peer(Options(inband_notifications=True))
    peer.negotiate(protocol=int(EVERYTHING | P.INBAND_NOTIFICATIONS))
    peer.memory()
    assert peer.acked(F.VRING_KICK, VringState(0, 0)) == 0
    assert peer.last == [], "not running: ignored"
    peer.start(0)
    peer.send(F.VRING_KICK, VringState(0, 0))
    assert peer.last == [a.KickQueue(0)]
    assert ready().acked(F.VRING_KICK, VringState(0, 0)) == 1


def test_36_get_max_mem_slots() -> None:
    assert Peer().send(F.GET_MAX_MEM_SLOTS) == u64_reply(36, MAX_MEM_SLOTS)


def test_37_38_memory_regions_come_and_go() -> None:
    peer = Peer()
    peer.negotiate()
    low, high = MemRegion(0, 0x1000, 0x1000, 0), MemRegion(0x1000, 0x1000, 0x9000, 0)
    assert peer.send(F.ADD_MEM_REG, low, fds=1, need=True) == u64_reply(37, 0)
    assert peer.kinds() == ["AddRegion"]
    assert peer.send(F.ADD_MEM_REG, high, fds=1) is None
    assert peer.send(F.REM_MEM_REG, MemRegion(0, 0x1000, 0x1000, 0x5000), need=True) == u64_reply(38, 0)
    assert peer.last == [a.RemoveRegion(low)], "the offset does not count"
    assert peer.acked(F.REM_MEM_REG, low) == 1
    assert peer.acked(F.REM_MEM_REG, high, fds=1) == 0, "old front-ends send the descriptor again"


def test_39_40_status() -> None:
    peer = ready()
    peer.start(0)
    assert peer.send(F.SET_STATUS, 0xF) is None
    assert peer.last == [a.SetStatus(0xF)]
    assert peer.send(F.GET_STATUS) == u64_reply(40, 0xF)
    peer.send(F.SET_STATUS, 0)
    assert peer.session.started == (0,), "0 does not touch rings"
    assert peer.acked(F.SET_STATUS, 0x100) == 1
    peer.session.status = 0x4F
    assert peer.send(F.GET_STATUS) == u64_reply(40, 0x4F)


def test_41_get_shared_object() -> None:
    peer = ready()
    peer.shared_object = OwnedFd(memfd())
    assert peer.send(F.GET_SHARED_OBJECT, SharedObject(bytes(16))) == struct.pack("=III", 41, 5, 0)
    assert peer.reply_fds == 1
    assert peer.last == [a.GetSharedObject(bytes(16))]
    peer.shared_object = None
    assert peer.send(F.GET_SHARED_OBJECT, SharedObject(bytes(16)), need=True) == struct.pack("=III", 41, 5, 0)
    assert peer.reply_fds == 0
    assert peer.send(F.GET_SHARED_OBJECT) == struct.pack("=III", 41, 5, 0), "QEMU forgets the uuid"
    assert peer.last == []


def test_42_43_device_state() -> None:
    peer = ready()
    assert peer.send(F.SET_DEVICE_STATE_FD, StateTransfer(0, 0), fds=1) == u64_reply(42, 0x100)
    assert peer.kinds() == ["SaveState"]
    assert peer.send(F.CHECK_DEVICE_STATE) == u64_reply(43, 0)
    assert peer.last == [a.CheckState()]
    assert peer.send(F.SET_DEVICE_STATE_FD, StateTransfer(1, 0), fds=1, need=True) == u64_reply(42, 0x100)
    assert peer.kinds() == ["LoadState"]
    for bad in (StateTransfer(2, 0), StateTransfer(0, 1)):
        assert peer.send(F.SET_DEVICE_STATE_FD, bad, fds=1) == u64_reply(42, 0x101)
    assert peer.send(F.SET_DEVICE_STATE_FD, StateTransfer(0, 0)) == u64_reply(42, 0x101), "no descriptor"
    peer.fail = (a.CheckState,)
    assert peer.send(F.CHECK_DEVICE_STATE) == u64_reply(43, 1)
    peer.start(0)
    assert peer.send(F.SET_DEVICE_STATE_FD, StateTransfer(0, 0), fds=1) == u64_reply(42, 0x101)
    assert peer.send(F.CHECK_DEVICE_STATE) == u64_reply(43, 1)


def test_44_get_shmem_config() -> None:
    peer = ready(Options(shmem=True), shmem={1: 0x10000})
    assert peer.session.offered_protocol_features & P.SHMEM
    reply = peer.send(F.GET_SHMEM_CONFIG)
    assert reply is not None
    assert reply[:12] == struct.pack("=III", 44, 5, 2056)
    assert peer.ask(F.GET_SHMEM_CONFIG) == ShmemConfig.of({1: 0x10000})
    assert ready(shmem={1: 0x10000}).acked(F.GET_SHMEM_CONFIG) == 1
    assert ready().send(F.GET_SHMEM_CONFIG) is None


def test_45_get_vring_base_skip_drain() -> None:
    peer = ready(Options(inflight_migration=True))
    peer.start(0)
    assert peer.ask(F.GET_VRING_BASE_SKIP_DRAIN, VringState(0, 0)) == VringState(0, 0x1234)
    assert peer.last == [a.StopQueue(0, drain=False)]
    other = ready()
    other.start(0)
    assert other.acked(F.GET_VRING_BASE_SKIP_DRAIN, VringState(0, 0)) == 1
    assert other.session.started == (0,)


def test_11_with_inflight_migration_does_not_drain() -> None:
    peer = Peer(Options(inflight_migration=True))
    peer.negotiate(protocol=int(EVERYTHING | P.GET_VRING_BASE_INFLIGHT))
    peer.memory()
    peer.start(0)
    peer.send(F.GET_VRING_BASE, VringState(0, 0))
    assert peer.last == [a.StopQueue(0, drain=False)]


@pytest.mark.parametrize("request_", [0, 46, 1006, 0xFFFFFFFF])
def test_unknown_requests(request_: int) -> None:
    peer = ready()
    assert peer.raw(request_, b"whatever", flags=9) == u64_reply(request_, 1)
    assert peer.raw(request_, b"", flags=1, fds=2) is None
    assert peer.send(F.GET_QUEUE_NUM) is not None


def test_what_is_never_offered() -> None:
    never = P.XEN_MMAP | P.CROSS_ENDIAN | P.CRYPTO_SESSION | P.INBAND_NOTIFICATIONS | P.GPA_ADDRESSES | P.SHMEM
    peer = Peer(protocol_features=P((1 << 24) - 1), shmem={0: 4096})
    assert not peer.session.offered_protocol_features & never
    assert not peer.session.offered_features & (V.ACCESS_PLATFORM | V.NOTIFICATION_DATA | V.IN_ORDER)


def test_options_change_the_offer() -> None:
    every = Options(
        iommu=True, inband_notifications=True, shmem=True, gpa_addresses=True, inflight_migration=True,
        without=int(V.RING_PACKED), without_protocol=P.STATUS,
    )  # fmt: skip
    peer = Peer(every, shmem={0: 4096}, protocol_features=P.STATUS | P.INFLIGHT_SHMFD)
    offer = peer.session.offered_protocol_features
    assert offer & P.INBAND_NOTIFICATIONS
    assert offer & P.BACKEND_REQ
    assert offer & P.REPLY_ACK
    assert offer & P.SHMEM
    assert offer & P.GPA_ADDRESSES
    assert offer & P.GET_VRING_BASE_INFLIGHT
    assert not offer & P.STATUS
    assert peer.session.offered_features & V.ACCESS_PLATFORM
    assert not peer.session.offered_features & V.RING_PACKED


def test_iommu_needs_its_channel() -> None:
    peer = Peer(Options(iommu=True, without_protocol=P.BACKEND_REQ))
    assert not peer.session.offered_features & V.ACCESS_PLATFORM


def test_offers_without_a_session() -> None:
    assert offered_features(description(), Options()) == OFFERED
    assert offered_protocol_features(description(), Options()) == EVERYTHING


def test_inband_without_its_companions_closes() -> None:
    peer = Peer(Options(inband_notifications=True))
    with pytest.raises(ProtocolError, match="needs BACKEND_REQ and REPLY_ACK"):
        peer.send(F.SET_PROTOCOL_FEATURES, P.INBAND_NOTIFICATIONS | P.REPLY_ACK)
    assert peer.session.closed


@pytest.mark.parametrize("bad", [{"num_queues": 0}, {"num_queues": 257}, {"config_size": 257}, {"max_queue_size": 0}])
def test_impossible_devices(bad: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="must be"):
        Peer(**bad)


def test_fds_that_the_server_takes_stay_open() -> None:
    peer = ready()
    fd = memfd()
    taken: list[int] = []

    def take(action: a.Action) -> object:
        if isinstance(action, a.SetCall) and action.fd is not None:
            taken.append(action.fd.take())
        return None

    peer.perform = take  # type: ignore[method-assign]
    peer.send(F.SET_VRING_CALL, VringFd(0, has_fd=True), fds=[fd])
    assert taken == [fd]
    os.close(fd)
