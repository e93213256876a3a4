"""The load generator, on qemu-storage-daemon: it drives, verifies, counts, and notices what is wrong."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import peerlib
import pytest
import trio
from click.testing import CliRunner

from devices.blk.bench import command
from devices.blk.load import Workload, measure, measure_all
from vhost.bench import cell_of, load
from vhost.cli.bench import command as bench
from vhost.errors import ConnectionClosed, VhostError

FAST: dict[str, Any] = {"runtime": 0.15, "warmup": 0.05}


@pytest.mark.parametrize(
    "workload",
    [
        Workload(depth=1, **FAST),
        Workload(depth=32, poll=False, **FAST),
        Workload(depth=32, event_idx=False, indirect=False, **FAST),
        Workload(depth=16, rw="randrw", queues=2, threads=2, poll=False, **FAST),
        Workload(depth=64, rw="read", block_bytes=65536, **FAST),
        Workload(depth=300, rw="randwrite", poll=False, **FAST),
    ],
    ids=lambda work: f"{work.rw}-{work.depth}-{'poll' if work.poll else 'sleep'}-{work.queues}q",
)
async def test_drives(workload: Workload) -> None:
    with peerlib.storage_daemon(null=True) as backend:
        result = await measure(backend.path, workload)
    assert result.errors == 0, result.first_error
    assert result.requests > 50
    assert result.latency.samples > 50
    latency = result.latency
    assert 0 < latency.p50_us <= latency.p90_us <= latency.p99_us <= latency.p999_us <= latency.max_us
    assert sum(count for _, count in result.histogram) == latency.samples
    assert result.frontend_cpu_us > 0
    assert result.backend_cpu_us is not None
    assert result.backend_cpu_us > 0
    assert result.kicks <= 1.01
    assert result.calls <= 1.01
    assert workload.poll or result.frontend_switches > 0


@pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
@pytest.mark.parametrize("poll", [False, True], ids=["sleep", "poll"])
async def test_drives_ours(packed: bool, poll: bool) -> None:
    """Every read is compared, with more in flight than fit into the ring without indirect descriptors."""
    for indirect in (False, True):
        workload = Workload(
            rw="randrw", depth=64, queues=2, threads=2, packed=packed, poll=poll, indirect=indirect, verify=True,
            size=4 << 20, **FAST,
        )  # fmt: skip
        with peerlib.vhost_blk() as backend:
            result = await measure(backend.path, workload)
        assert result.errors == 0, result.first_error
        assert result.requests > 100
        assert bool(result.features >> 34 & 1) is packed


async def test_rate() -> None:
    """Open loop: the asked rate, and no more."""
    with peerlib.storage_daemon(null=True) as backend:
        result = await measure(backend.path, Workload(depth=8, poll=False, rate=2000, runtime=0.5, warmup=0.05))
    assert 1700 < result.iops < 2100


@pytest.mark.parametrize("poll", [True, False])
async def test_verifies(poll: bool) -> None:
    """Reads are compared with what was written; a disk that changes behind our back is noticed."""
    workload = Workload(rw="randrw", depth=8, poll=poll, verify=True, size=1 << 20, queues=2, **FAST)
    with peerlib.storage_daemon() as backend:
        assert (await measure(backend.path, workload)).errors == 0
    with peerlib.storage_daemon(null=True) as backend:
        result = await measure(backend.path, workload)
        assert result.errors > 0
        assert "does not hold what was written" in result.first_error


@pytest.mark.parametrize(("regions", "packed"), [(2, False), (40, True), (509, False)])
async def test_data_in_many_regions(regions: int, packed: bool) -> None:
    """Each block lies in a memory region of its own, as far as there are as many; all of them are compared."""
    workload = Workload(
        rw="randrw", depth=64, queues=2, verify=True, regions=regions, packed=packed, size=4 << 20, **FAST
    )  # fmt: skip
    with peerlib.vhost_blk() as backend:
        result = await measure(backend.path, workload)
    assert result.errors == 0, result.first_error
    assert result.requests > 100


async def test_too_many_regions() -> None:
    with peerlib.vhost_blk() as backend, pytest.raises(VhostError, match="takes 509 memory regions, not 510"):
        await measure(backend.path, Workload(regions=510))


async def test_several_disks() -> None:
    """One thread, the queues of all; the CPU time of their process is known, of two processes it is not."""
    workload = Workload(rw="randrw", depth=16, queues=2, size=1 << 20, **FAST)
    with peerlib.vhost_blk() as one, peerlib.vhost_blk() as other:
        result = await measure_all([one.path, other.path], workload)
        assert result.errors == 0, result.first_error
        assert result.backend_cpu_us is None
        with pytest.raises(ValueError, match="takes one disk"):
            await measure_all([one.path, other.path], Workload(verify=True))
    with peerlib.vhost_blk() as one:
        result = await measure_all([one.path], workload)
        assert result.backend_cpu_us is not None
        with pytest.raises(ValueError, match="66 queues for 1 threads"):
            await measure_all([one.path] * 33, workload)


async def test_words_for_mistakes() -> None:
    for workload, words in (
        (Workload(rw="sideways"), "is none of"),
        (Workload(block_bytes=1000), "no multiple of 512"),
        (Workload(depth=0), "is not 1 to 1024"),
        (Workload(threads=2), "every thread needs a queue"),
        (Workload(regions=0), "at least 1"),
        (Workload(regions=2, hugepages=True), "no huge pages with several"),
        (Workload(cpus=(4711,)), "may not run on processor 4711"),
    ):
        with pytest.raises(ValueError, match=words):
            workload.check()
    with peerlib.storage_daemon(queues=1) as backend:
        with pytest.raises(VhostError, match="has 1 queues, 2 were asked for"):
            await measure(backend.path, Workload(queues=2))
        with pytest.raises(VhostError, match="does not offer packed rings"):
            await measure(backend.path, Workload(packed=True))


async def test_cancelled() -> None:
    """A long run ends soon after it is cancelled, and lets go of everything."""
    with peerlib.storage_daemon(null=True) as backend:
        started = trio.current_time()
        with trio.move_on_after(0.5):
            await measure(backend.path, Workload(runtime=60))
        assert trio.current_time() - started < 5


async def test_dead_backend_is_named() -> None:
    with peerlib.storage_daemon(null=True) as backend:

        async def kill() -> None:
            await trio.sleep(0.3)
            backend.process.kill()
            backend.process.wait()

        async def run() -> None:
            with pytest.raises(ConnectionClosed, match="the back-end closed the connection"):
                await measure(backend.path, Workload(runtime=60, warmup=0))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(kill)
            nursery.start_soon(run)


def test_command(tmp_path: Path) -> None:
    out = tmp_path / "result.json"
    with peerlib.storage_daemon(null=True) as backend:
        options = ["--socket-path", str(backend.path), "--runtime", "0.1", "--warmup", "0"]
        ran = CliRunner().invoke(command, [*options, "--iodepth", "4", "--bs", "4k", "--json", str(out)])
        assert ran.exit_code == 0, ran.output
        assert "requests/s" in ran.output
        assert "back-end CPU per request" in ran.output
        refused = CliRunner().invoke(command, [*options, "--rw", "randwrite"])
        assert refused.exit_code == 2
        assert "overwrites the disk" in refused.output
    kept = json.loads(out.read_text())
    assert kept["result"]["workload"]["depth"] == 4
    assert kept["machine"]["cpus"] >= 1


#: what a kept result must have, and of which type: readers of old files rely on it
SCHEMA = {
    "format": int,
    "device": str,
    "backend": str,
    "machine": {"cpu": str, "cpus": int, "kernel": str, "commit": str, "time": str, "versions": {"vhostkit": str}},
    "result": {
        "workload": {"rw": str, "block_bytes": int, "depth": int, "queues": int, "packed": bool, "rate": int},
        "seconds": float,
        "requests": int,
        "iops": float,
        "latency": {"p50_us": float, "p99_us": float, "p999_us": float, "max_us": float, "samples": int},
        "frontend_cpu_us": float,
        "backend_cpu_us": float,
        "kicks": float,
        "calls": float,
        "batch_mean": float,
        "backend_switches": float,
        "errors": int,
        "histogram": list,
    },
}


def _check(schema: Mapping[str, Any], found: Mapping[str, Any], where: str = "") -> None:
    for key, kind in schema.items():
        assert key in found, f"{where}{key} is missing"
        if isinstance(kind, dict):
            _check(kind, found[key], f"{where}{key}.")
        else:
            assert type(found[key]) is kind, f"{where}{key} is {found[key]!r}"


@pytest.mark.parametrize("layout", ["--split", "--packed"])
def test_ours(tmp_path: Path, layout: str) -> None:
    """`vhost bench blk` on our null disk as users run it, and what it leaves behind."""
    out, table = tmp_path / "result.json", tmp_path / "results.csv"
    with peerlib.vhost_blk(store="null:64M", queues=1) as backend:
        options = ["--socket-path", str(backend.path), "--runtime", "0.5", "--warmup", "0.1", layout, "--name", "ours"]
        for extra in (["--json", str(out), "--csv", str(table)], ["--csv", str(table), "--sleep"]):
            ran = CliRunner().invoke(bench, ["blk", *options, *extra])
            assert ran.exit_code == 0, ran.output
    kept = json.loads(out.read_text())
    _check(SCHEMA, kept)
    assert kept["result"]["workload"]["packed"] is (layout == "--packed")
    assert kept["result"]["requests"] > 1000
    (run,) = load(out)
    polling, sleeping = load(table)
    assert cell_of(run) == cell_of(polling) != cell_of(sleeping)
    assert polling.values["iops"] == pytest.approx(run.values["iops"], rel=1e-4)


@pytest.mark.parametrize("layout", ["--split", "--packed"])
def test_ours_verified(layout: str) -> None:
    """What was written is what is read, on two queues of a disk in memory."""
    with peerlib.vhost_blk(store="memory:8M", queues=2) as backend:
        options = ["--socket-path", str(backend.path), "--runtime", "0.5", "--warmup", "0", layout, "--sleep"]
        more = ["--verify", "--write-ok", "--rw", "randrw", "--queues", "2", "--threads", "2"]
        ran = CliRunner().invoke(bench, ["blk", *options, *more])
    assert ran.exit_code == 0, ran.output
