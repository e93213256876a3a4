"""The suite's arithmetic: ratios of neighbouring runs, targets met and missed, runs that were disturbed."""

from __future__ import annotations

from typing import Any

import pytest

from bench import fs_peers, fs_suite, gpu_suite, net_peers
from bench.bars import BARS, verdicts
from bench.peers import NULL_BYTES, STORAGE_DAEMON, Store, missing, ours, ours_many, ours_name
from bench.report import disturbed
from bench.rounds import Cell, spread
from devices.blk.load import Workload


def cell(section: str, workload: Workload, results: dict[str, list[dict[str, Any]]], **how: Any) -> Cell:
    class Named:
        def __init__(self, name: str) -> None:
            self.name = name

    return Cell(section, "a load", workload, [Named(name) for name in results], results=results, **how)  # type: ignore[misc]


def runs(*iops: float, **more: Any) -> list[dict[str, Any]]:
    return [{"iops": value, "latency": {"p50_us": 1e6 / value}, **more} for value in iops]


SPLIT, PACKED = ours_name(polling=True), ours_name(packed=True, polling=True)


def test_ratios_are_of_neighbours() -> None:
    found = cell("null", Workload(), {"a": runs(10, 40, 30), "b": runs(10, 20, 10)})
    assert found.ratios("a", "b") == [1, 2, 3]
    assert found.ratios("a", "b", "latency.p50_us") == pytest.approx([1, 1 / 2, 1 / 3])
    assert found.ratios("a", "none") == []
    assert found.values("a", "backend_cpu_us") == []
    assert spread(found.ratios("a", "b")) == "2.00 (1.00-3.00)"
    assert spread([]) == ""


def test_met_and_missed() -> None:
    results = {SPLIT: runs(80, 90, 100), PACKED: runs(40, 40, 40), STORAGE_DAEMON: runs(10, 10, 10)}
    split, packed = verdicts(cell("null", Workload(depth=1), results))
    assert (split.mine, str(split)) == (SPLIT, "met")
    assert (packed.mine, str(packed)) == (PACKED, "missed by 50%")
    assert packed.words == "at least 8 x qemu-storage-daemon"
    # the same figures at a depth of no target, and with a front-end that targets do not mention for it
    assert not list(verdicts(cell("null", Workload(depth=7), results)))
    assert not list(verdicts(cell("null", Workload(depth=1, poll=False), results)))


def test_a_peer_of_the_same_layout() -> None:
    results = {PACKED: runs(99), "SPDK vhost, null, split": runs(1000), "SPDK vhost, null, packed": runs(100)}
    (verdict,) = verdicts(cell("null", Workload(depth=32), results))
    assert str(verdict) == "missed by 1%"
    assert verdict.words == "at least 1 x SPDK vhost, null, packed"


def test_targets_that_are_upper_limits() -> None:
    mine = ours_name()
    results = {mine: runs(100, backend_cpu_percent=60.0), SPLIT: runs(100, backend_cpu_percent=100.0)}
    cpu, p50 = verdicts(cell("rate", Workload(rate=10_000), results))
    assert str(cpu) == "missed by 20%"
    assert str(p50) == "met"
    (idle,) = verdicts(cell("idle", Workload(), {mine: [{"backend_cpu_percent": 0.0}]}))
    assert str(idle) == "met"


def test_every_target_names_what_a_section_has() -> None:
    """A name that nothing has would be a target that is never looked at."""
    null = Store("null", NULL_BYTES)
    both = (False, True)
    names = {ours(null, packed=packed, polling=polling).name for packed in both for polling in both}
    for part in (net_peers, fs_peers):
        names |= {part.ours_name(packed=packed, polling=polling) for packed in both for polling in both}
    names.add(fs_peers.ours_name(more=fs_suite.LOCAL_LOCKS))
    names |= {gpu_suite.ours_name(packed=packed) for packed in both}
    for bar in BARS:
        if bar.section not in ("cost", "fs-scale", "python"):
            assert set(bar.mine) <= names, bar


def test_one_of_two_targets_will_do() -> None:
    """A multiple of the peer, or near what the host does itself."""
    mine = fs_peers.ours_name()

    def told(mine_iops: float, native: float) -> list[str]:
        results = {mine: runs(mine_iops), fs_peers.RUST: runs(100), fs_peers.NATIVE: runs(native)}
        found = cell("fs-meta", Workload(), results)
        found.label = "lookup, 1"
        return [f"{verdict.words}: {verdict}" for verdict in verdicts(found)]

    assert told(250, 1000) == ["at least 2 x virtiofsd in Rust: met"]
    assert told(170, 180) == ["at least 0.85 x system calls, native: met"]
    assert told(150, 1000) == ["at least 2 x virtiofsd in Rust: missed by 25%"]


def test_disturbed_runs_are_counted() -> None:
    clean = cell("null", Workload(), {"a": runs(1, 2, share=100.0)})
    assert disturbed([clean]) == ""
    poor = cell("null", Workload(), {"a": runs(1, share=40.0)})
    assert disturbed([clean, poor]).startswith("1 of 3 runs had to share")
    assert "the worst had 40 %" in disturbed([poor])


def test_missing_peers_are_named() -> None:
    named = dict(missing([ours(Store("null", NULL_BYTES))]))
    assert "Debian package" in named[STORAGE_DAEMON]
    assert "SPDK_DIR" in named["SPDK vhost"]


def test_many_disks() -> None:
    peer = ours_many(Store("null", NULL_BYTES), 3, 2, "3 disks")
    assert peer.sockets == ("1", "2")
    assert peer.program.sockets == ("0", "1", "2")
    assert peer.program.config.count("[[device]]") == 3
