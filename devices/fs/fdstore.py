"""Descriptors that a service manager keeps for the next process: systemd's file descriptor store.

A file that was deleted while it is open lives as long as somebody has it open. Between two processes that is the
service manager, where it offers to (systemd: ``FileDescriptorStoreMax=`` of the unit).

Spec: sd_notify(3), FDSTORE=1, FDSTOREREMOVE=1, BARRIER=1; sd_listen_fds(3).
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import select
import socket
from collections.abc import Mapping, Sequence

__all__ = ["FdStore"]

log = logging.getLogger(__name__)

_FIRST = 3  # SD_LISTEN_FDS_START
_AT_ONCE = 253  # SCM_MAX_FD
_PATIENCE_MS = 5000


class FdStore:
    """What the service manager keeps under one name.

    Args:
        address: of its socket, as in ``NOTIFY_SOCKET``.
        name: under which it keeps them.

    Raises:
        OSError: it cannot be reached.
    """

    def __init__(self, address: str, name: str) -> None:
        self._name = name
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        try:
            # now: the sandbox has no way there
            self._socket.connect("\0" + address[1:] if address.startswith("@") else address)
        except BaseException:
            self._socket.close()
            raise
        self._socket.settimeout(_PATIENCE_MS / 1000)

    @classmethod
    def of(cls, path: str, environment: Mapping[str, str] = os.environ) -> FdStore | None:
        """That of the state file `path`; None: nobody keeps descriptors for this process."""
        address = environment.get("NOTIFY_SOCKET", "")
        if not address.startswith(("/", "@")):
            return None
        name = "vhost-fs-" + hashlib.sha256(os.fsencode(os.path.realpath(path))).hexdigest()[:16]
        try:
            return cls(address, name)
        except OSError as exc:
            log.warning("the service manager's socket %s cannot be reached: %s", address, exc.strerror)
            return None

    def taken(self, environment: Mapping[str, str] = os.environ) -> list[int]:
        """Descriptors that came with this process under the name, the caller's from now on."""
        if environment.get("LISTEN_PID") != str(os.getpid()):
            return []
        names = environment.get("LISTEN_FDNAMES", "").split(":")
        found = [_FIRST + at for at, name in enumerate(names) if name == self._name]
        with contextlib.suppress(OSError):
            for fd in found:
                os.set_inheritable(fd, False)
            return found
        return []  # somebody else closed them

    def put(self, fds: Sequence[int]) -> int:
        """Have copies kept; how many were sent. Returns when the service manager has them, or after a while."""
        given = 0
        try:
            for at in range(0, len(fds), _AT_ONCE):
                part = fds[at : at + _AT_ONCE]
                socket.send_fds(self._socket, [f"FDSTORE=1\nFDNAME={self._name}\n".encode()], part)
                given += len(part)
            self._wait()
        except OSError as exc:
            log.warning("the service manager takes no descriptors: %s", exc.strerror or exc)
        return given

    def _wait(self) -> None:
        """What was sent has arrived: after that this process may end."""
        ours, theirs = os.pipe2(os.O_CLOEXEC)
        try:
            try:
                socket.send_fds(self._socket, [b"BARRIER=1"], [theirs])
            finally:
                os.close(theirs)
            poll = select.poll()
            poll.register(ours, 0)
            if not poll.poll(_PATIENCE_MS):
                log.warning("the service manager did not say that it has the descriptors of deleted files")
        finally:
            os.close(ours)

    def drop(self) -> None:
        """Have none kept any more."""
        with contextlib.suppress(OSError):
            self._socket.send(f"FDSTOREREMOVE=1\nFDNAME={self._name}\n".encode())

    def close(self) -> None:
        """Let go of the socket; what is kept is kept."""
        self._socket.close()
