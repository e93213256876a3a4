"""A switch's way out in a user's words: ``user`` or ``tap:NAME``, with ``,name=value`` after it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from devices.net._net import lib
from devices.net.links.rules import Rules, parse_vlans

if TYPE_CHECKING:
    from typing import Self

    from devices.net.links.files import FileLink
    from devices.net.links.switch import Switch, SwitchPort

__all__ = ["Uplink"]

_KEYS = "name=NAME, vlan=5, trunk=5+7-9, isolated, forward=FORWARD, pcap=FILE"


@dataclass(frozen=True, slots=True)
class Uplink:
    """What is to be plugged in.

    Attributes:
        text: what the user wrote.
        what: ``user`` or ``tap:NAME``.
        name: of the port.
        rules: of the port.
        forwards: of the NAT.
        pcap: file that the port is captured to.
    """

    text: str
    what: str
    name: str
    rules: Rules
    forwards: tuple[str, ...]
    pcap: str | None

    @classmethod
    def parse(cls, text: str) -> Self:
        """From ``tap:NAME,trunk=5+7-9``. Raises: ValueError: it is none."""
        what, *entries = text.split(",")
        rules: dict[str, Any] = {"learn": lib.NET_SWITCH_ENTRIES_MAX}
        words = {"name": what}
        forwards = []
        for entry in entries:
            key, _, value = entry.partition("=")
            if key == "vlan" and value.isdecimal():
                rules["vlan"] = int(value)
            elif key == "trunk":
                rules["trunk"] = parse_vlans(value)
            elif entry == "isolated":
                rules["isolated"] = True
            elif key == "forward":
                forwards.append(value)
            elif key in ("name", "pcap") and value:
                words[key] = value
            else:
                raise ValueError(f"uplink {text!r}: {entry!r} is none of {_KEYS}")
        return cls(text, what, words["name"], Rules(**rules), tuple(forwards), words.get("pcap"))

    def _open(self) -> FileLink:
        kind, _, name = self.what.partition(":")
        if kind == "tap" and name:
            if self.forwards:
                raise ValueError(f"uplink {self.text!r}: forwards are for the NAT, user")
            from devices.net.links.tap import Tap

            return Tap.open(name)
        if self.what != "user":
            raise ValueError(f"uplink {self.text!r}: {self.what!r} is neither user nor tap:NAME")
        try:
            from devices.net.links.user import User
        except ImportError as exc:
            raise ValueError(f"uplink user: {exc}") from exc
        return User(forwards=self.forwards)

    async def plug(self, switch: Switch) -> SwitchPort:
        """Plug it into `switch`.

        Raises:
            LinkError: it cannot be had, or the name is another port's.
            ValueError: it is neither a tap nor the NAT, or that is not built.
            CaptureError: its file cannot be written.
        """
        link = self._open()
        try:
            port = switch.add_uplink(link, self.rules, name=self.name)
        except BaseException:
            await link.aclose()
            raise
        if self.pcap is not None:
            try:
                port.capture.start(self.pcap)
            except BaseException:
                await switch.remove_uplink(self.name)
                raise
        return port
