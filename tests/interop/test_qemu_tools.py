"""QEMU's block layer on libblkio on ``vhost blk``: qemu-io, qemu-img, and fio by way of qemu-nbd."""

from __future__ import annotations

import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import peerlib
import pytest
from guestlib.debian import AssetError
from guestlib.trixie import Tools, qemu_tools


@pytest.fixture(scope="module")
def tools() -> Tools:
    try:
        return qemu_tools()
    except AssetError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def disk() -> Iterator[peerlib.Backend]:
    with peerlib.vhost_blk(queues=2) as backend:
        yield backend


def run(tools: Tools, name: str, *args: object) -> str:
    done = subprocess.run(
        tools.command(name, *args), env=tools.env, capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def options(disk: peerlib.Backend) -> list[str]:
    return ["--image-opts", f"driver=virtio-blk-vhost-user,path={disk.path},cache.direct=on"]


def test_qemu_io(tools: Tools, disk: peerlib.Backend) -> None:
    commands = [
        "length", "write -P 7 0 1M", "read -P 7 0 1M", "write -P 9 512 512", "read -P 9 512 512", "read -P 7 1k 63k",
        "write -z 64k 64k", "read -P 0 64k 64k", "write -z -u 128k 64k", "read -P 0 128k 64k", "discard 1M 1M",
        "write -f -P 5 8M 2M", "aio_write -P 3 4M 1M", "aio_write -P 4 5M 1M", "aio_flush", "flush",
        "readv -P 3 4M 4k 8k 64k", "read -P 4 5M 1M", "read -P 5 8M 2M",
    ]  # fmt: skip
    said = run(tools, "qemu-io", *options(disk), *[word for command in commands for word in ("-c", command)])
    assert said.startswith("64 MiB\n")
    assert "failed" not in said, said
    assert "does not match" not in said
    image = disk.path.with_name("disk").read_bytes()
    assert image[: 64 << 10] == b"\7" * 512 + b"\x09" * 512 + b"\7" * (63 << 10)
    assert image[4 << 20 : 5 << 20] == b"\3" * (1 << 20)


def test_qemu_img(tools: Tools, disk: peerlib.Backend, tmp_path: Path) -> None:
    run(tools, "qemu-img", "bench", "-w", "-c", 5000, "-d", 32, "-t", "none", "--pattern=90", *options(disk))
    copy = tmp_path / "copy.raw"
    run(tools, "qemu-img", "convert", "-O", "raw", *options(disk), copy)
    assert copy.read_bytes() == disk.path.with_name("disk").read_bytes()
    assert copy.read_bytes()[: 4096 * 5000] == b"\x5a" * (4096 * 5000)


def test_fio(tools: Tools, disk: peerlib.Backend, tmp_path: Path) -> None:
    """fio verifies what it wrote in random order, through qemu-nbd."""
    fio = shutil.which("fio")
    if fio is None:
        pytest.skip("fio is not installed (Debian package fio)")
    sock = disk.path.with_name("nbd")
    command = tools.command("qemu-nbd", "-k", sock, "--persistent", *options(disk))
    with subprocess.Popen(command, env=tools.env) as nbd:
        try:
            end = time.monotonic() + 60
            while not sock.exists() and nbd.poll() is None and time.monotonic() < end:
                time.sleep(0.02)
            job = ["--name=verify", "--ioengine=nbd", f"--uri=nbd+unix:///?socket={sock}", "--rw=randrw", "--bs=4k-64k"]
            job += ["--iodepth=16", "--size=32M", "--verify=crc32c", "--verify_fatal=1", "--output-format=json"]
            done = subprocess.run([fio, *job], capture_output=True, text=True, timeout=100, check=False, cwd=tmp_path)
            assert done.returncode == 0, done.stdout + done.stderr
            assert '"error" : 0' in done.stdout
        finally:
            nbd.send_signal(signal.SIGTERM)
            nbd.wait(10)
