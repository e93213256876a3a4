"""The launcher: forks a renderer when the display asks for one, and says how it ended. A process without threads.

Messages on a socket that keeps them apart: from the display ``S`` with five descriptors (shared memory, its eventfd for
commands, the one for answers, the renderer's socket, the one for what it exports) starts one, ``K`` ends it. To the
display: ``E`` and a few words when it has ended. The end of the socket is the end of both.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import resource
import select
import signal
import socket
from pathlib import Path
from typing import Any, Final, NoReturn

from vhost.sandbox import Confinement, seal
from vhost.sandbox.confinement import Mode

__all__ = ["main"]

_FDS: Final = 5
_WORDS: Final = 400

#: where libraries, drivers of OpenGL and what they read are
_READABLE: Final = ("/usr", "/lib", "/lib64", "/etc", "/sys/devices/system/cpu")

#: what Mesa and its threads do besides what serving takes
_SYSCALLS: Final = frozenset(
    """
    fallocate getpriority get_mempolicy kcmp mbind sched_getattr sched_setattr sched_setscheduler set_mempolicy
    setpriority statfs
    """.split()  # noqa: SIM905 - reads as the other lists do
)


class _Child:
    """A renderer that runs."""

    def __init__(self, pid: int, words: int) -> None:
        self.pid = pid
        self.words = words
        self.pidfd = os.pidfd_open(pid)

    def reap(self) -> str:
        """Wait for it; how it ended."""
        _, status = os.waitpid(self.pid, 0)
        os.close(self.pidfd)
        said = os.read(self.words, _WORDS).decode(errors="replace").strip()
        os.close(self.words)
        if os.WIFSIGNALED(status):
            return f"signal {signal.Signals(os.WTERMSIG(status)).name}"
        return said or f"exit status {os.waitstatus_to_exitcode(status)}"


def _confine(confined: bool, node: int) -> None:
    """Give up what drawing does not need. With a GPU the files stay in sight: its drivers look for devices."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    Path("/proc/self/oom_score_adj").write_text("1000")
    if confined:
        sight: Mode = "none" if node >= 0 else "namespace"
        seal([Confinement(mode=sight, syscalls=_SYSCALLS, readable=_READABLE)])


def _render(kind: str, fds: list[int], node: int, confined: bool) -> str:
    """Be a renderer; what went wrong."""
    module: Any = importlib.import_module(f"devices.gpu.render._{kind}")
    _confine(confined, node)
    ffi, lib = module.ffi, module.lib
    options = ffi.new(
        "struct render_options *",
        {
            **dict(zip(("memory", "commands", "answers", "socket", "exports"), fds, strict=True)),
            "node": node,
            "software": node < 0,
        },
    )
    words = ffi.new("char[]", _WORDS)
    failed = lib.render_run(options, words, _WORDS)
    return ffi.string(words).decode(errors="replace") if failed else ""


def _fork(kind: str, fds: list[int], node: int, confined: bool, control: socket.socket) -> _Child:
    reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    pid = os.fork()
    if not pid:
        _be_child(kind, fds, node, confined, control, writer)
    os.close(writer)
    return _Child(pid, reader)


def _be_child(kind: str, fds: list[int], node: int, confined: bool, control: socket.socket, writer: int) -> NoReturn:
    status = 1
    try:
        control.close()
        said = _render(kind, fds, node, confined)
        status = 1 if said else 0
        os.write(writer, said.encode())
    except BaseException as exc:
        os.write(writer, f"{type(exc).__name__}: {exc}"[:_WORDS].encode())
    finally:
        os._exit(status)


def _serve(control: socket.socket, kind: str, node: int, confined: bool) -> None:
    child: _Child | None = None
    while True:
        fds = [control.fileno(), *([child.pidfd] if child else [])]
        ready, _, _ = select.select(fds, [], [])
        if child is not None and child.pidfd in ready:
            how, child = child.reap(), None
            control.send(b"E" + how.encode())
        if control.fileno() not in ready:
            continue
        data, given, _, _ = socket.recv_fds(control, 16, _FDS)
        if not data:
            break
        if data == b"S" and child is None and len(given) == _FDS:
            child = _fork(kind, given, node, confined, control)
        elif data == b"K" and child is not None:
            signal.pidfd_send_signal(child.pidfd, signal.SIGKILL)
        for fd in given:
            os.close(fd)
    if child is not None:
        signal.pidfd_send_signal(child.pidfd, signal.SIGKILL)
        child.reap()


def main() -> None:
    """The process."""
    parser = argparse.ArgumentParser()
    parser.add_argument("kind")
    parser.add_argument("control", type=int)
    parser.add_argument("--node", type=int, default=-1)
    parser.add_argument("--unconfined", action="store_true")
    args = parser.parse_args()
    logging.basicConfig(format="renderer: %(message)s")
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # it ends when the display does
    importlib.import_module(f"devices.gpu.render._{args.kind}")
    with socket.socket(fileno=args.control) as control:
        try:
            _serve(control, args.kind, args.node, not args.unconfined)
        except (BrokenPipeError, ConnectionResetError):
            pass
