"""One front-end connected to one device: messages in, session, instance, answers out.

A front-end that breaks the protocol, or a device that fails, ends this connection and no other.
"""

from __future__ import annotations

import math
import select
import socket
import struct
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import trio

import ring
from vhost._session_state import DeviceDescription, Options
from vhost.actions import Action
from vhost.backend_channel import BackendChannel
from vhost.channel import Channel
from vhost.constants import BackendRequest, DeviceStatus, ProtocolFeature, ShmemFlag
from vhost.device import Device, Link
from vhost.errors import DeviceError, ProtocolError
from vhost.fds import Fds, OwnedFd
from vhost.instance import Instance, open_instance
from vhost.messages import HostNotifier, Message, Payload, SharedObject, ShmemMap
from vhost.session import Session

if TYPE_CHECKING:
    from vhost._log import Fields, RateLimit
    from vhost.placement import WorkerPool

__all__ = ["Connection", "describe", "peer_pid"]

_FAULTS: Final = (DeviceError, ProtocolError, ring.RingError, OSError, ValueError)
"""What an action may fail with; everything else is a bug."""

HANGUP_SECONDS: Final = 0.25
"""How often a front-end in postcopy is looked after while a page is waited for."""


def describe(device: Device) -> DeviceDescription:
    """What a session has to know about `device`.

    Raises: ValueError: the device asks for what cannot be.
    """
    return DeviceDescription(
        device_id=device.device_id,
        num_queues=device.num_queues,
        features=device.features,
        protocol_features=device.protocol_features,
        config_size=len(device.config()),
        max_queue_size=device.max_queue_size,
        shmem=device.shmem_sizes,
    )


def peer_pid(sock: trio.socket.SocketType) -> int | None:
    """Process id of who is connected to a Unix socket; None where the kernel does not say."""
    try:
        data = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    except OSError:
        return None
    pid, _uid, _gid = struct.unpack("3i", data)
    return pid or None


class Connection(Link):
    """Serves one connected socket; also its device's way back to the front-end."""

    def __init__(
        self,
        device: Device,
        sock: trio.socket.SocketType,
        pool: WorkerPool,
        *,
        options: Options,
        log: Fields,
        limit: RateLimit,
        stopping: trio.Event,
        grace: float,
    ) -> None:
        """Args: sock: connected, owned from here on; the rest as `open_instance`."""
        self.device = device
        self.pid = peer_pid(sock)
        log = log.sub(pid=self.pid)
        self.session = Session(describe(device), options, log)
        self.instance: Instance | None = None
        self._channel = Channel(sock)
        self._pool = pool
        self._log = log
        self._limit = limit
        self._stopping = stopping
        self._grace = grace
        self._backend: BackendChannel | None = None
        self._config_due = False
        self._starved = False

    async def run(self) -> None:
        """Serve until the front-end goes or breaks the protocol; requests in flight have ended then.

        Cancellation: requests in flight are waited for, see `open_instance`.
        """
        self._log.info("front-end connected")
        try:
            await self._run()
        except* Exception:
            # A task of this guest's failed. The others' go on.
            self._log.exception("connection closed by an error in this program")
        self._log.info("front-end disconnected")

    async def _run(self) -> None:
        with self._channel:
            async with open_instance(
                self.device,
                self._pool,
                log=self._log,
                limit=self._limit,
                stopping=self._stopping,
                grace=self._grace,
            ) as instance:
                self.instance = instance
                instance.post = self._post
                instance.take_channel = self._take_channel
                instance.hang_up = self._hang_up
                instance.needs_reset = self._needs_reset
                self.device.attach(self)
                try:
                    await self._serve(instance)
                    # It is the front-end that goes: hang up before the rings are stopped. When it is us (cancelled),
                    # it hears of all it is owed first.
                    self._channel.close()
                    self._close_backend()
                finally:
                    self.device.detach(self)
        self.instance = None

    async def _serve(self, instance: Instance) -> None:
        try:
            while (message := await self._channel.receive()) is not None:
                reply = await self._answer(instance, message)
                if reply is not None:
                    await self._channel.send(reply)
                if self._config_due:
                    self._send_config_change()
        except ProtocolError as error:
            self._log.warning("connection closed, the front-end broke the protocol: %s", error)
        except OSError as error:
            self._log.info("connection lost: %s", error.strerror or error)
        except Exception:
            self._log.exception("connection closed by an error in this program")

    async def _answer(self, instance: Instance, message: Message) -> Message | None:
        self._log.debug("%s", message.name, extra={"payload": str(message.payload), "fds": len(message.fds)})
        with self.session.handle(message) as step:
            result: object = None
            error: Exception | None = None
            try:
                for action in step.actions:
                    if instance.postcopy:
                        result = await self._perform_in_postcopy(instance, action)
                    else:
                        result = await instance.perform(action)
            except _FAULTS as failure:
                # The session logs what it refuses, or closes the connection with this for its reason.
                error = DeviceError(f"{failure}{_advice(failure)}")
            return step.finish(result, error)

    async def _perform_in_postcopy(self, instance: Instance, action: Action) -> object:
        """As `Instance.perform`, which may wait for a page: if the front-end goes meanwhile, nobody brings it."""
        result: object = None
        failure: Exception | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch_hangup, instance)
            try:
                result = await instance.perform(action)
            except _FAULTS as error:
                failure = error
            nursery.cancel_scope.cancel()
        if failure is not None:
            raise failure
        return result

    async def _watch_hangup(self, instance: Instance) -> None:
        poll = select.poll()
        poll.register(self._channel.socket.fileno(), select.POLLRDHUP)
        while True:
            await trio.sleep(HANGUP_SECONDS)
            if poll.poll(0):
                instance.end_postcopy()
                return

    def _needs_reset(self) -> None:
        """For a front-end that asks for the status byte [VIRTIO 1.3, 2.1.2]."""
        self.session.status |= DeviceStatus.DEVICE_NEEDS_RESET

    def _hang_up(self) -> None:
        """End the connection from within: the next look at the socket finds its end."""
        with suppress(OSError):
            self._channel.socket.shutdown(socket.SHUT_RDWR)

    # The back-end's channel

    async def _take_channel(self, fd: OwnedFd) -> None:
        assert self.instance is not None
        channel = BackendChannel(fd.move(), reply_ack=ProtocolFeature.REPLY_ACK in self.session.protocol_features)
        self._close_backend()
        self._backend = channel
        self.instance.nursery.start_soon(channel.run)

    def _close_backend(self) -> None:
        if self._backend is not None:
            self._backend.close()

    def _post(
        self,
        request: BackendRequest,
        payload: Payload,
        key: object,
        answered: Callable[[Message | None], None] | None,
    ) -> bool:
        if self._backend is not None:
            return self._backend.post(request, payload, key=key, answered=answered)
        if not self._starved:
            self._starved = True
            self._log.warning("%s cannot be sent: the front-end has given no back-end channel", request.name)
        return False

    async def _call(
        self, request: BackendRequest, payload: Payload, needs: ProtocolFeature, fd: int | None = None
    ) -> Message | None:
        missing = needs & ~self.session.protocol_features
        if missing or self._backend is None:
            what = f"{missing.name} was not negotiated" if missing else "the front-end has given no back-end channel"
            raise DeviceError(f"{request.name}: {what}")
        fds = None
        if fd is not None:
            with OwnedFd(fd) as borrowed:
                fds = Fds([borrowed.dup()])
                borrowed.take()
        return await self._backend.call(request, payload, fds=fds)

    # Link: what the device may ask for

    def config_changed(self) -> None:
        """See Link. A suspended device says nothing [rst "Suspended device state"]: it is told when a ring starts."""
        self._config_due = True
        self._send_config_change()

    def _send_config_change(self) -> None:
        if not self.session.started or self._backend is None or self._backend.closed:
            return
        if ProtocolFeature.CONFIG in self.session.protocol_features:
            self._backend.post(BackendRequest.CONFIG_CHANGE_MSG, key="config")
        self._config_due = False

    @property
    def protocol_features(self) -> ProtocolFeature:
        """See Link."""
        return self.session.protocol_features

    @property
    def ending(self) -> bool:
        """See Link."""
        return self._stopping.is_set() or trio.current_effective_deadline() == -math.inf

    async def pause(self) -> None:
        """See Link."""
        if self.instance is not None:
            await self.instance.apply_hold()

    async def resume(self) -> None:
        """See Link."""
        if self.instance is not None:
            await self.instance.apply_hold()

    async def drain(self) -> None:
        """See Link."""
        if self.instance is not None:
            await self.instance.drain()

    async def shared_object_add(self, uuid: bytes) -> None:
        """See Link."""
        await self._call(BackendRequest.SHARED_OBJECT_ADD, SharedObject(uuid), ProtocolFeature.SHARED_OBJECT)

    async def shared_object_remove(self, uuid: bytes) -> None:
        """See Link."""
        await self._call(BackendRequest.SHARED_OBJECT_REMOVE, SharedObject(uuid), ProtocolFeature.SHARED_OBJECT)

    async def shared_object_lookup(self, uuid: bytes) -> int | None:
        """See Link."""
        needs = ProtocolFeature.SHARED_OBJECT | ProtocolFeature.BACKEND_SEND_FD
        answer = await self._call(BackendRequest.SHARED_OBJECT_LOOKUP, SharedObject(uuid), needs)
        if answer is None:
            return None
        with answer.fds as fds:
            return fds.pop().take() if answer.payload == 0 and len(fds) else None

    async def shmem_map(
        self, shmid: int, fd: int, *, fd_offset: int, shm_offset: int, length: int, writable: bool
    ) -> None:
        """See Link."""
        flags = ShmemFlag.READ_WRITE if writable else ShmemFlag.READ_ONLY
        payload = ShmemMap(shmid, fd_offset, shm_offset, length, flags)
        needs = ProtocolFeature.SHMEM | ProtocolFeature.BACKEND_SEND_FD
        await self._call(BackendRequest.SHMEM_MAP, payload, needs, fd)

    async def shmem_unmap(self, shmid: int, *, shm_offset: int, length: int) -> None:
        """See Link."""
        payload = ShmemMap(shmid, 0, shm_offset, length, 0)
        await self._call(BackendRequest.SHMEM_UNMAP, payload, ProtocolFeature.SHMEM)

    async def host_notifier(self, queue: int, fd: int | None, *, size: int = 4096, offset: int = 0) -> None:
        """See Link."""
        payload = HostNotifier(queue, fd is not None, size, offset)
        needs = ProtocolFeature.HOST_NOTIFIER | ProtocolFeature.BACKEND_SEND_FD
        await self._call(BackendRequest.VRING_HOST_NOTIFIER_MSG, payload, needs, fd)


def _advice(failure: Exception) -> str:
    """What a user can do about the failures that mostly are a user's."""
    if isinstance(failure, ring.RingError):
        if failure.code == ring.ErrorCode.RING:
            return (
                "; if the VMM gave no memory there, guest memory is not shared: give QEMU "
                "-object memory-backend-memfd,share=on and -machine memory-backend=…, "
                "cloud-hypervisor --memory shared=on"
            )
        if failure.code == ring.ErrorCode.SHORT:
            return "; the front-end's memory file is smaller than it says"
    return ""
