"""Files as stores: io_uring and blocking calls, O_DIRECT with any buffer, holes, ends, locks, sizes."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from blkrig import (
    ALL_BLK,
    DISCARD,
    FLUSH,
    IN,
    INDIRECT,
    IOERR,
    OK,
    OUT,
    VERSION_1,
    WRITE_ZEROES,
    rig,
    segment,
)

from devices.blk import Blk, BlkFeature, FaultStore, FileStore, StoreError, parse_store

SIZE = 4 << 20
SECTORS = SIZE // 512


def contents(path: Path) -> bytes:
    return path.read_bytes()


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "disk.img"
    path.write_bytes(os.urandom(SIZE))
    return path


def open_direct(path: Path) -> FileStore:
    try:
        return FileStore.open(path, direct=True)
    except StoreError as exc:
        pytest.skip(str(exc))


@pytest.fixture(params=["at-once", "uring", "blocking", "direct", "direct-blocking"])
def how(request, image):
    """An open store on the image, and options of the worker."""
    direct = request.param.startswith("direct")
    store = open_direct(image) if direct else FileStore.open(image, at_once=request.param == "at-once")
    with store:
        yield store, {"uring_entries": 0 if "blocking" in request.param else 64}


async def test_reads_and_writes_what_the_file_holds(how, image):
    store, options = how
    before = contents(image)
    async with rig(Blk(store), **options) as r:
        q = r.queues[0]
        for sector, length in ((0, 512), (8, 4096), (100, 65536), (SECTORS - 1, 512), (7, 300 * 512)):
            assert await q.read(sector, length, align=4096) == before[sector * 512 :][:length]
        data = os.urandom(65536)
        await q.write(16, data, align=4096)
        await q.write(SECTORS - 8, data[:4096], align=4096)
        assert await q.status(FLUSH) == OK
    now = contents(image)
    assert now[16 * 512 :][:65536] == data
    assert now[-4096:] == data[:4096]
    assert now[: 16 * 512] == before[: 16 * 512]


@pytest.mark.parametrize("skew", [1, 2, 511, 513])
async def test_buffers_anywhere(how, image, skew):
    """O_DIRECT wants aligned buffers; a guest may give any."""
    store, options = how
    before = contents(image)
    async with rig(Blk(store), **options) as r:
        q = r.queues[0]
        for length in (512, 8192, 600 * 1024):
            assert await q.read(24, length, align=4096, skew=skew) == before[24 * 512 :][:length]
        data = os.urandom(600 * 1024)
        await q.write(40, data, align=4096, skew=skew)
        pieces = [100, 412, 1, 511, 1024]
        used, back = await q.raw([b"\0" * 16], [*pieces, 1], align=4096, skew=skew)
        assert (used, b"".join(back)) == (2049, before[:2048] + b"\0")
        bounced = r.disk.stats.bounced
    assert contents(image)[40 * 512 :][: len(data)] == data
    assert (bounced > 0) == (store.direct and skew != 512)


async def test_more_bounces_than_buffers(image):
    """Requests wait for a buffer, none fails."""
    with open_direct(image) as store:
        async with rig(Blk(store), ring_features=INDIRECT | VERSION_1, size=64) as r:
            q = r.queues[0]
            before = contents(image)
            asked = {}
            for i in range(40):
                at = q.put(b"\xee" * 4096, 4096, 1)
                head = q.put(bytes(8) + (8 * i).to_bytes(8, "little"))
                asked[q.send([head], [at, q.put(b"\xee")], True)] = (i, at[0])
            q.publish()
            for token, (i, at) in asked.items():
                assert await q.wait(token) == 4097
                assert r.map[at : at + 4096] == before[4096 * i :][:4096]
            assert r.disk.stats.waits > 0


def drop_cache(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def takes_nowait(path: Path) -> bool:
    with path.open("rb") as file:
        try:
            return os.preadv(file.fileno(), [bytearray(512)], 0, os.RWF_NOWAIT) == 512
        except OSError:
            return False


async def test_what_is_cached_is_read_at_once(image):
    """What is not goes to io_uring, and after a few of those it is not even tried."""
    before = contents(image)
    if not takes_nowait(image):
        pytest.skip("the file system of temporary files cannot say that it would wait")
    with FileStore.open(image) as store:
        async with rig(Blk(store)) as r:
            q = r.queues[0]
            for sector in range(8):
                assert await q.read(sector, 4096) == before[512 * sector :][:4096]
            assert r.disk.stats.at_once == 8
            assert r.worker.stats.submits == 0
            assert await q.read(0, 128 * 1024) == before[: 128 * 1024]
            assert r.disk.stats.at_once == 8, "long ones are not"
            for turn in range(12):
                drop_cache(image)
                assert await q.read(4096, 4096) == before[512 * 4096 :][:4096]
                assert r.worker.stats.submits >= turn + 2
            assert r.disk.stats.at_once == 8
            for _ in range(40):
                assert await q.read(4096, 4096) == before[512 * 4096 :][:4096]
            assert 8 < r.disk.stats.at_once < 48, "tried again after a while"
            # where cached and not meet, and at the end of the file
            drop_cache(image)
            for sector in range(0, 2048, 56):
                assert await q.read(sector, 28672) == before[512 * sector :][:28672]
            os.truncate(image, 4096 + 700)
            assert await q.read(0, 16384) == before[: 4096 + 700] + bytes(16384 - 4796)


async def test_discard_and_write_zeroes(how, image):
    store, options = how
    async with rig(Blk(store), **options) as r:
        q = r.queues[0]
        blocks = os.stat(image).st_blocks
        assert await q.status(DISCARD, data=segment(0, 2048)) == OK
        assert os.stat(image).st_blocks <= blocks - 2048 + 8
        for flags in (0, 1):
            await q.write(4096, b"\xff" * 65536, align=4096)
            assert await q.status(WRITE_ZEROES, data=segment(4104, 16, flags)) == OK
            data = await q.read(4096, 65536, align=4096)
            assert data == b"\xff" * 4096 + bytes(8192) + b"\xff" * (65536 - 12288)
        assert os.stat(image).st_size == SIZE


@pytest.mark.skipif(not os.path.isdir("/dev/shm"), reason="needs a tmpfs, which has no FALLOC_FL_ZERO_RANGE")
async def test_zeros_are_written_where_the_file_system_cannot_make_them():
    path = Path(f"/dev/shm/vhostkit-test-{os.getpid()}")
    try:
        path.write_bytes(b"\xff" * SIZE)
        with FileStore.open(path) as store:
            async with rig(Blk(store)) as r:
                assert await r.queues[0].status(WRITE_ZEROES, data=segment(8, 2048 + 24)) == OK
        assert path.read_bytes() == b"\xff" * 4096 + bytes(2072 * 512) + b"\xff" * (SIZE - 4096 - 2072 * 512)
        assert os.stat(path).st_blocks == SIZE // 512  # not deallocated: the guest did not say unmap
    finally:
        path.unlink()


async def test_a_file_that_shrank_reads_as_zeros(how, image):
    store, options = how
    async with rig(Blk(store), **options) as r:
        os.truncate(image, 4096 + 700)
        kept = contents(image)
        got = await r.queues[0].read(0, 16384, align=4096)
        assert got == kept + bytes(16384 - len(kept))
        assert await r.queues[0].read(64, 4096, align=4096) == bytes(4096)


async def test_write_cache_switch(image):
    """The guest may switch its cache off if it asked for the switch; writing, discarding and zeroing go on."""
    with FileStore.open(image) as inner, FaultStore(inner) as store:
        disk = Blk(store)
        async with rig(disk, features=ALL_BLK) as r:
            assert disk.config()[32] == 1
            disk.set_config(32, b"\0")
            assert disk.config()[32] == 0
            assert await r.queues[0].status(OUT, 0, bytes(4096)) == OK
            assert await r.queues[0].status(DISCARD, data=segment(0, 8)) == OK
            assert store.seen == 3, "a discard is followed by a flush before it is complete"
            assert await r.queues[0].status(WRITE_ZEROES, data=segment(0, 8)) == OK
            with pytest.raises(ValueError, match="only the write cache"):
                disk.set_config(32, b"\2")
            with pytest.raises(ValueError, match="only the write cache"):
                disk.set_config(0, b"\0")
        disk.features_acked(BlkFeature.FLUSH)
        with pytest.raises(ValueError, match="was not negotiated"):
            disk.set_config(32, b"\0")


async def test_errors_of_the_store_are_ioerr_and_the_disk_lives(image):
    with FileStore.open(image) as inner, FaultStore(inner) as store:
        store.fail("read", "flush", every=2)
        async with rig(Blk(store)) as r:
            q = r.queues[0]
            assert [await q.status(IN, 0, length=512) for _ in range(4)] == [OK, IOERR, OK, IOERR]
            assert await q.status(OUT, 0, bytes(512)) == OK
            store.fail(every=0)
            assert await q.status(IN, 0, length=512) == OK
            store.fail("write", every=1, error=28)  # ENOSPC
            assert await q.status(OUT, 0, bytes(512)) == IOERR
            assert r.disk.stats.errors[0] == 2


async def test_many_at_once_against_a_model(how, image):
    """Random reads and writes with a full ring; the file is what a bytearray says it is."""
    store, options = how
    model = bytearray(contents(image))
    async with rig(Blk(store), size=64, ring_features=INDIRECT | VERSION_1, **options) as r:
        q = r.queues[0]
        for turn in range(15):
            asked = []
            for i in range(20):  # disjoint ranges: their order is nobody's business
                sector = (i * 200 + turn * 7) % (SECTORS - 128)
                length = 512 * (1 + (turn * 5 + i * 3) % 100)
                if (i + turn) % 2:
                    data = os.urandom(length)
                    model[sector * 512 : sector * 512 + length] = data
                    head = q.put(b"\1" + bytes(7) + sector.to_bytes(8, "little"))
                    asked.append((q.send([head, q.put(data, 4096, i % 3)], [q.put(b"\xee")], True), 0, b"", 1))
                else:
                    head = q.put(bytes(8) + sector.to_bytes(8, "little"))
                    at = q.put(b"\xee" * length, 512, i % 2)
                    want = bytes(model[sector * 512 : sector * 512 + length])
                    asked.append((q.send([head], [at, q.put(b"\xee")], True), at[0], want, length + 1))
            q.publish()
            for token, at, want, used in asked:
                assert await q.wait(token) == used
                assert r.map[at : at + len(want)] == want
    assert contents(image) == bytes(model)


# Opening


def test_what_cannot_be_a_disk_is_refused_in_words(tmp_path):
    with pytest.raises(StoreError, match="does not exist; make it first: truncate"):
        FileStore.open(tmp_path / "none.img")
    with pytest.raises(StoreError, match="is a directory"):
        FileStore.open(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(StoreError, match="neither a regular file nor a block device"):
        FileStore.open(tmp_path / "pipe")
    (tmp_path / "empty").touch()
    with pytest.raises(StoreError, match="is empty; make it as big"):
        FileStore.open(tmp_path / "empty")
    with pytest.raises(StoreError, match="neither a regular file nor a block device"):
        FileStore.open("/dev/null")


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("disk.img", "is not KIND:WHERE"),
        ("qcow2:disk.img", "no kind 'qcow2'"),
        ("memory:many", "is not a size"),
        ("memory:100", "cannot be the size of a disk"),
        ("null:0", "cannot be the size of a disk"),
        ("raw:", "is not KIND:WHERE"),
    ],
)
def test_bad_store_names(spec, words):
    with pytest.raises(StoreError, match=words):
        parse_store(spec)


def test_stores_by_name(image):
    for spec, size in (("memory:64M", 64 << 20), ("null:10G", 10 << 30), (f"raw:{image}", SIZE)):
        with parse_store(spec) as store:
            assert store.size == size
    with pytest.raises(StoreError, match="only raw files"):
        parse_store("memory:64M", direct=True)


async def test_raw_is_never_probed(image):
    """An image that looks like qcow2 is served byte for byte."""
    head = b"QFI\xfb" + bytes(3) + b"\3" + b"/etc/passwd".rjust(100, b"\0")
    image.write_bytes(head.ljust(SIZE, b"\0"))
    with FileStore.open(image) as store:
        assert store.size == SIZE
        async with rig(Blk(store)) as r:
            assert (await r.queues[0].read(0, 512)) == head.ljust(512, b"\0")


# Locks


def test_two_servers_do_not_share_an_image(image):
    with FileStore.open(image):
        with pytest.raises(StoreError, match="is being written by another program"):
            FileStore.open(image)
        with pytest.raises(StoreError, match="by another program"):
            FileStore.open(image, read_only=True)
        with pytest.raises(StoreError, match="by another program"):
            FileStore.open(image, lock="shared")
        FileStore.open(image, lock="off").close()
    with (
        FileStore.open(image, read_only=True),
        FileStore.open(image, read_only=True),
        pytest.raises(StoreError, match="by another program"),
    ):
        FileStore.open(image)
    with FileStore.open(image, lock="shared"), FileStore.open(image, lock="shared"):
        pass
    FileStore.open(image).close()


async def test_the_image_is_free_as_soon_as_the_store_is_closed(image):
    """Fixed files of io_uring hold the file too: they go with the queue."""
    for _ in range(3):
        with FileStore.open(image) as store:
            async with rig(Blk(store)) as r:
                await r.queues[0].read(0, 512)


needs_qemu_io = pytest.mark.skipif(shutil.which("qemu-io") is None, reason="needs qemu-io (package qemu-utils)")


def qemu_io(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["qemu-io", "-f", "raw", *args], capture_output=True, text=True, timeout=30, check=False)


@needs_qemu_io
def test_qemu_is_refused_while_we_use_an_image(image):
    with FileStore.open(image):
        done = qemu_io("-c", "read 0 512", str(image))
        assert done.returncode != 0
        assert "lock" in done.stderr, done.stderr
    with FileStore.open(image, read_only=True):
        assert qemu_io("-r", "-c", "read 0 512", str(image)).returncode == 0
        assert "lock" in qemu_io("-c", "write 0 512", str(image)).stderr
    assert qemu_io("-c", "write 0 512", str(image)).returncode == 0


@needs_qemu_io
def test_we_are_refused_while_qemu_uses_an_image(image):
    with subprocess.Popen(
        ["qemu-io", "-f", "raw", str(image)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as qemu:
        assert qemu.stdin
        assert qemu.stdout
        qemu.stdin.write("read 0 512\n")
        qemu.stdin.flush()
        while "read 512" not in qemu.stdout.readline():
            pass
        with pytest.raises(StoreError, match="by another program"):
            FileStore.open(image)
        qemu.stdin.write("quit\n")
        qemu.stdin.close()
        assert qemu.wait(10) == 0
    FileStore.open(image).close()


# Sizes


async def test_grow(image):
    with FileStore.open(image) as store:
        disk = Blk(store)
        async with rig(disk) as r:
            q = r.queues[0]
            assert await q.status(IN, SECTORS, length=512) == IOERR
            assert await disk.resize_to(2 * SIZE) == 2 * SIZE
            assert int.from_bytes(disk.config()[:8], "little") == 2 * SECTORS
            assert await q.read(SECTORS, 512) == bytes(512)
            os.truncate(image, 3 * SIZE)
            assert await disk.resize_to() == 3 * SIZE
            for bad, words in ((SIZE, "only grows"), (3 * SIZE + 100, "no multiple")):
                with pytest.raises(StoreError, match=words):
                    await disk.resize_to(bad)
            os.truncate(image, SIZE)
            with pytest.raises(StoreError, match="has shrunk"):
                await disk.resize_to()
            assert disk.size == 3 * SIZE


@pytest.fixture
def loop_device(image):
    if shutil.which("losetup") is None or os.geteuid() != 0:
        pytest.skip("needs losetup, and root")
    done = subprocess.run(["losetup", "-f", "--show", image], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no loop device: {done.stderr.strip()}")
    yield done.stdout.strip()
    subprocess.run(["losetup", "-d", done.stdout.strip()], check=True)


@pytest.mark.parametrize("direct", [False, True])
async def test_block_device(loop_device, direct):
    assert stat.S_ISBLK(os.stat(loop_device).st_mode)
    with FileStore.open(loop_device, direct=direct) as store:
        assert store.size == SIZE
        async with rig(Blk(store)) as r:
            q = r.queues[0]
            data = os.urandom(65536)
            await q.write(64, data, align=4096, skew=1)
            assert await q.read(64, 65536, align=4096) == data
            assert await q.status(FLUSH) == OK
            assert await q.status(WRITE_ZEROES, data=segment(64, 8)) == OK
            assert await q.read(64, 8192) == bytes(4096) + data[4096:8192]
            assert await q.status(DISCARD, data=segment(128, 1024)) == OK


def test_block_size_of_direct_io(image):
    with open_direct(image) as store:
        assert store.topology.logical >= 512
        assert Blk(store).blk_size == store.topology.logical
        if store.topology.logical > 512:
            with pytest.raises(StoreError, match="takes only whole blocks"):
                Blk(store, blk_size=512)
        assert Blk(store, blk_size=65536).blk_size == 65536
    with FileStore.open(image) as store, pytest.raises(ValueError, match="power of two"):
        Blk(store, blk_size=1000)


def test_capabilities_of_the_command():
    done = subprocess.run(
        [Path(sys.executable).with_name("vhost"), "blk", "--print-capabilities"], capture_output=True, check=True
    )
    assert json.loads(done.stdout) == {"type": "block", "features": ["read-only", "blk-file"]}
