"""Framing: pieces, descriptors, ends of streams; over real sockets, blocking and trio."""

import array
import os
import socket
import struct

import pytest
import trio
from sessionlib import memfd, open_fds

from vhost import wire
from vhost.channel import ANCILLARY_SIZE, BlockingChannel, Channel, Framer
from vhost.constants import HEADER_SIZE, FrontendRequest
from vhost.errors import ConnectionClosed, ProtocolError
from vhost.fds import Fds, OwnedFd
from vhost.messages import MemRegion, MemTable, Message, VringFd, VringState

F = FrontendRequest
NUM = struct.pack("=IIIII", F.SET_VRING_NUM, 1, 8, 3, 256)


def rights(*fds: int) -> list[tuple[int, int, array.array]]:
    return [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))]


# Framer


def test_whole_message_at_once() -> None:
    [raw] = Framer().feed(NUM)
    assert (raw.request, raw.flags, raw.payload, len(raw.fds)) == (8, 1, NUM[12:], 0)


def test_byte_by_byte_with_fds_on_the_first() -> None:
    framer = Framer()
    fd = memfd()
    for i in range(len(NUM) - 1):
        assert framer.wanted == (HEADER_SIZE - i if i < HEADER_SIZE else len(NUM) - i)
        assert framer.feed(NUM[i : i + 1], Fds([fd]) if i == 0 else None) == []
        assert framer.in_message
    [raw] = framer.feed(NUM[-1:])
    assert raw.fds.filenos() == [fd]
    assert not framer.in_message
    raw.fds.close()
    framer.end()


def test_several_messages_in_one_read() -> None:
    framer = Framer()
    fd = memfd()
    first, second = framer.feed(NUM + NUM + NUM[:5], Fds([fd]))
    assert first.fds.filenos() == [fd]
    assert len(second.fds) == 0
    assert framer.wanted == HEADER_SIZE - 5
    first.fds.close()
    with pytest.raises(ProtocolError, match="inside a header, 7 bytes before its end"):
        framer.end()


def test_message_without_payload() -> None:
    [raw] = Framer().feed(struct.pack("=III", F.GET_FEATURES, 1, 0))
    assert raw.payload == b""


def test_bad_header_closes_what_is_held() -> None:
    framer = Framer()
    framer.feed(NUM[:4], Fds([memfd()]))
    with pytest.raises(ProtocolError, match="version"):
        framer.feed(bytes(8))
    with pytest.raises(ProtocolError, match="already broken"):
        framer.feed(NUM, Fds([memfd()]))


def test_bad_header_after_a_good_message_closes_both() -> None:
    framer = Framer()
    with pytest.raises(ProtocolError):
        framer.feed(NUM + bytes(12), Fds([memfd()]))


def test_too_many_fds() -> None:
    framer = Framer()
    framer.feed(NUM[:1], Fds([memfd() for _ in range(64)]))
    with pytest.raises(ProtocolError, match="65 file descriptors"):
        framer.feed(NUM[1:2], Fds([memfd()]))


def test_end_names_the_message() -> None:
    framer = Framer()
    framer.feed(NUM[:14], Fds([memfd()]))
    with pytest.raises(ProtocolError, match="inside SET_VRING_NUM, 6 bytes"):
        framer.end()


# Ownership


def test_owned_fd() -> None:
    owned = OwnedFd(memfd())
    number = owned.fileno()
    other = owned.move()
    assert owned.closed
    assert other.fileno() == number
    with pytest.raises(ValueError, match="closed or taken"):
        owned.fileno()
    with other.dup() as copy:
        assert copy.fileno() != number
        assert os.fstat(copy.fileno()).st_ino == os.fstat(number).st_ino
    os.close(other.take())
    other.close()
    with pytest.raises(ValueError, match="not a file descriptor"):
        OwnedFd(-1)


def test_dropped_fd_is_closed_and_warned_of() -> None:
    before = open_fds()
    owned = OwnedFd(memfd())
    with pytest.warns(ResourceWarning, match="unclosed"):
        owned.__del__()
    assert open_fds() == before


# Sockets


@pytest.fixture
def pair() -> tuple[socket.socket, socket.socket]:
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)


def test_blocking_call(pair: tuple[socket.socket, socket.socket]) -> None:
    with BlockingChannel(pair[0]) as front, BlockingChannel(pair[1]) as back:
        back.send(Message(F.GET_FEATURES, 0x123, 5))
        assert front.call(Message(F.GET_FEATURES)).payload == 0x123
        asked = back.receive()
        assert asked == Message(F.GET_FEATURES)
        back.close()
        with pytest.raises((ConnectionClosed, BrokenPipeError)):
            front.call(Message(F.GET_FEATURES))


def test_fds_stay_with_their_message(pair: tuple[socket.socket, socket.socket]) -> None:
    """Three messages are in the socket before the first read; the middle one carries a descriptor."""
    with BlockingChannel(pair[0]) as front, BlockingChannel(pair[1]) as back:
        fd = memfd()
        inode = os.fstat(fd).st_ino
        front.send(Message(F.SET_OWNER))
        front.send(Message(F.SET_VRING_KICK, VringFd(1, has_fd=True), fds=Fds([fd])))
        front.send(Message(F.SET_VRING_NUM, VringState(0, 2)))
        first, second, third = back.receive(), back.receive(), back.receive()
        assert first is not None
        assert second is not None
        assert third is not None
        assert (len(first.fds), len(second.fds), len(third.fds)) == (0, 1, 0)
        with second.fds.pop() as got:
            assert os.fstat(got.fileno()).st_ino == inode
            assert not os.get_inheritable(got.fileno())


def test_truncated_descriptors_end_the_connection(pair: tuple[socket.socket, socket.socket]) -> None:
    with pair[0], BlockingChannel(pair[1]) as back:
        fd = memfd()
        pair[0].sendmsg([NUM], rights(*[fd] * 100))
        os.close(fd)
        assert socket.CMSG_SPACE(100 * 4) > ANCILLARY_SIZE
        with pytest.raises(ProtocolError, match="lost on the way"):
            back.receive()


def test_extra_descriptors_are_closed(pair: tuple[socket.socket, socket.socket]) -> None:
    with pair[0], BlockingChannel(pair[1]) as back:
        fd = memfd()
        pair[0].sendmsg([NUM], rights(*[fd] * 40))
        os.close(fd)
        message = back.receive()
        assert message is not None
        assert len(message.fds) == 0


def test_fds_with_the_payload_belong_to_the_message(pair: tuple[socket.socket, socket.socket]) -> None:
    with pair[0], BlockingChannel(pair[1]) as back:
        fd = memfd()
        data = struct.pack("=IIIQ", F.SET_VRING_CALL, 1, 8, 0)
        pair[0].sendall(data[:12])
        pair[0].sendmsg([data[12:]], rights(fd))
        os.close(fd)
        message = back.receive()
        assert message is not None
        assert len(message.fds) == 1
        message.close()


@pytest.mark.parametrize("cut", [1, 11, 12, 19])
def test_end_inside_a_message(pair: tuple[socket.socket, socket.socket], cut: int) -> None:
    with BlockingChannel(pair[1]) as back:
        fd = memfd()
        pair[0].sendmsg([NUM[:cut]], rights(fd))
        os.close(fd)
        pair[0].close()
        with pytest.raises(ProtocolError, match="closed the connection inside"):
            back.receive()


def test_end_between_messages(pair: tuple[socket.socket, socket.socket]) -> None:
    with BlockingChannel(pair[1]) as back:
        pair[0].sendall(NUM)
        pair[0].close()
        assert back.receive() is not None
        assert back.receive() is None


async def test_trio_both_ways() -> None:
    left, right = trio.socket.socketpair()
    with Channel(left, wire.decode_reply) as front, Channel(right) as back:
        regions = tuple(MemRegion(i << 20, 1 << 20, i << 20, 0) for i in range(32))
        fds = Fds([memfd() for _ in regions])
        await front.send(Message(F.SET_MEM_TABLE, MemTable(regions), fds=fds))
        assert len(fds.filenos()) == 0
        message = await back.receive()
        assert message is not None
        assert message.payload == MemTable(regions)
        assert len(message.fds) == 32
        message.close()
        await back.send(Message(F.GET_INFLIGHT_FD, None, 5))
        with pytest.raises(ProtocolError, match="GET_INFLIGHT_FD: payload has 0 bytes"):
            await front.receive()


async def test_trio_pieces_and_cancellation() -> None:
    """A read that is cancelled in the middle of a message goes on where it was."""
    left, right = trio.socket.socketpair()
    with left, Channel(right) as back:
        fd = memfd()
        await left.sendmsg([NUM[:5]], rights(fd))
        os.close(fd)
        with trio.move_on_after(0.02) as scope:
            await back.receive()
        assert scope.cancelled_caught
        await left.send(NUM[5:13])
        with trio.move_on_after(0.02):
            await back.receive()
        await left.send(NUM[13:])
        message = await back.receive()
        assert message == Message(F.SET_VRING_NUM, VringState(3, 256))
        left.close()
        assert await back.receive() is None


async def test_trio_send_survives_a_full_socket() -> None:
    left, right = trio.socket.socketpair()
    left.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4608)
    with Channel(left) as front, Channel(right) as back:
        async with trio.open_nursery() as nursery:
            for i in range(40):
                nursery.start_soon(front.send, Message(F.CREATE_CRYPTO_SESSION, bytes([i]) * 4000))
            await trio.sleep(0.01)
            seen = set()
            for _ in range(40):
                message = await back.receive()
                assert message is not None
                assert isinstance(message.payload, bytes)
                assert len(set(message.payload)) == 1
                seen.add(message.payload[0])
        assert seen == set(range(40))


async def test_send_closes_fds_even_when_it_fails() -> None:
    left, right = trio.socket.socketpair()
    right.close()
    with Channel(left) as front, pytest.raises(BrokenPipeError):
        await front.send(Message(F.SET_OWNER, fds=Fds([memfd()])))
