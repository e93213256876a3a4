"""Worker: the thread comes, parks and goes with trio. What sources do is tested in tests/c and tests/devices."""

from __future__ import annotations

import threading

import pytest
import trio

import ring


def threads() -> int:
    """C loops alive: trio keeps idle threads for a while, so their names are counted, not their number."""
    return sum("ring_worker_run" in thread.name for thread in threading.enumerate())


@pytest.fixture
def worker() -> ring.Worker:
    return ring.Worker(poll_us=0, uring_entries=0)


async def test_stop_ends_run(worker: ring.Worker) -> None:
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            await nursery.start(worker.run)
            assert worker.running
            await trio.sleep(0.01)
            worker.stop()
        assert not worker.running
    worker.close()


async def test_cancellation_ends_run_and_it_runs_again(worker: ring.Worker) -> None:
    for pause in (0, 0, 0.01):
        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                await nursery.start(worker.run)
                assert threads() <= 1
                await trio.sleep(pause)
                nursery.cancel_scope.cancel()
        assert not worker.running
        assert threads() == 0
    with trio.move_on_after(0.05) as scope:
        await worker.run()
    assert scope.cancelled_caught
    assert threads() == 0
    worker.close()


async def test_cancelled_before_it_began(worker: ring.Worker) -> None:
    with trio.CancelScope() as scope:
        scope.cancel()
        await worker.run()
    assert scope.cancelled_caught
    # no stop is left over: the next run goes on until told
    with trio.move_on_after(0.05) as scope:
        await worker.run()
    assert scope.cancelled_caught
    worker.stop()  # does not run: nothing
    with trio.move_on_after(0.05) as scope:
        await worker.run()
    assert scope.cancelled_caught
    worker.close()


async def test_runs_once(worker: ring.Worker) -> None:
    async with trio.open_nursery() as nursery:
        await nursery.start(worker.run)
        with pytest.raises(RuntimeError, match="runs already"):
            await worker.run()
        with pytest.raises(RuntimeError, match="stopped"):
            worker.close()
        worker.stop()
    worker.close()
    worker.close()
    with pytest.raises(RuntimeError, match="closed"):
        await worker.run()


async def test_parks_nest_and_keep_it_from_starting(worker: ring.Worker) -> None:
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            with worker.parked():
                await nursery.start(worker.run)
                await trio.sleep(0.02)
                loops = worker.stats.loops
                with worker.parked():
                    pass
                async with worker.aparked():
                    pass
                await trio.sleep(0.02)
                assert worker.stats.loops == loops
            await trio.sleep(0.02)
            async with worker.aparked():
                assert worker.stats.parks >= 1
            worker.stop()
    worker.close()


async def test_a_stop_while_parked(worker: ring.Worker) -> None:
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            await nursery.start(worker.run)
            async with worker.aparked():
                worker.stop()
                await trio.sleep(0.01)
    worker.close()


async def test_idle_costs_nothing(worker: ring.Worker) -> None:
    async with trio.open_nursery() as nursery:
        await nursery.start(worker.run)
        await trio.sleep(0.05)
        before = worker.stats
        await trio.sleep(0.3)
        after = worker.stats
        worker.stop()
    assert after.loops - before.loops <= 3
    assert after.sleeps - before.sleeps <= 3
    worker.close()


async def test_options() -> None:
    worker = ring.Worker(cpu=0, poll_us=-1, uring_entries=8, max_poll_us=10)
    assert worker.has_uring in (True, False)
    assert worker.sources == 0
    worker.close()
    assert not ring.Worker(uring_entries=0).has_uring
