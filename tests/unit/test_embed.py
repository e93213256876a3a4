"""A device in a VMM's own process: memory and eventfds, no socket."""

from __future__ import annotations

import mmap
import os

import pytest
import trio
from serverlib import Echo

import ring
import vhost
from vhost.constants import VirtioFeature

MEMORY = 4 << 20
DATA = 1 << 20


class Machine:
    """Guest memory, eventfds, and a driver ring in it."""

    def __init__(self, features: int, size: int = 16) -> None:
        self.memfd = os.memfd_create("guest", os.MFD_CLOEXEC)
        os.ftruncate(self.memfd, MEMORY)
        self.memory = mmap.mmap(self.memfd, MEMORY)
        self.size = size
        self.ring = ring.Driver(self.memory, gpa=0, size=size, features=features)
        self.kick, self.call, self.err = (os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC) for _ in range(3))

    async def attach(self, device: vhost.EmbeddedDevice, index: int = 0, base: int | None = None) -> None:
        await device.start_queue(
            index,
            size=self.size,
            desc=self.ring.desc,
            avail=self.ring.avail,
            used=self.ring.used,
            kick=self.kick,
            call=self.call,
            err=self.err,
            base=base,
        )

    async def echo(self, data: bytes) -> bytes:
        self.memory[DATA : DATA + len(data)] = data
        self.ring.add([(DATA, len(data))], [(DATA + 4096, len(data))])
        if self.ring.publish():
            os.eventfd_write(self.kick, 1)
        with trio.fail_after(60):
            while not (used := self.ring.poll()):
                if not self.ring.calls_on():
                    await trio.lowlevel.wait_readable(self.call)
                    os.eventfd_read(self.call)
        assert used[0].length == len(data)
        return self.memory[DATA + 4096 : DATA + 4096 + len(data)]

    def close(self) -> None:
        self.ring.close()
        self.memory.close()
        for fd in (self.memfd, self.kick, self.call, self.err):
            os.close(fd)


@pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
async def test_a_device_in_process(packed: bool) -> None:
    async with vhost.open_embedder() as embedder, embedder.attach(Echo()) as device:
        features = device.offered_features
        assert not features & VirtioFeature.PROTOCOL_FEATURES
        if not packed:
            features &= ~VirtioFeature.RING_PACKED
        await device.set_features(features)
        machine = Machine(features)
        await device.add_memory(machine.memfd, gpa=0, size=MEMORY)
        await machine.attach(device)
        for number in range(50):
            assert await machine.echo(b"number %d" % number) == b"number %d" % number
        base = await device.stop_queue(0)
        await machine.attach(device, base=base)
        assert await machine.echo(b"again") == b"again"
        await device.reset()
        machine.close()


async def test_two_guests_on_shared_workers() -> None:
    one, two = Echo(), Echo()
    async with vhost.open_embedder() as embedder, embedder.attach(one) as a, embedder.attach(two) as b:
        machines = []
        for device in (a, b):
            await device.set_features(VirtioFeature.VERSION_1)
            machine = Machine(VirtioFeature.VERSION_1)
            await device.add_memory(machine.memfd, gpa=0, size=MEMORY)
            await machine.attach(device)
            machines.append(machine)
        assert await machines[0].echo(b"one") == b"one"
        assert await machines[1].echo(b"two") == b"two"
        assert (one.served, two.served) == ([b"one"], [b"two"])
        for machine in machines:
            machine.close()


async def test_configuration_space_and_its_changes() -> None:
    echo, told = Echo(), []
    async with vhost.open_embedder() as embedder:
        async with embedder.attach(echo, config_changed=lambda: told.append(True)) as device:
            assert device.read_config(6, 4) == b"\x07\x08\0\0"
            device.write_config(4, b"\xff")
            assert echo.space[4] == 0xFF
            with pytest.raises(ValueError, match="not inside"):
                device.write_config(6, b"123")
            with pytest.raises(ValueError, match="first byte is read-only"):
                device.write_config(0, b"1")
            echo.config_changed()
            assert told == [True]
        echo.config_changed()
        assert told == [True], "nobody is connected any more"


async def test_misuse_is_told_at_the_call() -> None:
    async with vhost.open_embedder() as embedder, embedder.attach(Echo()) as device:
        machine = Machine(VirtioFeature.VERSION_1)
        with pytest.raises(RuntimeError, match="set_features comes first"):
            await machine.attach(device)
        with pytest.raises(ValueError, match="were not offered"):
            await device.set_features(1 << 40)
        await device.set_features(VirtioFeature.VERSION_1)
        with pytest.raises(ring.RingError):
            await machine.attach(device)
        await device.add_memory(machine.memfd, gpa=0, size=MEMORY)
        with pytest.raises(ring.RingError, match="shorter"):
            await device.add_memory(machine.memfd, gpa=1 << 40, size=MEMORY * 2)
        with pytest.raises(ValueError, match="does not exist"):
            await machine.attach(device, index=2)
        await machine.attach(device)
        with pytest.raises(RuntimeError, match="runs already"):
            await machine.attach(device)
        with pytest.raises(RuntimeError, match="stop the queues"):
            await device.set_features(0)
        machine.close()


async def test_memory_that_goes_takes_its_ring_along(caplog) -> None:
    async with vhost.open_embedder() as embedder, embedder.attach(Echo()) as device:
        await device.set_features(VirtioFeature.VERSION_1)
        machine = Machine(VirtioFeature.VERSION_1)
        await device.add_memory(machine.memfd, gpa=0, size=MEMORY)
        await machine.attach(device)
        assert device.queue_error(0) is None
        await device.remove_memory(gpa=0, size=MEMORY)
        with trio.fail_after(60):
            await trio.lowlevel.wait_readable(machine.err)
        assert device.queue_error(0) is not None
        await trio.sleep(0.02)
        machine.close()
    caplog.clear()
