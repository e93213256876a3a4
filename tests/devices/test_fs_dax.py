"""DAX: the guest maps files in a window of shared memory that the front-end has."""

from __future__ import annotations

import errno
import mmap
import os
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import peerlib
import pytest
from fsrig import EVERY_FLAG, ROOT, Mount, errno_of, guest, until

import vhost
from devices.fs import Fs, Passthrough
from devices.fs.config import InitFlag, Opcode
from vhost.constants import FrontendRequest, ProtocolFeature, ShmemFlag
from vhost.frontend import PLAIN, Frontend
from vhost.messages import ShmemConfig

UNIT = 2 << 20
WINDOW = 8 * UNIT
_WRITE, _READ = 1, 2
_DAX = 2  # of fuse_attr.flags


@asynccontextmanager
async def mounted(folder: Path, *, dax: str = "always", **how: object) -> AsyncIterator[Mount]:
    """A guest whose front-end has the window."""
    async with Passthrough(folder, dax=dax, dax_window=WINDOW) as server, vhost.open_server() as host:  # type: ignore[arg-type]
        with peerlib.short_folder() as place:
            await host.listen(Fs(server), str(place / "s"), options=vhost.Options(shmem=True))
            async with guest(str(place / "s"), **how) as mount:  # type: ignore[arg-type]
                yield mount


async def setup(mount: Mount, node: int, at: int, *, offset: int = 0, length: int = UNIT, write: bool = False) -> None:
    flags = _READ | (_WRITE if write else 0)
    args = struct.pack("<QQQQQ", 2**64 - 1, offset, length, flags, at)
    await mount.ask(Opcode.SETUPMAPPING, node, args, room=0)


async def remove(mount: Mount, *ranges: tuple[int, int], node: int = ROOT) -> None:
    table = b"".join(struct.pack("<QQ", *one) for one in ranges)
    await mount.ask(Opcode.REMOVEMAPPING, node, struct.pack("<I", len(ranges)) + table, room=0)


def places(mount: Mount) -> list[int]:
    """What of the window is mapped."""
    assert mount.fe.backchannel is not None
    return sorted(at for _, at in mount.fe.backchannel.shmem)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(bytes(3 * UNIT))
    return path


async def test_data_through_the_window(tmp_path: Path, file: Path) -> None:
    """What is written there is in the file, what the file gets is there; mapped for writing at once."""
    async with mounted(tmp_path) as mount:
        assert mount.init is not None
        assert mount.init.flags & InitFlag.MAP_ALIGNMENT
        assert 1 << mount.init.map_alignment == UNIT
        node = (await mount.lookup(ROOT, "file")).nodeid
        await setup(mount, node, UNIT, offset=UNIT)
        back = mount.fe.backchannel
        assert back is not None
        told = back.shmem[0, UNIT]
        assert (told.length, told.fd_offset, told.flags) == (UNIT, UNIT, ShmemFlag.READ_WRITE)
        with mmap.mmap(back.shmem_fds[0, UNIT].fileno(), told.length, offset=told.fd_offset) as window:
            window[:5] = b"guest"
            assert file.read_bytes()[UNIT : UNIT + 5] == b"guest"
            with file.open("r+b") as host:
                host.seek(2 * UNIT - 4)
                host.write(b"host")
            assert window[-4:] == b"host"
            fh = await mount.open(node, os.O_RDWR)
            await mount.write(node, fh, b"other way", UNIT + 100)
            assert window[100:109] == b"other way"
        await setup(mount, node, UNIT, offset=UNIT, write=True)
        assert back.shmem[0, UNIT] is told, "it was mapped for writing already"
        await setup(mount, node, 0)
        assert places(mount) == [0, UNIT]
        await remove(mount, (0, UNIT), (4 * UNIT, UNIT))
        assert places(mount) == [UNIT]
        await setup(mount, node, UNIT, offset=0)
        assert back.shmem[0, UNIT].fd_offset == 0, "another part of the file took its place"
        await setup(mount, node, 2 * UNIT, length=2 * UNIT)
        for at in (2 * UNIT, 3 * UNIT):  # half of it
            assert await errno_of(remove(mount, (at, UNIT))) == errno.EINVAL
        await remove(mount, (0, 2**64 - 1))
        assert places(mount) == []


async def test_what_cannot_be_mapped(tmp_path: Path, file: Path) -> None:
    """Places, lengths and files that make no sense are refused; the VMM does not hear of them."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("file")
    os.mkfifo(tmp_path / "fifo")
    async with mounted(tmp_path) as mount:
        node = (await mount.lookup(ROOT, "file")).nodeid
        for at, offset, length in (
            (WINDOW, 0, UNIT), (WINDOW - UNIT, 0, 2 * UNIT), (4096, 0, UNIT), (0, 4096, UNIT), (0, 0, 0), (0, 0, 100),
            (2**64 - UNIT, 0, 2 * UNIT), (0, 2**63, UNIT), (0, 2**63 - UNIT, UNIT), (0, 0, 2**64 - 4096),
        ):  # fmt: skip
            assert await errno_of(setup(mount, node, at, offset=offset, length=length)) == errno.EINVAL
            assert await errno_of(remove(mount, (at, length))) == errno.EINVAL or offset
        for name in ("folder", "link", "fifo"):
            assert await errno_of(setup(mount, (await mount.lookup(ROOT, name)).nodeid, 0)) == errno.EINVAL
        assert await errno_of(remove(mount)) == errno.EINVAL
        assert await errno_of(remove(mount, *[(0, UNIT)] * 257)) == errno.EINVAL
        assert places(mount) == []
        await setup(mount, node, 0)
    async with Passthrough(tmp_path, dax="always", readonly=True) as server, vhost.open_server() as host:
        with peerlib.short_folder() as place:
            await host.listen(Fs(server), str(place / "s"), options=vhost.Options(shmem=True))
            async with guest(str(place / "s")) as mount:
                node = (await mount.lookup(ROOT, "file")).nodeid
                assert await errno_of(setup(mount, node, 0, write=True)) == errno.EROFS
                await setup(mount, node, 0)
                assert mount.fe.backchannel is not None
                assert mount.fe.backchannel.shmem[0, 0].flags == ShmemFlag.READ_ONLY


async def test_nothing_stays_mapped(tmp_path: Path, file: Path) -> None:
    """A guest that mounts anew begins with an empty window, and so does the next front-end."""
    async with Passthrough(tmp_path, dax="always", dax_window=WINDOW) as server, vhost.open_server() as host:
        fs = Fs(server)
        with peerlib.short_folder() as place:
            await host.listen(fs, str(place / "s"), options=vhost.Options(shmem=True))
            for _ in range(2):
                async with guest(str(place / "s")) as mount:
                    config = await mount.fe.ask(FrontendRequest.GET_SHMEM_CONFIG)
                    assert config.payload == ShmemConfig.of({0: WINDOW})
                    await setup(mount, (await mount.lookup(ROOT, "file")).nodeid, 0)
                    assert fs.controls()["info"]()["dax_mapped"] == UNIT
                    await mount.start()
                    await until(lambda mount=mount: places(mount) == [])  # type: ignore[misc]
                    await setup(mount, (await mount.lookup(ROOT, "file")).nodeid, UNIT)
                    assert places(mount) == [UNIT]


@pytest.mark.parametrize(("dax", "expected"), [("always", [True, True]), ("inode", [False, True])])
async def test_which_files(tmp_path: Path, file: Path, dax: str, expected: list[bool]) -> None:
    (tmp_path / "small").write_bytes(b"small")
    async with mounted(tmp_path, dax=dax) as mount:
        entries = [await mount.lookup(ROOT, name) for name in ("small", "file")]
        assert [bool(entry.attr.flags & _DAX) for entry in entries] == expected
        assert [bool((await mount.getattr(entry.nodeid)).flags & _DAX) for entry in entries] == expected
        assert not (await mount.getattr(ROOT)).flags & _DAX
    async with mounted(tmp_path, dax=dax, flags=EVERY_FLAG & ~InitFlag.HAS_INODE_DAX) as mount:
        assert not (await mount.lookup(ROOT, "file")).attr.flags


async def test_front_ends_without_a_window(tmp_path: Path, file: Path) -> None:
    """Nothing is offered to the guest where the front-end cannot map."""
    async with Passthrough(tmp_path, dax="always") as server, vhost.open_server() as host:
        with peerlib.short_folder() as place:
            await host.listen(Fs(server), str(place / "s"), options=vhost.Options(shmem=True))
            for lacks in (ProtocolFeature.SHMEM, ProtocolFeature.REPLY_ACK):
                async with Frontend.connect(str(place / "s"), personality=PLAIN, protocol=~lacks) as fe:
                    await fe.start(queues=2, native=True, indirect_max=64)
                    mount = Mount(fe)
                    reply = await mount.start()
                    assert not reply.flags & (InitFlag.MAP_ALIGNMENT | InitFlag.HAS_INODE_DAX)
                    node = (await mount.lookup(ROOT, "file")).nodeid
                    assert await errno_of(setup(mount, node, 0)) == errno.ENOSYS
                    assert await errno_of(remove(mount, (0, UNIT))) == errno.ENOSYS


def test_options(tmp_path: Path) -> None:
    for size in (0, UNIT - 1, UNIT + 4096, 2 << 40):
        with pytest.raises(ValueError, match="multiple of 2 MiB"):
            Passthrough(tmp_path, dax="always", dax_window=size)
    with pytest.raises(ValueError, match="state file"):
        Passthrough(tmp_path, dax="always", state_file=tmp_path / "state")
