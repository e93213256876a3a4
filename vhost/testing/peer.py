"""A front-end for tests, byte by byte: says anything, in any order, to any back-end, and looks at every answer.

Blocking, with time-outs: no task, no state machine, none of the code under test. `vhost.Frontend` is the one for use.
"""

from __future__ import annotations

import array
import os
import select
import socket
import struct
import sys
import time
from collections.abc import Callable, Sequence
from typing import Final, Self

from vhost import wire
from vhost.constants import (
    FLAGS_REPLY,
    FLAGS_REQUEST,
    HEADER_SIZE,
    MAX_FDS,
    HeaderFlag,
    ProtocolFeature,
    VirtioFeature,
)
from vhost.constants import FrontendRequest as F
from vhost.errors import request_name
from vhost.frontend.memory import Memory
from vhost.frontend.rings import Buffer, PackedRing, SplitRing, Used, make_ring
from vhost.messages import MemTable, Payload, VringAddr, VringFd, VringState

Connect = Callable[[], socket.socket]
"""Makes a fresh connection to the back-end under test."""

QUIET: Final = 0.1
"""Seconds without an answer that count as none."""


class Failure(AssertionError):
    """The back-end did something else than it should have; one sentence."""


class NotOffered(Exception):
    """The back-end does not offer what this is about."""


class Gone(Failure):
    """The back-end closed the connection."""


def connect_to(path: str | os.PathLike[str], timeout: float = 5) -> Connect:
    """Connections to the socket at `path`, tried again until somebody listens or `timeout` seconds have passed."""

    def connect() -> socket.socket:
        end = time.monotonic() + timeout
        while True:
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                sock.connect(os.fspath(path))
                return sock
            except (FileNotFoundError, ConnectionRefusedError):
                sock.close()
                if time.monotonic() > end:
                    raise
                time.sleep(0.02)
            except BaseException:
                sock.close()
                raise

    return connect


class Reply:
    """An answer, raw. Owns its descriptors; the peer closes those left at its end."""

    def __init__(self, request: int, flags: int, payload: bytes, fds: Sequence[int]) -> None:
        """Args: fds: taken over."""
        self.request, self.flags, self.payload, self.fds = request, flags, payload, list(fds)

    def u64(self) -> int:
        """Its number. Raises: Failure: it is not 8 bytes."""
        if len(self.payload) != 8:
            raise Failure(f"{request_name(self.request)} was answered with {len(self.payload)} bytes instead of 8")
        return int.from_bytes(self.payload, sys.byteorder)

    def take_fd(self) -> int:
        """Its first descriptor, now the caller's."""
        return self.fds.pop(0)

    def close(self) -> None:
        """Close what is left."""
        while self.fds:
            os.close(self.fds.pop())


class Ring:
    """A ring of the peer with its eventfds."""

    def __init__(self, peer: Peer, index: int, driver: SplitRing | PackedRing) -> None:
        """Made by Peer.ring."""
        self.peer, self.index, self.driver = peer, index, driver
        self.kick_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.call_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.err_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.token = 0

    @property
    def split(self) -> SplitRing:
        """The ring, which must be split."""
        assert isinstance(self.driver, SplitRing)
        return self.driver

    @property
    def packed(self) -> PackedRing:
        """The ring, which must be packed."""
        assert isinstance(self.driver, PackedRing)
        return self.driver

    def kick(self) -> None:
        """Tell the back-end to look."""
        os.eventfd_write(self.kick_fd, 1)

    def calls(self) -> int:
        """Notifications since the last look."""
        try:
            return os.eventfd_read(self.call_fd)
        except BlockingIOError:
            return 0

    def errors(self) -> int:
        """Errors signalled since the last look."""
        try:
            return os.eventfd_read(self.err_fd)
        except BlockingIOError:
            return 0

    def submit(self, out: Sequence[Buffer], in_: Sequence[Buffer], *, indirect: bool = False, kick: bool = True) -> int:
        """Add, publish and kick, wanted or not; returns the token."""
        self.token += 1
        self.driver.add(out, in_, self.token, indirect=indirect)
        self.driver.publish()
        if kick:
            self.kick()
        return self.token

    def wait(self, count: int = 1, timeout: float = 5) -> list[Used]:
        """The next `count` requests that come back. Raises: Failure: they do not within `timeout` seconds."""
        done: list[Used] = []
        end = time.monotonic() + timeout
        while len(done) < count:
            got = self.driver.poll()
            done += got
            if got:
                continue
            if time.monotonic() > end:
                self.peer.check_alive()
                raise Failure(f"{count - len(done)} of {count} requests on ring {self.index} did not come back")
            select.select([self.call_fd], [], [], 0.002)
            self.calls()
        return done

    def nothing(self, seconds: float = QUIET) -> None:
        """Raises: Failure: a request came back within `seconds`."""
        time.sleep(seconds)
        if self.driver.poll():
            raise Failure(f"ring {self.index} was processed although it must not be")

    def close(self) -> None:
        """Close the eventfds."""
        for fd in (self.kick_fd, self.call_fd, self.err_fd):
            os.close(fd)


class Peer:
    """One connection.

    Attributes:
        sock: the socket.
        memory: 16 MiB unless given.
        features, protocol: offered, once `handshake` ran; `acked_features`, `acked_protocol`: acknowledged.
        rings: by index.
    """

    def __init__(self, sock: socket.socket, *, memory: Memory | None = None, timeout: float = 5) -> None:
        """Args: sock: taken over, as is `memory`; timeout: seconds an answer may take."""
        self.sock = sock
        self.timeout = timeout
        self._memory = memory
        self.features = self.acked_features = 0
        self.protocol = self.acked_protocol = ProtocolFeature(0)
        self.rings: dict[int, Ring] = {}
        self._replies: list[Reply] = []

    @property
    def memory(self) -> Memory:
        """Guest memory, made at first use."""
        if self._memory is None:
            self._memory = Memory(16 << 20)
        return self._memory

    @property
    def pid(self) -> int:
        """Process of the other end."""
        option = self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        return int.from_bytes(option[:4], sys.byteorder)

    # Bytes

    def send_bytes(self, data: bytes, fds: Sequence[int] = ()) -> None:
        """Send exactly this. Raises: Gone: nobody reads."""
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        self.sock.settimeout(self.timeout)
        try:
            sent = self.sock.sendmsg([data], ancillary)
            if sent < len(data):
                self.sock.sendall(data[sent:])
        except (BrokenPipeError, ConnectionResetError) as error:
            raise Gone("the back-end closed the connection") from error

    def raw(self, request: int, payload: bytes = b"", *, flags: int = FLAGS_REQUEST, fds: Sequence[int] = ()) -> None:
        """Send a message with these bytes as payload."""
        self.send_bytes(wire.build_header(wire.Header(request, flags, len(payload))) + payload, fds)

    def send(self, request: int, payload: Payload = None, *, need_reply: bool = False, fds: Sequence[int] = ()) -> None:
        """Send a well-formed message; waits for nothing."""
        flags = FLAGS_REQUEST | (HeaderFlag.NEED_REPLY if need_reply else 0)
        self.raw(request, wire.build_payload(payload), flags=flags, fds=fds)

    def _read(self, count: int, timeout: float) -> tuple[bytes, list[int]]:
        data, fds = b"", array.array("i")
        end = time.monotonic() + timeout
        while len(data) < count:
            self.sock.settimeout(max(end - time.monotonic(), 0.001))
            try:
                got, ancillary, _flags, _ = self.sock.recvmsg(
                    count - len(data), socket.CMSG_SPACE(MAX_FDS * 4), socket.MSG_CMSG_CLOEXEC
                )
            except TimeoutError:
                if data:
                    raise Failure(f"an answer stopped after {len(data)} of {count} bytes") from None
                raise
            except ConnectionResetError as error:
                raise Gone("the back-end closed the connection") from error
            for level, kind, raw in ancillary:
                if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                    fds.frombytes(raw[: len(raw) // 4 * 4])
            if not got:
                raise Gone("the back-end closed the connection")
            data += got
        return data, list(fds)

    def reply(self, request: int | None = None, timeout: float | None = None) -> Reply:
        """The next answer; closed with the peer.

        Raises: Failure: none comes, to another request, or its flags are not exactly 0x5; Gone.
        """
        name = "the message" if request is None else request_name(request)
        try:
            header, fds = self._read(HEADER_SIZE, timeout or self.timeout)
        except TimeoutError:
            raise Failure(f"{name} was not answered") from None
        except Gone:
            raise Gone(f"the back-end closed the connection instead of answering {name}") from None
        number, flags, size = struct.unpack("=III", header)
        answer = Reply(number, flags, b"", fds)
        self._replies.append(answer)
        if flags != FLAGS_REPLY:
            raise Failure(f"the answer to {name} has flags {flags:#x} instead of 0x5")
        if request is not None and number != request:
            raise Failure(f"{name} was answered with {request_name(number)}")
        if size:
            answer.payload, more = self._read(size, self.timeout)
            answer.fds += more
        return answer

    def silent(self, seconds: float = QUIET) -> None:
        """Raises: Failure: something came; Gone: the end came."""
        self.sock.settimeout(seconds)
        try:
            data = self.sock.recv(HEADER_SIZE)
        except TimeoutError:
            return
        except ConnectionResetError as error:
            raise Gone("the back-end closed the connection") from error
        if not data:
            raise Gone("the back-end closed the connection")
        number = struct.unpack("=III", data)[0] if len(data) == HEADER_SIZE else -1
        raise Failure(f"an answer came that nobody asked for ({request_name(number)})")

    def closed(self, seconds: float = 5) -> bool:
        """Whether the back-end closes the connection within `seconds`; answers on the way are thrown away."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self.sock.settimeout(left)
            try:
                if not self.sock.recv(4096):
                    return True
            except TimeoutError:
                return False
            except ConnectionResetError:
                return True
        return False

    def check_alive(self) -> None:
        """Raises: Gone: the connection was closed."""
        self.sock.setblocking(False)
        try:
            if not self.sock.recv(1, socket.MSG_PEEK):
                raise Gone("the back-end closed the connection")
        except BlockingIOError:
            return
        except ConnectionResetError as error:
            raise Gone("the back-end closed the connection") from error

    # Messages

    def ask(self, request: int, payload: Payload = None, *, need_reply: bool = False, fds: Sequence[int] = ()) -> Reply:
        """Send and wait for the answer."""
        self.send(request, payload, need_reply=need_reply, fds=fds)
        return self.reply(request)

    def ask_u64(self, request: int, payload: Payload = None) -> int:
        """Send and wait for a number."""
        answer = self.ask(request, payload)
        answer.close()
        return answer.u64()

    def code(self, request: int, payload: Payload = None, *, fds: Sequence[int] = ()) -> int:
        """Send with NEED_REPLY; what the acknowledgement says, 0 is success.

        Without REPLY_ACK GET_FEATURES is asked behind it, as QEMU does, so that it took effect.
        """
        if ProtocolFeature.REPLY_ACK in self.acked_protocol:
            answer = self.ask(request, payload, need_reply=True, fds=fds)
            answer.close()
            return answer.u64()
        self.send(request, payload, fds=fds)
        self.ask_u64(F.GET_FEATURES)
        return 0

    def ok(self, request: int, payload: Payload = None, *, fds: Sequence[int] = ()) -> None:
        """As `code`. Raises: Failure: it is not 0."""
        if code := self.code(request, payload, fds=fds):
            raise Failure(f"{request_name(request)} was refused with {code}")

    def need(self, feature: ProtocolFeature) -> None:
        """Raises: NotOffered."""
        if feature not in self.acked_protocol:
            raise NotOffered(str(feature.name))

    def need_feature(self, bit: int, name: str = "") -> None:
        """Raises: NotOffered."""
        if not self.features & bit:
            raise NotOffered(name or str(VirtioFeature(bit).name))

    def handshake(self, protocol: int = ~0, *, owner: bool = True, inband: bool = False) -> Self:
        """GET_FEATURES, protocol features (all offered; in-band notifications only with `inband`), SET_OWNER."""
        self.features = self.ask_u64(F.GET_FEATURES)
        if self.features & VirtioFeature.PROTOCOL_FEATURES and protocol:
            self.protocol = ProtocolFeature(self.ask_u64(F.GET_PROTOCOL_FEATURES))
            acked = self.protocol & protocol & ~ProtocolFeature.XEN_MMAP
            if not inband:
                acked &= ~ProtocolFeature.INBAND_NOTIFICATIONS
            self.send(F.SET_PROTOCOL_FEATURES, int(acked))
            self.acked_protocol = ProtocolFeature(acked)
        if owner:
            self.send(F.SET_OWNER)
        return self

    def set_features(self, features: int) -> None:
        """SET_FEATURES with exactly these bits."""
        self.ok(F.SET_FEATURES, features)
        self.acked_features = features

    def share_memory(self) -> None:
        """All of `memory`: SET_MEM_TABLE, or ADD_MEM_REG where memory slots are negotiated."""
        if ProtocolFeature.CONFIGURE_MEM_SLOTS in self.acked_protocol:
            for region in self.memory.regions:
                self.ok(F.ADD_MEM_REG, region.message(), fds=[region.fd])
        else:
            self.mem_table()

    def mem_table(self) -> None:
        """SET_MEM_TABLE with all of `memory`."""
        self.ok(F.SET_MEM_TABLE, MemTable(self.memory.messages()), fds=self.memory.filenos())

    # Rings

    def ring(self, index: int, size: int, *, base: int | None = None) -> Ring:
        """A new ring in memory; nothing is sent."""
        ring = Ring(self, index, make_ring(self.memory, size, self.acked_features, base))
        if index in self.rings:
            self.rings[index].close()
        self.rings[index] = ring
        return ring

    def address(self, ring: Ring, *, log: bool = False) -> VringAddr:
        """SET_VRING_ADDR's payload for a ring."""
        uaddr, driver = self.memory.uaddr, ring.driver
        return VringAddr(
            ring.index, int(log), uaddr(driver.desc), uaddr(driver.used), uaddr(driver.avail), driver.used if log else 0
        )

    def set_up(self, ring: Ring, *, base: int | None = None, call: bool = True) -> None:
        """NUM, BASE, ADDR, CALL, ERR of a ring."""
        index = ring.index
        self.ok(F.SET_VRING_NUM, VringState(index, ring.driver.size))
        self.ok(F.SET_VRING_BASE, VringState(index, ring.driver.base() if base is None else base))
        self.ok(F.SET_VRING_ADDR, self.address(ring))
        self.ok(F.SET_VRING_CALL, VringFd(index, call), fds=[ring.call_fd] if call else [])
        self.ok(F.SET_VRING_ERR, VringFd(index, True), fds=[ring.err_fd])

    def start(self, ring: Ring, *, enable: bool = True, base: int | None = None, call: bool = True) -> Ring:
        """Set a ring up, kick fd last, and enable it."""
        self.set_up(ring, base=base, call=call)
        self.ok(F.SET_VRING_KICK, VringFd(ring.index, True), fds=[ring.kick_fd])
        if enable:
            self.enable(ring)
        return ring

    def enable(self, ring: Ring, on: bool = True) -> None:
        """SET_VRING_ENABLE, where rings start disabled."""
        if self.acked_features & VirtioFeature.PROTOCOL_FEATURES:
            self.ok(F.SET_VRING_ENABLE, VringState(ring.index, int(on)))

    def stop(self, ring: Ring) -> int:
        """GET_VRING_BASE: the base."""
        answer = self.ask(F.GET_VRING_BASE, VringState(ring.index, 0))
        answer.close()
        if len(answer.payload) != 8:
            raise Failure(f"GET_VRING_BASE was answered with {len(answer.payload)} bytes instead of 8")
        index, num = struct.unpack("=II", answer.payload)
        if index != ring.index:
            raise Failure(f"GET_VRING_BASE of ring {ring.index} was answered for ring {index}")
        return int(num)

    def bring_up(
        self, features: int, *, queues: int = 1, size: int = 64, protocol: int = ~0, bases: Sequence[int] = ()
    ) -> list[Ring]:
        """Everything until rings run: handshake, `features` as far as offered, memory, `queues` rings."""
        self.handshake(protocol)
        self.set_features((features | VirtioFeature.PROTOCOL_FEATURES | VirtioFeature.VERSION_1) & self.features)
        self.share_memory()
        return [self.start(self.ring(index, size, base=bases[index] if bases else None)) for index in range(queues)]

    def put(self, data: bytes) -> Buffer:
        """Fresh memory with `data`."""
        at = self.memory.alloc(len(data))
        self.memory.write(at, data)
        return at, len(data)

    def room(self, size: int, fill: int = 0xA5) -> Buffer:
        """Fresh memory of `size` bytes, filled."""
        return self.put(bytes([fill]) * size)

    def close(self) -> None:
        """Close everything; a second call does nothing."""
        self.sock.close()
        for ring in self.rings.values():
            ring.close()
        self.rings.clear()
        for answer in self._replies:
            answer.close()
        if self._memory is not None:
            self._memory.close()
            self._memory = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()
