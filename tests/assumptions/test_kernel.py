"""Kernel behaviours the design leans on; each test names what breaks if its answer ever changes."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import select
import socket
import struct
from pathlib import Path

import pytest


@pytest.fixture
def epoll():  # type: ignore[no-untyped-def]
    with select.epoll() as poll:
        yield poll


def test_every_write_to_an_eventfd_is_an_edge(epoll: select.epoll) -> None:
    """Workers never read kick eventfds: an armed source must wake at each kick all the same."""
    fd = os.eventfd(0)
    try:
        epoll.register(fd, select.EPOLLIN | select.EPOLLET)
        for _ in range(3):
            os.eventfd_write(fd, 1)
            assert epoll.poll(1) == [(fd, select.EPOLLIN)]
            assert epoll.poll(0) == []
    finally:
        os.close(fd)


def test_every_write_to_a_pipe_is_an_edge(epoll: select.epoll) -> None:
    """User-mode Linux kicks through pipes in some versions."""
    r, w = os.pipe()
    try:
        epoll.register(r, select.EPOLLIN | select.EPOLLET)
        for _ in range(3):
            os.write(w, b"x" * 8)
            assert epoll.poll(1) == [(r, select.EPOLLIN)]
            assert epoll.poll(0) == []
    finally:
        os.close(r)
        os.close(w)


def test_an_eventfd_already_set_wakes_when_armed(epoll: select.epoll) -> None:
    """A kick before the queue was started is not lost (QEMU pre-loads the eventfd)."""
    fd = os.eventfd(1)
    try:
        epoll.register(fd, select.EPOLLIN | select.EPOLLET)
        assert epoll.poll(1) == [(fd, select.EPOLLIN)]
    finally:
        os.close(fd)


def test_a_full_eventfd_refuses_instead_of_blocking() -> None:
    """A front-end may fill our call eventfd: with O_NONBLOCK set on it the worker is not held up."""
    fd = os.eventfd(0)
    try:
        os.eventfd_write(fd, 2**64 - 2)
        os.set_blocking(fd, False)
        with pytest.raises(BlockingIOError):
            os.eventfd_write(fd, 1)
    finally:
        os.close(fd)


def test_system_calls_on_truncated_memory_fail_without_sigbus(tmp_path: Path) -> None:
    """Data moved by the kernel needs no guard against a front-end that truncates its memory: EFAULT, no signal."""
    memory = os.memfd_create("guest")
    disk = os.open(tmp_path / "disk", os.O_RDWR | os.O_CREAT)
    try:
        os.ftruncate(memory, 4096)
        os.write(disk, b"x" * 4096)
        with mmap.mmap(memory, 4096) as view:
            os.ftruncate(memory, 0)
            with pytest.raises(OSError, match="Bad address") as caught:
                os.preadv(disk, [memoryview(view)], 0)
            assert caught.value.errno == errno.EFAULT
    finally:
        os.close(memory)
        os.close(disk)


def ofd_lock(fd: int, kind: int, start: int) -> None:
    fcntl.fcntl(fd, 37, struct.pack("hhqqi4x", kind, os.SEEK_SET, start, 1, 0))  # F_OFD_SETLK


def test_ofd_locks_conflict_within_one_process(tmp_path: Path) -> None:
    """Image locks keep two disks of one process off the same file; POSIX locks would not."""
    path = tmp_path / "disk"
    path.touch()
    a, b = os.open(path, os.O_RDWR), os.open(path, os.O_RDWR)
    try:
        ofd_lock(a, fcntl.F_WRLCK, 100)
        with pytest.raises(BlockingIOError):
            ofd_lock(b, fcntl.F_WRLCK, 100)
        os.close(a)
        a = -1
        ofd_lock(b, fcntl.F_WRLCK, 100)
    finally:
        for fd in (a, b):
            if fd >= 0:
                os.close(fd)


def test_fds_come_with_the_first_byte_of_a_message() -> None:
    """The channel may read a header in pieces: SCM_RIGHTS arrives with the piece that holds the first byte."""
    a, b = socket.socketpair()
    with a, b:
        fd = os.eventfd(0)
        try:
            socket.send_fds(a, [b"header"], [fd])
            data, fds, _, _ = socket.recv_fds(b, 1, 4)
            assert (data, len(fds)) == (b"h", 1)
            os.close(fds[0])
            data, fds, _, _ = socket.recv_fds(b, 100, 4)
            assert (data, fds) == (b"eader", [])
        finally:
            os.close(fd)


def test_a_memfd_can_be_sealed_against_shrinking() -> None:
    """Our own inflight region cannot be truncated under us by the front-end that holds it."""
    fd = os.memfd_create("inflight", os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, 4096)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
        with pytest.raises(PermissionError):
            os.ftruncate(fd, 0)
    finally:
        os.close(fd)
