"""Sections net-*: frames a second through our card and dpdk-testpmd's, with our front-end and with theirs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from bench import net_peers
from bench.contend import Contender
from bench.net_peers import ByVirtioUser, NetBackend, dpdk, dpdk_name, ours, ours_name, ours_switch
from bench.peers import Peer
from bench.plan import Plan
from bench.rounds import Cell
from bench.stage import Stage
from devices.net.load import Workload

FRAMES = (64, 1518)
TSO = 65536
FIGURE = "packets_per_second"
RATE, RATE_S = 10_000, 1

#: mode of the load: what testpmd does meanwhile, and our link
ENDS = {"tx": ("rxonly", ("--null",)), "rx": ("txonly", ("--source", "{frame}")), "echo": ("io", ("--echo",))}
SECTIONS = {
    "net-tx": "frames from the guest that go nowhere",
    "net-rx": "frames to the guest, made by the back-end",
    "net-echo": "frames that come back",
    "net-switch": "from one guest to another, one worker or forwarding core",
    "net-foreign": "dpdk-testpmd's virtio_user as the front-end",
    "net-rate": f"{RATE:,} frames/s that come back, a processor for each side; ratio of p50",
}


def _workload(plan: Plan, mode: str, frame: int, **more: Any) -> Workload:
    options: dict[str, Any] = {"runtime": plan.runtime, "warmup": plan.warmup, **more}
    return Workload(mode=mode, frame=frame, **options)


def _cell(
    plan: Plan, section: str, workload: Workload, contenders: Sequence[Contender], base: str, label: str
) -> list[Cell]:  # fmt: skip
    return plan.chosen([Cell(section, label, workload, contenders, base, figure=FIGURE, device="net")])


def _there(*peers: Peer | None) -> list[Peer]:
    return [peer for peer in peers if peer is not None]


def _peers(mode: str, frame: int) -> list[Peer]:
    forward, link = ENDS[mode]
    # testpmd keeps to its frames only when it makes them: then a program for each size
    made = frame if mode == "rx" else FRAMES[0]
    peers = _there(*(dpdk(forward, packed=packed, frame=made) for packed in (False, True)))
    words = tuple(word.format(frame=made) for word in link)
    return peers + [ours(words, packed=packed) for packed in (False, True)]


def _ends(plan: Plan, section: str) -> list[Cell]:
    mode = section.partition("-")[2]
    cells = []
    for frame in FRAMES:
        those = [NetBackend(peer) for peer in _peers(mode, frame)]
        cells += _cell(plan, section, _workload(plan, mode, frame), those, dpdk_name(), f"{frame} B")
    return cells


def _switch(plan: Plan) -> list[Cell]:
    cells = []
    for frame in (*FRAMES, TSO):
        peers = _there(*(dpdk("io", packed=packed, ports=2, frame=frame) for packed in (False, True)))
        peers += [ours_switch(packed=packed) for packed in (False, True)]
        those = [NetBackend(peer) for peer in peers]
        label = "64 KiB TSO" if frame == TSO else f"{frame} B"
        cells += _cell(plan, "net-switch", _workload(plan, "pair", frame), those, dpdk_name(), label)
    return cells


def _foreign(plan: Plan) -> list[Cell]:
    if net_peers.missing():
        return []
    cells = []
    for mode in ENDS:
        for frame in FRAMES:
            those = [ByVirtioUser(peer) for peer in _peers(mode, frame)]
            workload = _workload(plan, mode, frame, warmup=max(plan.warmup, 0.2))
            cells += _cell(plan, "net-foreign", workload, those, dpdk_name(), f"{mode}, {frame} B")
    return cells


def _rate(plan: Plan) -> list[Cell]:
    peers = _there(dpdk("io"), ours(("--echo",)), ours(("--echo",), polling=False))
    cells = []
    for poll in (True, False):
        workload = _workload(plan, "echo", 64, rate=RATE, poll=poll, runtime=min(RATE_S, plan.runtime * 2))
        those = [NetBackend(peer) for peer in peers]
        label = f"{'polling' if poll else 'sleeping'}, {RATE:,}/s"
        cells += _cell(plan, "net-rate", workload, those, ours_name(), label)
    for cell in cells:
        cell.figure = "latency.p50_us"
    return cells


@contextmanager
def opened(section: str, _stage: Stage, plan: Plan) -> Iterator[tuple[str, list[Cell]]]:
    """Title and cells."""
    if (gone := net_peers.missing()) is not None:
        plan.say(f"missing: {gone[0]} ({gone[1]})")
    makers = {"net-switch": _switch, "net-foreign": _foreign, "net-rate": _rate}
    maker = makers.get(section)
    yield SECTIONS[section], maker(plan) if maker else _ends(plan, section)
