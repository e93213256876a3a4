"""A folder of this machine as a file system."""

from __future__ import annotations

import errno
import logging
import os
import resource
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

from devices.fs import migration as moving
from devices.fs._fs import ffi, lib
from devices.fs.fdstore import FdStore
from devices.fs.idmap import IdTranslation
from devices.fs.server import NativeServer
from devices.fs.window import UNIT
from devices.fs.xattrmap import XattrRule
from vhost import Metric, VhostError

__all__ = [
    "Cache",
    "Dax",
    "Handles",
    "Migration",
    "Passthrough",
    "PassthroughError",
    "PassthroughStats",
    "raise_nofile",
]

Cache = Literal["never", "metadata", "auto", "always"]
Handles = Literal["never", "prefer", "always"]
Migration = Literal["find-paths", "file-handles"]
Dax = Literal["never", "inode", "always"]

log = logging.getLogger(__name__)

_DAY = 86400.0
_FOPEN_DIRECT_IO, _FOPEN_KEEP_CACHE, _FOPEN_CACHE_DIR = 1, 2, 8
#: policy -> seconds that names and attributes are trusted, flags of open files, flags of open folders
_POLICIES: dict[str, tuple[float, int, int]] = {
    "never": (0.0, _FOPEN_DIRECT_IO, 0),
    "metadata": (_DAY, _FOPEN_DIRECT_IO, _FOPEN_KEEP_CACHE | _FOPEN_CACHE_DIR),
    "auto": (1.0, 0, _FOPEN_CACHE_DIR),
    "always": (_DAY, _FOPEN_KEEP_CACHE, _FOPEN_KEEP_CACHE | _FOPEN_CACHE_DIR),
}
#: which files are mapped, by size
_DAX_FROM = {"never": 0, "inode": 1 << 20, "always": 0}
_MIGRATIONS = ("find-paths", "file-handles")
_HANDLES = {"never": 0, "prefer": 1, "always": 2}
#: descriptors left to the rest of the process
_SPARE_FDS = 64
_MAX_FDS = 65536
_MAX_FILES = 1 << 20
_MAX_INODES = 1 << 24


class PassthroughError(VhostError):
    """A folder cannot be shared: the message says what is wrong, where, and what to do."""


@dataclass(frozen=True, slots=True)
class PassthroughStats:
    """Counters of a shared folder.

    Attributes:
        inodes: known now, the root among them.
        inode_bytes: memory they take.
        files: open now, folders among them.
        fds: descriptors kept for inodes now.
        fds_opened: for inodes, since the start.
        fds_evicted: closed to keep to the bound.
        fds_short: times the system had no descriptor left.
        stale: inodes found gone when they were used.
        mounts: of the host, seen below the folder.
        mounts_without_handles: of them, those whose inodes keep their descriptors.
        locks: lock owners with a file of their own.
    """

    inodes: int
    inode_bytes: int
    files: int
    fds: int
    fds_opened: int
    fds_evicted: int
    fds_short: int
    stale: int
    mounts: int
    mounts_without_handles: int
    locks: int


def raise_nofile(wanted: int = 1 << 20) -> int:
    """Raise this process's limit of open files to `wanted`, or as near as is allowed; it is never lowered.

    Returns:
        The limit now.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for goal in ((max(wanted, soft), max(wanted, hard)), (min(max(wanted, soft), hard), hard)):
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, goal)
            break
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


class Passthrough(NativeServer):
    """A folder of this machine. Guests see what is in it and below, with the rights of this process.

    Args:
        path: the folder.
        cache: what guests may keep: "never": nothing; "metadata": names and attributes, for a day; "auto": contents
            until they change, names and attributes for a second; "always": everything, as if nobody else changed it;
            with `readonly`, nothing has to be opened either, and locks are the guest's own.
        timeout: how long guests trust names and attributes, seconds; None: as `cache` says.
        negative_timeout: how long they trust that a name is not there, seconds.
        inode_file_handles: how files are found again: "prefer": by handles of the file system, descriptors where it
            has none; "never": each file that a guest knows keeps a descriptor; "always": no handle, no file.
        max_fds: descriptors kept for files that guests know; without handles the others are found by their names.
            None: a quarter of the process's limit, and three without handles.
        max_files: files and folders that guests have open; None: half of the process's limit, or a quarter.
        max_inodes: files that guests know.
        readonly: refuse changes.
        readdirplus: folders are listed with the attributes of what is in them.
        announce_submounts: mounts of the host below the folder are mounts in the guest, too.
        writeback: guests may keep what they write for a while. Only where nobody else changes the files.
        allow_direct_io: a guest's O_DIRECT bypasses the host's cache, too.
        killpriv_v2: SUID, SGID and capabilities of files that are written go here rather than in the guest.
        posix_lock: fcntl locks of guests lock on the host; otherwise in the guest alone.
        flock: likewise flock.
        xattr: extended attributes.
        posix_acl: access control lists, which guests' kernels then heed.
        security_label: new files get the guest's security context.
        xattrmap: rules for names of attributes (`parse_xattrmap`); the first that fits decides, none at all: all pass.
        uids: translation of user ids (`parse_translation`).
        gids: likewise of groups.
        migration: how a guest's files are found where it moves to: "find-paths": by their names; "file-handles": by
            handles of the file system as well, which finds what is deleted but open. Whoever makes up a state can then
            reach any file of that file system: only where front-ends are trusted.
        dax: files that guests map in a window of shared memory, where the front-end has one: "never"; "inode": those of
            1 MiB and more; "always": all. Host and guest then look at the same pages.
        dax_window: bytes of that window, a multiple of 2 MiB.
        state_file: holds what the guest knows, has open and has locked, for the process after this one; best on a
            tmpfs. Files that have no handle survive a clean end only; deleted ones where a service manager keeps
            their descriptors (`FdStore`).
        threads: most threads for requests that may wait, 1 to 256.

    Raises:
        PassthroughError: the user can mend it.
        ValueError: an argument out of range.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        cache: Cache = "auto",
        timeout: float | None = None,
        negative_timeout: float = 0.0,
        inode_file_handles: Handles = "prefer",
        max_fds: int | None = None,
        max_files: int | None = None,
        max_inodes: int = _MAX_INODES,
        readonly: bool = False,
        readdirplus: bool = True,
        announce_submounts: bool = True,
        writeback: bool = False,
        allow_direct_io: bool = False,
        killpriv_v2: bool = True,
        posix_lock: bool = True,
        flock: bool = True,
        xattr: bool = True,
        posix_acl: bool = False,
        security_label: bool = False,
        xattrmap: Sequence[XattrRule] = (),
        uids: IdTranslation | None = None,
        gids: IdTranslation | None = None,
        migration: Migration = "find-paths",
        dax: Dax = "never",
        dax_window: int = 1 << 30,
        state_file: str | os.PathLike[str] | None = None,
        threads: int | None = None,
    ) -> None:
        self.path = os.fspath(path)
        self.description = f"the folder {self.path}"
        self.readonly = readonly
        trust, file_flags, dir_flags = _POLICIES[_one_of("cache", cache, _POLICIES)]
        if (posix_acl or xattrmap) and not xattr:
            raise ValueError(f"{'posix_acl' if posix_acl else 'xattrmap'} needs xattr")
        if writeback and cache == "never":
            raise ValueError("writeback lets guests keep what they write, and cache is 'never': choose one")
        keep: list[Any] = []
        opt = ffi.new("struct pass_options *")
        opt.handles = _HANDLES[_one_of("inode_file_handles", inode_file_handles, _HANDLES)]
        opt.max_fds = 0 if max_fds is None else _count("max_fds", max_fds)
        opt.max_files = 0 if max_files is None else _count("max_files", max_files)
        opt.max_inodes = _count("max_inodes", max_inodes)
        opt.entry_ns = opt.attr_ns = _ns("timeout", trust if timeout is None else timeout)
        opt.negative_ns = _ns("negative_timeout", negative_timeout)
        opt.file_flags, opt.dir_flags = file_flags, dir_flags
        opt.relist = cache == "auto"
        opt.read_only, opt.readdirplus, opt.submounts = readonly, readdirplus, announce_submounts
        opt.writeback, opt.allow_direct_io, opt.killpriv_v2 = writeback, allow_direct_io, killpriv_v2
        opt.posix_lock, opt.flock = posix_lock, flock
        opt.xattr, opt.posix_acl, opt.security_label = xattr, posix_acl, security_label
        _put_rules(opt, xattrmap, keep)
        for what, translation in (("uid", uids), ("gid", gids)):
            _put_ranges(opt, what, translation or IdTranslation(), keep)
        self.migration = _one_of("migration", migration, _MIGRATIONS)
        # what never changes needs no descriptor to be what it was
        opt.no_open = readonly and cache == "always"
        if opt.no_open:
            opt.flock = opt.posix_lock = False
        opt.dax = _one_of("dax", dax, _DAX_FROM) != "never"
        opt.dax_from = _DAX_FROM[dax]
        if not 0 < dax_window <= 1 << 40 or dax_window % UNIT:
            raise ValueError(f"dax_window is {dax_window} bytes; give a multiple of 2 MiB, up to 1 TiB")
        if opt.dax and state_file is not None:
            raise ValueError("with dax the guest maps files by this process: a state file cannot bring them back")
        self.shmem_sizes = {0: dax_window} if opt.dax else {}
        self.migratable = not opt.dax
        self._moving = False
        self.handles_note: str | None = None
        self.keeps = state_file is not None
        self._store: FdStore | None = None
        super().__init__(self._start(opt, inode_file_handles, None if state_file is None else os.fspath(state_file)))
        if state_file is not None:
            self._revive(os.fspath(state_file))
        if threads is not None:
            self.set_threads(threads)

    def _revive(self, state_file: str) -> None:
        self._store = FdStore.of(state_file)
        kept = self._store.taken() if self._store is not None else []
        try:
            self.revived = moving.revive(self.ptr, state_file, description=self.description, kept=kept)
        finally:
            for fd in kept:
                os.close(fd)

    def _start(self, opt: Any, handles: Handles, state_file: str | None) -> Any:
        opt.root_fd = _open_folder(self.path)
        try:
            if state_file is not None:
                opt.keep, opt.keep_fd = True, moving.open_state_file(state_file)
            if handles != "never":
                self._see_about_handles(opt, handles)
            _share_out(opt, by_handle=handles != "never" and self.handles_note is None)
            opt.proc_fd = os.open("/proc/self/fd", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                error = ffi.new("int *")
                ptr = lib.pass_new(opt, error)
            finally:
                os.close(opt.proc_fd)
        except FileNotFoundError:
            raise PassthroughError(f"{self.path} cannot be shared without /proc: mount it") from None
        except moving.StateFileError as exc:
            raise PassthroughError(str(exc)) from exc.__cause__
        finally:
            os.close(opt.root_fd)
            if opt.keep:
                os.close(opt.keep_fd)
        if ptr == ffi.NULL:
            raise PassthroughError(f"{self.path} cannot be shared: {os.strerror(-error[0])}")
        return ptr

    def _see_about_handles(self, opt: Any, handles: Handles) -> None:
        failed = -lib.pass_try_handles(opt.root_fd)
        if not failed:
            return
        if failed == errno.EPERM:
            why = "this process lacks CAP_DAC_READ_SEARCH"
        elif failed in (errno.EOPNOTSUPP, errno.EOVERFLOW):
            why = "its file system has none that last"
        else:
            why = os.strerror(failed)
        if handles == "always":
            raise PassthroughError(f"{self.path} cannot be shared by file handles: {why}; say 'prefer' or 'never'")
        self.handles_note = f"no file handles for {self.path}: {why}; each file that guests know takes a descriptor"
        log.info(self.handles_note)

    async def save_state(self) -> bytes:
        """As `Server.save_state`. The locks are let go of, until a queue runs again."""
        self._moving = True
        state, _ = await moving.save_state(self.ptr)
        return state

    async def load_state(self, state: bytes) -> None:
        """As `Server.load_state`."""
        self._moving = False
        handles = self.migration == "file-handles"
        await moving.load_state(self.ptr, state, handles=handles, description=self.description)

    def keep(self) -> None:
        """As `Server.keep`. The locks are let go of, until a queue runs again."""
        if self.is_open and self.keeps:
            self._moving = True
            moving.keep(self.ptr, self._store)

    def queue_starts(self) -> None:
        """As `Server.queue_starts`."""
        if self._moving:
            lib.pass_keep_again(self.ptr)
            self._moving = False
            moving.resume(self.ptr)

    async def background(self) -> None:
        """As `Server.background`."""
        if self._store is not None:
            await moving.save_deleted(self.ptr, self._store)

    def reset(self) -> None:
        """As `Server.reset`."""
        self._moving = False
        super().reset()

    def close(self) -> None:
        """As `Server.close`."""
        super().close()
        store, self._store = self._store, None
        if store is not None:
            if not self._moving:
                store.keep([])
            store.close()

    @property
    def stats(self) -> PassthroughStats:
        """Counters now."""
        out = ffi.new("struct pass_stats *")
        lib.pass_get_stats(self.ptr, out)
        return PassthroughStats(**{name: getattr(out, name) for name in PassthroughStats.__slots__})

    def info(self) -> dict[str, Any]:
        """As `Server.info`."""
        return {
            "server": "passthrough",
            "shared_dir": self.path,
            "readonly": self.readonly,
            "file_handles": self.handles_note or "yes",
            **{name: getattr(self.stats, name) for name in PassthroughStats.__slots__},
        }

    def metrics(self) -> Iterable[Metric]:
        """As `Server.metrics`."""
        stats = self.stats
        yield Metric("fs_inodes", "gauge", "Files that the guest knows.", stats.inodes)
        yield Metric("fs_inode_memory_bytes", "gauge", "Memory for files that the guest knows.", stats.inode_bytes)
        yield Metric("fs_open_files", "gauge", "Files and folders that the guest has open.", stats.files)
        yield Metric("fs_inode_fds", "gauge", "Descriptors kept for files that the guest knows.", stats.fds)
        yield Metric("fs_inode_fds_opened_total", "counter", "Descriptors opened for them.", stats.fds_opened)
        yield Metric("fs_inode_fds_evicted_total", "counter", "Descriptors closed for others.", stats.fds_evicted)
        yield Metric("fs_fds_short_total", "counter", "Times the system had no descriptor left.", stats.fds_short)
        yield Metric("fs_stale_total", "counter", "Files found gone when they were used.", stats.stale)
        yield Metric("fs_lock_owners", "gauge", "Processes of the guest that hold locks.", stats.locks)


def _open_folder(path: str) -> int:
    try:
        return os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise PassthroughError(f"{path} does not exist; make the folder first, or give another") from None
    except NotADirectoryError:
        raise PassthroughError(f"{path} is no folder; give the folder that guests are to see") from None
    except OSError as exc:
        raise PassthroughError(f"{path} cannot be opened: {exc.strerror}") from exc


def _share_out(opt: Any, *, by_handle: bool) -> None:
    """The descriptors of this process, where the user has not said how."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    quarter = max(limit - _SPARE_FDS, _SPARE_FDS) // 4
    opt.max_fds = opt.max_fds or (min(quarter, _MAX_FDS) if by_handle else min(3 * quarter, _MAX_FILES))
    opt.max_files = opt.max_files or min(2 * quarter if by_handle else quarter, _MAX_FILES)


def _one_of(what: str, value: str, known: Iterable[str]) -> str:
    if value not in known:
        raise ValueError(f"{what} is {value!r}; give one of {', '.join(known)}")
    return value


def _count(what: str, value: int) -> int:
    if not 1 <= value < 1 << 31:
        raise ValueError(f"{what} is {value}; give 1 to {(1 << 31) - 1}")
    return value


def _ns(what: str, seconds: float) -> int:
    if not 0 <= seconds <= 1e9:
        raise ValueError(f"{what} is {seconds} seconds; give 0 to 1e9")
    return int(seconds * 1e9)


def _put_rules(opt: Any, rules: Sequence[XattrRule], keep: list[Any]) -> None:
    table = ffi.new("struct pass_xattr_rule[]", max(len(rules), 1))
    keep.append(table)
    for to, rule in zip(table, rules, strict=False):
        to.type, to.scope = int(rule.action), int(rule.scope)
        key, prepend = (ffi.new("char[]", text.encode()) for text in (rule.key, rule.prepend))
        to.key, to.prepend = key, prepend
        keep += [key, prepend]
    opt.nr_xattr_rules, opt.xattr_rules = len(rules), table


def _put_ranges(opt: Any, what: str, translation: IdTranslation, keep: list[Any]) -> None:
    for way, ranges in (("to_host", translation.to_host), ("to_guest", translation.to_guest)):
        table = ffi.new("struct pass_range[]", max(len(ranges), 1))
        keep.append(table)
        for to, item in zip(table, ranges, strict=False):
            setattr(to, "from", item.start)
            to.kind, to.to, to.count = int(item.kind), item.to, item.count
        setattr(opt, f"nr_{what}_{way}", len(ranges))
        setattr(opt, f"{what}_{way}", table)
