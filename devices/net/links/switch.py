"""A learning Ethernet switch between cards of this process, taps and user-mode NAT."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import trio

from devices.net._net import ffi, lib
from devices.net.capture import PortCapture
from devices.net.config import format_mac
from devices.net.links.base import LinkError, NetLink, PortPtr
from devices.net.links.ports import SwitchPort, Uplink
from devices.net.links.rules import Rules
from vhost import Metric

if TYPE_CHECKING:
    import ring
    from devices.net.device import Net
    from devices.net.links.files import FileLink

__all__ = ["Rules", "Switch", "SwitchPort", "SwitchStats", "TableEntry"]


@dataclass(frozen=True, slots=True)
class TableEntry:
    """An address that a switch knows.

    Attributes:
        mac: the address.
        vlan: of it; 0: the network of plain ports, or a pin, which is for all VLANs.
        port: name of the port it is at.
        age: seconds since it was heard of.
        pinned: fixed by a rule, not learnt.
    """

    mac: str
    vlan: int
    port: str
    age: int
    pinned: bool


@dataclass(frozen=True, slots=True)
class SwitchStats:
    """Of a switch as a whole.

    Attributes:
        entries: addresses learnt, now.
        learnt: so far.
        moved: from port to port.
        refused: not learnt since their port has as many as it may have.
        evicted: forgotten to make room.
        floods: frames sent to everyone.
    """

    entries: int
    learnt: int
    moved: int
    refused: int
    evicted: int
    floods: int


class Switch(NetLink):
    """A switch. Plug cards into ports with rules, ``Net(switch.port(Rules(vlan=5)))``, or into the switch itself.

    Args:
        name: for people and counters.
        ageing: seconds after which an address that was not heard of is forgotten, 1 to 1000000.
        entries: addresses it has room for, about, 1 to 1048576.

    All cards are served by one server, on one worker of it.
    """

    shared = True
    _by_name: dict[str, Switch] = {}  # noqa: RUF012 - one for the process

    def __init__(self, name: str = "switch", *, ageing: int = 300, entries: int = 16384) -> None:
        if not 1 <= entries <= lib.NET_SWITCH_ENTRIES_MAX:
            raise ValueError(f"entries is {entries}; give 1 to {lib.NET_SWITCH_ENTRIES_MAX}")
        ptr = lib.net_switch_new(entries, secrets.randbits(64))
        if ptr == ffi.NULL:
            raise MemoryError("no memory for a switch")
        self._ptr: Any = ffi.gc(ptr, lib.net_switch_free)
        self.name = name
        self._users = 0  # ports that were lent by name
        self._ports: list[SwitchPort] = []
        self._of_cards: dict[Net, SwitchPort] = {}
        self._uplinks: list[Uplink] = []
        self._worker: ring.Worker | None = None
        self._running: set[tuple[Net, int]] = set()
        self._turn = trio.Lock()
        self._nursery: trio.Nursery | None = None
        self.set_ageing(ageing)

    @classmethod
    def named(
        cls, name: str, rules: Rules | None = None, *, port_name: str | None = None, ageing: int = 300
    ) -> SwitchPort:
        """A port of the switch that this process knows as `name`, which lives as long as such ports.

        Args: ageing: of one that is made now, seconds.
        """
        switch = cls._by_name.get(name) or cls(name, ageing=ageing)
        port = switch.port(rules, port_name, _lent=True)
        cls._by_name[name] = switch
        switch._users += 1
        return port

    async def _let_go(self) -> None:
        self._users -= 1
        if not self._users:
            self._by_name.pop(self.name, None)
            await self.aclose()

    def _open(self) -> Any:
        if self._ptr is None:
            raise RuntimeError(f"{self.description} is closed")
        return self._ptr

    @property
    def description(self) -> str:
        """As `NetLink.description`."""
        return f"switch {self.name}"

    @contextmanager
    def parked(self) -> Iterator[None]:
        """As `NetLink.parked`."""
        if self._worker is None:
            yield
            return
        with self._worker.parked():
            yield

    def _workers(self) -> Iterable[ring.Worker]:
        return () if self._worker is None else (self._worker,)

    # Ports

    def port(self, rules: Rules | None = None, name: str | None = None, *, _lent: bool = False) -> SwitchPort:
        """A port for a card.

        Raises:
            LinkError: the name is another port's.
        """
        self._free(name)
        return SwitchPort(self, rules or Rules(), name, lent=_lent)

    def _free(self, name: str | None) -> None:
        if name is not None and any(port.name == name for port in self._ports):
            raise LinkError(f"{self.description} has a port {name} already")

    def _named(self, name: str) -> SwitchPort:
        for port in self._ports:
            if port.name == name:
                return port
        names = ", ".join(port.name for port in self._ports) or "none"
        raise ValueError(f"{self.description} has no port {name!r}; there are {names}")

    @property
    def ports(self) -> tuple[SwitchPort, ...]:
        """Those that something is plugged into, uplinks too."""
        return tuple(self._ports)

    def add_uplink(self, link: FileLink, rules: Rules | None = None, *, name: str | None = None) -> SwitchPort:
        """Plug a tap or a NAT into a port. It is the switch's from now on, and closed with it.

        Raises:
            LinkError: the name is another port's, or the rules cannot be.
        """
        name = link.description if name is None else name
        self._free(name)
        uplink = Uplink(self, rules or Rules(learn=lib.NET_SWITCH_ENTRIES_MAX), name, link)
        uplink.connect()
        if self._worker is not None:
            try:
                with self._worker.parked():
                    uplink.start(self._worker)
            except BaseException:
                uplink.disconnect()
                raise
        self._uplinks.append(uplink)
        if self._nursery is not None:
            self._nursery.start_soon(self._run_uplink, uplink)
        return uplink

    async def remove_uplink(self, name: str) -> None:
        """Unplug the uplink called `name` and close its link.

        Raises:
            ValueError: there is none.
        """
        uplink = self._named(name)
        if not isinstance(uplink, Uplink):
            raise ValueError(f"port {name} of {self.description} is a card's")
        await self._remove(uplink)

    async def _remove(self, uplink: Uplink) -> None:
        self._uplinks.remove(uplink)
        if uplink.scope is not None:
            uplink.scope.cancel()
        if self._worker is not None:
            with self._worker.parked():
                uplink.stop(self._worker)
        uplink.disconnect()
        await uplink.link.aclose()

    # What it knows

    def table(self) -> list[TableEntry]:
        """All addresses it knows."""
        with self.parked():
            count = lib.net_switch_table(self._open(), ffi.NULL, 0)
            raw = ffi.new("struct net_switch_entry[]", count or 1)
            lib.net_switch_table(self._ptr, raw, count)
        names = {lib.net_switch_port_number(port._ptr): port.name for port in self._ports}
        return [
            TableEntry(
                format_mac(bytes(entry.mac)), entry.vlan, names[entry.port], entry.age, entry.kind == lib.NET_SWITCH_PIN
            )
            for entry in raw[0:count]
        ]

    def set_ageing(self, seconds: int) -> None:
        """Forget addresses that were not heard of for so long, 1 to 1000000 seconds."""
        if not 1 <= seconds <= 1_000_000:
            raise ValueError(f"ageing is {seconds}; give 1 to 1000000 seconds")
        with self.parked():
            lib.net_switch_set_ageing(self._open(), seconds)

    def flush(self) -> None:
        """Forget all that was learnt."""
        with self.parked():
            lib.net_switch_flush(self._open(), ffi.NULL)

    @property
    def stats(self) -> SwitchStats:
        """What it has counted so far."""
        raw = ffi.new("struct net_switch_stats *")
        lib.net_switch_stats(self._open(), raw)
        return SwitchStats(raw.entries, raw.learnt, raw.moved, raw.refused, raw.evicted, raw.floods)

    # As `NetLink`: cards in ports without rules

    def port_for(self, card: Net) -> PortPtr:
        """As `NetLink.port_for`: a plain port for each card."""
        if card not in self._of_cards:
            port = self.port()
            port.port_for(card)
            self._of_cards[card] = port
        return self._of_cards[card].port_for(card)

    def release(self, card: Net) -> None:
        """As `NetLink.release`."""
        self._of_cards.pop(card).release(card)

    def worker_key(self, card: Net, pair: int) -> Hashable | None:
        """All ports of a switch are on one worker."""
        return self

    def started(self, card: Net, pair: int, worker: ring.Worker) -> None:
        """As `NetLink.started`; uplinks run with the first."""
        if self._worker not in (None, worker):
            raise LinkError(f"{self.description}: its cards are served by two servers; serve them by one")
        if self._worker is None:
            for i, uplink in enumerate(self._uplinks):
                try:
                    uplink.start(worker)
                except BaseException:
                    for other in self._uplinks[:i]:
                        other.stop(worker)
                    raise
        self._worker = worker
        self._running.add((card, pair))

    def stopped(self, card: Net, pair: int, worker: ring.Worker) -> None:
        """As `NetLink.stopped`; uplinks stop with the last."""
        if (card, pair) not in self._running:
            return
        self._running.discard((card, pair))
        if not self._running:
            for uplink in self._uplinks:
                uplink.stop(worker)
            self._worker = None

    async def run(self) -> None:
        """Background work of uplinks; while several cards are being served, on behalf of one of them."""
        async with self._turn, trio.open_nursery() as nursery:
            self._nursery = nursery
            try:
                for uplink in self._uplinks:
                    nursery.start_soon(self._run_uplink, uplink)
                await trio.sleep_forever()
            finally:
                self._nursery = None

    async def _run_uplink(self, uplink: Uplink) -> None:
        with trio.CancelScope() as uplink.scope:
            await uplink.link.run()
        uplink.scope = None

    def port_capture(self, port: str) -> PortCapture:
        """As `NetLink.port_capture`."""
        return self._named(port).capture

    def controls(self) -> Mapping[str, Callable[..., Any]]:
        """As `NetLink.controls`."""
        found: dict[str, Callable[..., Any]] = {}
        for uplink in self._uplinks:
            found |= uplink.link.controls()
        return found | {
            "table": self._show_table,
            "ports": self._show_ports,
            "flush": self._flush,
            "set_ageing": self.set_ageing,
        }

    def _show_table(self, port: str | None = None, limit: int = 1000) -> list[dict[str, Any]]:
        """Addresses the switch knows, or those at one port; no more than limit."""
        return [
            {"mac": entry.mac, "vlan": entry.vlan, "port": entry.port, "age": entry.age, "pinned": entry.pinned}
            for entry in self.table()
            if port in (None, entry.port)
        ][:limit]

    def _show_ports(self) -> list[dict[str, Any]]:
        """Ports of the switch: rules, counters."""
        return [port.as_dict() for port in self._ports]

    def _flush(self, port: str | None = None) -> None:
        """Forget addresses that were learnt, everywhere or on one port."""
        if port is None:
            self.flush()
        else:
            self._named(port).flush()

    def metrics(self) -> Iterable[Metric]:
        """Of all ports plain cards are in, and of the switch: for each of its cards."""
        for port in self._of_cards.values():
            yield from port._own_metrics()
        yield from self._own_metrics()

    def _own_metrics(self) -> Iterator[Metric]:
        now, base = self.stats, {"switch": self.name}
        yield Metric("net_switch_entries", "gauge", "Addresses that are known.", now.entries, base)
        yield Metric("net_switch_learnt_total", "counter", "Addresses learnt.", now.learnt, base)
        yield Metric("net_switch_moved_total", "counter", "Addresses seen at another port.", now.moved, base)
        yield Metric("net_switch_refused_total", "counter", "Addresses not learnt: limit.", now.refused, base)
        yield Metric("net_switch_evicted_total", "counter", "Addresses forgotten: room.", now.evicted, base)
        yield Metric("net_switch_floods_total", "counter", "Frames sent to everyone.", now.floods, base)
        for uplink in self._uplinks:
            yield from uplink._own_metrics()
            yield from uplink.link.metrics()

    async def aclose(self) -> None:
        """Close uplinks, and the switch. May be called again."""
        for uplink in list(self._uplinks):
            await self._remove(uplink)
        if not self._ports:  # else with the last of its cards
            self._ptr = None

    async def __aenter__(self) -> Self:
        """The switch, which is closed at the end."""
        return self
