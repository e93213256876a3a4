"""Gives up what `Confinement` does not need, in an order in which each step can still be done."""

from __future__ import annotations

import errno
import importlib
import logging
import os
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vhost.errors import VhostError
from vhost.sandbox._confine import ffi, lib
from vhost.sandbox.confinement import Confinement, IdMap, Merged, merged
from vhost.sandbox.syscalls import rules

__all__ = ["seal"]

log = logging.getLogger("vhost.sandbox")

_SETUP_SECONDS = 10

#: modules that a running server comes to need, for a root in which there are none
_LATE = (
    "encodings.ascii", "encodings.idna", "encodings.latin_1", "encodings.unicode_escape", "encodings.utf_8", "json",
    "linecache", "traceback", "vhost.frontend", "vhost.metrics", "vhost.migration", "vhost.postcopy",
)  # fmt: skip


def seal(needs: Sequence[Confinement]) -> list[str]:
    """Give up what none of `needs` wants. There is no way back.

    Args:
        needs: of all devices of the process, at least one.

    Returns:
        A sentence for each thing that was wanted and could not be done, with what would let it; they are logged too.

    Raises:
        ConfigError: the devices want what cannot be had together.
        VhostError: a step failed half-way: the process is neither what it was nor what it should be, and must end.
    """
    want = merged(needs)
    if len(os.listdir("/proc/self/task")) > 1:
        raise VhostError("the sandbox was not made: threads run already, which would stay outside")
    missing: list[str] = []
    caps, seccomp = _extension("_caps"), _extension("_seccomp")  # later their libraries are out of sight
    time.localtime()  # reads the zone
    kept = _folders(want.readable)
    if want.mode == "namespace":
        missing += _namespace(want, kept)
    elif want.mode == "chroot":
        missing += _chroot(want)
    missing += _capabilities(want, caps)
    if (error := -lib.confine_no_new_privs()) != 0:
        missing.append(f"programs may still gain privileges: {os.strerror(error)}")
    if want.mode != "none":
        missing += _landlock(want, kept if want.mode == "namespace" else ())
    missing += _filter(want, seccomp)
    for sentence in missing:
        log.warning("sandbox: %s", sentence)
    return missing


def _folders(more: Sequence[str]) -> list[str]:
    """`more`, and where Python code and libraries are: what is imported late is found."""
    packages = [Path(str(importlib.import_module(name).__file__)).parents[1] for name in ("vhost", "ring", "devices")]
    standard = [sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    given = (str(path) for path in (*standard, *sys.path, *packages, *more) if path)
    found = {os.path.abspath(path) for path in given if os.path.isdir(path)}
    return sorted(path for path in found if path != "/" and not any(path.startswith(f"{other}/") for other in found))


def _is_privileged() -> bool:
    """May it make namespaces without being a user of its own first?"""
    status = Path("/proc/self/status").read_text()
    effective = next(line for line in status.splitlines() if line.startswith("CapEff:"))
    cap_sys_admin = 21
    return bool(int(effective.split()[1], 16) >> cap_sys_admin & 1)


def _mapper(want: Merged, privileged: bool) -> list[str]:
    """A command that gives this process its map of ids, once a line is read."""

    def flat(maps: Sequence[IdMap]) -> list[str]:
        return [str(n) for line in maps for n in (line.inside, line.outside, line.count)]

    users, groups, pid = want.uid_map, want.gid_map, str(os.getpid())
    if privileged:
        lines = ["\n".join(f"{m.inside} {m.outside} {m.count}" for m in maps) for maps in (users, groups)]
        script = 'read _; printf "%s\\n" "$2" >"/proc/$1/uid_map" && printf "%s\\n" "$3" >"/proc/$1/gid_map"'
        return ["/bin/sh", "-c", script, "sh", pid, *lines]
    for program in ("newuidmap", "newgidmap"):
        if shutil.which(program) is None:
            raise VhostError(f"uid-map and gid-map need {program}; install the package uidmap, and see subuid(5)")
    user_words = " ".join(flat(users))
    group_words = " ".join(flat(groups))
    return ["/bin/sh", "-c", f"read _; newuidmap {pid} {user_words} && newgidmap {pid} {group_words}"]


def _own_ids() -> None:
    """Only its own user and group are there, as they are outside."""
    uid, gid = os.getuid(), os.getgid()
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{uid} {uid} 1")
    Path("/proc/self/gid_map").write_text(f"{gid} {gid} 1")


def _namespace(want: Merged, kept: Sequence[str]) -> list[str]:
    if bool(want.uid_map) != bool(want.gid_map):
        raise VhostError("uid-map and gid-map go together: give both")
    if _is_privileged():
        with _mapped(want, privileged=True) as map_ids:
            if error := -lib.confine_unshare(1, 0):
                return [f"no namespaces of its own: {os.strerror(error)}; all the host's files stay in sight"]
            _change_root(kept)  # before: the other user may not reach the folders by their paths
            map_ids(0)
        return []
    with _mapped(want, privileged=False) as map_ids:
        if (error := map_ids(1)) != 0:
            return [f"no namespaces of its own: {os.strerror(error)}; are user namespaces switched off (sysctl user)?"]
        _change_root(kept)
    return []


@contextmanager
def _mapped(want: Merged, *, privileged: bool) -> Iterator[Callable[[int], int]]:
    """A function that makes the user namespace (and with 1 all others); it returns 0 or an errno."""
    if not want.uid_map:

        def own(others: int) -> int:
            if privileged:
                return 0
            uid, gid = os.getuid(), os.getgid()
            if error := -lib.confine_unshare(others, 1):
                return error
            Path("/proc/self/setgroups").write_text("deny")
            Path("/proc/self/uid_map").write_text(f"{uid} {uid} 1")
            Path("/proc/self/gid_map").write_text(f"{gid} {gid} 1")
            return 0

        yield own
        return
    # only somebody outside may write such a map
    helper = subprocess.Popen(_mapper(want, privileged), stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def by_helper(others: int) -> int:
        if error := -lib.confine_unshare(others, 1):
            return error
        try:
            _, words = helper.communicate("\n", timeout=_SETUP_SECONDS)
        except subprocess.TimeoutExpired:
            raise VhostError("uid-map: the map of ids was not made in time") from None
        if helper.returncode:
            raise VhostError(f"uid-map: {words.strip() or 'the map of ids was refused'}")
        os.setgroups([])
        os.setresgid(want.gid_map[0].inside, want.gid_map[0].inside, want.gid_map[0].inside)
        os.setresuid(want.uid_map[0].inside, want.uid_map[0].inside, want.uid_map[0].inside)
        return 0

    with helper:
        try:
            yield by_helper
        finally:
            if helper.returncode is None:
                helper.kill()


def _change_root(kept: Sequence[str]) -> None:
    step = ffi.new("const char **")
    names = [ffi.new("char[]", os.fsencode(path)) for path in kept]
    error = -lib.confine_root(ffi.new("const char *[]", names), len(names), step)
    if error:
        what = ffi.string(step[0]).decode()
        raise VhostError(f"sandbox: {what}: {os.strerror(error)}; --sandbox chroot or none does without")


def _chroot(want: Merged) -> list[str]:
    for name in _LATE:
        importlib.import_module(name)
    if not want.roots:
        return ["no new root: there is no shared folder"]
    if error := -lib.confine_chroot(want.roots[0]):
        hint = "; as root, or with --sandbox namespace" if error == errno.EPERM else ""
        return [f"no root of its own: {os.strerror(error)}{hint}"]
    return []


def _extension(name: str) -> Any:
    try:
        return importlib.import_module(f"vhost.sandbox.{name}")
    except ImportError:
        return None


def _capabilities(want: Merged, caps: Any) -> list[str]:
    if caps is None:
        return ["capabilities were not dropped: install libcap-ng-dev and build again"]
    names = {name: caps.lib.caps_number(name.encode()) for name in want.capabilities}
    if unknown := [name for name, number in names.items() if number < 0]:
        raise VhostError(f"there is no capability {unknown[0]!r}; see capabilities(7), names are without CAP_")
    if error := -caps.lib.caps_keep(list(names.values()), len(names)):
        return [f"capabilities were not dropped: {os.strerror(error)}"]
    return []


def _landlock(want: Merged, kept: Sequence[str]) -> list[str]:
    if not want.landlock:
        log.info("sandbox: without Landlock, which does not go with file handles")
        return []
    fds = [os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC) for path in kept]
    try:
        allow = [lib.CONFINE_READ] * len(fds) + [lib.CONFINE_ALL] * len(want.roots)
        held = ffi.new("int[]", [*fds, *want.roots])
        error = -lib.confine_landlock(held, ffi.new("uint32_t[]", allow), len(allow))
    finally:
        for fd in fds:
            os.close(fd)
    if error in (errno.ENOSYS, errno.EOPNOTSUPP):
        return ["no Landlock: this kernel does not have it or did not start it (lsm=landlock,…)"]
    if error:
        return [f"no Landlock: {os.strerror(error)}"]
    return []


def _filter(want: Merged, seccomp: Any) -> list[str]:
    if want.others == "none":
        return []
    if seccomp is None:
        return ["system calls are not filtered: install libseccomp-dev and build again"]
    given: list[Any] = []
    calls = []
    for rule in rules(want.syscalls):
        given.append(seccomp.ffi.new("char[]", rule.name.encode()))
        calls.append((given[-1], rule.arg, rule.mask, rule.value))
    others = {"deny": seccomp.lib.FILTER_DENY, "kill": seccomp.lib.FILTER_KILL, "log": seccomp.lib.FILTER_LOG}
    table = seccomp.ffi.new("struct filter_call[]", calls)
    if error := -seccomp.lib.filter_apply(table, len(calls), others[want.others]):
        return [f"system calls are not filtered: {os.strerror(error)}"]
    return []
