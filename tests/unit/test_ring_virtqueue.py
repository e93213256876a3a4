"""Virtqueue and Chain: waiting, completing, pausing, ending. What rings mean is tested in tests/property."""

from __future__ import annotations

import gc
import os
import socket
import time
from collections.abc import Callable

import pytest
import trio
import trio.lowlevel
from model.link import BUFFERS, EVENT_IDX, INDIRECT, PACKED, RAM, Link

import ring
from ring import ErrorCode, QueueState, waiting
from ring._ring import lib

LAYOUTS = [0, EVENT_IDX, PACKED, PACKED | EVENT_IDX]


async def echo(queue: ring.Virtqueue) -> None:
    """Answers with what it was sent."""
    async for chain in queue:
        data = b"".join(map(bytes, chain.readable))
        chain.complete(chain.write(0, data))


# --- chains


def test_a_chain_shows_guest_memory() -> None:
    with Link() as link:
        at = link.send(b"hello", 8)
        (chain,) = link.queue.pop_batch()
        assert (chain.out_bytes, chain.in_bytes, link.queue.in_flight) == (5, 8, 1)
        (readable,), (writable,) = chain.readable, chain.writable
        assert bytes(readable) == b"hello"
        assert readable.readonly
        writable[:3] = b"abc"
        assert link.ram[at : at + 4] == b"abc\0"
        assert chain.write(6, b"xyz") == 2
        assert link.ram[at + 6 : at + 9] == b"xy\0"
        assert chain.read(1, 3) == b"ell"
        assert chain.read(4, 100) == b"o"
        assert chain.read(5, 1) == b""
        assert chain.read(100, 1) == b""
        assert "5 bytes out" in repr(chain)
        chain.complete(8)
        assert link.queue.flush()
        assert "completed" in repr(chain)
        assert [(used.token, used.length) for used in link.driver.poll()] == [(1, 8)]


def test_chains_are_copied_whole_or_in_part() -> None:
    """Short copies go through memory that the queue keeps, long ones do not: both stop where the pieces do."""
    text = bytes(range(256)) * 64
    with Link() as link:
        link.ram[BUFFERS : BUFFERS + len(text)] = text
        pieces = [(BUFFERS, 5000), (BUFFERS + 5000, len(text) - 5000)]
        answer = BUFFERS + len(text)
        link.driver.add(pieces, [(answer, 3000), (answer + 3000, 3000)])
        link.driver.publish()
        (chain,) = link.queue.pop_batch()
        assert chain.read() == text
        assert chain.read(3) == text[3:]
        for offset in (0, 1, 4999, 5000, len(text) - 4096, len(text) - 1, len(text), len(text) + 1, 1 << 32, 1 << 40):
            for size in (0, 1, 4095, 4096, 4097, len(text), 1 << 40):
                assert chain.read(offset, size) == text[offset : offset + size], (offset, size)
        assert chain.read(0, -1) == b""
        with pytest.raises(OverflowError):
            chain.read(-1, 1)
        with pytest.raises(OverflowError):
            chain.write(-1, b"")
        for number, data in enumerate((text, bytearray(text), memoryview(text), memoryview(text).cast("I"))):
            link.ram[answer : answer + 7000] = bytes(7000)
            assert chain.write(number, data) == 6000 - number
            assert link.ram[answer : answer + 7000] == bytes(number) + text[: 6000 - number] + bytes(1000)
        grows = bytearray(text)
        chain.write(0, grows)
        grows += b"not held on to"
        chain.complete(6000)
        for use in (chain.read, lambda: chain.read(0, 1), lambda: chain.write(0, b"x"), lambda: chain.write(0, grows)):
            with pytest.raises(RuntimeError, match="not the device's any more"):
                use()
        for name in ("id", "out_bytes", "in_bytes", "ptr"):
            with pytest.raises(RuntimeError, match="not the device's any more"):
                getattr(chain, name)
        assert link.ram[answer : answer + 6000] == text[:6000]


def test_completed_chains_are_closed() -> None:
    with Link() as link:
        link.send()
        (chain,) = link.queue.pop_batch()
        view = chain.writable[0]
        with pytest.raises(ValueError, match="written=17, but the chain has 16"):
            chain.complete(17)
        with pytest.raises(ValueError, match="written=-1"):
            chain.complete(-1)
        chain.complete(16)
        with pytest.raises(RuntimeError, match="not the device's any more"):
            chain.complete()
        with pytest.raises(RuntimeError, match="not the device's any more"):
            _ = chain.out_bytes
        with pytest.raises(ValueError, match="released"):
            view[0]
        assert link.queue.in_flight == 0


def test_a_view_in_use_does_not_stop_completion() -> None:
    with Link() as link:
        link.send()
        (chain,) = link.queue.pop_batch()
        held = memoryview(chain.writable[0])  # an export keeps release() from working
        user = held.cast("I")
        chain.complete()
        assert link.queue.flush()
        user.release()


def test_stopped_queues_take_their_chains_with_them() -> None:
    with Link() as link:
        link.send()
        (chain,) = link.queue.pop_batch()
        view = chain.readable[0]
        assert link.queue.stop() == 1
        with pytest.raises(RuntimeError, match="its queue stopped"):
            chain.complete()
        with pytest.raises(ValueError, match="released"):
            view[0]
        assert link.queue.state == QueueState.STOPPED
        assert link.queue.pop_batch() == []
        assert not link.queue.ready


def test_unpop_gives_back_the_newest() -> None:
    with Link() as link:
        for _ in range(3):
            link.send()
        first, second, third = link.queue.pop_batch()
        link.queue.unpop(2)
        with pytest.raises(RuntimeError):
            third.complete()
        with pytest.raises(RuntimeError):
            second.complete()
        again = link.queue.pop_batch()
        assert len(again) == 2
        again[1].complete()
        with pytest.raises(ring.RingError, match="return of 1 chains"):
            link.queue.unpop(1)
        with pytest.raises(ValueError, match="2 chains are in flight"):
            link.queue.unpop(3)
        first.complete()
        again[0].complete()


def test_batches_are_limited() -> None:
    with Link(size=1024) as link:
        for _ in range(300):
            link.send(kick=False)
        assert len(link.queue.pop_batch(7)) == 7
        assert len(link.queue.pop_batch(10_000)) == 256
        assert len(link.queue.pop_batch()) == 37
        assert link.queue.pop_batch() == []
        assert link.queue.stats.popped == 300
        assert link.queue.stats.batches == 3


def test_the_hot_path_leaves_no_garbage() -> None:
    with Link() as link:
        gc.collect()
        gc.disable()
        try:
            for _ in range(50):
                link.send(kick=False)
                for chain in link.queue.pop_batch():
                    chain.complete()
                link.queue.flush()
                link.driver.poll()
            del chain
            assert not any(isinstance(thing, ring.Chain) for thing in gc.get_objects())
        finally:
            gc.enable()


# --- errors


@pytest.mark.parametrize("features", [0, EVENT_IDX])
def test_a_bad_ring_breaks_the_queue(features: int) -> None:
    with Link(features=features) as link:
        link.bad()
        assert link.queue.pop_batch() == []
        assert link.queue.state == QueueState.BROKEN
        assert link.queue.error == (ErrorCode.AVAIL, 0x7FFF)
        assert os.eventfd_read(link.err) == 1
        assert link.queue.pop_batch() == []
        link.queue.stop()
        assert link.queue.error is None


def test_a_device_breaks_its_queue() -> None:
    with Link() as link:
        link.queue.break_(ErrorCode.DEVICE, 9)
        assert link.queue.error == (ErrorCode.DEVICE, 9)


def test_start_refuses_in_words() -> None:
    with Link(start=False) as link:
        link.config.desc = RAM
        with pytest.raises(ring.RingError, match="start of queue 3, 16 entries: ring addresses not in guest memory"):
            link.queue.start(link.config)
        assert link.queue.state == QueueState.STOPPED
        link.config.desc = link.driver.desc
        link.config.size = 17
        with pytest.raises(ring.RingError, match="not a power of two"):
            link.queue.start(link.config)
        link.config.size = 16
        link.config.inflight = memoryview(bytearray(8))
        with pytest.raises(ring.RingError, match="inflight"):
            link.queue.start(link.config)
        link.config.inflight = None
        link.queue.start(link.config)
        assert link.queue.config is link.config
        with pytest.raises(ring.RingError, match="not possible in this state"):
            link.queue.start(link.config)


def test_the_inflight_region_is_let_go() -> None:
    region = bytearray(ring.inflight_bytes(16, False))
    with Link(inflight=memoryview(region)) as link:
        with pytest.raises(BufferError):
            region.append(0)
        link.queue.stop()
        link.config.inflight = None
        region.append(0)


def test_remap_of_what_is_gone_breaks() -> None:
    with Link() as link:
        link.send()
        (chain,) = link.queue.pop_batch()
        (region,) = link.memory.regions
        assert link.queue.overlaps(region.hva + BUFFERS, 1)
        assert not link.queue.overlaps(region.hva + BUFFERS + 4, 1)
        link.memory.clear()
        with pytest.raises(ring.RingError, match="ring addresses of queue 3"):
            link.queue.remap()
        assert link.queue.state == QueueState.BROKEN
        chain.complete()
        assert link.queue.in_flight == 0


def test_closed_queues() -> None:
    with Link() as link:
        link.queue.close()
        link.queue.close()
        with pytest.raises(RuntimeError, match="queue 3 is closed"):
            link.queue.stop()
        assert link.queue.pop_batch() == []


# --- waiting


@pytest.mark.parametrize("features", LAYOUTS)
async def test_iteration(features: int) -> None:
    with Link(features=features) as link, trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(echo, link.queue)
            for turn in range(40):
                at = link.send(b"%08d" % turn)
                await trio.lowlevel.wait_readable(link.call)
                assert link.calls() == 1
                assert [used.length for used in link.driver.poll()] == [8]
                assert link.ram[at : at + 8] == b"%08d" % turn
                link.driver.calls_on()
            link.queue.stop()  # ends the iteration


@pytest.mark.parametrize("features", LAYOUTS)
async def test_batches(features: int) -> None:
    """Many requests, few notifications, no kick while the device is at work."""

    async def device() -> None:
        while await link.queue.wait():
            for chain in link.queue.pop_batch():
                chain.complete()
            link.queue.flush()

    with Link(size=128, features=features) as link, trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(device)
            for _ in range(10):
                for _ in range(64):
                    link.send()
                while link.driver.pending:
                    await trio.lowlevel.wait_readable(link.call)
                    link.calls()
                    while link.driver.poll() or link.driver.calls_on():
                        pass
            stats = link.queue.stats
            assert stats.pushed == 640
            assert stats.batches <= 20
            assert stats.notified <= 20
            link.queue.stop()


class Busy:
    """A driver that never lets the ring run empty, as far as its device can tell; both share a thread."""

    def __init__(self, link: Link) -> None:
        self.link = link
        self.batches = 0
        self.kicks = 0

    def refill(self, pending: int = 8) -> None:
        """Take what came back, send more until there are ``pending``."""
        self.link.driver.poll()
        while self.link.driver.pending < pending:
            self.link.driver.add([(BUFFERS, 4)], [(BUFFERS + 32, 4)])
        self.kicks += self.link.driver.publish()

    async def serve(self, limit: int = 100_000) -> None:
        """The device: it ends by itself where nothing else ends it."""
        self.refill()
        while self.batches < limit and await self.link.queue.wait():
            for chain in self.link.queue.pop_batch():
                chain.complete(chain.write(0, chain.read()))
            self.link.queue.flush()
            self.batches += 1
            self.refill()


@pytest.mark.parametrize("features", LAYOUTS)
async def test_under_load_batches_do_not_wait_for_the_event_loop(features: int) -> None:
    """Several batches a turn, without a kick; and others have their turns all the same."""
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1
            busy.refill(10)

    with Link(size=32, features=features) as link, trio.fail_after(60):
        link.driver.calls_off()
        busy = Busy(link)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(other)
            await busy.serve(3000)
            nursery.cancel_scope.cancel()
        assert busy.batches == 3000
        assert 30 < turns < 2500
        assert busy.kicks < turns / 2  # only where the machine was too busy for us to look again
        stats = link.queue.stats
        assert stats.popped == stats.pushed >= 8 * 3000
        assert stats.notified <= 1


@pytest.mark.parametrize("how", ["cancel", "deadline", "stop", "break", "close", "pause"])
async def test_load_does_not_keep_a_queue_from_ending(how: str) -> None:
    with Link() as link, trio.fail_after(60):
        link.driver.calls_off()
        busy = Busy(link)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(busy.serve)
            if how == "deadline":
                nursery.cancel_scope.deadline = trio.current_time() + 0.02
                await trio.sleep_forever()
            while busy.batches <= 8:
                await trio.sleep(0.001)
            if how == "cancel":
                nursery.cancel_scope.cancel()
            elif how == "pause":
                link.queue.pause()
                before = link.queue.stats.popped
                await trio.sleep(0.01)
                assert link.queue.stats.popped == before
                assert link.queue.ready
                link.queue.resume()
                while link.queue.stats.popped == before:
                    await trio.sleep(0.001)
                link.queue.stop()
            elif how == "break":
                link.queue.break_(ErrorCode.DEVICE)
            else:
                (link.queue.stop if how == "stop" else link.queue.close)()
        assert busy.batches < 100_000


@pytest.mark.parametrize("how", ["stop", "break", "pause", "cancel"])
async def test_the_turn_ends_with_the_queue(how: str) -> None:
    """What happens between two waits of one turn is seen by the second, though there is work at hand."""
    with Link() as link, trio.fail_after(60):
        for _ in range(4):
            link.send(kick=False)
        assert await link.queue.wait()
        assert len(link.queue.pop_batch(1)) == 1
        assert await link.queue.wait()
        if how == "stop":
            link.queue.stop()
            assert not await link.queue.wait()
        elif how == "break":
            link.queue.break_(ErrorCode.DEVICE)
            assert not await link.queue.wait()
        elif how == "pause":
            link.queue.pause()
            with trio.move_on_after(0.02) as scope:
                await link.queue.wait()
            assert scope.cancelled_caught
        else:
            with trio.CancelScope() as scope:
                scope.cancel()
                await link.queue.wait()
            assert scope.cancelled_caught
            assert len(link.queue.pop_batch()) == 3


def test_looking_on_in_vain_becomes_rare(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = 0

    def look(ptr: ring.VqPtr) -> int:
        nonlocal looks
        looks += 1
        return lib.ring_vq_ready(ptr)

    monkeypatch.setattr(waiting, "_ready", look)
    monkeypatch.setattr(waiting, "_SECONDS", 60.0)
    with Link() as link:
        ours = waiting.Turn()
        assert not ours.goes_on(link.queue.ptr), "it has not begun"
        assert looks == 0
        ours.begin()
        long = []  # which waits looked on
        for wait in range(1000):
            before = looks
            assert not ours.goes_on(link.queue.ptr)
            if looks - before > 1:
                long.append(wait)
        assert long[:6] == [0, 2, 6, 14, 30, 62]
        assert len(long) < 20
        assert looks < 5000
        link.send(kick=False)
        assert ours.goes_on(link.queue.ptr)


async def test_an_idle_queue_sleeps() -> None:
    with Link() as link, trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(echo, link.queue)
            await trio.sleep(0.05)
            before = time.process_time()
            await trio.sleep(0.3)
            assert time.process_time() - before < 0.03
            link.queue.stop()


async def test_no_kick_fd() -> None:
    with Link() as link, trio.fail_after(60):
        link.queue.set_kick(None)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(echo, link.queue)
            await trio.sleep(0.01)
            link.send(kick=False)
            await trio.lowlevel.wait_readable(link.call)
            link.queue.set_kick(link.kick)
            await trio.sleep(0.01)
            link.calls()
            link.send()
            await trio.lowlevel.wait_readable(link.call)
            link.queue.stop()


@pytest.mark.parametrize("kind", ["pipe", "stream", "datagram"])
async def test_kicks_by_other_files(kind: str) -> None:
    """User-mode Linux brings pipes and sockets; our end may block, and the other side reads it too."""
    ours, theirs, shut = channel(kind)
    with Link() as link, trio.fail_after(60):
        link.queue.set_kick(ours)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(echo, link.queue)
            for _ in range(3):
                await trio.sleep(0.005)
                link.send(kick=False)
                os.write(theirs, b"12345678" * 3)
                await trio.lowlevel.wait_readable(link.call)
                link.calls()
                link.driver.poll()
            if kind == "datagram":  # has no end that could be seen
                link.queue.stop()
                nursery.cancel_scope.cancel()
            shut()  # nothing will come any more: the ring is looked at all the same
            await trio.sleep(0.01)
            before = link.queue.stats.rearms
            await trio.sleep(0.05)
            assert link.queue.stats.rearms - before < 100, "a closed file must not be spun on"
            link.send(kick=False)
            await trio.lowlevel.wait_readable(link.call)
            link.queue.stop()
    os.close(ours)


def channel(kind: str) -> tuple[int, int, Callable[[], None]]:
    """Our end, theirs, and how to close theirs."""
    if kind == "pipe":
        ours, theirs = os.pipe()
        return ours, theirs, lambda: os.close(theirs)
    a, b = socket.socketpair(type=socket.SOCK_STREAM if kind == "stream" else socket.SOCK_DGRAM)
    return a.detach(), b.fileno(), b.close


async def test_a_kick_read_by_the_other_side_does_not_block() -> None:
    """The eventfd is one object for both sides: whoever is slower must find EAGAIN, even if it is a blocking one."""
    kick = os.eventfd(1, 0)
    with Link() as link, trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            link.queue.set_kick(kick)
            real = os.preadv

            def late(*args: object) -> int:
                os.eventfd_read(kick)
                return real(*args)  # type: ignore[arg-type]

            os.preadv = late  # type: ignore[assignment]
            try:
                nursery.start_soon(echo, link.queue)
                await trio.sleep(0.02)
            finally:
                os.preadv = real
            link.queue.stop()
    os.close(kick)


async def test_files_that_cannot_be_waited_for() -> None:
    fd = os.memfd_create("no eventfd")
    with Link() as link, trio.fail_after(60):
        link.queue.set_kick(fd)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(echo, link.queue)
            link.send(kick=False)
            await trio.lowlevel.wait_readable(link.call)
            link.queue.stop()
    os.close(fd)


async def test_one_waits() -> None:
    with Link() as link, trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(echo, link.queue)
            await trio.sleep(0.01)
            with pytest.raises(RuntimeError, match="another task waits for queue 3"):
                await link.queue.wait()
            link.queue.stop()


@pytest.mark.parametrize("how", ["stop", "break", "close", "bad ring", "memory"])
async def test_iteration_ends(how: str) -> None:
    with Link() as link, trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(echo, link.queue)
            await trio.sleep(0.01)
            if how == "stop":
                link.queue.stop()
            elif how == "break":
                link.queue.break_(ErrorCode.DEVICE)
            elif how == "close":
                link.queue.close()
            elif how == "memory":
                link.memory.close()
            else:
                link.bad()
                os.eventfd_write(link.kick, 1)
        if how == "stop":  # and begins again
            link.queue.start(link.config)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(echo, link.queue)
                await trio.sleep(0.01)
                link.send()
                await trio.lowlevel.wait_readable(link.call)
                link.queue.stop()


async def test_wait_after_the_end() -> None:
    with Link() as link:
        link.queue.stop()
        assert not await link.queue.wait()
        with trio.CancelScope() as scope:
            scope.cancel()
            await link.queue.wait()
        assert scope.cancelled_caught


async def test_completion_by_another_task_is_published() -> None:
    """The iteration sleeps; whoever completes must not have to know how to flush."""
    with Link() as link, trio.fail_after(60):

        async def later(chain: ring.Chain) -> None:
            await trio.sleep(0.01)
            chain.complete()

        async def device() -> None:
            async for chain in link.queue:
                nursery.start_soon(later, chain)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(device)
            link.send()
            link.send()
            await trio.lowlevel.wait_readable(link.call)
            await trio.sleep(0.02)
            assert len(link.driver.poll()) == 2
            link.queue.stop()


async def test_a_slow_body_does_not_hold_back_what_is_done() -> None:
    with Link() as link, trio.fail_after(60):

        async def device() -> None:
            async for chain in link.queue:
                chain.complete()
                await trio.sleep(0.02)

        async with trio.open_nursery() as nursery:
            for _ in range(5):
                link.send()
            nursery.start_soon(device)
            for done in range(1, 6):
                await trio.lowlevel.wait_readable(link.call)
                link.calls()
                assert len(link.driver.poll()) == 1, done
            link.queue.stop()


async def test_what_was_not_handed_out_goes_back() -> None:
    """``async for`` takes a few at once; leaving it must not lose the rest."""
    with Link() as link:
        for _ in range(5):
            link.send()
        async for chain in link.queue:
            chain.complete()
            break
        assert link.queue.in_flight == 4
        assert link.queue.stop() == 1
        link.config.base = 1
        link.queue.start(link.config)
        assert len(link.queue.pop_batch()) == 4


async def test_pause_drain_resume() -> None:
    with Link() as link, trio.fail_after(60):
        seen: list[ring.Chain] = []

        async def device() -> None:
            async for chain in link.queue:
                seen.append(chain)
                await trio.lowlevel.checkpoint()
                if len(seen) == 2:
                    link.queue.pause()

        async with trio.open_nursery() as nursery:
            for _ in range(5):
                link.send()
            nursery.start_soon(device)
            await trio.sleep(0.01)
            assert len(seen) == 2
            assert link.queue.paused
            assert link.queue.in_flight == 2
            assert link.queue.pop_batch() == []
            drained = trio.Event()

            async def drain() -> None:
                await link.queue.drain()
                drained.set()

            nursery.start_soon(drain)
            await trio.sleep(0.01)
            seen[1].complete()
            await trio.sleep(0.01)
            assert not drained.is_set()
            seen[0].complete()
            await drained.wait()
            assert len(link.driver.poll()) == 2
            link.queue.pause()
            link.queue.resume()
            await trio.sleep(0.01)
            assert len(seen) == 5
            link.queue.stop()


async def test_a_paused_queue_ends_too() -> None:
    with Link() as link, trio.fail_after(60):
        link.queue.pause()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(echo, link.queue)
            await trio.sleep(0.01)
            link.queue.stop()
        assert link.queue.paused
        link.queue.start(link.config)
        with trio.move_on_after(0.02) as scope:
            await link.queue.wait()
        assert scope.cancelled_caught
        link.queue.resume()
        link.send()
        assert await link.queue.wait()


async def test_iotlb_misses_are_tried_again() -> None:
    tlb = ring.Iotlb()
    tlb.update(0, BUFFERS, 0, ring.Perm.READ | ring.Perm.WRITE)
    with Link(iotlb=tlb) as link, trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(echo, link.queue)
            link.send()
            while not (misses := tlb.misses()):
                await trio.sleep(0.001)
            assert misses[0].iova == BUFFERS
            before = link.queue.stats.misses
            await trio.sleep(0.02)
            assert link.queue.stats.misses - before < 40, "the answer takes its time: no spinning"
            tlb.update(BUFFERS, 0x1000, BUFFERS, ring.Perm.READ | ring.Perm.WRITE)
            await trio.lowlevel.wait_readable(link.call)
            assert len(link.driver.poll()) == 1
            link.queue.stop()


async def test_room_for_long_chains_comes_back() -> None:
    """More long chains than there are blocks for: the rest waits for completions, not for a kick."""
    size, pieces = 64, 200
    with Link(size=size, features=INDIRECT) as link, trio.fail_after(60):
        link.driver.close()
        link.driver = ring.Driver(link.ram, gpa=0, size=size, features=INDIRECT, indirect_max=pieces)
        assert link.driver.offsets.size <= BUFFERS
        link.queue.stop()
        link.config.avail, link.config.used = link.driver.avail, link.driver.used
        link.queue.start(link.config)
        for token in range(size):
            link.driver.add([(BUFFERS, 1)] * pieces, token=token, indirect=True)
        link.driver.publish()
        waiting: list[ring.Chain] = []

        async def device() -> None:
            async for chain in link.queue:
                waiting.append(chain)  # noqa: PERF401 - looked at while it grows

        async with trio.open_nursery() as nursery:
            nursery.start_soon(device)
            await trio.sleep(0.02)
            total = len(waiting)
            assert 0 < total < size
            while total < size:
                waiting.pop(0).complete()
                await trio.sleep(0.002)
                total += 1
                assert link.queue.in_flight == len(waiting)
            link.queue.stop()


async def test_cancellation_while_waiting_loses_nothing() -> None:
    with Link() as link:
        for _ in range(20):
            with trio.move_on_after(0):
                await link.queue.wait()
        link.send()
        assert await link.queue.wait()
        assert len(link.queue.pop_batch()) == 1


def test_a_queue_may_outlive_the_event_loop() -> None:
    with Link() as link:

        async def take() -> ring.Chain:
            return await anext(aiter(link.queue))

        for _ in range(2):
            link.send()
            chain = trio.run(take)
            chain.complete()
            assert len(link.driver.poll()) == 1
