"""The suite on somebody else's back-end: it runs, passes what is known to work, and finds what is known not to."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress

import peerlib
import pytest
from click.testing import CliRunner

from vhost import wire
from vhost.channel import BlockingChannel
from vhost.constants import FrontendRequest as F
from vhost.constants import ProtocolFeature as P
from vhost.messages import Config, Message, Payload
from vhost.testing import Report, Verdict, check_backend

#: titles that qemu-storage-daemon 7.2 fails; docs/peers.md says more
QEMU_7_2 = {
    "NEED_REPLY means nothing unless REPLY_ACK is negotiated",
    "a message with an answer of its own is answered once, NEED_REPLY or not",
    "a refused message is acknowledged with something other than 0",
    "an unknown region is refused",
    "the answer holds exactly the bytes asked for, at any offset",
    "what cannot be answered is answered with a payload of 0 bytes",
    "a write beyond the configuration space is refused",
    "the answer echoes the request's 16 bytes (rust-vmm wants that)",
    "survives a table of 4 billion regions",
    "survives ring numbers that do not exist",
    "descriptors nobody asked for are closed",
    "split: a disabled ring is not processed until it is enabled",
    "split: a ring disabled while it runs pauses, and goes on once enabled",
    "split: enabling is enough: requests made meanwhile are found without another kick",
    "without a descriptor requests are served, and nobody is notified",
    "without a descriptor (bit 8) the ring is polled",
}
#: depends on what an out-of-bounds access hits
SOMETIMES = {"survives a table of 4 billion regions", "survives ring numbers that do not exist"}


def test_storage_daemon() -> None:
    version = peerlib.storage_daemon_version()
    with peerlib.storage_daemon() as backend:
        report = check_backend(backend.connect, "blk", writable=True)
    failed = {outcome.title for outcome in report.failed}
    assert report.count(Verdict.PASS) > 80
    assert report.count(Verdict.NOT_RUN) == 0
    if version == (7, 2):
        assert failed - SOMETIMES == QEMU_7_2 - SOMETIMES
        assert backend.deaths > 0
    else:
        assert failed <= QEMU_7_2


@contextmanager
def liar(lie: str) -> Iterator[socket.socket]:
    """A back-end that answers GET_FEATURES and its like, and `lie`s."""

    ours, theirs = socket.socketpair()

    def serve() -> None:
        with BlockingChannel(theirs) as channel, suppress(OSError):  # the suite may leave with answers unread
            while (message := channel.receive()) is not None:
                with message.fds:
                    answer = _answer(message, lie)
                    if answer is not None:
                        channel.socket.sendall(answer)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield ours
    finally:
        ours.close()
        thread.join()


def _answer(message: Message, lie: str) -> bytes | None:
    payloads: dict[int, Payload] = {
        F.GET_FEATURES: 1 << 30 | 1 << 32,
        F.GET_PROTOCOL_FEATURES: int(P.REPLY_ACK | P.CONFIG | P.MQ),
        F.GET_QUEUE_NUM: 1,
    }
    payload = payloads.get(message.request)
    if message.request == F.GET_CONFIG and isinstance(message.payload, Config):
        size = message.payload.size
        payload = Config(message.payload.offset, size, 0, bytes(size + (lie == "long config")))
    elif payload is None and message.need_reply:
        payload = 0
    if payload is None:
        return None
    data = wire.encode(message.reply(payload))
    if lie == "flags" and message.request == F.GET_FEATURES:
        data = data[:4] + b"\x01\0\0\0" + data[8:]
    if lie == "twice" and message.need_reply:
        data *= 2
    if lie == "silent" and message.request == F.SET_FEATURES:
        return None
    return data


def _judge(lie: str, title: str) -> Report:
    connections: list[AbstractContextManager[socket.socket]] = []

    def connect() -> socket.socket:
        context = liar(lie)
        connections.append(context)
        return context.__enter__()

    try:
        return check_backend(connect, "any", only=lambda check: title in check.title)
    finally:
        for context in connections:
            context.__exit__(None, None, None)


@pytest.mark.parametrize(
    ("lie", "title"),
    [
        ("flags", "a reply has version 1"),
        ("twice", "answered by u64 0 on success"),
        ("twice", "is answered once"),
        ("long config", "holds exactly the bytes"),
        ("silent", "answered by u64 0 on success"),
    ],
)
def test_finds_lies(lie: str, title: str) -> None:
    """A suite that cannot fail proves nothing."""
    honest = _judge("", title)
    assert [outcome.verdict for outcome in honest.outcomes] == [Verdict.PASS], str(honest)
    report = _judge(lie, title)
    assert [outcome.verdict for outcome in report.outcomes] == [Verdict.FAIL], str(report)


def test_command() -> None:
    """Exit status and words: all well, something fails, nobody there."""
    from vhost.cli.check import command

    with peerlib.example("rng") as backend:
        ran = CliRunner().invoke(command, ["rng", "--socket-path", str(backend.path), "--only", "REPLY_ACK"])
        assert ran.exit_code == 0, ran.output
        assert "pass" in ran.output
        assert ran.output.splitlines()[-1].startswith("5 pass, 0 fail")
        path = backend.path
    ran = CliRunner().invoke(command, ["rng", "--socket-path", str(path)])
    assert ran.exit_code == 2
    assert "is the back-end running?" in ran.output
    if peerlib.storage_daemon_version() == (7, 2):
        with peerlib.storage_daemon() as backend:
            ran = CliRunner().invoke(command, ["blk", "--socket-path", str(backend.path), "--only", "GET_CONFIG"])
            assert ran.exit_code == 1
            assert "fail" in ran.output


def test_a_backend_that_dies_is_told_from_one_that_is_wrong() -> None:
    """Once it is gone the rest is not run, and nobody waits for it."""
    with peerlib.example("rng") as backend:
        real = backend.connect
        backend.process.kill()
        backend.process.wait()

        def connect() -> socket.socket:
            raise ConnectionRefusedError(111, "Connection refused")

        report = check_backend(connect, "rng")
        assert report.count(Verdict.FAIL) == 1
        assert report.count(Verdict.PASS) == 0
        assert {outcome.detail for outcome in report.outcomes[1:]} == {"the back-end is gone"}
        real().close()
