"""virtio-net as the server sees it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import Any, ClassVar

import ring
from devices.net._net import ffi, lib
from devices.net.capture import CaptureControls, PortCapture
from devices.net.config import NetFeature, format_mac, pack_config, parse_mac, random_mac
from devices.net.links.base import NetLink
from devices.net.stats import NetStats
from vhost import Device, Metric
from vhost.constants import ProtocolFeature, VirtioFeature
from vhost.device import Link

__all__ = ["Net"]

log = logging.getLogger(__name__)

#: what the software of this device can finish for whoever cannot take it, and so offers always
_OFFLOADS = (
    NetFeature.CSUM | NetFeature.HOST_TSO4 | NetFeature.HOST_TSO6 | NetFeature.HOST_ECN | NetFeature.HOST_USO
    | NetFeature.GUEST_CSUM | NetFeature.GUEST_TSO4 | NetFeature.GUEST_TSO6 | NetFeature.GUEST_ECN
    | NetFeature.GUEST_USO4 | NetFeature.GUEST_USO6 | NetFeature.CTRL_GUEST_OFFLOADS
)  # fmt: skip
#: for front-ends that leave the control queue to us; cloud-hypervisor has its own, and wants it offered all the same
_CONTROL = (
    NetFeature.CTRL_VQ | NetFeature.CTRL_RX | NetFeature.CTRL_RX_EXTRA | NetFeature.CTRL_VLAN
    | NetFeature.CTRL_MAC_ADDR | NetFeature.GUEST_ANNOUNCE
)  # fmt: skip

_CONTROL_QUEUE = 64
#: switched by front-ends while a driver runs
_DRIVERS = ~int(VirtioFeature.LOG_ALL | VirtioFeature.PROTOCOL_FEATURES)


class _Queue:
    """A `vhost.Source`: one ring as a worker runs it."""

    def __init__(self, card: Net, index: int, ptr: Any, worker: ring.Worker) -> None:
        self._card = card
        self._index = index
        self.worker = worker
        self.ptr = ptr

    def set_enabled(self, on: bool) -> None:
        """As `vhost.device.Discards.set_enabled`."""
        lib.net_queue_set_enabled(self.ptr, on)
        if self._index % 2 == 0 and self._index < 2 * self._card.pairs:
            self._card.link.enabled(self._card, self._index // 2, on)

    def close(self) -> None:
        """Free it. Other rings of its worker may be about to use it, so the worker is parked."""
        if self.ptr is None:
            return
        with self.worker.parked():
            self._card._closing(self._index, self.worker, self)
            if lib.net_queue_free(self.ptr) != 0:
                raise RuntimeError("a queue is closed after it was removed from its worker")
        self.ptr = None


class Net(Device):
    """A network card.

    Args:
        link: what it is plugged into; stays the caller's, who closes it after the card.
        pairs: pairs of rings, 1 to 16; the guest may use fewer.
        mac: its address; None: one made up, which the front-end knows about only if it asks.
        mtu: largest packet (without Ethernet header) that the guest is told, 68 to 65535; None: not told.
        queue_size: largest size of a ring, entries.
        offloads: let the guest leave checksums and segments to us.
        mergeable: let frames be spread over several receive buffers.
        in_order: offer that buffers come back in the order they were offered, as they do. Costs some time for each.
        offer_config: offer the configuration space (crosvm needs it, QEMU has its own and says so); None: if the user
            gave what is in it.

    Raises:
        LinkError: the link does not take this card.
        ValueError: an argument out of range.
    """

    device_id: ClassVar[int] = 1
    name: ClassVar[str] = "net"
    backend_type: ClassVar[str] = "net"

    def __init__(
        self,
        link: NetLink,
        *,
        pairs: int = 1,
        mac: str | bytes | None = None,
        mtu: int | None = None,
        queue_size: int = 1024,
        offloads: bool = True,
        mergeable: bool = True,
        in_order: bool = False,
        offer_config: bool | None = None,
    ) -> None:
        if not 1 <= pairs <= lib.NET_PAIRS_MAX:
            raise ValueError(f"pairs is {pairs}; a card has 1 to {lib.NET_PAIRS_MAX} pairs of queues")
        if not 2 <= queue_size <= 32768:
            raise ValueError(f"queue_size is {queue_size}; queues have 2 to 32768 entries")
        if mtu is not None and not 68 <= mtu <= 65535:
            raise ValueError(f"mtu is {mtu}; give 68 to 65535")
        self._port: Any = None
        self.link = link
        self.pairs = pairs
        self.mac = parse_mac(mac) if isinstance(mac, str) else mac or random_mac()
        self._mtu = mtu
        self._offer_config = (mac is not None or mtu is not None) if offer_config is None else offer_config
        self._offloads = offloads
        self._mergeable = mergeable
        self._in_order = in_order
        self._up = True
        self._acked = 0
        self._running: dict[int, _Queue] = {}
        self.queue_sizes = (*(queue_size,) * (2 * pairs), _CONTROL_QUEUE)
        self.ptr: Any = lib.net_dev_new(pairs)
        if self.ptr == ffi.NULL:
            raise MemoryError("no memory for a card")
        try:
            peer = link.port_for(self)
        except BaseException:
            lib.net_port_free(lib.net_dev_port(self.ptr))
            raise
        self._port = lib.net_dev_port(self.ptr)
        lib.net_dev_set_shared(self.ptr, link.shared)
        self.reset()
        with link.parked():
            lib.net_port_connect(self._port, peer)
        #: what passes to and from the guest, into files
        self.capture = PortCapture(self._port, self._workers, link.description)

    def _workers(self) -> set[ring.Worker]:
        return {queue.worker for queue in self._running.values()}

    def close(self) -> None:
        """Unplug and free it; no ring of it runs. May be called again."""
        if self._port is None:
            return
        if self._running:
            raise RuntimeError("a card is closed after its queues have stopped")
        self.capture.close()
        peer = self.link.port_for(self)
        with self.link.parked():
            lib.net_port_connect(self._port, ffi.NULL)
            lib.net_port_connect(ffi.NULL, peer)
        self.link.release(self)
        lib.net_port_free(self._port)
        self._port = self.ptr = None

    # What it is

    @property
    def port(self) -> Any:
        """The card's own ``struct net_port *``."""
        return self._port

    @property
    def features(self) -> int:
        """What it offers."""
        offer = int(_CONTROL)
        if self._in_order:
            offer |= VirtioFeature.IN_ORDER
        if self._offer_config:  # who cannot read them takes them for zeroes: User-mode Linux would see no carrier
            offer |= NetFeature.MAC | NetFeature.STATUS | NetFeature.HASH_REPORT
            if self.link.shared and self.pairs > 1:  # whoever has a frame may give it to any pair
                offer |= NetFeature.RSS
        if self._offloads:
            offer |= _OFFLOADS
        if self._mergeable:
            offer |= NetFeature.MRG_RXBUF
        if self._mtu is not None:
            offer |= NetFeature.MTU
        if self.pairs > 1:
            offer |= NetFeature.MQ
        return offer

    def config(self) -> bytes:
        """The configuration space, 24 bytes."""
        return pack_config(
            mac=self.mac_now,
            link_up=self._up,
            announce=bool(lib.net_dev_announce(self.ptr)),
            pairs=self.pairs,
            mtu=self._mtu or 0,
        )

    @property
    def mac_now(self) -> bytes:
        """The card's address, which the driver may have changed."""
        mac = ffi.new("uint8_t[6]")
        lib.net_dev_get_mac(self.ptr, mac)
        return bytes(mac)

    @property
    def protocol_features(self) -> ProtocolFeature:
        """The usual ones; the configuration space only where somebody has a use for it.

        No inflight record: what a network card has in flight may get lost.
        """
        offer = super().protocol_features & ~ProtocolFeature.INFLIGHT_SHMFD
        return offer if self._offer_config else offer & ~ProtocolFeature.CONFIG

    # Life-cycle

    def features_acked(self, features: int) -> None:
        """What the driver sends and takes follows from them. Others than before are another driver's."""
        same = features & _DRIVERS == self._acked & _DRIVERS
        self._acked = features
        if not same:
            lib.net_dev_set_features(self.ptr, features)
            lib.net_dev_reset(self.ptr, _bytes(self.mac))

    def set_status(self, status: int) -> None:
        """A driver that resets the card has no wishes any more."""
        if not status:
            lib.net_dev_reset(self.ptr, _bytes(self.mac))

    def detach(self, link: Link) -> None:
        """The next driver starts afresh."""
        super().detach(link)
        if self.ptr is not None:
            self.reset()

    def set_mtu(self, mtu: int) -> None:
        """The front-end tells its guest so; a card that has an MTU of its own takes no larger one."""
        if self._mtu is not None and mtu > self._mtu:
            raise ValueError(f"the front-end wants an MTU of {mtu}, this card was given {self._mtu}")

    def send_rarp(self, mac: bytes) -> None:
        """A migrated guest cannot announce itself: tell the network where it is now."""
        if lib.net_dev_rarp(self.ptr, _bytes(mac)) < 0:
            log.warning("%s: %s is not announced, since no queue of the card runs", self.link.description, mac.hex(":"))

    def worker_key(self, index: int) -> Hashable | None:
        """Both rings of a pair are on one worker, and with whom the link says."""
        pair = min(index // 2, self.pairs - 1)
        key = self.link.worker_key(self, pair)
        return (self, pair) if key is None else key

    def make_source(self, queue: ring.Virtqueue, worker: ring.Worker) -> _Queue:
        """As `vhost.Device.make_source`."""
        index = queue.index
        ptr = lib.net_queue_new(self.ptr, queue.ptr, index)
        if ptr == ffi.NULL:
            raise MemoryError(f"no memory for queue {index}")
        source = _Queue(self, index, ptr, worker)
        if (old := self._running.get(index)) is not None:  # of a connection that was cut off; on the same worker
            self._closing(index, worker, old)
        self._running[index] = source
        if index % 2 == 0:
            try:
                self.link.started(self, index // 2, worker)
            except BaseException:
                source.close()
                raise
        return source

    def _closing(self, index: int, worker: ring.Worker, source: _Queue) -> None:
        if self._running.get(index) is not source:  # one of a connection that was cut off
            return
        del self._running[index]
        if index % 2 == 0:
            self.link.stopped(self, index // 2, worker)

    async def background(self) -> None:
        """As `vhost.Device.background`."""
        await self.link.run()

    def reset(self) -> None:
        """Forget what the driver set."""
        self._acked = 0
        lib.net_dev_set_features(self.ptr, 0)
        lib.net_dev_reset(self.ptr, _bytes(self.mac))

    # Live changes

    @property
    def link_up(self) -> bool:
        """The guest sees a carrier, and frames pass."""
        return self._up

    def set_link(self, up: bool) -> None:
        """Plug the cable in or out; the guest is told."""
        if up == self._up:
            return
        self._up = up
        lib.net_port_set_down(self._port, not up)
        self.config_changed()

    def announce(self) -> None:
        """Ask the driver to tell the network where it is. It may not know how to, or have no control queue here."""
        lib.net_dev_set_announce(self.ptr, True)
        self.config_changed()

    def set_mac(self, mac: str) -> None:
        """Give the card another address: what a guest reads when it starts next, where its VMM asks us.

        Raises:
            ValueError: not an address that a card can have.
        """
        self.mac = parse_mac(mac)
        lib.net_dev_set_mac(self.ptr, _bytes(self.mac))
        self.config_changed()

    @property
    def stats(self) -> NetStats:
        """What it has counted so far."""
        return NetStats.of(self._port)

    # Control socket and metrics

    def controls(self) -> Mapping[str, Callable[..., Any]]:
        """As `vhost.Device.controls`."""
        return {
            "quiesce": self.quiesce,
            "resume": self.resume,
            "set_link": self._set_link,
            "set_mac": self._set_mac,
            "announce": self._announce,
            "stats": self._show_stats,
            "info": self._info,
            **CaptureControls(self.capture, self.link.port_capture).methods(),
            **self.link.controls(),
        }

    def _set_link(self, up: bool) -> bool:
        """Link up or down, as the guest sees it."""
        self.set_link(up)
        return self._up

    def _set_mac(self, mac: str) -> str:
        """The address a guest reads when it starts next. Returns it."""
        self.set_mac(mac)
        return format_mac(self.mac)

    def _announce(self) -> None:
        """Ask the guest to announce itself to the network."""
        self.announce()

    def _show_stats(self) -> dict[str, Any]:
        """Frames and bytes each way, drops by reason."""
        return self.stats.as_dict()

    def _info(self) -> dict[str, Any]:
        """The card and its link."""
        return {
            "link": self.link.description,
            "up": self._up,
            "mac": format_mac(self.mac_now),
            "mtu": self._mtu,
            "pairs": self.pairs,
            "features": f"{self._acked:#x}",
        }

    def metrics(self) -> Iterable[Metric]:
        """As `vhost.Device.metrics`."""
        yield from self.stats.metrics()
        yield Metric("net_up", "gauge", "1 while the link is up.", int(self._up))
        yield from self.capture.metrics()
        yield from self.link.metrics()


def _bytes(data: bytes) -> Any:
    return ffi.new("uint8_t[]", data)
