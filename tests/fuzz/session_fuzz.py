"""Random messages and descriptors into a Session, random bytes into a Framer.

Invariant: an answer or a ProtocolError, never another exception; exactly one answer where one is due; actions that make
sense (a ring is started once, inside memory, and stopped only if it runs); and not one descriptor left open at the end.

    python tests/fuzz/session_fuzz.py [--seconds 60] [--seed N]        # pytest runs a short piece of it
"""

import argparse
import logging
import os
import random
import sys
import time
from pathlib import Path

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

from vhost import actions as a
from vhost import wire
from vhost.channel import Framer
from vhost.constants import FrontendRequest, ProtocolFeature, VirtioFeature
from vhost.errors import DeviceError, ProtocolError
from vhost.fds import Fds, OwnedFd
from vhost.messages import (
    FRONTEND_SPECS,
    Answer,
    Config,
    Inflight,
    Iotlb,
    Kind,
    LogBase,
    MemRegion,
    MemTable,
    Payload,
    RawMessage,
    SharedObject,
    StateTransfer,
    VringAddr,
    VringFd,
    VringState,
)
from vhost.session import DeviceDescription, Options, Session

F = FrontendRequest
EDGES = [0, 1, 2, 15, 16, 63, 128, 256, 0xFFF, 0x1000, 0xFFFF, 0x10000, 0x7FFFFFFF, 0xFFFFFFFF, 1 << 63, (1 << 64) - 1]
PAGES = [0, 0x1000, 0x8000, 0x10000, 0x100000]
RUNS = F.SET_VRING_NUM, F.SET_VRING_BASE, F.SET_VRING_ADDR, F.SET_VRING_KICK, F.GET_VRING_BASE, F.SET_VRING_ENABLE


class Fuzz:
    """One connection after another, all choices from `rnd`."""

    def __init__(self, rnd: random.Random) -> None:
        self.rnd = rnd
        self.messages = 0
        self.steps: dict[str, int] = {}
        self.connect()

    def connect(self) -> None:
        rnd = self.rnd
        self.options = Options(
            iommu=rnd.random() < 0.2,
            inband_notifications=rnd.random() < 0.2,
            shmem=rnd.random() < 0.2,
            gpa_addresses=rnd.random() < 0.2,
            inflight_migration=rnd.random() < 0.2,
        )
        device = DeviceDescription(
            device_id=rnd.choice([1, 2, 16, 26]),
            num_queues=rnd.choice([1, 2, 5]),
            features=0x40,
            protocol_features=ProtocolFeature((1 << 24) - 1 if rnd.random() < 0.8 else rnd.getrandbits(24)),
            config_size=rnd.choice([0, 60, 256]),
            max_queue_size=rnd.choice([128, 1024, 32768]),
            shmem={1: 4096},
        )
        self.device = device
        self.session = Session(device, self.options)
        self.running: set[int] = set()
        self.regions: list[MemRegion] = []
        self.script: list[tuple[int, Payload, int]] = []
        if rnd.random() < 0.9:
            self.script.append((F.SET_PROTOCOL_FEATURES, int(self.session.offered_protocol_features), 0))
            if rnd.random() < 0.2:
                self.script += [(F.POSTCOPY_ADVISE, None, 0), (F.POSTCOPY_LISTEN, None, 0)]
            features = self.session.offered_features
            without = rnd.choice([VirtioFeature.RING_PACKED, VirtioFeature.ACCESS_PLATFORM, VirtioFeature.LOG_ALL])
            self.script.append((F.SET_FEATURES, features & ~without, 0))
            table = tuple(MemRegion(i * 0x100000, 0x100000, 0x7F00_0000_0000 + i * 0x100000, 0) for i in range(4))
            self.script.append((F.SET_MEM_TABLE, MemTable(table), 4))
            self.script.append((F.SET_MEM_TABLE, MemTable(()), 0))  # postcopy's acknowledgement

    # Choosing

    def word(self, bits: int) -> int:
        mask = (1 << bits) - 1
        value = self.rnd.choice(EDGES) if self.rnd.random() < 0.5 else self.rnd.getrandbits(bits)
        return value & mask

    def index(self) -> int:
        return self.rnd.randrange(self.device.num_queues + 1) if self.rnd.random() < 0.95 else self.word(32)

    def region(self) -> MemRegion:
        rnd = self.rnd
        if self.regions and rnd.random() < 0.2:
            return rnd.choice(self.regions)
        if rnd.random() < 0.1:
            return MemRegion(self.word(64), self.word(64), self.word(64), self.word(64))
        at = rnd.randrange(8) * 0x100000
        return MemRegion(at, rnd.choice([0x100000, 0x10000, 0x1000]), at + 0x7F00_0000_0000, rnd.choice(PAGES))

    def address(self) -> int:
        if self.rnd.random() < 0.05:
            return self.word(64)
        within = self.rnd.choice([0, 0x4000, 0x6000, 0x8000, 0xA000])
        return 0x7F00_0000_0000 + self.rnd.randrange(8) * 0x100000 + within

    def payload(self, kind: Kind, request: int) -> Payload:
        rnd = self.rnd
        match kind:
            case Kind.U64:
                return self.u64(request)
            case Kind.VRING_STATE:
                return VringState(self.index(), rnd.choice([0, 1, 16, 128, 100, 0x8000, 0x80008000, self.word(32)]))
            case Kind.VRING_ADDR:
                flags = rnd.choice([0, 0, 1, self.word(32)])
                return VringAddr(self.index(), flags, self.address(), self.address(), self.address(), self.word(64))
            case Kind.VRING_FD:
                return VringFd(self.index() & ~0x100, rnd.random() < 0.9)
            case Kind.MEM_TABLE:
                return MemTable(tuple(self.region() for _ in range(rnd.choice([0, 1, 1, 1, 2, 3]))))
            case Kind.MEM_REGION:
                return self.region()
            case Kind.LOG_BASE:
                return LogBase(rnd.choice([0x1000, 0x100000, self.word(64)]), rnd.choice([0, self.word(64)]))
            case Kind.IOTLB:
                return Iotlb(self.word(64), self.word(64), self.word(64), rnd.randrange(5), rnd.randrange(6))
            case Kind.CONFIG:
                size = rnd.choice([0, 1, 60, 256, self.word(32)])
                return Config(rnd.choice([0, 32, self.word(32)]), size, self.word(32), bytes(min(size, 256)))
            case Kind.INFLIGHT:
                return Inflight(self.word(64), self.word(64), rnd.randrange(8), rnd.choice([0, 128, 65535]))
            case Kind.STATE_TRANSFER:
                return StateTransfer(rnd.randrange(3), rnd.randrange(2))
            case Kind.SHARED_OBJECT:
                return SharedObject(rnd.randbytes(16))
            case Kind.RAW:
                return rnd.randbytes(rnd.randrange(64))
        return None

    def u64(self, request: int) -> int:
        rnd = self.rnd
        if request == F.SET_FEATURES:
            features = self.session.offered_features
            return features & ~int(VirtioFeature.RING_PACKED) if rnd.random() < 0.5 else features & rnd.getrandbits(64)
        if request == F.SET_PROTOCOL_FEATURES:
            offered = int(self.session.offered_protocol_features)
            return offered if rnd.random() < 0.8 else offered & rnd.getrandbits(24)
        return rnd.choice([0, self.word(64)])

    def ring(self) -> None:
        """Script a ring that may well start."""
        rnd = self.rnd
        index = rnd.randrange(self.device.num_queues)
        at = rnd.choice([0, 0x7F00_0000_0000]) + rnd.randrange(4) * 0x100000
        pieces: list[tuple[int, Payload, int]] = [
            (F.SET_VRING_NUM, VringState(index, rnd.choice([16, 128, 1000])), 0),
            (F.SET_VRING_BASE, VringState(index, rnd.choice([0, 5, 0x80008000])), 0),
            (F.SET_VRING_ADDR, VringAddr(index, rnd.randrange(2), at, at + 0xC000, at + 0x8000, 0x5000), 0),
            (F.SET_VRING_KICK, VringFd(index, has_fd=True), 1),
        ]
        rnd.shuffle(pieces)
        self.script += pieces

    def message(self) -> RawMessage:
        rnd = self.rnd
        if self.script and rnd.random() < 0.98:
            request, scripted, fds = self.script.pop(0)
            owned = Fds([os.memfd_create("fuzz") for _ in range(fds)])
            return RawMessage(request, rnd.choice([1, 9, 9, 9]), wire.build_payload(scripted), owned)
        if rnd.random() < 0.15:
            self.ring()
        request = rnd.choice(RUNS) if rnd.random() < 0.4 else rnd.randrange(1, 46)
        if rnd.random() < 0.02:
            request = self.word(32)
        spec = FRONTEND_SPECS.get(request)
        if spec is None or rnd.random() < 0.01:
            payload = rnd.randbytes(rnd.choice([0, 4, 8, 12, 16, 24, 32, 40, 72, 100]))
            fds = rnd.randrange(3)
        else:
            made = self.payload(rnd.choice(spec.payload), request)
            payload = wire.build_payload(made)
            fds = rnd.choice([spec.fds[0], min(spec.fds[1], 1)])
            if isinstance(made, MemTable):
                fds = len(made.regions)
            if rnd.random() < 0.03:
                fds = rnd.randrange(5)
        flags = rnd.choice([1, 9, 9, 9, 9, 9]) if rnd.random() < 0.99 else rnd.choice([5, 13])
        return RawMessage(request, flags, payload, Fds([os.memfd_create("fuzz") for _ in range(fds)]))

    # Performing

    def perform(self, action: a.Action) -> object:
        rnd = self.rnd
        self.steps[type(action).__name__] = self.steps.get(type(action).__name__, 0) + 1
        if rnd.random() < 0.02:
            if isinstance(action, a.SetMemTable):
                self.regions = []
            raise DeviceError("told to fail")
        match action:
            case a.StartQueue(config=config):
                assert config.index not in self.running
                assert 0 <= config.index < self.device.num_queues
                assert 1 <= config.size <= self.device.max_queue_size
                assert config.packed or not config.size & (config.size - 1)
                self.check_inside(config)
                self.running.add(config.index)
            case a.StopQueue(index=index):
                self.running.remove(index)
                return rnd.getrandbits(16)
            case a.EnableQueue(index=index) | a.DisableQueue(index=index) | a.SetQueueLog(index=index):
                assert index in self.running
            case a.KickQueue(index=index):
                assert index in self.running
            case a.SetMemTable(regions=regions, postcopy=postcopy):
                self.regions = [region.where for region in regions]
                if rnd.random() < 0.3:
                    os.close(regions[0].fd.take())
                return [0x1000] * len(regions) if postcopy else None
            case a.AddRegion(region=region, postcopy=postcopy):
                self.regions.append(region.where)
                return 0x1000 if postcopy else None
            case a.RemoveRegion(where=where):
                self.regions.remove(where)
            case a.GetConfig(offset=offset, size=size):
                assert 0 < size <= self.device.config_size - offset
                return rnd.randbytes(size)
            case a.SetConfig(offset=offset, data=data):
                assert offset + len(data) <= self.device.config_size
            case a.GetInflight(num_queues=num_queues, queue_size=queue_size):
                assert 1 <= num_queues <= self.device.num_queues
                assert 1 <= queue_size <= self.device.max_queue_size
                return a.InflightArea(OwnedFd(os.memfd_create("fuzz")), 4096)
            case a.PostcopyAdvise():
                return OwnedFd(os.memfd_create("fuzz"))
            case a.GetSharedObject():
                return OwnedFd(os.memfd_create("fuzz")) if rnd.random() < 0.5 else None
            case a.SaveState() | a.LoadState() | a.CheckState():
                assert not self.running
        return None

    def check_inside(self, config: a.QueueConfig) -> None:
        if config.addr_kind is a.AddressKind.IOVA:
            return
        gpa = config.addr_kind is a.AddressKind.GPA
        used = 4 if config.packed else 6 + 8 * config.size
        for start, size in ((config.desc, 16 * config.size), (config.used, used)):
            bounds = [(r.gpa if gpa else r.uaddr, r.size) for r in self.regions]
            assert any(low <= start and start + size <= low + length for low, length in bounds)

    def step(self) -> None:
        """One message; a new connection after a ProtocolError, or now and then."""
        raw = self.message()
        self.messages += 1
        postcopy_ack = self.session._state.awaiting_ack is not None
        try:
            message = wire.decode_request(raw)
            with self.session.handle(message) as step:
                result, error = None, None
                try:
                    for action in step.actions:
                        result = self.perform(action)
                except DeviceError as failure:
                    error = failure
                reply = step.finish(result, error)
        except ProtocolError as broken:
            assert broken.reason  # noqa: PT017 - that it is raised is not what is tested
            self.connect()
            return
        self.judge(message, reply, postcopy_ack)
        if self.rnd.random() < 0.005:
            self.connect()

    def judge(self, message: "wire.Message", reply: "wire.Message | None", postcopy_ack: bool) -> None:
        assert set(self.session.started) == self.running
        assert self.session._state.regions == self.regions
        spec = FRONTEND_SPECS.get(message.request)
        acked = message.need_reply and ProtocolFeature.REPLY_ACK in self.session.protocol_features
        due = acked or (spec is not None and spec.answer is Answer.ALWAYS)
        optional = {F.SET_LOG_BASE, F.GET_SHMEM_CONFIG, F.GET_VRING_BASE_SKIP_DRAIN, F.SET_MEM_TABLE, F.ADD_MEM_REG}
        if postcopy_ack:
            assert reply is None
        elif due and (acked or message.request not in optional):
            assert reply is not None, message
        if reply is None:
            return
        with reply.fds:
            assert reply.request == message.request
            assert reply.flags == 5
            data = wire.encode(reply)
            header = wire.parse_header(data[:12])
            wire.decode_reply(RawMessage(header.request, header.flags, data[12:]))


def run(rnd: random.Random, messages: int) -> Fuzz:
    """Send that many messages; raises whatever breaks an invariant."""
    before = set(os.listdir("/proc/self/fd"))
    fuzz = Fuzz(rnd)
    for _ in range(messages):
        fuzz.step()
    assert set(os.listdir("/proc/self/fd")) == before, "descriptors leaked"
    return fuzz


def frame(rnd: random.Random) -> None:
    """The same stream whole, in pieces and byte by byte gives the same messages or the same error."""
    stream = b""
    for _ in range(rnd.randrange(1, 6)):
        size = rnd.choice([0, 8, 40, 4096, 4097])
        flags = 1 if rnd.random() < 0.9 else rnd.getrandbits(32)
        stream += wire.build_header(wire.Header(rnd.getrandbits(6), flags, size)) + bytes(size)
    outcomes = []
    for piece in (len(stream), rnd.randrange(1, 100), 1):
        framer, seen = Framer(), []
        try:
            for i in range(0, len(stream), piece):
                seen += framer.feed(stream[i : i + piece])
            outcomes.append((framer.in_message, len(seen)))
        except ProtocolError as broken:
            outcomes.append((True, broken.reason))
        framer.close()
    assert len(set(outcomes)) == 1, outcomes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    end, seed, total = time.monotonic() + args.seconds, args.seed, 0
    steps: dict[str, int] = {}
    while time.monotonic() < end:
        try:
            fuzz = run(random.Random(seed), 2000)
            frame(random.Random(seed))
        except BaseException:
            print(f"seed {seed}", file=sys.stderr)
            raise
        total += fuzz.messages
        for name, count in fuzz.steps.items():
            steps[name] = steps.get(name, 0) + count
        seed += 1
    print(f"{total} messages, seeds {args.seed} to {seed - 1}")
    for name, count in sorted(steps.items(), key=lambda item: -item[1]):
        print(f"{count:9} {name}")


if __name__ == "__main__":
    main()
