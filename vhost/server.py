"""The server: any number of devices, each with its socket, in one process.

    async with vhost.open_server(workers=WorkerOptions(count=2)) as server:
        await server.listen(disk, "/run/vm0.sock")
        await server.listen(other, "/run/vm1.sock")
        await trio.sleep_forever()

or, for one device, `await vhost.serve(disk, "/run/vm0.sock")`.

Front-ends of a socket are served one after the other: a second one that connects meanwhile waits, and a line in the log
says so. After a front-end went away the next is taken, when the last one's requests have ended.
"""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final

import trio

from vhost import listener
from vhost._log import Fields, RateLimit
from vhost._session_state import Options
from vhost._shelter import bare_errors, set_when_cancelled, sheltered_nursery
from vhost.connection import Connection, describe
from vhost.device import Device
from vhost.placement import Policy, WorkerOptions, WorkerPool, least_loaded

__all__ = ["Endpoint", "Server", "open_server", "run_until_signal", "serve", "serve_fd"]

_log = logging.getLogger("vhost.server")

DEFAULT_GRACE: Final = 5.0
"""Seconds that requests in flight may take after the server was told to end."""

RECONNECT_PAUSE: Final = 0.1
"""Seconds before a client connects again to a front-end that hung up on it."""


WAITING_SECONDS: Final = 1.0
"""How long a second front-end waits before a line in the log says so."""


class Endpoint:
    """A device and the socket it is served on.

    Attributes:
        stopping: set when this is ending.
    """

    def __init__(self, server: Server, device: Device, name: str, options: Options, where: str) -> None:
        self.server = server
        self.device = device
        self.name = name
        self.options = options
        self.where = where
        self.connection: Connection | None = None
        self.connections = 0
        self.log = Fields(_log, {"device": name, "socket": where})
        self.stopping = trio.Event()
        self.scope = trio.CancelScope()
        self.gone = trio.Event()
        self._limit = RateLimit()
        self._limit_connects = RateLimit(20, 5.0)

    async def serve_socket(self, sock: trio.socket.SocketType) -> None:
        """Serve one connected front-end until it goes; owns `sock`."""
        # A front-end that comes and goes all the time fills no disk.
        log = self.log if self._limit_connects() else self.log.quiet()
        connection = Connection(
            self.device,
            sock,
            self.server.pool,
            options=self.options,
            log=log,
            limit=self._limit,
            stopping=self.stopping,
            grace=self.server.grace,
        )
        self.connection = connection
        self.connections += 1
        try:
            await connection.run()
        finally:
            self.connection = None

    async def serve_listener(self, sock: trio.socket.SocketType) -> None:
        """Serve front-ends that connect to `sock` (not owned), one after the other, until cancelled."""
        while True:
            try:
                client, _ = await sock.accept()
            except OSError as error:
                # Out of descriptors or memory: others need theirs back first.
                self.log.warning("cannot accept a front-end: %s", error.strerror)
                await trio.sleep(0.5)
                continue
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._announce_waiting, sock)
                await self.serve_socket(client)
                nursery.cancel_scope.cancel()

    async def _announce_waiting(self, sock: trio.socket.SocketType) -> None:
        await trio.lowlevel.wait_readable(sock)
        await trio.sleep(WAITING_SECONDS)  # the one before may just be leaving
        pid = self.connection.pid if self.connection else None
        self.log.warning(
            "another front-end wants this device and has to wait until process %s has disconnected; "
            "a second VM needs a device and a socket of its own",
            pid,
        )

    async def serve_client(self, path: str) -> None:
        """Connect to the front-end that listens on `path`, again and again, until cancelled."""
        while True:
            await self.serve_socket(await listener.connect(path))
            await trio.sleep(RECONNECT_PAUSE)

    async def aclose(self) -> None:
        """Serve the device no longer, while others go on; its requests in flight end first, in `Server.grace` seconds.

        Cancellation: it still ends, unwatched.
        """
        self.scope.cancel()
        await self.gone.wait()

    def status(self) -> dict[str, Any]:
        """What happens here, JSON-able."""
        connection, rings = self.connection, []
        if connection is not None and connection.instance is not None:
            for queue in connection.instance.queues:
                if queue.vq is None:
                    continue
                stats = queue.vq.stats
                rings.append(
                    {
                        "index": queue.index,
                        "state": queue.vq.state.name.lower(),
                        "paused": queue.paused,
                        "size": queue.vq.size,
                        "in_flight": queue.vq.in_flight,
                        "requests": stats.pushed,
                        "notified": stats.notified,
                        "held": stats.held,
                    }
                )
        return {
            "device": self.device.name,
            "socket": self.where,
            "connected": connection is not None,
            "pid": connection.pid if connection else None,
            "connections": self.connections,
            "features": f"{connection.session.features:#x}" if connection else None,
            "quiesced": self.device.quiesced,
            "rings": rings,
        }


class Server:
    """Devices, sockets and worker threads of a process. Made by `open_server`.

    Attributes:
        pool: worker threads.
        stopping: set when the server is ending.
        grace: seconds that requests in flight may take then.
    """

    def __init__(self, nursery: trio.Nursery, pool: WorkerPool, stopping: trio.Event, grace: float) -> None:
        self.pool = pool
        self.stopping = stopping
        self.grace = grace
        self._nursery = nursery
        self._endpoints: dict[str, Endpoint] = {}
        self._fewer = trio.Event()

    @property
    def endpoints(self) -> Mapping[str, Endpoint]:
        """Everything that is served, by name."""
        return self._endpoints

    @property
    def devices(self) -> dict[str, Device]:
        """Devices by name."""
        return {name: endpoint.device for name, endpoint in self._endpoints.items()}

    def status(self) -> dict[str, Any]:
        """What is served and how it goes, by name; JSON-able."""
        return {name: endpoint.status() for name, endpoint in self._endpoints.items()}

    async def listen(
        self,
        device: Device,
        path: str | os.PathLike[str],
        *,
        name: str | None = None,
        options: Options | None = None,
        mode: int = 0o600,
    ) -> Endpoint:
        """Serve `device` on a socket at `path`; returns when front-ends can connect.

        Args:
            path: a dead socket file there is replaced; it is removed at the end.
            name: of the device in logs, control and metrics; by default its own, made unique.
            options: what to offer.
            mode: permission bits of the socket file.

        Raises:
            SocketError: the socket cannot be had, in words.
            ValueError: `name` is taken, or the device asks for what cannot be.
        """
        path = os.fspath(path)
        endpoint = self._endpoint(device, name, options, path)
        await self._start(endpoint, self._run_listen, path, mode)
        return endpoint

    async def serve_fd(
        self, device: Device, fd: int, *, name: str | None = None, options: Options | None = None
    ) -> Endpoint:
        """Serve `device` on socket `fd` of a parent process: listening, or connected (then for one front-end).

        Raises: SocketError: it is neither; ValueError: as `listen`.

        Resource handling: owns the socket if it returns.
        """
        sock = listener.adopt(fd)
        try:
            endpoint = self._endpoint(device, name, options, f"fd {fd}")
        except BaseException:
            sock.close()
            raise
        await self._start(endpoint, self._run_socket, sock)
        return endpoint

    async def connect(
        self, device: Device, path: str | os.PathLike[str], *, name: str | None = None, options: Options | None = None
    ) -> Endpoint:
        """Serve `device` to the front-end that listens on `path`; connect until it does, and again when it went.

        Raises: ValueError: as `listen`.
        """
        path = os.fspath(path)
        endpoint = self._endpoint(device, name, options, path)
        await self._start(endpoint, self._run_client, path)
        return endpoint

    def _endpoint(self, device: Device, name: str | None, options: Options | None, where: str) -> Endpoint:
        describe(device)
        if name is None:
            name = device.name
            number = 1
            while name in self._endpoints:
                number += 1
                name = f"{device.name}-{number}"
        elif name in self._endpoints:
            raise ValueError(f"two devices are called {name!r}; give each a name of its own")
        return Endpoint(self, device, name, options or Options(), where)

    async def _start(self, endpoint: Endpoint, run: Callable[..., Awaitable[None]], *args: Any) -> None:
        """Run an endpoint in the background, once it is ready; what goes wrong before is raised here."""
        self._endpoints[endpoint.name] = endpoint
        try:
            with bare_errors():
                await self._nursery.start(self._run, endpoint, run, *args)
        except BaseException:
            self._endpoints.pop(endpoint.name, None)
            raise

    async def _run(
        self,
        endpoint: Endpoint,
        run: Callable[..., Awaitable[None]],
        *args: Any,
        task_status: trio.TaskStatus[None],
    ) -> None:
        try:
            with endpoint.scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(set_when_cancelled, endpoint.stopping)
                    nursery.start_soon(endpoint.device.background)
                    await run(endpoint, *args, task_status=task_status)
                    nursery.cancel_scope.cancel()
        finally:
            endpoint.gone.set()
        self._endpoints.pop(endpoint.name, None)
        event, self._fewer = self._fewer, trio.Event()
        event.set()

    async def _run_listen(
        self, endpoint: Endpoint, path: str, mode: int, *, task_status: trio.TaskStatus[None]
    ) -> None:
        async with listener.listen(path, mode=mode) as sock:
            endpoint.log.info("listening")
            task_status.started()
            await endpoint.serve_listener(sock)

    async def _run_socket(
        self, endpoint: Endpoint, sock: trio.socket.SocketType, *, task_status: trio.TaskStatus[None]
    ) -> None:
        with sock:
            listening = listener.is_listening(sock)
            task_status.started()
            if listening:
                await endpoint.serve_listener(sock)
            else:
                await endpoint.serve_socket(sock)

    async def _run_client(self, endpoint: Endpoint, path: str, *, task_status: trio.TaskStatus[None]) -> None:
        task_status.started()
        await endpoint.serve_client(path)

    async def finished(self) -> None:
        """Wait until nothing is served any more (connected sockets whose front-end has gone)."""
        while self._endpoints:
            await self._fewer.wait()


@asynccontextmanager
async def open_server(
    *, workers: WorkerOptions | None = None, policy: Policy = least_loaded, grace: float = DEFAULT_GRACE
) -> AsyncIterator[Server]:
    """A server; leaving the block ends it.

    Args:
        workers: threads for devices in C.
        policy: which of them gets a queue.
        grace: seconds that requests in flight may take at the end.

    Cancellation: front-ends are disconnected when their requests in flight have ended.
    """
    stopping = trio.Event()
    with bare_errors():
        async with sheltered_nursery() as threads:
            pool = WorkerPool(threads, workers, policy)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(set_when_cancelled, stopping)
                try:
                    yield Server(nursery, pool, stopping, grace)
                finally:
                    stopping.set()
                    nursery.cancel_scope.cancel()
        pool.close()


async def serve(
    device: Device,
    path: str | os.PathLike[str],
    *,
    options: Options | None = None,
    workers: WorkerOptions | None = None,
    policy: Policy = least_loaded,
    grace: float = DEFAULT_GRACE,
    mode: int = 0o600,
    task_status: trio.TaskStatus[Server] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve one device on a socket at `path` until cancelled; `nursery.start` returns when it can be connected to.

    Args: see `open_server` and `Server.listen`.

    Raises: SocketError: the socket cannot be had, in words.

    Cancellation: requests in flight end first, at most `grace` seconds.
    """
    async with open_server(workers=workers, policy=policy, grace=grace) as server:
        await server.listen(device, path, options=options, mode=mode)
        task_status.started(server)
        await trio.sleep_forever()


async def serve_fd(
    device: Device,
    fd: int,
    *,
    options: Options | None = None,
    workers: WorkerOptions | None = None,
    policy: Policy = least_loaded,
    grace: float = DEFAULT_GRACE,
    task_status: trio.TaskStatus[Server] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve one device on socket `fd`; returns when a connected one's front-end has gone.

    Args: see `open_server` and `Server.serve_fd`.

    Raises: SocketError: `fd` is no listening or connected Unix socket.
    """
    async with open_server(workers=workers, policy=policy, grace=grace) as server:
        await server.serve_fd(device, fd, options=options)
        task_status.started(server)
        await server.finished()


async def run_until_signal(
    function: Callable[..., Awaitable[Any]],
    *args: Any,
    signals: tuple[signal.Signals, ...] = (signal.SIGTERM, signal.SIGINT),
) -> None:
    """Run `function` until it returns or a signal comes: the first cancels it, the second ends the process at once."""
    async with trio.open_nursery() as nursery:
        with trio.open_signal_receiver(*signals) as received, trio.CancelScope() as scope:
            nursery.start_soon(_watch_signals, received, scope)
            await function(*args)
        # The watcher outlives the function's clean-up, for the second signal.
        nursery.cancel_scope.cancel()


async def _watch_signals(received: AsyncIterator[int], scope: trio.CancelScope) -> None:
    asked = False
    async for number in received:
        name = signal.Signals(number).name
        if asked:
            _log.error("second %s: ending at once", name)
            os._exit(1)
        asked = True
        _log.info("%s: ending when requests in flight are done", name)
        scope.cancel()
