"""Which worker thread moves which queue.

Workers are shared by all devices and guests of a process. A policy chooses; the default spreads queues evenly. A worker
is made when its first queue comes and stays, so that an idle process has no threads and a busy one no churn.
"""

import logging
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import trio

from ring import Worker

if TYPE_CHECKING:
    from vhost.device import Device

__all__ = ["Placement", "Policy", "WorkerOptions", "WorkerPool", "by_queue", "least_loaded"]

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class WorkerOptions:
    """How worker threads run.

    Attributes:
        count: most threads, at least 1.
        cpus: CPUs to pin them to in turn; empty: the scheduler decides.
        poll_us: microseconds a worker polls before it sleeps; -1 adapts to the load, 0 never polls.
        coalesce_us: most microseconds for which notifications are held back; see `ring.Worker`.
        uring_entries: size of each worker's io_uring.
    """

    count: int = 1
    cpus: Sequence[int] = ()
    poll_us: int = -1
    coalesce_us: int = 0
    uring_entries: int = 256


@dataclass(frozen=True, slots=True)
class Placement:
    """A queue that wants a worker.

    Attributes:
        device: whose queue.
        index: of the queue.
        load: queues each worker has now.
    """

    device: "Device"
    index: int
    load: Sequence[int] = field(default=())


Policy = Callable[[Placement], int]
"""Returns the number of a worker, 0 <= number < len(load)."""


def least_loaded(placement: Placement) -> int:
    """The worker with the fewest queues, the lowest number among equals."""
    return min(range(len(placement.load)), key=placement.load.__getitem__)


def by_queue(placement: Placement) -> int:
    """Queue i on worker i modulo their number: the same for every device, hence predictable."""
    return placement.index % len(placement.load)


class WorkerPool:
    """Worker threads, each running in a task of one nursery.

    Resource handling: a worker's thread ends when the nursery is cancelled; its queues must be gone by then.
    """

    def __init__(
        self, nursery: trio.Nursery, options: WorkerOptions | None = None, policy: Policy = least_loaded
    ) -> None:
        """Args: nursery: where workers run; policy: which worker gets a queue."""
        self._nursery = nursery
        self._options = options or WorkerOptions()
        if self._options.count < 1:
            raise ValueError("at least one worker is needed")
        self._policy = policy
        self._workers: list[Worker | None] = [None] * self._options.count
        self._load = [0] * self._options.count
        self._alone: dict[Worker, int] = {}
        self._keys: dict[Hashable, tuple[Worker, int]] = {}
        self._may_start = trio.Event()
        self._may_start.set()

    def hold(self) -> None:
        """No thread is started until `go`: whoever takes a worker waits."""
        self._may_start = trio.Event()

    def go(self) -> None:
        """Threads may start."""
        self._may_start.set()

    @property
    def workers(self) -> list[Worker]:
        """Workers that run."""
        return [worker for worker in self._workers if worker is not None] + list(self._alone)

    async def take(self, device: "Device", index: int, *, alone: bool = False) -> Worker:
        """A running worker for one more queue; give it back by `release`.

        A queue whose key (`Device.worker_key`) has a worker already gets that one.

        Args:
            alone: a worker of its own, beyond the pool's: this queue may be held up for long.

        Raises: OSError: its thread or io_uring could not be set up.
        """
        await self._may_start.wait()
        key = device.worker_key(index)
        if key is not None and key in self._keys:
            return self._join(key)
        if alone:
            worker = self._make(index)
            await self._nursery.start(worker.run)
            self._alone[worker] = 1
        else:
            worker = await self._take_shared(device, index)
        if key is None:
            return worker
        if key in self._keys:  # another queue was faster, while a thread was being started
            self._drop(worker)
            return self._join(key)
        self._keys[key] = worker, 1
        return worker

    def _join(self, key: Hashable) -> Worker:
        worker, count = self._keys[key]
        self._keys[key] = worker, count + 1
        if worker in self._alone:
            self._alone[worker] += 1
        else:
            self._load[self._workers.index(worker)] += 1
        return worker

    async def _take_shared(self, device: "Device", index: int) -> Worker:
        number = self._policy(Placement(device, index, tuple(self._load)))
        if not 0 <= number < len(self._load):
            raise ValueError(f"the placement policy chose worker {number} of {len(self._load)}")
        self._load[number] += 1
        worker = self._workers[number]
        if worker is None:
            worker = self._workers[number] = self._make(number)
            try:
                await self._nursery.start(worker.run)
            except BaseException:
                self._workers[number] = None
                self._load[number] -= 1
                raise
        return worker

    def _make(self, number: int) -> Worker:
        options = self._options
        cpu = options.cpus[number % len(options.cpus)] if options.cpus else None
        return Worker(
            poll_us=options.poll_us, cpu=cpu, uring_entries=options.uring_entries, coalesce_us=options.coalesce_us
        )

    def close(self) -> None:
        """Free the workers; their nursery has ended. One that a hung store still owes something stays."""
        for worker in self.workers:
            if not worker.running and not worker.sources:
                worker.close()

    def release(self, worker: Worker, device: "Device", index: int) -> None:
        """Queue `index` of `device` has been removed from `worker`."""
        key = device.worker_key(index)
        if key is not None and key in self._keys:
            placed, count = self._keys[key]
            if count > 1:
                self._keys[key] = placed, count - 1
            else:
                del self._keys[key]
        self._drop(worker)

    def _drop(self, worker: Worker) -> None:
        if worker not in self._alone:
            self._load[self._workers.index(worker)] -= 1
            return
        self._alone[worker] -= 1
        if not self._alone[worker]:
            del self._alone[worker]
            worker.stop()
