"""The back-end's side of a vhost-user connection as a state machine without I/O: message in, actions and answer out.

How to drive it
---------------
    session = Session(description, options)
    with session.handle(message) as step:        # ProtocolError: close the connection
        result, error = None, None
        try:
            for action in step.actions:          # in order; each one done before the next
                result = perform(action)
        except (DeviceError, ProtocolError, RingError, OSError, ValueError) as failure:
            error = failure
        reply = step.finish(result, error)       # ProtocolError: close the connection
    if reply is not None:
        send(reply)                              # owns its descriptors

The session changes only in `finish`. One step at a time. Descriptors belong to the message, then to the actions
(`fd.take()` keeps one), and end with the step. After a ProtocolError, or a step left without `finish`, the session
takes no more messages. An exception of `perform` that is not the peer's or the device's doing is a bug: let it pass.

Rules: no socket, no trio, no mmap, no clock; all that a peer can get wrong is judged here or in `wire`, before an
action is made; what only the kernel can tell (a file shorter than its region, …) comes back as the step's `error`.

Answers
-------
Exactly one per message: the message's own, whether or not NEED_REPLY is set; else a u64 if REPLY_ACK is negotiated
(by this very message, too) and NEED_REPLY set, 0 or 1; else none. Flags are 0x5. A message that is refused or fails
gets, in this order: its own negative answer (table `_TABLE`, column `refusal`), the u64 1, or
    CLOSE    ProtocolError: front-end and back-end would no longer agree about memory, features or a ring;
    IGNORE   one warning in the log: the front-end can live without it.
A ring beyond the last is always IGNORE: QEMU sets up as many as its user asked for, and says so better than we could.

States of a ring [rst "Ring states"]
------------------------------------
| state              | left by                                                                          |
|--------------------|----------------------------------------------------------------------------------|
| stopped            | -> started: SET_VRING_KICK with NUM, BASE, ADDR known, or the last of these three |
|                    | after the kick. NUM, BASE, ADDR, KICK may be repeated in any order               |
| started            | -> stopped: GET_VRING_BASE, RESET_DEVICE. KICK, CALL, ERR replace descriptors,   |
|                    | ADDR changes logging only, equal NUM is taken, BASE is refused                   |
| enabled / disabled | SET_VRING_ENABLE in any state, even before SET_FEATURES; RESET_DEVICE and        |
|                    | RESET_OWNER disable. Without PROTOCOL_FEATURES acknowledged all are enabled      |

A stop forgets ADDR and KICK; NUM stays and BASE becomes what the stop returned; CALL and ERR stay with the server.
RESET_DEVICE forgets all of a ring; SET_STATUS 0 forgets nothing.

States of the session
---------------------
| state            | meaning                                        | left by                                     |
|------------------|------------------------------------------------|---------------------------------------------|
| running          | messages are taken                             | ProtocolError -> closed                     |
| in a step        | actions are being done                         | finish -> running                           |
| postcopy advised | a userfaultfd was given away                   | POSTCOPY_LISTEN -> listening, END -> running|
| listening        | new regions are answered with our addresses    | SET_MEM_TABLE, ADD_MEM_REG -> awaiting ack  |
| awaiting ack     | only the front-end's acknowledgement may come  | it -> listening; all else -> closed         |
| closed           | nothing is taken any more                      |                                             |
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final, Self

from vhost import _session_device as device_
from vhost import _session_memory as memory_
from vhost import _session_rings as rings_
from vhost._session_state import (
    RING_FEATURES,
    DeviceDescription,
    Options,
    Plan,
    Postcopy,
    Refused,
    Ring,
    RingState,
    SessionState,
    offered_features,
    offered_protocol_features,
)
from vhost.actions import Action, InflightArea, close_action
from vhost.constants import NO_PROTOCOL_FEATURES, FrontendRequest, ProtocolFeature
from vhost.errors import ProtocolError
from vhost.fds import OwnedFd
from vhost.messages import Inflight, Message, Payload, VringState

__all__ = [
    "RING_FEATURES",
    "DeviceDescription",
    "Options",
    "Postcopy",
    "Ring",
    "RingState",
    "Session",
    "Step",
    "offered_features",
    "offered_protocol_features",
]

_log = logging.getLogger("vhost.session")

WARNINGS_PER_CONNECTION: Final = 32
"""Refusals logged as warnings; a front-end that goes on is logged no more, lest it fills the disk."""


class Refusal(Enum):
    """What becomes of a refused message that asked for no acknowledgement."""

    CLOSE = auto()
    IGNORE = auto()


_Negative = Callable[[Message], Payload]


@dataclass(frozen=True, slots=True)
class _Entry:
    """How a request is handled: by whom, with which protocol feature offered, and what a refusal means.

    `refusal`: CLOSE, IGNORE, or a function that makes the payload of the message's own negative answer.
    """

    handler: Callable[[SessionState, Message], Plan]
    needs: ProtocolFeature = NO_PROTOCOL_FEATURES
    refusal: Refusal | _Negative = Refusal.CLOSE


def _one(_message: Message) -> int:
    return 1


def _nothing(_message: Message) -> None:
    return None


def _state_error(_message: Message) -> int:
    return 0x101  # bit 8: no descriptor; low byte: failed


def _base_zero(message: Message) -> VringState:
    assert isinstance(message.payload, VringState)
    return VringState(message.payload.index, 0)


def _no_inflight(message: Message) -> Inflight:
    """QEMU takes mmap_size 0 for "goes without"."""
    assert isinstance(message.payload, Inflight)
    return Inflight(0, 0, message.payload.num_queues, message.payload.queue_size)


_F = FrontendRequest
_P = ProtocolFeature
_IGNORE = Refusal.IGNORE

_TABLE: Final[dict[int, _Entry]] = {
    _F.GET_FEATURES: _Entry(device_.get_features),
    _F.SET_FEATURES: _Entry(device_.set_features),
    _F.SET_OWNER: _Entry(device_.set_owner),
    _F.RESET_OWNER: _Entry(device_.reset_owner),
    _F.SET_MEM_TABLE: _Entry(memory_.set_mem_table),
    _F.SET_LOG_BASE: _Entry(memory_.set_log_base),
    _F.SET_LOG_FD: _Entry(memory_.set_log_fd, refusal=_IGNORE),
    _F.SET_VRING_NUM: _Entry(rings_.set_vring_num),
    _F.SET_VRING_ADDR: _Entry(rings_.set_vring_addr),
    _F.SET_VRING_BASE: _Entry(rings_.set_vring_base),
    _F.GET_VRING_BASE: _Entry(rings_.get_vring_base, refusal=_base_zero),
    _F.SET_VRING_KICK: _Entry(rings_.set_vring_kick),
    _F.SET_VRING_CALL: _Entry(rings_.set_vring_call),
    _F.SET_VRING_ERR: _Entry(rings_.set_vring_err, refusal=_IGNORE),
    _F.GET_PROTOCOL_FEATURES: _Entry(device_.get_protocol_features),
    _F.SET_PROTOCOL_FEATURES: _Entry(device_.set_protocol_features),
    _F.GET_QUEUE_NUM: _Entry(device_.get_queue_num),
    _F.SET_VRING_ENABLE: _Entry(rings_.set_vring_enable),
    _F.SEND_RARP: _Entry(device_.send_rarp, _P.RARP, _IGNORE),
    _F.NET_SET_MTU: _Entry(device_.net_set_mtu, _P.MTU, _IGNORE),
    _F.SET_BACKEND_REQ_FD: _Entry(device_.set_backend_req_fd, _P.BACKEND_REQ, _IGNORE),
    _F.IOTLB_MSG: _Entry(memory_.iotlb_msg, refusal=_one),
    _F.SET_VRING_ENDIAN: _Entry(rings_.set_vring_endian),
    _F.GET_CONFIG: _Entry(device_.get_config, _P.CONFIG, _nothing),
    _F.SET_CONFIG: _Entry(device_.set_config, _P.CONFIG, _IGNORE),
    _F.CREATE_CRYPTO_SESSION: _Entry(device_.crypto_session),
    _F.CLOSE_CRYPTO_SESSION: _Entry(device_.crypto_session, refusal=_IGNORE),
    _F.POSTCOPY_ADVISE: _Entry(memory_.postcopy_advise, _P.PAGEFAULT, _nothing),
    _F.POSTCOPY_LISTEN: _Entry(memory_.postcopy_listen, _P.PAGEFAULT, _one),
    _F.POSTCOPY_END: _Entry(memory_.postcopy_end, _P.PAGEFAULT, _one),
    _F.GET_INFLIGHT_FD: _Entry(rings_.get_inflight_fd, _P.INFLIGHT_SHMFD, _no_inflight),
    _F.SET_INFLIGHT_FD: _Entry(rings_.set_inflight_fd, _P.INFLIGHT_SHMFD),
    _F.GPU_SET_SOCKET: _Entry(device_.gpu_set_socket, refusal=_IGNORE),
    _F.RESET_DEVICE: _Entry(device_.reset_device, _P.RESET_DEVICE),
    _F.VRING_KICK: _Entry(rings_.vring_kick, refusal=_IGNORE),
    _F.GET_MAX_MEM_SLOTS: _Entry(device_.get_max_mem_slots),
    _F.ADD_MEM_REG: _Entry(memory_.add_mem_reg, _P.CONFIGURE_MEM_SLOTS),
    _F.REM_MEM_REG: _Entry(memory_.rem_mem_reg, _P.CONFIGURE_MEM_SLOTS),
    _F.SET_STATUS: _Entry(device_.set_status, refusal=_IGNORE),
    _F.GET_STATUS: _Entry(device_.get_status),
    _F.GET_SHARED_OBJECT: _Entry(device_.get_shared_object, _P.SHARED_OBJECT, _nothing),
    _F.SET_DEVICE_STATE_FD: _Entry(device_.set_device_state_fd, _P.DEVICE_STATE, _state_error),
    _F.CHECK_DEVICE_STATE: _Entry(device_.check_device_state, _P.DEVICE_STATE, _one),
    _F.GET_SHMEM_CONFIG: _Entry(device_.get_shmem_config, _P.SHMEM, _IGNORE),
    _F.GET_VRING_BASE_SKIP_DRAIN: _Entry(rings_.get_vring_base_skip_drain, _P.GET_VRING_BASE_SKIP_DRAIN, _IGNORE),
}
"""Facts about each request, from which dispatch and refusal are derived."""


class Step:
    """One message on its way: what must be done, and then its answer. Made by Session.handle."""

    __slots__ = ("_finished", "_judged", "_plan", "_refused", "_session", "actions", "message")

    def __init__(self, session: "Session", message: Message, plan: Plan, refused: Refused | None) -> None:
        """Use Session.handle."""
        self._session = session
        self._plan = plan
        self._refused = refused
        self._finished = False
        self._judged = False
        self.message = message
        self.actions: tuple[Action, ...] = tuple(plan.actions)

    def finish(self, result: object = None, error: Exception | None = None) -> Message | None:
        """Say how it went; the session moves on.

        Args:
            result: what the last action returned; the actions say what that is.
            error: what one of them raised; the later ones were not done.

        Returns: the answer to send, or None. The caller owns its descriptors.

        Raises:
            ProtocolError: the connection must be closed: it failed and the front-end would never know.
            TypeError: `result` is not what the action returns.
            RuntimeError: called twice.

        Resource handling: descriptors that no action's performer took are closed, and those of `result` that did not
        go into the answer.
        """
        if self._finished:
            raise RuntimeError("the step is finished already")
        self._judged = True
        try:
            return self._session._finish(self.message, self._plan, self._refused, result, error)
        finally:
            self.close()

    def close(self) -> None:
        """Give up: close what is left. Without `finish` the session is closed. A second call does nothing."""
        if self._finished:
            return
        self._finished = True
        self._session._leave(judged=self._judged)
        self.message.close()
        for action in self.actions:
            close_action(action)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()


class Session:
    """State of one connection, back-end side."""

    def __init__(
        self,
        device: DeviceDescription,
        options: Options | None = None,
        log: "logging.Logger | logging.LoggerAdapter[logging.Logger] | None" = None,
    ) -> None:
        """Args: device: what is served; options: what its user chose; log: where refusals are told."""
        self._log = log or _log
        self._state = SessionState.new(device, options or Options())
        self._in_step = False
        self._closed = False
        self._warnings = 0

    @property
    def offered_features(self) -> int:
        """Virtio features as offered."""
        return self._state.offered

    @property
    def offered_protocol_features(self) -> ProtocolFeature:
        """Protocol features as offered."""
        return self._state.offered_protocol

    @property
    def features(self) -> int:
        """Virtio features as negotiated, 0 before."""
        return self._state.features

    @property
    def protocol_features(self) -> ProtocolFeature:
        """Protocol features as negotiated, none before."""
        return self._state.protocol

    @property
    def status(self) -> int:
        """Device status byte of the last SET_STATUS. The server may set DEVICE_NEEDS_RESET in it."""
        return self._state.status

    @status.setter
    def status(self, value: int) -> None:
        self._state.status = value & 0xFF

    @property
    def rings(self) -> tuple[Ring, ...]:
        """Rings as known; not to be changed."""
        return tuple(self._state.rings)

    @property
    def started(self) -> tuple[int, ...]:
        """Numbers of the rings that run."""
        return tuple(ring.index for ring in self._state.started_rings)

    @property
    def postcopy(self) -> Postcopy:
        """How far postcopy has come."""
        return self._state.postcopy

    @property
    def closed(self) -> bool:
        """True after a ProtocolError."""
        return self._closed

    def handle(self, message: Message) -> Step:
        """Judge a message of the front-end (wire.decode_request).

        Returns: what to do; `finish` it.

        Raises:
            ProtocolError: the connection must be closed.
            RuntimeError: the last step was not finished, or the session is closed.

        Resource handling: takes over the message with its descriptors, also when it raises.
        """
        if self._in_step or self._closed:
            message.close()
            raise RuntimeError("the session is closed" if self._closed else "the last step is not finished")
        refused = None
        try:
            plan = self._plan(message)
        except Refused as refusal:
            plan, refused = Plan(), refusal
        except BaseException:
            self._closed = True
            message.close()
            raise
        self._in_step = True
        return Step(self, message, plan, refused)

    def _plan(self, message: Message) -> Plan:
        if self._state.awaiting_ack is not None:
            return memory_.postcopy_ack(self._state, message)
        entry = _TABLE.get(message.request)
        if entry is None:
            raise Refused("this message is not known here")
        if entry.needs and entry.needs not in self._state.offered_protocol:
            raise Refused(f"{entry.needs.name} was not offered")
        return entry.handler(self._state, message)

    def _finish(
        self, message: Message, plan: Plan, refused: Refused | None, result: object, error: Exception | None
    ) -> Message | None:
        if refused is None and error is not None:
            if plan.failed is not None:
                plan.failed()
            refused = Refused(str(error) or type(error).__name__)
            if plan.fatal:
                _close_result(result)
                self._closed = True
                raise ProtocolError(refused.reason, message.request) from error
        if refused is not None:
            _close_result(result)
            return self._refuse(message, refused, plan)
        try:
            reply = plan.done(result) if plan.done is not None else None
        except BaseException:
            self._closed = True
            raise
        finally:
            _close_result(result)
        if reply is None and not plan.silent and self._must_acknowledge(message):
            reply = message.reply(0)
        return reply

    def _must_acknowledge(self, message: Message) -> bool:
        return message.need_reply and ProtocolFeature.REPLY_ACK in self._state.protocol

    def _refuse(self, message: Message, refused: Refused, plan: Plan) -> Message | None:
        entry = _TABLE.get(message.request)
        refusal = Refusal.IGNORE if entry is None else entry.refusal
        if not isinstance(refusal, Refusal):
            self._warn(message, refused)
            return message.reply(refusal(message))
        if self._must_acknowledge(message) and not plan.silent:
            self._warn(message, refused)
            return message.reply(1)
        if refusal is Refusal.IGNORE or refused.harmless:
            self._warn(message, refused)
            return None
        self._closed = True
        raise ProtocolError(refused.reason, message.request)

    def _warn(self, message: Message, refused: Refused) -> None:
        self._warnings += 1
        if self._warnings < WARNINGS_PER_CONNECTION:
            self._log.warning("%s refused: %s", message.name, refused.reason)
        elif self._warnings == WARNINGS_PER_CONNECTION:
            self._log.warning("%s refused: %s; more of this connection is not logged", message.name, refused.reason)

    def _leave(self, *, judged: bool) -> None:
        self._in_step = False
        self._closed |= not judged


def _close_result(result: object) -> None:
    """Close what did not move to the answer."""
    if isinstance(result, InflightArea):
        result = result.fd
    if isinstance(result, OwnedFd):
        result.close()
