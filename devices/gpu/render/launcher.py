"""The launcher: forks a renderer when the display asks for one, and says how it ended. A process without threads.

Messages on a socket that keeps them apart: from the display ``S`` with five descriptors (shared memory, its eventfd for
commands, the one for answers, the renderer's socket, the one for what it exports) starts one, ``K`` ends it. To the
display: ``E`` and a few words when it has ended. The end of the socket is the end of both. With Vulkan a renderer is
two processes (`server`), which end together.
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
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NoReturn

from devices.gpu.render.server import Server
from vhost.sandbox import Confinement, seal

__all__ = ["main"]

_FDS: Final = 5
_WORDS: Final = 400

#: where libraries, drivers of OpenGL and Vulkan, and what they read are
_READABLE: Final = ("/usr", "/lib", "/lib64", "/etc", "/sys/devices/system/cpu")

#: what Mesa and its threads do besides what serving takes
_SYSCALLS: Final = frozenset(
    """
    fallocate getpriority get_mempolicy kcmp mbind sched_getattr sched_setattr sched_setscheduler set_mempolicy
    setpriority statfs
    """.split()  # noqa: SIM905 - reads as the other lists do
)


class _Child:
    """A renderer that runs, and its server, if it has one."""

    def __init__(self, pid: int, words: int, server: Server | None) -> None:
        self.pid = pid
        self.words = words
        self.server = server
        self.pidfd = os.pidfd_open(pid)

    def fds(self) -> list[int]:
        """Readable when it has ended."""
        return [self.pidfd, *([self.server.pidfd] if self.server is not None else [])]

    def kill(self) -> None:
        """End it."""
        signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)

    def reap(self, ready: Sequence[int]) -> str:
        """Wait for it; how it ended."""
        if self.pidfd not in ready and self.server is not None and self.server.pidfd in ready:
            self.kill()  # what it has is gone with the server
        _, status = os.waitpid(self.pid, 0)
        os.close(self.pidfd)
        if self.server is not None:
            self.server.end()
        said = os.read(self.words, _WORDS).decode(errors="replace").strip()
        os.close(self.words)
        if self.server is not None and self.pidfd not in ready:
            return "its Vulkan server has ended"
        if os.WIFSIGNALED(status):
            return f"signal {signal.Signals(os.WTERMSIG(status)).name}"
        return said or f"exit status {os.waitstatus_to_exitcode(status)}"


@dataclass(frozen=True, slots=True)
class _Kind:
    """What renderers are to be.

    Attributes:
        module: the extension.
        opengl: they draw.
        server: the program that does Vulkan; "": none.
        node: a descriptor of the GPU's render node; -1: none.
        need: what is left to them; None: all.
    """

    module: Any
    opengl: bool
    server: str
    node: int
    need: Confinement | None


def _need(node: int) -> Confinement:
    """What drawing needs. With a GPU the files stay in sight: its drivers look for devices."""
    return Confinement(mode="none" if node >= 0 else "namespace", syscalls=_SYSCALLS, readable=_READABLE)


def _render(kind: _Kind, fds: list[int], server: Server | None) -> str:
    """Be a renderer; what went wrong."""
    Path("/proc/self/oom_score_adj").write_text("1000")
    if kind.need is not None:
        seal([kind.need])
    ffi, lib = kind.module.ffi, kind.module.lib
    options = ffi.new(
        "struct render_options *",
        {
            **dict(zip(("memory", "commands", "answers", "socket", "exports"), fds, strict=True)),
            "node": kind.node,
            "server": server.socket.detach() if server is not None else -1,
            "software": kind.node < 0,
            "opengl": kind.opengl,
        },
    )
    words = ffi.new("char[]", _WORDS)
    failed = lib.render_run(options, words, _WORDS)
    return ffi.string(words).decode(errors="replace") if failed else ""


def _fork(kind: _Kind, fds: list[int], control: socket.socket) -> _Child:
    server = Server(kind.module.lib, kind.server, kind.need) if kind.server else None
    reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    pid = os.fork()
    if not pid:
        _be_child(kind, fds, server, control, writer)
    os.close(writer)
    if server is not None:
        server.socket.close()
    return _Child(pid, reader, server)


def _be_child(kind: _Kind, fds: list[int], server: Server | None, control: socket.socket, writer: int) -> NoReturn:
    status = 1
    try:
        control.close()
        said = _render(kind, fds, server)
        status = 1 if said else 0
        os.write(writer, said.encode())
    except BaseException as exc:
        os.write(writer, f"{type(exc).__name__}: {exc}"[:_WORDS].encode())
    finally:
        os._exit(status)


def _serve(control: socket.socket, kind: _Kind) -> None:
    child: _Child | None = None
    while True:
        fds = [control.fileno(), *(child.fds() if child else [])]
        ready, _, _ = select.select(fds, [], [])
        if child is not None and not {*child.fds()}.isdisjoint(ready):
            how, child = child.reap(ready), None
            control.send(b"E" + how.encode())
        if control.fileno() not in ready:
            continue
        data, given, _, _ = socket.recv_fds(control, 16, _FDS)
        if not data:
            break
        if data == b"S" and child is None and len(given) == _FDS:
            child = _fork(kind, given, control)
        elif data == b"K" and child is not None:
            child.kill()
        for fd in given:
            os.close(fd)
    if child is not None:
        child.kill()
        child.reap([child.pidfd])


def main() -> None:
    """The process."""
    parser = argparse.ArgumentParser()
    parser.add_argument("module")
    parser.add_argument("control", type=int)
    parser.add_argument("--node", type=int, default=-1)
    parser.add_argument("--opengl", action="store_true")
    parser.add_argument("--server", default="", help="the program that does Vulkan")
    parser.add_argument("--unconfined", action="store_true")
    args = parser.parse_args()
    logging.basicConfig(format="renderer: %(message)s")
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # it ends when the display does
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    module = importlib.import_module(f"devices.gpu.render.{args.module}")
    kind = _Kind(module, args.opengl, args.server, args.node, None if args.unconfined else _need(args.node))
    with socket.socket(fileno=args.control) as control:
        try:
            _serve(control, kind)
        except (BrokenPipeError, ConnectionResetError):
            pass
