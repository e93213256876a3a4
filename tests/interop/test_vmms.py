"""The manners of cloud-hypervisor, Firecracker and crosvm, whole lives long, against ``vhost blk`` as a process.

What they send, in which order and with which flags is `vhost.frontend.personality`; what these tests add is what each
VMM does over the life of a guest.
"""

from __future__ import annotations

import os
import shutil
import socket
import struct
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import peerlib
import pytest
import serverlib
import trio
from keptring import Kept

from vhost.constants import FrontendRequest as F
from vhost.constants import ProtocolFeature, StateDirection, VirtioFeature
from vhost.errors import VhostError
from vhost.frontend import (
    CLOUD_HYPERVISOR,
    CROSVM,
    FIRECRACKER,
    UML,
    Frontend,
    Memory,
    Personality,
    Queue,
    make_ring,
)
from vhost.frontend.rings import DriverRing
from vhost.messages import LogBase, StateTransfer

VMMS = [CLOUD_HYPERVISOR, FIRECRACKER, CROSVM]
SECTOR = 512
each_vmm = pytest.mark.parametrize("vmm", VMMS, ids=lambda who: who.name)


@pytest.fixture(scope="module")
def disk() -> Iterator[peerlib.Backend]:
    with peerlib.vhost_blk(queues=4) as backend:
        yield backend


@asynccontextmanager
async def attach(backend: peerlib.Backend, vmm: Personality, **how: Memory) -> AsyncIterator[Frontend]:
    """Connected, with protocol features and configuration read as the VMM does; nothing started."""
    async with Frontend.connect(backend.path, personality=vmm, **how) as frontend:
        assert not frontend.protocol & ~vmm.protocol
        if vmm is CROSVM:  # the guest's accesses go through, one by one
            capacity = b"".join([await frontend.get_config(at, 1) for at in range(8)])
        else:
            capacity = (await frontend.get_config(0, 60))[:8]
        assert int.from_bytes(capacity, "little") == 64 << 11
        yield frontend


def count(frontend: Frontend) -> int:
    """How many queues the VMM makes."""
    return {CLOUD_HYPERVISOR: 2, FIRECRACKER: 1, CROSVM: frontend.num_queues}[frontend.personality]


async def write(queue: Queue, sector: int, data: bytes) -> None:
    assert await queue.request([struct.pack("<IIQ", 1, 0, sector), data], [1]) == (1, [b"\0"])


async def read(queue: Queue, sector: int, size: int = 4096) -> bytes:
    length, (data, status) = await queue.request([struct.pack("<IIQ", 0, 0, sector)], [size, 1])
    assert (length, status) == (size + 1, b"\0")
    return data


async def use(frontend: Frontend) -> None:
    """Every queue writes and another reads it."""
    queues = list(frontend.queues.values())
    for number, queue in enumerate(queues):
        data = os.urandom(8192)
        await write(queue, 64 * number, data)
        assert await read(queues[number - 1], 64 * number, 8192) == data


@each_vmm
async def test_boot_reset_and_boot_again(disk: peerlib.Backend, vmm: Personality) -> None:
    """Firmware activates the device, resets it, and the kernel activates it again with rings elsewhere."""
    async with attach(disk, vmm) as frontend:
        for size in (16, 256, 128):
            await frontend.start(queues=count(frontend), size=size)
            await use(frontend)
            await frontend.stop()
            for queue in [frontend.queues.pop(index) for index in list(frontend.queues)]:
                queue.close()
    async with attach(disk, vmm) as frontend:  # the next VM on the same socket
        await frontend.start(queues=count(frontend))
        await use(frontend)
    assert disk.deaths == 0


@each_vmm
async def test_features_are_what_the_vmm_can(disk: peerlib.Backend, vmm: Personality) -> None:
    async with attach(disk, vmm) as frontend:
        await frontend.start()
        assert frontend.features & VirtioFeature.VERSION_1
        assert not frontend.features & VirtioFeature.RING_PACKED
        never = (1 << 38) | (1 << 33)  # NOTIFICATION_DATA and ACCESS_PLATFORM: these VMMs take what is offered
        assert not frontend.features_offered & never
        assert ProtocolFeature.SHMEM not in frontend.protocol_offered
        await use(frontend)


@each_vmm
async def test_pause_and_resume(disk: peerlib.Backend, vmm: Personality) -> None:
    """ENABLE 0: what the guest adds waits, even if it kicks; ENABLE 1 serves it without another kick."""
    async with attach(disk, vmm) as frontend:
        await frontend.start(queues=count(frontend))
        queues = list(frontend.queues.values())
        await use(frontend)
        for _ in range(3):
            for queue in queues:
                await frontend.enable(queue, False)
            await frontend.ask_u64(F.GET_FEATURES)  # an answer: ENABLE has taken effect also without REPLY_ACK
            data = os.urandom(4096)
            async with trio.open_nursery() as nursery:
                for number, queue in enumerate(queues):
                    nursery.start_soon(write, queue, 8 * number, data)
                await trio.sleep(0.1)
                assert [queue.in_flight for queue in queues] == [1] * len(queues)
                for queue in queues:
                    await frontend.enable(queue)
            for number, queue in enumerate(queues):
                assert await read(queue, 8 * number) == data


async def test_suspend_to_snapshot(disk: peerlib.Backend) -> None:
    """cloud-hypervisor: pause, GET_VRING_BASE; crosvm sleeps likewise. Then it goes on, with the bases it got."""
    for vmm in (CLOUD_HYPERVISOR, CROSVM):
        async with attach(disk, vmm) as frontend:
            await frontend.start(queues=2)
            await use(frontend)
            bases = await frontend.stop()
            assert bases == {0: 2, 1: 2}
            await frontend.start_queues(bases)
            await use(frontend)
            assert await frontend.stop() == {0: 4, 1: 4}


async def test_queue_without_interrupt(disk: peerlib.Backend) -> None:
    """cloud-hypervisor sends no SET_VRING_CALL for a queue whose driver asked for no MSI-X vector."""
    async with attach(disk, CLOUD_HYPERVISOR) as frontend:
        await frontend.start(notify=False)
        await use(frontend)


async def test_hot_plug_under_load(disk: peerlib.Backend) -> None:
    """ADD_MEM_REG after SET_MEM_TABLE, while requests fly; buffers in the new memory at once."""
    with Memory(32 << 20, regions=4, hole=1 << 30) as memory:
        async with attach(disk, CLOUD_HYPERVISOR, memory=memory) as frontend:
            assert ProtocolFeature.CONFIGURE_MEM_SLOTS in frontend.protocol
            await frontend.start(queues=2)
            done = 0

            async def load(queue: Queue) -> None:
                nonlocal done
                while True:
                    await use_one(queue)
                    done += 1

            async def use_one(queue: Queue) -> None:
                await read(queue, 0, 65536)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(load, frontend.queues[1])
                for number in range(6):
                    region = memory.add((1 << 36) + number * (64 << 20), 4 << 20)
                    await frontend.share(region)
                    before = done
                    at = memory.alloc(8192, region=region)
                    memory.write(at, struct.pack("<IIQ", 0, 0, 0))
                    queue = frontend.queues[0]
                    queue.ring.add([(at, 16)], [(at + 4096, 512), (at + 4608, 1)], 1 << 40)
                    memory.write(at + 4608, b"\xff")
                    queue.ring.publish()
                    queue.kick()
                    with trio.fail_after(60):
                        while memory.load(at + 4608, 1) == 0xFF or done < before + 3:
                            await trio.sleep(0.005)
                    assert memory.load(at + 4608, 1) == 0
                nursery.cancel_scope.cancel()
            assert done > 10


class ShortLog:
    """A dirty log as cloud-hypervisor sizes it: to the byte."""

    def __init__(self, memory: Memory) -> None:
        last = max(region.gpa + region.size for region in memory.regions) - 1
        self.size = last // (0x1000 * 8) + 1
        self.fd = os.memfd_create("log", os.MFD_CLOEXEC)
        os.ftruncate(self.fd, self.size)

    def pages(self) -> set[int]:
        data = os.pread(self.fd, self.size, 0)
        return {8 * at + bit for at, byte in enumerate(data) for bit in range(8) if byte >> bit & 1}


async def test_dirty_log_renewed_at_each_poll(disk: peerlib.Backend) -> None:
    """A new SET_LOG_BASE per poll while requests fly: every page written is in one of the logs."""
    async with attach(disk, CLOUD_HYPERVISOR) as frontend:
        await frontend.start(queues=2)
        assert frontend.features_offered & VirtioFeature.LOG_ALL
        memory = frontend.memory
        logs: list[ShortLog] = []

        async def poll() -> None:
            log = ShortLog(memory)
            logs.append(log)
            answer = await frontend.link.call(F.SET_LOG_BASE, LogBase(log.size, 0), fds=[log.fd])
            assert answer is not None
            assert answer.payload == LogBase(log.size, 0), "cloud-hypervisor wants the 16 bytes back"
            answer.close()

        written: set[int] = set()

        async def load(queue: Queue) -> None:
            for _ in range(150):
                buffers = [memory.alloc(4096, 4096) for _ in range(3)]
                await read(queue, 0, 12288)
                for at in buffers:
                    memory.free(at)

        real_alloc = memory.alloc

        def noted(size: int, *args: int, **how: Any) -> int:
            at = real_alloc(size, *args, **how)
            if size == 12288:
                written.update(range(at >> 12, (at + size - 1 >> 12) + 1))
            return at

        try:
            await poll()
            await frontend.negotiate(frontend.features | VirtioFeature.LOG_ALL)
            for queue in frontend.queues.values():
                await frontend.send_addresses(queue, log=True)
            memory.alloc = noted  # type: ignore[method-assign]
            async with trio.open_nursery() as nursery:
                for queue in frontend.queues.values():
                    nursery.start_soon(load, queue)
                for _ in range(12):
                    await trio.sleep(0.02)
                    await poll()
            used = {queue.ring.used >> 12 for queue in frontend.queues.values()}
            await poll()
            seen = set().union(*(log.pages() for log in logs))
            assert len(written) >= 3
            assert written <= seen, f"missing {sorted(written - seen)[:8]}"
            assert used <= seen
            await use(frontend)
            final = logs[-1].pages()
            assert final, "the last log is the one in use"
            for log in logs[:-1]:
                old = log.pages()
                await use(frontend)
                assert log.pages() == old, "a log that was replaced is written no more"
        finally:
            for log in logs:
                os.close(log.fd)


class Guest:
    """Memory and one split ring that stay while back-ends come and go."""

    def __init__(self, memory: Memory, vmm: Personality, size: int = 64) -> None:
        self.memory = memory
        self.vmm = vmm
        self.ring: DriverRing | None = None
        self.size = size
        self.done: dict[int, int] = {}
        self.status: dict[int, int] = {}

    async def attach(self, frontend: Frontend, *, base: int | None = None) -> Queue:
        """What the VMM does after SET_MEM_TABLE, on a new connection."""
        await frontend.negotiate(VirtioFeature.VERSION_1 | VirtioFeature.EVENT_IDX | 1 << 9)
        await frontend.share_memory()
        if self.ring is None:
            self.ring = make_ring(self.memory, self.size, frontend.features)
        queue = Queue(self.memory, 0, Kept(self.ring))
        frontend.queues[0] = queue
        await frontend.start_queues({} if base is None else {0: base})
        return queue

    def available(self) -> int:
        """The available index, as cloud-hypervisor and Firecracker read it for SET_VRING_BASE."""
        assert self.ring is not None
        return self.memory.load(self.ring.avail + 2, 2)

    def write(self, number: int, data: bytes) -> None:
        """Add a write of `data` at its place."""
        assert self.ring is not None
        at = self.memory.alloc(16 + len(data) + 1)
        self.memory.write(at, struct.pack("<IIQ", 1, 0, number * len(data) // SECTOR) + data + b"\xff")
        self.status[number] = at + 16 + len(data)
        self.ring.add([(at, 16), (at + 16, len(data))], [(self.status[number], 1)], number)

    def reap(self) -> None:
        """Note what came back."""
        assert self.ring is not None
        for used in self.ring.poll():
            self.done[used.token] = self.done.get(used.token, 0) + 1

    async def until(self, wanted: int) -> None:
        """Wait until `wanted` requests have come back."""
        with trio.fail_after(60):
            while len(self.done) < wanted:
                self.reap()
                await trio.sleep(0.002)


@asynccontextmanager
async def restartable(*options: str) -> AsyncIterator[tuple[Path, list[str]]]:
    """A folder with an image, and the command to serve it."""
    with peerlib.short_folder() as folder:
        image = folder / "disk"
        with image.open("wb") as file:
            file.truncate(64 << 20)
        program = str(Path(sys.executable).with_name("vhost"))
        yield folder, [program, "blk", "--socket-path", str(folder / "s"), "--blk-file", str(image), *options]


@pytest.mark.parametrize("vmm", [CLOUD_HYPERVISOR], ids=lambda who: who.name)
async def test_killed_under_load_with_inflight(vmm: Personality) -> None:
    """Back-end killed with requests in flight and others not yet fetched; a new one finishes all, none twice.

    cloud-hypervisor gives the available index as base: the inflight region must win over it.
    """
    async with restartable() as (folder, command):
        with Memory(16 << 20) as memory:
            guest = Guest(memory, vmm)
            blocks = {number: os.urandom(4096) for number in range(16)}
            region = None
            slow = peerlib.Backend([*command, "--iops", "20"], folder / "s", folder / "log")
            try:
                slow.connect().close()
                async with Frontend.connect(slow.path, personality=vmm, memory=memory) as frontend:
                    region = await frontend.get_inflight(1, guest.size)
                    await frontend.set_inflight(region)
                    queue = await guest.attach(frontend)
                    for number, data in blocks.items():
                        guest.write(number, data)
                    assert guest.ring is not None
                    guest.ring.publish()
                    queue.kick()
                    await guest.until(2)
                    slow.process.kill()
                    slow.process.wait()
                guest.reap()
                assert len(guest.done) < 16, "nothing was left to replay"
                with peerlib.running(command, folder / "s", folder / "log2") as fast:
                    async with Frontend.connect(fast.path, personality=vmm, memory=memory) as frontend:
                        await frontend.set_inflight(region)
                        queue = await guest.attach(frontend, base=guest.available())
                        await guest.until(16)
                        assert guest.done == dict.fromkeys(range(16), 1)
                        assert {memory.load(at, 1) for at in guest.status.values()} == {0}
                        guest.write(16, bytes(4096))
                        guest.ring.publish()
                        queue.kick()
                        await guest.until(17)
            finally:
                if slow.process.poll() is None:
                    slow.process.kill()
                    slow.process.wait()
                if region is not None:
                    region.close()
                if guest.ring is not None:
                    guest.ring.close()
        image = (folder / "disk").read_bytes()
        for number, data in blocks.items():
            assert image[number * 4096 :][:4096] == data


@pytest.mark.parametrize(
    ("vmm", "lost"), [(CROSVM, False), (UML, False), (FIRECRACKER, True), (CLOUD_HYPERVISOR, True)],
    ids=lambda value: getattr(value, "name", "lost" if value else "kept"),
)  # fmt: skip
async def test_killed_under_load_without_inflight(vmm: Personality, lost: bool) -> None:
    """The base decides: the used index serves what was lost again; the available index leaves it lost, no more."""
    async with restartable() as (folder, command):
        with Memory(16 << 20) as memory:
            guest = Guest(memory, vmm)
            slow = peerlib.Backend([*command, "--iops", "10"], folder / "s", folder / "log")
            try:
                slow.connect().close()
                async with Frontend.connect(slow.path, personality=vmm, memory=memory) as frontend:
                    queue = await guest.attach(frontend)
                    for number in range(8):
                        guest.write(number, bytes([number + 1]) * 4096)
                    assert guest.ring is not None
                    guest.ring.publish()
                    queue.kick()
                    await guest.until(1)
                    slow.process.kill()
                    slow.process.wait()
                guest.reap()
                before = len(guest.done)
                assert before < 8
                with peerlib.running(command, folder / "s", folder / "log2") as fast:
                    async with Frontend.connect(fast.path, personality=vmm, memory=memory) as frontend:
                        base = guest.available() if lost else memory.load(guest.ring.used + 2, 2)
                        queue = await guest.attach(frontend, base=base)
                        guest.write(8, bytes([9]) * 4096)
                        guest.ring.publish()
                        queue.kick()
                        await guest.until(before + 1 if lost else 9)
                        await trio.sleep(0.05)
                        guest.reap()
                        assert len(guest.done) == (before + 1 if lost else 9)
                        assert guest.done[8] == 1
            finally:
                if slow.process.poll() is None:
                    slow.process.kill()
                    slow.process.wait()
                if guest.ring is not None:
                    guest.ring.close()


async def test_device_state_over_a_socketpair() -> None:
    """cloud-hypervisor hands over one end of a socketpair and reads from the other until its end."""
    device = serverlib.Echo()
    device.state = os.urandom(300_000)
    async with (
        serverlib.serving(device) as (path, _),
        Frontend.connect(path, personality=CLOUD_HYPERVISOR) as frontend,
    ):
        await frontend.start(queues=2)
        await frontend.stop()
        ours, theirs = socket.socketpair()
        with theirs:
            answer = await frontend.link.call(
                F.SET_DEVICE_STATE_FD, StateTransfer(StateDirection.SAVE, 0), fds=[theirs.fileno()]
            )
        assert answer is not None
        assert answer.payload == 0x100
        answer.close()
        state = b""
        async with trio.SocketStream(trio.socket.from_stdlib_socket(ours)) as stream:
            with trio.fail_after(60):
                while piece := await stream.receive_some(65536):
                    state += piece
        assert state == device.state
        assert await frontend.ask_u64(F.CHECK_DEVICE_STATE) == 0
        await frontend.start_queues()  # the migration failed: the same process goes on


async def test_a_disk_has_no_state_to_ask_for(disk: peerlib.Backend) -> None:
    async with attach(disk, CLOUD_HYPERVISOR) as frontend:
        with pytest.raises(VhostError, match="DEVICE_STATE"):
            await frontend.save_state()


def _program() -> str:
    return os.environ.get("CLOUD_HYPERVISOR", "")


@pytest.mark.skipif(not _program(), reason="CLOUD_HYPERVISOR does not name a cloud-hypervisor")
@pytest.mark.parametrize("queues", [1, 4])
def test_cloud_hypervisor_makes_the_device(disk: peerlib.Backend, queues: int) -> None:
    """The whole handshake happens before it looks at the kernel, which is none here."""
    if shutil.which(_program()) is None:
        pytest.fail(f"CLOUD_HYPERVISOR={_program()} is no program")
    words = f"vhost_user=on,socket={disk.path},num_queues={queues},queue_size=128"
    command = [_program(), "--cpus", f"boot={queues}", "--memory", "size=256M,shared=on", "--kernel", "/bin/true"]
    done = subprocess.run([*command, "--disk", words], capture_output=True, text=True, timeout=60, check=False)
    said = (done.stdout + done.stderr).lower()
    assert "vhost" not in said, said
    assert "disk" not in said, said
    assert disk.deaths == 0
