"""What docs/guides/filesystem-in-python.md shows works as it stands there."""

from __future__ import annotations

import errno
import fcntl
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import trio
from fsrig import ROOT, guest, mounted

from devices.fs.config import InitFlag, Opcode
from devices.fs.serving import PythonServer

GUIDE = Path(__file__).resolve().parents[2] / "docs" / "guides" / "filesystem-in-python.md"
TEXT = b"hello, world!\n"


@pytest.fixture(scope="module")
def guide() -> dict[str, Any]:
    """The names that its Python snippets define, one after the other."""
    found: dict[str, Any] = {"__name__": "guide"}
    for snippet in re.findall(r"^```python\n(.*?)^```", GUIDE.read_text(), re.MULTILINE | re.DOTALL):
        exec(compile(snippet, str(GUIDE), "exec"), found)
    return found


@pytest.mark.parametrize("name", ["Hello", "Slow", "Locking"])
async def test_snippets(guide: dict[str, Any], name: str) -> None:
    async with mounted(PythonServer(guide[name]())) as mount:
        entry = await mount.lookup(ROOT, "hello")
        assert await mount.read(entry.nodeid, 0, 4096) == TEXT
        assert [entry.name for entry in await mount.list()] == [".", "..", "hello"]
        assert mount.init is not None
        assert (InitFlag.POSIX_LOCKS in mount.init.flags) == (name == "Locking")
        if name == "Locking":
            for owner, error in ((1, 0), (2, errno.EAGAIN), (1, 0)):
                args = mount.lock_args(0, owner, fcntl.F_WRLCK, 0, 9)
                assert (await mount.call(Opcode.SETLK, entry.nodeid, args))[0] == error
            await mount.flush(entry.nodeid, 0, owner=1)
            assert (await mount.call(Opcode.SETLK, entry.nodeid, mount.lock_args(0, 2, fcntl.F_WRLCK, 0, 9)))[0] == 0


async def test_several_guests(guide: dict[str, Any], tmp_path: Path) -> None:
    paths = [str(tmp_path / "a"), str(tmp_path / "b")]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(guide["serve"], guide["Hello"](), paths)
        for path in paths:
            async with guest(path) as mount:
                assert await mount.read((await mount.lookup(ROOT, "hello")).nodeid, 0, 5) == TEXT[:5]
        nursery.cancel_scope.cancel()


async def test_script_and_command(guide: dict[str, Any], tmp_path: Path) -> None:
    """As a program of its own, and by the command."""
    script = re.findall(r"^```python\n(# hello.py\n.*?)^```", GUIDE.read_text(), re.MULTILINE | re.DOTALL)[0]
    (tmp_path / "hello.py").write_text(script)
    socket = tmp_path / "s"
    by_command = ["fs", "--filesystem", "hello:Hello", "--tag", "hello", "--socket-path", str(socket)]
    assert " ".join(by_command[:5]) in GUIDE.read_text()
    vhost = str(Path(sys.executable).with_name("vhost"))
    for command in ([sys.executable, "hello.py", str(socket)], [vhost, *by_command]):
        process = await trio.lowlevel.open_process(command, cwd=tmp_path, env={"PYTHONPATH": str(tmp_path)})
        try:
            with trio.fail_after(60):
                while not socket.exists():
                    assert process.poll() is None
                    await trio.sleep(0.01)
            async with guest(str(socket)) as mount:
                assert await mount.read((await mount.lookup(ROOT, "hello")).nodeid, 0, 5) == TEXT[:5]
            process.terminate()
            with trio.fail_after(60):
                assert await process.wait() == 0
        finally:
            process.kill()
            await process.wait()
