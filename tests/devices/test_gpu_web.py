"""A display on a web page: what pages see and type, in a browser, too, and who is kept out."""

from __future__ import annotations

import base64
import io
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from gpurig import BGRA, Guest, Rect, driver, plugged
from PIL import Image
from viewlib import Desk, rgb
from weblib import Browser, Page, Rejected, browser, fetch, page

from devices.gpu import Gpu, Mode
from devices.gpu.options import OPTIONS, open_gpu

SIDE = 64
GRADIENT = bytes(v for y in range(SIDE) for x in range(SIDE) for v in (x * 4, y * 4, 128, 255))


@asynccontextmanager
async def shown(**options: Any) -> AsyncIterator[tuple[Any, Guest, str]]:
    values = {option.key: option.default for option in OPTIONS} | {"web": "127.0.0.1:0"} | options
    async with open_gpu(values) as gpu, plugged(gpu) as path, driver(path) as guest:
        yield gpu, guest, gpu.viewers[0].url


async def until(viewer: Page, done: Any) -> None:
    with trio.fail_after(60):
        while not done():
            await viewer.step()


async def test_what_is_drawn_is_seen() -> None:
    async with shown() as (gpu, guest, url), page(url) as viewer:
        assert await viewer.step() == "screen"
        assert viewer.screens == [{"t": "screen", "scanout": 0, "scanouts": 1, "width": 0, "height": 0}]
        await guest.paint(0, 1, SIDE, SIDE, GRADIENT)
        await until(viewer, lambda: bytes(viewer.pixels) == GRADIENT)
        with trio.move_on_after(0.2):  # it may have been told twice
            while True:
                await viewer.step()
        viewer.updates.clear()
        guest.draw(1, bytes(SIDE * 4 * 8))
        await guest.transfer(1, Rect(3, 2, 10, 4), offset=(2 * SIDE + 3) * 4)
        await guest.flush(1, Rect(3, 2, 10, 4))
        await until(viewer, lambda: viewer.updates)
        assert viewer.updates == [(3, 2, 10, 4)]
        assert bytes(viewer.pixels) == gpu.picture().pixels
        # what has not been drawn yet holds up the next one, and nobody else
        await guest.flush(1, Rect(0, 0, 1, 1))
        with trio.fail_after(60):
            while await viewer.step(drawn=False) != "pixels":
                pass
        for x in range(5, 9):
            await guest.flush(1, Rect(x, 1, 1, 1))
        viewer.updates.clear()
        with trio.move_on_after(0.2):
            await viewer.step()
            raise AssertionError("it was not asked for")
        await viewer.send(t="drawn")
        await until(viewer, lambda: viewer.updates)
        assert viewer.updates == [(5, 1, 4, 1)]
        # another size, then nothing
        await guest.show(0, 1, 32, 16)
        await until(viewer, lambda: viewer.width == 32 and viewer.updates[-1] == (0, 0, 32, 16))
        await guest.show(0, 0, 0, 0)
        await until(viewer, lambda: viewer.width == 0)


async def test_large_pictures_are_deflated() -> None:
    async with shown() as (gpu, guest, url), page(url) as viewer:
        await guest.paint(0, 1, 640, 480, bytes(range(0, 256, 4)) * (640 * 480 * 4 // 64))
        await until(viewer, lambda: bytes(viewer.pixels) == gpu.picture().pixels)
        assert viewer.bytes < 640 * 480


async def test_keys_pointer_and_sizes() -> None:
    desk = Desk()
    async with shown(scanouts=2, mode=("100x100", "60x60")) as (gpu, guest, url):
        gpu.seat.add(desk)
        await guest.paint(0, 1, 100, 100, bytes(40000))
        await guest.paint(1, 2, 60, 60, bytes(range(225)) * 64)
        async with page(url) as viewer:
            await until(viewer, lambda: viewer.updates)
            await viewer.send(t="key", key="KeyA", down=True)
            await viewer.send(t="point", x=99, y=99, buttons=1)
            await viewer.send(t="scanout", number=1)
            await until(viewer, lambda: viewer.screens[-1]["scanout"] == 1 and viewer.updates[-1] == (0, 0, 60, 60))
            assert bytes(viewer.pixels) == gpu.picture(1).pixels
            await viewer.send(t="point", x=59, y=0, buttons=0)
            await viewer.send(t="size", width=800, height=600)
            with trio.fail_after(60):
                while gpu.modes[1] != Mode(800, 600):
                    await trio.testing.wait_all_tasks_blocked()
            wanted = [("name", "KeyA", True), ("point", 99 * 32767 // 159, 32767, 1), ("point", 32767, 0, 0)]
            assert desk.seen == wanted
        await desk.until(("release",))


async def test_cursor() -> None:
    shape = bytes(v for i in range(SIDE * SIDE) for v in ((10, 20, 30, 255) if i % SIDE < 8 else (0, 0, 0, 0)))
    async with shown() as (_, guest, url), page(url) as viewer:
        await guest.paint(0, 1, SIDE, SIDE, GRADIENT)
        await guest.create(2, SIDE, SIDE, BGRA)
        await guest.attach(2, SIDE * SIDE * 4)
        guest.draw(2, shape)
        await guest.transfer(2, Rect(0, 0, SIDE, SIDE))
        await guest.cursor(2, 5, 6, hot=(3, 4))
        await until(viewer, lambda: viewer.cursor is not None)
        assert viewer.cursor == shape


async def test_who_is_kept_out() -> None:
    async with shown() as (_, _guest, url):
        base, token = url.rstrip("/").rsplit("/", 1)
        status, data = await fetch(url)
        assert status == 200
        assert b"<canvas" in data
        assert b"Content-Security-Policy: default-src 'none'" in data
        for name in ("view.js", "view.css"):
            assert (await fetch(url + name))[0] == 200
        for wrong in (f"{base}/", f"{base}/{token}", f"{base}/{token[:-1]}x/", f"{url}../", f"{url}nothing"):
            status, data = await fetch(wrong)
            assert status == 404, wrong
            assert b"Open the whole address" in data
            assert token.encode() not in data
        assert (await fetch(url, host="vm.example.com"))[0] == 404, "another name for this machine: DNS can lie"
        assert (await fetch(url, host="localhost:9999"))[0] == 200, "through a tunnel"
        assert (await fetch(url, headers="Origin: http://evil.example.com\r\n"))[0] == 404
        for origin in ("http://evil.example.com", "null", "", "http://127.0.0.1"):
            with pytest.raises(Rejected):
                async with page(url, origin=origin):
                    pass
        with pytest.raises(Rejected):
            async with page(f"{base}/x/"):
                pass


@pytest.mark.parametrize(
    "message",
    [
        "{",
        "[]",
        "7",
        '{"t": "what"}',
        '{"t": "key"}',
        '{"t": "scanout", "number": 1}',
        '{"t": "point", "x": "z"}',
        '{"t": "point", "x": 1e999, "y": 0, "buttons": 0}',
        "x" * 5000,
    ],
)
async def test_messages_that_make_no_sense(message: str) -> None:
    from wsproto.events import TextMessage

    async with shown() as (_, _guest, url), page(url) as viewer:
        await viewer.stream.send_all(viewer.ws.send(TextMessage(data=message)))
        with trio.fail_after(60):
            while await viewer.message() is not None:
                pass
        async with page(url) as another:
            assert await another.step() == "screen"


async def test_hostile_requests() -> None:
    async with shown() as (_, _guest, url):
        port = int(url.split(":")[2].split("/")[0])
        for data in (
            b"",
            b"\0" * 100,
            b"GET / HTTP/1.1\r\n",
            b"GET /" + b"x" * 20000,
            b"RFB 003.008\n\n\n",
            b"GET * HTTP/1.1\r\n\r\n",
        ):
            async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
                await stream.send_all(data)
                if data:
                    with trio.move_on_after(0.1):
                        await stream.receive_some(100)
        assert (await fetch(url))[0] == 200


# In a browser


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-headless-shell"))), None)


@pytest.mark.skipif(CHROMIUM is None, reason="needs a browser (Debian: chromium-headless-shell)")
async def test_in_a_browser(tmp_path: Path) -> None:
    """What the page shows is what our own screenshot shows, also after a change; keys and the mouse arrive."""
    assert CHROMIUM is not None
    desk = Desk()
    async with shown() as (gpu, guest, url), browser(CHROMIUM, tmp_path / "profile") as it:
        gpu.seat.add(desk)
        pixels = bytes(v for y in range(240) for x in range(320) for v in (x & 255, y, (x * y) & 255, 255))
        await guest.paint(0, 1, 320, 240, pixels)
        await it.do("Page.navigate", url=url)
        await it.until("document.getElementById('state')?.textContent === '320×240'")
        left, top = await it.evaluate("(({x, y}) => [x, y])(document.getElementById('screen').getBoundingClientRect())")
        await same_in(it, gpu, (left, top))
        guest.draw(1, bytes(320 * 4 * 30))
        await guest.transfer(1, Rect(10, 5, 200, 20), offset=(5 * 320 + 10) * 4)
        await guest.flush(1, Rect(10, 5, 200, 20))
        await same_in(it, gpu, (left, top))
        for kind in ("keyDown", "keyUp"):
            await it.do("Input.dispatchKeyEvent", type=kind, code="KeyQ", key="q")
        mouse = {"x": left + 100, "y": top + 50, "button": "left", "clickCount": 1}
        await it.do("Input.dispatchMouseEvent", type="mousePressed", **mouse)
        await it.do("Input.dispatchMouseEvent", type="mouseReleased", **mouse)
        place = (100 * 32767 // 1279, 50 * 32767 // 799)
        for event in (("name", "KeyQ", True), ("name", "KeyQ", False), ("point", *place, 1), ("point", *place, 0)):
            await desk.until(event)
        await it.do("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path / "saved"))
        await it.evaluate("document.getElementById('shot').click()")
        with trio.fail_after(60):
            while not (tmp_path / "saved" / "screen.png").exists():
                await trio.sleep(0.05)
        with Image.open(tmp_path / "saved" / "screen.png") as image:
            assert image.convert("RGB").tobytes() == rgb(gpu)
        await it.evaluate("document.getElementById('keys').click()")
        for name in ("ControlLeft", "AltLeft", "Delete"):
            await desk.until(("name", name, True))
        await desk.until(("name", "ControlLeft", False))
        await it.evaluate("document.getElementById('fit').click()")
        with trio.fail_after(60):
            while gpu.modes[0] == Mode(1280, 800):
                await trio.testing.wait_all_tasks_blocked()
        assert gpu.modes[0].width == 640


async def same_in(it: Browser, gpu: Gpu, place: tuple[int, int]) -> None:
    """The browser's screenshot has our picture at a place."""
    left, top = map(int, place)
    for _ in range(40):
        shot = base64.b64decode((await it.do("Page.captureScreenshot", format="png"))["data"])
        with Image.open(io.BytesIO(shot)) as image:
            part = image.convert("RGB").crop((left, top, left + 320, top + 240))
        if part.tobytes() == rgb(gpu):
            return
        await trio.sleep(0.1)
    raise AssertionError("the page shows something else")
