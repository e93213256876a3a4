"""A renderer as the display starts and ends it."""

from __future__ import annotations

import importlib
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any, Final, Literal

import trio

from devices.gpu._gpu import lib
from devices.gpu.render.server import find_server
from vhost.errors import VhostError
from vhost.fds import OwnedFd

__all__ = ["Kind", "Renderer", "RendererError", "Started", "open_renderer"]

Kind = Literal["virgl", "venus", "virgl+venus", "null"]

#: Linux's number of graphics devices
_DRM: Final = 226
_READY_MAX: Final = 1 << 16
#: seconds that a renderer may take to start
_START_SECONDS: Final = 30
#: seconds that a killed process may take to be gone
_END_SECONDS: Final = 10

_MISSING: Final = (
    "3D is not built; install libvirglrenderer (Debian: libvirglrenderer-dev) and build again, "
    "libegl-mesa0 and libgl1-mesa-dri beside it"
)


_NO_VENUS: Final = (
    "the libvirglrenderer that is installed was built without Venus (Vulkan); install one that has it, 0.10.4 or newer "
    "(Debian 12 and later: libvirglrenderer1, virgl-server and mesa-vulkan-drivers)"
)
_NO_SERVER: Final = "there is no virgl_render_server, which does Vulkan; install it (Debian: virgl-server)"


class RendererError(VhostError):
    """There is no renderer: one sentence."""


class Started:
    """A renderer that is ready.

    Attributes:
        memory: shared with it, a descriptor.
        socket: to it.
        exports: from it: descriptors.
        ready: what it said first: a ``struct wire_ready``.
    """

    def __init__(self, memory: OwnedFd, sock: socket.socket, exports: socket.socket) -> None:
        self.memory = memory
        self.socket = sock
        self.exports = exports
        self.ready = b""

    def close(self) -> None:
        """Its end, as it sees it."""
        self.memory.close()
        self.exports.close()
        if self.socket.fileno() >= 0:
            trio.lowlevel.notify_closing(self.socket)
        self.socket.close()


class Renderer:
    """The launcher, and at most one renderer at a time. Made by `open_renderer`.

    Attributes:
        kind: what draws.
        started: the one that runs; None: none does.
        commands: an eventfd that tells the renderer of commands; for all of them, one after the other.
        answers: an eventfd that tells us of answers.
    """

    def __init__(self, kind: Kind, control: socket.socket) -> None:
        self.kind: Final = kind
        self.started: Started | None = None
        self._running = False
        self._control = control
        self.commands: Final = OwnedFd(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK))
        self.answers: Final = OwnedFd(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK))

    async def start(self) -> Started:
        """Start one; the one before has ended.

        Raises:
            RendererError: it cannot be, or says why not.
        """
        await self.kill()
        memory = lib.gpu_3d_memory()
        if memory < 0:
            raise RendererError(f"no memory to share with a renderer: {os.strerror(-memory)}")
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        mine, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        started = Started(OwnedFd(memory), ours, mine)
        ours.setblocking(False)
        try:
            with theirs, its:
                fds = [memory, self.commands.fileno(), self.answers.fileno(), theirs.fileno(), its.fileno()]
                socket.send_fds(self._control, [b"S"], fds)
            self._running = True
            with trio.move_on_after(_START_SECONDS):
                started.ready = await _receive(ours)
            if not started.ready:
                raise RendererError(f"the renderer does not start: {await self._reason()}")
        except BaseException as exc:
            started.close()
            if isinstance(exc, OSError):
                raise RendererError(f"the renderer's launcher is gone: {exc.strerror}") from exc
            raise
        self.started = started
        return started

    async def ended(self) -> str:
        """Wait for the end of the one that runs; how it came."""
        started = self.started
        assert started is not None
        while await _receive(started.socket):
            pass  # it has nothing to say; what it says is not looked at
        return await self.kill()

    async def kill(self) -> str:
        """End it, whatever it is at; how it ended."""
        started, self.started = self.started, None
        if started is not None:
            started.close()
        return await self._reason() if self._running else ""

    def stop(self) -> None:
        """Let it end soon, whatever it is at: `ended` returns then."""
        with suppress(OSError):
            self._control.send(b"K")

    async def _reason(self) -> str:
        self.stop()
        with trio.move_on_after(_END_SECONDS, shield=True):
            said = await _receive(self._control)
            self._running = False
            return said[1:].decode(errors="replace") if said else "its launcher is gone"
        return "it does not end"

    def close(self) -> None:
        """All of it."""
        if self.started is not None:
            self.started.close()
            self.started = None
        for fd in (self.commands, self.answers):
            fd.close()
        self._control.close()


async def _receive(sock: socket.socket) -> bytes:
    """One message; nothing when the other end is gone."""
    while True:
        try:
            return sock.recv(_READY_MAX, socket.MSG_DONTWAIT)
        except BlockingIOError:
            await trio.lowlevel.wait_readable(sock)
        except OSError:
            return b""


@asynccontextmanager
async def open_renderer(
    kind: Kind = "virgl", *, node: str | None = None, confined: bool = True
) -> AsyncIterator[Renderer]:
    """A renderer for one display, for the length of the block; the first one has started.

    Args:
        kind: virgl: OpenGL by libvirglrenderer; venus: Vulkan by it; virgl+venus: both; null: draws nothing, for tests.
        node: the GPU's render node (``/dev/dri/renderD128``); None: Mesa draws, with the CPU.
        confined: the process gives up what drawing does not need.

    Raises:
        RendererError: it is not built, the node cannot be used, OpenGL or Vulkan is not to be had.
    """
    try:
        module = importlib.import_module(f"devices.gpu.render.{_module(kind)}")
    except ImportError as exc:
        raise RendererError(f"{_MISSING} ({exc})") from exc
    server = vulkan_server(module) if "venus" in kind else ""
    gpu = None if node is None else _open_node(node)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        with theirs:
            process = _launch(kind, theirs, gpu, server, confined)
    finally:
        if gpu is not None:
            gpu.close()
    with ours:
        ours.setblocking(False)
        over = OwnedFd(os.pidfd_open(process.pid))
        renderer = Renderer(kind, ours)
        try:
            await renderer.start()
            yield renderer
        finally:
            renderer.close()
            await _wait(process, over)


def _module(kind: Kind) -> str:
    return "_null" if kind == "null" else "_virgl"


def vulkan_server(module: Any) -> str:
    """The program that does Vulkan for a renderer of `module`. Raises: RendererError: it cannot be."""
    if not module.lib.render_vulkan():
        raise RendererError(_NO_VENUS)
    server = find_server()
    if server is None:
        raise RendererError(_NO_SERVER)
    return server


def _open_node(path: str) -> OwnedFd:
    try:
        fd = OwnedFd(os.open(path, os.O_RDWR | os.O_CLOEXEC))
    except OSError as exc:
        raise RendererError(f"render node {path}: {exc.strerror}; 'ls /dev/dri' shows which there are") from exc
    if os.major(os.fstat(fd.fileno()).st_rdev) != _DRM:
        fd.close()
        raise RendererError(f"{path} is no render node; 'ls /dev/dri' shows which there are")
    return fd


def _launch(
    kind: Kind, control: socket.socket, gpu: OwnedFd | None, server: str, confined: bool
) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-P", "-m", "devices.gpu.render", _module(kind), str(control.fileno())]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    env |= {"MESA_SHADER_CACHE_DISABLE": "true"}
    if gpu is not None:
        command += ["--node", str(gpu.fileno())]
    else:
        env |= {"EGL_PLATFORM": "surfaceless", "LIBGL_ALWAYS_SOFTWARE": "1"}
        env.setdefault("VK_LOADER_DRIVERS_SELECT", "*lvp*")
    if "virgl" in kind:
        command.append("--opengl")
    if server:
        command += ["--server", server]
    if not confined:
        command.append("--unconfined")
    fds = [control.fileno(), *([gpu.fileno()] if gpu is not None else [])]
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=fds, env=env)


async def _wait(process: subprocess.Popen[bytes], over: OwnedFd) -> None:
    with over, trio.CancelScope(shield=True):
        with trio.move_on_after(_END_SECONDS) as late:
            await trio.lowlevel.wait_readable(over.fileno())
        if late.cancelled_caught:
            process.kill()
        try:
            process.wait()
        except PermissionError:  # a sealed process does not wait for others
            process.returncode = 0
