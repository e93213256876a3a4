"""Clauses about messages: framing, replies, negotiation, and every message there is."""

from __future__ import annotations

import mmap
import os
import socket
import struct
import time
from contextlib import suppress
from pathlib import Path

from vhost import wire
from vhost.constants import HEADER_SIZE, IotlbType, VirtioFeature
from vhost.constants import FrontendRequest as F
from vhost.constants import ProtocolFeature as P
from vhost.errors import request_name
from vhost.frontend.memory import Memory
from vhost.messages import Config, Inflight, Iotlb, LogBase, MemTable, StateTransfer, VringFd, VringState
from vhost.testing.peer import Failure, Gone, NotOffered, Peer
from vhost.testing.report import Suite, Trial

MESSAGES = Suite()
V1 = VirtioFeature.VERSION_1 | VirtioFeature.PROTOCOL_FEATURES


def same(what: str, got: object, want: object) -> None:
    """Raises: Failure: they differ."""
    if got != want:
        raise Failure(f"{what} is {got!r} instead of {want!r}")


# Framing


@MESSAGES("rst Header", "a reply has version 1, REPLY set, NEED_REPLY clear, and echoes the request")
def _reply_flags(trial: Trial) -> None:
    peer = trial.peer()
    peer.send(F.GET_FEATURES)
    same("the size of GET_FEATURES's answer", len(peer.reply(F.GET_FEATURES).payload), 8)


@MESSAGES("rst Communication", "a message may arrive byte by byte")
def _byte_by_byte(trial: Trial) -> None:
    peer = trial.peer()
    whole = wire.build_header(wire.Header(F.SET_FEATURES, 1, 8)) + struct.pack("=Q", V1)
    for at in range(len(whole)):
        peer.send_bytes(whole[at : at + 1])
        time.sleep(0.0005)
    peer.ask_u64(F.GET_FEATURES)


@MESSAGES("rst Communication", "several messages may arrive at once")
def _several_at_once(trial: Trial) -> None:
    peer = trial.peer()
    ask = wire.build_header(wire.Header(F.GET_FEATURES, 1, 0))
    own = wire.build_header(wire.Header(F.SET_OWNER, 1, 0))
    peer.send_bytes(ask + own + ask + ask)
    answers = {peer.reply(F.GET_FEATURES).u64() for _ in range(3)}
    same("the number of different answers", len(answers), 1)
    peer.silent()


@MESSAGES("rst Communication", "descriptors come with a header's first byte, whenever the rest comes")
def _fds_with_first_byte(trial: Trial) -> None:
    peer = trial.peer().handshake()
    peer.set_features(V1)
    payload = wire.build_payload(VringFd(0, True))
    header = wire.build_header(wire.Header(F.SET_VRING_CALL, 1, len(payload)))
    call = os.eventfd(0)
    try:
        peer.send_bytes(header[:1], [call])
        time.sleep(0.01)
        peer.send_bytes(header[1:])
        time.sleep(0.01)
        peer.send_bytes(payload)
        peer.ask_u64(F.GET_FEATURES)
    finally:
        os.close(call)


# Negotiation


@MESSAGES("rst Starting and stopping rings", "VHOST_USER_F_PROTOCOL_FEATURES (bit 30) is offered")
def _offers_protocol_features(trial: Trial) -> None:
    peer = trial.peer()
    if not peer.ask_u64(F.GET_FEATURES) & VirtioFeature.PROTOCOL_FEATURES:
        raise NotOffered("VHOST_USER_F_PROTOCOL_FEATURES")


@MESSAGES("VIRTIO 6.1", "VERSION_1 is offered")
def _offers_version_1(trial: Trial) -> None:
    if not trial.peer().ask_u64(F.GET_FEATURES) & VirtioFeature.VERSION_1:
        raise Failure("VERSION_1 is not offered; a modern driver cannot use the device")


@MESSAGES("rst VHOST_USER_SET_OWNER", "SET_OWNER may come first or later")
def _owner_first(trial: Trial) -> None:
    peer = trial.peer()
    peer.send(F.SET_OWNER)
    peer.handshake(owner=False)
    peer.set_features(peer.features & V1)


@MESSAGES("rst REPLY_ACK", "a message with NEED_REPLY is answered by u64 0 on success")
def _acknowledges(trial: Trial) -> None:
    peer = trial.peer().handshake()
    peer.need(P.REPLY_ACK)
    same("SET_FEATURES's acknowledgement", peer.code(F.SET_FEATURES, peer.features & V1), 0)
    same("SET_OWNER's acknowledgement", peer.code(F.SET_OWNER), 0)
    peer.silent()


@MESSAGES("rst REPLY_ACK", "without NEED_REPLY no acknowledgement is sent")
def _silent_without_need_reply(trial: Trial) -> None:
    peer = trial.peer().handshake()
    peer.send(F.SET_FEATURES, peer.features & V1)
    peer.send(F.SET_VRING_NUM, VringState(0, 64))
    peer.silent()


@MESSAGES("rst REPLY_ACK", "NEED_REPLY means nothing unless REPLY_ACK is negotiated")
def _silent_without_reply_ack(trial: Trial) -> None:
    peer = trial.peer().handshake(protocol=~P.REPLY_ACK)
    peer.send(F.SET_FEATURES, peer.features & V1, need_reply=True)
    peer.silent()


@MESSAGES("rst REPLY_ACK", "a message with an answer of its own is answered once, NEED_REPLY or not")
def _one_answer(trial: Trial) -> None:
    peer = trial.peer().handshake()
    peer.need(P.REPLY_ACK)
    for request in (F.GET_FEATURES, F.GET_PROTOCOL_FEATURES, *([F.GET_QUEUE_NUM] if P.MQ in peer.protocol else [])):
        peer.ask(request, need_reply=True).u64()
    peer.silent()


@MESSAGES("rst REPLY_ACK", "a refused message is acknowledged with something other than 0")
def _refuses(trial: Trial) -> None:
    peer = trial.peer().handshake()
    peer.need(P.REPLY_ACK)
    peer.set_features(peer.features & V1)
    try:
        code = peer.code(F.SET_VRING_NUM, VringState(200, 64))
    except Gone:
        raise Failure("SET_VRING_NUM of ring 200 ends the connection instead of being refused") from None
    if not code:
        raise Failure("SET_VRING_NUM of ring 200 was acknowledged with 0")


@MESSAGES("rst Features", "negotiation may be repeated with other bits (firmware, then operating system)")
def _renegotiates(trial: Trial) -> None:
    peer = trial.peer().handshake()
    for bits in (V1, V1 | VirtioFeature.INDIRECT_DESC, V1, peer.features & ~VirtioFeature.LOG_ALL):
        peer.set_features(bits & peer.features)
    again = peer.ask_u64(F.GET_FEATURES)
    same("the second answer to GET_FEATURES", hex(again), hex(peer.features))


@MESSAGES("rst Multiple queue support", "GET_QUEUE_NUM is a number of at least 1")
def _queue_num(trial: Trial) -> None:
    peer = trial.peer().handshake()
    peer.need(P.MQ)
    if not 1 <= (number := peer.ask_u64(F.GET_QUEUE_NUM)) <= 0x8000:
        raise Failure(f"GET_QUEUE_NUM was answered with {number}")


@MESSAGES("rst VHOST_USER_SET_VRING_ENABLE", "rings may be enabled before they are set up (QEMU's net front-end)")
def _enable_early(trial: Trial) -> None:
    peer = trial.peer().handshake()
    if not peer.features & VirtioFeature.PROTOCOL_FEATURES:
        raise NotOffered("VHOST_USER_F_PROTOCOL_FEATURES")
    peer.set_features(peer.features & V1)
    for value in (1, 0, 1):
        peer.ok(F.SET_VRING_ENABLE, VringState(0, value))


@MESSAGES("rst VHOST_USER_RESET_OWNER", "does no harm, though nobody should send it any more")
def _reset_owner(trial: Trial) -> None:
    with trial.peer().handshake() as peer, suppress(Gone):
        peer.send(F.RESET_OWNER)
        peer.ask_u64(F.GET_FEATURES)
    survives(trial, "RESET_OWNER")


# Memory


@MESSAGES("rst VHOST_USER_SET_MEM_TABLE", "a table of 8 regions is taken, and replaced by another")
def _mem_table(trial: Trial) -> None:
    peer = Peer(trial.connect(), memory=Memory(16 << 20, regions=8, hole=1 << 20))
    with peer:
        peer.handshake(protocol=~P.CONFIGURE_MEM_SLOTS)
        peer.set_features(peer.features & V1)
        for _ in range(3):
            peer.mem_table()


@MESSAGES("rst VHOST_USER_SET_MEM_TABLE", "a region may lie at any page of its file (mmap_offset)")
def _mem_offset(trial: Trial) -> None:
    memory = Memory(4 << 20)
    memory.add(1 << 30, 4 << 20, offset=3 * 4096)
    with Peer(trial.connect(), memory=memory) as peer:
        peer.handshake(protocol=~P.CONFIGURE_MEM_SLOTS)
        peer.set_features(peer.features & V1)
        peer.mem_table()


@MESSAGES("rst VHOST_USER_GET_MAX_MEM_SLOTS", "at least 8 slots, the same after reconnecting")
def _mem_slots(trial: Trial) -> None:
    answers = []
    for _ in range(2):
        with trial.peer().handshake() as peer:
            peer.need(P.CONFIGURE_MEM_SLOTS)
            answers.append(peer.ask_u64(F.GET_MAX_MEM_SLOTS))
    same("the second answer", answers[1], answers[0])
    if answers[0] < 8:
        raise Failure(f"only {answers[0]} slots")


@MESSAGES("rst VHOST_USER_ADD_MEM_REG, REM_MEM_REG", "regions come and go, and may come again")
def _mem_regions(trial: Trial) -> None:
    peer = Peer(trial.connect(), memory=Memory(8 << 20, regions=4, hole=1 << 20))
    with peer:
        peer.handshake()
        peer.need(P.CONFIGURE_MEM_SLOTS)
        peer.set_features(peer.features & V1)
        for _ in range(2):
            for region in peer.memory.regions:
                peer.ok(F.ADD_MEM_REG, region.message(), fds=[region.fd])
            for region in peer.memory.regions:
                peer.ok(F.REM_MEM_REG, region.message())


@MESSAGES("rst VHOST_USER_REM_MEM_REG", "a descriptor that comes along (old front-ends) does no harm")
def _mem_remove_with_fd(trial: Trial) -> None:
    peer = trial.peer().handshake()
    peer.need(P.CONFIGURE_MEM_SLOTS)
    peer.set_features(peer.features & V1)
    region = peer.memory.regions[0]
    peer.ok(F.ADD_MEM_REG, region.message(), fds=[region.fd])
    peer.ok(F.REM_MEM_REG, region.message(), fds=[region.fd])


@MESSAGES("rst VHOST_USER_REM_MEM_REG", "an unknown region is refused")
def _mem_remove_unknown(trial: Trial) -> None:
    peer = trial.peer().handshake()
    peer.need(P.CONFIGURE_MEM_SLOTS)
    peer.need(P.REPLY_ACK)
    peer.set_features(peer.features & V1)
    try:
        code = peer.code(F.REM_MEM_REG, peer.memory.regions[0].message())
    except Gone:
        raise Failure("ends the connection instead of being refused") from None
    if not code:
        raise Failure("REM_MEM_REG of a region that was never added was acknowledged with 0")


# Configuration space


@MESSAGES("rst VHOST_USER_GET_CONFIG", "the answer holds exactly the bytes asked for, at any offset")
def _config_pieces(trial: Trial) -> None:
    peer = trial.peer().handshake()
    peer.need(P.CONFIG)
    whole = get_config(peer, 0, 8)
    for offset, size in ((0, 4), (4, 4), (2, 5), (7, 1)):
        same(f"{size} bytes at {offset}", get_config(peer, offset, size), whole[offset : offset + size])


@MESSAGES("rst VHOST_USER_GET_CONFIG", "any flags are taken (rust-vmm's front-ends send 1)")
def _config_flags(trial: Trial) -> None:
    peer = trial.peer().handshake()
    peer.need(P.CONFIG)
    same("the answer to flags 1", get_config(peer, 0, 8, flags=1), get_config(peer, 0, 8))


@MESSAGES("rst VHOST_USER_GET_CONFIG", "what cannot be answered is answered with a payload of 0 bytes")
def _config_error(trial: Trial) -> None:
    peer = trial.peer().handshake()
    peer.need(P.CONFIG)
    try:
        answer = peer.ask(F.GET_CONFIG, Config(0xFFFF_FFF0, 8, 0, bytes(8)))
    except Gone:
        raise Failure("ends the connection") from None
    if answer.payload:
        raise Failure(f"8 bytes at offset 0xfffffff0 were answered with {len(answer.payload)} bytes")
    get_config(peer, 0, 8)


@MESSAGES("rst VHOST_USER_SET_CONFIG", "a write beyond the configuration space is refused")
def _config_write_beyond(trial: Trial) -> None:
    peer = trial.peer().handshake()
    peer.need(P.CONFIG)
    peer.need(P.REPLY_ACK)
    try:
        code = peer.code(F.SET_CONFIG, Config(0xFFFF_FFF0, 8, 0, bytes(8)))
    except Gone:
        raise Failure("ends the connection instead of being refused") from None
    if not code:
        raise Failure("SET_CONFIG of 8 bytes at 0xfffffff0 was acknowledged with 0")


def get_config(peer: Peer, offset: int, size: int, *, flags: int = 0) -> bytes:
    """Bytes of the configuration space. Raises: Failure: the answer is not exactly that."""
    answer = peer.ask(F.GET_CONFIG, Config(offset, size, flags, bytes(size)))
    if len(answer.payload) != 12 + size:
        raise Failure(f"{size} bytes at {offset} were answered with {len(answer.payload)} bytes instead of {12 + size}")
    at, count, _flags = struct.unpack_from("=III", answer.payload)
    same("offset and size in the answer", (at, count), (offset, size))
    return answer.payload[12:]


# Back-end channel, log, inflight, migration


@MESSAGES("rst VHOST_USER_SET_BACKEND_REQ_FD", "a channel is taken and replaced by another")
def _backend_channel(trial: Trial) -> None:
    peer = trial.peer().handshake()
    peer.need(P.BACKEND_REQ)
    for _ in range(2):
        ours, theirs = socket.socketpair()
        with ours, theirs:
            peer.ok(F.SET_BACKEND_REQ_FD, fds=[theirs.fileno()])
            peer.ask_u64(F.GET_FEATURES)


@MESSAGES("rst VHOST_USER_SET_LOG_BASE", "is answered when LOG_SHMFD is negotiated")
def _log_base(trial: Trial) -> None:
    peer = trial.peer().handshake()
    peer.need(P.LOG_SHMFD)
    peer.set_features(peer.features & V1)
    peer.share_memory()
    fd = os.memfd_create("log")
    try:
        os.ftruncate(fd, 4096)
        answer = peer.ask(F.SET_LOG_BASE, LogBase(4096, 0), fds=[fd])
        if len(answer.payload) not in (0, 8, 16):
            raise Failure(f"answered with {len(answer.payload)} bytes")
    finally:
        os.close(fd)


@MESSAGES("rst VHOST_USER_SET_LOG_BASE", "the answer echoes the request's 16 bytes (rust-vmm wants that)")
def _log_base_echo(trial: Trial) -> None:
    peer = trial.peer().handshake()
    peer.need(P.LOG_SHMFD)
    peer.set_features(peer.features & V1)
    peer.share_memory()
    fd = os.memfd_create("log")
    try:
        os.ftruncate(fd, 4096)
        answer = peer.ask(F.SET_LOG_BASE, LogBase(4096, 0), fds=[fd])
        same("the answer", answer.payload, struct.pack("=QQ", 4096, 0))
    finally:
        os.close(fd)


@MESSAGES("rst VHOST_USER_SET_LOG_FD", "an eventfd is taken")
def _log_fd(trial: Trial) -> None:
    peer = trial.peer().handshake()
    peer.need(P.LOG_SHMFD)
    event = os.eventfd(0)
    try:
        peer.ok(F.SET_LOG_FD, fds=[event])
    finally:
        os.close(event)


@MESSAGES("rst VHOST_USER_GET_INFLIGHT_FD", "a zeroed buffer for the asked queues and size comes")
def _inflight_get(trial: Trial) -> None:
    peer = trial.peer().handshake()
    peer.need(P.INFLIGHT_SHMFD)
    peer.set_features(peer.features & V1)
    answer = peer.ask(F.GET_INFLIGHT_FD, Inflight(0, 0, 1, 128))
    if len(answer.payload) != 24:
        raise Failure(f"answered with {len(answer.payload)} bytes instead of 24")
    size, offset, queues, length = struct.unpack_from("=QQHH", answer.payload)
    same("queues and size in the answer", (queues, length), (1, 128))
    if size < 16 + 128 * 16:
        raise Failure(f"{size} bytes are too little for 128 descriptors")
    same("the number of descriptors", len(answer.fds), 1)
    if os.fstat(answer.fds[0]).st_size < offset + size:
        raise Failure(f"the descriptor's file is shorter than {offset} + {size} bytes")
    with mmap.mmap(answer.fds[0], offset + size) as region:
        if any(region[offset : offset + size]):
            raise Failure("the buffer is not zeroed")
    peer.ok(F.SET_INFLIGHT_FD, Inflight(size, offset, 1, 128), fds=[answer.fds[0]])


@MESSAGES("rst VHOST_USER_SET_STATUS, GET_STATUS", "the status last set is what is got")
def _status(trial: Trial) -> None:
    peer = trial.peer().handshake()
    peer.need(P.STATUS)
    for value in (0, 1, 3):
        peer.ok(F.SET_STATUS, value)
        same("GET_STATUS's answer", peer.ask_u64(F.GET_STATUS), value)


@MESSAGES("rst VHOST_USER_RESET_DEVICE", "the device can be used again after a reset, also before the first start")
def _reset_device(trial: Trial) -> None:
    peer = trial.peer().handshake()
    peer.need(P.RESET_DEVICE)
    peer.ok(F.RESET_DEVICE)
    peer.share_memory()
    for _ in range(2):
        peer.set_features(peer.features & V1)
        peer.start(peer.ring(0, 64))
        peer.ok(F.RESET_DEVICE)


@MESSAGES("rst VHOST_USER_SET_DEVICE_STATE_FD", "what was saved can be loaded, with all rings stopped")
def _device_state(trial: Trial) -> None:
    peer = trial.peer().handshake()
    peer.need(P.DEVICE_STATE)
    peer.set_features(peer.features & V1)
    state = transfer(peer, 0)
    peer.close()
    peer = trial.peer().handshake()
    peer.set_features(peer.features & V1)
    transfer(peer, 1, state)


def transfer(peer: Peer, direction: int, state: bytes = b"") -> bytes:
    """Save (0) or load (1) the device's state; returns what was saved."""
    read, write = os.pipe()
    theirs, ours = (write, read) if direction == 0 else (read, write)
    try:
        answer = peer.ask(F.SET_DEVICE_STATE_FD, StateTransfer(direction, 0), fds=[theirs])
    finally:
        os.close(theirs)
    try:
        code = answer.u64()
        if code & 0xFF:
            raise Failure(f"SET_DEVICE_STATE_FD was refused with {code & 0xFF}")
        if not code & 0x100:
            os.close(ours)
            ours = os.dup(answer.fds[0])
        if direction == 0:
            while piece := os.read(ours, 1 << 16):
                state += piece
        else:
            os.write(ours, state)
    finally:
        os.close(ours)
    same("CHECK_DEVICE_STATE's answer", peer.ask_u64(F.CHECK_DEVICE_STATE), 0)
    return state


@MESSAGES("rst VHOST_USER_IOTLB_MSG", "updates and invalidations are answered by u64 0")
def _iotlb(trial: Trial) -> None:
    peer = trial.peer().handshake()
    peer.need_feature(VirtioFeature.ACCESS_PLATFORM)
    peer.set_features(peer.features & (V1 | VirtioFeature.ACCESS_PLATFORM))
    peer.share_memory()
    update = Iotlb(0x10000, 0x10000, peer.memory.uaddr(0), 3, IotlbType.UPDATE)
    same("the answer", peer.ask_u64(F.IOTLB_MSG, update), 0)
    same("the answer", peer.ask_u64(F.IOTLB_MSG, Iotlb(0x10000, 0x10000, 0, 0, IotlbType.INVALIDATE)), 0)


@MESSAGES("rst VHOST_USER_POSTCOPY_ADVISE, LISTEN, END", "a userfault descriptor, then acknowledgements")
def _postcopy(trial: Trial) -> None:
    peer = trial.peer().handshake()
    peer.need(P.PAGEFAULT)
    answer = peer.ask(F.POSTCOPY_ADVISE)
    same("the descriptors of POSTCOPY_ADVISE's answer", len(answer.fds), 1)
    same("POSTCOPY_LISTEN's answer", peer.ask(F.POSTCOPY_LISTEN, need_reply=True).u64(), 0)
    same("POSTCOPY_END's answer", peer.ask(F.POSTCOPY_END, need_reply=True).u64(), 0)


def _only(feature: P, *requests: F) -> None:
    names = ", ".join(request.name for request in requests)

    @MESSAGES("rst " + names, "is taken")
    def check(trial: Trial) -> None:
        peer = trial.peer().handshake()
        peer.need(feature)
        for request in requests:
            body = bytes(16) if request is F.GET_SHARED_OBJECT else b""
            if request is F.GET_SHARED_OBJECT:
                peer.raw(request, body)
                peer.reply(request)
            elif request is F.SET_VRING_ENDIAN:
                peer.ok(request, VringState(0, 0))
            else:
                peer.ok(request, 1500 if request is F.NET_SET_MTU else 0)


_only(P.MTU, F.NET_SET_MTU)
_only(P.RARP, F.SEND_RARP)
_only(P.CROSS_ENDIAN, F.SET_VRING_ENDIAN)
_only(P.SHARED_OBJECT, F.GET_SHARED_OBJECT)


@MESSAGES("rst CRYPTO_SESSION, INBAND_NOTIFICATIONS, GPU", "messages of features that are not negotiated do no harm")
def _foreign_messages(trial: Trial) -> None:
    peer = trial.peer().handshake()
    offered = peer.protocol
    peer.close()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        for request, payload, fds in (
            (F.CREATE_CRYPTO_SESSION, bytes(64), []),
            (F.CLOSE_CRYPTO_SESSION, bytes(8), []),
            (F.VRING_KICK, bytes(8), []),
            (F.GPU_SET_SOCKET, b"", [theirs.fileno()]),
        ):
            if request is F.VRING_KICK and P.INBAND_NOTIFICATIONS in offered:
                continue
            with Peer(trial.connect()) as victim, suppress(Gone):
                victim.handshake()
                victim.raw(request, payload, flags=1, fds=fds)
                victim.closed(QUICK)
            survives(trial, request_name(request))


QUICK = 0.1


# Robustness: after each of these another front-end must be served


def survives(trial: Trial, what: str) -> None:
    """Raises: Failure: the back-end serves nobody after `what`."""
    try:
        with Peer(trial.connect()) as peer:
            peer.ask_u64(F.GET_FEATURES)
    except (OSError, Failure) as error:
        raise Failure(f"after {what} the back-end serves nobody any more ({error})") from error


def _robust(title: str, data: bytes, *, part: bool = False) -> None:
    @MESSAGES("robustness", title)
    def check(trial: Trial) -> None:
        with Peer(trial.connect()) as peer:
            peer.send_bytes(data)
            if part:
                peer.sock.shutdown(socket.SHUT_WR)
            peer.closed(QUICK)
        survives(trial, title)


def _header(request: int, flags: int, size: int) -> bytes:
    return struct.pack("=III", request, flags, size)


_robust("survives a message of version 0", _header(F.GET_FEATURES, 0, 0))
_robust("survives a size of 4 GiB", _header(F.SET_FEATURES, 1, 0xFFFF_FFFF))
_robust("survives an unknown request", _header(9999, 1, 0))
_robust("survives request 0", _header(0, 1, 0))
_robust("survives a reply nobody asked for", _header(F.GET_FEATURES, 5, 8) + bytes(8))
_robust("survives a payload too short for its request", _header(F.SET_VRING_ADDR, 1, 8) + bytes(8))
_robust("survives a header cut off by the end", _header(F.SET_FEATURES, 1, 8)[: HEADER_SIZE // 2], part=True)
_robust("survives a payload cut off by the end", _header(F.SET_FEATURES, 1, 8) + bytes(3), part=True)
_robust("survives a table of 4 billion regions", _header(F.SET_MEM_TABLE, 1, 8) + struct.pack("=II", 0xFFFF_FFFF, 0))


@MESSAGES("robustness", "survives ring numbers that do not exist")
def _bad_ring_numbers(trial: Trial) -> None:
    for request in (F.SET_VRING_NUM, F.SET_VRING_BASE, F.GET_VRING_BASE, F.SET_VRING_ENABLE):
        for index in (255, 256, 65535, 65536, 0xFFFF_FFFF):
            with Peer(trial.connect()) as peer, suppress(Gone):
                peer.handshake()
                peer.send(request, VringState(index, 1))
                peer.closed(0.02)
    survives(trial, "messages about rings that do not exist")


@MESSAGES("robustness", "survives ring addresses outside guest memory")
def _bad_ring_addresses(trial: Trial) -> None:
    for address in (0, 0xDEAD_BEEF_0000, 0xFFFF_FFFF_FFFF_FFF0):
        with Peer(trial.connect()) as peer, suppress(Gone):
            peer.handshake()
            peer.set_features(peer.features & V1)
            peer.share_memory()
            ring = peer.ring(0, 64)
            good = peer.address(ring)
            peer.send(F.SET_VRING_NUM, VringState(0, 64))
            peer.send(F.SET_VRING_ADDR, type(good)(0, 0, address, address, address, 0))
            peer.send(F.SET_VRING_KICK, VringFd(0, True), fds=[ring.kick_fd])
            peer.closed(QUICK)
    survives(trial, "ring addresses outside guest memory")


@MESSAGES("robustness", "survives memory regions that overlap, wrap around, or are longer than their file")
def _bad_regions(trial: Trial) -> None:
    with Memory(4 << 20) as memory:
        good = memory.regions[0]
        for gpa, size, uaddr, offset in (
            (0, (1 << 64) - 4096, good.uaddr, 0),
            ((1 << 64) - 4096, 8192, good.uaddr, 0),
            (0, 64 << 20, good.uaddr, 0),
            (0, 4096, good.uaddr, (1 << 64) - 4096),
            (0, 0, good.uaddr, 0),
        ):
            with Peer(trial.connect()) as peer, suppress(Gone):
                peer.handshake(protocol=~P.CONFIGURE_MEM_SLOTS)
                peer.send(F.SET_MEM_TABLE, MemTable((type(good.message())(gpa, size, uaddr, offset),)), fds=[good.fd])
                peer.closed(QUICK)
    survives(trial, "impossible memory regions")


@MESSAGES("robustness", "descriptors sent again and again are not kept", writes=False)
def _fd_hygiene(trial: Trial) -> None:
    peer = trial.peer().handshake()
    folder = Path(f"/proc/{peer.pid}/fd")
    if peer.pid == os.getpid() or not os.access(folder, os.R_OK):
        raise NotOffered("a back-end in a process of its own that can be looked into")
    peer.set_features(peer.features & V1)
    ring = peer.ring(0, 64)

    def repeat() -> None:
        for _ in range(20):
            for request, fd in ((F.SET_VRING_CALL, ring.call_fd), (F.SET_VRING_ERR, ring.err_fd)):
                peer.ok(request, VringFd(0, True), fds=[fd])
            if P.INFLIGHT_SHMFD in peer.acked_protocol:
                peer.ask(F.GET_INFLIGHT_FD, Inflight(0, 0, 1, 64)).close()
            if P.CONFIGURE_MEM_SLOTS not in peer.acked_protocol:
                peer.mem_table()
            if P.BACKEND_REQ in peer.acked_protocol:
                ours, theirs = socket.socketpair()
                with ours, theirs:
                    peer.ok(F.SET_BACKEND_REQ_FD, fds=[theirs.fileno()])
        peer.ask_u64(F.GET_FEATURES)

    repeat()
    before = len(list(folder.iterdir()))
    repeat()
    after = len(list(folder.iterdir()))
    if after > before + 3:
        raise Failure(f"open descriptors grew from {before} to {after}")


@MESSAGES("robustness", "descriptors nobody asked for are closed")
def _extra_fds(trial: Trial) -> None:
    peer = trial.peer().handshake()
    folder = Path(f"/proc/{peer.pid}/fd")
    if peer.pid == os.getpid() or not os.access(folder, os.R_OK):
        raise NotOffered("a back-end in a process of its own that can be looked into")
    before = len(list(folder.iterdir()))
    event = os.eventfd(0)
    try:
        for _ in range(10):
            peer.send(F.GET_FEATURES, fds=[event] * 4)
            peer.reply(F.GET_FEATURES)
    except Gone:
        return  # closing the connection is a way to get rid of them
    finally:
        os.close(event)
    after = len(list(folder.iterdir()))
    if after > before + 3:
        raise Failure(f"open descriptors grew from {before} to {after}")
