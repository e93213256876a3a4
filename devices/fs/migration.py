"""What a guest knows of a shared folder, as bytes for another process: inodes, open files, locks."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import trio

from devices.fs._fs import ffi, lib
from devices.fs.fdstore import FdStore

__all__ = [
    "MovedState",
    "StateFileError",
    "keep",
    "load_state",
    "open_state_file",
    "resume",
    "revive",
    "save_state",
]

log = logging.getLogger(__name__)

#: how a state file begins
_MAGIC = b"vhkkeep1"
#: descriptors given away
_MOST_KEPT = 4096


class StateFileError(Exception):
    """A state file cannot be used: the message says why, and what to do."""


@dataclass(frozen=True, slots=True)
class MovedState:
    """What was saved or loaded.

    Attributes:
        inodes: files that the guest knows, the folder itself left out.
        inodes_lost: saved: without a path; loaded: not found, the guest hears ESTALE when it asks for them.
        files: open files and folders.
        files_lost: loaded: could not be opened again.
        locks: ranges, and locks of whole files.
        locks_lost: loaded: somebody else has them.
    """

    inodes: int
    inodes_lost: int
    files: int
    files_lost: int
    locks: int
    locks_lost: int

    def __str__(self) -> str:
        parts = [
            f"{getattr(self, what)} {what}" + (f" ({lost} lost)" if (lost := getattr(self, f"{what}_lost")) else "")
            for what in ("inodes", "files", "locks")
        ]
        return ", ".join(parts)


def _report(state: Any) -> MovedState:
    return MovedState(**{name: getattr(state, name) for name in MovedState.__slots__})


async def save_state(server: Any) -> tuple[bytes, MovedState]:
    """Describe what the guest knows, and let go of its locks until `resume`.

    Args:
        server: ``struct fs_server *`` of a passthrough, with no queue running.

    Raises:
        MemoryError: none left.
        Cancellation: waits for the end of the work.
    """

    def work() -> tuple[bytes, MovedState]:
        state = ffi.new("struct pass_state *")
        if lib.pass_state_save(server, state) < 0:
            raise MemoryError("no memory for the state of a shared folder")
        try:
            return bytes(ffi.buffer(state.bytes, state.len)), _report(state)
        finally:
            lib.pass_state_free(state)

    state, report = await trio.to_thread.run_sync(work)
    log.info("state of the guest saved: %s", report)
    return state, report


async def load_state(server: Any, state: bytes, *, handles: bool, description: str) -> MovedState:
    """Take over what `state` says.

    Args:
        server: ``struct fs_server *`` of a passthrough, with no queue running.
        state: of `save_state`, untrusted.
        handles: find files by their handles too, which may lead to any file of the file system.
        description: of the server, for messages.

    Raises:
        ValueError: it cannot be taken over.
    """

    def work() -> tuple[int, Any]:
        report = ffi.new("struct pass_state *")
        return -lib.pass_state_load(server, ffi.from_buffer(state), len(state), handles, report), report

    failed, report = await trio.to_thread.run_sync(work)
    if failed == errno.EINVAL:
        raise ValueError(f"this is no state of a shared folder, or it is damaged (byte {report.len} of {len(state)})")
    if failed:
        raise ValueError(_why(failed, description))
    return _loaded(report)


def _why(failed: int, description: str) -> str:
    if failed == errno.EPROTO:
        return "the guest speaks a version of FUSE that is not spoken here"
    if failed == errno.EOPNOTSUPP:
        return f"the guest's mount needs what {description} does not offer: give it the options of the source"
    return f"the state of a shared folder could not be taken over: {os.strerror(failed)}"


def _loaded(report: Any) -> MovedState:
    moved = _report(report)
    lost = moved.inodes_lost or moved.files_lost or moved.locks_lost
    log.log(logging.WARNING if lost else logging.INFO, "state of the guest loaded: %s", moved)
    return moved


def resume(server: Any) -> int:
    """The guest goes on here after `save_state`: take its locks back. Returns how many somebody else has by now."""
    lost = int(lib.pass_state_resume(server))
    if lost:
        log.warning("%d locks of the guest went to somebody else while it was about to move", lost)
    return lost


def open_state_file(path: str) -> int:
    """A descriptor of the file, made if there is none, that no other process uses.

    Raises:
        StateFileError: in words.
    """
    fd = -1
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.read(fd, 8) not in (b"", bytes(8), _MAGIC):
            raise StateFileError(f"{path} is no state file; give the name of one, or of none yet")
    except BlockingIOError:
        os.close(fd)
        raise StateFileError(f"another process uses the state file {path}; each folder needs one of its own") from None
    except OSError as exc:
        if fd >= 0:
            os.close(fd)
        raise StateFileError(f"the state file {path} cannot be used: {exc.strerror}") from exc
    except BaseException:
        os.close(fd)
        raise
    return fd


def revive(server: Any, path: str, *, description: str, kept: Sequence[int] = ()) -> MovedState | None:
    """Take over what the process before left in the server's state file; None: nothing. It is used from now on.

    What cannot be taken over is said in the log: the guest has to mount again.

    Args:
        kept: descriptors of files that have no name any more; they stay the caller's.
    """
    report = ffi.new("struct pass_state *")
    done = int(lib.pass_keep_load(server, 1, ffi.new("int[]", list(kept)), len(kept), report))
    if done == 0:
        return None
    if done > 0:
        return _loaded(report)
    if done == -errno.EPROTO:
        why = "another version of this program wrote it"
    elif done == -errno.EINVAL:
        why = "it is damaged"
    else:
        why = _why(-done, description)
    log.warning("nothing was taken over from the state file %s (%s); a guest has to mount again", path, why)
    return None


def keep(server: Any, store: FdStore | None) -> None:
    """The process ends: write down what the guest knows, let go of its locks, save what only descriptors lead to."""
    failed = -int(lib.pass_keep_end(server))
    if failed:
        log.warning("paths are missing in the state file (%s): files without handles are lost", os.strerror(failed))
    lost = _save_deleted(server, store, wait=True)
    if lost:
        log.warning("%d files that the guest has open and deleted are lost with this process", lost)


def _save_deleted(server: Any, store: FdStore | None, *, wait: bool) -> int:
    """Have the descriptors kept of what is deleted but open; returns how many are not."""
    room = ffi.new("int[]", _MOST_KEPT)
    number = int(lib.pass_keep_deleted(server, room, _MOST_KEPT))
    fds = [fd for fd in room[0 : min(number, _MOST_KEPT)] if fd >= 0]
    try:
        return number - (0 if store is None else store.keep(fds, wait=wait))
    finally:
        for fd in fds:
            os.close(fd)


async def save_deleted(server: Any, store: FdStore) -> None:
    """For a process that is killed: see to it every second until cancelled."""
    while True:
        await trio.sleep(1)
        await trio.to_thread.run_sync(partial(_save_deleted, server, store, wait=False))
