"""What ``vhost gpu`` takes for 3D."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from devices.gpu.render.renderer import Kind, Renderer, RendererError, open_renderer
from vhost.plugin import ConfigError, Option

__all__ = ["OPTIONS", "open_3d"]

OPTIONS = (
    Option("virgl", "flag", "offer 3D: OpenGL for the guest (virgl); by the CPU unless there is a render node", False),
    Option("render-node", "path", "the GPU that draws: /dev/dri/renderD128; takes --virgl or --venus", metavar="PATH"),
    Option(
        "venus",
        "flag",
        "offer 3D: Vulkan for the guest (Venus), where the front-end maps memory of ours (SHMEM)",
        False,
    ),
    Option("no-dmabufs", "flag", "QEMU gets pixels of 3D, not dma-bufs: its display has no OpenGL", False),
    Option("max-contexts", "int", "most 3D contexts of the guest", 256, minimum=1, maximum=1 << 16),
)

#: by virgl and venus
_KINDS: dict[tuple[bool, bool], Kind | None] = {
    (False, False): None,
    (True, False): "virgl",
    (False, True): "venus",
    (True, True): "virgl+venus",
}


@asynccontextmanager
async def open_3d(values: Mapping[str, Any]) -> AsyncIterator[Renderer | None]:
    """The renderer that option values (of `OPTIONS`) ask for; None: 2D only.

    Raises:
        ConfigError: the user can mend it.
    """
    kind = _KINDS[bool(values["virgl"]), bool(values["venus"])]
    if values["render_node"] is not None and kind is None:
        raise ConfigError("render-node is the GPU that draws 3D; give --virgl with it")
    if kind is None:
        yield None
        return
    try:
        confined = values["sandbox"] != "none"
        async with open_renderer(kind, node=values["render_node"], confined=confined) as renderer:
            yield renderer
    except RendererError as exc:
        raise ConfigError(f"{kind}: {exc}") from exc
