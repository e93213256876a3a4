"""What ``vhost net`` and a ``[[device]]`` table of type "net" take."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from devices.net.capture import CaptureError
from devices.net.device import Net
from devices.net.links.base import LinkError, NetLink
from devices.net.links.echo import EchoLink, NullLink, SourceLink
from vhost.device import Device
from vhost.plugin import ConfigError, DeviceType, Option

__all__ = ["OPTIONS", "TYPE", "open_net"]

OPTIONS = (
    # what the card is plugged into: one of these, or else user-mode NAT
    Option("tap", "text", "a tap of the host, made if it does not exist", metavar="NAME"),
    Option("tap-fd", "texts", "an open tap that was passed; one descriptor for each queue", metavar="FDNUM"),
    Option("user", "flag", "user-mode NAT: needs no privilege; the default", False),
    Option("switch", "text", "a switch that cards of this process share by its name", metavar="NAME"),
    Option("echo", "flag", "give every frame back", False),
    Option("null", "flag", "swallow every frame", False),
    Option("source", "size", "send frames of so many bytes as fast as the guest takes them", metavar="BYTES"),
    # the card
    Option("mac", "text", "the card's address; QEMU and cloud-hypervisor have their own option", metavar="MAC"),
    Option("mtu", "int", "largest packet the guest is told of, bytes", minimum=68, maximum=65535),
    Option("queues", "int", "pairs of queues; the guest may use fewer", 1, minimum=1, maximum=16),
    Option("queue-size", "int", "largest queue the front-end may ask for", 1024, minimum=2, maximum=32768),
    Option("no-offloads", "flag", "guests fill in checksums and cut segments themselves", False),
    Option("no-mergeable", "flag", "every frame fits into one receive buffer", False),
    Option("in-order", "flag", "tell guests that buffers come back in order; faster for some, slower for us", False),
    # a tap
    Option("bridge", "text", "make the tap a port of this bridge of the host", metavar="NAME"),
    # user-mode NAT
    Option("forward", "texts", "tcp:127.0.0.1:2222-:22 leads from the host to the guest", metavar="FORWARD"),
    Option(
        "guest-forward", "texts", "tcp:10.0.2.100:80-unix:PATH leads from the guest to a service", metavar="FORWARD"
    ),
    Option("restrict", "flag", "the guest reaches nothing but forwards", False),
    Option("no-host-loopback", "flag", "the gateway's address does not lead to this machine's loopback", False),
    Option("net", "text", "the guest's IPv4 network; none: no IPv4", "10.0.2.0/24", metavar="NET"),
    Option("net6", "text", "the guest's IPv6 network, a /64; none: no IPv6", "fec0::/64", metavar="NET"),
    Option("gateway", "text", "the gateway's address, which is also the host's; default: number 2", metavar="ADDRESS"),
    Option("dns", "text", "the name server's address; default: number 3", metavar="ADDRESS"),
    Option("dhcp-start", "text", "first address that DHCP gives; default: number 15", metavar="ADDRESS"),
    Option("gateway6", "text", "the router's IPv6 address; default: number 2", metavar="ADDRESS"),
    Option("dns6", "text", "the name server's IPv6 address; default: number 3", metavar="ADDRESS"),
    Option("hostname", "text", "the guest's name, told by DHCP", metavar="NAME"),
    Option("domainname", "text", "the guest's domain, told by DHCP", metavar="DOMAIN"),
    Option("search", "texts", "a domain to search, told by DHCP", metavar="DOMAIN"),
    # a switch, and the card's port of it
    Option("port-name", "text", "the port's name; default: its number", metavar="NAME"),
    Option(
        "uplink",
        "texts",
        "the switch's way out: user or tap:NAME; with ,name=NAME ,vlan=5 ,trunk=5+7-9 ,isolated ,forward=… ,pcap=FILE",
        metavar="LINK",
    ),
    Option(
        "ageing",
        "int",
        "seconds after which the switch forgets an address, as its first card says",
        300,
        minimum=1,
        maximum=1000000,
    ),
    Option("vlan", "int", "the port's VLAN; of a trunk: the one without tag", minimum=1, maximum=4094),
    Option("trunk", "text", "VLANs that pass with tags: 5,7,100-199 or all", metavar="VLANS"),
    Option("isolated", "flag", "the guest reaches only ports that are not isolated", False),
    Option("pin-mac", "text", "the one address the guest may send from, and nobody else", metavar="MAC"),
    Option("learn", "int", "addresses that may be learnt on the port", 1024, minimum=0, maximum=1048576),
    Option("send-pps", "rate", "frames per second the guest may send; 0: no limit", 0, metavar="RATE"),
    Option("send-bps", "rate", "bytes per second the guest may send; 0: no limit", 0, metavar="RATE"),
    Option("receive-pps", "rate", "frames per second the guest is given; 0: no limit", 0, metavar="RATE"),
    Option("receive-bps", "rate", "bytes per second the guest is given; 0: no limit", 0, metavar="RATE"),
    Option("flood-pps", "rate", "frames per second the guest may send to everyone; 0: no limit", 0, metavar="RATE"),
    Option("burst-ms", "int", "milliseconds' worth of the limits that pass at once", 10, minimum=1, maximum=1000),
    # capture
    Option("pcap", "path", "capture what passes, as pcapng", metavar="FILE"),
    Option("pcap-snaplen", "size", "bytes kept of each frame; 0: all", 0, metavar="BYTES"),
    Option("pcap-size", "size", "begin another file after so many bytes; 0: never", 0, metavar="BYTES"),
    Option("pcap-files", "int", "how many of them are kept, the newest; 0: all", 0, minimum=0),
)

_LINKS = ("tap", "tap_fd", "user", "switch", "echo", "null", "source")
#: options that mean nothing but with a link of that kind
_ONLY = {
    "bridge": ("tap", "tap_fd"),
    "forward": ("user",),
    "guest_forward": ("user",),
    "restrict": ("user",),
    "no_host_loopback": ("user",),
    "gateway": ("user",),
    "dns": ("user",),
    "dhcp_start": ("user",),
    "gateway6": ("user",),
    "dns6": ("user",),
    "hostname": ("user",),
    "domainname": ("user",),
    "search": ("user",),
    "port_name": ("switch",),
    "uplink": ("switch",),
    "vlan": ("switch",),
    "trunk": ("switch",),
    "isolated": ("switch",),
    "pin_mac": ("switch",),
    "send_pps": ("switch",),
    "send_bps": ("switch",),
    "receive_pps": ("switch",),
    "receive_bps": ("switch",),
    "flood_pps": ("switch",),
}


def _option(key: str) -> str:
    return key.replace("_", "-")


def _tap(values: Mapping[str, Any]) -> NetLink:
    from devices.net.links.tap import Tap

    if values["tap"]:
        return Tap.open(values["tap"], queues=values["queues"], bridge=values["bridge"], mtu=values["mtu"])
    try:
        fds = [int(fd) for text in values["tap_fd"] for fd in text.split(",")]
    except ValueError:
        raise ConfigError(f"tap-fd: {', '.join(values['tap_fd'])!r} is no number of a descriptor") from None
    tap = Tap.from_fds(fds)
    try:
        if values["bridge"] is not None:
            tap.configure(bridge=values["bridge"])
    except BaseException:
        tap.close()
        raise
    return tap


def _user(values: Mapping[str, Any]) -> NetLink:
    try:
        from devices.net.links.user import User, UserConfig
    except ImportError as exc:
        other = "" if values["user"] else "; or say what the card is plugged into: --tap, --switch"
        raise ConfigError(f"user: {exc}{other}") from exc

    nets = {key: None if values[key] == "none" else values[key] for key in ("net", "net6")}
    config = UserConfig(
        **nets,
        host=values["gateway"],
        dns=values["dns"],
        dhcp_start=values["dhcp_start"],
        host6=values["gateway6"],
        dns6=values["dns6"],
        hostname=values["hostname"],
        domainname=values["domainname"],
        search=values["search"] or (),
        restrict=values["restrict"],
        host_loopback=not values["no_host_loopback"],
        mtu=max(values["mtu"] or 1500, 1280),
    )
    return User(config, forwards=values["forward"] or (), guest_forwards=values["guest_forward"] or ())


async def _switch(values: Mapping[str, Any]) -> NetLink:
    from devices.net.links.rules import Rules, parse_vlans
    from devices.net.links.switch import Switch
    from devices.net.links.uplink import Uplink

    limits = ("send_pps", "send_bps", "receive_pps", "receive_bps", "flood_pps", "burst_ms")
    rules = Rules(
        vlan=values["vlan"],
        trunk=parse_vlans(values["trunk"]) if values["trunk"] else (),
        isolated=values["isolated"],
        pin_mac=values["pin_mac"],
        learn=values["learn"],
        **{name: values[name] for name in limits},
    )
    port = Switch.named(values["switch"], rules, port_name=values["port_name"], ageing=values["ageing"])
    try:
        for text in values["uplink"] or ():
            uplink = Uplink.parse(text)
            if all(other.name != uplink.name for other in port.switch.ports):  # else another card named it
                await uplink.plug(port.switch)
    except BaseException:
        await port.aclose()
        raise
    return port


async def _open_link(values: Mapping[str, Any]) -> NetLink:
    """The one link that `values` name; without one it is user-mode NAT, which everybody may have."""
    chosen = [key for key in _LINKS if values.get(key)] or ["user"]
    if len(chosen) != 1:
        names = ", ".join(_option(key) for key in _LINKS)
        given = " and ".join(_option(key) for key in chosen)
        raise ConfigError(f"give one of {names}: what the card is plugged into; {given} were given")
    for key, kinds in _ONLY.items():
        if values[key] and chosen[0] not in kinds:
            raise ConfigError(f"option {_option(key)} is for {' and '.join(_option(k) for k in kinds)} only")
    match chosen[0]:
        case "tap" | "tap_fd":
            return _tap(values)
        case "user":
            return _user(values)
        case "switch":
            return await _switch(values)
        case "echo":
            return EchoLink()
        case "null":
            return NullLink()
    return SourceLink(values["source"])


def _make_card(link: NetLink, values: Mapping[str, Any]) -> Net:
    card = Net(
        link,
        pairs=values["queues"],
        mac=values["mac"],
        mtu=values["mtu"],
        queue_size=values["queue_size"],
        offloads=not values["no_offloads"],
        mergeable=not values["no_mergeable"],
        in_order=values["in_order"],
    )
    if values["pcap"]:
        try:
            card.capture.start(
                values["pcap"],
                snaplen=values["pcap_snaplen"],
                file_size=values["pcap_size"],
                files=values["pcap_files"],
            )
        except BaseException:
            card.close()
            raise
    return card


@asynccontextmanager
async def open_net(values: Mapping[str, Any]) -> AsyncIterator[Device]:
    """The card that option values (of `OPTIONS`) describe; its link is closed at the exit.

    Raises:
        ConfigError: the user can mend it.
    """
    try:
        link = await _open_link(values)
    except (LinkError, CaptureError, ValueError) as exc:
        raise ConfigError(str(exc)) from exc
    async with link:
        try:
            card = _make_card(link, values)
        except (LinkError, CaptureError, ValueError) as exc:
            raise ConfigError(str(exc)) from exc
        try:
            yield card
        finally:
            card.close()


TYPE = DeviceType(
    name="net",
    backend_type="net",
    summary="a network card (virtio-net)",
    options=OPTIONS,
    open=open_net,
    parameter_help="Sizes take K, M and G (powers of 1024).",
)
