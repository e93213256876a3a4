"""Port forwards of user-mode NAT, as users write them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Final, Literal, Self

from devices.net.links.base import LinkError

__all__ = ["Address", "Forward", "GuestForward"]

Address = IPv4Address | IPv6Address

_ANY4: Final = IPv4Address(0)
_FORM: Final = "write PROTOCOL:HOST-ADDRESS:PORT-GUEST-ADDRESS:PORT, such as tcp:127.0.0.1:2222-:22"
_GUEST_FORM: Final = (
    "write tcp:ADDRESS:PORT-TARGET, such as tcp:10.0.2.100:80-127.0.0.1:8080 or tcp:10.0.2.100:80-unix:/run/x"
)
_END: Final = r"(?:\[(?P<{0}6>[^\]]*)\]|(?P<{0}4>[^:\[\]]*)):(?P<{0}port>\d+)"


def _address(match: re.Match[str], end: str, what: str, default: Address) -> Address:
    six, four = match[end + "6"], match[end + "4"]
    text = four if six is None else six
    if not text and six is None:
        return default
    try:
        found = ip_address(text)
    except ValueError:
        raise LinkError(f"{what}: {text!r} is not an IP address; names are not looked up") from None
    if (six is not None) != (found.version == 6):
        raise LinkError(f"{what}: write IPv6 addresses in brackets and IPv4 addresses without: {text}")
    return found


def _port(match: re.Match[str], end: str, what: str) -> int:
    number = int(match[end + "port"])
    if not 1 <= number <= 65535:
        raise LinkError(f"{what}: {number} is not a port; ports are 1 to 65535")
    return number


def _end(address: Address, port: int) -> str:
    return f"[{address}]:{port}" if address.version == 6 else f"{address}:{port}"


@dataclass(frozen=True, slots=True)
class Forward:
    """A port of the host that leads to the guest.

    Attributes:
        protocol: what it forwards.
        host: address to listen at, one of this machine's; 0.0.0.0 and :: are all of them.
        host_port: 1 to 65535.
        guest: where it leads, of the same IP version as ``host``; 0.0.0.0: the address that DHCP gives first.
        guest_port: 1 to 65535.
    """

    protocol: Literal["tcp", "udp"]
    host: Address
    host_port: int
    guest: Address
    guest_port: int

    def __post_init__(self) -> None:
        if self.host.version != self.guest.version:
            raise LinkError(f"forward {self}: both addresses are IPv4, or both IPv6")
        if self.guest == IPv6Address(0):
            raise LinkError(f"forward {self}: give the guest's IPv6 address, since DHCP gives it none")

    @classmethod
    def parse(cls, text: str) -> Self:
        """From ``tcp:127.0.0.1:2222-:22``; no host address is 127.0.0.1, no guest address the one DHCP gives first.

        Raises:
            LinkError: it cannot be read.
        """
        what = f"forward {text!r}"
        match = re.fullmatch("(?P<protocol>tcp|udp):" + _END.format("h") + "-" + _END.format("g"), text)
        if match is None:
            raise LinkError(f"{what} cannot be read; {_FORM}")
        host = _address(match, "h", what, IPv4Address("127.0.0.1"))
        guest = _address(match, "g", what, _ANY4 if host.version == 4 else IPv6Address(0))
        protocol: Literal["tcp", "udp"] = "tcp" if match["protocol"] == "tcp" else "udp"
        return cls(protocol, host, _port(match, "h", what), guest, _port(match, "g", what))

    def __str__(self) -> str:
        guest = f":{self.guest_port}" if self.guest == _ANY4 else _end(self.guest, self.guest_port)
        return f"{self.protocol}:{_end(self.host, self.host_port)}-{guest}"


@dataclass(frozen=True, slots=True)
class GuestForward:
    """An address and TCP port of the guest's network that leads to a service of the host.

    Attributes:
        address: one of the network that nobody has.
        port: 1 to 65535.
        target: path of a Unix socket, or address and port.
    """

    address: IPv4Address
    port: int
    target: str | tuple[Address, int]

    @classmethod
    def parse(cls, text: str) -> Self:
        """From ``tcp:10.0.2.100:80-127.0.0.1:8080`` or ``tcp:10.0.2.100:80-unix:/run/service``.

        Raises:
            LinkError: it cannot be read.
        """
        what = f"guest forward {text!r}"
        match = re.fullmatch("tcp:" + _END.format("g") + r"-(?:unix:(?P<path>/.+)|" + _END.format("t") + ")", text)
        if match is None:
            raise LinkError(f"{what} cannot be read; {_GUEST_FORM}")
        address = _address(match, "g", what, _ANY4)
        if not isinstance(address, IPv4Address) or address == _ANY4:
            raise LinkError(f"{what}: give an IPv4 address of the guest's network")
        port = _port(match, "g", what)
        if match["path"] is not None:
            return cls(address, port, match["path"])
        return cls(address, port, (_address(match, "t", what, IPv4Address("127.0.0.1")), _port(match, "t", what)))

    def __str__(self) -> str:
        target = f"unix:{self.target}" if isinstance(self.target, str) else _end(*self.target)
        return f"tcp:{self.address}:{self.port}-{target}"
