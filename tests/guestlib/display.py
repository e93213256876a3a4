"""A guest's display, looked at from every side: QEMU's screendump, our picture, a VNC client, a page in a browser."""

from __future__ import annotations

import base64
import contextlib
import importlib.util
import io
import itertools
import re
import shutil
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import trio
from PIL import Image
from weblib import Browser, browser

from guestlib.backends import Backend
from guestlib.qemu import QemuGuest
from vhost.control import call

#: None: there is no browser (Debian: chromium-headless-shell)
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-headless-shell"))), None)
_SCREEN = "document.getElementById('screen')"
_numbers = itertools.count()


class Display:
    """A guest's display.

    Args:
        control: the back-end's control socket.
        folder: where pictures go.
        vnc: sockets of the scanouts; fewer, or none: not looked at so.
        page: which shows the display; None: likewise.
    """

    def __init__(
        self, guest: QemuGuest, control: Path, folder: Path, *, vnc: tuple[Path, ...] = (), page: Browser | None = None
    ) -> None:
        self.guest = guest
        self.control = control
        self.folder = folder
        self.vnc = vnc
        self.page = page

    def _file(self, kind: str) -> Path:
        return self.folder / f"{next(_numbers)}-{kind}"

    async def ask(self, method: str, **params: Any) -> Any:
        """The control socket."""
        return await call(str(self.control), method, params)

    async def until(self, scanout: int, **wanted: object) -> None:
        """Wait until a scanout is said to be so."""
        with trio.fail_after(60):
            while True:
                found = (await self.ask("gpu.displays"))[scanout]
                if all(found[name] == value for name, value in wanted.items()):
                    return
                await trio.sleep(0.02)

    async def ours(self, scanout: int = 0) -> Image.Image:
        """As we have it."""
        path = self._file("ours.png")
        await self.ask("gpu.screenshot", path=str(path), scanout=scanout)
        return _opened(path)

    async def qemus(self, scanout: int = 0) -> Image.Image:
        """As QEMU has it."""
        path = self._file("qemu.ppm")
        await self.guest.qmp.execute("screendump", filename=str(path), device="dev0", head=scanout)
        return _opened(path)

    async def vncs(self, scanout: int = 0) -> Image.Image:
        """As vncdotool gets it, with the cursor."""
        path = self._file("vnc.png")
        await vncdo(self.vnc[scanout], "capture", str(path))
        return _opened(path)

    async def pages(self, scanout: int = 0) -> Image.Image:
        """As the browser has drawn it."""
        assert self.page is not None
        choose = f"(c => {{ if (c.value != {scanout}) {{ c.value = {scanout}; c.onchange() }} }})"
        await self.page.evaluate(f"{choose}(document.getElementById('scanout'))")
        return data_picture(await self.page.evaluate(f"{_SCREEN}.toDataURL('image/png')"))

    async def same(self, size: tuple[int, int], pixels: bytes | None = None, *, scanout: int = 0) -> Image.Image:
        """Wait until ours and QEMU's are the same: such `pixels`, or anything but one colour."""
        ours = qemus = None
        for _ in range(100):
            ours, qemus = await self.ours(scanout), await self.qemus(scanout)
            if ours.size == qemus.size == size and ours.tobytes() == qemus.tobytes():
                found = ours.tobytes()
                plain = found == found[:3] * (len(found) // 3)
                if found == pixels if pixels is not None else not plain:
                    return ours
            await trio.sleep(0.05)
        raise AssertionError(f"not the same picture of {size}: {ours}, {qemus}, see {self.folder}")

    async def everywhere(self, size: tuple[int, int], pixels: bytes | None = None, *, scanout: int = 0) -> None:
        """As `same`; clients of VNC and the page show it, too."""
        wanted = (await self.same(size, pixels, scanout=scanout)).tobytes()
        if len(self.vnc) > scanout:
            await _until_same(lambda: self.vncs(scanout), wanted, self.folder)
        if self.page is not None:
            await _until_same(lambda: self.pages(scanout), wanted, self.folder)

    async def still(self) -> None:
        """No text cursor that blinks."""
        await self.guest.run("echo 0 >/sys/class/graphics/fbcon/cursor_blink; printf '\\033[?25l\\033[9;0]' >/dev/tty1")


async def _until_same(look: Callable[[], Any], wanted: bytes, folder: Path) -> None:
    for _ in range(20):
        if (await look()).tobytes() == wanted:
            return
        await trio.sleep(0.05)
    raise AssertionError(f"a viewer shows something else, see {folder}")


def _opened(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("RGB")


def data_picture(url: str) -> Image.Image:
    """The picture in a ``data:`` address."""
    with Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))) as image:
        return image.convert("RGB")


async def vncdo(where: Path, *words: str) -> None:
    """A real client of VNC."""
    program = Path(sys.executable).with_name("vncdo")
    await trio.run_process([str(program), "-s", f"{where}", *words], capture_stderr=True)


def vnc_words(folder: Path, scanouts: int = 1) -> tuple[tuple[Path, ...], list[str]]:
    """Sockets, one for each scanout, and the options that serve them; none where vhostkit has no VNC."""
    if importlib.util.find_spec("devices.gpu._vnc") is None:
        return (), []
    sockets = tuple(folder / f"vnc{number}" for number in range(scanouts))
    return sockets, [word for number, path in enumerate(sockets) for word in ("--vnc", f"unix:{path},scanout={number}")]


@contextlib.asynccontextmanager
async def opened_page(served: Backend, folder: Path) -> AsyncIterator[Browser | None]:
    """The page that a back-end with ``--web`` serves, in a browser; None where there is no browser."""
    if CHROMIUM is None:
        yield None
        return
    (url,) = re.findall(r"http://127\S+", served.log)
    async with browser(CHROMIUM, folder / "profile") as it:
        await it.do("Page.navigate", url=url)
        await it.until("(text => text && text !== 'connecting')(document.getElementById('state')?.textContent)")
        yield it


def screen_text(image: Image.Image, rom: Path) -> list[str]:
    """The lines of a VGA card's text screen (80 by 25 characters in 720 by 400 pixels), by the font in its ROM."""
    data = rom.read_bytes()
    letter = bytes.fromhex("000010386cc6c6fec6c6c6c600000000")  # A
    font = data.index(letter) - ord("A") * 16
    glyphs = {data[font + code * 16 : font + code * 16 + 16]: chr(code) for code in range(126, 31, -1)}
    lines = []
    for top in range(0, 400, 16):
        line = ""
        for left in range(0, 720, 9):
            cell = image.crop((left, top, left + 8, top + 16)).convert("L").point(lambda value: 255 if value else 0)
            line += glyphs.get(bytes(cell.convert("1").tobytes()), "?")
        lines.append(line.rstrip())
    return lines
