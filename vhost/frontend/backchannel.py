"""The back-end's channel, seen from the front-end: it asks, we answer."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import trio

from vhost import wire
from vhost.channel import Channel
from vhost.constants import BackendRequest, IotlbType
from vhost.errors import VhostError
from vhost.fds import Fds, OwnedFd
from vhost.messages import HostNotifier, Iotlb, Message, SharedObject, ShmemMap, VringState


@dataclass(frozen=True, slots=True)
class Mapping:
    """A piece of I/O address space: `size` bytes at `iova` lie at front-end address `uaddr`; perm 1 read, 2 write."""

    iova: int
    size: int
    uaddr: int
    perm: int = 3


class BackChannel:
    """Serves the back-end's requests.

    Attributes:
        config_changes: CONFIG_CHANGE messages so far.
        misses: IOTLB misses so far.
        iommu: what misses are answered from.
        objects: shared objects the back-end announced, and those of others it may look up (uuid -> fd or None).
        shmem: mappings in shared memory regions, (shmid, shm_offset) -> message.
        shmem_fds: likewise what is mapped.
        notifiers: host notifiers by queue.
        error: why it ended, if it ended badly.
    """

    def __init__(
        self,
        sock: trio.socket.SocketType,
        update: Callable[[Iotlb], Awaitable[None]],
        call: Callable[[int], None],
    ) -> None:
        """Args: update: sends an IOTLB update on the front-end's socket; call: an in-band notification came."""
        self._channel = Channel(sock, wire.decode_backend_request)
        self._update = update
        self._call = call
        self._changed = trio.Event()
        self.config_changes = 0
        self.misses: list[Iotlb] = []
        self.iommu: list[Mapping] = []
        self.objects: dict[bytes, OwnedFd | None] = {}
        self.shmem: dict[tuple[int, int], ShmemMap] = {}
        self.shmem_fds: dict[tuple[int, int], OwnedFd] = {}
        self.notifiers: dict[int, HostNotifier] = {}
        self.error: VhostError | None = None

    async def config_change(self) -> None:
        """Wait for the next CONFIG_CHANGE."""
        await self._changed.wait()

    async def serve(self) -> None:
        """Answer until the channel is closed; never raises but for cancellation."""
        async with trio.open_nursery() as nursery:
            try:
                while (message := await self._channel.receive()) is not None:
                    with message.fds:
                        if message.request == BackendRequest.IOTLB_MSG:
                            # an update is a request of ours: the back-end may want this one answered before
                            nursery.start_soon(self._miss, message.payload)
                        await self._answer(message, self._handle(message))
            except VhostError as error:
                self.error = error
            except (OSError, trio.ClosedResourceError):
                pass

    async def _answer(self, message: Message, result: int) -> None:
        if message.request == BackendRequest.SHARED_OBJECT_LOOKUP:
            assert isinstance(message.payload, SharedObject)
            found = self.objects.get(message.payload.uuid)
            fds = Fds([found.dup()]) if found is not None else Fds()
            await self._channel.send(message.reply(0 if found is not None else 1, fds))
        elif message.need_reply:
            await self._channel.send(message.reply(result))

    def _handle(self, message: Message) -> int:
        match message.request, message.payload:
            case BackendRequest.CONFIG_CHANGE_MSG, _:
                self.config_changes += 1
                changed, self._changed = self._changed, trio.Event()
                changed.set()
            case BackendRequest.VRING_CALL, VringState(index=index):
                self._call(index)
            case BackendRequest.VRING_HOST_NOTIFIER_MSG, HostNotifier() as notifier:
                self.notifiers[notifier.index] = notifier
            case BackendRequest.SHARED_OBJECT_ADD, SharedObject(uuid=uuid):
                if uuid in self.objects:
                    return 1
                self.objects[uuid] = None
            case BackendRequest.SHARED_OBJECT_REMOVE, SharedObject(uuid=uuid):
                return 0 if self.objects.pop(uuid, self) is not self else 1
            case BackendRequest.SHMEM_MAP, ShmemMap() as new:
                if any(
                    new.shmid == old.shmid
                    and new.shm_offset < old.shm_offset + old.length
                    and old.shm_offset < new.shm_offset + new.length
                    for old in self.shmem.values()
                ):
                    return 1
                self.shmem[new.shmid, new.shm_offset] = new
                self.shmem_fds[new.shmid, new.shm_offset] = message.fds.pop()
            case BackendRequest.SHMEM_UNMAP, ShmemMap() as old:
                have = self.shmem.get((old.shmid, old.shm_offset))
                if have is None or have.length != old.length:
                    return 1
                del self.shmem[old.shmid, old.shm_offset]
                self.shmem_fds.pop((old.shmid, old.shm_offset)).close()
            case BackendRequest.IOTLB_MSG | BackendRequest.VRING_ERR | BackendRequest.SHARED_OBJECT_LOOKUP, _:
                pass
            case _:
                return 1
        return 0

    async def _miss(self, miss: object) -> None:
        if not isinstance(miss, Iotlb) or miss.type != IotlbType.MISS:
            return
        self.misses.append(miss)
        for have in self.iommu:
            if have.iova <= miss.iova < have.iova + have.size:
                update = Iotlb(have.iova, have.size, have.uaddr, have.perm, IotlbType.UPDATE)
                try:
                    await self._update(update)
                except VhostError as error:
                    self.error = error
                return

    def close(self) -> None:
        """Close the channel and descriptors of what it got; a second call does nothing."""
        self._channel.close()
        for fd in self.objects.values():
            if fd is not None:
                fd.close()
        self.objects.clear()
        for fd in self.shmem_fds.values():
            fd.close()
        self.shmem_fds.clear()
