"""User-mode NAT: the guest's network is inside this process, and nobody needs a privilege for it."""

from __future__ import annotations

import errno
import os
import socket
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Any, Final

import trio

from devices.net._net import lib as net
from devices.net.links.base import LinkError
from devices.net.links.files import FileLink
from devices.net.links.forwards import Forward, GuestForward
from devices.net.links.relay import Relay
from vhost.device import Metric

try:
    from devices.net._slirp import ffi, lib
except ImportError as exc:
    raise ImportError(
        f"user-mode NAT is not built; install libslirp 4.7 or newer (Debian: libslirp-dev) and build again ({exc})"
    ) from exc

__all__ = ["Forward", "GuestForward", "User", "UserConfig", "UserStats"]

#: asked for; what is allowed is enough too
_PIPE_BYTES: Final = 4 << 20
_SO_SNDBUFFORCE: Final = 32  # asm-generic/socket.h; Python has no name for it
_MTU: Final = range(1280, 65522)
_TEXT: Final = 65536
#: segments of a stream come joined
_GIVES: Final[int] = net.NET_TAKES_CSUM | net.NET_TAKES_TSO4 | net.NET_TAKES_TSO6
_PATH_MAX: Final = 107  # sun_path less its end


@dataclass(frozen=True, slots=True)
class UserConfig:
    """The guest's network. Addresses that are None follow from the network, as libslirp and QEMU have them.

    Attributes:
        net: IPv4 network, with room for at least the four addresses below; None: no IPv4.
        host: the gateway, which also is the host's loopback (``.2``).
        dns: the name server, which passes on to the host's (``.3``).
        dhcp_start: first of the addresses that DHCP gives (``.15``).
        net6: IPv6 prefix, 64 bits; None: no IPv6.
        host6: the router (``::2``).
        dns6: the name server (``::3``).
        hostname: the guest's name, told by DHCP.
        domainname: likewise.
        search: domains to search, told by DHCP.
        restrict: the guest reaches nothing but forwards.
        host_loopback: the gateway's address leads to services on the host's loopback.
        mtu: largest packet, bytes, 1280 to 65521. The card's is a matter of its own.
    """

    net: str | None = "10.0.2.0/24"
    host: str | None = None
    dns: str | None = None
    dhcp_start: str | None = None
    net6: str | None = "fec0::/64"
    host6: str | None = None
    dns6: str | None = None
    hostname: str | None = None
    domainname: str | None = None
    search: Sequence[str] = ()
    restrict: bool = False
    host_loopback: bool = True
    mtu: int = 1500


@dataclass(frozen=True, slots=True)
class UserStats:
    """What the NAT's thread counted. ``dropped``: frames for a guest that was slower than its network."""

    in_frames: int
    in_bytes: int
    out_frames: int
    out_bytes: int
    dropped: int
    bad: int
    wakeups: int
    sockets: int


def _network(text: str, what: str, kind: type[IPv4Network | IPv6Network]) -> IPv4Network | IPv6Network:
    try:
        return kind(text)
    except ValueError as exc:
        example = "10.0.2.0/24" if kind is IPv4Network else "fec0::/64"
        raise LinkError(f"{what} {text!r}: {exc}; write a network such as {example}") from None


def _inside(text: str | None, what: str, network: IPv4Network | IPv6Network, default: int) -> bytes:
    """The address ``text``, or number ``default`` of ``network``, as bytes."""
    if text is None:
        return network[default].packed
    kind = IPv4Address if network.version == 4 else IPv6Address
    try:
        address = kind(text)
    except ValueError:
        raise LinkError(f"{what}: {text!r} is not an IPv{network.version} address") from None
    if address not in network:
        raise LinkError(f"{what}: {address} is not in the guest's network {network}")
    if address in (network[0], network[-1]):
        raise LinkError(f"{what}: {address} is no address of a host in {network}")
    return address.packed


def _fill(raw: Any, config: UserConfig) -> list[Any]:
    """Put ``config`` into ``struct net_slirp_config``; what has to live as long as it is returned."""
    if config.net is None and config.net6 is None:
        raise LinkError("a network without IPv4 and without IPv6 leads nowhere; give one of them")
    if config.mtu not in _MTU:
        raise LinkError(f"mtu is {config.mtu}; give {_MTU[0]} to {_MTU[-1]} for user-mode NAT")
    raw.ipv4, raw.ipv6 = config.net is not None, config.net6 is not None
    raw.restricted, raw.no_loopback, raw.mtu = config.restrict, not config.host_loopback, config.mtu
    if config.net is not None:
        net = _network(config.net, "net", IPv4Network)
        if net.prefixlen > 27:
            raise LinkError(f"net {net} is too small: use at least a /27, since DHCP starts at number 15")
        raw.net, raw.mask = net.network_address.packed, net.netmask.packed
        raw.host = _inside(config.host, "gateway", net, 2)
        raw.dns = _inside(config.dns, "dns", net, 3)
        raw.dhcp_start = _inside(config.dhcp_start, "dhcp-start", net, 15)
        if len({bytes(raw.host), bytes(raw.dns), bytes(raw.dhcp_start)}) < 3:
            raise LinkError("gateway, dns and dhcp-start are three different addresses")
    if config.net6 is not None:
        net6 = _network(config.net6, "net6", IPv6Network)
        if net6.prefixlen != 64:
            raise LinkError(f"net6 {net6}: guests make addresses for themselves only in a /64")
        raw.prefix6, raw.prefix6_len = net6.network_address.packed, net6.prefixlen
        raw.host6 = _inside(config.host6, "gateway6", net6, 2)
        raw.dns6 = _inside(config.dns6, "dns6", net6, 3)
    return _fill_names(raw, config)


def _fill_names(raw: Any, config: UserConfig) -> list[Any]:
    keep: list[Any] = []
    for name in ("hostname", "domainname"):
        text = getattr(config, name)
        if text is not None:
            if not 0 < len(text.encode()) < 256:  # RFC 2132: the length of an option is a byte
                raise LinkError(f"{name} {text!r}: a name has 1 to 255 bytes")
            keep.append(ffi.new("char[]", text.encode()))
            setattr(raw, name, keep[-1])
    if config.search:
        if len(config.search) > lib.NET_SLIRP_SEARCH_MAX:
            raise LinkError(f"{len(config.search)} domains to search; give at most {lib.NET_SLIRP_SEARCH_MAX}")
        names = [ffi.new("char[]", name.encode()) for name in config.search]
        keep.append(names)
        keep.append(ffi.new("char *[]", [*names, ffi.NULL]))
        raw.search = keep[-1]
    return keep


def _packet_pair() -> tuple[socket.socket, socket.socket]:
    """Two ends of a pipe of packets, as roomy as is allowed."""
    ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
    for end in ends:
        try:
            end.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, _PIPE_BYTES)
        except PermissionError:
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _PIPE_BYTES)
        end.setblocking(False)
    return ends


class User(FileLink):
    """A network made up by libslirp: what the guest wants of the world is done with this process's own sockets.

    Args:
        config: of the network; None: 10.0.2.0/24 and fec0::/64.
        forwards: from the host to the guest, see `Forward.parse`.
        guest_forwards: from the guest to services of the host, see `GuestForward.parse`. Those to TCP need `run`.

    Raises:
        LinkError: it cannot be so, in words.
    """

    def __init__(
        self,
        config: UserConfig | None = None,
        *,
        forwards: Iterable[str | Forward] = (),
        guest_forwards: Iterable[str | GuestForward] = (),
    ) -> None:
        self.config = config or UserConfig()
        self._nat: Any = None
        self._forwards: list[Forward] = []
        self._guest_forwards: dict[tuple[IPv4Address, int], tuple[GuestForward, Relay | None]] = {}
        self._new_relays: trio.MemorySendChannel[Relay] | None = None
        self._scopes: dict[Relay, trio.CancelScope] = {}
        raw = ffi.new("struct net_slirp_config *")
        keep = _fill(raw, self.config)
        ours, theirs = _packet_pair()
        self._socket = theirs
        try:
            frame = self.config.mtu + 18
            super().__init__([ours.detach()], header=True, gives=_GIVES, whole_tcp=True, max_frame=frame)
            raw.fd = theirs.fileno()
            error = ffi.new("int *")
            nat = lib.net_slirp_start(raw, error)
            del keep
            if nat == ffi.NULL:
                raise LinkError(f"user-mode NAT does not start: {os.strerror(error[0])}")
            self._nat = nat
            for forward in forwards:
                self.add_forward(forward)
            for guest_forward in guest_forwards:
                self.add_guest_forward(guest_forward)
        except BaseException:
            self.close()
            raise

    @property
    def description(self) -> str:
        """As `NetLink.description`."""
        return f"user-mode network {' and '.join(net for net in (self.config.net, self.config.net6) if net)}"

    def _running(self) -> Any:
        if self._nat is None:
            raise RuntimeError(f"{self.description} is closed")
        return self._nat

    # Forwards

    @property
    def forwards(self) -> tuple[Forward, ...]:
        """From the host to the guest, in the order they were added."""
        return tuple(self._forwards)

    @property
    def guest_forwards(self) -> tuple[GuestForward, ...]:
        """From the guest to the host."""
        return tuple(forward for forward, _ in self._guest_forwards.values())

    @staticmethod
    def _raw(forward: Forward) -> Any:
        raw = ffi.new("struct net_slirp_forward *")
        raw.udp, raw.ipv6 = forward.protocol == "udp", forward.host.version == 6
        raw.host = forward.host.packed.ljust(lib.NET_SLIRP_ADDR, b"\0")
        raw.guest = forward.guest.packed.ljust(lib.NET_SLIRP_ADDR, b"\0")
        raw.host_port, raw.guest_port = forward.host_port, forward.guest_port
        return raw

    def add_forward(self, forward: str | Forward) -> Forward:
        """Let a port of the host lead to the guest, from now on.

        Raises:
            LinkError: it cannot be, in words.
        """
        if isinstance(forward, str):
            forward = Forward.parse(forward)
        configured = self.config.net if forward.host.version == 4 else self.config.net6
        if configured is None:
            raise LinkError(f"forward {forward}: the guest's network has no IPv{forward.host.version}")
        code = -lib.net_slirp_forward(self._running(), self._raw(forward), lib.NET_SLIRP_ADD)
        if code:
            raise LinkError(_refused(forward, code))
        self._forwards.append(forward)
        return forward

    def remove_forward(self, forward: str | Forward) -> None:
        """Undo `add_forward`. What is connected stays.

        Raises:
            LinkError: there is no such forward.
        """
        if isinstance(forward, str):
            forward = Forward.parse(forward)
        if forward not in self._forwards:
            raise LinkError(f"forward {forward}: there is none; there are {_listed(self._forwards)}")
        lib.net_slirp_forward(self._running(), self._raw(forward), lib.NET_SLIRP_REMOVE)
        self._forwards.remove(forward)

    def add_guest_forward(self, forward: str | GuestForward) -> GuestForward:
        """Let an address and port of the guest's network lead to a service of the host, from now on.

        Raises:
            LinkError: it cannot be, in words.
        """
        if isinstance(forward, str):
            forward = GuestForward.parse(forward)
        if self.config.net is None:
            raise LinkError(f"guest forward {forward}: the guest's network has no IPv4")
        if forward.address not in IPv4Network(self.config.net):
            raise LinkError(f"guest forward {forward}: {forward.address} is not in the guest's {self.config.net}")
        key = forward.address, forward.port
        if key in self._guest_forwards:
            raise LinkError(f"guest forward {forward}: {self._guest_forwards[key][0]} is there already")
        if isinstance(forward.target, str) and len(forward.target.encode()) > _PATH_MAX:
            raise LinkError(f"guest forward {forward}: a socket's path has at most {_PATH_MAX} bytes")
        try:
            relay = None if isinstance(forward.target, str) else Relay(forward.target)
        except OSError as exc:
            raise LinkError(f"guest forward {forward}: no socket in {tempfile.gettempdir()}: {exc.strerror}") from exc
        path = relay.path if relay is not None else str(forward.target)
        address, text = ffi.new("uint8_t[4]", forward.address.packed), ffi.new("char[]", path.encode())
        code = -lib.net_slirp_guest_forward(self._running(), address, forward.port, text)
        if code:
            if relay is not None:
                relay.close()
            raise LinkError(f"guest forward {forward}: the address is taken by the gateway or the name server")
        self._guest_forwards[key] = forward, relay
        if relay is not None and self._new_relays is not None:
            self._new_relays.send_nowait(relay)
        return forward

    def remove_guest_forward(self, forward: str | GuestForward) -> None:
        """Undo `add_guest_forward`.

        Raises:
            LinkError: there is no such forward.
        """
        if isinstance(forward, str):
            forward = GuestForward.parse(forward)
        key = forward.address, forward.port
        if self._guest_forwards.get(key, (None,))[0] != forward:
            raise LinkError(f"guest forward {forward}: there is none; there are {_listed(self.guest_forwards)}")
        address = ffi.new("uint8_t[4]", forward.address.packed)
        lib.net_slirp_guest_forward(self._running(), address, forward.port, ffi.NULL)
        _, relay = self._guest_forwards.pop(key)
        if relay is not None:
            if (scope := self._scopes.pop(relay, None)) is not None:
                scope.cancel()
            relay.close()

    # While it runs

    async def run(self) -> None:
        """Serve guest forwards to TCP."""
        sender, receiver = trio.open_memory_channel[Relay](1 << 16)
        self._new_relays = sender
        try:
            async with sender, receiver, trio.open_nursery() as nursery:
                for _, relay in self._guest_forwards.values():
                    if relay is not None:
                        nursery.start_soon(self._serve, relay)
                async for relay in receiver:
                    nursery.start_soon(self._serve, relay)
        finally:
            self._new_relays = None

    async def _serve(self, relay: Relay) -> None:
        with trio.CancelScope() as scope:
            self._scopes[relay] = scope
            await relay.run()
        self._scopes.pop(relay, None)

    @property
    def stats(self) -> UserStats:
        """What its thread has counted so far."""
        raw = ffi.new("struct net_slirp_stats *")
        lib.net_slirp_stats(self._running(), raw)
        return UserStats(*(int(getattr(raw, name)) for name in UserStats.__slots__))

    def connections(self) -> str:
        """libslirp's table of the guest's connections."""
        text = ffi.new("char[]", _TEXT)
        lib.net_slirp_connections(self._running(), text, _TEXT)
        return str(ffi.string(text).decode(errors="replace"))

    def controls(self) -> Mapping[str, Callable[..., Any]]:
        """As `NetLink.controls`."""
        return {
            "forwards": self._show_forwards,
            "forward_add": self._forward_add,
            "forward_remove": self._forward_remove,
            "guest_forward_add": self._guest_forward_add,
            "guest_forward_remove": self._guest_forward_remove,
            "connections": self._connections,
        }

    def _show_forwards(self) -> dict[str, list[str]]:
        """Forwards from the host to the guest, and from the guest to services of the host."""
        return {"forwards": [str(f) for f in self.forwards], "guest_forwards": [str(f) for f in self.guest_forwards]}

    def _forward_add(self, forward: str) -> str:
        """Let a port of the host lead to the guest."""
        return str(self._asked(self.add_forward, forward))

    def _forward_remove(self, forward: str) -> None:
        """Undo forward_add; what is connected stays."""
        self._asked(self.remove_forward, forward)

    def _guest_forward_add(self, forward: str) -> str:
        """Let an address and port of the guest's network lead to a service of the host."""
        return str(self._asked(self.add_guest_forward, forward))

    def _guest_forward_remove(self, forward: str) -> None:
        """Undo guest_forward_add."""
        self._asked(self.remove_guest_forward, forward)

    def _connections(self) -> list[str]:
        """The guest's connections, a line each."""
        return self.connections().splitlines()

    @staticmethod
    def _asked(what: Callable[[str], Any], forward: str) -> Any:
        """As the control socket wants to be told of what its user can mend."""
        try:
            return what(forward)
        except LinkError as exc:
            raise ValueError(str(exc)) from exc

    def metrics(self) -> Iterable[Metric]:
        """As `NetLink.metrics`."""
        now = self.stats
        yield Metric("net_user_dropped_total", "counter", "Frames that the guest was too slow for.", now.dropped)
        yield Metric("net_user_bad_total", "counter", "Packets of the guest that the NAT found wrong.", now.bad)
        yield Metric("net_user_sockets", "gauge", "Sockets that the NAT holds open for the guest.", now.sockets)

    def close(self) -> None:
        """End the NAT and its connections. May be called again."""
        if self._nat is not None:
            nat, self._nat = self._nat, None
            lib.net_slirp_stop(nat)
        for _, relay in self._guest_forwards.values():
            if relay is not None:
                relay.close()
        self._guest_forwards.clear()
        self._forwards.clear()
        self._socket.close()
        self._close()

    async def aclose(self) -> None:
        """As `NetLink.aclose`."""
        self.close()


def _listed(what: Sequence[object]) -> str:
    return ", ".join(map(str, what)) or "none"


def _refused(forward: Forward, code: int) -> str:
    """Why libslirp could not listen there, and what to do."""
    where = f"{forward.protocol} port {forward.host_port} of {forward.host}"
    if code == errno.EADDRINUSE:
        return f"forward {forward}: {where} is in use; choose another, or stop who has it"
    if code in (errno.EACCES, errno.EPERM):
        return f"forward {forward}: {where} may not be used by this user; choose a port from 1024 on"
    if code == errno.EADDRNOTAVAIL:
        return f"forward {forward}: this machine has no address {forward.host}"
    return f"forward {forward}: {os.strerror(code)}"
