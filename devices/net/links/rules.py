"""What a port of a switch may do."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from devices.net._net import ffi, lib
from devices.net.config import parse_mac

__all__ = ["Rules", "format_vlans", "parse_vlans"]

_VLAN_MAX: int = lib.NET_SWITCH_VLAN_MAX
#: limits, units per second
RATES = ("send_pps", "send_bps", "receive_pps", "receive_bps", "flood_pps")
#: a burst of a second is as good as no limit to whoever measures it
_BURST_MAX = 1000


def parse_vlans(text: str) -> frozenset[int]:
    """VLANs from ``5,7,100-199`` (``+`` does for the comma) or ``all``.

    Raises:
        ValueError: not VLANs.
    """
    if text.strip() == "all":
        return frozenset(range(1, _VLAN_MAX + 1))
    vlans: set[int] = set()
    for part in re.split("[,+]", text):
        match = re.fullmatch(r"\s*(\d+)(?:\s*-\s*(\d+))?\s*", part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
        if not 1 <= first <= last <= _VLAN_MAX:
            raise ValueError(f"{part!r} is no VLAN or range of VLANs; write 5,7,100-199 (1 to {_VLAN_MAX}) or all")
        vlans.update(range(first, last + 1))
    return frozenset(vlans)


def format_vlans(vlans: Collection[int]) -> str:
    """As `parse_vlans` reads them."""
    ranges: list[list[int]] = []
    for vlan in sorted(vlans):
        if ranges and vlan == ranges[-1][1] + 1:
            ranges[-1][1] = vlan
        else:
            ranges.append([vlan, vlan])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in ranges)


@dataclass(frozen=True, slots=True)
class Rules:
    """What a port of a switch may do.

    Without `vlan` and `trunk` it is plain: on the network of all plain ports, where tags are payload.

    Attributes:
        vlan: the VLAN it is in, 1 to 4094, without tags; with `trunk`: the one that has no tag there.
        trunk: VLANs that it carries with tags.
        isolated: reaches only ports that are not isolated.
        pin_mac: the one address it may send from, and nobody else may.
        learn: addresses that may be learnt on it.
        send_pps: frames per second that whoever is plugged in may send; 0: no limit. Segments count as what they are
            cut into.
        send_bps: and bytes.
        receive_pps: frames per second that are given to it.
        receive_bps: and bytes.
        flood_pps: frames per second it may send to everyone: broadcast, multicast, to addresses that are not known.
        burst_ms: milliseconds' worth of the limits that pass at once, 1 to 1000.
    """

    vlan: int | None = None
    trunk: Collection[int] = ()
    isolated: bool = False
    pin_mac: str | None = None
    learn: int = 1024
    send_pps: int = 0
    send_bps: int = 0
    receive_pps: int = 0
    receive_bps: int = 0
    flood_pps: int = 0
    burst_ms: int = 10

    def __post_init__(self) -> None:
        for vlan in (*self.trunk, *(() if self.vlan is None else (self.vlan,))):
            if not 1 <= vlan <= _VLAN_MAX:
                raise ValueError(f"VLAN {vlan}: VLANs are 1 to {_VLAN_MAX}")
        if self.pin_mac is not None:
            parse_mac(self.pin_mac)
        if not 0 <= self.learn <= lib.NET_SWITCH_ENTRIES_MAX:
            raise ValueError(f"learn is {self.learn}; give 0 to {lib.NET_SWITCH_ENTRIES_MAX} addresses")
        for name in RATES:
            if not 0 <= getattr(self, name) < 1 << 45:
                raise ValueError(f"limit {name} is {getattr(self, name)}; give 0 (none) or more")
        if not 1 <= self.burst_ms <= _BURST_MAX:
            raise ValueError(f"burst_ms is {self.burst_ms}; give 1 to {_BURST_MAX}")

    def raw(self) -> Any:
        """As C has it."""
        raw = ffi.new("struct net_switch_config *")
        raw.flags = lib.NET_SWITCH_ISOLATED * self.isolated | lib.NET_SWITCH_TRUNK * bool(self.trunk)
        raw.vlan, raw.learn_max, raw.burst_ms = self.vlan or 0, self.learn, self.burst_ms
        for vlan in self.trunk:
            raw.trunk[vlan // 64] |= 1 << vlan % 64
        if self.pin_mac is not None:
            raw.flags |= lib.NET_SWITCH_PINNED
            raw.mac = parse_mac(self.pin_mac)
        raw.in_frames, raw.in_bytes, raw.in_floods = self.send_pps, self.send_bps, self.flood_pps
        raw.out_frames, raw.out_bytes = self.receive_pps, self.receive_bps
        return raw

    def as_dict(self) -> dict[str, Any]:
        """For the control socket: what is not as it is by default."""
        out: dict[str, Any] = {name: rate for name in RATES if (rate := getattr(self, name))}
        if self.vlan is not None:
            out["vlan"] = self.vlan
        if self.trunk:
            out["trunk"] = format_vlans(self.trunk)
        if self.isolated:
            out["isolated"] = True
        if self.pin_mac is not None:
            out["pin_mac"] = self.pin_mac
        return out
