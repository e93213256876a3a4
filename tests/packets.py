"""Packets by hand: enough Ethernet, ARP, IP, ICMP, UDP, TCP and DHCP for a guest that is a test."""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import trio
from netrig import Guest, Header

ARP, IPV4, IPV6 = 0x0806, 0x0800, 0x86DD
ICMP, TCP, UDP, ICMPV6 = 1, 6, 17, 58
FIN, SYN, RST, PSH, ACK = 1, 2, 4, 8, 16
BROADCAST = b"\xff" * 6


def ip(text: str) -> bytes:
    return ipaddress.ip_address(text).packed


def checksum(data: bytes) -> int:
    if len(data) % 2:
        data += b"\0"
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def pseudo(src: bytes, dst: bytes, protocol: int, length: int) -> bytes:
    if len(src) == 4:
        return src + dst + struct.pack("!BBH", 0, protocol, length)
    return src + dst + struct.pack("!IHBB", length, 0, 0, protocol)


def ethernet(dst: bytes, src: bytes, kind: int, payload: bytes) -> bytes:
    return (dst + src + struct.pack("!H", kind) + payload).ljust(60, b"\0")


def packet(src: bytes, dst: bytes, protocol: int, payload: bytes) -> bytes:
    if len(src) == 16:
        return struct.pack("!IHBB", 0x60000000, len(payload), protocol, 255) + src + dst + payload
    head = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(payload), 1, 0, 64, protocol, 0, src, dst)
    return head[:10] + struct.pack("!H", checksum(head)) + head[12:] + payload


def udp(src: bytes, dst: bytes, sport: int, dport: int, data: bytes) -> bytes:
    head = struct.pack("!HHHH", sport, dport, 8 + len(data), 0)
    total = checksum(pseudo(src, dst, UDP, 8 + len(data)) + head + data) or 0xFFFF
    return head[:6] + struct.pack("!H", total) + data


def tcp(
    src: bytes, dst: bytes, sport: int, dport: int, seq: int, ack: int, flags: int, data: bytes = b"", options=b""
) -> bytes:
    head = struct.pack("!HHIIBBHHH", sport, dport, seq, ack, (5 + len(options) // 4) << 4, flags, 65535, 0, 0) + options
    total = checksum(pseudo(src, dst, TCP, len(head) + len(data)) + head + data)
    return head[:16] + struct.pack("!H", total) + head[18:] + data


def echo(number: int, data: bytes = b"abcdefgh", *, reply: bool = False) -> bytes:
    body = struct.pack("!BBHHH", 0 if reply else 8, 0, 0, 7, number) + data
    return body[:2] + struct.pack("!H", checksum(body)) + body[4:]


def dhcp(kind: int, mac: bytes, *, xid: int = 0x1234, options: bytes = b"") -> bytes:
    """RFC 2131: DISCOVER is 1, REQUEST 3."""
    head = struct.pack("!BBBBIHH16x", 1, 1, 6, 0, xid, 0, 0) + mac.ljust(16, b"\0") + bytes(192)
    body = head + b"\x63\x82\x53\x63" + bytes([53, 1, kind]) + options + b"\xff"
    return body.ljust(300, b"\0")


def dhcp_options(data: bytes) -> dict[int, bytes]:
    found, at = {}, 240
    while at < len(data) and data[at] != 255:
        if data[at] == 0:
            at += 1
            continue
        found[data[at]] = data[at + 2 : at + 2 + data[at + 1]]
        at += 2 + data[at + 1]
    return found


@dataclass
class Packet:
    """A frame, taken apart."""

    frame: bytes
    header: Header
    kind: int = 0
    src: bytes = b""
    dst: bytes = b""
    protocol: int = 0
    payload: bytes = b""  # of IP
    sport: int = 0
    dport: int = 0
    seq: int = 0
    ack: int = 0
    flags: int = 0
    data: bytes = b""  # of UDP and TCP
    pair: int = 0  # it came by

    @classmethod
    def parse(cls, header: Header, frame: bytes) -> Packet:
        p = cls(frame, header, struct.unpack_from("!H", frame, 12)[0])
        if p.kind == IPV4:
            length = struct.unpack_from("!H", frame, 16)[0]
            start = 14 + (frame[14] & 15) * 4
            p.protocol, p.src, p.dst, p.payload = frame[23], frame[26:30], frame[30:34], frame[start : 14 + length]
        elif p.kind == IPV6:
            length = struct.unpack_from("!H", frame, 18)[0]
            p.protocol, p.src, p.dst, p.payload = frame[20], frame[22:38], frame[38:54], frame[54 : 54 + length]
        if p.protocol in (TCP, UDP):
            p.sport, p.dport = struct.unpack_from("!HH", p.payload)
            p.data = p.payload[8:]
        if p.protocol == TCP:
            p.seq, p.ack = struct.unpack_from("!II", p.payload, 4)
            p.flags = p.payload[13]
            p.data = p.payload[(p.payload[12] >> 4) * 4 :]
        return p

    def good(self) -> bool:
        """The transport checksum is right, in full."""
        whole = checksum(pseudo(self.src, self.dst, self.protocol, len(self.payload)) + self.payload)
        return whole == 0


@dataclass
class Node:
    """A host on the wire: what a guest's network stack would do, in a few lines."""

    guest: Guest
    address: bytes
    mac: bytes = b"\x52\x54\0\0\0\1"
    buffers: int = 64
    pairs: int = 1
    size: int = 2048
    seen: list[Packet] = field(default_factory=list)

    def __post_init__(self) -> None:
        for pair in range(self.pairs):
            self.guest.offer(self.buffers, self.size, pair=pair)

    def push(self, frame: bytes, header: Header | None = None, **how: Any) -> None:
        self.guest.push(frame, header, **how)

    async def wait(self, what: Callable[[Packet], bool], *, timeout: float = 60) -> Packet:
        """The next packet that ``what`` is true of; ARP requests for us are answered meanwhile, others kept aside."""
        with trio.move_on_after(timeout):
            while True:
                for pair in range(self.pairs):
                    self._look(pair)
                for i, p in enumerate(self.seen):
                    if what(p):
                        del self.seen[i]
                        return p
                await trio.sleep(0.001)
        raise AssertionError(f"no such packet came; there were {[(p.kind, p.protocol, p.flags) for p in self.seen]}")

    def _look(self, pair: int) -> None:
        self.guest.reap(pair=pair)
        for header, frame in self.guest.take(pair=pair):
            self.guest.offer(header.num_buffers if self.guest.mergeable else 1, self.size, pair=pair)
            p = Packet.parse(header, frame)
            p.pair = pair
            self._answer(p)
            self.seen.append(p)

    async def quiet(self, what: Callable[[Packet], bool], seconds: float = 0.3) -> None:
        """See that no such packet comes."""
        try:
            p = await self.wait(what, timeout=seconds)
        except AssertionError:
            return
        raise AssertionError(f"{p} came")

    def _answer(self, p: Packet) -> None:
        if p.kind == ARP and p.frame[20:22] == b"\0\1" and p.frame[38:42] == self.address:
            self.push(ethernet(p.frame[6:12], self.mac, ARP, self._arp(2, p.frame[6:12], p.frame[28:32])))

    def _arp(self, op: int, mac: bytes, address: bytes) -> bytes:
        return struct.pack("!HHBBH", 1, IPV4, 6, 4, op) + self.mac + self.address + mac + address

    async def resolve(self, address: bytes) -> bytes:
        """The address's MAC."""
        self.push(ethernet(BROADCAST, self.mac, ARP, self._arp(1, bytes(6), address)))
        p = await self.wait(lambda p: p.kind == ARP and p.frame[20:22] == b"\0\2" and p.frame[28:32] == address)
        return p.frame[22:28]

    def send(self, mac: bytes, dst: bytes, protocol: int, payload: bytes, header: Header | None = None, **how) -> None:
        kind = IPV4 if len(dst) == 4 else IPV6
        self.push(ethernet(mac, self.mac, kind, packet(self.address, dst, protocol, payload)), header, **how)
