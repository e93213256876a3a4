"""What ``vhost input`` and a ``[[device]]`` table of type "input" take."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from devices.input.device import Input, Kind
from vhost.device import Device
from vhost.plugin import ConfigError, DeviceType, Option

__all__ = ["OPTIONS", "TYPE", "open_input"]

OPTIONS = (
    Option(
        "kind",
        "choice",
        "combined is keyboard and tablet in one",
        "combined",
        choices=tuple(kind.value for kind in Kind),
    ),
    Option("label", "text", "its name in the guest", metavar="TEXT"),
    Option("serial", "text", "its serial number in the guest", metavar="TEXT"),
)


@asynccontextmanager
async def open_input(values: Mapping[str, Any]) -> AsyncIterator[Device]:
    """The device that option values (of `OPTIONS`) describe.

    Raises:
        ConfigError: the user can mend it.
    """
    try:
        device = Input(values["kind"], label=values["label"] or "", serial=values["serial"] or "")
    except ValueError as exc:
        raise ConfigError(str(exc)) from exc
    yield device


TYPE = DeviceType(
    name="input",
    backend_type="input",
    summary="a keyboard, a tablet or a mouse (virtio-input)",
    options=OPTIONS,
    open=open_input,
    parameter_help="Type by: vhost ctl --socket CONTROL input.type text=hello",
)
