"""Disks at NBD servers: nbdkit and qemu-nbd, as they are, slow and faulty."""

from __future__ import annotations

import itertools
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import trio
from blkrig import (
    DISCARD,
    FLUSH,
    IN,
    IOERR,
    OK,
    OUT,
    WRITE_ZEROES,
    header,
    rig,
    segment,
)
from guestlib.process import FOREIGN
from nbdlib import SIZE, Server, pattern, qcow2_image, raw_image

pytest.importorskip("devices.blk._nbd", reason="built without libnbd")

from devices.blk import Blk
from devices.blk.stores import StoreError, parse_store
from devices.blk.stores.nbd import NbdStore


@pytest.fixture(params=["nbdkit", "qemu_nbd"])
def server(request, tmp_path) -> Server:
    """Each of both."""
    start = request.getfixturevalue(request.param)
    if request.param == "nbdkit":
        return start("memory", str(SIZE))
    return start(qcow2_image(tmp_path), "-f", "qcow2", "--discard=unmap")


# --- data ---------------------------------------------------------------------------------------------------------


async def test_reads_what_it_wrote(server):
    with NbdStore.open(server.uri) as store:
        assert (store.size, store.read_only) == (SIZE, False)
        async with rig(Blk(store)) as r:
            q = r.queues[0]
            blocks = [(8 * i, pattern(4096, i)) for i in range(50)] + [(4096, pattern(1 << 20, 99))]
            for sector, data in blocks:
                await q.write(sector, data)
            assert await q.status(FLUSH) == OK
            for sector, data in blocks:
                assert await q.read(sector, len(data)) == data
        assert store.status.up
        assert store.status.losses == 0


@pytest.mark.parametrize(
    "pieces",
    [[512] * 40, [4096] * 60, [1] * 8 + [504] + [512], [100_000, 31_072], [65536] * 8, [512, 65536, 512, 65536]],
    ids=["small", "pages", "bytes", "two", "large", "mixed"],
)
async def test_any_pieces(server, pieces):
    total = sum(pieces)
    assert total % 512 == 0
    data = pattern(total, 5)
    edges = list(itertools.accumulate(pieces, initial=0))
    with NbdStore.open(server.uri) as store:
        async with rig(Blk(store)) as r:
            q = r.queues[0]
            cut = [data[a:b] for a, b in itertools.pairwise(edges)]
            used, back = await q.raw([header(OUT, 3), *cut], [1], indirect=True, align=1)
            assert (used, back) == (1, [b"\0"])
            used, back = await q.raw([header(IN, 3)], [*pieces, 1], indirect=True, align=1)
            assert used == total + 1
            assert b"".join(back) == data + b"\0"


async def test_request_larger_than_one_buffer(nbdkit):
    """Half a MiB of small pieces is one command; what is more takes another round."""
    server = nbdkit("memory", str(SIZE))
    with NbdStore.open(server.uri) as store:
        async with rig(Blk(store)) as r:
            q = r.queues[0]
            pieces = [15 * 1024] * 60
            data = pattern(sum(pieces), 8)
            cut = [data[i : i + 15 * 1024] for i in range(0, len(data), 15 * 1024)]
            before = store.status.commands
            assert (await q.raw([header(OUT, 1), *cut], [1], indirect=True))[1] == [b"\0"]
            assert store.status.commands == before + 2
            used, back = await q.raw([header(IN, 1)], [*pieces, 1], indirect=True)
            assert used == len(data) + 1
            assert b"".join(back[:-1]) == data


async def test_zeroes_and_discards(server):
    with NbdStore.open(server.uri) as store:
        disk = Blk(store)
        async with rig(disk) as r:
            q = r.queues[0]
            for kind, flags in ((WRITE_ZEROES, 0), (WRITE_ZEROES, 1), (DISCARD, 0)):
                await q.write(0, b"\xff" * (256 << 10))
                assert await q.status(kind, data=segment(0, 256, flags) + segment(384, 64, flags)) == OK
                expected = bytes(128 << 10) + b"\xff" * (64 << 10) + bytes(32 << 10) + b"\xff" * (32 << 10)
                got = await q.read(0, 256 << 10)
                if kind == WRITE_ZEROES:
                    assert got == expected
                else:  # a hint: what was discarded is the old data or zeros
                    assert got[128 << 10 : 192 << 10] == b"\xff" * (64 << 10)
            assert await q.status(WRITE_ZEROES, data=segment(0, SIZE // 512)) == OK
            assert await q.read(384, 64 << 10) == bytes(64 << 10)


async def test_zeroes_where_the_server_has_none(nbdkit):
    """Not offered; a driver that asks all the same is refused, and one that knows gets zeros written."""
    server = nbdkit("--filter=nozero", "memory", str(SIZE))
    with NbdStore.open(server.uri) as store:
        disk = Blk(store)
        async with rig(disk) as r:
            disk.features_acked(0x1FFFF)
            q = r.queues[0]
            await q.write(0, b"\xff" * 8192)
            assert await q.status(WRITE_ZEROES, data=segment(1, 8)) == OK
            assert await q.read(0, 8192) == b"\xff" * 512 + bytes(4096) + b"\xff" * (8192 - 4608)


async def test_qcow2_holds_what_the_guest_wrote(tmp_path, qemu_nbd):
    image = qcow2_image(tmp_path)
    server = qemu_nbd(image, "-f", "qcow2")
    wanted = bytearray(SIZE)
    with NbdStore.open(server.uri) as store:
        async with rig(Blk(store)) as r:
            chosen = random.Random(1)
            for i in range(100):
                at, data = chosen.randrange(SIZE // 512 - 64), pattern(512 * chosen.randrange(1, 64), i)
                await r.queues[0].write(at, data)
                wanted[512 * at : 512 * at + len(data)] = data
            assert await r.queues[0].status(FLUSH) == OK
    server.stop(signal.SIGTERM)
    raw = tmp_path / "back.img"
    await trio.run_process(["qemu-img", "convert", "-f", "qcow2", "-O", "raw", image, raw], env=FOREIGN)
    assert raw.read_bytes() == bytes(wanted)
    await trio.run_process(["qemu-img", "check", "-q", image], env=FOREIGN)


# --- durability ---------------------------------------------------------------------------------------------------


def commands_in(log: Path) -> list[str]:
    """Names of the commands that nbdkit's log filter has seen begin, with `+fua` where it was set."""
    begun = [line for line in log.read_text().splitlines() if "id=" in line and "return=" not in line]
    names = ("Read", "Write", "Flush", "Trim", "Zero")
    return [name + ("+fua" if "fua=1" in line else "") for line in begun for name in line.split() if name in names]


@pytest.mark.parametrize(
    ("writeback", "fua", "wanted"),
    [
        (True, "native", ["Write"]),
        (False, "native", ["Write+fua"]),
        (False, "none", ["Write", "Flush"]),
    ],
)
async def test_write_through(tmp_path, nbdkit, writeback, fua, wanted):
    log = tmp_path / "log"
    # the log stands in front of what takes FUA away (what the fua filter does unless told otherwise)
    filters = ["--filter=log", *(["--filter=fua"] if fua == "none" else [])]
    server = nbdkit(*filters, "file", f"file={raw_image(tmp_path)}", f"logfile={log}")
    with NbdStore.open(server.uri, connections=1) as store:
        assert store.can_fua == (fua != "none")
        disk = Blk(store, writeback=writeback)
        async with rig(disk) as r:
            before = len(commands_in(log))
            await r.queues[0].write(0, bytes(4096))
            await r.queues[0].write(8, bytes(4096))
            assert commands_in(log)[before:] == wanted * 2


async def test_quiesce_makes_it_durable(tmp_path, nbdkit):
    log = tmp_path / "log"
    server = nbdkit("--filter=log", "memory", str(SIZE), f"logfile={log}")
    with NbdStore.open(server.uri) as store:
        disk = Blk(store)
        async with rig(disk) as r:
            await r.queues[0].write(0, bytes(4096))
            await disk.quiesce()
            assert commands_in(log)[-2:] == ["Write", "Flush"]
            await disk.resume()


# --- what the server says -----------------------------------------------------------------------------------------


async def test_block_sizes_are_kept(nbdkit):
    """A server that refuses anything but whole blocks, and more than 64 KiB at once, is never asked for it."""
    server = nbdkit(
        "--filter=blocksize-policy",
        "memory",
        str(SIZE),
        "blocksize-minimum=4096",
        "blocksize-preferred=16384",
        "blocksize-maximum=65536",
        "blocksize-error-policy=error",
    )
    with NbdStore.open(server.uri) as store:
        assert store.topology.logical == 4096
        with pytest.raises(StoreError, match="whole blocks of 4096"):
            Blk(store, blk_size=512)
        disk = Blk(store)
        assert disk.blk_size == 4096
        async with rig(disk) as r:
            q = r.queues[0]
            assert await q.status(IN, 1, length=4096) == IOERR
            data = pattern(1 << 20, 3)
            await q.write(8, data)
            assert await q.read(8, 1 << 20) == data
            # pieces that are large, but no multiple of a block
            pieces = [40_000, 60_000, 20_000, 2_880]
            edges = list(itertools.accumulate(pieces, initial=0))
            cut = [data[a:b] for a, b in itertools.pairwise(edges)]
            assert (await q.raw([header(OUT, 4096), *cut], [1], align=1))[1] == [b"\0"]
            used, back = await q.raw([header(IN, 4096)], [*pieces, 1], align=1)
            assert b"".join(back[:-1]) == data[: sum(pieces)]
            assert used == sum(pieces) + 1


async def test_errors_of_the_server(tmp_path, nbdkit):
    broken = tmp_path / "broken"
    server = nbdkit("--filter=error", "memory", str(SIZE), "error=ENOSPC", "error-rate=100%", f"error-file={broken}")
    with NbdStore.open(server.uri) as store:
        disk = Blk(store)
        async with rig(disk) as r:
            q = r.queues[0]
            await q.write(0, b"x" * 4096)
            broken.touch()
            assert await q.status(OUT, 0, bytes(4096)) == IOERR
            assert await q.status(IN, 0, length=4096) == IOERR
            assert await q.status(DISCARD, data=segment(0, 8)) == IOERR
            # one piece of several fails as a whole
            assert (await q.raw([header(OUT), bytes(65536), bytes(65536)], [1]))[1] == [bytes([IOERR])]
            broken.unlink()
            assert await q.read(0, 4096) == b"x" * 4096
        assert store.status.losses == 0
        assert disk.stats.as_dict()["ops"]["write"]["errors"] == 2


async def test_many_in_flight_on_several_connections(nbdkit):
    server = nbdkit("--filter=delay", "memory", str(SIZE), "rdelay=100ms", "wdelay=100ms")
    with NbdStore.open(server.uri, connections=3) as store:
        assert store.connections == 3
        async with rig(Blk(store, num_queues=2), queues=2) as r:
            started = time.monotonic()
            tokens = []
            for i in range(15):
                for q in r.queues:
                    sector = 1000 * q.vq.index + 8 * i
                    tokens.append(
                        (q, q.send([q.put(header(OUT, sector)), q.put(pattern(4096, sector))], [q.put(b"\xee")], False))
                    )
            for q in r.queues:
                q.publish()
            for q, token in tokens:
                await q.wait(token)
            assert time.monotonic() - started < 15 * 2 * 0.1  # not one after the other
            for i in range(15):
                for q in r.queues:
                    sector = 1000 * q.vq.index + 8 * i
                    assert await q.read(sector, 4096) == pattern(4096, sector)


async def test_more_small_requests_than_buffers(nbdkit):
    server = nbdkit("--filter=delay", "memory", str(SIZE), "wdelay=5ms")
    with NbdStore.open(server.uri) as store:
        async with rig(Blk(store), size=256) as r:
            q = r.queues[0]
            tokens = []
            for i in range(60):
                data = pattern(4096, i)
                out = [q.put(header(OUT, 8 * i)), *(q.put(data[a : a + 512]) for a in range(0, 4096, 512))]
                tokens.append(q.send(out, [q.put(b"\xee")], True))
            q.publish()
            for token in tokens:
                await q.wait(token)
            for i in range(60):
                assert await q.read(8 * i, 4096) == pattern(4096, i)
        assert store.status.bounced >= 60


# --- what users are told ------------------------------------------------------------------------------------------


def test_read_only_export(tmp_path, nbdkit):
    server = nbdkit("-r", "memory", str(SIZE))
    with pytest.raises(StoreError, match="exports it read-only; serve it with --read-only"):
        NbdStore.open(server.uri)
    with NbdStore.open(server.uri, read_only=True) as store:
        assert store.read_only
        assert Blk(store).read_only


async def test_read_only_by_wish(nbdkit):
    server = nbdkit("memory", str(SIZE))
    with NbdStore.open(server.uri, read_only=True) as store:
        async with rig(Blk(store)) as r:
            assert await r.queues[0].status(OUT, 0, bytes(512)) == IOERR
            assert await r.queues[0].read(0, 512) == bytes(512)


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("nbd+unix:///?socket=/nonexistent/nbd", "nobody listens there; start the NBD server"),
        ("nbd://127.0.0.1:1/disk", "nobody listens there"),
        ("nbd+unix:///disk", "not the address of an NBD export .*socket="),
        ("nbd://host.invalid/disk", "no connection .*host.invalid"),
    ],
)
def test_no_server(uri, words):
    with pytest.raises(StoreError, match=words):
        NbdStore.open(uri)


def test_no_such_export(tmp_path, qemu_nbd):
    server = qemu_nbd(raw_image(tmp_path), "-f", "raw")
    with pytest.raises(StoreError, match="the server has no export 'other one'"):
        NbdStore.open(server.uri.replace("/disk?", "/other%20one?"))


def test_server_that_does_not_answer(tmp_path):
    path = tmp_path / "dumb"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        with pytest.raises(StoreError, match=r"did not answer within 0\.3 s"):
            NbdStore.open(f"nbd+unix:///?socket={path}", connect_timeout=0.3)


def test_empty_export(nbdkit):
    server = nbdkit("null", "0")
    with pytest.raises(StoreError, match="the export has 0 bytes"):
        NbdStore.open(server.uri)


def test_tls(tmp_path, nbdkit):
    keys = tmp_path / "keys.psk"
    keys.write_text("alice:0123456789abcdef0123456789abcdef\n")
    server = nbdkit("--tls=require", f"--tls-psk={keys}", "memory", str(SIZE))
    with pytest.raises(StoreError, match="wants TLS; write nbds"):
        NbdStore.open(server.uri)
    uri = f"nbds+unix://alice@/?socket={server.path}&tls-psk-file={keys}"
    with parse_store(uri) as store:
        assert isinstance(store, NbdStore)
        assert store.tls
    plain = nbdkit("memory", str(SIZE), name="plain.sock")
    with pytest.raises(StoreError, match="has no TLS; write nbd"):
        NbdStore.open(uri.replace(str(server.path), str(plain.path)))


def test_arguments():
    with pytest.raises(ValueError, match="1 to 16"):
        NbdStore.open("nbd://127.0.0.1/", connections=17)
    with pytest.raises(StoreError, match="--direct"):
        parse_store("nbd://127.0.0.1/", direct=True)


def test_built_without_libnbd():
    """The sentence names the package."""
    code = (
        "import sys; sys.modules['devices.blk._nbd'] = None\n"
        "from devices.blk.stores import parse_store, StoreError\n"
        "try: parse_store('nbd://127.0.0.1/')\n"
        "except StoreError as exc: print(exc)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "libnbd-dev" in done.stdout
