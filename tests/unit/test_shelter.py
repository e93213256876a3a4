"""Nurseries that outlast a cancellation end all the same, whenever it comes."""

from __future__ import annotations

import trio
import trio.testing

from vhost._shelter import sheltered_nursery


async def test_cancelled_before_it_began() -> None:
    with trio.fail_after(60), trio.CancelScope() as scope:
        scope.cancel()
        async with sheltered_nursery():
            pass
    assert scope.cancelled_caught or scope.cancel_called


async def test_cancelled_at_every_step() -> None:
    """The cancellation comes 0, 1, 2 … turns of the event loop after the start."""
    for turns in range(12):
        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:

                async def cancel(turns: int = turns, scope: trio.CancelScope = nursery.cancel_scope) -> None:
                    for _ in range(turns):
                        await trio.lowlevel.cancel_shielded_checkpoint()
                    scope.cancel()

                nursery.start_soon(cancel)
                async with sheltered_nursery() as inner:
                    inner.start_soon(trio.sleep_forever)
                    await trio.sleep_forever()


async def test_tasks_outlast_the_block() -> None:
    done = trio.Event()
    seen = []

    async def worker() -> None:
        await done.wait()
        seen.append("worker")

    with trio.fail_after(60), trio.CancelScope() as scope:
        async with sheltered_nursery() as inner:
            inner.start_soon(worker)
            scope.cancel()
            try:
                await trio.sleep_forever()
            finally:
                with trio.CancelScope(shield=True):
                    done.set()
                    await trio.testing.wait_all_tasks_blocked()
    assert seen == ["worker"]
