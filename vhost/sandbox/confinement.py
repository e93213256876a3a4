"""What a device needs of the system once it is open."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from vhost.plugin import ConfigError

__all__ = ["Confinement", "IdMap", "Mode", "Others", "merged", "parse_id_map"]

Mode = Literal["namespace", "chroot", "none"]
Others = Literal["deny", "kill", "log", "none"]

_MODES: tuple[Mode, ...] = ("namespace", "chroot", "none")
_OTHERS: tuple[Others, ...] = ("kill", "deny", "log", "none")


@dataclass(frozen=True, slots=True)
class IdMap:
    """A line of a user namespace's map.

    Attributes:
        inside: first id as the file system shows it to the guest.
        outside: first id on the host.
        count: how many.
    """

    inside: int
    outside: int
    count: int


def parse_id_map(text: str) -> IdMap:
    """``:INSIDE:OUTSIDE:COUNT:`` with any character between, as newuidmap's arguments.

    Raises:
        ConfigError: it is not.
    """
    parts = text[1:-1].split(text[0]) if len(text) > 2 and text[0] == text[-1] else text.split(":")
    try:
        inside, outside, count = map(int, parts)
        if min(inside, outside) < 0 or count < 1 or max(inside, outside) + count > 1 << 32:
            raise ValueError(text)
    except ValueError:
        what = "write :0:100000:65536: (first inside, first on the host, how many)"
        raise ConfigError(f"{text!r} is no map of ids; {what}") from None
    return IdMap(inside, outside, count)


@dataclass(frozen=True, slots=True)
class Confinement:
    """What one device needs; everything else can go.

    Attributes:
        mode: namespace: an empty root of its own; chroot: `root` becomes the process's root; none: as it is.
        others: what system calls that nobody needs come to: fail (deny), end the process (kill), are logged by the
            kernel and pass (log), or pass (none).
        syscalls: those that it needs besides what serving takes.
        capabilities: those it needs, of those the process has: names without CAP_.
        root: a descriptor of a folder that it works in, anywhere below; -1: none. Not owned.
        uid_map: for a process without privileges: user ids of its namespace. Empty: its own id alone.
        gid_map: likewise, groups.
        landlock: it only reaches files by their place in `root`, so that Landlock can hold it there.
        readable: folders that it reads (libraries that are loaded late), kept where they are, read-only.
    """

    mode: Mode = "namespace"
    others: Others = "deny"
    syscalls: frozenset[str] = frozenset()
    capabilities: frozenset[str] = frozenset()
    root: int = -1
    uid_map: tuple[IdMap, ...] = ()
    gid_map: tuple[IdMap, ...] = ()
    landlock: bool = True
    readable: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Merged:
    """What all devices of a process need together."""

    mode: Mode
    others: Others
    syscalls: frozenset[str]
    capabilities: frozenset[str]
    roots: tuple[int, ...]
    uid_map: tuple[IdMap, ...]
    gid_map: tuple[IdMap, ...]
    landlock: bool
    readable: tuple[str, ...]


def merged(needs: Iterable[Confinement]) -> Merged:
    """The least strict of each.

    Raises:
        ConfigError: they cannot be had in one process.
    """
    needs = list(needs)
    roots = tuple(need.root for need in needs if need.root >= 0)
    mode = max((need.mode for need in needs), key=_MODES.index)
    if mode == "chroot" and len(roots) > 1:
        raise ConfigError(
            "sandbox chroot has room for one shared folder, and this process serves several; "
            "use namespace, or a process each"
        )
    maps = {(need.uid_map, need.gid_map) for need in needs}
    if len(maps) > 1:
        raise ConfigError("devices of one process have one uid-map and gid-map; give all the same, or a process each")
    ((uid_map, gid_map),) = maps
    return Merged(
        mode=mode,
        others=max((need.others for need in needs), key=_OTHERS.index),
        syscalls=frozenset().union(*(need.syscalls for need in needs)),
        capabilities=frozenset().union(*(need.capabilities for need in needs)),
        roots=roots,
        uid_map=uid_map,
        gid_map=gid_map,
        landlock=all(need.landlock for need in needs),
        readable=tuple(path for need in needs for path in need.readable),
    )
