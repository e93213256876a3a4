"""Our front-end drives QEMU's contrib vhost-user-gpu: a guest's commands, and QEMU's end of its display socket."""

from __future__ import annotations

import struct
from contextlib import closing
from dataclasses import replace

import peerlib
import pytest
from gpurig import Cmd, Rect, Resp, driver

from devices.gpu.load import Workload, measure
from vhost.testing import Check, Failure, NotOffered
from vhost.testing.check_gpu import GPU
from vhost.testing.report import Trial

SMALL = Workload(size=(320, 200), runtime=0.1, warmup=0, display=True, verify=True)


@pytest.mark.parametrize("rect", [(), (16, 16)], ids=["all", "16x16"])
async def test_load(rect: tuple[int, int] | tuple[()]) -> None:
    """What the guest draws is what it shows."""
    with peerlib.contrib_gpu() as contrib:
        result = await measure(contrib.connect(), replace(SMALL, rect=rect))
    assert result.errors == 0, result.first_error
    assert result.frames > 3
    assert result.updates_per_second >= result.frames_per_second * 0.9, "one for each flush"


async def test_commands() -> None:
    with peerlib.contrib_gpu() as contrib:
        async with driver(contrib.connect()) as guest:
            await guest.create(1, 64, 64)
            await guest.attach(1, 64 * 64 * 4, pieces=[4096] * 4)
            await guest.transfer(1, Rect(0, 0, 64, 64))
            reply = await guest.command(Cmd.RESOURCE_UNREF, struct.pack("<II", 7, 0), fence=5)
            assert (reply.type, reply.flags, reply.fence) == (Resp.ERR_INVALID_RESOURCE_ID, 1, 5)
            await guest.unref(1)


#: docs/peers.md says more
FAILS = {
    "there are 1 to 16 scanouts",
    "split: display info has 16 modes, those beyond num_scanouts disabled",
    "split: commands that are too short are answered with an error, whatever their length",
    "split: resources have numbers of their own, formats and sizes that there are",
    "split: memory is attached once, and taken away once",
    "split: transfers from beyond the memory, or from none, do no harm",
    "split: scanouts show what there is, where there is one",
}


@pytest.mark.parametrize(
    "check", [check for check in GPU.checks if not check.title.startswith("packed")], ids=lambda check: check.title
)
def test_check(check: Check) -> None:
    """Each clause on a process of its own."""
    if "display info" in check.title:
        pytest.skip("it waits for QEMU to tell the modes, as it may")
    with peerlib.contrib_gpu() as contrib, closing(Trial(contrib.connect)) as trial:
        try:
            check.body(trial)
        except NotOffered:
            return
        except (Failure, OSError):
            assert check.title in FAILS
            return
    assert check.title not in FAILS
