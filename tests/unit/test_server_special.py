"""The server behind a virtual IOMMU, in postcopy migration, and with notifications in the channel."""

from __future__ import annotations

import mmap
import os
import threading

import pytest
import trio
from serverlib import Echo, serving

from ring._ring import ffi, lib
from vhost import Frontend, Options
from vhost.constants import FrontendRequest as F
from vhost.constants import IotlbType, ProtocolFeature, VirtioFeature
from vhost.frontend.backchannel import Mapping
from vhost.messages import Iotlb, MemTable, VringFd, VringState

RW = 3


async def eventually(what, seconds: float = 5) -> None:
    with trio.fail_after(seconds):
        while not what():
            await trio.sleep(0.002)


async def start_behind_iommu(fe: Frontend, size: int = 16) -> None:
    """Negotiate ACCESS_PLATFORM; ring addresses are then I/O addresses, here equal to guest-physical ones."""
    bits = VirtioFeature.VERSION_1 | VirtioFeature.ACCESS_PLATFORM | VirtioFeature.EVENT_IDX
    await fe.negotiate(bits)
    assert fe.features & VirtioFeature.ACCESS_PLATFORM
    await fe.share_memory()
    fe.make_queue(0, size, native=False)
    await fe.start_queues()


def identity(fe: Frontend, gpa: int, size: int) -> Mapping:
    return Mapping(iova=gpa, size=size, uaddr=fe.memory.uaddr(gpa), perm=RW)


async def test_iommu_is_not_offered_unless_asked_for() -> None:
    async with serving(Echo()) as (path, _), Frontend.connect(path) as fe:
        assert not fe.features_offered & VirtioFeature.ACCESS_PLATFORM


async def test_rings_and_buffers_are_asked_for_behind_an_iommu() -> None:
    async with serving(Echo(), options=Options(iommu=True)) as (path, _), Frontend.connect(path) as fe:
        region = fe.memory.regions[0]
        fe.backchannel.iommu.append(identity(fe, region.gpa, region.size))
        await start_behind_iommu(fe)
        length, (answer,) = await fe.queues[0].request([b"by iova"], [7])
        assert (length, answer) == (7, b"by iova")
        assert fe.backchannel.misses
        assert await fe.stop() == {0: 1}


async def test_a_ring_waits_until_the_iommu_maps_it() -> None:
    device = Echo()
    async with serving(device, options=Options(iommu=True)) as (path, _), Frontend.connect(path) as fe:
        await start_behind_iommu(fe)
        queue = fe.queues[0]
        out, in_ = fe.memory.alloc(4), fe.memory.alloc(4)
        fe.memory.write(out, b"late")
        queue.ring.add([(out, 4)], [(in_, 4)], 1)
        queue.ring.publish()
        queue.kick()
        await eventually(lambda: fe.backchannel.misses)
        assert device.taken == 0
        region = fe.memory.regions[0]
        mapping = identity(fe, region.gpa, region.size)
        await fe.iotlb(Iotlb(mapping.iova, mapping.size, mapping.uaddr, RW, IotlbType.UPDATE))
        await eventually(lambda: fe.memory.read(in_, 4) == b"late")


async def test_invalidation_waits_for_what_is_in_flight_there_and_for_nothing_else() -> None:
    device = Echo()
    async with serving(device, options=Options(iommu=True)) as (path, _), Frontend.connect(path) as fe:
        region = fe.memory.regions[0]
        page = fe.memory.alloc(4096, 4096)
        other = fe.memory.alloc(4096, 4096)
        fe.backchannel.iommu.append(identity(fe, region.gpa, region.size))
        await start_behind_iommu(fe)
        queue = fe.queues[0]
        device.shut()
        queue.ring.add([(page, 16)], [(page + 64, 16)], 1)
        queue.ring.publish()
        queue.kick()
        await device.until_taken(1)
        with trio.fail_after(60):
            await fe.iotlb(Iotlb(other, 4096, 0, 0, IotlbType.INVALIDATE))
        async with trio.open_nursery() as nursery:
            done = trio.Event()

            async def invalidate() -> None:
                await fe.iotlb(Iotlb(page, 4096, 0, 0, IotlbType.INVALIDATE))
                done.set()

            nursery.start_soon(invalidate)
            await trio.sleep(0.1)
            assert not done.is_set(), "answered while a request could still write there"
            device.gate.set()
            with trio.fail_after(60):
                await done.wait()
        assert len(device.served) == 1


async def test_a_ring_that_loses_its_mapping_comes_back() -> None:
    device = Echo()
    async with serving(device, options=Options(iommu=True)) as (path, _), Frontend.connect(path) as fe:
        region = fe.memory.regions[0]
        fe.backchannel.iommu.append(identity(fe, region.gpa, region.size))
        await start_behind_iommu(fe)
        for number in range(10):
            data = b"number %d" % number
            assert (await fe.queues[0].request([data], [8]))[1] == [data]
            misses = len(fe.backchannel.misses)
            await fe.iotlb(Iotlb(0, 0 if number % 2 else 1 << 40, 0, 0, IotlbType.INVALIDATE))
            await eventually(lambda m=misses: len(fe.backchannel.misses) > m)
        assert await fe.stop() == {0: 10}


# In-band notifications


async def test_kicks_and_calls_in_the_channel() -> None:
    device = Echo()
    options = Options(inband_notifications=True)
    async with serving(device, options=options) as (path, _), Frontend.connect(path, handshake=False) as fe:
        offered = await fe.ask_u64(F.GET_PROTOCOL_FEATURES)
        wanted = ProtocolFeature.INBAND_NOTIFICATIONS | ProtocolFeature.REPLY_ACK | ProtocolFeature.BACKEND_REQ
        assert offered & wanted == wanted
        fe.features_offered = await fe.ask_u64(F.GET_FEATURES)
        await fe.send(F.SET_PROTOCOL_FEATURES, int(wanted))
        fe.protocol = wanted
        fe.link.reply_ack = True
        await fe._give_backchannel()
        await fe.negotiate(VirtioFeature.VERSION_1)
        await fe.share_memory()
        queue = fe.make_queue(0, 16, serve=False)
        await fe.send(F.SET_VRING_NUM, VringState(0, 16))
        await fe.send(F.SET_VRING_BASE, VringState(0, 0))
        await fe.send_addresses(queue)
        await fe.send(F.SET_VRING_CALL, VringFd(0, False))
        await fe.send(F.SET_VRING_KICK, VringFd(0, False))
        await fe.send(F.SET_VRING_ENABLE, VringState(0, 1))
        queue.ring.calls_on()
        for number in range(3):
            data, before = b"inband %d" % number, queue.calls
            out, in_ = fe.memory.alloc(8), fe.memory.alloc(8)
            fe.memory.write(out, data)
            queue.ring.add([(out, 8)], [(in_, 8)], number)
            if queue.ring.publish():
                await fe.send(F.VRING_KICK, VringState(0, 0))
            await eventually(lambda b=before: queue.calls > b)
            assert fe.memory.read(in_, 8) == data


# Postcopy


def page_bringer(uffd: int, base: int, gate: threading.Event, stop: threading.Event, brought: list[int]) -> None:
    """What a migration target's VMM does: bring the page of each fault (all pages are b"p" here)."""
    source = mmap.mmap(-1, 4096)
    source.write(b"p" * 4096)
    with ffi.from_buffer(source) as data:
        address = ffi.new("uint64_t *")
        while not stop.is_set():
            if lib.ring_uffd_read(uffd, address) != 1:
                stop.wait(0.002)
                continue
            gate.wait()
            brought.append(address[0] - base)
            assert lib.ring_uffd_copy(uffd, address[0], int(ffi.cast("uintptr_t", data)), 4096) in (0, -17)
    source.close()


def uffd_works() -> bool:
    fd = lib.ring_uffd_open()
    if fd < 0:
        return False
    os.close(fd)
    return True


class Patient(Echo):
    """Touches guest memory on a thread, as postcopy asks of everybody."""

    @property
    def protocol_features(self) -> ProtocolFeature:
        return super().protocol_features | ProtocolFeature.PAGEFAULT

    async def _one(self, chain) -> None:
        data = await trio.to_thread.run_sync(chain.read, 0, chain.out_bytes)
        chain.complete(await trio.to_thread.run_sync(chain.write, 0, data))


@pytest.mark.skipif(not uffd_works(), reason="this machine does not allow userfaultfd")
async def test_postcopy_runs_on_memory_that_is_still_coming() -> None:
    """ADVISE, LISTEN, memory with addresses in the answer, its acknowledgement, faults, END."""
    async with serving(Patient()) as (path, _):
        protocol = ~(ProtocolFeature.CONFIGURE_MEM_SLOTS | ProtocolFeature.LOG_SHMFD)
        async with Frontend.connect(path, protocol=protocol, memory_size=1 << 20) as fe:
            assert ProtocolFeature.PAGEFAULT in fe.protocol
            await fe.negotiate(VirtioFeature.VERSION_1)
            advise = await fe.ask(F.POSTCOPY_ADVISE)
            with advise.fds.pop() as uffd:
                assert await fe.ask_u64(F.POSTCOPY_LISTEN) == 0
                table = MemTable(fe.memory.messages())
                answer = await fe.link.call(F.SET_MEM_TABLE, table, fds=fe.memory.filenos(), answer=True)
                assert isinstance(answer.payload, MemTable)
                base = answer.payload.regions[0].uaddr
                assert base not in (0, fe.memory.regions[0].uaddr)
                # The acknowledgement has no answer; the next message is taken only after it.
                await fe.link.acked(F.SET_MEM_TABLE, MemTable(()), wait=False)
                gate, stop, brought = threading.Event(), threading.Event(), []
                gate.set()
                thread = threading.Thread(target=page_bringer, args=(uffd.fileno(), base, gate, stop, brought))
                thread.start()
                try:
                    # The ring pages are here (written by the driver in the file), data pages are not.
                    queue = fe.make_queue(0, 16, native=False)
                    await fe.start_queues()
                    missing = fe.memory.alloc(4096, 4096)
                    region = fe.memory.regions[0]
                    region.map.madvise(mmap.MADV_REMOVE, missing - region.gpa, 4096)
                    answer_at = fe.memory.alloc(64)
                    fe.memory.write(answer_at, bytes(64))
                    queue.ring.add([(missing, 64)], [(answer_at, 64)], 1)
                    if queue.ring.publish():
                        queue.kick()
                    await eventually(lambda: fe.memory.read(answer_at, 64) == b"p" * 64)
                    assert missing & ~4095 in [at + fe.memory.regions[0].gpa for at in brought]
                    assert await fe.ask_u64(F.POSTCOPY_END) == 0
                finally:
                    stop.set()
                    gate.set()
                    thread.join()
            fe.memory.write(missing, b"now ours")
            queue.ring.add([(missing, 8)], [(answer_at, 8)], 2)
            if queue.ring.publish():
                queue.kick()
            await eventually(lambda: fe.memory.read(answer_at, 8) == b"now ours")
