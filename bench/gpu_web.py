"""How long a flush takes to a web page: ``python -m bench.gpu_web``.

A guest of our own front-end draws and flushes; a page without a browser, on this machine too, takes what comes,
inflates it and says that it has drawn. What is measured is from before the flush to the pixels at the page, one at a
time: of text, which is deflated, and of noise, which is not.
"""

from __future__ import annotations

import os
import re
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import trio

from bench.borrowed import guard

SIZE = (1920, 1080)
BYTES = SIZE[0] * SIZE[1] * 4
RECTS = ((16, 16), (256, 256), SIZE)


def text(size: int) -> bytes:
    """What deflates well."""
    return (bytes(range(64)) * 16 * (size // 1024 + 1))[:size]


PICTURES: dict[str, Callable[[int], bytes]] = {"text": text, "noise": os.urandom}


async def _latencies(guest: Any, viewer: Any, rect: tuple[int, int], count: int) -> list[float]:
    """Seconds, sorted."""
    from gpurig import Rect

    took = []
    for _ in range(count):
        began = trio.current_time()
        await guest.transfer(1, Rect(0, 0, *rect))
        await guest.flush(1, Rect(0, 0, *rect))
        viewer.updates.clear()
        while (0, 0, *rect) not in viewer.updates:
            await viewer.step()
        took.append(trio.current_time() - began)
    return sorted(took)


async def _measure(count: int) -> None:
    from gpurig import Rect, driver
    from guestlib.backends import vhost
    from weblib import page

    with tempfile.TemporaryDirectory(prefix="vhk-") as folder:
        socket = Path(folder) / "gpu"
        words = ["gpu", "--socket-path", str(socket), "--web", "127.0.0.1:0"]
        async with vhost(Path(folder), [socket], *words) as served:
            (url,) = re.findall(r"http://127\S+", served.log)
            async with driver(str(socket)) as guest, page(url) as viewer:
                await guest.paint(0, 1, *SIZE, bytes(BYTES))
                with trio.move_on_after(1):
                    while True:
                        await viewer.step()
                print(f"flush to web page, {count} times each, {SIZE[0]}x{SIZE[1]} shown")
                for name, made in PICTURES.items():
                    guest.draw(1, made(BYTES))
                    await guest.transfer(1, Rect(0, 0, *SIZE))
                    for rect in RECTS:
                        took = await _latencies(guest, viewer, rect, count)
                        median, late = statistics.median(took) * 1e3, took[int(len(took) * 0.99)] * 1e3
                        print(f"{name:>6} {rect[0]:>5}x{rect[1]:<5} median {median:8.2f} ms   99 % {late:8.2f} ms")


@click.command()
@click.option("--count", type=click.IntRange(1, 10000), default=100, show_default=True, help="flushes of each size")
def main(count: int) -> None:
    """Measure how long a flush takes to a web page."""
    guard()  # the guest and the page are those of the tests, too
    trio.run(_measure, count)


if __name__ == "__main__":
    main()
