"""What a shared folder's process still needs once the folder is open."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from vhost.plugin import ConfigError, Option
from vhost.sandbox import Confinement, parse_id_map
from vhost.sandbox.options import SECCOMP

__all__ = ["OPTIONS", "confinement_of"]

OPTIONS = (
    Option("sandbox", "choice", "what it sees of the host: nothing (namespace), the folder (chroot), all (none)",
           "namespace", choices=("namespace", "chroot", "none")),
    SECCOMP,
    Option("modcaps", "text", "capabilities kept or dropped besides the usual: +sys_admin:-mknod", metavar="LIST"),
    Option("uid-map", "texts", "user ids of the namespace, :INSIDE:HOST:COUNT:", metavar="MAP"),
    Option("gid-map", "texts", "group ids likewise", metavar="MAP"),
)  # fmt: skip

#: what acting as the guest's users takes
_CAPABILITIES = frozenset({"chown", "dac_override", "fowner", "fsetid", "mknod", "setfcap", "setgid", "setuid"})

_SYSCALLS = frozenset(
    """
    capget capset copy_file_range fallocate fchdir fchmod fchmodat fchmodat2 fchown fchownat fdatasync fgetxattr
    flistxattr flock fremovexattr fsetxattr fsync getxattr getxattrat lgetxattr linkat listxattr listxattrat llistxattr
    lremovexattr lsetxattr mkdirat mknodat name_to_handle_at open_by_handle_at openat2 removexattr removexattrat
    renameat renameat2 setfsgid setfsuid setgid setgroups setregid setresgid setresuid setreuid setuid setxattr
    setxattrat splice symlinkat sync_file_range syncfs utimensat
    """.split()  # noqa: SIM905 - a list of 50 strings reads worse
)


def _modified(usual: frozenset[str], text: str | None) -> frozenset[str]:
    kept = set(usual)
    for item in (text or "").split(":"):
        if not item:
            continue
        match = re.fullmatch(r"([+-])(?:cap_)?([a-z_]+)", item.lower())
        if match is None:
            raise ConfigError(f"modcaps: {item!r} is neither +NAME nor -NAME; write +sys_admin:-mknod")
        (kept.add if match[1] == "+" else kept.discard)(match[2])
    return frozenset(kept)


def confinement_of(values: Mapping[str, Any], root: int, *, file_handles: bool) -> Confinement:
    """The confinement that the options ask for.

    Args:
        root: descriptor of the shared folder, not taken over.
        file_handles: inodes are opened by handle, which takes a capability and passes Landlock by.

    Raises:
        ConfigError: the user can mend it.
    """
    usual = _CAPABILITIES | {"dac_read_search"} if file_handles else _CAPABILITIES
    return Confinement(
        mode=values["sandbox"],
        others=values["seccomp"],
        syscalls=_SYSCALLS,
        capabilities=_modified(usual, values["modcaps"]),
        root=root,
        uid_map=tuple(map(parse_id_map, values["uid_map"] or ())),
        gid_map=tuple(map(parse_id_map, values["gid_map"] or ())),
        landlock=not file_handles,
    )
