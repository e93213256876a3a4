"""3D: a renderer does what a guest wants drawn, in a process of its own.

async with open_renderer("virgl") as renderer:
    gpu = Gpu(renderer=renderer)

Three processes: the display (the data path, `devices/gpu/csrc/remote.c`), a launcher that it starts before it is
sealed, and, forked from that, a renderer for each life of a guest: sealed, and ended at the guest's reset. Display and
renderer share a ring of commands (`csrc/wire.h`) and the guest's memory.
"""

from __future__ import annotations

from devices.gpu.render.renderer import Kind, Renderer, RendererError, open_renderer

__all__ = ["Kind", "Renderer", "RendererError", "open_renderer"]
