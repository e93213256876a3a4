"""Exceptions, sorted by who is at fault.

| at fault                      | exception                              | effect                                 |
|-------------------------------|----------------------------------------|----------------------------------------|
| peer (bad message)            | ProtocolError                          | that connection closes, others live on |
| guest (bad ring)              | QueueBroken (an event)                 | the queue is parked                    |
| backing store, host           | DeviceError                            | the request fails, the device lives    |
| embedder (misuse of the API)  | ValueError, TypeError, RuntimeError    | raised to the caller                   |
"""

from vhost.constants import BackendRequest, FrontendRequest


class VhostError(Exception):
    """Base of everything this package raises on purpose."""


class ProtocolError(VhostError):
    """The peer broke the vhost-user protocol; its connection has to be closed.

    Attributes:
        request: the message it broke it with, an enum member where the number is known, None for a broken stream.
        reason: one sentence.
    """

    def __init__(self, reason: str, request: int | None = None) -> None:
        """Args: reason: one sentence; request: message number or enum member."""
        self.request = request
        self.reason = reason
        super().__init__(reason if request is None else f"{request_name(request)}: {reason}")


class DeviceError(VhostError):
    """The device, its store or the host failed; the peer is not to blame."""


class QueueBroken(VhostError):
    """A guest broke a ring.

    Attributes:
        index: ring number.
        reason: one sentence.
    """

    def __init__(self, index: int, reason: str) -> None:
        """Args: index: ring number; reason: one sentence."""
        self.index = index
        self.reason = reason
        super().__init__(f"queue {index}: {reason}")


class ConnectionClosed(VhostError):
    """The peer went away where an answer was due."""


def request_name(request: int) -> str:
    """Name of a message for people: `SET_MEM_TABLE`, or `message 77` when unknown.

    Args:
        request: number, or a member of FrontendRequest or BackendRequest (a plain number is taken for a front-end's).
    """
    if isinstance(request, FrontendRequest | BackendRequest):
        return request.name
    try:
        return FrontendRequest(request).name
    except ValueError:
        return f"message {request}"
