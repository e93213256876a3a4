"""What a display's process gives up, and that it still does all of it: pictures go to the client, which writes them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import peerlib
import pytest
import trio
from gpurig import driver

from devices.gpu.load import Workload, measure

VHOST = str(Path(sys.executable).with_name("vhost"))


def status_of(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def test_sealed(tmp_path: Path) -> None:
    control = tmp_path / "ctl"
    with peerlib.vhost_gpu("--control", str(control), "--seccomp", "kill") as backend:
        load = Workload(size=(320, 200), runtime=0.1, warmup=0, display=True, verify=True)
        assert trio.run(measure, str(backend.path), load).errors == 0
        status = status_of(backend.pid)
        assert status["Seccomp"] == "2"
        assert status["NoNewPrivs"] == "1"
        assert int(status["CapEff"], 16) == 0
        if not os.geteuid():
            root = Path(f"/proc/{backend.pid}/root")
            needed = [Path(path).resolve() for path in (peerlib.ROOT, sys.prefix, sys.base_prefix)]
            others = {"boot", "home", "media", "mnt", "opt", "root", "srv", "tmp"} - {path.parts[1] for path in needed}
            seen = [name for name in others if (root / name).exists()]
            assert not seen, "folders that it does not need are out of sight"
        trio.run(_pictures, backend.path, control, tmp_path)
        assert backend.deaths == 0
        assert "sandbox" not in backend.words, "nothing that could not be done"


async def _pictures(path: Path, control: Path, folder: Path) -> None:
    from PIL import Image

    pixels = bytes([10, 20, 30, 255]) * (64 * 32)
    async with driver(str(path)) as guest:
        await guest.paint(0, 1, 64, 32, pixels)
        for words in (("gpu.screenshot", "path=a.png"), ("gpu.record", "path=a.gif", "seconds=0.2")):
            await trio.run_process([VHOST, "ctl", "-s", str(control), *words], cwd=folder, stdout=subprocess.DEVNULL)
    with Image.open(folder / "a.png") as image:
        assert image.tobytes() == bytes([30, 20, 10]) * (64 * 32)
    with Image.open(folder / "a.gif") as image:
        assert image.size == (64, 32)


@pytest.mark.parametrize("more", [("--sandbox", "none", "--seccomp", "none")])
def test_not_sealed(more: tuple[str, ...]) -> None:
    with peerlib.vhost_gpu(*more) as backend, backend.peer() as peer:
        peer.handshake()  # by now it would be
        assert status_of(backend.pid)["Seccomp"] == "0"
        assert os.readlink(f"/proc/{backend.pid}/ns/mnt") == os.readlink("/proc/self/ns/mnt")
