"""Clauses about rings: their states, both layouts, notifications, wrap-around, restart, log and inflight records."""

from __future__ import annotations

import mmap
import os
import select
import socket
import struct
import time
from collections.abc import Callable

from vhost.constants import FLAGS_REPLY, HEADER_SIZE, BackendRequest, HeaderFlag, VirtioFeature
from vhost.constants import FrontendRequest as F
from vhost.constants import ProtocolFeature as P
from vhost.frontend.log import DirtyLog
from vhost.frontend.memory import Memory
from vhost.messages import Inflight, RingBase, VringFd, VringState
from vhost.testing.peer import QUIET, Failure, NotOffered, Peer, Ring
from vhost.testing.report import Suite, Trial

RINGS = Suite()

INDIRECT = VirtioFeature.INDIRECT_DESC
EVENT_IDX = VirtioFeature.EVENT_IDX
PACKED = VirtioFeature.RING_PACKED


# Ring states


@RINGS.layouts("rst Ring states", "a request in an enabled and started ring is served")
def _serves(trial: Trial, features: int) -> None:
    (ring,) = trial.peer().bring_up(features)
    trial.works(ring, 3)


@RINGS.layouts("rst Ring states", "a disabled ring is not processed until it is enabled")
def _disabled(trial: Trial, features: int) -> None:
    peer = trial.peer().handshake()
    if not peer.features & VirtioFeature.PROTOCOL_FEATURES:
        raise NotOffered("VHOST_USER_F_PROTOCOL_FEATURES")
    peer.set_features((features | VirtioFeature.PROTOCOL_FEATURES | VirtioFeature.VERSION_1) & peer.features)
    peer.share_memory()
    ring = peer.start(peer.ring(0, 64), enable=False)
    trial.request(ring)
    ring.nothing()
    peer.enable(ring)
    ring.kick()
    ring.wait()


@RINGS.layouts("rst Ring states", "a ring disabled while it runs pauses, and goes on once enabled")
def _paused(trial: Trial, features: int) -> None:
    peer = trial.peer()
    (ring,) = peer.bring_up(features)
    trial.works(ring)
    for _ in range(2):
        peer.enable(ring, False)
        trial.request(ring)
        ring.nothing()
        peer.enable(ring)
        ring.kick()
        ring.wait()


@RINGS.layouts("rst Ring states", "enabling is enough: requests made meanwhile are found without another kick")
def _enabled_without_kick(trial: Trial, features: int) -> None:
    peer = trial.peer()
    (ring,) = peer.bring_up(features)
    trial.works(ring)
    peer.enable(ring, False)
    trial.request(ring)
    ring.nothing()
    peer.enable(ring)
    ring.wait()


@RINGS("rst Ring states", "without VHOST_USER_F_PROTOCOL_FEATURES in SET_FEATURES rings are enabled at once")
def _enabled_without_bit_30(trial: Trial) -> None:
    peer = trial.peer().handshake(protocol=0)
    peer.set_features(int(VirtioFeature.VERSION_1) & peer.features)
    peer.mem_table()
    trial.works(peer.start(peer.ring(0, 64), enable=False), 2)


@RINGS.layouts("rst Ring states", "requests made before the kick descriptor comes are found if it is already signalled")
def _kicked_before(trial: Trial, features: int) -> None:
    peer = trial.peer().handshake()
    peer.set_features((features | VirtioFeature.PROTOCOL_FEATURES | VirtioFeature.VERSION_1) & peer.features)
    peer.share_memory()
    ring = peer.ring(0, 64)
    trial.request(ring)
    peer.start(ring)
    ring.wait()


@RINGS.layouts("rst VHOST_USER_GET_VRING_BASE", "stops the ring: it is not looked at any more")
def _stopped(trial: Trial, features: int) -> None:
    peer = trial.peer()
    (ring,) = peer.bring_up(features)
    trial.works(ring)
    peer.stop(ring)
    trial.request(ring)
    ring.nothing()
    ring.kick()
    ring.nothing()


@RINGS.layouts("rst VHOST_USER_GET_VRING_BASE", "the base is where the ring stands; from there it can be started again")
def _restarts(trial: Trial, features: int) -> None:
    peer = trial.peer()
    (ring,) = peer.bring_up(features, size=16)
    packed = bool(features & PACKED)
    for done in (5, 4, 20, 7):
        trial.works(ring, done)
        base = peer.stop(ring)
        got = RingBase.decode(base, packed=packed)
        want = RingBase.decode(ring.driver.base(), packed=packed)
        if got != want:
            raise Failure(f"the base is {got} where the driver stands at {want}")
        peer.start(ring, base=base)
    trial.works(ring)


@RINGS.layouts(
    "rst VHOST_USER_GET_VRING_BASE", "what is in flight is completed first, and nothing is written afterwards"
)
def _drains(trial: Trial, features: int) -> None:
    peer = trial.peer()
    (ring,) = peer.bring_up(features, size=256)
    for _ in range(40):
        trial.request(ring, kick=False)
    ring.kick()
    time.sleep(0.001)
    base = peer.stop(ring)
    image = [peer.memory.read(region.gpa, region.size) for region in peer.memory.regions]
    back = 0
    while got := ring.driver.poll():
        back += len(got)
    taken = RingBase.decode(base, packed=bool(features & PACKED))
    if not features & PACKED and taken.avail != back:
        raise Failure(f"the base says {taken.avail} requests were taken, {back} came back")
    time.sleep(QUIET)
    after = [peer.memory.read(region.gpa, region.size) for region in peer.memory.regions]
    own = ring.driver.avail  # our own suppression words moved while we looked
    for region, before, now in zip(peer.memory.regions, image, after, strict=True):
        changed = [
            at for at in range(0, region.size, 4096)
            if before[at : at + 4096] != now[at : at + 4096] and not at <= own - region.gpa < at + 4096
        ]  # fmt: skip
        if changed:
            raise Failure(f"guest memory at {region.gpa + changed[0]:#x} was written after GET_VRING_BASE")


@RINGS("rst VHOST_USER_GET_VRING_BASE", "of a ring that never ran: the base it was given")
def _base_of_idle_ring(trial: Trial) -> None:
    peer = trial.peer().handshake()
    peer.set_features((VirtioFeature.PROTOCOL_FEATURES | VirtioFeature.VERSION_1) & peer.features)
    peer.ok(F.SET_VRING_NUM, VringState(0, 64))
    peer.ok(F.SET_VRING_BASE, VringState(0, 77))
    ring = peer.ring(0, 64)
    if (base := peer.stop(ring)) != 77:
        raise Failure(f"the base is {base} instead of 77")


@RINGS.layouts("rst Ring states", "a stopped device is suspended, and the same connection starts it again")
def _all_stopped(trial: Trial, features: int) -> None:
    peer = trial.peer()
    rings = peer.bring_up(features, queues=1)
    trial.works(rings[0])
    peer.enable(rings[0], False)
    peer.stop(rings[0])
    peer.set_features(peer.acked_features)
    peer.share_memory() if P.CONFIGURE_MEM_SLOTS not in peer.acked_protocol else None
    trial.works(peer.start(peer.ring(0, 32)), 2)


# Layout


@RINGS.layouts("VIRTIO 2.7, 2.8", "indices and wrap counters wrap, many times over")
def _wraps(trial: Trial, features: int) -> None:
    (ring,) = trial.peer().bring_up(features, size=8)
    trial.works(ring, 60)


@RINGS("VIRTIO 2.7.13", "split: the free-running index passes 65535")
def _wraps_at_16_bits(trial: Trial) -> None:
    (ring,) = trial.peer().bring_up(0, size=8, bases=[0xFFFC])
    trial.works(ring, 12)


@RINGS("rst Vring descriptor indices", "packed: a base in the second round is taken")
def _packed_base(trial: Trial) -> None:
    with Peer(trial.connect()).handshake() as peer:
        peer.need_feature(PACKED)
    (ring,) = trial.peer().bring_up(int(PACKED), size=16, bases=[0x0005_0005])
    trial.works(ring, 30)


@RINGS("VIRTIO 2.8.10.1", "packed: a size that is no power of two")
def _packed_odd_size(trial: Trial) -> None:
    with Peer(trial.connect()).handshake() as peer:
        peer.need_feature(PACKED)
    (ring,) = trial.peer().bring_up(int(PACKED), size=37)
    trial.works(ring, 80)


@RINGS.layouts("VIRTIO 2.7", "ring sizes of 4 to 256")
def _sizes(trial: Trial, features: int) -> None:
    for size in (4, 16, 256):
        with Peer(trial.connect()) as peer:
            (ring,) = peer.bring_up(features, size=size)
            trial.works(ring, 3)


@RINGS.layouts("VIRTIO 2.7.5.3, 2.8.7", "indirect descriptors, mixed with direct ones", int(INDIRECT))
def _indirect(trial: Trial, features: int) -> None:
    (ring,) = trial.peer().bring_up(features, size=8)
    for at in range(30):
        trial.works(ring, indirect=at % 3 != 0)


@RINGS.layouts("VIRTIO 2.7.14", "many requests made available at once are all served")
def _batch(trial: Trial, features: int) -> None:
    (ring,) = trial.peer().bring_up(features, size=256)
    for _ in range(3):
        for _ in range(60):
            trial.request(ring, kick=False)
        ring.kick()
        ring.wait(60)


@RINGS("rst Multiple queue support", "every ring serves")
def _every_ring(trial: Trial) -> None:
    with Peer(trial.connect()).handshake() as peer:
        peer.need(P.MQ)
        count = min(peer.ask_u64(F.GET_QUEUE_NUM), 16)
    rings = trial.peer().bring_up(0, queues=count)
    for ring in rings:
        trial.works(ring, 2)


# Memory under rings


@RINGS.layouts(
    "rst Memory region description", "rings and buffers in different regions; buffers that cross adjoining ones"
)
def _regions(trial: Trial, features: int) -> None:
    with Peer(trial.connect(), memory=Memory(8 << 20, regions=4)) as peer:
        (ring,) = peer.bring_up(features)
        trial.works(ring)
        out, in_ = trial.probe.make(peer) if trial.probe else ([], [])
        edge = peer.memory.regions[1].gpa + peer.memory.regions[1].size
        crossing = [(edge - length // 2, length) if length > 1 else (at, length) for at, length in in_]
        if not in_:
            raise NotOffered("a request with a writable buffer")
        ring.submit(out, crossing)
        (used,) = ring.wait()
        assert trial.probe is not None
        trial.probe.judge(peer, crossing, used)


@RINGS("rst VHOST_USER_ADD_MEM_REG", "memory added while a ring runs is used, and removed again")
def _hot_plug(trial: Trial) -> None:
    with Peer(trial.connect()) as peer:
        (ring,) = peer.bring_up(0)
        peer.need(P.CONFIGURE_MEM_SLOTS)
        trial.works(ring)
        region = peer.memory.add(1 << 32, 2 << 20)
        peer.ok(F.ADD_MEM_REG, region.message(), fds=[region.fd])
        out, in_ = trial.probe.make(peer) if trial.probe else ([], [])
        moved = [(region.gpa + 4096 * at, length) for at, (_, length) in enumerate(in_)]
        ring.submit(out, moved)
        (used,) = ring.wait()
        if trial.probe is not None:
            trial.probe.judge(peer, moved, used)
        peer.ok(F.REM_MEM_REG, region.message())
        trial.works(ring, 2)


@RINGS("rst VHOST_USER_SET_MEM_TABLE", "a new table with the same memory does not disturb a running ring")
def _table_while_running(trial: Trial) -> None:
    with Peer(trial.connect()) as peer:
        peer.handshake(protocol=~P.CONFIGURE_MEM_SLOTS)
        peer.set_features((VirtioFeature.PROTOCOL_FEATURES | VirtioFeature.VERSION_1) & peer.features)
        peer.mem_table()
        ring = peer.start(peer.ring(0, 64))
        for _ in range(3):
            trial.works(ring)
            peer.mem_table()
        trial.works(ring)


# Notifications


@RINGS.layouts("VIRTIO 2.7.7, 2.8.10", "a notification comes if it is wanted")
def _notifies(trial: Trial, features: int) -> None:
    (ring,) = trial.peer().bring_up(features)
    trial.works(ring)
    for _ in range(5):
        ring.calls()
        trial.request(ring)
        if not select.select([ring.call_fd], [], [], 5)[0]:
            raise Failure("no notification came for a request that was served" if ring.driver.poll() else "not served")
        ring.wait()


@RINGS.layouts("VIRTIO 2.7.7, 2.8.10", "no notification comes while none is wanted")
def _suppressed(trial: Trial, features: int) -> None:
    (ring,) = trial.peer().bring_up(features)
    trial.works(ring)
    ring.driver.calls_off()
    ring.calls()
    for _ in range(5):
        trial.request(ring)
        end = time.monotonic() + 5
        while not ring.driver.poll():
            if time.monotonic() > end:
                raise Failure("a request was not served")
            time.sleep(0.001)
    time.sleep(0.02)
    if calls := ring.calls():
        raise Failure(f"{calls} notifications came for 5 requests although the driver wants none")


@RINGS.layouts(
    "VIRTIO 2.7.7.1, 2.8.10", "EVENT_IDX: the notification comes when the wanted index is passed", int(EVENT_IDX)
)
def _event_idx(trial: Trial, features: int) -> None:
    (ring,) = trial.peer().bring_up(features)
    trial.works(ring, 2)
    driver = ring.driver
    per = 1
    if features & PACKED:
        assert trial.probe is not None
        out, in_ = trial.probe.make(ring.peer)
        per = len(out) + len(in_)
        word = ring.packed.used_slot + 3 * per | ring.packed.used_wrap << 15 | 2 << 16
        driver.calls_off()
        driver.memory.store(driver.avail, 4, word)
    else:
        driver.calls_off()
        driver.memory.store(driver.avail + 4 + 2 * driver.size, 2, (ring.split.used_seen + 3) & 0xFFFF)
    ring.calls()
    for served in range(1, 5):
        trial.request(ring)
        end = time.monotonic() + 5
        while not driver.poll():
            if time.monotonic() > end:
                raise Failure("a request was not served")
            time.sleep(0.001)
        time.sleep(0.02)
        calls = ring.calls()
        if served < 4 and calls:
            raise Failure(f"a notification came after {served} requests, it was wanted after 4")
        if served == 4 and not calls:
            raise Failure("no notification came when the wanted index was passed")


@RINGS.layouts(
    "VIRTIO 2.7.10, 2.8.10", "EVENT_IDX: no request is lost if the driver kicks only when asked", int(EVENT_IDX)
)
def _kicks_only_when_asked(trial: Trial, features: int) -> None:
    _lossless(trial, features)


@RINGS.layouts("VIRTIO 2.7.10, 2.8.10", "no request is lost if the driver kicks only when asked")
def _kicks_only_when_flagged(trial: Trial, features: int) -> None:
    _lossless(trial, features)


def _lossless(trial: Trial, features: int) -> None:
    (ring,) = trial.peer().bring_up(features, size=64)
    if trial.probe is None:
        raise NotOffered("a harmless request")
    for at in range(300):
        out, in_ = trial.probe.make(ring.peer)
        ring.driver.add(out, in_, at)
        if ring.driver.publish():
            ring.kick()
        if at % 7 == 0:
            time.sleep(0.0005)
        ring.wait()
        for address, _ in (*out, *in_):
            ring.peer.memory.free(address)


@RINGS("rst VHOST_USER_SET_VRING_CALL", "without a descriptor requests are served, and nobody is notified")
def _call_without_fd(trial: Trial) -> None:
    peer = trial.peer().handshake()
    peer.set_features((VirtioFeature.PROTOCOL_FEATURES | VirtioFeature.VERSION_1) & peer.features)
    peer.share_memory()
    ring = peer.start(peer.ring(0, 64), call=False)
    trial.works(ring, 3)


@RINGS("rst VHOST_USER_SET_VRING_CALL", "the descriptor may be exchanged while the ring runs")
def _call_exchanged(trial: Trial) -> None:
    peer = trial.peer()
    (ring,) = peer.bring_up(0)
    trial.works(ring)
    fresh = os.eventfd(0, os.EFD_NONBLOCK)
    old, ring.call_fd = ring.call_fd, fresh
    peer.ok(F.SET_VRING_CALL, VringFd(0, True), fds=[fresh])
    os.close(old)
    ring.calls()
    trial.request(ring)
    if not select.select([fresh], [], [], 5)[0]:
        raise Failure("no notification came on the new descriptor")
    ring.wait()


@RINGS("rst VHOST_USER_SET_VRING_KICK", "without a descriptor (bit 8) the ring is polled")
def _kick_without_fd(trial: Trial) -> None:
    peer = trial.peer().handshake()
    peer.set_features((VirtioFeature.PROTOCOL_FEATURES | VirtioFeature.VERSION_1) & peer.features)
    peer.share_memory()
    ring = peer.ring(0, 64)
    peer.set_up(ring)
    peer.ok(F.SET_VRING_KICK, VringFd(0, False))
    peer.enable(ring)
    trial.request(ring, kick=False)
    ring.wait(timeout=2)


@RINGS("rst VHOST_USER_VRING_KICK, VRING_CALL", "in-band notifications work where eventfds cannot")
def _in_band(trial: Trial) -> None:
    peer = trial.peer().handshake(inband=True)
    peer.need(P.INBAND_NOTIFICATIONS)
    peer.set_features((VirtioFeature.PROTOCOL_FEATURES | VirtioFeature.VERSION_1) & peer.features)
    peer.share_memory()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        peer.ok(F.SET_BACKEND_REQ_FD, fds=[theirs.fileno()])
        ring = peer.ring(0, 64)
        peer.set_up(ring, call=False)
        peer.ok(F.SET_VRING_KICK, VringFd(0, False))
        peer.enable(ring)
        peer.ok(F.VRING_KICK, VringState(0, 0))
        for _ in range(3):
            trial.request(ring, kick=False)
            peer.ok(F.VRING_KICK, VringState(0, 0))
            ring.wait()
            ours.settimeout(5)
            try:
                message = ours.recv(HEADER_SIZE + 8)
            except TimeoutError:
                raise Failure("no VRING_CALL came on the back-end's channel") from None
            request, flags, _size, index, _ = struct.unpack("=IIIII", message)
            if (request, index) != (BackendRequest.VRING_CALL, 0):
                raise Failure(f"message {request} for ring {index} came instead of VRING_CALL for ring 0")
            if flags & HeaderFlag.NEED_REPLY:
                ours.sendall(struct.pack("=IIIQ", request, FLAGS_REPLY, 8, 0))


# Dirty log


@RINGS.layouts("rst Migration", "written buffers and the used ring are marked in the log of a running ring")
def _dirty_log(trial: Trial, features: int) -> None:
    peer = trial.peer()
    (ring,) = peer.bring_up(features)
    peer.need(P.LOG_SHMFD)
    peer.need_feature(VirtioFeature.LOG_ALL)
    trial.works(ring)
    log = DirtyLog(peer.memory.regions[-1].gpa + peer.memory.regions[-1].size)
    try:
        peer.ask(F.SET_LOG_BASE, log.message(), fds=[log.fd])
        peer.ok(F.SET_FEATURES, peer.acked_features | VirtioFeature.LOG_ALL)
        peer.ok(F.SET_VRING_ADDR, peer.address(ring, log=True))
        log.clear()
        far = peer.memory.alloc(16 * 4096, 4096)  # buffers in pages of their own
        out, in_ = trial.probe.make(peer) if trial.probe else ([], [])
        apart = [(far + 2 * 4096 * at, length) for at, (_, length) in enumerate(in_)]
        ring.submit(out, apart)
        ring.wait()
        for at, length in apart:
            if not log.is_dirty(at, length):
                raise Failure(f"the {length} bytes written at {at:#x} are not marked")
        used = ring.driver.desc if features & PACKED else ring.driver.used
        if not features & PACKED and not log.is_dirty(used, 4):
            raise Failure("the used ring is not marked")
        if log.is_dirty(far + 15 * 4096):
            raise Failure("a page that nobody wrote to is marked")
        peer.ok(F.SET_FEATURES, peer.acked_features)
        peer.ok(F.SET_VRING_ADDR, peer.address(ring))
        trial.works(ring)
        log.clear()
        trial.works(ring)
        if log.pages():
            raise Failure("pages are still marked after LOG_ALL was taken back")
    finally:
        log.close()


# Inflight


@RINGS("rst Inflight I/O tracking", "split: a request recorded as in flight is served again after a restart")
def _inflight_split(trial: Trial) -> None:
    peer = trial.peer().handshake()
    peer.need(P.INFLIGHT_SHMFD)
    peer.set_features((VirtioFeature.PROTOCOL_FEATURES | VirtioFeature.VERSION_1) & peer.features)
    peer.share_memory()
    ring = peer.ring(0, 16)
    answer = peer.ask(F.GET_INFLIGHT_FD, Inflight(0, 0, 1, 16))
    size, offset, _, _ = struct.unpack_from("=QQHH", answer.payload)
    fd = answer.fds[0]
    # three requests were taken by a back-end that died: the second one (head known) came back, two did not
    heads = []
    for _ in range(3):
        in_ = trial.request(ring, kick=False)
        heads.append(max(ring.driver.tokens))
        del in_
    driver = ring.split
    done = heads[1]
    driver.memory.store(driver.used + 4, 4, done)
    driver.memory.store(driver.used + 8, 4, 0)
    driver.memory.store(driver.used + 2, 2, 1)
    with mmap.mmap(fd, offset + size) as region:
        struct.pack_into("=QHHHH", region, offset, 0, 1, 16, done, 1)
        for counter, head in enumerate(heads):
            struct.pack_into("=B5xHQ", region, offset + 16 + 16 * head, int(head != done), 0, counter + 1)
    peer.ok(F.SET_INFLIGHT_FD, Inflight(size, offset, 1, 16), fds=[fd])
    peer.start(ring, base=3)
    ring.kick()
    back = {used.id for used in ring.wait(3)}
    if back != set(heads):
        raise Failure(f"requests {sorted(back)} came back instead of {sorted(heads)}")
    trial.works(ring, 3)


@RINGS.layouts("rst Inflight I/O tracking", "the record shows nothing in flight after all came back")
def _inflight_clean(trial: Trial, features: int) -> None:
    peer = trial.peer().handshake()
    peer.need(P.INFLIGHT_SHMFD)
    wanted = features | VirtioFeature.PROTOCOL_FEATURES | VirtioFeature.VERSION_1
    peer.set_features(wanted & peer.features)
    peer.share_memory()
    answer = peer.ask(F.GET_INFLIGHT_FD, Inflight(0, 0, 1, 16))
    size, offset, _, _ = struct.unpack_from("=QQHH", answer.payload)
    peer.ok(F.SET_INFLIGHT_FD, Inflight(size, offset, 1, 16), fds=[answer.fds[0]])
    ring = peer.start(peer.ring(0, 16))
    trial.works(ring, 40)
    start, step = (32, 32) if features & PACKED else (16, 16)
    with mmap.mmap(answer.fds[0], offset + size) as region:
        version, count = struct.unpack_from("=HH", region, offset + 8)
        if (version, count) != (1, 16):
            raise Failure(f"version and descriptor number of the record are {version} and {count}")
        busy = [at for at in range(16) if region[offset + start + step * at]]
    if busy:
        raise Failure(f"the record says {busy} are in flight although all came back")


# Reconnecting


@RINGS.layouts("rst Communication", "a front-end that went away may come back, and another one too")
def _reconnects(trial: Trial, features: int) -> None:
    for _ in range(3):
        with Peer(trial.connect()) as peer:
            (ring,) = peer.bring_up(features)
            trial.works(ring, 2)


@RINGS("rst Communication", "a front-end may go away with requests in flight")
def _leaves_in_flight(trial: Trial) -> None:
    for _ in range(3):
        with Peer(trial.connect()) as peer:
            (ring,) = peer.bring_up(0, size=256)
            for _ in range(60):
                trial.request(ring, kick=False)
            ring.kick()
    (ring,) = trial.peer().bring_up(0)
    trial.works(ring)


# Robustness


def _survives_ring(title: str) -> Callable[[Callable[[Ring], None]], Callable[[Ring], None]]:
    """Decorator: after what the body does to a running ring another front-end is served."""

    def add(body: Callable[[Ring], None]) -> Callable[[Ring], None]:
        @RINGS("robustness", title)
        def check(trial: Trial) -> None:
            with Peer(trial.connect()) as peer:
                (ring,) = peer.bring_up(int(INDIRECT))
                trial.works(ring)
                body(ring)
                ring.kick()
                peer.closed(0.1)
            (again,) = trial.peer().bring_up(0)
            trial.works(again)

        return body

    return add


@_survives_ring("survives a head beyond the ring")
def _bad_head(ring: Ring) -> None:
    ring.split.offer(60000)
    ring.split.publish()


@_survives_ring("survives an available index that jumps by more than the ring's size")
def _bad_avail(ring: Ring) -> None:
    ring.split.set_avail_idx((ring.split.avail_idx + 30000) & 0xFFFF)


@_survives_ring("survives a chain that loops")
def _bad_loop(ring: Ring) -> None:
    ring.split.write_desc(1, 0, 16, 1, 1)
    ring.split.offer(1)
    ring.split.publish()


@_survives_ring("survives a buffer outside guest memory")
def _bad_buffer(ring: Ring) -> None:
    ring.split.write_desc(1, 0xFFFF_FFFF_FFFF_F000, 0x2000, 0, 0)
    ring.split.offer(1)
    ring.split.publish()


@_survives_ring("survives an indirect table of a length that is no multiple of 16")
def _bad_table(ring: Ring) -> None:
    ring.split.write_desc(1, 0, 17, 4, 0)
    ring.split.offer(1)
    ring.split.publish()
