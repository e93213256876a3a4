"""What a hostile front-end may try on the control channel, as far as the session is concerned.

Each case asserts that the session says no in words or goes on as before, and (conftest) that no descriptor stays open.
"""

import logging
import os

import pytest
from sessionlib import GUEST, MODERN, F, Peer, addr, memfd, message, open_fds, ready

from vhost import actions as a
from vhost.constants import MAX_FDS
from vhost.errors import ProtocolError
from vhost.fds import Fds
from vhost.messages import (
    FRONTEND_SPECS,
    Inflight,
    MemRegion,
    MemTable,
    Message,
    VringFd,
    VringState,
)
from vhost.session import WARNINGS_PER_CONNECTION


@pytest.mark.parametrize("request_", sorted(FRONTEND_SPECS))
def test_every_request_first(request_: int) -> None:
    """Anything may come before negotiation: an answer, nothing, or ProtocolError."""
    spec = FRONTEND_SPECS[request_]
    for flags in (1, 9):
        for size in (0, 8, 12, 16, 24, 32, 40):
            peer = Peer()
            try:
                peer.raw(request_, bytes(size), flags=flags, fds=spec.fds[1] and 1)
            except ProtocolError as error:
                words = str(error)
                assert words.startswith(F(request_).name)
                assert len(words) > len(F(request_).name) + 10


@pytest.mark.parametrize("request_", sorted(FRONTEND_SPECS))
def test_every_request_with_every_number_of_fds(request_: int) -> None:
    spec = FRONTEND_SPECS[request_]
    for fds in (0, 1, 2, MAX_FDS, MAX_FDS + 5):
        peer = ready()
        for size in (0, 8, 16, 24, 40):
            try:
                peer.raw(request_, bytes(size), flags=9, fds=fds)
            except ProtocolError:
                peer = ready()
    assert spec.request == request_


def test_repeats_do_not_pile_up_descriptors() -> None:
    """CVE-2019-14818, CVE-2020-10726, CVE-2022-0669: repeated messages leaked a descriptor each."""
    peer = ready()
    before = open_fds()
    for _ in range(200):
        peer.send(F.SET_VRING_NUM, VringState(0, 128))
        peer.send(F.SET_MEM_TABLE, MemTable((GUEST, MemRegion(1 << 30, 4096, 1 << 30, 0))), fds=2)
        peer.send(F.GET_INFLIGHT_FD, Inflight(0, 0, 4, 128))
        peer.send(F.SET_INFLIGHT_FD, Inflight(4096, 0, 4, 128), fds=1)
        peer.send(F.SET_VRING_CALL, VringFd(0, has_fd=True), fds=1)
        peer.send(F.GET_INFLIGHT_FD, Inflight(0, 0, 4, 128), fds=0)
        peer.raw(F.GET_INFLIGHT_FD, bytes(24), fds=1)
        peer.raw(F.SET_VRING_NUM, bytes(8), flags=9, fds=3)
        peer.send(F.SET_BACKEND_REQ_FD, fds=1)
    assert open_fds() == before


def test_refused_messages_close_their_descriptors() -> None:
    peer = ready()
    fd = memfd()
    assert peer.raw(F.SET_VRING_CALL, (7).to_bytes(8, "little"), flags=9, fds=[fd]) is not None
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


def test_no_fd_bit_and_an_fd_all_the_same() -> None:
    peer = ready()
    assert peer.acked(F.SET_VRING_CALL, VringFd(0, has_fd=False), fds=1) == 0
    assert peer.last == [a.SetCall(0, None)]


def test_kick_before_enable_and_before_everything() -> None:
    peer = Peer()
    peer.send(F.SET_VRING_KICK, VringFd(0, has_fd=True), fds=1)
    assert peer.session.started == ()


def test_refusals_do_not_fill_the_log(caplog: pytest.LogCaptureFixture) -> None:
    peer = ready()
    with caplog.at_level(logging.WARNING):
        for _ in range(10 * WARNINGS_PER_CONNECTION):
            peer.send(F.SET_VRING_ENABLE, VringState(200, 1))
    assert len(caplog.records) == WARNINGS_PER_CONNECTION
    assert "ring 200 does not exist, this device has 4 (0-3)" in caplog.records[0].getMessage()
    assert "more of this connection is not logged" in caplog.records[-1].getMessage()


def test_nothing_is_taken_after_an_error() -> None:
    peer = ready()
    with pytest.raises(ProtocolError):
        peer.send(F.SET_MEM_TABLE, MemTable(()))
    assert peer.session.closed
    with pytest.raises(RuntimeError, match="closed"):
        peer.session.handle(message(F.SET_VRING_CALL, VringFd(0, has_fd=True), fds=1))


def test_an_unfinished_step_closes_the_session() -> None:
    peer = ready()
    with peer.session.handle(message(F.SET_MEM_TABLE, MemTable((GUEST,)), fds=1)) as step:
        assert len(step.actions) == 1
        with pytest.raises(RuntimeError, match="last step is not finished"):
            peer.session.handle(message(F.SET_BACKEND_REQ_FD, fds=1))
    assert peer.session.closed
    with pytest.raises(RuntimeError, match="finished already"):
        step.finish()


def test_a_server_that_breaks_its_contract_hears_of_it() -> None:
    for request, payload in (
        (F.GET_INFLIGHT_FD, Inflight(0, 0, 1, 128)),
        (F.POSTCOPY_ADVISE, None),
    ):
        session = Peer().session
        with session.handle(message(request, payload)) as step, pytest.raises(TypeError, match="must return"):
            step.finish("nonsense")
        assert session.closed


def test_messages_without_a_wire_are_taken_as_they_are() -> None:
    """An embedding VMM makes messages itself."""
    session = Peer().session
    with session.handle(Message(F.SET_FEATURES, MODERN)) as step:
        assert step.finish() is None
    regions = MemTable((GUEST,))
    with session.handle(Message(F.SET_MEM_TABLE, regions, fds=Fds([memfd()]))) as step:
        [action] = step.actions
        assert isinstance(action, a.SetMemTable)
        fd = action.regions[0].fd.take()
        step.finish()
    os.close(fd)
    for request, payload in (
        (F.SET_VRING_NUM, VringState(0, 64)),
        (F.SET_VRING_BASE, VringState(0, 0)),
        (F.SET_VRING_ADDR, addr(0)),
        (F.SET_VRING_KICK, VringFd(0, has_fd=False)),
    ):
        with session.handle(Message(request, payload)) as step:  # type: ignore[arg-type]
            step.finish()
    assert session.started == (0,)
