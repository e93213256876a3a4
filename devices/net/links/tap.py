"""A tap: the guest's frames go to the host's network stack, by name or by inherited descriptors."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import re
import socket
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Self

import trio

from devices.net._net import lib
from devices.net.links.base import LinkError
from devices.net.links.files import FileLink
from vhost.device import Metric

if TYPE_CHECKING:
    import ring
    from devices.net.device import Net

__all__ = ["Tap"]

log = logging.getLogger(__name__)

_DEVICE: Final = "/dev/net/tun"
_NAME_MAX: Final = 15  # IFNAMSIZ less the end

# linux/if_tun.h
_TUNSETIFF: Final = 0x400454CA
_TUNGETIFF: Final = 0x800454D2
_TUNSETOFFLOAD: Final = 0x400454D0
_TUNSETVNETHDRSZ: Final = 0x400454D8
_TUNSETQUEUE: Final = 0x400454D9
_TUNSETVNETLE: Final = 0x400454DC
_IFF_TAP, _IFF_NO_PI, _IFF_VNET_HDR = 0x0002, 0x1000, 0x4000
_IFF_MULTI_QUEUE, _IFF_ATTACH_QUEUE, _IFF_DETACH_QUEUE = 0x0100, 0x0200, 0x0400

# linux/sockios.h
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _SIOCGIFMTU, _SIOCSIFMTU = 0x8913, 0x8914, 0x8921, 0x8922
_SIOCBRADDIF: Final = 0x89A2
_IFF_UP: Final = 1

# linux/rtnetlink.h
_RTM_NEWLINK, _RTM_GETLINK, _NLM_F_REQUEST, _IFLA_MASTER = 16, 18, 1, 10

_ETHERNET: Final = 14 + 8  # addresses, type and two tags
_WATCH: Final = 1.0  # seconds


def _request(name: str, value: int = 0, *, form: str = "=H") -> bytearray:
    """A ``struct ifreq``."""
    return bytearray(struct.pack("=16s", name.encode()) + struct.pack(form, value).ljust(24, b"\0"))


def _interface_ioctl(code: int, request: bytearray) -> bytearray:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, code, request)
    return request


def _exists(name: str) -> bool:
    try:
        socket.if_nametoindex(name)
    except OSError:
        return False
    return True


def _master(name: str) -> int:
    """Index of the interface that ``name`` is a port of, or 0: by rtnetlink, since sysfs may be another namespace's."""
    asked = struct.pack("=IHHIIBxHiII", 32, _RTM_GETLINK, _NLM_F_REQUEST, 0, 0, 0, 0, socket.if_nametoindex(name), 0, 0)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as netlink:
        netlink.send(asked)
        answer = netlink.recv(65536)
    end, kind = struct.unpack_from("=IH", answer)
    at = 32
    while kind == _RTM_NEWLINK and at + 4 <= end:
        length, attribute = struct.unpack_from("=HH", answer, at)
        if attribute == _IFLA_MASTER:
            return int(struct.unpack_from("=I", answer, at + 4)[0])
        at += max(4, (length + 3) & ~3)
    return 0


def _made_by_root(name: str, queues: int) -> str:
    return f"ip tuntap add dev {name} mode tap user $USER{' multi_queue' if queues > 1 else ''}"


def _open_device() -> int:
    try:
        return os.open(_DEVICE, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        raise LinkError(f"there is no {_DEVICE}: load the kernel's module (modprobe tun), or pass open taps") from None
    except OSError as exc:
        if exc.errno in (errno.ENODEV, errno.ENXIO):
            raise LinkError(f"{_DEVICE}: this kernel has no taps; load the module (modprobe tun)") from exc
        raise LinkError(f"{_DEVICE} cannot be opened ({exc.strerror}); have root allow it, or pass open taps") from exc


def _refused(exc: OSError, name: str, queues: int, existed: bool) -> str:
    """Why the kernel did not give us the tap ``name``, and what to do."""
    if exc.errno == errno.EPERM:
        if existed:
            return f"tap {name} belongs to another user; have root make it yours: {_made_by_root(name, queues)}"
        return (
            f"tap {name} does not exist, and making it takes CAP_NET_ADMIN; have root make it once: "
            f"{_made_by_root(name, queues)}"
        )
    if exc.errno == errno.EBUSY:
        return f"tap {name} is in use by another program; stop that one, or choose another name"
    if exc.errno == errno.EINVAL and existed:
        if queues > 1:
            return f"{name} is no tap with several queues; have it made so: {_made_by_root(name, queues)}"
        return f"{name} is an interface of another kind; choose another name"
    if exc.errno == errno.E2BIG:
        return f"tap {name} has all its queues in use; stop who has them, or ask for less than {queues}"
    return f"tap {name}: {exc.strerror}"


def _attach(fd: int, name: str, flags: int) -> str:
    """Make ``fd`` a queue of the tap ``name``, which is made if it does not exist; its name in full."""
    request = _request(name, flags)
    fcntl.ioctl(fd, _TUNSETIFF, request)
    return bytes(request[:16]).rstrip(b"\0").decode()


def _open_queues(name: str, queues: int) -> tuple[list[int], str]:
    existed = _exists(name)
    flags = _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR
    wanted = [flags | _IFF_MULTI_QUEUE] if queues > 1 else [flags, flags | _IFF_MULTI_QUEUE]
    fds: list[int] = []
    try:
        for _ in range(queues):
            fds.append(_open_device())
            for i, kind in enumerate(wanted):
                try:
                    name = _attach(fds[-1], name, kind)
                    break
                except OSError as exc:
                    # one queue of a tap that can have several is fine, but has to be asked for as such
                    if exc.errno == errno.EINVAL and existed and i + 1 < len(wanted):
                        continue
                    raise LinkError(_refused(exc, name, queues, existed)) from exc
    except BaseException:
        for fd in fds:
            os.close(fd)
        raise
    return fds, name


def _identify(fd: int) -> tuple[str, int]:
    """Name and flags of the tap ``fd``."""
    request = _request("")
    try:
        fcntl.ioctl(fd, _TUNGETIFF, request)
    except OSError as exc:
        if exc.errno == errno.EBADF:
            raise LinkError(f"tap-fd {fd}: no such descriptor was passed") from exc
        raise LinkError(f"tap-fd {fd} is not an open tap ({exc.strerror}); attach it to one (TUNSETIFF) first") from exc
    flags = struct.unpack_from("=H", request, 16)[0]
    name = bytes(request[:16]).rstrip(b"\0").decode()
    if not flags & _IFF_TAP:
        raise LinkError(f"tap-fd {fd}: {name} is a tun; open it as a tap (IFF_TAP)")
    return name, flags


class Tap(FileLink):
    """A tap of the host. Made by `open` and `from_fds`.

    What it makes is gone when it is closed, unless somebody made the tap persistent. It runs no scripts.
    """

    def __init__(self, name: str, fds: Sequence[int], *, header: bool, multi_queue: bool) -> None:
        """Take over the queues ``fds``; use `open` or `from_fds`."""
        self.name = name
        self._header = header
        self._multi_queue = multi_queue and len(fds) > 1
        self._up = False
        self._alive = True
        try:
            if header:
                for fd in fds:
                    fcntl.ioctl(fd, _TUNSETVNETHDRSZ, struct.pack("=i", lib.NET_FD_HEADER))
                    fcntl.ioctl(fd, _TUNSETVNETLE, struct.pack("=i", 1))
            takes = lib.net_tap_takes(fds[0]) if header else 0
        except BaseException:
            for fd in fds:
                os.close(fd)
            raise
        super().__init__(fds, header=header, takes=takes, offload=header)
        for queue in range(1, self.queues):
            self._use(queue, False)

    @classmethod
    def open(cls, name: str, *, queues: int = 1, bridge: str | None = None, mtu: int | None = None) -> Self:
        """The tap called ``name``, made if it does not exist, and up.

        Args:
            name: 1 to 15 bytes; with ``%d`` in it the kernel puts a number there.
            queues: 1 to 16.
            bridge: make it a port of this bridge.
            mtu: of the host's side, bytes; None: as it is.

        Raises:
            LinkError: what is missing, and what to do.
        """
        if not 0 < len(name.encode()) <= _NAME_MAX or re.search(r"[\s/:]", name) or name in (".", ".."):
            raise LinkError(f"{name!r} cannot be the name of a tap: 1 to {_NAME_MAX} bytes without space, / and :")
        if not 1 <= queues <= lib.NET_PAIRS_MAX:
            raise LinkError(f"{queues} queues; a tap here has 1 to {lib.NET_PAIRS_MAX}")
        fds, name = _open_queues(name, queues)
        tap = cls(name, fds, header=True, multi_queue=True)
        try:
            tap.configure(bridge=bridge, mtu=mtu)
        except BaseException:
            tap.close()
            raise
        return tap

    @classmethod
    def from_fds(cls, fds: Sequence[int]) -> Self:
        """A tap that somebody else opened: its queues.

        Args:
            fds: opened with IFF_NO_PI, which nobody can tell afterwards, and as a rule with IFF_VNET_HDR. Owned by the
                link from now on, also if this raises.

        Raises:
            LinkError: they cannot be used, and why.
        """
        try:
            if not 1 <= len(fds) <= lib.NET_PAIRS_MAX:
                raise LinkError(f"{len(fds)} descriptors; give 1 to {lib.NET_PAIRS_MAX}, one for each queue")
            found = [_identify(fd) for fd in fds]
            if len({name for name, _ in found}) > 1:
                raise LinkError(f"these are queues of different taps: {', '.join(sorted({n for n, _ in found}))}")
            if len({flags & _IFF_VNET_HDR for _, flags in found}) > 1:
                raise LinkError(f"tap {found[0][0]}: open all queues with IFF_VNET_HDR, or none")
        except BaseException:
            for fd in fds:
                try:
                    os.close(fd)
                except OSError:
                    continue  # that was what is wrong
            raise
        name, flags = found[0]
        return cls(name, fds, header=bool(flags & _IFF_VNET_HDR), multi_queue=bool(flags & _IFF_MULTI_QUEUE))

    @property
    def description(self) -> str:
        """As `NetLink.description`."""
        return f"tap {self.name}"

    # The interface

    @property
    def mtu(self) -> int:
        """Of the host's side, bytes."""
        request = _interface_ioctl(_SIOCGIFMTU, _request(self.name))
        return int(struct.unpack_from("=i", request, 16)[0])

    def configure(self, *, bridge: str | None = None, mtu: int | None = None) -> None:
        """Set the MTU, make it a port of ``bridge``, bring it up.

        Raises:
            LinkError: what is missing, and what to do.
        """
        if mtu is not None and mtu != self.mtu:
            self._set(_SIOCSIFMTU, _request(self.name, mtu, form="=i"), f"set its MTU to {mtu}", f"mtu {mtu}")
        if bridge is not None:
            self._join(bridge)
        request = _interface_ioctl(_SIOCGIFFLAGS, _request(self.name))
        flags = struct.unpack_from("=H", request, 16)[0]
        if not flags & _IFF_UP:
            self._set(_SIOCSIFFLAGS, _request(self.name, flags | _IFF_UP), "bring it up", "up")

    def _set(self, code: int, request: bytearray, what: str, command: str) -> None:
        try:
            _interface_ioctl(code, request)
        except OSError as exc:
            if exc.errno == errno.EPERM:
                raise LinkError(
                    f"tap {self.name}: it takes CAP_NET_ADMIN to {what}; have root do it: "
                    f"ip link set dev {self.name} {command}"
                ) from exc
            raise LinkError(f"tap {self.name}: cannot {what}: {exc.strerror}") from exc

    def _join(self, bridge: str) -> None:
        if self._bridge() == bridge:
            return
        if not _exists(bridge):
            raise LinkError(f"there is no bridge {bridge}; make it first: ip link add {bridge} type bridge")
        index = socket.if_nametoindex(self.name)
        try:
            _interface_ioctl(_SIOCBRADDIF, _request(bridge, index, form="=i"))
        except OSError as exc:
            if exc.errno in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOTTY):
                raise LinkError(f"{bridge} is not a bridge; make one: ip link add NAME type bridge") from exc
            if exc.errno == errno.EBUSY:
                raise LinkError(
                    f"tap {self.name} is a port of {self._bridge() or 'another bridge'} already; take it out first: "
                    f"ip link set dev {self.name} nomaster"
                ) from exc
            if exc.errno == errno.EPERM:
                raise LinkError(
                    f"tap {self.name}: it takes CAP_NET_ADMIN to add it to {bridge}; have root do it: "
                    f"ip link set dev {self.name} master {bridge}"
                ) from exc
            raise LinkError(f"tap {self.name} cannot be added to {bridge}: {exc.strerror}") from exc

    def _bridge(self) -> str | None:
        """The bridge it is a port of."""
        index = _master(self.name)
        return socket.if_indextoname(index) if index else None

    # Queues

    def _use(self, queue: int, on: bool) -> None:
        """Let the kernel put frames into ``queue``, or into the others only."""
        if not self._multi_queue or queue == 0:
            return
        flags = _IFF_ATTACH_QUEUE if on else _IFF_DETACH_QUEUE
        try:
            fcntl.ioctl(self._fds[queue], _TUNSETQUEUE, _request("", flags))
        except OSError as exc:
            if exc.errno != errno.EINVAL:  # it is already
                log.warning("%s: queue %d: %s", self.description, queue, exc.strerror)

    def start_queue(self, queue: int, worker: ring.Worker) -> None:
        """As `FileLink.start_queue`; the kernel uses the queue from now on."""
        self._use(queue, True)
        lib.net_fdlink_set_max_frame(self.port, self._max_frame())
        super().start_queue(queue, worker)

    def stop_queue(self, queue: int, worker: ring.Worker) -> None:
        """As `FileLink.stop_queue`."""
        super().stop_queue(queue, worker)
        self._use(queue, False)

    def enabled(self, card: Net, pair: int, on: bool) -> None:
        """As `NetLink.enabled`: frames do not go where the guest does not look."""
        if pair < self.queues:
            self._use(pair, on)

    def _max_frame(self) -> int:
        """Of frames that the kernel has cut, bytes."""
        try:
            return max(1500, self.mtu) + _ETHERNET
        except OSError:  # it is gone; what comes of that is seen when it is read
            return 0

    # While it runs

    async def run(self) -> None:
        """Say so when somebody deletes the tap."""
        while self._alive:
            await trio.sleep(_WATCH)
            for queue in range(self.queues):
                if (why := self.lost(queue)) is not None and self._alive:
                    self._alive = False
                    log.error("%s is gone (%s); the guest's network is dead until the device is started again",
                              self.description, why)  # fmt: skip

    def controls(self) -> Mapping[str, Callable[..., Any]]:
        """As `NetLink.controls`."""
        return {"tap": self._show}

    def _show(self) -> dict[str, Any]:
        """The tap's name, queues, MTU and bridge."""
        try:
            mtu = self.mtu
        except OSError:
            return {"name": self.name, "queues": self.queues, "gone": True}
        return {"name": self.name, "queues": self.queues, "mtu": mtu, "bridge": self._bridge()}

    def metrics(self) -> Iterable[Metric]:
        """As `NetLink.metrics`."""
        working = all(self.lost(queue) is None for queue in range(self.queues))
        yield Metric("net_tap_up", "gauge", "1 unless somebody deleted the tap.", int(working))

    def close(self) -> None:
        """Give the tap back; it goes with its last user unless it is persistent. May be called again."""
        self._alive = False
        if self._header and self._fds:
            try:
                fcntl.ioctl(self._fds[0], _TUNSETOFFLOAD, 0)  # a persistent one is the next user's as we found it
            except OSError:
                pass
        self._close()

    async def aclose(self) -> None:
        """As `NetLink.aclose`."""
        self.close()
