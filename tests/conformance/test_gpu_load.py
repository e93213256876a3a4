"""The load generator for displays: it drives ours, is QEMU at its display socket, notices what is wrong."""

from __future__ import annotations

import json
import os
import socket
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import peerlib
import pytest
import trio
from click.testing import CliRunner
from gpurig import plugged

from devices.gpu import Gpu
from devices.gpu.bench import command
from devices.gpu.load import Result, Workload, measure
from vhost.bench import cell_of, load
from vhost.errors import DeviceError, VhostError

FAST = Workload(size=(320, 200), runtime=0.1, warmup=0)


@pytest.mark.parametrize(
    "load_",
    [
        replace(FAST, depth=1),
        replace(FAST, packed=True, rect=(16, 16), display=True, verify=True),
        replace(FAST, rect=(33, 7), piece_bytes=4096, poll=False, display=True, verify=True, depth=64),
        replace(FAST, random=False, rect=(64, 64), indirect=False, event_idx=False, display=True, verify=True),
    ],
    ids=lambda load_: f"{load_.area}{' display' if load_.display else ''}",
)
async def test_loads(load_: Workload) -> None:
    gpu = Gpu()
    async with plugged(gpu) as path:
        result: Result = await measure(path, load_)
        assert result.errors == 0, result.first_error
        assert result.frames > 3
        assert result.latency.samples > 0
        stats = gpu.stats
        assert stats.transfers >= result.frames, "it counts what was done"
        assert stats.resources == 0, "and leaves nothing behind"
        assert bool(result.updates_per_second) is load_.display


async def test_reply_that_says_no() -> None:
    """A picture that is taken away meanwhile: frames fail, and are counted."""
    gpu = Gpu()
    async with plugged(gpu) as path, trio.open_nursery() as nursery:
        nursery.start_soon(_reset_when_it_draws, gpu)
        with pytest.raises(DeviceError, match="command 0x102 was answered with 0x1203"):
            await measure(path, replace(FAST, runtime=0.3))
        assert gpu.stats.errors["invalid_resource_id"] > 1
        nursery.cancel_scope.cancel()


async def _reset_when_it_draws(gpu: Gpu) -> None:
    while gpu.stats.flushes < 10:
        await trio.sleep(0.002)
    gpu.reset()


async def test_display_that_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    def not_wanted(_gpu: Gpu, fd: int) -> None:
        os.close(fd)

    monkeypatch.setattr(Gpu, "set_gpu_socket", not_wanted)
    async with plugged(Gpu()) as path:
        with pytest.raises(DeviceError, match="closed the display's socket"):
            await measure(path, replace(FAST, display=True, runtime=5))


async def test_display_that_says_nonsense(monkeypatch: pytest.MonkeyPatch) -> None:
    def shows_nonsense(_gpu: Gpu, fd: int) -> None:
        with socket.socket(fileno=fd) as sock:  # an update of 64 pixels without a scanout
            sock.send(b"".join(n.to_bytes(4, "little") for n in (8, 0, 20 + 256, 0, 0, 0, 8, 8)))

    monkeypatch.setattr(Gpu, "set_gpu_socket", shows_nonsense)
    async with plugged(Gpu()) as path:
        with pytest.raises(VhostError, match="nonsense on the display's socket"):
            await measure(path, replace(FAST, display=True, runtime=5))


def test_command(tmp_path: Path) -> None:
    """`vhost bench gpu` on a back-end of its own, results that are read again."""
    out, lines = tmp_path / "r.json", tmp_path / "r.csv"
    with peerlib.short_folder() as path:
        program = str(Path(sys.executable).with_name("vhost"))
        with peerlib.running([program, "gpu", "--socket-path", str(path / "s")], path / "s", path / "log"):
            for more in (["--packed"], ["--rect", "16x16", "--sleep"], ["--display", "--verify"]):
                args = ["--socket-path", str(path / "s"), "--size", "640x480", "--runtime", "0.1", *more]
                args += ["--json", str(out), "--csv", str(lines), "--name", "ours"]
                ran = CliRunner().invoke(command, args, catch_exceptions=False)
                assert ran.exit_code == 0, ran.output
                assert json.loads(out.read_text())["result"]["frames"] > 3
    assert len({cell_of(run) for run in load(lines)}) == 3
    ran = CliRunner().invoke(command, ["--socket-path", "/nowhere", "--size", "big"])
    assert ran.exit_code == 2
    assert "'big' is no size" in ran.output


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"size": (8, 8)}, "not 16x16"),
        ({"rect": (0, 1)}, "does not lie"),
        ({"rect": (1921, 1)}, "does not lie"),
        ({"depth": 0}, "depth 0"),
        ({"piece_bytes": 16}, "larger ones"),
        ({"verify": True}, "only with a display"),
        ({"cpus": (4096,)}, "may not run"),
    ],
)
def test_nonsense(changed: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Workload(**changed).check()
