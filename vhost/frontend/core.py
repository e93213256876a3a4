"""The front-end half of vhost-user: what a VMM does to a back-end, as an API.

    async with vhost.Frontend.connect("/run/disk.sock") as fe:
        await fe.start(queues=1, size=128)
        length, (data, status) = await fe.queues[0].request([header], [4096, 1])

`connect` negotiates protocol features, `start` virtio features, memory and queues; every step is there on its own too.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Self

import trio

from vhost.constants import (
    MAX_CONFIG_SIZE,
    VRING_ADDR_LOG,
    ProtocolFeature,
    StateDirection,
    VirtioFeature,
)
from vhost.constants import FrontendRequest as F
from vhost.errors import ConnectionClosed, ProtocolError, VhostError
from vhost.fds import OwnedFd
from vhost.frontend.backchannel import BackChannel
from vhost.frontend.link import Link, Refused, channel_pair
from vhost.frontend.log import DirtyLog
from vhost.frontend.memory import Memory, Region
from vhost.frontend.native import NativeRing
from vhost.frontend.personality import PLAIN, Personality, Step
from vhost.frontend.queue import Queue
from vhost.frontend.rings import DriverRing, make_ring
from vhost.messages import (
    Config,
    Inflight,
    Iotlb,
    MemTable,
    Message,
    Payload,
    StateTransfer,
    VringAddr,
    VringFd,
    VringState,
)

Target = str | os.PathLike[str] | socket.socket | int
"""A path to connect to, or a connected socket (or its descriptor), which is taken over."""

RING_FEATURES = (
    VirtioFeature.INDIRECT_DESC | VirtioFeature.EVENT_IDX | VirtioFeature.VERSION_1 | VirtioFeature.PROTOCOL_FEATURES
)
"""What `start` asks for beside the device's own bits, unless told otherwise; RING_PACKED only on request."""

DEVICE_FEATURES = (1 << 24) - 1 | ((1 << 64) - 1 & ~((1 << 50) - 1))
"""Bits that belong to the device type [VIRTIO 1.3, 2.2]."""


@dataclass(frozen=True, slots=True)
class InflightRegion:
    """Inflight region made by a back-end: kept over its restarts. Resource handling: owns `fd`."""

    message: Inflight
    fd: OwnedFd

    def close(self) -> None:
        """Close the descriptor."""
        self.fd.close()


class Frontend:
    """One connection to a back-end; made by `connect` and `accept`.

    Attributes:
        features_offered, protocol_offered: what the back-end offers.
        features, protocol: what is negotiated.
        num_queues: what it answers to GET_QUEUE_NUM, 1 without MQ.
        max_mem_slots: what it answers to GET_MAX_MEM_SLOTS, 0 without.
        memory: guest memory, owned unless it was given.
        queues: started or made queues by index.
    """

    def __init__(
        self, sock: trio.socket.SocketType, memory: Memory, personality: Personality = PLAIN, *, timeout: float = 10
    ) -> None:
        """Use `connect` or `accept` instead."""
        self.link = Link(sock, timeout)
        self.memory = memory
        self.personality = personality
        self.features_offered = 0
        self.protocol_offered = ProtocolFeature(0)
        self.features = 0
        self.protocol = ProtocolFeature(0)
        self.num_queues = 1
        self.max_mem_slots = 0
        self.queues: dict[int, Queue] = {}
        self.log: DirtyLog | None = None
        self.backchannel: BackChannel | None = None
        self._shared: list[Region] = []
        self._wanted = ~0
        self._nursery: trio.Nursery | None = None

    @property
    def backend_pid(self) -> int:
        """Process id of whoever made the socket's other end."""
        option = self.link.socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        return int.from_bytes(option[:4], sys.byteorder)

    # Connecting

    @classmethod
    @asynccontextmanager
    async def connect(
        cls,
        target: Target,
        *,
        personality: Personality = PLAIN,
        memory: Memory | None = None,
        memory_size: int = 64 << 20,
        protocol: int = ~0,
        handshake: bool = True,
        timeout: float = 10,
        socket_timeout: float = 2,
    ) -> AsyncIterator[Self]:
        """Connect to a back-end and, with `handshake`, negotiate protocol features.

        Args:
            target: path, or a connected socket or descriptor, which is owned from now on.
            personality: whose manners to have.
            memory: guest memory to use, which stays the caller's; else `memory_size` bytes are made.
            protocol: mask over the protocol features to acknowledge.
            timeout: seconds to wait for an answer, and, unless it says otherwise, for a request to come back.
            socket_timeout: seconds in which a socket may appear that is not there yet.

        Raises:
            ConnectionClosed: nobody listens there, or the back-end went away.
            ProtocolError: it broke the protocol.
        """
        own = None if memory is not None else Memory(memory_size)
        try:
            frontend = cls(await _open(target, socket_timeout), memory or own or Memory(), personality, timeout=timeout)
        except BaseException:
            if own is not None:
                own.close()
            raise
        failure: Exception | None = None
        try:
            async with trio.open_nursery() as nursery:
                frontend._nursery = nursery
                nursery.start_soon(frontend.link.read)
                nursery.start_soon(frontend._watch)
                try:
                    if handshake:
                        await frontend.handshake(protocol)
                    yield frontend
                except Exception as error:  # re-raised below, outside the nursery that would wrap it in a group
                    failure = error
                nursery.cancel_scope.cancel()
        finally:
            frontend._close()
            if own is not None:
                own.close()
        if failure is not None:
            raise failure

    @classmethod
    @asynccontextmanager
    async def accept(cls, path: str | os.PathLike[str], **options: object) -> AsyncIterator[Self]:
        """Listen at `path` for a back-end that connects (client mode), take one; options as `connect`."""
        with trio.socket.socket(trio.socket.AF_UNIX) as listener:
            await listener.bind(os.fspath(path))
            try:
                listener.listen(1)
                sock, _ = await listener.accept()
            finally:
                os.unlink(path)
        plain = socket.socket(fileno=os.dup(sock.fileno()))
        sock.close()
        async with cls.connect(plain, **options) as frontend:  # type: ignore[arg-type]
            yield frontend

    async def _watch(self) -> None:
        await self.link.gone.wait()
        for queue in self.queues.values():
            queue.fail(self.link.error or ConnectionClosed("the back-end went away"))

    def _close(self) -> None:
        self.link.close()
        for queue in self.queues.values():
            queue.close()
        if self.backchannel is not None:
            self.backchannel.close()
        if self.log is not None:
            self.log.close()

    def _spawn(self, function: Callable[[], object]) -> None:
        assert self._nursery is not None, "use Frontend.connect()"
        self._nursery.start_soon(function)  # type: ignore[arg-type]

    # Messages

    async def send(self, request: int, payload: Payload = None, *, fds: Sequence[int] = (), log: bool = False) -> None:
        """A request without answer of its own; NEED_REPLY as the personality has it. Raises: Refused."""
        wait = self.personality.wants_reply(request, log=log)
        if self.personality is PLAIN:
            wait = True
        await self.link.acked(request, payload, fds=fds, wait=wait)

    async def ask(self, request: int, payload: Payload = None) -> Message:
        """A request with an answer of its own. The caller owns the answer's descriptors."""
        return await self.link.ask(request, payload, need_reply=self.personality.need_reply == "all")

    async def ask_u64(self, request: int, payload: Payload = None) -> int:
        """A request answered by a number."""
        return await self.link.ask_u64(request, payload, need_reply=self.personality.need_reply == "all")

    def require(self, feature: ProtocolFeature) -> None:
        """Raises: VhostError: `feature` is not negotiated."""
        if feature not in self.protocol:
            raise VhostError(f"the back-end does not offer {feature.name}, or it was not asked for")

    # Handshake

    async def handshake(self, protocol: int = ~0) -> None:
        """Learn what the back-end offers and acknowledge protocol features, in the personality's order."""
        who = self.personality
        if who.owner_first:
            await self.send(F.SET_OWNER)
        self.features_offered = await self.ask_u64(F.GET_FEATURES)
        if self.features_offered & VirtioFeature.PROTOCOL_FEATURES:
            self.protocol_offered = ProtocolFeature(await self.ask_u64(F.GET_PROTOCOL_FEATURES))
            self.protocol = ProtocolFeature(self.protocol_offered & who.protocol & protocol)
            await self.send(F.SET_PROTOCOL_FEATURES, int(self.protocol))
            self.link.reply_ack = ProtocolFeature.REPLY_ACK in self.protocol
            if ProtocolFeature.MQ in self.protocol:
                self.num_queues = await self.ask_u64(F.GET_QUEUE_NUM)
            if ProtocolFeature.CONFIGURE_MEM_SLOTS in self.protocol and who.need_reply != "all":
                self.max_mem_slots = await self.ask_u64(F.GET_MAX_MEM_SLOTS)
            if not who.backend_fd_last:
                await self._give_backchannel()
        if not who.owner_first:
            await self.send(F.SET_OWNER)
            self.features_offered = await self.ask_u64(F.GET_FEATURES)

    async def _give_backchannel(self) -> None:
        if ProtocolFeature.BACKEND_REQ not in self.protocol:
            return
        ours, theirs = channel_pair()
        with theirs:
            await self.send(F.SET_BACKEND_REQ_FD, fds=[theirs.fileno()])
        if self.backchannel is not None:
            self.backchannel.close()
        self.backchannel = BackChannel(ours, self._iotlb_update, self._in_band_call)
        self._spawn(self.backchannel.serve)

    async def negotiate(self, features: int) -> None:
        """SET_FEATURES with those of `features` that are offered; bit 30 is added where it is."""
        bits = (features | VirtioFeature.PROTOCOL_FEATURES) & self.features_offered & ~self.personality.not_features
        await self.send(F.SET_FEATURES, bits, log=bool(bits & VirtioFeature.LOG_ALL))
        self.features = bits

    # Memory

    async def share_memory(self) -> None:
        """Give all of `memory` to the back-end: ADD_MEM_REG where negotiated, else SET_MEM_TABLE."""
        if ProtocolFeature.CONFIGURE_MEM_SLOTS in self.protocol and self.personality.need_reply != "all":
            for region in [have for have in self._shared if have not in self.memory.regions]:
                await self.unshare(region)
            for region in self.memory.regions:
                if region not in self._shared:
                    await self.share(region)
            return
        regions = self.memory.regions
        if len(regions) > self.personality.max_regions:
            raise ValueError(f"{self.personality.name} sends at most {self.personality.max_regions} memory regions")
        await self.send(F.SET_MEM_TABLE, MemTable(self.memory.messages()), fds=self.memory.filenos())
        self._shared = list(regions)

    async def share(self, region: Region) -> None:
        """Hot-plug one region (ADD_MEM_REG). Raises: Refused."""
        await self.send(F.ADD_MEM_REG, region.message(), fds=[region.fd])
        self._shared.append(region)

    async def unshare(self, region: Region) -> None:
        """Unplug one region (REM_MEM_REG); it stays in `memory`. Raises: Refused."""
        await self.send(F.REM_MEM_REG, region.message())
        self._shared.remove(region)

    # Queues

    async def start(
        self,
        *,
        queues: int = 1,
        size: int = 128,
        packed: bool = False,
        event_idx: bool = True,
        indirect: bool = True,
        features: int = DEVICE_FEATURES,
        native: bool = True,
        notify: bool = True,
        serve: bool = True,
        indirect_max: int = 0,
    ) -> None:
        """Negotiate features, share the memory, make and start `queues` queues of `size` entries.

        Args:
            packed, event_idx, indirect: ring features to ask for.
            features: device-specific bits to take if offered.
            native: rings in C; False: the plain Python ones, for crafting descriptors by hand.
            notify: give the back-end call eventfds.
            serve: wait on them; False for a caller who drives the rings himself, without `Queue.request`.
            indirect_max: descriptors of one indirect table of a C ring; 0: 16.

        Raises:
            VhostError: `packed` is not offered, or the back-end refused something.
        """
        wanted = features & DEVICE_FEATURES | RING_FEATURES
        if packed:
            if not self.features_offered & VirtioFeature.RING_PACKED:
                raise VhostError("the back-end does not offer packed rings")
            wanted |= VirtioFeature.RING_PACKED
        if not event_idx:
            wanted &= ~VirtioFeature.EVENT_IDX
        if not indirect:
            wanted &= ~VirtioFeature.INDIRECT_DESC
        await self.negotiate(wanted)
        await self.share_memory()
        for index in range(queues):
            self.make_queue(index, size, native=native, notify=notify, serve=serve, indirect_max=indirect_max)
        await self.start_queues()

    def make_queue(
        self,
        index: int,
        size: int,
        *,
        native: bool = True,
        notify: bool = True,
        serve: bool = True,
        base: int | None = None,
        indirect_max: int = 0,
    ) -> Queue:
        """A queue with a ring in our memory; the back-end is not told before `start_queues`. Arguments as `start`."""
        if index in self.queues:
            self.queues.pop(index).close()
        ring_: DriverRing
        if native:
            ring_ = NativeRing(self.memory, size, self.features, base=base, indirect_max=indirect_max)
        else:
            ring_ = make_ring(self.memory, size, self.features, base)
        queue = Queue(self.memory, index, ring_, notify=notify, timeout=self.link.timeout)
        self.queues[index] = queue
        if serve:
            self._spawn(queue.serve_calls)
            self._spawn(queue.serve_errors)
        return queue

    async def start_queues(self, bases: dict[int, int] | None = None) -> None:
        """Start every queue that is not started, all in the personality's order.

        Args:
            bases: where each continues (what `stop_queue` returned); fresh ones begin at their ring's base.
        """
        who = self.personality
        waiting = [queue for _, queue in sorted(self.queues.items()) if not queue.started]
        base = {queue.index: (bases or {}).get(queue.index, queue.ring.base()) for queue in waiting}
        for steps in (who.early, who.before):
            for queue in waiting:
                for step in steps:
                    await self._step(queue, step, base[queue.index])
        for queue in waiting:
            for step in who.ring:
                await self._step(queue, step, base[queue.index])
        for step in who.after:
            for queue in waiting:
                await self._step(queue, step, base[queue.index])
        if who.backend_fd_last and self.backchannel is None:
            await self._give_backchannel()

    async def _step(self, queue: Queue, step: Step, base: int) -> None:
        index = queue.index
        match step:
            case "num":
                await self.send(F.SET_VRING_NUM, VringState(index, queue.size))
            case "base":
                await self.send(F.SET_VRING_BASE, VringState(index, base))
            case "addr":
                await self.send_addresses(queue)
            case "kick":
                await self.send(F.SET_VRING_KICK, VringFd(index, True), fds=[queue.kick_fd])
                queue.started = True
            case "call":
                call = [queue.call_fd] if queue.call_fd >= 0 else []
                await self.send(F.SET_VRING_CALL, VringFd(index, bool(call)), fds=call)
            case "err":
                await self.send(F.SET_VRING_ERR, VringFd(index, True), fds=[queue.err_fd])
            case "enable":
                await self.enable(queue)

    async def send_addresses(self, queue: Queue, *, log: bool = False) -> None:
        """SET_VRING_ADDR of a queue, with its used ring logged or not."""
        uaddr = self.uaddr
        address = VringAddr(
            queue.index,
            VRING_ADDR_LOG if log else 0,
            desc=uaddr(queue.ring.desc),
            used=uaddr(queue.ring.used),
            avail=uaddr(queue.ring.avail),
            log=queue.ring.used if log else 0,
        )
        await self.send(F.SET_VRING_ADDR, address, log=log)

    def uaddr(self, gpa: int) -> int:
        """What SET_VRING_ADDR says for `gpa`: a front-end address, or an I/O address behind an IOMMU."""
        return gpa if self.features & VirtioFeature.ACCESS_PLATFORM else self.memory.uaddr(gpa)

    async def enable(self, queue: Queue, on: bool = True) -> None:
        """SET_VRING_ENABLE; without bit 30 rings are enabled from the start and nothing is sent."""
        if self.features & VirtioFeature.PROTOCOL_FEATURES:
            await self.send(F.SET_VRING_ENABLE, VringState(queue.index, int(on)))
        queue.enabled = on

    async def stop_queue(self, queue: Queue) -> int:
        """GET_VRING_BASE: the back-end completes what is in flight and stops; returns the base to continue from."""
        answer = await self.ask(F.GET_VRING_BASE, VringState(queue.index, 0))
        answer.close()
        if not isinstance(answer.payload, VringState) or answer.payload.index != queue.index:
            raise ProtocolError(f"answered {answer.payload!r}", F.GET_VRING_BASE)
        queue.started = False
        queue.reap()
        return answer.payload.num

    async def stop(self) -> dict[int, int]:
        """Disable and stop all started queues; returns their bases for `start_queues`."""
        started = [queue for queue in self.queues.values() if queue.started]
        for queue in started:
            await self.enable(queue, False)
        return {queue.index: await self.stop_queue(queue) for queue in started}

    # Configuration space

    async def get_config(self, offset: int = 0, size: int = MAX_CONFIG_SIZE) -> bytes:
        """Bytes of the device's configuration space. Raises: Refused: no such range; VhostError: no CONFIG."""
        self.require(ProtocolFeature.CONFIG)
        answer = await self.ask(F.GET_CONFIG, Config(offset, size, self.personality.config_flags, bytes(size)))
        answer.close()
        if answer.payload is None:
            raise Refused(F.GET_CONFIG, 0, f"{size} bytes at {offset}")
        if not isinstance(answer.payload, Config) or len(answer.payload.data) < size:
            raise ProtocolError(f"answered {answer.payload!r} to {size} bytes at {offset}", F.GET_CONFIG)
        return answer.payload.data[:size]

    async def set_config(self, offset: int, data: bytes, *, migration: bool = False) -> None:
        """Write to the configuration space. Raises: Refused."""
        self.require(ProtocolFeature.CONFIG)
        flags = 1 if migration else self.personality.config_flags
        await self.send(F.SET_CONFIG, Config(offset, len(data), flags, data))

    async def config_changed(self) -> None:
        """Wait for the next CONFIG_CHANGE of the back-end."""
        self.require(ProtocolFeature.BACKEND_REQ)
        assert self.backchannel is not None
        await self.backchannel.config_change()

    # Inflight region

    async def get_inflight(self, num_queues: int, queue_size: int) -> InflightRegion:
        """Let the back-end make an inflight region. The caller closes it."""
        self.require(ProtocolFeature.INFLIGHT_SHMFD)
        answer = await self.ask(F.GET_INFLIGHT_FD, Inflight(0, 0, num_queues, queue_size))
        with answer.fds:
            if not isinstance(answer.payload, Inflight) or not answer.payload.mmap_size or len(answer.fds) != 1:
                raise Refused(F.GET_INFLIGHT_FD, 0, f"answered {answer.payload!r} with {len(answer.fds)} descriptors")
            return InflightRegion(answer.payload, answer.fds.pop())

    async def set_inflight(self, region: InflightRegion) -> None:
        """Give an inflight region to the back-end, before the queues start. It stays the caller's."""
        self.require(ProtocolFeature.INFLIGHT_SHMFD)
        await self.send(F.SET_INFLIGHT_FD, region.message, fds=[region.fd.fileno()])

    # Migration

    async def start_log(self) -> DirtyLog:
        """Log writes to guest memory from now on, also those of running queues. Raises: VhostError: not offered."""
        self.require(ProtocolFeature.LOG_SHMFD)
        if not self.features_offered & VirtioFeature.LOG_ALL:
            raise VhostError("the back-end does not offer LOG_ALL")
        log = DirtyLog(max(region.gpa + region.size for region in self.memory.regions))
        try:
            answer = await self.link.call(F.SET_LOG_BASE, log.message(), fds=[log.fd])
        except BaseException:
            log.close()
            raise
        if answer is not None:
            answer.close()
        if self.log is not None:
            self.log.close()
        self.log = log
        await self.negotiate(self.features | VirtioFeature.LOG_ALL)
        for queue in self.queues.values():
            await self.send_addresses(queue, log=True)
        return log

    async def stop_log(self) -> None:
        """Log no more; the log itself stays readable."""
        await self.negotiate(self.features & ~VirtioFeature.LOG_ALL)
        for queue in self.queues.values():
            await self.send_addresses(queue)

    async def save_state(self) -> bytes:
        """The device's own state, with all queues stopped. Raises: Refused; VhostError: no DEVICE_STATE."""
        read, write = os.pipe2(os.O_CLOEXEC)
        async with trio.lowlevel.FdStream(read) as stream:
            with OwnedFd(write) as end:
                own = await self._transfer(StateDirection.SAVE, end.fileno())
            source = stream if own is None else trio.lowlevel.FdStream(own.take())
            state = b""
            with trio.fail_after(60):
                while piece := await source.receive_some(1 << 16):
                    state += piece
            await source.aclose()
        await self._check_state()
        return state

    async def load_state(self, state: bytes) -> None:
        """Give the device state saved elsewhere, before the queues start. Raises: Refused."""
        read, write = os.pipe2(os.O_CLOEXEC)
        async with trio.lowlevel.FdStream(write) as stream:
            with OwnedFd(read) as end:
                own = await self._transfer(StateDirection.LOAD, end.fileno())
            sink = stream if own is None else trio.lowlevel.FdStream(own.take())
            with trio.fail_after(60):
                await sink.send_all(state)
            await sink.aclose()
        await self._check_state()

    async def _transfer(self, direction: StateDirection, fd: int) -> OwnedFd | None:
        self.require(ProtocolFeature.DEVICE_STATE)
        answer = await self.link.call(F.SET_DEVICE_STATE_FD, StateTransfer(direction, 0), fds=[fd])
        assert answer is not None
        with answer.fds:
            code = answer.payload if isinstance(answer.payload, int) else 0xFF
            if code & 0xFF:
                raise Refused(F.SET_DEVICE_STATE_FD, code & 0xFF)
            return None if code & 0x100 or not len(answer.fds) else answer.fds.pop()

    async def _check_state(self) -> None:
        if code := await self.ask_u64(F.CHECK_DEVICE_STATE):
            raise Refused(F.CHECK_DEVICE_STATE, code, "the state did not get across")

    # Device life-cycle

    async def reset(self) -> None:
        """Reset the device: RESET_DEVICE where negotiated, else stop all queues. Queues can be started again."""
        if ProtocolFeature.RESET_DEVICE in self.protocol:
            await self.send(F.RESET_DEVICE)
            for queue in self.queues.values():
                queue.started = queue.enabled = False
        else:
            await self.stop()

    async def set_status(self, status: int) -> None:
        """SET_STATUS. Raises: VhostError: no STATUS."""
        self.require(ProtocolFeature.STATUS)
        await self.send(F.SET_STATUS, status)

    async def get_status(self) -> int:
        """GET_STATUS."""
        self.require(ProtocolFeature.STATUS)
        return await self.ask_u64(F.GET_STATUS)

    # IOMMU

    async def _iotlb_update(self, update: Iotlb) -> None:
        code = await self.link.ask_u64(F.IOTLB_MSG, update)
        if code:
            raise Refused(F.IOTLB_MSG, code)

    async def iotlb(self, message: Iotlb) -> None:
        """Send an IOTLB update or invalidation and wait until it took effect. Raises: Refused."""
        await self._iotlb_update(message)

    def _in_band_call(self, index: int) -> None:
        if (queue := self.queues.get(index)) is not None:
            queue.calls += 1
            queue.reap()


async def _open(target: Target, seconds: float) -> trio.socket.SocketType:
    if isinstance(target, int):
        target = socket.socket(fileno=target)
    if isinstance(target, socket.socket):
        target.setblocking(False)
        return trio.socket.from_stdlib_socket(target)
    path = os.fspath(target)
    if len(os.fsencode(path)) > 107:
        raise ValueError(f"{path}: a socket's path has at most 107 bytes; put it into a directory with a shorter name")
    deadline = trio.current_time() + seconds
    while True:
        sock = trio.socket.socket(trio.socket.AF_UNIX)
        try:
            await sock.connect(path)
            return sock
        except (FileNotFoundError, ConnectionRefusedError) as error:
            sock.close()
            if trio.current_time() > deadline:
                why = "no such socket" if isinstance(error, FileNotFoundError) else "nobody listens there"
                raise ConnectionClosed(f"{path}: {why}; is the back-end running?") from error
            await trio.sleep(0.02)
        except OSError as error:
            sock.close()
            raise ConnectionClosed(f"{path}: {error.strerror}") from error
        except BaseException:
            sock.close()
            raise
