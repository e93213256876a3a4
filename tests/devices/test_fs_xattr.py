"""Passthrough: extended attributes, the rules for their names, and POSIX ACLs."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from devices.fs import Passthrough
from devices.fs.config import InitFlag, Opcode
from devices.fs.idmap import parse_translation
from devices.fs.xattrmap import XattrAction, XattrRule, XattrScope, parse_xattrmap
from tests.fsrig import EVERY_FLAG, ROOT, Mount, errno_of, mounted

CREATE, REPLACE = 1, 2
ACCESS = "system.posix_acl_access"
ACL_KILL_SGID = 1
USER_OBJ, USER, GROUP_OBJ, GROUP, MASK, OTHER = 1, 2, 4, 8, 16, 32

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="trusted and security attributes are root's")


@asynccontextmanager
async def folder(path: Path, *, flags: int = EVERY_FLAG, **options: Any) -> AsyncIterator[Mount]:
    """A guest that has `path` mounted, with extended attributes."""
    options["xattrmap"] = parse_xattrmap(options.get("xattrmap", ":ok:all:::"))
    async with mounted(Passthrough(path, **options), flags=flags) as mount:
        yield mount


@pytest.fixture(autouse=True)
def _file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()
    try:
        os.setxattr(path, "user.probe", b"1")
        os.removexattr(path, "user.probe")
    except OSError as exc:
        pytest.skip(f"{tmp_path} has no extended attributes: {exc}")


async def node_of(mount: Mount, name: str = "file") -> int:
    return (await mount.lookup(ROOT, name)).nodeid


async def test_attributes(tmp_path: Path) -> None:
    """Set, read in any pieces, listed, removed: as on the host."""
    path = tmp_path / "file"
    value = bytes(range(256)) * 4
    async with folder(tmp_path) as mount:
        node = await node_of(mount)
        await mount.setxattr(node, "user.one", value)
        await mount.setxattr(node, "user.empty", b"")
        assert os.getxattr(path, "user.one") == value
        assert os.getxattr(path, "user.empty") == b""
        assert await mount.getxattr(node, "user.one", 4096) == value
        assert await mount.getxattr(node, "user.one", len(value)) == value
        ask = struct.pack("<II", 1024, 0) + b"user.one\0"
        assert await mount.ask(Opcode.GETXATTR, node, ask, room=[1, 100, 923]) == value
        assert await mount.getxattr(node, "user.empty") == b""
        assert struct.unpack("<II", await mount.getxattr(node, "user.one", 0)) == (1024, 0)
        assert await errno_of(mount.getxattr(node, "user.one", 1023)) == errno.ERANGE
        assert await errno_of(mount.getxattr(node, "user.none")) == errno.ENODATA
        names = await mount.listxattr(node)
        assert {"user.one", "user.empty"} <= set(names)
        size = sum(len(name) + 1 for name in names)
        assert await mount.listxattr(node, size) == names
        assert await errno_of(mount.listxattr(node, size - 1)) == errno.ERANGE
        assert await errno_of(mount.setxattr(node, "user.one", b"2", CREATE)) == errno.EEXIST
        assert await errno_of(mount.setxattr(node, "user.two", b"2", REPLACE)) == errno.ENODATA
        assert await errno_of(mount.setxattr(node, "user.two", b"2", 4)) == errno.EINVAL
        assert await errno_of(mount.setxattr(node, "nowhere.two", b"2")) == errno.EOPNOTSUPP
        await mount.removexattr(node, "user.one")
        assert await errno_of(mount.removexattr(node, "user.one")) == errno.ENODATA
        assert "user.one" not in os.listxattr(path)


@needs_root
async def test_what_cannot_be_opened(tmp_path: Path) -> None:
    """Links and special files have attributes too, and are not followed or opened for them."""
    (tmp_path / "link").symlink_to("file")
    os.mkfifo(tmp_path / "fifo")
    async with folder(tmp_path) as mount:
        for name in ("link", "fifo"):
            node = await node_of(mount, name)
            await mount.setxattr(node, "trusted.it", name.encode())
            assert await mount.getxattr(node, "trusted.it") == name.encode()
            assert await mount.listxattr(node) == ["trusted.it"]
            assert os.getxattr(tmp_path / name, "trusted.it", follow_symlinks=False) == name.encode()
    assert "trusted.it" not in os.listxattr(tmp_path / "file")


async def test_switched_off(tmp_path: Path) -> None:
    """Guests hear that there are none at all, and ask no more."""
    async with mounted(Passthrough(tmp_path, xattr=False)) as mount:
        node = await node_of(mount)
        for call in (
            mount.setxattr(node, "user.x", b"1"), mount.getxattr(node, "user.x"), mount.listxattr(node),
            mount.removexattr(node, "user.x"),
        ):  # fmt: skip
            assert await errno_of(call) == errno.ENOSYS


async def test_all_under_another_name(tmp_path: Path) -> None:
    """`map` of everything: a guest cannot tell, the host has other names."""
    path = tmp_path / "file"
    async with folder(tmp_path, xattrmap=":map::user.guest.:") as mount:
        node = await node_of(mount)
        os.setxattr(path, "user.host", b"hidden")
        for name in ("user.a", "trusted.b", "security.capability", "anything"):
            await mount.setxattr(node, name, name.encode())
            assert os.getxattr(path, "user.guest." + name) == name.encode()
            assert await mount.getxattr(node, name) == name.encode()
        assert sorted(await mount.listxattr(node)) == ["anything", "security.capability", "trusted.b", "user.a"]
        await mount.removexattr(node, "trusted.b")
        assert await errno_of(mount.getxattr(node, "user.host")) == errno.ENODATA
        assert await errno_of(mount.setxattr(node, "x" * 250, b"")) == errno.ERANGE


async def test_rules(tmp_path: Path) -> None:
    """The first rule that fits decides, and a name that none fits is refused."""
    rules = """
        :prefix:client:trusted.:user.t.:
        :prefix:server:trusted.:user.t.:
        /bad/all/user.secret/user.secret/
        /unsupported/all/user.old/user.old/
        :ok:all:user.:user.:
    """
    path = tmp_path / "file"
    async with folder(tmp_path, xattrmap=rules) as mount:
        node = await node_of(mount)
        for name in ("user.secret1", "user.old1", "user.plain", "user.t.trusted.x", "user.t.stray"):
            os.setxattr(path, name, b"v")
        assert sorted(await mount.listxattr(node)) == ["trusted.x", "user.plain", "user.t.stray"]
        assert await errno_of(mount.getxattr(node, "user.secret1")) == errno.EPERM
        assert await errno_of(mount.setxattr(node, "user.secret2", b"")) == errno.EPERM
        assert await errno_of(mount.removexattr(node, "user.secret1")) == errno.EPERM
        assert await errno_of(mount.getxattr(node, "user.old1")) == errno.EOPNOTSUPP
        assert await errno_of(mount.setxattr(node, "security.x", b"")) == errno.EPERM
        assert await mount.getxattr(node, "trusted.x") == b"v"
        await mount.setxattr(node, "trusted.y", b"w")
        assert os.getxattr(path, "user.t.trusted.y") == b"w"


async def test_capabilities_go_with_the_contents(tmp_path: Path) -> None:
    """security.capability under another name: the host does not know that a write has to take it away."""
    path = tmp_path / "file"
    kept = "user.guest.security.capability"
    async with folder(tmp_path, xattrmap=":map:security.capability:user.guest.:") as mount:
        node = await node_of(mount)
        fh = await mount.open(node, os.O_RDWR)
        for change in (
            lambda: mount.write(node, fh, b"#!"), lambda: mount.open(node, os.O_RDWR | os.O_TRUNC),
            lambda: mount.setattr(node, size=10), lambda: mount.setattr(node, uid=os.getuid(), gid=os.getgid()),
        ):  # fmt: skip
            await mount.setxattr(node, "security.capability", b"cap")
            assert kept in os.listxattr(path)
            await change()
            assert kept not in os.listxattr(path)
        assert await errno_of(mount.getxattr(node, "security.capability")) == errno.ENODATA


def acl(*entries: tuple[int, int, int]) -> bytes:
    """The bytes of an ACL: (tag, permissions, id)."""
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


NOBODY = 2**32 - 1
SOME_ACL = acl((USER_OBJ, 6, NOBODY), (USER, 4, 1000), (GROUP_OBJ, 4, NOBODY), (GROUP, 2, 1001), (MASK, 6, NOBODY),
               (OTHER, 0, NOBODY))  # fmt: skip


def needs_acl(path: Path) -> None:
    try:
        os.setxattr(path, ACCESS, SOME_ACL)
        os.removexattr(path, ACCESS)
    except OSError as exc:
        pytest.skip(f"no ACLs here: {exc}")


@needs_root
async def test_acl(tmp_path: Path) -> None:
    """Ids of ACLs are translated as owners are; without --posix-acl there are none."""
    path = tmp_path / "file"
    needs_acl(path)
    shifted = SOME_ACL.replace(struct.pack("<I", 1000), struct.pack("<I", 101000))
    shifted = shifted.replace(struct.pack("<I", 1001), struct.pack("<I", 201001))
    uids, gids = parse_translation(["map:0:100000:65536"]), parse_translation(["map:0:200000:65536"])
    async with folder(tmp_path, posix_acl=True, uids=uids, gids=gids) as mount:
        assert mount.init is not None
        assert InitFlag.POSIX_ACL & mount.init.flags
        node = await node_of(mount)
        await mount.setxattr(node, ACCESS, SOME_ACL)
        assert os.getxattr(path, ACCESS) == shifted
        assert await mount.getxattr(node, ACCESS) == SOME_ACL
        assert await errno_of(mount.setxattr(node, ACCESS, SOME_ACL[:-1])) == errno.EINVAL
        assert await errno_of(mount.setxattr(node, ACCESS, b"")) in (0, errno.EINVAL)
    os.setxattr(path, ACCESS, SOME_ACL)
    async with folder(tmp_path) as mount:
        node = await node_of(mount)
        assert await errno_of(mount.getxattr(node, ACCESS)) == errno.EOPNOTSUPP
        assert await errno_of(mount.setxattr(node, ACCESS, SOME_ACL)) == errno.EOPNOTSUPP
        assert ACCESS not in await mount.listxattr(node)


@needs_root
async def test_acl_takes_sgid_away(tmp_path: Path) -> None:
    """Where the guest's kernel says so: its user is not of the file's group."""
    path = tmp_path / "file"
    needs_acl(path)
    async with folder(tmp_path, posix_acl=True) as mount:
        node = await node_of(mount)
        for flag, mode in ((0, 0o2000), (ACL_KILL_SGID, 0)):
            path.chmod(0o2755)
            await mount.setxattr(node, ACCESS, SOME_ACL, ext_flags=flag)
            assert path.stat().st_mode & 0o7000 == mode


def test_map_is_short_for_rules() -> None:
    prefix, bad, ok = XattrAction.PREFIX, XattrAction.BAD, XattrAction.OK
    assert parse_xattrmap(":map::user.g.:") == (
        XattrRule(prefix, XattrScope.ALL, "", "user.g."), XattrRule(bad, XattrScope.ALL),
    )  # fmt: skip
    assert parse_xattrmap("/map/trusted./user.g./") == (
        XattrRule(prefix, XattrScope.ALL, "trusted.", "user.g."),
        XattrRule(bad, XattrScope.SERVER, "", "trusted."),
        XattrRule(bad, XattrScope.CLIENT, "user.g.", ""),
        XattrRule(ok, XattrScope.ALL),
    )


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "there is no rule in it"),
        (":ok:all::", "rule 1: its prepend must be followed by ':'"),
        (":ok:all:::/bad/", "rule 2: its scope must be followed by '/'"),
        (":allow:all:::", "rule 1: there is no type 'allow'"),
        (":ok:both:::", "rule 1: there is no scope 'both'"),
        (":map:a::", "'map' needs"),
        (":map:a:b: :ok:all:::", "'map' must be the last rule"),
        (f":ok:all:{'a' * 256}::", "cannot begin the name"),
    ],
)
def test_mistakes_in_rules(text: str, what: str) -> None:
    with pytest.raises(ValueError, match=what):
        parse_xattrmap(text)
