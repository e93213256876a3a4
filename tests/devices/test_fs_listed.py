"""Listings that the guest's kernel may use again."""

from __future__ import annotations

import os
import shutil
import struct
from pathlib import Path

import pytest
import trio
from fsrig import ROOT, Mount, mounted

from devices.fs.config import Opcode
from devices.fs.passthrough import Passthrough

CACHE_DIR, KEEP_CACHE = 8, 2
#: a ctime that is younger than this when a listing begins could be that of a later change
SETTLED = 0.05


async def opened(mount: Mount, nodeid: int = ROOT) -> tuple[int, bool]:
    """The handle of an open folder, and whether what was listed before may be used again."""
    flags = os.O_RDONLY | os.O_DIRECTORY
    fh, said, _ = struct.unpack("<QII", await mount.ask(Opcode.OPENDIR, nodeid, struct.pack("<II", flags, 0), room=16))
    assert said & CACHE_DIR
    return fh, bool(said & KEEP_CACHE)


async def kept(mount: Mount, nodeid: int = ROOT) -> bool:
    fh, said = await opened(mount, nodeid)
    await mount.releasedir(nodeid, fh)
    return said


def fill(tmp_path: Path, files: int = 3) -> None:
    for number in range(files):
        (tmp_path / f"file-{number}").write_text("")
    (tmp_path / "sub").mkdir()


@pytest.mark.parametrize("plus", [False, True])
async def test_it_holds_until_something_changes(tmp_path: Path, plus: bool) -> None:
    fill(tmp_path)
    await trio.sleep(SETTLED)

    def by_host(name: str) -> None:
        (tmp_path / name).write_text("")

    async with mounted(Passthrough(tmp_path, timeout=60)) as mount:
        assert not await kept(mount), "nobody has listed it"
        before = await mount.list(plus=plus)
        assert await kept(mount)
        assert await kept(mount)
        (tmp_path / "file-0").write_text("what is in a file is not in a listing")
        (tmp_path / "sub" / "deeper").write_text("")
        assert await kept(mount)
        made, _ = await mount.create(ROOT, "new")
        for change in (
            lambda: by_host("of the host"),
            lambda: os.rename(tmp_path / "of the host", tmp_path / "renamed"),
            lambda: os.unlink(tmp_path / "renamed"),
            lambda: os.rename(tmp_path / "file-1", tmp_path / "sub" / "away"),
            lambda: shutil.rmtree(tmp_path / "sub"),
        ):
            await trio.sleep(SETTLED)
            await mount.list(plus=plus)
            assert await kept(mount)
            change()
            assert not await kept(mount)
            # time can be set back, but not when that was done
            os.utime(tmp_path, ns=(0, 0))
            assert not await kept(mount)
        await trio.sleep(SETTLED)
        after = await mount.list(plus=plus)
        assert {entry.name for entry in before} - {entry.name for entry in after} == {"file-1", "sub"}
        await mount.unlink(ROOT, "new")
        assert not await kept(mount)
        assert made.nodeid


async def test_changes_in_the_same_tick_are_not_missed(tmp_path: Path) -> None:
    """A folder that has just changed may change once more before the clock goes on: its listing is not kept."""
    async with mounted(Passthrough(tmp_path)) as mount:
        for number in range(200):
            (tmp_path / f"file-{number}").write_text("")
            listed = {entry.name for entry in await mount.list(plus=True)}
            (tmp_path / f"more-{number}").write_text("")
            assert f"more-{number}" not in listed
            assert not await kept(mount)


async def test_what_was_not_listed_to_its_end_is_not_kept(tmp_path: Path) -> None:
    fill(tmp_path, 100)
    await trio.sleep(SETTLED)
    async with mounted(Passthrough(tmp_path)) as mount:
        fh, _ = await opened(mount)
        part = await mount.readdir(ROOT, fh, size=1024)
        assert not await kept(mount)
        while part:
            last, part = part, await mount.readdir(ROOT, fh, part[-1].off, size=1024)
        assert await kept(mount)
        # the kernel goes back where a reader's buffer was full
        assert await mount.readdir(ROOT, fh, last[0].off, size=1024) == last[1:]
        # it changes while it is listed
        part = await mount.readdir(ROOT, fh, size=1024)
        (tmp_path / "new").write_text("")
        while part:
            part = await mount.readdir(ROOT, fh, part[-1].off, size=1024)
        await mount.releasedir(ROOT, fh)
        assert not await kept(mount)


async def test_names_that_came_with_attributes_are_asked_for_again(tmp_path: Path) -> None:
    """A listing from the cache brings none: it is kept as long as those of before are trusted, or were few."""
    fill(tmp_path, 100)
    await trio.sleep(SETTLED)
    async with mounted(Passthrough(tmp_path, timeout=3)) as mount:
        await mount.list(plus=True)
        assert await kept(mount)
        await trio.sleep(3.1)
        assert not await kept(mount)
        await mount.list(plus=False)
        await trio.sleep(3.1)
        assert await kept(mount)
        # as Linux does it: the first with attributes, to see whether they are wanted
        fh, _ = await opened(mount)
        part = await mount.readdir(ROOT, fh, plus=True, size=1024)
        while part:
            part = await mount.readdir(ROOT, fh, part[-1].off, size=1024)
        await mount.releasedir(ROOT, fh)
        await trio.sleep(3.1)
        assert await kept(mount)
    async with mounted(Passthrough(tmp_path, timeout=0)) as mount:
        await mount.list(plus=True)
        assert not await kept(mount)


async def test_of_another_folder(tmp_path: Path) -> None:
    """Each has its own; a folder in the place of another is another."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    await trio.sleep(SETTLED)
    async with mounted(Passthrough(tmp_path, timeout=60)) as mount:
        one, two = [(await mount.lookup(ROOT, name)).nodeid for name in ("one", "two")]
        await mount.list(one)
        assert await kept(mount, one)
        assert not await kept(mount, two)
        (tmp_path / "one").rmdir()
        (tmp_path / "one").mkdir()
        again = (await mount.lookup(ROOT, "one")).nodeid
        assert again != one
        assert not await kept(mount, again)


@pytest.mark.parametrize(("cache", "said"), [("never", 0), ("metadata", 10), ("always", 10)])
async def test_other_policies(tmp_path: Path, cache: str, said: int) -> None:
    fill(tmp_path)
    await trio.sleep(SETTLED)
    async with mounted(Passthrough(tmp_path, cache=cache)) as mount:
        for _ in range(2):
            reply = await mount.ask(Opcode.OPENDIR, ROOT, struct.pack("<II", os.O_RDONLY | os.O_DIRECTORY, 0), room=16)
            assert struct.unpack("<QII", reply)[1] == said
            await mount.list(plus=True)
