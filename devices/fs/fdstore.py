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
import threading
from collections.abc import Mapping, Sequence

__all__ = ["FdStore"]

log = logging.getLogger(__name__)

_FIRST = 3  # SD_LISTEN_FDS_START
_PATIENCE_MS = 5000


class FdStore:
    """What the service manager keeps for one state file.

    Args:
        address: of its socket, as in ``NOTIFY_SOCKET``.
        prefix: of the names under which it keeps them.

    Raises:
        OSError: it cannot be reached.
    """

    def __init__(self, address: str, prefix: str) -> None:
        self._prefix = prefix
        self._kept: set[str] = set()
        self._lock = threading.Lock()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        try:
            # now: the sandbox has no way there
            self._socket.connect("\0" + address[1:] if address.startswith("@") else address)
        except BaseException:
            self._socket.close()
            raise

    @classmethod
    def of(cls, path: str, environment: Mapping[str, str] = os.environ) -> FdStore | None:
        """That of the state file `path`; None: nobody keeps descriptors for this process."""
        address = environment.get("NOTIFY_SOCKET", "")
        if not address.startswith(("/", "@")):
            return None
        prefix = f"vhost-fs-{hashlib.sha256(os.fsencode(os.path.realpath(path))).hexdigest()[:16]}-"
        try:
            return cls(address, prefix)
        except OSError as exc:
            log.warning("the service manager's socket %s cannot be reached: %s", address, exc.strerror)
            return None

    def taken(self, environment: Mapping[str, str] = os.environ) -> list[int]:
        """Descriptors that came with this process, the caller's from now on; they are kept on until `keep`."""
        if environment.get("LISTEN_PID") != str(os.getpid()):
            return []
        found = []
        for at, name in enumerate(environment.get("LISTEN_FDNAMES", "").split(":")):
            if name.startswith(self._prefix):
                with contextlib.suppress(OSError):  # somebody else closed it
                    os.set_inheritable(_FIRST + at, False)
                    found.append(_FIRST + at)
                    self._kept.add(name)
        return found

    def keep(self, fds: Sequence[int], *, wait: bool = False) -> int:
        """Have copies of these kept and no others; how many are.

        Args:
            fds: they stay the caller's.
            wait: until the service manager has them, or for a while.
        """
        with self._lock:
            self._socket.settimeout(_PATIENCE_MS / 1000 if wait else 0)
            named = {self._name(fd): fd for fd in fds}
            try:
                for name in self._kept - named.keys():
                    self._socket.send(f"FDSTOREREMOVE=1\nFDNAME={name}\n".encode())
                    self._kept.discard(name)
                new = named.keys() - self._kept
                for name in new:
                    socket.send_fds(self._socket, [f"FDSTORE=1\nFDNAME={name}\n".encode()], [named[name]])
                    self._kept.add(name)
                if wait and new:
                    self._wait()
            except BlockingIOError:
                pass  # it is busy: next time
            except OSError as exc:
                log.warning("the service manager takes no descriptors: %s", exc.strerror or exc)
            return sum(self._name(fd) in self._kept for fd in fds)

    def _name(self, fd: int) -> str:
        st = os.fstat(fd)
        return f"{self._prefix}{st.st_dev:x}-{st.st_ino:x}"

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

    def close(self) -> None:
        """Let go of the socket; what is kept is kept."""
        self._socket.close()
