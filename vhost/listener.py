"""Sockets of a back-end: making, checking and taking over what a front-end connects to.

A back-end either listens (`listen`, or a listening `--fd`), is connected already (`--fd` of a socketpair) or connects
itself (`connect`, for front-ends that listen). Mistakes that users make here get a sentence each.
"""

import errno
import os
import socket
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import trio

from vhost.errors import VhostError

__all__ = ["SocketError", "adopt", "connect", "connect_once", "is_listening", "listen"]

PATH_MAX = 107
"""Bytes of a socket path: sizeof(sun_path) less the final zero [unix(7)]."""

BACKLOG = 4
"""Waiting front-ends: one is served at a time, a second is told to wait by nobody but its own connect."""

RETRY_FIRST = 0.05
"""Seconds to the second try of a client; doubled up to RETRY_MOST."""
RETRY_MOST = 2.0


class SocketError(VhostError, OSError):
    """A socket cannot be had; the message says what is wrong and what to do."""

    def __init__(self, message: str, code: int = 0) -> None:
        """Args: message: one sentence; code: errno, 0 where there is none."""
        OSError.__init__(self, code, message)

    def __str__(self) -> str:
        return str(self.strerror)


def _check_path(path: str) -> None:
    if len(os.fsencode(path)) > PATH_MAX:
        raise SocketError(
            f"socket path {path} is too long: {len(os.fsencode(path))} bytes, {PATH_MAX} are the most; "
            "use a shorter folder or a relative path",
            errno.ENAMETOOLONG,
        )


def _in_words(path: str, error: OSError) -> SocketError:
    folder = os.path.dirname(path) or "."
    if error.errno == errno.ENOENT:
        return SocketError(f"cannot listen on {path}: folder {folder} does not exist; create it first", errno.ENOENT)
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return SocketError(
            f"cannot listen on {path}: no permission to create a file in {folder}; choose another folder or user",
            error.errno,
        )
    return SocketError(f"cannot listen on {path}: {error.strerror}", error.errno or 0)


async def _clear_stale(path: str) -> None:
    """Remove a socket file that nobody listens on; refuse anything else that is in the way."""
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise SocketError(
            f"cannot listen on {path}: a file that is no socket is in the way; remove it or choose another path",
            errno.EEXIST,
        )
    probe = trio.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with probe:
        # A live server's full backlog must not make us wait: that is an answer too.
        try:
            with trio.fail_after(1):
                await probe.connect(path)
        except ConnectionRefusedError:
            with suppress(FileNotFoundError):
                os.unlink(path)
            return
        except FileNotFoundError:
            return
        except (trio.TooSlowError, BlockingIOError):
            pass
        except OSError as error:
            raise _in_words(path, error) from error
    raise SocketError(
        f"cannot listen on {path}: another program is listening there; stop it or choose another path",
        errno.EADDRINUSE,
    )


@asynccontextmanager
async def listen(path: str, *, mode: int = 0o600) -> AsyncIterator[trio.socket.SocketType]:
    """A socket listening on `path`; the file is removed at the end (only if it is still ours).

    Args:
        path: at most 107 bytes. A dead socket file there is replaced.
        mode: permission bits of the file; there is no moment at which it has more.

    Raises:
        SocketError: in use, no permission, no folder, path too long.
    """
    _check_path(path)
    await _clear_stale(path)
    plain = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with trio.socket.from_stdlib_socket(plain) as sock:
        # bind() creates the file with the umask of the process, so that is narrowed: no await in between. Not trio's
        # bind, which takes a thread: the sandbox is made while there is none.
        before = os.umask(0o777 & ~mode)
        try:
            plain.bind(path)
        except OSError as error:
            raise _in_words(path, error) from error
        finally:
            os.umask(before)
        ours = os.stat(path)
        try:
            sock.listen(BACKLOG)
            yield sock
        finally:
            with suppress(OSError):
                now = os.lstat(path)
                if (now.st_dev, now.st_ino) == (ours.st_dev, ours.st_ino):
                    os.unlink(path)


def adopt(fd: int) -> trio.socket.SocketType:
    """Take over socket `fd` given by a parent process, listening or connected (see `is_listening`).

    Raises: SocketError: it is no Unix stream socket, or neither listening nor connected.
    """
    try:
        sock = socket.socket(fileno=fd)
    except OSError as error:
        what = "is not open" if error.errno == errno.EBADF else "is not a socket"
        raise SocketError(
            f"file descriptor {fd} {what}; pass a listening or connected Unix socket", error.errno or 0
        ) from error
    if sock.family != socket.AF_UNIX or sock.type != socket.SOCK_STREAM:
        sock.detach()
        raise SocketError(f"file descriptor {fd} is not a Unix stream socket", errno.EINVAL)
    os.set_inheritable(fd, False)
    adopted = trio.socket.from_stdlib_socket(sock)
    if not is_listening(adopted):
        try:
            sock.getpeername()
        except OSError as error:
            adopted.close()
            raise SocketError(f"socket {fd} is neither listening nor connected", error.errno or 0) from error
    return adopted


def is_listening(sock: trio.socket.SocketType) -> bool:
    """True if front-ends can connect to `sock`."""
    return bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))


async def connect_once(path: str) -> trio.socket.SocketType:
    """Connect to a front-end that listens on `path`.

    Raises:
        SocketError: path too long.
        OSError: nobody listens there now.
    """
    _check_path(path)
    sock = trio.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        await sock.connect(path)
    except BaseException:
        sock.close()
        raise
    return sock


async def connect(path: str) -> trio.socket.SocketType:
    """Connect to a front-end that listens on `path`, trying until one does.

    Raises: SocketError: the path can never be connected to (too long, no permission).
    """
    wait = RETRY_FIRST
    while True:
        try:
            return await connect_once(path)
        except (ConnectionRefusedError, FileNotFoundError, BlockingIOError):
            await trio.sleep(wait)
            wait = min(wait * 2, RETRY_MOST)
        except PermissionError as error:
            message = f"cannot connect to {path}: no permission to use that socket"
            raise SocketError(message, error.errno or 0) from error
