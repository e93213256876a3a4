"""Images at an NBD server: qcow2 by qemu-nbd, anything by nbdkit, remote and distributed storage by its own gateway."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final, Self
from urllib.parse import unquote, urlsplit

import trio

from devices.blk._blk import lib as blk_lib
from devices.blk.stores.base import SECTOR, Store, StoreError, StorePtr, Topology
from vhost.device import Metric

try:
    from devices.blk._nbd import ffi, lib
except ImportError as exc:
    raise ImportError(
        f"the NBD store is not built; install libnbd (Debian: libnbd-dev) and build again ({exc})"
    ) from exc

__all__ = ["NbdStatus", "NbdStore"]

log = logging.getLogger(__name__)

_FORMS: Final = "nbd://HOST[:PORT]/EXPORT or nbd+unix:///EXPORT?socket=PATH"


@dataclass(frozen=True, slots=True)
class NbdStatus:
    """How an NBD store gets on with its server.

    Attributes:
        connections: it keeps.
        connected: of them, now.
        given_up: of them, lost for so long that requests fail at once.
        losses: connections lost so far.
        reconnects: connections that came back.
        replayed: requests sent again after a loss.
        failed: requests that failed for want of a server.
        commands: NBD commands sent.
        bounced: requests whose pieces were copied to make one command.
        reason: why the last connection was lost, in libnbd's words.
    """

    connections: int
    connected: int
    given_up: int
    losses: int
    reconnects: int
    replayed: int
    failed: int
    commands: int
    bounced: int
    reason: str

    @property
    def up(self) -> bool:
        """All connections stand."""
        return self.connected == self.connections


class NbdStore(Store):
    """An export of an NBD server. Made by `open`.

    Each connection has a thread. A lost one is opened again and what was under way is sent once more; guests see a slow
    disk, and failed requests after `reconnect` seconds without a server.
    """

    def __init__(self, ptr: StorePtr, uri: str, info: Any, news: int, reconnect: float) -> None:
        """Take over the store and the eventfd ``news``; use `open`."""
        self._news = news
        self._reconnect = reconnect
        self.description = uri
        #: negotiated TLS
        self.tls = bool(info.tls)
        #: durable writes need no flush after them
        self.can_fua = bool(info.can_fua)
        self.connections = int(info.connections)
        logical = max(int(info.block_min), SECTOR)
        preferred = int(info.block_preferred)
        physical = preferred if preferred & (preferred - 1) == 0 and logical <= preferred <= 1 << 16 else logical
        self.topology = Topology(logical, physical, physical, 0, physical)
        super().__init__(ptr, info.size - info.size % SECTOR)

    @classmethod
    def open(
        cls,
        uri: str,
        *,
        read_only: bool = False,
        connections: int = 4,
        connect_timeout: float = 5.0,
        reconnect: float = 30.0,
    ) -> Self:
        """Connect to a server; waits for it.

        Args:
            uri: ``nbd://HOST[:PORT]/EXPORT``, ``nbd+unix:///EXPORT?socket=PATH``; with TLS ``nbds://`` and
                ``nbds+unix://`` (``?tls-certificates=DIR`` or ``?tls-psk-file=FILE``).
            read_only: write nothing.
            connections: most connections, 1 to 16; queues are spread over them. One where the server does not promise
                that a flush on one connection covers the others.
            connect_timeout: of one attempt, seconds; the name server's answer is not counted.
            reconnect: how long requests wait for a lost server before they fail, seconds.

        Raises:
            StoreError: nobody answers there, there is no such export, or it cannot be a disk.
        """
        if not 1 <= connections <= 16:
            raise ValueError(f"connections is {connections}; give 1 to 16")
        if not 0 < connect_timeout <= 86400 or not 0 <= reconnect <= 86400:
            raise ValueError("connect_timeout and reconnect are seconds, up to a day")
        text = ffi.new("char[]", uri.encode())
        info, failure = ffi.new("struct blk_nbd_info *"), ffi.new("struct blk_nbd_failure *")
        config = ffi.new("struct blk_nbd_config *")
        news = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        config.uri, config.read_only, config.connections, config.news_fd = text, read_only, connections, news
        config.connect_ms, config.reconnect_ms = int(connect_timeout * 1000), int(reconnect * 1000)
        ptr = lib.blk_nbd_open(config, info, failure)
        try:
            if ptr == ffi.NULL:
                raise StoreError(_explain(uri, failure, connect_timeout))
            _check(uri, info, read_only)
            return cls(StorePtr(ptr), uri, info, news, reconnect)
        except BaseException:
            if ptr != ffi.NULL:
                blk_lib.blk_store_free(ptr)
            os.close(news)
            raise

    @property
    def status(self) -> NbdStatus:
        """How it gets on with the server now."""
        raw = ffi.new("struct blk_nbd_status *")
        lib.blk_nbd_status(self.ptr, raw)
        return NbdStatus(
            raw.connections,
            raw.connected,
            raw.given_up,
            raw.losses,
            raw.reconnects,
            raw.replayed,
            raw.failed,
            raw.commands,
            raw.bounced,
            _plain(ffi.string(raw.text).decode(errors="replace")),
        )

    async def sync(self) -> None:
        """As `Store.sync`: waits for a lost server as requests do."""
        if self.read_only:
            return
        code = -await trio.to_thread.run_sync(lib.blk_nbd_sync, self.ptr)
        if code:
            raise OSError(code, os.strerror(code), self.description)

    async def watch(self) -> None:
        """Log once when the server is lost, when requests begin to fail, and when it is back."""
        before = self.status
        while True:
            await trio.lowlevel.wait_readable(self._news)
            try:
                os.eventfd_read(self._news)
            except BlockingIOError:
                continue
            now = self.status
            self._report(before, now)
            before = now

    def _report(self, before: NbdStatus, now: NbdStatus) -> None:
        where = self.description
        if now.losses > before.losses and before.up:
            log.warning("%s: connection lost (%s); requests wait up to %g s", where, now.reason, self._reconnect)
        if now.given_up and not before.given_up:
            log.error("%s: no server for %g s (%s); requests fail until it is back", where, self._reconnect, now.reason)
        if now.up and (not before.up or now.losses > before.losses):
            log.info("%s: connected again, %d requests were sent once more", where, now.replayed)

    def metrics(self) -> Iterable[Metric]:
        """As `Store.metrics`."""
        now = self.status
        yield Metric("nbd_connected", "gauge", "1 while all connections to the NBD server stand.", float(now.up))
        yield Metric("nbd_losses_total", "counter", "Connections to the NBD server that were lost.", now.losses)
        yield Metric("nbd_replayed_total", "counter", "Requests sent again after a lost connection.", now.replayed)
        yield Metric("nbd_failed_total", "counter", "Requests that failed for want of an NBD server.", now.failed)

    def close(self) -> None:
        """As `Store.close`; says goodbye to the server, for at most half a second."""
        if self._ptr is not None:
            super().close()
            os.close(self._news)


def _check(uri: str, info: Any, read_only: bool) -> None:
    if info.read_only and not read_only:
        raise StoreError(f"{uri}: the server exports it read-only; serve it with --read-only, or change the server")
    if info.size < SECTOR:
        raise StoreError(f"{uri}: the export has {info.size} bytes; a disk has at least {SECTOR}")
    if info.block_min > 1 << 16:
        raise StoreError(
            f"{uri}: the server takes only whole blocks of {info.block_min} bytes, more than a disk can have; "
            "put nbdkit's blocksize filter in front of it"
        )


def _plain(text: str) -> str:
    """libnbd's message without the name of the function."""
    head, colon, rest = text.partition(": ")
    return rest if colon and head.startswith("nbd_") else text


def _explain(uri: str, failure: Any, timeout: float) -> str:
    """What went wrong, and what to do."""
    text = _plain(ffi.string(failure.text).decode(errors="replace"))
    code = failure.code
    if failure.at == lib.BLK_NBD_AT_SETUP:
        return f"{uri}: {os.strerror(code)}"
    if failure.at == lib.BLK_NBD_AT_URI:
        return f"{uri}: not the address of an NBD export ({text}); write {_FORMS}"
    if code == errno.ETIMEDOUT:
        return f"{uri}: the server did not answer within {timeout:g} s; is it the right address, and not overloaded?"
    if failure.at == lib.BLK_NBD_AT_CONNECT:
        if code in (errno.ECONNREFUSED, errno.ENOENT):
            return f"{uri}: nobody listens there; start the NBD server first, or check the address"
        if code == errno.EACCES:
            return f"{uri}: this user may not open the server's socket"
        return f"{uri}: no connection ({text}); check the address"
    if code == errno.ENOENT:
        name = unquote(urlsplit(uri).path.removeprefix("/"))
        return f"{uri}: the server has no export {name!r}; `nbdinfo --list` shows those it has"
    if "requires TLS" in text:
        return f"{uri}: the server wants TLS; write nbds instead of nbd"
    if "refused TLS" in text:
        return f"{uri}: the server has no TLS; write nbd instead of nbds"
    return f"{uri}: the server's handshake failed ({text})"
