"""The server with devices in Python: connections come and go, requests in flight end, a bad peer hurts nobody else."""

from __future__ import annotations

import logging
import os
import socket
import struct
from pathlib import Path

import pytest
import trio
from serverlib import Echo, serving

import vhost
from vhost import Frontend
from vhost.constants import FrontendRequest as F
from vhost.constants import ProtocolFeature
from vhost.frontend import PERSONALITIES, QEMU
from vhost.messages import VringState

both_layouts = pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])


@pytest.fixture
def no_socket(tmp_path: Path):
    with open(tmp_path / "no-socket", "w") as file:
        yield file


async def echo(fe: Frontend, data: bytes, queue: int = 0) -> bytes:
    length, (answer,) = await fe.queues[queue].request([data], [len(data)])
    assert length == len(data)
    return answer


@both_layouts
async def test_requests_on_all_queues(packed: bool) -> None:
    async with serving(Echo()) as (path, _), Frontend.connect(path) as fe:
        await fe.start(queues=2, size=64, packed=packed)
        for number in range(200):
            data = b"request %d" % number
            assert await echo(fe, data, number % 2) == data


@pytest.mark.parametrize("who", PERSONALITIES, ids=lambda who: who.name)
async def test_every_front_end_has_its_way(who) -> None:
    async with serving(Echo()) as (path, _), Frontend.connect(path, personality=who) as fe:
        await fe.start(queues=2, size=64)
        assert await echo(fe, b"hello") == b"hello"
        bases = await fe.stop()
        assert bases == {0: 1, 1: 0}
        await fe.start_queues(bases)
        assert await echo(fe, b"again") == b"again"


@both_layouts
async def test_a_stopped_queue_goes_on_where_it_was(packed: bool) -> None:
    async with serving(Echo()) as (path, _), Frontend.connect(path) as fe:
        await fe.start(size=8, packed=packed)
        for round_ in range(20):
            for number in range(5):
                data = b"%d.%d" % (round_, number)
                assert await echo(fe, data) == data
            await fe.start_queues(await fe.stop())


async def test_a_fresh_packed_ring_whose_front_end_says_0() -> None:
    """User-mode Linux: index 0, but the wrap counters are 1. A ring gone round once says 0, too, and means it."""
    async with serving(Echo()) as (path, _), Frontend.connect(path) as fe:
        await fe.start(queues=0, packed=True)
        fe.make_queue(0, 8)
        await fe.start_queues({0: 0})
        for number in range(4):
            assert await echo(fe, b"%d" % number) == b"%d" % number
        bases = await fe.stop()
        assert bases == {0: 0}, "eight descriptors: once round"
        await fe.start_queues(bases)
        for number in range(20):
            assert await echo(fe, b"%d" % number) == b"%d" % number


async def test_the_next_front_end_is_served() -> None:
    device = Echo()
    async with serving(device) as (path, server):
        for number in range(5):
            async with Frontend.connect(path) as fe:
                await fe.start()
                assert await echo(fe, b"x%d" % number) == b"x%d" % number
        with trio.fail_after(60):
            while server.status()["echo"]["connected"]:
                await trio.sleep(0.01)
        assert server.status()["echo"]["connections"] == 5


async def test_no_descriptor_is_left_of_many_connections() -> None:
    async with serving(Echo()) as (path, server):

        async def once() -> int:
            async with Frontend.connect(path) as fe:
                await fe.start(queues=0)
                (await fe.get_inflight(2, 128)).close()
                fe.make_queue(0, 128)
                await fe.start_queues()
                await echo(fe, b"x")
            with trio.fail_after(60):
                while server.status()["echo"]["connected"]:
                    await trio.sleep(0.002)
            return len(os.listdir("/proc/self/fd"))

        before = await once()
        counts = [await once() for _ in range(30)]
        assert max(counts) <= before


async def test_a_second_front_end_waits_its_turn(caplog) -> None:
    caplog.set_level(logging.INFO)
    async with serving(Echo()) as (path, _), Frontend.connect(path) as first:
        await first.start()
        async with trio.open_nursery() as nursery:
            served = trio.Event()

            async def second() -> None:
                async with Frontend.connect(path) as fe:
                    await fe.start()
                    assert await echo(fe, b"second") == b"second"
                    served.set()

            nursery.start_soon(second)
            with trio.fail_after(60):
                while "has to wait" not in caplog.text:
                    await trio.sleep(0.02)
            assert await echo(first, b"first") == b"first"
            assert not served.is_set()
            first.link.socket.shutdown(socket.SHUT_RDWR)
            with trio.fail_after(60):
                await served.wait()
    caplog.clear()


async def test_get_vring_base_waits_for_requests_in_flight_and_others_are_served() -> None:
    slow, other = Echo(), Echo()
    async with serving(slow) as (path, server):
        await server.listen(other, path + "2")
        async with Frontend.connect(path) as fe, Frontend.connect(path + "2") as fe2, trio.open_nursery() as nursery:
            await fe.start()
            await fe2.start()
            slow.shut()
            nursery.start_soon(echo, fe, b"slow")
            await slow.until_taken(1)
            stopped: list[int] = []

            async def stop() -> None:
                stopped.append(await fe.stop_queue(fe.queues[0]))

            nursery.start_soon(stop)
            for number in range(20):
                assert await echo(fe2, b"%d" % number) == b"%d" % number
            assert not stopped
            slow.gate.set()
            with trio.fail_after(60):
                while not stopped:
                    await trio.sleep(0.002)
            assert stopped == [1]


async def test_requests_in_flight_end_before_the_next_front_end_comes() -> None:
    device = Echo()
    async with serving(device) as (path, _):
        async with trio.open_nursery() as nursery, Frontend.connect(path) as fe:
            await fe.start()
            device.shut()

            async def lost() -> None:
                with pytest.raises(vhost.VhostError):
                    await fe.queues[0].request([b"lost"], [4])

            nursery.start_soon(lost)
            await device.until_taken(1)
            fe.link.socket.shutdown(socket.SHUT_RDWR)
            await trio.sleep(0.05)
        async with trio.open_nursery() as nursery:

            async def next_one() -> None:
                async with Frontend.connect(path) as fe:
                    await fe.start()
                    assert device.served == [b"lost"], "the old request ended first"
                    assert await echo(fe, b"new") == b"new"

            nursery.start_soon(next_one)
            await trio.sleep(0.1)
            device.gate.set()
    assert device.served == [b"lost", b"new"]


async def test_a_bad_message_closes_that_connection_only(caplog) -> None:
    async with serving(Echo()) as (path, server):
        await server.listen(Echo(), path + "2")
        async with Frontend.connect(path + "2") as good:
            await good.start()
            with socket.socket(socket.AF_UNIX) as bad:
                bad.connect(path)
                bad.send(struct.pack("=III", 1, 7, 0))
                await trio.to_thread.run_sync(bad.recv, 1)
            assert await echo(good, b"still here") == b"still here"
            async with Frontend.connect(path) as fe:
                await fe.start()
                assert await echo(fe, b"again") == b"again"
    assert "broke the protocol" in caplog.text
    caplog.clear()


async def test_a_broken_ring_is_reported_and_the_others_run(caplog) -> None:
    device = Echo()
    async with serving(device) as (path, _), Frontend.connect(path) as fe:
        await fe.start(queues=2, size=16, native=False, indirect=False)
        ring_ = fe.queues[0].ring
        ring_.write_desc(3, 1 << 60, 4)
        ring_.offer(3)
        ring_.publish()
        fe.queues[0].kick()
        with trio.fail_after(60):
            while fe.queues[0].error is None or "broke queue 0" not in caplog.text:
                await trio.sleep(0.005)
        record = next(r for r in caplog.records if "broke queue" in r.getMessage())
        assert record.device == "echo"
        assert record.queue == 0
        assert await echo(fe, b"x", 1) == b"x"
        base = await fe.stop_queue(fe.queues[0])
        assert base in (0, 1)
        await fe.reset()
        fe.make_queue(0, 16)
        await fe.start_queues()
        assert await echo(fe, b"healed") == b"healed"
    caplog.clear()


async def test_a_failing_device_ends_its_queue_only(caplog) -> None:
    class Bad(Echo):
        async def run(self, queue) -> None:
            if queue.index == 0:
                await queue.wait()
                raise RuntimeError("oops")
            await super().run(queue)

    async with serving(Bad()) as (path, _), Frontend.connect(path) as fe:
        await fe.start(queues=2)
        with pytest.raises(vhost.QueueBroken):
            await fe.queues[0].request([b"x"], [1])
        assert await echo(fe, b"x", 1) == b"x"
        assert len(await fe.stop()) == 2
    assert "device failed on queue 0" in caplog.text
    caplog.clear()


async def test_disabled_rings_take_nothing() -> None:
    device = Echo()
    async with serving(device) as (path, _), Frontend.connect(path) as fe, trio.open_nursery() as nursery:
        await fe.start()
        await fe.enable(fe.queues[0], False)
        nursery.start_soon(echo, fe, b"x")
        await trio.sleep(0.05)
        assert device.taken == 0
        await fe.enable(fe.queues[0])
        await device.until_taken(1)


async def test_quiesce_waits_and_holds() -> None:
    device = Echo()
    async with serving(device) as (path, server), Frontend.connect(path) as fe:
        await fe.start()
        device.shut()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(echo, fe, b"before")
            await device.until_taken(1)
            quiet = trio.Event()

            async def quiesce() -> None:
                await device.quiesce()
                quiet.set()

            nursery.start_soon(quiesce)
            await trio.sleep(0.05)
            assert not quiet.is_set()
            device.gate.set()
            with trio.fail_after(60):
                await quiet.wait()
            nursery.start_soon(echo, fe, b"after")
            await trio.sleep(0.05)
            assert device.served == [b"before"]
            assert server.status()["echo"]["quiesced"]
            await device.resume()
    assert device.served == [b"before", b"after"]
    with pytest.raises(RuntimeError, match="not quiesced"):
        await device.resume()


# Configuration space and device messages


async def test_configuration_space() -> None:
    device = Echo()
    async with serving(device) as (path, _), Frontend.connect(path) as fe:
        assert await fe.get_config(2, 4) == b"\x03\x04\x05\x06"
        await fe.set_config(4, b"\xff")
        assert device.space[4] == 0xFF
        with pytest.raises(vhost.VhostError):
            await fe.set_config(0, b"\xff")


async def test_config_change_is_told_once_a_ring_runs() -> None:
    device = Echo()
    async with serving(device) as (path, _), Frontend.connect(path) as fe:
        device.config_changed()
        await trio.sleep(0.05)
        assert fe.backchannel.config_changes == 0, "a suspended device says nothing"
        await fe.start()
        with trio.fail_after(60):
            while fe.backchannel.config_changes < 1:
                await trio.sleep(0.005)
        device.config_changed()
        with trio.fail_after(60):
            while fe.backchannel.config_changes < 2:
                await trio.sleep(0.005)
        await fe.stop()
        device.config_changed()
        await trio.sleep(0.05)
        assert fe.backchannel.config_changes == 2


async def test_reset_stops_and_forgets() -> None:
    device = Echo()
    async with serving(device) as (path, server), Frontend.connect(path) as fe:
        await fe.start()
        await echo(fe, b"x")
        await fe.reset()
        assert device.resets == 1
        assert server.status()["echo"]["rings"] == []
        fe.make_queue(0, 32)
        await fe.start_queues()
        assert await echo(fe, b"y") == b"y"


async def test_device_state_travels() -> None:
    source, target = Echo(), Echo()
    source.state = os.urandom(300_000)
    async with serving(source) as (path, server):
        await server.listen(target, path + "2")
        async with Frontend.connect(path) as fe, Frontend.connect(path + "2") as fe2:
            assert ProtocolFeature.DEVICE_STATE in fe.protocol
            state = await fe.save_state()
            assert state == source.state
            await fe2.load_state(state)
            assert target.state == state
            with pytest.raises(vhost.VhostError):
                await fe2.load_state(b"bad")


async def test_status_byte() -> None:
    async with serving(Echo()) as (path, _), Frontend.connect(path) as fe:
        await fe.set_status(0xF)
        assert await fe.get_status() == 0xF


# Memory


async def test_memory_comes_and_goes_under_running_queues() -> None:
    async with serving(Echo()) as (path, _), Frontend.connect(path) as fe:
        await fe.start()
        for number in range(10):
            region = fe.memory.add(1 << 40, 2 << 20)
            await fe.share(region)
            data = b"hotplug %d" % number
            fe.memory.write(region.gpa, data)
            queue = fe.queues[0]
            answer = fe.memory.alloc(64)
            queue.ring.add([(region.gpa, len(data))], [(answer, 64)], 77)
            if queue.ring.publish():
                queue.kick()
            with trio.fail_after(60):
                while fe.memory.read(answer, len(data)) != data:
                    await trio.sleep(0.002)
            fe.memory.free(answer)
            assert await echo(fe, b"beside") == b"beside"
            await fe.unshare(region)
            fe.memory.remove(region)


async def test_a_mem_table_replaces_memory() -> None:
    protocol = ~ProtocolFeature.CONFIGURE_MEM_SLOTS
    async with serving(Echo()) as (path, _), Frontend.connect(path, protocol=protocol) as fe:
        await fe.start()
        assert await echo(fe, b"one") == b"one"
        fe.memory.add(1 << 40, 1 << 20)
        await fe.share_memory()
        assert await echo(fe, b"two") == b"two"


async def test_dirty_log_marks_what_is_written() -> None:
    async with serving(Echo()) as (path, _), Frontend.connect(path) as fe:
        await fe.start(native=False)
        await echo(fe, b"before")
        log = await fe.start_log()
        assert not log.pages()
        at = fe.memory.alloc(64, 4096)
        source = fe.memory.alloc(8)
        fe.memory.write(source, b"written!")
        queue = fe.queues[0]
        queue.ring.add([(source, 8)], [(at, 8)], 5)
        if queue.ring.publish():
            queue.kick()
        with trio.fail_after(60):
            while fe.memory.read(at, 8) != b"written!" or not log.is_dirty(queue.ring.used):
                await trio.sleep(0.002)
        assert log.is_dirty(at, 8)
        assert not log.is_dirty(source + (1 << 20))
        await fe.stop_log()
        await trio.sleep(0.02)
        log.clear()
        await echo(fe, b"after")
        assert not log.pages()


async def test_a_truncated_memory_file_ends_that_guest_only(caplog) -> None:
    async with serving(Echo()) as (path, server):
        await server.listen(Echo(), path + "2")
        async with Frontend.connect(path) as fe, Frontend.connect(path + "2") as other:
            await fe.start(native=False)
            await other.start()
            extra = fe.memory.add(1 << 40, 1 << 20)
            await fe.share(extra)
            queue = fe.queues[0]
            queue.ring.add([(extra.gpa, 64)], [(fe.memory.alloc(64), 64)], 1)
            os.ftruncate(extra.fd, 0)
            queue.ring.publish()
            queue.kick()
            await trio.sleep(0.05)
            queue.kick()
            with trio.fail_after(60):
                await fe.link.gone.wait()
            assert await echo(other, b"alive") == b"alive"
    assert "truncated a memory file" in caplog.text
    caplog.clear()


# Inflight


@both_layouts
async def test_requests_of_a_dead_back_end_are_replayed_once_in_order(packed: bool, caplog) -> None:
    """The first server gives up on a device that never finishes; the second one inherits the inflight region."""
    with vhost.frontend.Memory(16 << 20) as memory:
        dead, device = Echo(), Echo()
        async with serving(dead, grace=0.01) as (path, _), Frontend.connect(path, memory=memory) as fe:
            await fe.start(size=16, packed=packed, queues=0)
            region = await fe.get_inflight(1, 16)
            await fe.set_inflight(region)
            queue = fe.make_queue(0, 16, serve=False, native=False)
            await fe.start_queues()
            # Two come and go first, so that the replay does not begin at the beginning.
            for number in range(7):
                out = memory.alloc(8)
                memory.write(out, b"number %d" % number)
                queue.ring.add([(out, 8)], [(memory.alloc(8), 8)], number)
                if number == 2:
                    queue.ring.publish()
                    queue.kick()
                    with trio.fail_after(60):
                        while len(dead.served) < 3:
                            await trio.sleep(0.002)
                    dead.shut()
            queue.ring.publish()
            queue.kick()
            await dead.until_taken(7)
            base = queue.ring.base() if packed else 3
        assert "4 requests are in flight" in caplog.text
        caplog.clear()
        with region.fd:
            async with serving(device) as (path, _), Frontend.connect(path, memory=memory) as fe:
                await fe.start(size=16, packed=packed, queues=0)
                await fe.set_inflight(region)
                queue.kick_fd, queue.call_fd, queue.err_fd = (os.eventfd(0, os.EFD_NONBLOCK) for _ in range(3))
                queue.started = False
                queue.ring.base = lambda: base  # type: ignore[method-assign]
                fe.queues[0] = queue
                await fe.start_queues({0: base})
                with trio.fail_after(60):
                    while len(device.served) < 4:
                        await trio.sleep(0.002)
                await trio.sleep(0.02)
                assert device.order == [b"number %d" % number for number in range(3, 7)]


# The end


async def test_cancelling_drains() -> None:
    device = Echo()
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            ready = trio.Event()
            answered = []

            async def server() -> None:
                async with serving(device) as (path, _):
                    nursery.start_soon(client, path)
                    await ready.wait()
                    await trio.sleep_forever()

            async def client(path: str) -> None:
                with trio.CancelScope(shield=True):
                    async with Frontend.connect(path) as fe:
                        await fe.start()
                        device.shut()
                        async with trio.open_nursery() as inner:

                            async def request() -> None:
                                answered.append(await echo(fe, b"last words"))

                            inner.start_soon(request)
                            await device.until_taken(1)
                            scope.cancel()
                            await trio.sleep(0.1)
                            device.gate.set()

            nursery.start_soon(server)
    assert device.served == [b"last words"]


async def test_grace_is_bounded(caplog) -> None:
    device = Echo()
    start = trio.current_time()
    async with trio.open_nursery() as nursery, serving(device, grace=0.2) as (path, _):

        async def client() -> None:
            async with Frontend.connect(path) as fe:
                await fe.start()
                device.shut()
                with pytest.raises(vhost.VhostError):
                    await echo(fe, b"never")

        nursery.start_soon(client)
        await device.until_taken(1)
    assert 0.2 <= trio.current_time() - start < 4.5  # which is less than if nothing is said
    assert "1 requests are in flight" in caplog.text
    caplog.clear()


# Sockets


async def test_stale_socket_file_is_replaced(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(path)
    async with vhost.open_server() as server:
        await server.listen(Echo(), path)
        assert os.stat(path).st_mode & 0o777 == 0o600
        async with Frontend.connect(path) as fe:
            await fe.start()
            assert await echo(fe, b"x") == b"x"
    assert not os.path.exists(path)


async def test_users_mistakes_get_a_sentence(tmp_path: Path, no_socket) -> None:
    async with vhost.open_server() as server:
        path = str(tmp_path / "s")
        await server.listen(Echo(), path)
        with pytest.raises(vhost.SocketError, match="another program is listening"):
            await server.listen(Echo(), path)
        (tmp_path / "file").write_text("precious")
        with pytest.raises(vhost.SocketError, match="a file that is no socket is in the way"):
            await server.listen(Echo(), str(tmp_path / "file"))
        assert (tmp_path / "file").read_text() == "precious"
        with pytest.raises(vhost.SocketError, match="does not exist; create it"):
            await server.listen(Echo(), str(tmp_path / "no" / "s"))
        with pytest.raises(vhost.SocketError, match="too long"):
            await server.listen(Echo(), str(tmp_path / ("x" * 120)))
        with pytest.raises(vhost.SocketError, match="is not open"):
            await server.serve_fd(Echo(), 999)
        with pytest.raises(vhost.SocketError, match="not a socket"):
            await server.serve_fd(Echo(), no_socket.fileno())
        with pytest.raises(ValueError, match="two devices are called"):
            await server.listen(Echo(), path + "2", name="echo")
        async with Frontend.connect(path) as fe:
            await fe.start()
            assert await echo(fe, b"unharmed") == b"unharmed"


async def test_serve_fd_of_a_connected_socket_ends_with_it() -> None:
    ours, theirs = socket.socketpair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(vhost.serve_fd, Echo(), theirs.detach())
        async with Frontend.connect(ours, personality=QEMU) as fe:
            await fe.start()
            assert await echo(fe, b"x") == b"x"


async def test_serve_fd_of_a_listening_socket(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(path)
        sock.listen()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(vhost.serve_fd, Echo(), os.dup(sock.fileno()))
            for _ in range(2):
                async with Frontend.connect(path) as fe:
                    await fe.start()
                    assert await echo(fe, b"x") == b"x"
            nursery.cancel_scope.cancel()


async def test_client_mode_connects_again(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    async with vhost.open_server() as server:
        await server.connect(Echo(), path)
        for _ in range(2):
            with trio.fail_after(60):
                async with Frontend.accept(path) as fe:
                    await fe.start()
                    assert await echo(fe, b"x") == b"x"


async def test_rings_beyond_the_last_are_refused_in_words(caplog) -> None:
    async with serving(Echo()) as (path, _), Frontend.connect(path) as fe:
        with pytest.raises(vhost.VhostError):
            await fe.send(F.SET_VRING_NUM, VringState(2, 64))
        await fe.start(queues=2)
        assert await echo(fe, b"x") == b"x"
    assert "ring 2 does not exist, this device has 2" in caplog.text
    caplog.clear()
