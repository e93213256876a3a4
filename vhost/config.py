"""The configuration file of ``vhost serve``: many devices for many VMs in one process, in TOML.

    [server]
    control = "/run/vhost/control.sock"
    metrics = "127.0.0.1:9123"
    workers = 2
    poll-us = -1

    [[device]]
    type = "blk"
    name = "vm0-root"
    socket-path = "/run/vhost/vm0-root.sock"
    blk-file = "/images/vm0.img"
    num-queues = 4

The names are those of the command line. A mistake is reported with the file, the table and the option.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vhost.plugin import ConfigError, DeviceType, Option, find_device_type

__all__ = [
    "CONNECTION_OPTIONS",
    "SERVER_OPTIONS",
    "Config",
    "DeviceConfig",
    "load",
    "parse_endpoint",
    "with_companions",
]

#: of every device: where its front-end comes from and which of the server's services it gets
CONNECTION_OPTIONS = (
    Option("socket-path", "path", "listen on this Unix socket", metavar="PATH"),
    Option("socket-mode", "mode", "permission bits of the socket file, octal", 0o600, metavar="MODE"),
    Option("connect", "path", "client mode: connect to the front-end's socket, again and again", metavar="PATH"),
    Option("iommu", "flag", "offer ACCESS_PLATFORM: the guest may put the device behind a virtual IOMMU", False),
    Option("packed", "choice", "offer packed virtqueues", "on", choices=("on", "off")),
    Option("inband", "flag", "offer in-band notifications, for front-ends without eventfds", False),
)

#: of the process
SERVER_OPTIONS = (
    Option("control", "path", "control socket (JSON-RPC 2.0) for vhost ctl", metavar="PATH"),
    Option("metrics", "text", "serve Prometheus metrics over HTTP on HOST:PORT", metavar="HOST:PORT"),
    Option("workers", "int", "worker threads shared by all queues", 1, minimum=1, maximum=256),
    Option("cpus", "text", "CPUs to pin the workers to, e.g. 2,3 or 4-7", metavar="LIST"),
    Option(
        "poll-us",
        "int",
        "microseconds a worker polls before it sleeps; -1 follows the load, 0 never polls",
        -1,
        minimum=-1,
        maximum=2147483647,
    ),
    Option(
        "coalesce-us",
        "int",
        "most microseconds for which interrupts of a guest with many requests under way are held back; 0: none",
        0,
        minimum=0,
        maximum=100_000,
    ),
    Option("log-level", "choice", "least severe messages shown", "info", choices=("debug", "info", "warning", "error")),
    Option("log-style", "choice", "how log lines look", "text", choices=("text", "json")),
)


def parse_cpus(text: str) -> list[int]:
    """CPU numbers from ``0,2-4``.

    Raises:
        ConfigError: not such a list.
    """
    out: list[int] = []
    try:
        for part in text.split(","):
            first, dash, last = part.partition("-")
            out += range(int(first), int(last if dash else first) + 1)
    except ValueError:
        raise ConfigError(f"cpus: {text!r} is not a list of CPUs such as 2,3 or 4-7") from None
    if not out:
        raise ConfigError(f"cpus: {text!r} names no CPU")
    return out


def parse_endpoint(text: str) -> tuple[str, int]:
    """Host and port from ``HOST:PORT`` or ``PORT`` (on loopback).

    Raises:
        ConfigError: not such an address.
    """
    host, _, port = text.rpartition(":")
    if not port.isdigit() or int(port) > 65535:
        raise ConfigError(f"metrics: {text!r} is not HOST:PORT, such as 127.0.0.1:9123")
    return (host.strip("[]") or "127.0.0.1", int(port))


@dataclass(slots=True)
class DeviceConfig:
    """One device to serve.

    Attributes:
        type: What it is.
        name: Names it in logs, metrics and the control socket; unique in the process.
        values: Its own options (keys with underscores).
        connection: `CONNECTION_OPTIONS`' values.
        fd: Listening or connected socket instead of a path; owned from here on. -1: none.
        companion_of: Name of the device that it comes with; empty: none.
    """

    type: DeviceType
    name: str
    values: dict[str, Any]
    connection: dict[str, Any]
    fd: int = -1
    companion_of: str = ""


@dataclass(slots=True)
class Config:
    """All that a server process is to do."""

    server: dict[str, Any]
    devices: list[DeviceConfig] = field(default_factory=list)


def take(options: tuple[Option, ...], given: dict[str, Any]) -> dict[str, Any]:
    """Take the values of ``options`` out of ``given``; keys with underscores.

    Raises:
        ConfigError: a value that does not fit.
    """
    return {o.key: o.convert(given.pop(o.name)) if o.name in given else o.default for o in options}


def device_config(table: Mapping[str, Any], where: str) -> DeviceConfig:
    """One ``[[device]]`` table.

    Raises:
        ConfigError: with ``where`` in front.
    """
    try:
        given = dict(table)
        kind = given.pop("type", None)
        if not isinstance(kind, str):
            raise ConfigError('type is missing, such as type = "blk"')
        device_type = find_device_type(kind)
        name = given.pop("name", None)
        connection = take(CONNECTION_OPTIONS, given)
        if (connection["socket_path"] is None) == (connection["connect"] is None):
            raise ConfigError("give either socket-path or connect")
        if name is None:
            name = Path(connection["socket_path"] or connection["connect"]).stem
        return DeviceConfig(device_type, str(name), device_type.values(given), connection)
    except ConfigError as exc:
        raise ConfigError(f"{where}: {exc}") from exc


def with_companions(device: DeviceConfig) -> list[DeviceConfig]:
    """A device, and those that come with it.

    Raises:
        ConfigError: one of those is not installed, or has no such option.
    """
    found = [device]
    for each in device.type.companions(device.values) if device.type.companions is not None else ():
        kind = find_device_type(each.type)
        connection = take(CONNECTION_OPTIONS, {"socket-path": each.socket_path})
        for shared in ("socket_mode", "packed", "iommu", "inband"):
            connection[shared] = device.connection[shared]
        name = f"{device.name}-{each.name}"
        found.append(DeviceConfig(kind, name, kind.values(each.given), connection, companion_of=device.name))
    return found


def load(path: Path) -> Config:
    """Read a configuration file.

    Raises:
        ConfigError: file, place and reason.
    """
    try:
        data = tomllib.loads(path.read_text())
    except OSError as exc:
        raise ConfigError(f"{path}: {exc.strerror}") from exc
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
        raise ConfigError(f"{path}: not TOML: {exc}") from exc
    server = data.pop("server", {})
    tables = data.pop("device", [])
    if data:
        raise ConfigError(f"{path}: unknown table {sorted(data)[0]!r}; there are [server] and [[device]]")
    if not isinstance(server, dict) or not isinstance(tables, list) or not all(isinstance(t, dict) for t in tables):
        raise ConfigError(f"{path}: [server] is one table, [[device]] a list of tables (two brackets)")
    try:
        values = take(SERVER_OPTIONS, server)
    except ConfigError as exc:
        raise ConfigError(f"{path}: [server]: {exc}") from exc
    if server:
        raise ConfigError(f"{path}: [server]: no option {sorted(server)[0]!r}")
    devices = [device_config(t, f"{path}: device {i + 1}") for i, t in enumerate(tables)]
    config = Config(values, [each for device in devices for each in with_companions(device)])
    check_unique(config.devices, str(path))
    if not config.devices:
        raise ConfigError(f"{path}: no [[device]] to serve")
    return config


def check_unique(devices: list[DeviceConfig], where: str) -> None:
    """Refuse two devices of one name or socket.

    Raises:
        ConfigError: names both.
    """
    for what in ("name", "socket-path"):
        seen: dict[str, int] = {}
        for number, device in enumerate(devices, 1):
            key = device.name if what == "name" else device.connection["socket_path"]
            if key is None:
                continue
            if key in seen:
                raise ConfigError(f"{where}: devices {seen[key]} and {number} have the same {what} {key!r}")
            seen[key] = number
