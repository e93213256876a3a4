"""Load on any vhost-user-net back-end: a C generator on our front-end's rings, and what it costs both sides.

result = await measure("/run/vm0-net.sock", Workload(mode="echo"))
print(result.packets_per_second, result.lost)
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from devices.net._load import ffi, lib
from devices.net.config import NetFeature
from vhost.bench.generate import BackendCost, Calls, Generator, Latency, Measured, Spent, Sum, run_generators
from vhost.constants import ProtocolFeature, VirtioFeature
from vhost.errors import DeviceError, VhostError
from vhost.frontend import Frontend, Memory, NativeRing
from vhost.frontend.core import Target

__all__ = ["MODES", "Result", "Workload", "measure"]

MODES: Final = {
    "tx": "frames out; the back-end takes them",
    "rx": "frames in; the back-end makes them",
    "echo": "frames out, and the same come back on the same card",
    "pair": "frames out of one card, into another; a second socket",
    "duplex": "as pair, both ways at once",
}
_BOTH: Final = ("echo", "pair", "duplex")

_TSO: Final = 1448
"""Payload of a segment, bytes: what Linux has on an MTU of 1500 with time stamps."""
_PLAIN_MAX: Final = 1518
_DRAIN_S: Final = 5
_PROTOCOL: Final = ~int(ProtocolFeature.STATUS)
"""A back-end that was told of device states waits for them."""
_BIG: Final = 65562
"""A receive buffer that holds any frame [VIRTIO 1.3, 5.1.6.3.1]."""
_MAC: Final = b"\x52\x54\x00\xbe\x7c"

_ERRORS: Final = {
    lib.GEN_E_LENGTH: "a frame came back with {info} bytes",
    lib.GEN_E_DATA: "a frame came back with something else at byte {info}",
    lib.NET_LOAD_E_BUFFERS: "a frame said to be in {info} buffers",
}


@dataclass(frozen=True, slots=True)
class Workload:
    """What to do to a card.

    Attributes:
        mode: one of MODES.
        frame: bytes of a frame, 60-65549, from the destination address on and without checksum; of more than 1518 it is
            a TCP segment to be cut (TSO).
        burst: frames given or taken at once, 1-256.
        window: frames under way on each flow that comes back, 1-16384; 0: what the receive buffers hold, up to 256.
        flood: send whatever room there is, without a window; what finds none at the other end is lost.
        pairs, threads: queue pairs of each card; threads share them evenly.
        queue_size: entries.
        packed, event_idx: ring features; event_idx as far as offered.
        mergeable: receive buffers that are merged, of `buffer` bytes; else one holds a frame.
        buffer: bytes of a receive buffer; 0: 4096 mergeable with TSO, 2048 without, else as large as needed.
        poll: the front-end polls; else it sleeps on call eventfds.
        runtime, warmup: seconds.
        rate: frames/s in all, evenly spaced; 0: as fast as they go.
        verify: every frame has contents of its own, which are compared.
        hugepages: guest memory in 2 MiB pages.
        cpus: processor of each front-end thread; empty: not pinned.
    """

    mode: str = "echo"
    frame: int = 64
    burst: int = 32
    window: int = 0
    flood: bool = False
    pairs: int = 1
    threads: int = 1
    queue_size: int = 256
    packed: bool = False
    event_idx: bool = True
    mergeable: bool = True
    buffer: int = 0
    poll: bool = True
    runtime: float = 2
    warmup: float = 0.5
    rate: int = 0
    verify: bool = False
    hugepages: bool = False
    cpus: Sequence[int] = ()

    @property
    def tso(self) -> bool:
        """Whether frames are to be cut."""
        return self.frame > _PLAIN_MAX

    @property
    def cards(self) -> int:
        """Sockets it takes."""
        return 2 if self.mode in ("pair", "duplex") else 1

    @property
    def buffer_bytes(self) -> int:
        """Of a receive buffer, header included."""
        if self.buffer:
            return self.buffer
        if self.mergeable:
            return 4096 if self.tso else 2048
        return _BIG if self.tso else 2048

    @property
    def under_way(self) -> int:
        """Frames of a flow that are under way at most."""
        if self.flood:
            return lib.NET_LOAD_WINDOW
        # what came goes back by the burst
        buffers = self.queue_size - min(self.burst, self.queue_size // 4)
        each = -(-(self.frame + lib.NET_LOAD_HDR) // self.buffer_bytes)
        return self.window or max(1, min(buffers // each, 256))

    def check(self) -> None:
        """Raises: ValueError: it makes no sense."""
        if self.mode not in MODES:
            raise ValueError(f"mode {self.mode!r} is none of {', '.join(MODES)}")
        if not lib.NET_LOAD_FRAME_MIN <= self.frame <= lib.NET_LOAD_FRAME_MAX:
            raise ValueError(
                f"a frame of {self.frame} bytes is not {lib.NET_LOAD_FRAME_MIN} to {lib.NET_LOAD_FRAME_MAX}"
            )
        if not 1 <= self.burst <= lib.NET_LOAD_BURST:
            raise ValueError(f"a burst of {self.burst} is not 1 to {lib.NET_LOAD_BURST}")
        if not 0 <= self.window <= lib.NET_LOAD_WINDOW:
            raise ValueError(f"a window of {self.window} is not 0 to {lib.NET_LOAD_WINDOW}")
        if not 1 <= self.threads <= self.pairs:
            raise ValueError(f"{self.threads} threads for {self.pairs} queue pairs: every thread needs one")
        if not 1 <= self.pairs <= 16:
            raise ValueError(f"{self.pairs} queue pairs, 1 to 16 are driven")
        if self.threads > 1 and self.mode in _BOTH:
            raise ValueError("one thread drives both ends: a frame may come back on any queue")
        if self.buffer and not 80 <= self.buffer <= 1 << 20:
            raise ValueError(f"receive buffers of {self.buffer} bytes are not 80 to {1 << 20}")
        if not self.mergeable and self.buffer_bytes < self.frame + lib.NET_LOAD_HDR:
            raise ValueError(f"a frame of {self.frame} bytes and its header need larger buffers, or mergeable ones")
        if self.verify and self.mode not in _BOTH:
            raise ValueError(f"mode {self.mode} has nothing to verify: only what comes back is compared")
        if missing := set(self.cpus) - os.sched_getaffinity(0):
            raise ValueError(f"this process may not run on processor {min(missing)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Result(Measured[Workload]):
    """One run. Counts per packet are over those that came, or in mode tx were taken, within the measured time.

    Latencies are those of every eighth frame.
    """

    packets: int
    packets_per_second: float
    bits_per_second: float
    """Of the frames, without what a wire adds."""
    sent: int
    lost: int
    reordered: int
    """Came after a later one."""
    foreign: int
    """Frames that are not the generator's: in mode rx all of them."""
    latency: Latency | None
    """None: nothing came back."""
    tx_batch_mean: float
    """Packets given to the back-end at once; and found at once."""
    rx_batch_mean: float
    rx_batch_max: int


def _stride(size: int) -> int:
    """Room for each of many buffers: an odd number of cache line pairs, or all would fall into few sets of a cache."""
    return (-(-size // 128) | 1) * 128


@dataclass(frozen=True, slots=True)
class _Card:
    frontend: Frontend
    mac: bytes


class _Generator(Generator):
    """One thread's `struct net_load`."""

    calls = Calls(lib, "net_load")

    def __init__(self, workload: Workload, memory: Memory, number: int) -> None:
        config = ffi.new("struct net_load_config *")
        config.frame_bytes, config.rx_bytes = workload.frame, workload.buffer_bytes
        config.mergeable, config.burst, config.window = workload.mergeable, workload.burst, workload.under_way
        config.gso_bytes = _TSO if workload.tso else 0
        config.poll, config.verify = workload.poll, workload.verify
        config.rate = workload.rate // workload.threads
        super().__init__(workload.cpus, number)
        self._workload = workload
        self._memory = memory
        self._ptr = lib.net_load_new(config)
        if self._ptr == ffi.NULL:
            raise ValueError("the generator cannot drive this load")

    def add(self, tx: tuple[_Card, int] | None, rx: tuple[_Card, int] | None, *, announce: bool = False) -> None:
        """A flow from a card's pair to another's; either may be None."""
        source, target = (end[0].mac if end else _MAC + b"\xff" for end in (tx, rx))
        code = lib.net_load_add_flow(
            self._ptr,
            self._end(tx[0].frontend, 2 * tx[1] + 1, lib.NET_LOAD_HDR + self._workload.frame) if tx else ffi.NULL,
            self._end(rx[0].frontend, 2 * rx[1], self._workload.buffer_bytes) if rx else ffi.NULL,
            ffi.from_buffer("uint8_t[]", target + source),
            announce,
        )
        if code < 0:
            raise DeviceError(f"cannot drive a queue pair: {os.strerror(-code)}")

    def _end(self, frontend: Frontend, index: int, size: int) -> Any:
        queue = frontend.queues[index]
        assert isinstance(queue.ring, NativeRing)
        stride = _stride(size)
        gpa = self._memory.alloc(stride * queue.size, 4096)
        return ffi.new(
            "struct net_load_ring *",
            {
                "drv": queue.ring.driver.ptr, "mem": ffi.cast("void *", self._memory.hva(gpa)), "gpa": gpa,
                "stride": stride, "slots": queue.size, "kick_fd": queue.kick_fd, "call_fd": queue.call_fd,
            },
        )  # fmt: skip


async def measure(targets: Target | Sequence[Target], workload: Workload) -> Result:
    """Connect, start the queues, warm up, measure, drain.

    Args:
        targets: path of the back-end's socket, or a connected socket, which is taken over; two for modes `pair` and
            `duplex`: frames go into the first and come out of the second.

    Raises:
        ValueError: the workload makes no sense.
        VhostError: no connection, or the back-end lacks what is asked for.
        DeviceError: it returned nonsense, or stopped taking frames.

    Cancellation: the generator stops within a round.
    """
    workload.check()
    sockets: list[Target] = list(targets) if isinstance(targets, list | tuple) else [targets]  # type: ignore[list-item]
    if len(sockets) != workload.cards:
        raise ValueError(f"mode {workload.mode} takes {workload.cards} socket{'s' * (workload.cards - 1)}")
    async with AsyncExitStack() as stack:
        memory = stack.enter_context(Memory(_memory_bytes(workload), hugepages=workload.hugepages))
        cards = []
        for number, target in enumerate(sockets):
            frontend = await stack.enter_async_context(Frontend.connect(target, memory=memory, protocol=_PROTOCOL))
            cards.append(await _start(frontend, workload, number))
        return await _drive(cards, memory, workload)


async def _start(frontend: Frontend, workload: Workload, number: int) -> _Card:
    if frontend.num_queues < workload.pairs and workload.pairs > 1:
        raise VhostError(
            f"the back-end has {frontend.num_queues} queue pairs, {workload.pairs} were asked for; start it with more"
        )
    wanted = int(NetFeature.MAC)
    if workload.pairs > 1:
        wanted |= NetFeature.MQ
    if workload.mergeable:
        wanted |= NetFeature.MRG_RXBUF
    offloads = NetFeature.CSUM | NetFeature.GUEST_CSUM | NetFeature.HOST_TSO4 | NetFeature.GUEST_TSO4
    if workload.tso:
        wanted |= offloads
    lacking = NetFeature(wanted & ~NetFeature.MAC & ~frontend.features_offered)
    if lacking:
        raise VhostError(f"the back-end does not offer {', '.join(bit.name or '' for bit in lacking)}")
    if not frontend.features_offered & VirtioFeature.VERSION_1:
        raise VhostError("the back-end offers no VIRTIO 1.0 device; this front-end drives no older ones")
    await frontend.start(
        queues=2 * workload.pairs, size=workload.queue_size, packed=workload.packed, event_idx=workload.event_idx,
        indirect=False, features=wanted, serve=False,
    )  # fmt: skip
    if frontend.features & NetFeature.MAC and ProtocolFeature.CONFIG in frontend.protocol:
        return _Card(frontend, bytes(await frontend.get_config(0, 6)))
    return _Card(frontend, _MAC + bytes([number]))


def _memory_bytes(workload: Workload) -> int:
    out, into = _stride(workload.frame + lib.NET_LOAD_HDR), _stride(workload.buffer_bytes)
    each = workload.queue_size * (out + into + 64) + (64 << 10)
    return (workload.cards * workload.pairs * each + (4 << 20)) & -(2 << 20)


def _plug(generators: Sequence[_Generator], cards: Sequence[_Card], workload: Workload) -> None:
    """Give the generators their flows."""
    first, last = cards[0], cards[-1]
    for pair in range(workload.pairs):
        generator = generators[pair % len(generators)]
        one, other = (first, pair), (last, pair)
        generator.add(
            None if workload.mode == "rx" else one,
            None if workload.mode == "tx" else other,
        )
        if first is not last:
            # a switch learns from it where the receiver is
            generator.add(other, one, announce=workload.mode == "pair")


async def _drive(cards: Sequence[_Card], memory: Memory, workload: Workload) -> Result:
    frontends = [card.frontend for card in cards]
    generators: list[_Generator] = []
    run = partial(run_generators, frontends, generators, left="frames untaken")
    try:
        generators += [_Generator(workload, memory, number) for number in range(workload.threads)]
        _plug(generators, cards, workload)
        if workload.warmup:
            await run(workload.warmup, lib.GEN_RUN)
        cost = BackendCost(frontends)
        before = cost.now()
        await run(workload.runtime, lib.GEN_RUN)
        result = _result(frontends[0], workload, generators, cost.now().since(before))
        if workload.mode != "rx":
            await run(_DRAIN_S, lib.GEN_DRAIN)
        for frontend in frontends:
            await frontend.stop()
    finally:
        for generator in generators:
            generator.close()
    return result


def _error_of(stats: Any) -> str:
    return _ERRORS.get(stats.run.first_error, "").format(info=stats.run.first_error_info)


def _result(frontend: Frontend, workload: Workload, generators: Sequence[_Generator], spent: Spent) -> Result:
    found = Sum(generators, _error_of)
    received, sent = found.total("done"), found.own("sent")
    sends_only = workload.mode == "tx"
    packets = found.own("taken") if sends_only else received
    size = packets * workload.frame if sends_only else found.own("received_bytes")
    return Result(
        packets=packets,
        packets_per_second=packets / found.seconds,
        bits_per_second=size * 8 / found.seconds,
        sent=sent,
        lost=found.own("lost"),
        reordered=found.own("reordered"),
        foreign=found.own("foreign"),
        latency=found.latency if found.histogram else None,
        tx_batch_mean=sent / max(found.own("tx_batches"), 1),
        rx_batch_mean=received / max(found.total("batches"), 1),
        rx_batch_max=found.max_batch,
        **found.measured(workload, frontend, packets, spent),
    )
