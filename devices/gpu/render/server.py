"""The process that does Vulkan for a renderer: libvirglrenderer's render server, sealed.

It makes a process for each context of the guest. They have process numbers of their own, and end with
it, whatever they are at.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
from pathlib import Path
from typing import Any, Final, NoReturn

from vhost.sandbox import Confinement, seal

__all__ = ["Server", "find_server"]

_NAME: Final = "virgl_render_server"
#: where distributions have it
_FOLDERS: Final = ("/usr/local/libexec", "/usr/libexec", "/usr/lib")
#: where the library looks first, too
_VARIABLE: Final = "RENDER_SERVER_EXEC_PATH"
_SOCKET: Final = 3

#: what it takes to be started, and to start and end processes of its own
_SYSCALLS: Final = frozenset({"execve", "kill", "setpgid", "wait4", "waitid"})


def find_server() -> str | None:
    """The program; None: it is not installed."""
    return shutil.which(os.environ.get(_VARIABLE, _NAME), path=os.pathsep.join(_FOLDERS))


class Server:
    """One that runs.

    Args:
        lib: of a renderer's extension.
        program: what `find_server` found.
        need: what it may do besides being started; None: anything.
    """

    def __init__(self, lib: Any, program: str, need: Confinement | None) -> None:
        self.socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            # without process numbers of its own it cannot be let kill, and its processes end by themselves
            ids = os.getuid(), os.getgid()
            apart = lib.render_fork_apart()
            self.pid = os.fork() if apart < 0 else apart
            if not self.pid:
                _be_server(program, theirs.fileno(), need, ids if apart == 0 else None)
        self.pidfd: Final = os.pidfd_open(self.pid)

    def end(self) -> None:
        """It and all of its processes."""
        signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        os.close(self.pidfd)
        self.socket.close()


def _be_server(program: str, fd: int, need: Confinement | None, apart: tuple[int, int] | None) -> NoReturn:
    """`apart`: the user and group that it is outside, if its process numbers are its own."""
    try:
        os.dup2(fd, _SOCKET)
        os.set_inheritable(_SOCKET, True)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # a guest can make it say any number of lines
        os.closerange(_SOCKET + 1, os.sysconf("SC_OPEN_MAX"))
        if need is not None:
            Path("/proc/self/oom_score_adj").write_text("1000")
            if apart is not None and apart != (os.getuid(), os.getgid()):
                _map_ids(*apart)
            syscalls = need.syscalls | (_SYSCALLS if apart is not None else _SYSCALLS - {"kill"})
            seal([Confinement(mode=need.mode, syscalls=syscalls, readable=need.readable, landlock=False)])
        # what is preloaded into us (a sanitizer) is not for a program that starts sealed
        env = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
        os.execve(program, [program, "--socket-fd", str(_SOCKET)], env)
    finally:
        os._exit(1)


def _map_ids(uid: int, gid: int) -> None:
    """The user namespace that it was put in knows itself alone."""
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{uid} {uid} 1")
    Path("/proc/self/gid_map").write_text(f"{gid} {gid} 1")
