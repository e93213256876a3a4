"""The message table, and the small codings that are not plain structs."""

import sys

import pytest

from vhost.constants import FrontendRequest, IotlbPerm, ProtocolFeature, VirtioFeature
from vhost.errors import ProtocolError, request_name
from vhost.messages import (
    BACKEND_SPECS,
    FRONTEND_SPECS,
    Answer,
    Message,
    RingBase,
    VringFd,
    mac_of_rarp,
)
from vhost.session import _TABLE


def test_every_request_is_in_the_tables() -> None:
    assert sorted(FRONTEND_SPECS) == list(range(1, 46))
    assert sorted(BACKEND_SPECS) == list(range(1, 11))
    assert sorted(_TABLE) == sorted(FRONTEND_SPECS)


def test_requests_with_an_answer_have_its_kind_and_a_way_to_say_no() -> None:
    for request, spec in FRONTEND_SPECS.items():
        if spec.answer is Answer.ALWAYS:
            assert spec.reply, request
        for kinds in (spec.payload, spec.reply):
            assert len(set(kinds)) == len(kinds)


@pytest.mark.parametrize(
    ("value", "index", "has_fd"), [(0, 0, True), (0x100, 0, False), (0x1FF, 255, False), (0x10001, 0x10001, True)]
)
def test_vring_fd(value: int, index: int, has_fd: bool) -> None:
    assert VringFd.from_u64(value) == VringFd(index, has_fd)
    assert VringFd(index, has_fd).to_u64() == value


@pytest.mark.parametrize(
    ("num", "base"),
    [
        (0x8000_8000, RingBase(0, 0, True, True)),
        (0x8005_0007, RingBase(7, 5, False, True)),
        (0x7FFF_FFFF, RingBase(0x7FFF, 0x7FFF, True, False)),
        (0x0000_0005, RingBase(5, 0, False, False)),
    ],
)
def test_packed_base_both_ways(num: int, base: RingBase) -> None:
    assert RingBase.decode(num, packed=True) == base
    assert base.encode(packed=True) == num


def test_packed_base_of_dpdk_has_a_lower_half_only() -> None:
    assert RingBase.decode(0x8000, packed=True) == RingBase(0, 0, True, True)
    assert RingBase.decode(0x8003, packed=True) == RingBase(3, 3, True, True)


def test_split_base() -> None:
    assert RingBase.decode(0xFFFF, packed=False).avail == 0xFFFF
    assert RingBase(0x1FFFF).encode(packed=False) == 0xFFFF


def test_mac_of_rarp() -> None:
    mac = bytes([0x52, 0x54, 0, 1, 2, 3])
    assert mac_of_rarp(int.from_bytes(mac + bytes(2), sys.byteorder)) == mac


def test_names() -> None:
    assert Message(5).name == "SET_MEM_TABLE"
    assert request_name(99) == "message 99"
    error = ProtocolError("it is broken", FrontendRequest.SET_OWNER)
    assert str(error) == "SET_OWNER: it is broken"
    assert error.request is FrontendRequest.SET_OWNER
    assert str(ProtocolError("it is broken")) == "it is broken"


def test_inverted_flags_keep_bits_without_a_name() -> None:
    """IntFlag alone loses the device's bits 44-63 in `features & ~LOG_ALL`."""
    features = 1 << 63 | VirtioFeature.LOG_ALL | 0x40
    assert features & ~VirtioFeature.LOG_ALL == 1 << 63 | 0x40
    assert ProtocolFeature(0) == ProtocolFeature.MQ & ~ProtocolFeature.MQ
    assert 4 & ~(IotlbPerm.READ | IotlbPerm.WRITE) == 4
