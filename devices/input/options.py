"""What ``vhost input`` and a ``[[device]]`` table of type "input" take."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from devices.input.device import Input, Kind
from devices.input.layouts import layout_of
from vhost.device import Device
from vhost.plugin import ConfigError, DeviceType, Option
from vhost.sandbox import options as confine

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
    Option("keyboard", "text", "the guest's layout, for what is typed by what it writes: us, de, gb, de(nodeadkeys), …",
           "us", metavar="LAYOUT"),
    *confine.OPTIONS,
)  # fmt: skip


@asynccontextmanager
async def open_input(values: Mapping[str, Any]) -> AsyncIterator[Device]:
    """The device that option values (of `OPTIONS`) describe.

    Raises:
        ConfigError: the user can mend it.
    """
    try:
        layout = layout_of(values["keyboard"])
    except ValueError as exc:
        raise ConfigError(f"keyboard: {exc}") from exc
    try:
        device = Input(values["kind"], label=values["label"] or "", serial=values["serial"] or "", layout=layout)
    except ValueError as exc:
        raise ConfigError(str(exc)) from exc
    device.confinement = confine.confinement_of(values)
    yield device


TYPE = DeviceType(
    name="input",
    backend_type="input",
    summary="a keyboard, a tablet or a mouse (virtio-input)",
    options=OPTIONS,
    open=open_input,
    parameter_help="Type by: vhost ctl --socket CONTROL input.type text=hello",
)
