"""Feature bits and configuration space of virtio-net.

Spec: VIRTIO 1.3, 5.1.3 and 5.1.4.
"""

from __future__ import annotations

import re
import secrets
import struct
from enum import IntFlag

__all__ = ["NetFeature", "format_mac", "pack_config", "parse_mac", "random_mac"]

_LAYOUT = struct.Struct("<6sHHHIBBHI")
assert _LAYOUT.size == 24

_LINK_UP = 1
_ANNOUNCE = 2
_UNKNOWN_SPEED = 0xFFFFFFFF
_UNKNOWN_DUPLEX = 0xFF

#: of hashes of flows (rss.h): bytes of a key, entries of a table, kinds of flows
_HASHES = (40, 128, 0x3F)


class NetFeature(IntFlag):
    """Feature bits of virtio-net."""

    CSUM = 1 << 0
    GUEST_CSUM = 1 << 1
    CTRL_GUEST_OFFLOADS = 1 << 2
    MTU = 1 << 3
    MAC = 1 << 5
    GUEST_TSO4 = 1 << 7
    GUEST_TSO6 = 1 << 8
    GUEST_ECN = 1 << 9
    GUEST_UFO = 1 << 10
    HOST_TSO4 = 1 << 11
    HOST_TSO6 = 1 << 12
    HOST_ECN = 1 << 13
    HOST_UFO = 1 << 14
    MRG_RXBUF = 1 << 15
    STATUS = 1 << 16
    CTRL_VQ = 1 << 17
    CTRL_RX = 1 << 18
    CTRL_VLAN = 1 << 19
    CTRL_RX_EXTRA = 1 << 20
    GUEST_ANNOUNCE = 1 << 21
    MQ = 1 << 22
    CTRL_MAC_ADDR = 1 << 23
    GUEST_USO4 = 1 << 54
    GUEST_USO6 = 1 << 55
    HOST_USO = 1 << 56
    HASH_REPORT = 1 << 57
    RSS = 1 << 60


def pack_config(*, mac: bytes, link_up: bool, announce: bool, pairs: int, mtu: int) -> bytes:
    """The 24 bytes of the configuration space, with those that only drivers who know hashes of flows look at."""
    status = _LINK_UP * link_up | _ANNOUNCE * announce
    return _LAYOUT.pack(mac, status, pairs, mtu, _UNKNOWN_SPEED, _UNKNOWN_DUPLEX, *_HASHES)


def parse_mac(text: str) -> bytes:
    """Six bytes from ``52:54:00:12:34:56``.

    Raises:
        ValueError: not a MAC address that a card can have.
    """
    if not re.fullmatch(r"[0-9a-f]{2}([:-])[0-9a-f]{2}(\1[0-9a-f]{2}){4}", text.strip(), re.IGNORECASE):
        raise ValueError(f"{text!r} is not a MAC address such as 52:54:00:12:34:56")
    mac = bytes.fromhex(re.sub("[:-]", "", text.strip()))
    if mac[0] & 1:
        raise ValueError(f"{text} is a multicast address; the second hex digit of a card's address is even")
    if not any(mac):
        raise ValueError(f"{text} is no card's address")
    return mac


def format_mac(mac: bytes) -> str:
    """As people write it."""
    return mac.hex(":")


def random_mac() -> bytes:
    """An address that is nobody's: locally administered, in QEMU's range."""
    return b"\x52\x54\x00" + secrets.token_bytes(3)
