"""Runs what a command line or a configuration file asked for: one server process, until a signal."""

from __future__ import annotations

import logging
import os
import resource
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from importlib.metadata import version
from typing import Any, Literal

import trio

from vhost import logs
from vhost.config import Config, DeviceConfig, parse_cpus, parse_endpoint
from vhost.constants import VirtioFeature
from vhost.control import ControlServer, Methods
from vhost.device import Device, Metric
from vhost.errors import VhostError
from vhost.metrics import exporter, prometheus_text
from vhost.placement import WorkerOptions
from vhost.server import Server, open_server, run_until_signal
from vhost.session import Options

__all__ = ["run"]

log = logging.getLogger("vhost.cli")


def run(config: Config) -> None:
    """Serve until SIGTERM or SIGINT, then drain and return.

    Raises:
        VhostError: it could not be started: one sentence.
    """
    logs.setup(config.server["log_level"], config.server["log_style"])
    _raise_limits()
    try:
        trio.run(run_until_signal, _serve, config)
    except BaseExceptionGroup as group:
        raise _single(group) from group


def _single(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The sentence for the user in what nurseries have wrapped, or the group where there is none."""
    ours, _ = group.split(VhostError)
    while ours is not None and isinstance(ours, BaseExceptionGroup):
        first = ours.exceptions[0]
        if not isinstance(first, BaseExceptionGroup):
            return first
        ours = first
    return group


def _raise_limits() -> None:
    """Each queue takes a handful of descriptors; the soft limit of 1024 is for select() users."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _options(connection: Mapping[str, Any]) -> Options:
    return Options(
        iommu=connection["iommu"],
        inband_notifications=connection["inband"],
        shmem=True,  # devices that have some were asked to
        without=0 if connection["packed"] == "on" else int(VirtioFeature.RING_PACKED),
    )


def _workers(server: Mapping[str, Any]) -> WorkerOptions:
    cpus = parse_cpus(server["cpus"]) if server["cpus"] else ()
    if missing := sorted(set(cpus) - os.sched_getaffinity(0)):
        raise VhostError(f"cpus: no CPU {missing[0]} for this process; 'taskset -cp $$' shows what it may use")
    return WorkerOptions(
        count=server["workers"], cpus=cpus, poll_us=server["poll_us"], coalesce_us=server["coalesce_us"]
    )


async def _serve(config: Config) -> None:
    workers = _workers(config.server)
    endpoint = parse_endpoint(config.server["metrics"]) if config.server["metrics"] else None
    async with AsyncExitStack() as stack:
        # stores are closed after the server has drained its queues: they are entered first
        devices = [(item, await stack.enter_async_context(item.type.open(item.values))) for item in config.devices]
        server = await stack.enter_async_context(open_server(workers=workers))
        server.pool.hold()
        nursery = await stack.enter_async_context(trio.open_nursery())
        if endpoint is not None:
            host, port = endpoint
            try:
                bound = await stack.enter_async_context(exporter(lambda: _metrics(server), host, port))
            except OSError as exc:
                raise VhostError(f"cannot serve metrics on {config.server['metrics']}: {exc.strerror}") from exc
            log.info("metrics on http://%s:%d/metrics", host, bound)
        for item, device in devices:
            others = {other.name: found for other, found in devices if found is not device}
            device.meet(others, [found for other, found in devices if other.companion_of == item.name])
        for item, device in devices:
            await _start(server, item, device)
        if config.server["control"]:
            control = ControlServer(_methods(server), lambda: _device_methods(server))
            await nursery.start(control.serve, config.server["control"])
        _seal(devices)
        server.pool.go()
        await server.finished()  # sockets that were handed in connected end by themselves
        nursery.cancel_scope.cancel()


def _seal(devices: Sequence[tuple[DeviceConfig, Device]]) -> None:
    """Give up what no device needs, where all say what they do."""
    needs = {item.name: device.confinement for item, device in devices}
    known = [need for need in needs.values() if need is not None]
    if not known:
        return
    if unknown := [name for name, need in needs.items() if need is None]:
        log.warning("no sandbox: it is not known what %s needs; serve it by a process of its own", unknown[0])
        return
    from vhost.sandbox import seal

    seal(known)


async def _start(server: Server, item: DeviceConfig, device: Any) -> None:
    options = _options(item.connection)
    try:
        if item.fd >= 0:
            await server.serve_fd(device, item.fd, name=item.name, options=options)
        elif item.connection["connect"] is not None:
            await server.connect(device, item.connection["connect"], name=item.name, options=options)
        else:
            mode = item.connection["socket_mode"]
            await server.listen(device, item.connection["socket_path"], name=item.name, options=options, mode=mode)
    except ValueError as exc:
        raise VhostError(f"{item.name}: {exc}") from exc


#: in a ring's status: name, kind and help of its metric
_RING_METRICS: Mapping[str, tuple[str, Literal["counter", "gauge"], str]] = {
    "requests": ("ring_requests_total", "counter", "Requests completed since the ring was started"),
    "notified": ("ring_notifications_total", "counter", "Interrupts sent since then"),
    "held": ("ring_notifications_held_total", "counter", "Interrupts held back for a while since then"),
    "in_flight": ("ring_in_flight", "gauge", "Requests under way"),
    "size": ("ring_size", "gauge", "Descriptors"),
}


def _ring_metrics(rings: Iterable[Mapping[str, Any]]) -> Iterable[Metric]:
    for ring in rings:
        for key, (name, kind, words) in _RING_METRICS.items():
            yield Metric(name, kind, words, ring[key], {"ring": str(ring["index"])})


def _metrics(server: Server) -> Iterable[tuple[Mapping[str, str], Iterable[Metric]]]:
    for name, endpoint in server.endpoints.items():
        here = int(endpoint.connection is not None)
        connected = Metric("connected", "gauge", "1 while a front-end is connected", here)
        connections = Metric("connections_total", "counter", "Front-ends served", endpoint.connections)
        rings = _ring_metrics(endpoint.status()["rings"])
        yield {"device": name}, [connected, connections, *rings, *endpoint.device.metrics()]
    for number, worker in enumerate(server.pool.workers):
        stats = worker.stats
        yield (
            {"worker": str(number)},
            [
                Metric("worker_cpu_seconds_total", "counter", "CPU time of the worker thread", stats.cpu_ns / 1e9),
                Metric("worker_sleeps_total", "counter", "Times the worker went to sleep", stats.sleeps),
                Metric("worker_wakeups_total", "counter", "Kicks and completions that woke it", stats.wakeups),
            ],
        )


def _methods(server: Server) -> Methods:
    def status() -> dict[str, Any]:
        """Every device with its front-end and rings."""
        return server.status()

    def metrics() -> str:
        """All counters as Prometheus text."""
        return prometheus_text(lambda: _metrics(server))

    def versions() -> str:
        """The version of vhostkit that runs."""
        return version("vhostkit")

    return {"status": status, "metrics": metrics, "version": versions}


def _device_methods(server: Server) -> dict[str, Methods]:
    return {name: device.controls() for name, device in server.devices.items()}
