"""Our front-end drives QEMU's contrib vhost-user-gpu: a guest's commands, and QEMU's end of its display socket."""

from __future__ import annotations

import struct
from dataclasses import replace

import peerlib
import pytest
from gpurig import Cmd, Rect, Resp, driver

from devices.gpu.load import Workload, measure

SMALL = Workload(size=(320, 200), runtime=0.1, warmup=0, display=True, verify=True)


@pytest.mark.parametrize("rect", [(), (16, 16)], ids=["all", "16x16"])
async def test_load(rect: tuple[int, int] | tuple[()]) -> None:
    """What the guest draws is what it shows."""
    with peerlib.contrib_gpu() as contrib:
        result = await measure(contrib, replace(SMALL, rect=rect))
    assert result.errors == 0, result.first_error
    assert result.frames > 3
    assert result.updates_per_second >= result.frames_per_second * 0.9, "one for each flush"


async def test_commands() -> None:
    with peerlib.contrib_gpu() as contrib:
        async with driver(contrib) as guest:
            await guest.create(1, 64, 64)
            await guest.attach(1, 64 * 64 * 4, pieces=[4096] * 4)
            await guest.transfer(1, Rect(0, 0, 64, 64))
            reply = await guest.command(Cmd.RESOURCE_UNREF, struct.pack("<II", 7, 0), fence=5)
            assert (reply.type, reply.flags, reply.fence) == (Resp.ERR_INVALID_RESOURCE_ID, 1, 5)
            await guest.unref(1)
