"""Translations of the guest's virtual IOMMU: asking for them, taking them over, giving them up.

`ring.Iotlb` answers the data path. A copy of its entries on the control side (`IovaMap`) finds what an invalidation
concerns: it is answered only when no access by the old translations is under way.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final

import trio

import ring
from vhost import actions
from vhost.constants import BackendRequest, IotlbType
from vhost.iommu import U64, IovaMap, Piece
from vhost.messages import Iotlb, Message

if TYPE_CHECKING:
    from vhost.instance import Instance
    from vhost.queues import Queue

__all__ = ["Translations"]

MISS_RETRY_SECONDS: Final = 0.1
"""When to ask again after the front-end had no translation: guests map late at times."""


class Translations:
    """The IOTLB of one instance."""

    def __init__(self, instance: Instance) -> None:
        self.iotlb = ring.Iotlb()
        self._instance = instance
        self._iovas = IovaMap()
        self._asked: set[tuple[int, int]] = set()
        """Misses told, neither answered nor made good by an update: address and permission."""
        self._retry_due = False

    async def update(self, iova: int, size: int, uaddr: int, perm: int) -> None:
        """Take over a translation, and try again what waited for one."""
        self.iotlb.update(iova, size, uaddr, perm)
        self._iovas.update(iova, size or U64, uaddr)
        # Not only the answer does it, which QEMU sends later: the page may be gone and asked for again by then.
        self._asked = {asked for asked in self._asked if not 0 <= asked[0] - iova < (size or U64)}
        await self._instance.look_again()

    def ask(self) -> None:
        """Pass IOTLB misses on to the front-end, each once until it is answered.

        A request that lacks several pages is tried again, and misses again, at every update. Were each told again, the
        front-end would come to look for pages that the guest has long taken back, which its IOMMU reports as faults.
        """
        for miss in self.iotlb.misses():
            asked = (miss.iova, int(miss.perm))
            if asked in self._asked:
                continue
            message = Iotlb(miss.iova, 0, 0, int(miss.perm), IotlbType.MISS)
            if self._instance.post(BackendRequest.IOTLB_MSG, message, None, partial(self._answered, asked)):
                self._asked.add(asked)

    def _answered(self, asked: tuple[int, int], answer: Message | None) -> None:
        self._asked.discard(asked)
        if answer is None:
            return
        answer.close()
        if answer.payload == 0 or self._retry_due:
            return
        if self._instance.limit():
            self._instance.log.warning("the guest uses an address its IOMMU does not map; its requests wait")
        self._retry_due = True
        self._instance.nursery.start_soon(self._retry)

    async def _retry(self) -> None:
        await trio.sleep(MISS_RETRY_SECONDS)
        self._retry_due = False
        await self._instance.look_again()

    def forget(self) -> None:
        """As kernel vhost does whenever a driver begins anew; no ring runs."""
        self.iotlb.clear()
        self._iovas.clear()
        self._asked.clear()

    async def invalidate(self, iova: int, size: int) -> None:
        """Forget translations; returns when no access by them is under way."""
        length = size or U64
        async with self._instance.all_parked():
            pieces = self._iovas.find(iova, length)
            self.iotlb.invalidate(iova, size)
            self._iovas.invalidate(iova, length)
            uses_iova = [queue for queue in self._instance.running if _by_iova(queue)]
            lost = [queue for queue in uses_iova if _touches(queue.ring_ranges(), iova, length)]
            used = [queue for queue in uses_iova if queue not in lost and self._overlaps(queue, pieces)]
        async with trio.open_nursery() as nursery:
            for queue in lost:
                nursery.start_soon(queue.suspend)
            for queue in used:
                nursery.start_soon(self._wait_for_pieces, queue, pieces)
        if lost:
            await self._instance.look_again()

    def _overlaps(self, queue: Queue, pieces: list[Piece]) -> bool:
        if queue.vq is None or not queue.in_flight:
            return False
        for piece in pieces:
            try:
                found = self._instance.memory.translate(piece.uaddr, piece.size, ring.AddressKind.UADDR)
            except ring.RingError:
                continue  # never mapped by us, so nothing reaches it
            if any(queue.vq.overlaps(address, size) for address, size in found):
                return True
        return False

    async def _wait_for_pieces(self, queue: Queue, pieces: list[Piece]) -> None:
        """Until no request of `queue` uses `pieces`; what uses none of them goes on."""
        delay = 0.0005
        while True:
            await trio.sleep(delay)
            async with self._instance.all_parked():
                if not self._overlaps(queue, pieces):
                    return
            delay = min(delay * 2, 0.02)


def _by_iova(queue: Queue) -> bool:
    return queue.config is not None and queue.config.addr_kind is actions.AddressKind.IOVA


def _touches(ranges: list[tuple[int, int]], start: int, size: int) -> bool:
    return any(address < start + size and start < address + length for address, length in ranges)
