"""libblkio's vhost-user-blk client: a front-end with poll queues, scattered buffers and memory that comes and goes.

Each test runs on qemu-storage-daemon too: what fails there as well is the client's doing.
"""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import peerlib
import pytest
from guestlib.trixie import Blkio

SIZE = 64 << 20


def verify(blkio: Blkio, backend: peerlib.Backend, *options: str, expect: int = 0) -> dict[str, int]:
    """Run the verifying client; the facts it printed."""
    done = subprocess.run(
        [blkio.client, backend.path, *options], capture_output=True, text=True, timeout=150, check=False
    )
    words = (done.stdout + done.stderr).strip()
    assert done.returncode == expect, f"client status {done.returncode}: {words}\nback-end: {backend.words[-2000:]}"
    facts = {name: int(value) for name, value in re.findall(r"([\w-]+)=(\d+)", words)}
    return facts if expect == 0 else {"words": 0, words: 1}


@contextmanager
def _ours() -> Iterator[peerlib.Backend]:
    with peerlib.vhost_blk(queues=4) as backend:
        yield backend


@contextmanager
def _daemon() -> Iterator[peerlib.Backend]:
    with peerlib.storage_daemon(queues=4) as backend:
        yield backend


@pytest.fixture(scope="module", params=[_ours, _daemon], ids=["ours", "qemu-storage-daemon"])
def backend(request: pytest.FixtureRequest) -> Iterator[peerlib.Backend]:
    with request.param() as running:
        yield running


@pytest.mark.parametrize(
    "options",
    [
        ["depth=1", "requests=1000"],
        ["depth=32"],
        ["queues=2", "poll-queues=2", "depth=8"],
        ["events=1", "queues=4", "regions=4", "depth=8"],
        ["queue-size=8", "depth=4"],
        ["queue-size=1024", "depth=64", "requests=6000"],
        ["queues=0", "poll-queues=1", "depth=16"],
    ],
    ids=" ".join,
)
def test_what_is_read_is_what_was_written(blkio: Blkio, backend: peerlib.Backend, options: list[str]) -> None:
    if "queue-size=1024" in options and backend.command[0].endswith("qemu-storage-daemon"):
        options = [*options, "queue-size=256"]  # its most
    facts = verify(blkio, backend, "wipe=1", *options)
    assert facts["capacity"] == SIZE
    assert facts["reads"] > 300
    assert facts["writes"] > 300
    assert min(facts["zeroes"], facts["discards"], facts["flushes"]) > 10


def test_clients_one_after_another(blkio: Blkio, backend: peerlib.Backend) -> None:
    """The back-end listens again; the disk holds what the first left, so the next only reads."""
    verify(blkio, backend, "wipe=1", "requests=500", "queues=2")
    for _ in range(3):
        done = subprocess.run([blkio.client, backend.path, "read-only=1"], capture_output=True, text=True, check=False)
        assert "write 0" in done.stdout, done.stdout  # it expects zeroes and finds the first one's data
    assert backend.deaths == 0


def test_a_file_copied_there_and_back(blkio: Blkio, backend: peerlib.Backend, tmp_path: Path) -> None:
    """libblkio's own example program."""
    here, back = tmp_path / "here", tmp_path / "back"
    here.write_bytes(os.urandom(1 << 20) * (SIZE >> 20))
    back.touch()
    back_end = f"path={backend.path}"
    to = [blkio.copy, f"--input-file={here}", "--output-blkio=virtio-blk-vhost-user", back_end]
    done = subprocess.run(to, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    of = [blkio.copy, "--input-blkio=virtio-blk-vhost-user", back_end, f"--output-file={back}"]
    done = subprocess.run(of, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    digests = {hashlib.sha256(path.read_bytes()).hexdigest() for path in (here, back, backend.path.with_name("disk"))}
    assert len(digests) == 1


@pytest.mark.parametrize(
    "store", ["memory:64M", "raw --direct", "raw --packed off", "raw --workers 2", "raw --blk-size 4096 --read-only"]
)
def test_our_stores_and_options(blkio: Blkio, store: str) -> None:
    kind, *options = store.split()
    client = ["queues=2"]
    if "--read-only" in options:
        client.append("read-only=1")
    if "4096" in options:
        client.append("block=4096")
    with peerlib.vhost_blk(*options, store=None if kind == "raw" else kind, queues=2) as backend:
        facts = verify(blkio, backend, *client)
        assert facts["capacity"] == SIZE


def test_a_read_only_disk_opened_for_writing_is_refused(blkio: Blkio) -> None:
    with peerlib.vhost_blk("--read-only") as backend:
        words = verify(blkio, backend, expect=1)
        assert any("read-only" in word.lower() or "EROFS" in word for word in words), words
        verify(blkio, backend, "read-only=1")
