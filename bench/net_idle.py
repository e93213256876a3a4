"""Section net-idle: what a card costs whose driver is there and silent, on links that have something to wait for."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace

import trio

from bench.borrowed import borrow
from bench.duty import Silent
from bench.net_peers import ours
from bench.peers import Peer, Program
from bench.plan import Plan
from bench.rounds import Cell
from bench.stage import Stage
from devices.net.config import NetFeature
from devices.net.load import Workload
from vhost.errors import VhostError
from vhost.frontend import Frontend

IDLE_S = 3
PASST = "passt"
PASST_WHERE = "Debian's package passt, from trixie on"
_BUFFERS, _BUFFER = 128, 2048
_HEADER = 12
#: to everybody, of a type for experiments: nobody answers
_FRAME = b"\xff" * 6 + b"\x52\x54\x00\xbe\x7c\x01" + b"\x88\xb5" + bytes(46)


@dataclass(frozen=True)
class NetIdle(Silent):
    """A card that has buffers to fill and has sent a frame."""

    async def _begin(self, frontend: Frontend, workload: Workload) -> None:
        memory, wanted = frontend.memory, int(NetFeature.MRG_RXBUF)
        await frontend.start(queues=2, size=256, packed=workload.packed, features=wanted, serve=False)
        into, out = frontend.queues[0], frontend.queues[1]
        for token in range(_BUFFERS):
            into.ring.add([], [(memory.alloc(_BUFFER), _BUFFER)], token)
        frame = memory.alloc(_HEADER + len(_FRAME))
        memory.write(frame, bytes(_HEADER) + _FRAME)
        out.ring.add([(frame, _HEADER + len(_FRAME))], [], 0)
        for queue in (into, out):
            if queue.ring.publish():
                queue.kick()
        with trio.move_on_after(5):
            await trio.lowlevel.wait_readable(out.call_fd)
        if not out.ring.poll():
            raise VhostError("the back-end does not take a frame")


def _both(link: tuple[str, ...], before: tuple[str, ...] = ()) -> list[Peer]:
    """Ours with default settings; `before`: words before the command, a program that becomes it."""
    found = []
    for packed in (False, True):
        peer = ours(link, packed=packed, polling=False)
        found.append(replace(peer, program=replace(peer.program, command=(*before, *peer.program.command))))
    return found


def _passt(plan: Plan) -> list[Peer]:
    from guestlib.debian import AssetError
    from guestlib.trixie import passt

    try:
        program = passt()
    except AssetError as error:
        plan.say(f"missing: {PASST} with --vhost-user ({PASST_WHERE}): {error}")
        return []
    words = ("--vhost-user", "-f", "-s", "{folder}/s", "--runas", "0", "-4", "-a", "10.0.4.15", "-n", "24")
    return [Peer(PASST, Program((*program, *words, "-g", "10.0.4.2")))]


@contextmanager
def opened(_section: str, _stage: Stage, plan: Plan) -> Iterator[tuple[str, list[Cell]]]:
    """Title and cells; the tap is in a network of its own, where nobody else sends."""
    borrow()  # namespaces are made as the tests make theirs
    from guestlib.debian import AssetError
    from guestlib.net import namespace

    links = {"null": _both(("--null",)), "user": [*_both(("--user",)), *_passt(plan)]}
    with ExitStack() as stack:
        try:
            space = stack.enter_context(namespace())
        except AssetError as error:
            plan.say(f"no tap is measured: {error}")
        else:
            links["tap"] = _both(("--tap", f"vhb{os.getpid()}"), tuple(space.command()))
        yield _titled(links, plan)


def _titled(links: dict[str, list[Peer]], plan: Plan) -> tuple[str, list[Cell]]:
    seconds = min(IDLE_S, plan.runtime * 8)
    # the load there is not
    workload = Workload(poll=False, runtime=seconds, warmup=0)
    cells = []
    for link, peers in links.items():
        those = [NetIdle(peer, seconds) for peer in peers]
        cells.append(Cell("net-idle", link, workload, those, figure="backend_cpu_percent", device="net"))
    return f"a driver is connected and silent for {seconds:g} s", plan.chosen(cells)
