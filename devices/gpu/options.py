"""What ``vhost gpu`` and a ``[[device]]`` table of type "gpu" take."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from devices.gpu import viewers
from devices.gpu.device import Gpu
from devices.gpu.limits import MEMORY_2D, MEMORY_3D, Limits
from devices.gpu.picture import parse_mode
from devices.gpu.render import Renderer
from devices.gpu.render import options as render
from vhost.device import Device
from vhost.plugin import ConfigError, DeviceType, Option
from vhost.sandbox import options as confine

__all__ = ["OPTIONS", "TYPE", "open_gpu"]

OPTIONS = (
    Option("scanouts", "int", "monitors it can have; QEMU's max_outputs is to be no larger", 1, minimum=1, maximum=16),
    Option("mode", "texts", "what is plugged in, from the first scanout on: 1920x1080 or 1920x1080@75", metavar="MODE"),
    Option("no-blobs", "flag", "do not offer resources that stay in the guest's memory", False),
    Option("max-resources", "int", "most resources of the guest", 4096, minimum=1, maximum=1 << 31),
    Option("max-memory", "size", "most host memory for them: 512M unless given, 2G with 3D", metavar="BYTES"),
    *render.OPTIONS,
    *viewers.OPTIONS,
    *confine.OPTIONS,
)


def _gpu(values: Mapping[str, Any], renderer: Renderer | None) -> Gpu:
    memory = values["max_memory"]
    if memory is None:
        memory = MEMORY_2D if renderer is None else MEMORY_3D
    try:
        return Gpu(
            scanouts=values["scanouts"],
            modes=[parse_mode(text) for text in values["mode"] or ("1280x800",)],
            blobs=not values["no_blobs"],
            limits=Limits(values["max_resources"], memory, values["max_contexts"]),
            renderer=renderer,
            dmabufs=not values["no_dmabufs"],
        )
    except ValueError as exc:
        raise ConfigError(str(exc)) from exc


@asynccontextmanager
async def open_gpu(values: Mapping[str, Any]) -> AsyncIterator[Device]:
    """The device that option values (of `OPTIONS`) describe.

    Raises:
        ConfigError: the user can mend it.
    """
    async with render.open_3d(values) as renderer:
        gpu = _gpu(values, renderer)
        gpu.confinement = confine.confinement_of(values)
        async with viewers.open_viewers(gpu, values):
            yield gpu


TYPE = DeviceType(
    name="gpu",
    backend_type="gpu",
    summary="a display, 2D and 3D (virtio-gpu)",
    options=OPTIONS,
    open=open_gpu,
    parameter_help="Look at it by: vhost ctl --socket CONTROL gpu.screenshot path=screen.png",
    companions=viewers.companions,
)
