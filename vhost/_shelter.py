"""Tasks that outlast the cancellation of those who started them, because they are needed to end in good order."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import trio

__all__ = ["bare_errors", "set_when_cancelled", "sheltered_nursery"]


@asynccontextmanager
async def sheltered_nursery() -> AsyncIterator[trio.Nursery]:
    """A nursery whose tasks are cancelled only when the `async with` block is left, not when it is cancelled.

    So a block that is cancelled can still drain what its tasks do. A task that fails cancels the block, as usual.
    """
    async with trio.open_nursery() as outer:
        inner: trio.Nursery | None = None

        async def shelter(*, task_status: trio.TaskStatus[None]) -> None:
            nonlocal inner
            # Behind a shield nobody could end what was cancelled before it began.
            await trio.lowlevel.checkpoint_if_cancelled()
            with trio.CancelScope(shield=True):
                async with trio.open_nursery() as nursery:
                    inner = nursery
                    task_status.started()
                    await trio.sleep_forever()

        try:
            await outer.start(shelter)  # may be cancelled with the shelter up
            assert inner is not None
            yield inner
        finally:
            if inner is not None:
                inner.cancel_scope.cancel()


async def set_when_cancelled(event: trio.Event) -> None:
    """Set `event` as soon as this is cancelled: clean-up in shielded scopes looks at it."""
    try:
        await trio.sleep_forever()
    finally:
        event.set()


@contextmanager
def bare_errors() -> Iterator[None]:
    """Let an exception that is alone in its group out of it: a caller who made no nursery expects none."""
    try:
        yield
    except BaseExceptionGroup as group:
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
            error = error.exceptions[0]
        if error is group:
            raise
        raise error from error.__cause__
