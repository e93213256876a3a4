"""Calls held back: a driver with many requests under way is told less often, and never not at all."""

from __future__ import annotations

import os
import select
import time
from pathlib import Path

import pytest
import trio
from blkrig import INDIRECT, VERSION_1, Queue, rig
from guestlib.backends import vhost_program
from guestlib.process import listening, started, until

from devices.blk import Blk, MemoryStore

EVENT_IDX = 1 << 29
SIZE = 1 << 20
RING = INDIRECT | VERSION_1 | EVENT_IDX


def called(queue: Queue, seconds: float) -> bool:
    """Wait for a call and take it."""
    readable, _, _ = select.select([queue.call], [], [], seconds)
    if readable:
        os.eventfd_read(queue.call)
    return bool(readable)


def ask(queue: Queue) -> None:
    """A request, until it is served and published."""
    head, data, status = queue.put(bytes(16)), queue.put(bytes(512)), queue.put(b"\xee")
    before = queue.vq.stats.pushed
    queue.send([head], [data, status], True)
    queue.publish()
    while queue.vq.stats.pushed == before:
        time.sleep(0)


def take(queue: Queue) -> int:
    """As an interrupt handler: all that is there, then calls are wanted again. How many."""
    count = 0
    while True:
        found = list(queue.driver.poll())
        count += len(found)
        if not found and not queue.driver.calls_on():
            return count


def drive(queue: Queue, requests: int, depth: int) -> int:
    """As a guest with one processor: `depth` under way, a call is seen between any two; not so at first. The calls."""
    for _ in range(depth):
        ask(queue)
    assert called(queue, 10)
    assert take(queue) == depth
    sent = done = calls = 0
    while done < requests:
        if sent < requests and sent - done < depth:
            ask(queue)
            sent += 1
            due = called(queue, 0)
        else:
            due = called(queue, 10)
            assert due, f"{sent} requests, {done} were told, and no call comes"
        if due:
            calls += 1
            done += take(queue)
    return calls


async def driven(queue: Queue, requests: int, depth: int) -> int:
    return await trio.to_thread.run_sync(drive, queue, requests, depth)


async def test_deep_queues_are_told_less_often() -> None:
    with MemoryStore(SIZE) as store:
        async with rig(Blk(store), ring_features=RING, coalesce_us=100_000) as r:
            queue = r.queues[0]
            # 50, one for eight; on a machine that stands still meanwhile, not at once
            assert any([await driven(queue, 400, 8) <= 100 for _ in range(10)])
            assert queue.vq.stats.held > 300


async def test_nothing_is_held_unless_asked_for() -> None:
    with MemoryStore(SIZE) as store:
        async with rig(Blk(store), ring_features=RING) as r:
            assert await driven(r.queues[0], 500, 8) == 500
            assert r.queues[0].vq.stats.held == 0
    with MemoryStore(SIZE) as store:
        async with rig(Blk(store), ring_features=RING, poll_us=0, coalesce_us=1000) as r:
            assert await driven(r.queues[0], 500, 8) == 500
            assert r.queues[0].vq.stats.held == 0


@pytest.mark.parametrize("poll_us", [-1, 20, 2147483647], ids=["adaptive", "20us", "always"])
async def test_a_call_is_due_when_the_time_is_up(poll_us: int) -> None:
    """Eight at a time were usual, then one comes alone: its call is late, not lost, and the next one's is not late."""
    with MemoryStore(SIZE) as store:
        async with rig(Blk(store), ring_features=RING, poll_us=poll_us, coalesce_us=20_000) as r:
            queue = r.queues[0]
            await driven(queue, 200, 8)
            for _ in range(5):
                await trio.to_thread.run_sync(ask, queue)
                assert await trio.to_thread.run_sync(called, queue, 10)
                take(queue)


async def test_a_call_is_due_when_the_worker_parks() -> None:
    with MemoryStore(SIZE) as store:
        async with rig(Blk(store), ring_features=RING, coalesce_us=100_000) as r:
            queue = r.queues[0]
            await driven(queue, 200, 8)
            for _ in range(20):
                await trio.to_thread.run_sync(ask, queue)
                with r.worker.parked():
                    assert called(queue, 0)
                take(queue)


@pytest.mark.long
async def test_conformance(tmp_path: Path) -> None:
    """Our suite for back-ends, whose drivers wait for calls."""
    socket = tmp_path / "s"
    command = [vhost_program(), "blk", "--socket-path", socket, "--store", "memory:64M", "--coalesce-us", "2000"]
    async with started("vhost blk", command, tmp_path / "log") as proc:
        await until(lambda: listening(socket), proc, "listening")
        check = [str(vhost_program()), "check", "blk", "--socket-path", str(socket), "--write-ok", "--failed"]
        done = await trio.run_process(check, capture_stdout=True, check=False)
        assert done.returncode == 0, done.stdout.decode()
        assert await proc.terminate() == 0
