"""The ports of a switch: what a card is plugged into, and uplinks to taps and user-mode NAT."""

from __future__ import annotations

import errno
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import trio

from devices.net._net import ffi, lib
from devices.net.capture import PortCapture
from devices.net.links.base import LinkError, NetLink, PortPtr
from devices.net.links.rules import Rules, parse_vlans
from devices.net.stats import NetStats
from vhost import Metric

if TYPE_CHECKING:
    import ring
    from devices.net.device import Net
    from devices.net.links.files import FileLink
    from devices.net.links.switch import Switch

_REFUSALS = {
    errno.EEXIST: "the address {mac} is pinned to another port of the switch",
    errno.ENOSPC: "a switch has {ports} ports, and all are taken",
}


class SwitchPort(NetLink):
    """What one card is plugged into. Made by `Switch.port`."""

    shared = True

    def __init__(self, switch: Switch, rules: Rules, name: str | None, *, lent: bool = False) -> None:
        self.switch = switch
        self._rules = rules
        self._name = name
        self._lent = lent  # the switch is known by name, and closed by whoever lets go of it last
        self._card: Net | None = None
        self._ptr: Any = None
        self._capture: PortCapture | None = None

    @property
    def description(self) -> str:
        """As `NetLink.description`."""
        return f"{self.switch.description}, port {self.name}"

    @property
    def name(self) -> str:
        """As the user named it, or by its number."""
        if self._name is not None:
            return self._name
        return f"port{lib.net_switch_port_number(self._ptr)}" if self._ptr is not None else "unplugged"

    @property
    def rules(self) -> Rules:
        """What it may do."""
        return self._rules

    def set_rules(self, rules: Rules) -> None:
        """Other rules from now on; where VLANs change, addresses learnt on the port are forgotten.

        Raises:
            LinkError: they cannot be; those before stay.
        """
        if self._ptr is not None:
            with self.switch.parked():
                self._check(lib.net_switch_port_set(self._ptr, rules.raw()), rules)
        self._rules = rules

    @property
    def up(self) -> bool:
        """Frames pass."""
        return self._ptr is not None and not self._down

    _down = False

    def set_up(self, up: bool) -> None:
        """Let frames pass, or drop them. Whoever is plugged in sees no difference."""
        self._down = not up
        if self._ptr is not None:
            lib.net_port_set_down(self._ptr, not up)

    @property
    def stats(self) -> NetStats:
        """What it has counted; in is what came from whoever is plugged in."""
        return NetStats() if self._ptr is None else NetStats.of(self._ptr)

    @property
    def capture(self) -> PortCapture:
        """What passes the port, into files; out is what whoever is plugged in sent.

        Raises:
            LinkError: nothing is plugged in.
        """
        if self._capture is None:
            raise LinkError(f"{self.description}: nothing is plugged in")
        return self._capture

    @property
    def learnt(self) -> int:
        """Addresses that are known to be there."""
        return 0 if self._ptr is None else int(lib.net_switch_port_learnt(self._ptr))

    def flush(self) -> None:
        """Forget the addresses learnt on it."""
        if self._ptr is not None:
            with self.switch.parked():
                lib.net_switch_flush(self.switch._ptr, self._ptr)

    def _check(self, code: int, rules: Rules) -> None:
        if code < 0:
            text = _REFUSALS.get(-code, "a port cannot have such rules")
            text = text.format(mac=rules.pin_mac, ports=lib.NET_SWITCH_PORTS)
            raise LinkError(f"{self.switch.description}: {text}")

    def _plug(self) -> PortPtr:
        if self._ptr is None:
            error = ffi.new("int *")
            with self.switch.parked():
                ptr = lib.net_switch_port_new(self.switch._open(), self._rules.raw(), error)
            if ptr == ffi.NULL:
                if error[0] == -errno.ENOMEM:
                    raise MemoryError("no memory for a port of a switch")
                self._check(error[0], self._rules)
            self._ptr = ptr
            lib.net_port_set_down(ptr, self._down)
            self.switch._ports.append(self)
            self._capture = PortCapture(ptr, self.switch._workers, self.description)
        return PortPtr(self._ptr)

    def _unplug(self) -> None:
        if self._ptr is not None:
            if self._capture is not None:
                self._capture.close()
                self._capture = None
            ptr, self._ptr = self._ptr, None
            self.switch._ports.remove(self)
            with self.switch.parked():
                lib.net_port_free(ptr)

    # As `NetLink`

    def port_for(self, card: Net) -> PortPtr:
        """As `NetLink.port_for`: for one card at a time."""
        if self._card not in (None, card):
            raise LinkError(f"{self.description} has a card already; give each card a port of its own")
        ptr = self._plug()
        self._card = card
        return ptr

    def release(self, card: Net) -> None:
        """As `NetLink.release`."""
        if self._card is card:
            self._unplug()
            self._card = None

    @contextmanager
    def parked(self) -> Iterator[None]:
        """As `NetLink.parked`."""
        with self.switch.parked():
            yield

    def worker_key(self, card: Net, pair: int) -> Hashable | None:
        """All ports of a switch are on one worker."""
        return self.switch

    def started(self, card: Net, pair: int, worker: ring.Worker) -> None:
        """As `NetLink.started`."""
        self.switch.started(card, pair, worker)

    def stopped(self, card: Net, pair: int, worker: ring.Worker) -> None:
        """As `NetLink.stopped`."""
        self.switch.stopped(card, pair, worker)

    async def run(self) -> None:
        """As `NetLink.run`."""
        await self.switch.run()

    def port_capture(self, port: str) -> PortCapture:
        """As `NetLink.port_capture`."""
        return self.switch.port_capture(port)

    def controls(self) -> Mapping[str, Callable[..., Any]]:
        """As `NetLink.controls`."""
        return {
            **self.switch.controls(),
            "set_port": self._set_port,
            "uplink_add": self._uplink_add,
            "uplink_remove": self.switch.remove_uplink,
        }

    async def _uplink_add(self, uplink: str) -> dict[str, Any]:
        """Plug user or tap:NAME into the switch, as vhost net --uplink."""
        from devices.net.links.uplink import Uplink

        return (await Uplink.parse(uplink).plug(self.switch)).as_dict()

    def _set_port(
        self,
        port: str | None = None,
        up: bool | None = None,
        vlan: int | None = None,
        trunk: str | None = None,
        isolated: bool | None = None,
        pin_mac: str | None = None,
        learn: int | None = None,
        send_pps: int | None = None,
        send_bps: int | None = None,
        receive_pps: int | None = None,
        receive_bps: int | None = None,
        flood_pps: int | None = None,
        burst_ms: int | None = None,
    ) -> dict[str, Any]:
        """Change what is given of the rules of this card's port, or of the port called so; vlan 0, trunk "", pin_mac ""
        take them away.
        """
        target = self if port is None else self.switch._named(port)
        given = {
            "isolated": isolated, "learn": learn, "send_pps": send_pps, "send_bps": send_bps,
            "receive_pps": receive_pps, "receive_bps": receive_bps, "flood_pps": flood_pps, "burst_ms": burst_ms,
        }  # fmt: skip
        changes: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        if vlan is not None:
            changes["vlan"] = vlan or None
        if trunk is not None:
            changes["trunk"] = parse_vlans(trunk) if trunk else ()
        if pin_mac is not None:
            changes["pin_mac"] = pin_mac or None
        target.set_rules(replace(target.rules, **changes))
        if up is not None:
            target.set_up(up)
        return target.as_dict()

    def as_dict(self) -> dict[str, Any]:
        """For the control socket."""
        stats = self.stats.as_dict()
        return {
            "name": self.name,
            "up": self.up,
            "rules": self._rules.as_dict(),
            "learnt": self.learnt,
            "sent": stats["in"],
            "received": stats["out"],
            "dropped": stats["dropped"],
            "capture": None if self._capture is None else self._capture.path,
        }

    def metrics(self) -> Iterable[Metric]:
        """Of this port; one port speaks for the switch too."""
        yield from self._own_metrics()
        if next((port for port in self.switch._ports if not isinstance(port, Uplink)), None) is self:
            yield from self.switch._own_metrics()

    def _own_metrics(self) -> Iterator[Metric]:
        now = self.stats
        base = {"switch": self.switch.name, "port": self.name}
        for way, frames, size in (
            ("sent", now.in_frames, now.in_bytes),
            ("received", now.out_frames, now.out_bytes),
        ):
            label = base | {"direction": way}
            yield Metric("net_switch_frames_total", "counter", "Frames of whoever is at the port.", frames, label)
            yield Metric("net_switch_bytes_total", "counter", "Bytes of those frames.", size, label)
        for reason, n in now.dropped.items():
            label = base | {"reason": reason}
            yield Metric("net_switch_dropped_total", "counter", "Frames that a port dropped.", n, label)
        yield Metric("net_switch_learnt", "gauge", "Addresses known at the port.", self.learnt, base)
        if self._capture is not None:
            yield from self._capture.metrics(base)

    async def aclose(self) -> None:
        """As `NetLink.aclose`; a switch that is known by name goes with its last port."""
        if self._lent:
            self._lent = False
            await self.switch._let_go()


class Uplink(SwitchPort):
    """A port that a file of frames is plugged into."""

    def __init__(self, switch: Switch, rules: Rules, name: str, link: FileLink) -> None:
        super().__init__(switch, rules, name)
        self.link = link
        self.scope: trio.CancelScope | None = None

    def connect(self) -> None:
        """Plug both ends together; nothing moves before `start`."""
        with self.switch.parked():
            lib.net_port_connect(self._plug(), self.link.port)

    def start(self, worker: ring.Worker) -> None:
        """Move frames, on `worker`."""
        started = 0
        try:
            for queue in range(self.link.queues):
                self.link.start_queue(queue, worker)
                started += 1
        except BaseException:
            for queue in range(started):
                self.link.stop_queue(queue, worker)
            raise

    def stop(self, worker: ring.Worker) -> None:
        """Move none any more."""
        for queue in range(self.link.queues):
            self.link.stop_queue(queue, worker)

    def disconnect(self) -> None:
        """Take the ends apart; the port is the switch's again."""
        with self.switch.parked():
            lib.net_port_connect(self._ptr, ffi.NULL)
            lib.net_port_connect(ffi.NULL, self.link.port)
        self._unplug()
