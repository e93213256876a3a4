"""The network load generator: it drives testpmd's card and ours, counts, notices what is lost, altered, reordered."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import peerlib
import pytest
import trio
from click.testing import CliRunner

import ring
import vhost
from devices.net import NetFeature
from devices.net.bench import command
from devices.net.load import Result, Workload, measure
from vhost.bench import cell_of, load
from vhost.errors import ConnectionClosed, VhostError

FAST: dict[str, Any] = {"runtime": 0.15, "warmup": 0.05}
LAYOUTS = (False, True)  # packed


@contextmanager
def dpdk(forward: str, ports: int) -> Iterator[list[str]]:
    """dpdk-testpmd with net_vhost ports; their sockets."""
    program = shutil.which("dpdk-testpmd")
    cpus = sorted(os.sched_getaffinity(0))
    if program is None:
        pytest.skip("dpdk-testpmd is not installed; install the Debian package dpdk-dev")
    with peerlib.short_folder() as path:
        words = [program, "--lcores", f"0@{cpus[-1]},1@{cpus[-1]}", "--no-pci", "--no-huge", "-m", "128"]
        words += ["--no-telemetry", "--file-prefix", path.name]
        sockets = [path / str(number) for number in range(ports)]
        for number, sock in enumerate(sockets):
            words += ["--vdev", f"net_vhost{number},iface={sock},queues=1"]
        words += ["--", "--auto-start", "--stats-period", "1000", "--total-num-mbufs=4096"]
        env = {**os.environ, "RUNTIME_DIRECTORY": str(path)}
        with (path / "log").open("wb") as log:
            process = subprocess.Popen(
                [*words, f"--forward-mode={forward}"], stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=env
            )
        try:
            deadline = time.monotonic() + 60
            while not all(sock.exists() for sock in sockets):
                assert process.poll() is None, (path / "log").read_text()
                assert time.monotonic() < deadline
                time.sleep(0.05)
            yield list(map(str, sockets))
        finally:
            process.terminate()
            process.wait(20)


async def moving(sockets: list[str], workload: Workload) -> Result:
    """A run in which something moved: testpmd polls, and on a busy machine may have no processor for as long."""
    for _ in range(8):
        result = await measure(sockets, workload)
        if result.packets > 1000 or result.errors:
            break
    assert result.errors == 0, result.first_error
    assert result.packets > 1000
    return result


@pytest.mark.parametrize(("mode", "forward"), [("tx", "rxonly"), ("rx", "txonly"), ("echo", "io")])
async def test_drives_testpmd(mode: str, forward: str) -> None:
    """A card that is not ours: every frame that comes back is compared."""
    with dpdk(forward, 1) as sockets:
        for packed in LAYOUTS:
            for mergeable in (False, True):
                workload = Workload(mode=mode, packed=packed, mergeable=mergeable, verify=mode == "echo", **FAST)
                result = await moving(sockets, workload)
                assert bool(result.features >> 34 & 1) is packed
                assert (result.latency is not None) is (mode == "echo")
                if mode == "echo":
                    assert result.lost == result.reordered == result.foreign == 0


async def test_two_ends_on_testpmd() -> None:
    """From one card to the other, and both ways."""
    with dpdk("io", 2) as sockets:
        for mode, packed in (("pair", False), ("duplex", False), ("pair", True), ("duplex", True)):
            result = await moving(sockets, Workload(mode=mode, packed=packed, verify=True, frame=1518, **FAST))
            assert result.lost == 0


@pytest.mark.parametrize("packed", LAYOUTS, ids=["split", "packed"])
@pytest.mark.parametrize("poll", [False, True], ids=["sleep", "poll"])
async def test_drives_ours(packed: bool, poll: bool) -> None:
    with peerlib.vhost_net("--echo") as backend:
        for frame, mergeable in ((64, True), (64, False), (1518, True), (65536, True), (65536, False)):
            workload = Workload(frame=frame, mergeable=mergeable, packed=packed, poll=poll, verify=True, **FAST)
            result = await measure(backend.path, workload)
            assert result.errors == 0, result.first_error
            assert result.packets > 50
            assert result.lost == result.reordered == 0
            assert result.latency is not None
            assert 0 < result.latency.p50_us <= result.latency.p99_us <= result.latency.max_us
            assert result.bits_per_second == pytest.approx(result.packets_per_second * frame * 8)
            assert result.backend_cpu_us is not None
    with peerlib.vhost_net("--null") as backend:
        result = await measure(backend.path, Workload(mode="tx", packed=packed, poll=poll, **FAST))
        assert result.packets > 1000
        assert result.kicks < 1


async def test_rate() -> None:
    """Open loop: the asked rate, and no more."""
    with peerlib.vhost_net("--echo") as backend:
        workload = Workload(poll=False, rate=2000, runtime=0.5, warmup=0.05)
        result = await measure(backend.path, workload)
    assert 1600 < result.packets_per_second < 2100
    assert result.sent == pytest.approx(1000, abs=60)


class Card(vhost.Device):
    """A card in Python that gives batches of frames back as `spoil` makes them: the header, then the frame."""

    device_id = 1
    queue_sizes = (256, 256)

    def __init__(self, spoil: Callable[[list[bytes]], list[bytes]]) -> None:
        self._spoil = spoil
        self._rx: ring.Virtqueue | None = None
        self._room = trio.Event()

    @property
    def features(self) -> int:
        return int(NetFeature.MRG_RXBUF)

    async def run(self, queue: ring.Virtqueue) -> None:
        """Queue 1 brings frames, queue 0 has room for them."""
        if queue.index == 0:
            self._rx = queue
            self._room.set()
            while await queue.wait():
                await trio.sleep(0.01)
            self._rx = None
            return
        await self._room.wait()  # what came before would be lost
        while await queue.wait():
            frames = []
            for chain in queue.pop_batch(16):
                frames.append(chain.read())
                chain.complete()
            queue.flush()
            if self._rx is None:
                continue
            made = self._spoil(frames) if frames else []
            for frame, room in zip(made, self._rx.pop_batch(len(made)), strict=False):
                room.complete(room.write(0, frame))
            self._rx.flush()


async def spoiled(spoil: Callable[[list[bytes]], list[bytes]], **more: Any) -> Result:
    """What the generator says of a card that spoils frames."""
    workload = replace(Workload(window=32, poll=False, verify=True, runtime=0.4, warmup=0), **more)
    ours, theirs = socket.socketpair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(vhost.serve_fd, Card(spoil), theirs.detach())
        result = await measure(ours, workload)
        nursery.cancel_scope.cancel()
    return result


def _same(frames: list[bytes]) -> list[bytes]:
    return [frame[:10] + b"\1\0" + frame[12:] for frame in frames]


def _first(change: Callable[[bytes], bytes]) -> Callable[[list[bytes]], list[bytes]]:
    return lambda frames: [change(frame) if number == 0 else frame for number, frame in enumerate(_same(frames))]


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (_first(lambda frame: frame[:70] + bytes([frame[70] ^ 1]) + frame[71:]), "something else at byte 58"),
        (_first(lambda frame: frame[:-4]), "came back with 60 bytes"),
        (_first(lambda frame: frame[:10] + b"\0\0" + frame[12:]), "said to be in 0 buffers"),
        (_first(lambda frame: frame[:5]), "came back with 5 bytes"),
    ],
    ids=["altered", "cut", "no buffers", "runt"],
)
async def test_notices_what_is_wrong(spoil: Callable[[list[bytes]], list[bytes]], words: str) -> None:
    result = await spoiled(spoil)
    assert result.packets > 10
    assert result.errors > 0
    assert words in result.first_error


async def test_counts_losses_and_order() -> None:
    good = await spoiled(_same)
    assert good.errors == good.lost == good.reordered == good.foreign == 0, good.first_error
    assert good.packets > 100

    lossy = await spoiled(lambda frames: _same(frames)[1:])
    assert lossy.errors == 0
    assert lossy.lost > 5
    assert lossy.lost + lossy.packets <= lossy.sent <= lossy.lost + lossy.packets + 64

    mixed = await spoiled(lambda frames: _same(frames)[::-1])
    assert mixed.errors == mixed.lost == 0
    assert mixed.reordered > 5
    assert mixed.packets <= mixed.sent <= mixed.packets + 64

    strange = await spoiled(lambda frames: [*_same(frames), bytes(10) + b"\1\0" + bytes(64)])
    assert strange.errors == strange.lost == 0
    assert strange.foreign > 5


async def test_gives_up_on_what_does_not_come() -> None:
    """All of a window is lost: after a while its places are free again."""
    result = await spoiled(lambda _: [], runtime=0.8)
    assert result.packets == 0
    assert 32 <= result.lost <= result.sent <= 4 * 32


async def test_words_for_mistakes() -> None:
    for workload, words in (
        (Workload(mode="sideways"), "is none of"),
        (Workload(frame=59), "is not 60 to 65549"),
        (Workload(burst=0), "is not 1 to 256"),
        (Workload(window=20_000), "is not 0 to 16384"),
        (Workload(threads=2), "every thread needs one"),
        (Workload(threads=2, pairs=2), "one thread drives both ends"),
        (Workload(pairs=17), "1 to 16 are driven"),
        (Workload(mergeable=False, buffer=1024, frame=1518), "need larger buffers"),
        (Workload(mode="tx", verify=True), "nothing to verify"),
        (Workload(cpus=(4711,)), "may not run on processor 4711"),
    ):
        with pytest.raises(ValueError, match=words):
            workload.check()
    with pytest.raises(ValueError, match="mode pair takes 2 sockets"):
        await measure("/nowhere", Workload(mode="pair"))
    with peerlib.vhost_net("--null") as backend, pytest.raises(VhostError, match="does not offer MQ"):
        await measure(backend.path, Workload(pairs=2))
    with peerlib.vhost_blk() as backend, pytest.raises(VhostError, match="does not offer MRG_RXBUF"):
        await measure(backend.path, Workload())


async def test_cancelled() -> None:
    """A long run ends soon after it is cancelled, and lets go of everything."""
    with peerlib.vhost_net("--echo") as backend:
        started = trio.current_time()
        with trio.move_on_after(0.5):
            await measure(backend.path, Workload(runtime=60))
        assert trio.current_time() - started < 5


async def test_dead_backend_is_named() -> None:
    with peerlib.vhost_net("--echo") as backend:
        async with trio.open_nursery() as nursery:

            async def kill() -> None:
                await trio.sleep(0.5)
                backend.process.kill()

            nursery.start_soon(kill)
            with pytest.raises(ConnectionClosed):
                await measure(backend.path, Workload(runtime=20))


def test_command(tmp_path: Path) -> None:
    """Table, JSON and CSV say the same."""
    out, lines = tmp_path / "r.json", tmp_path / "r.csv"
    with peerlib.vhost_net("--echo") as backend:
        args = ["--socket-path", str(backend.path), "--runtime", "0.15", "--warmup", "0.05", "--json", str(out)]
        ran = CliRunner().invoke(command, [*args, "--csv", str(lines)])
        assert ran.exit_code == 0, ran.output
        wrong = CliRunner().invoke(command, [*args, "--frame", "10"])
    assert "packets/s" in ran.output
    assert "lost" in ran.output
    assert wrong.exit_code == 2
    (from_json,), (from_csv,) = load(out), load(lines)
    assert cell_of(from_json) == cell_of(from_csv)
    assert from_json.device == "net"
    assert from_json.values["packets_per_second"] == pytest.approx(from_csv.values["packets_per_second"], 1e-4)
    assert json.loads(out.read_text())["result"]["workload"]["mode"] == "echo"
