"""What tests of a display's viewers share."""

from __future__ import annotations

from typing import Any

import trio
from PIL import Image

from devices.gpu import Gpu


class Desk:
    """An input device that writes down what comes."""

    name = "desk"

    def __init__(self) -> None:
        self.seen: list[tuple[Any, ...]] = []
        self.news = trio.Event()

    def _note(self, *what: Any) -> None:
        self.seen.append(what)
        self.news.set()
        self.news = trio.Event()

    def keysym(self, number: int, down: bool, *, place: int = 0) -> None:
        self._note("key", number, down, *([place] if place else []))

    def name_key(self, name: str, down: bool) -> None:
        self._note("name", name, down)

    def point(self, x: int, y: int, buttons: int) -> None:
        self._note("point", x, y, buttons)

    def release(self) -> None:
        self._note("release")

    async def until(self, what: tuple[Any, ...]) -> None:
        with trio.fail_after(60):
            while what not in self.seen:
                await self.news.wait()


def rgb(gpu: Gpu) -> bytes:
    picture = gpu.picture(cursor=False)
    return Image.frombytes("RGB", (picture.width, picture.height), picture.pixels, "raw", "BGRX").tobytes()
