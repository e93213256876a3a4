"""What ``vhost fs`` and a ``[[device]]`` table of type "fs" take about the folder that is shared."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from devices.fs.idmap import parse_translation
from devices.fs.passthrough import Passthrough, PassthroughError, raise_nofile
from devices.fs.xattrmap import parse_xattrmap
from vhost.plugin import ConfigError, Option

__all__ = ["OPTIONS", "open_passthrough"]

OPTIONS = (
    Option("shared-dir", "path", "the folder that the guest sees", metavar="PATH"),
    Option("readonly", "flag", "refuse changes", False),
    Option("cache", "choice", "what the guest may keep: nothing, all but contents, all for a while, all",
           "auto", choices=("never", "metadata", "auto", "always")),
    Option("timeout", "text", "how long it trusts names and attributes, seconds; default: as cache says",
           metavar="SECONDS"),
    Option("negative-timeout", "text", "how long it trusts that a name is not there, seconds", "0", metavar="SECONDS"),
    Option("writeback", "flag", "it may keep what it writes for a while: only where nobody else changes files", False),
    Option("allow-direct-io", "flag", "its O_DIRECT bypasses the host's cache, too", False),
    Option("no-readdirplus", "flag", "list folders without attributes of what is in them", False),
    Option("no-announce-submounts", "flag", "mounts below the folder are plain folders in the guest", False),
    Option("inode-file-handles", "choice", "find files again by handles instead of keeping each one open",
           "prefer", choices=("never", "prefer", "always")),
    Option("max-fds", "int", "descriptors kept for files the guest knows; default: a share of the limit", minimum=1),
    Option("max-files", "int", "files the guest may have open; default: a share of the limit", minimum=1),
    Option("max-inodes", "int", "files the guest may know", 1 << 24, minimum=1),
    Option("rlimit-nofile", "int", "raise the limit of open files to this, or as near as is allowed; 0: leave it",
           1 << 20, minimum=0),
    Option("no-posix-lock", "flag", "fcntl locks are the guest's own affair", False),
    Option("no-flock", "flag", "likewise flock", False),
    Option("no-xattr", "flag", "no extended attributes", False),
    Option("xattrmap", "text", "names of attributes on the host, as virtiofsd's: :map::user.guest.:", metavar="RULES"),
    Option("posix-acl", "flag", "access control lists", False),
    Option("security-label", "flag", "new files get the guest's security context", False),
    Option("no-killpriv-v2", "flag", "the guest itself takes SUID and SGID away from files that are written", False),
    Option("translate-uid", "texts", "user ids: map:GUEST:HOST:COUNT, squash-guest:GUEST:HOST:COUNT, "
           "forbid-guest:GUEST:COUNT, …", metavar="RANGE"),
    Option("translate-gid", "texts", "group ids likewise", metavar="RANGE"),
    Option("migration-mode", "choice", "how its files are found where it moves to; handles also find deleted ones, but "
           "whoever makes up a state reaches all files of the file system", "find-paths",
           choices=("find-paths", "file-handles")),
    Option("dax", "choice", "files that the guest maps in shared memory, where the front-end can: none, those of 1 MiB "
           "and more, all", "never", choices=("never", "inode", "always")),
    Option("dax-window-mib", "int", "how much of them at once, MiB; an even number", 1024, minimum=2, maximum=1 << 20),
    Option("state-file", "path", "holds what the guest has open, so that its mount survives a restart of this process "
           "where the front-end connects again; best on a tmpfs, such as /run", metavar="PATH"),
    Option("thread-pool-size", "int", "most threads for requests that wait", 64, minimum=1, maximum=256),
    # virtiofsd's names for what is on here anyway
    Option("announce-submounts", "flag", "the default", False),
    Option("xattr", "flag", "the default", False),
    Option("killpriv-v2", "flag", "the default", False),
)  # fmt: skip


def _seconds(what: str, text: str | None) -> float | None:
    if text is None:
        return None
    try:
        return float(text)
    except ValueError:
        raise ConfigError(f"{what} is {text!r}; give seconds, such as 0.5") from None


def open_passthrough(values: Mapping[str, Any]) -> Passthrough:
    """The folder that option values (of `OPTIONS`) describe; the limit of open files is raised for it.

    Raises:
        ConfigError: the user can mend it.
    """
    path = values["shared_dir"]
    if path is None:
        raise ConfigError("give shared-dir PATH: the folder that the guest is to see")
    if values["no_xattr"] and (values["posix_acl"] or values["xattrmap"] or values["security_label"]):
        raise ConfigError("posix-acl, xattrmap and security-label need extended attributes: leave no-xattr out")
    if values["rlimit_nofile"]:
        raise_nofile(values["rlimit_nofile"])
    try:
        return Passthrough(
            path,
            cache=values["cache"],
            timeout=_seconds("timeout", values["timeout"]),
            negative_timeout=_seconds("negative-timeout", values["negative_timeout"]) or 0.0,
            inode_file_handles=values["inode_file_handles"],
            max_fds=values["max_fds"],
            max_files=values["max_files"],
            max_inodes=values["max_inodes"],
            readonly=values["readonly"],
            readdirplus=not values["no_readdirplus"],
            announce_submounts=not values["no_announce_submounts"],
            writeback=values["writeback"],
            allow_direct_io=values["allow_direct_io"],
            killpriv_v2=not values["no_killpriv_v2"],
            posix_lock=not values["no_posix_lock"],
            flock=not values["no_flock"],
            xattr=not values["no_xattr"],
            posix_acl=values["posix_acl"],
            security_label=values["security_label"],
            xattrmap=parse_xattrmap(values["xattrmap"]) if values["xattrmap"] else (),
            uids=parse_translation(values["translate_uid"] or ()),
            gids=parse_translation(values["translate_gid"] or ()),
            migration=values["migration_mode"],
            dax=values["dax"],
            dax_window=values["dax_window_mib"] << 20,
            state_file=values["state_file"],
            threads=values["thread_pool_size"],
        )
    except (PassthroughError, ValueError) as exc:
        raise ConfigError(str(exc)) from exc
