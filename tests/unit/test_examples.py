"""Every example runs, does what it says, and ends when asked to."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from vhost import Frontend

EXAMPLES = Path(__file__).parents[2] / "examples"


def example(name: str, *arguments: object) -> list[str]:
    return [sys.executable, "-X", "dev", "-W", "error", str(EXAMPLES / name), *map(str, arguments)]


@asynccontextmanager
async def running(name: str, *arguments: object) -> AsyncIterator[trio.Process]:
    """An example as a process; it must have ended well by itself or by SIGTERM."""
    process = await trio.lowlevel.open_process(example(name, *arguments), stderr=subprocess.PIPE)
    assert process.stderr is not None
    try:
        yield process
        process.send_signal(signal.SIGTERM)
        with trio.fail_after(10):
            complaint = b"".join([part async for part in process.stderr])
            assert await process.wait() == 0, complaint.decode()
        assert not complaint, complaint.decode()
    finally:
        process.kill()
        await process.stderr.aclose()


def test_every_example_is_here() -> None:
    tests = Path(__file__).read_text()
    for path in EXAMPLES.glob("*.py"):
        assert f'"{path.name}"' in tests, f"{path.name} is run by no test"


async def test_rng(tmp_path: Path) -> None:
    socket = tmp_path / "s"
    async with running("rng.py", socket), Frontend.connect(socket) as fe:
        await fe.start(size=64)
        length, (first, second) = await fe.queues[0].request([], [64, 1000])
        assert length == 1064
        assert len(set(second)) > 200
        assert first != second[:64]
    assert not socket.exists()


async def test_echo(tmp_path: Path) -> None:
    socket = tmp_path / "s"
    async with running("echo.py", socket), Frontend.connect(socket) as fe:
        await fe.start(queues=4, packed=True)
        for number in range(40):
            data = b"number %d" % number
            assert await fe.queues[number % 4].request([data], [100]) == (len(data), [data.ljust(100, b"\0")])


@pytest.mark.parametrize("packed", [False, True])
async def test_echo_in_bursts(tmp_path: Path, packed: bool) -> None:
    """Many requests in flight, answered by the batch, each with its own bytes."""
    socket, depth, size, total = tmp_path / "s", 32, 64, 5000
    async with running("echo.py", socket), Frontend.connect(socket) as fe:
        await fe.start(packed=packed, serve=False)
        queue = fe.queues[0]
        queue.ring.calls_off()
        places = [(fe.memory.alloc(size), fe.memory.alloc(size)) for _ in range(depth)]
        expected: dict[int, tuple[int, bytes]] = {}  # token: whose place, and what is to come back
        sent = 0

        def send(place: int) -> None:
            nonlocal sent
            out, in_ = places[place]
            data = b"%06d" % sent * 10
            fe.memory.write(out, data)
            queue.ring.add([(out, len(data))], [(in_, size)], sent)
            expected[sent] = place, data
            sent += 1

        for place in range(depth):
            send(place)
        with trio.fail_after(20):
            while expected:
                if queue.ring.publish():
                    queue.kick()
                for used in queue.ring.poll():
                    place, data = expected.pop(used.token)
                    assert used.length == len(data)
                    assert fe.memory.read(places[place][1], len(data)) == data
                    if sent < total:
                        send(place)
                await trio.lowlevel.checkpoint()
        assert sent == total
        assert queue.kicks < total / 20


async def test_second_signal_ends_at_once(tmp_path: Path) -> None:
    """A request that never ends holds up the first signal for the grace time, and the second not at all."""
    socket = tmp_path / "s"
    script = tmp_path / "stuck.py"
    script.write_text(
        "import trio, vhost, sys\n"
        "class Stuck(vhost.Device):\n"
        "    device_id = 1\n"
        "    async def run(self, queue):\n"
        "        chains = []\n"
        "        async for chain in queue:\n"
        "            chains.append(chain)\n"
        "trio.run(vhost.run_until_signal, vhost.serve, Stuck(), sys.argv[1])\n"
    )
    process = await trio.lowlevel.open_process([sys.executable, str(script), str(socket)], stderr=subprocess.DEVNULL)
    try:
        async with Frontend.connect(socket, timeout=20) as fe:
            await fe.start()
            fe.queues[0].ring.add([], [(fe.memory.alloc(64), 64)], 1)
            fe.queues[0].ring.publish()
            fe.queues[0].kick()
            await trio.sleep(0.2)
            start = trio.current_time()
            process.send_signal(signal.SIGTERM)
            await trio.sleep(0.3)
            assert process.returncode is None
            process.send_signal(signal.SIGTERM)
            with trio.fail_after(3):
                assert await process.wait() == 1
            assert trio.current_time() - start < 3
    finally:
        process.kill()
        await process.wait()


async def test_embed_blk(tmp_path: Path) -> None:
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(1 << 20))
    done = await trio.run_process(example("embed_blk.py", image), capture_stdout=True)
    lines = done.stdout.decode().splitlines()
    assert lines == ["capacity: 1048576 bytes", "write: ok", "read: written without a socket"]
    assert image.read_bytes().startswith(b"written without a socket")


async def test_serve_socketpair(tmp_path: Path) -> None:
    image = tmp_path / "disk.img"
    image.write_bytes(b"boot".ljust(1 << 20, b"\0"))
    vmm = tmp_path / "vmm.py"
    vmm.write_text(
        "import socket, struct, sys, trio\n"
        "from vhost import Frontend\n"
        "async def main():\n"
        "    async with Frontend.connect(int(sys.argv[1])) as fe:\n"
        "        await fe.start()\n"
        "        header = struct.pack('<IIQ', 0, 0, 0)\n"
        "        _, (data, status) = await fe.queues[0].request([header], [512, 1])\n"
        "        assert status == b'\\0' and data.startswith(b'boot')\n"
        "trio.run(main)\n"
        "sys.exit(7)\n"
    )
    done = await trio.run_process(example("serve_socketpair.py", image, sys.executable, vmm, "{fd}"), check=False)
    assert done.returncode == 7
    assert os.path.getsize(image) == 1 << 20
