"""A display on a web page.

The page (`page/`) draws what comes over a web socket: rectangles of pixels, deflated where that pays, and says when it
has drawn one. The next one is made then: a slow page sees less often, and then the newest, and costs nobody anything.

Messages, from here: JSON texts {"t": "screen", …} and {"t": "cursor", …}, and binary ones: kind, x, y, width, height,
and data. From the page: JSON texts, see `_Page._take`.
"""

from __future__ import annotations

import json
import logging
import secrets
import struct
import zlib
from collections.abc import Awaitable, Callable
from importlib.resources import files
from typing import TYPE_CHECKING, Any, Final

import trio

from devices.gpu.clients import serve_clients
from devices.gpu.picture import Mode
from devices.gpu.view import Cursor, Rect, View
from devices.gpu.web.http import Answer, Socket, WebError, answer, read_request, upgrade

if TYPE_CHECKING:
    from devices.gpu.device import Gpu

__all__ = ["CURSOR", "DEFLATED", "HEADER", "RAW", "WebServer"]

_LOG: Final = logging.getLogger("vhost.gpu")
_REQUEST_SECONDS: Final = 10
#: kind, place, size; all that follows is data
HEADER: Final = struct.Struct("<B3x4H")
#: pixels as they are: blue, green, red, any; the same, by zlib; a cursor's picture, 64 pixels squared, with alpha
RAW, DEFLATED, CURSOR = 1, 2, 3
#: bytes below which deflating does not pay, and above which it is done by a thread
_DEFLATE_MIN: Final = 1 << 10
_DEFLATE_SOON: Final = 64 << 10
#: pieces that are tried, and bytes of each
_SAMPLES: Final = 16
_SAMPLE: Final = 1 << 10
_SIDE_MIN, _SIDE_MAX = 64, 8192
_FILES: Final = {
    "": ("index.html", "text/html; charset=utf-8"),
    "view.js": ("view.js", "text/javascript; charset=utf-8"),
    "view.css": ("view.css", "text/css; charset=utf-8"),
}
_NOT_HERE: Final = Answer(
    404, "text/plain; charset=utf-8", b"Nothing is here. Open the whole address that vhost printed when it started.\n"
)


def _pays(pixels: bytearray) -> bool:
    """Whether to deflate: the way to this machine's pages is short, so a photograph goes as it is."""
    if len(pixels) <= _DEFLATE_MIN:
        return False
    step = max(len(pixels) // _SAMPLES, _SAMPLE)
    sample = b"".join(pixels[at : at + _SAMPLE] for at in range(0, len(pixels), step))
    return len(zlib.compress(sample, 1)) * 4 < len(sample)


class WebServer:
    """A viewer of a display: a page, and sockets for those who look at it.

    Args:
        gpu: the display.
        sock: listening on loopback; stays the caller's.
        where: its host and port.
    """

    def __init__(self, gpu: Gpu, sock: trio.socket.SocketType, *, where: str) -> None:
        self._gpu = gpu
        self._sock = sock
        self._token = secrets.token_urlsafe(24)
        self.url: Final = f"http://{where}/{self._token}/"
        page = files("devices.gpu.web") / "page"
        self._files = {name: Answer(200, kind, (page / file).read_bytes()) for name, (file, kind) in _FILES.items()}

    async def run(self) -> None:
        """Serve until cancelled."""
        await serve_clients(self._sock, self._serve, "web page")

    async def _serve(self, stream: trio.SocketStream) -> None:
        with trio.fail_after(_REQUEST_SECONDS):
            asked = await read_request(stream, self._token)
            if asked is None:
                return
            if not asked.upgrade:
                found = self._files.get(asked.name, _NOT_HERE) if asked.name is not None else _NOT_HERE
                await answer(stream, asked, found)
                return
            if asked.name is None:
                _LOG.warning("web page: a socket is refused: it comes from another page, or without the token")
            socket = await upgrade(stream, asked)
        if socket is not None and asked.name == "socket":
            async with self._gpu.changes() as view:
                await _Page(self._gpu, view, socket).run()


class _Page:
    """Looks at the display for one page."""

    def __init__(self, gpu: Gpu, view: View, socket: Socket) -> None:
        self._gpu = gpu
        self._view = view
        self._socket = socket
        self._scanout = 0
        self._all = True  # another scanout: all of it is new
        self._screen: tuple[int, int, int] | None = None
        self._cursor: Cursor | None = None
        self._drawn = True
        self._news = trio.Event()

    async def run(self) -> None:
        """Until it closes."""
        try:
            async with trio.open_nursery() as nursery:

                async def until_it_ends(work: Callable[[], Awaitable[None]]) -> None:
                    await work()
                    nursery.cancel_scope.cancel()

                nursery.start_soon(until_it_ends, self._read)
                nursery.start_soon(self._hear_display)
                nursery.start_soon(self._write)
        finally:
            self._gpu.seat.release()

    # From the page

    async def _read(self) -> None:
        while (text := await self._socket.text()) is not None:
            try:
                self._take(json.loads(text))
            except (ValueError, KeyError, TypeError, ArithmeticError, RecursionError) as exc:
                raise WebError(f"a message that makes no sense: {exc!r}") from exc

    def _take(self, message: dict[str, Any]) -> None:
        kind = message["t"]
        seat = self._gpu.seat
        if kind == "drawn":
            self._drawn = True
            self._news.set()
        elif kind == "key":
            seat.name_key(str(message["key"]), bool(message["down"]))
        elif kind == "point":
            seat.point(self._scanout, int(message["x"]), int(message["y"]), int(message["buttons"]) & 0x1FF)
        elif kind == "release":
            seat.release()
        elif kind == "size":
            width, height = (min(max(int(message[side]), _SIDE_MIN), _SIDE_MAX) for side in ("width", "height"))
            seat.resize(self._scanout, Mode(width, height))
        elif kind == "scanout":
            number = int(message["number"])
            if not 0 <= number < self._gpu.scanouts:
                raise ValueError(f"no scanout {number}")
            self._scanout, self._all, self._screen, self._cursor = number, True, None, None
            self._news.set()
        else:
            raise ValueError(f"no message {kind!r}")

    # To the page

    async def _hear_display(self) -> None:
        async for _ in self._view:
            self._news.set()

    async def _write(self) -> None:
        while True:
            self._news = trio.Event()
            if self._drawn:
                await self._show()
            await self._news.wait()

    async def _show(self) -> None:
        number = self._scanout
        look = self._view.look(number)
        damage = look.damage
        if self._all:
            damage, self._all = Rect(0, 0, look.width, look.height) if look.width else None, False
        if (number, look.width, look.height) != self._screen:
            self._screen = number, look.width, look.height
            screen = {"scanout": number, "scanouts": self._gpu.scanouts, "width": look.width, "height": look.height}
            await self._socket.send(json.dumps({"t": "screen", **screen}))
        await self._show_cursor(number, look.cursor)
        if damage is None:
            return
        pixels = bytearray(damage.width * damage.height * 4)
        with memoryview(pixels) as to:
            if not self._gpu.read(number, damage, to):
                return  # it shows something else by now: that is a change, and comes next
        self._drawn = False
        kind = DEFLATED if _pays(pixels) else RAW
        data: bytes | bytearray = pixels
        if kind == DEFLATED:
            soon = len(data) <= _DEFLATE_SOON
            data = zlib.compress(data, 1) if soon else await trio.to_thread.run_sync(zlib.compress, data, 1)
        await self._socket.send(HEADER.pack(kind, damage.x, damage.y, damage.width, damage.height) + data)

    async def _show_cursor(self, scanout: int, now: Cursor) -> None:
        before, self._cursor = self._cursor, now
        if now == before:
            return
        if now.shown and (before is None or not before.shown or before.shapes != now.shapes):
            image = self._gpu.cursor_image(scanout)
            await self._socket.send(HEADER.pack(CURSOR, min(now.hot_x, 63), min(now.hot_y, 63), 64, 64) + image)
        if before is None or before.shown != now.shown:
            await self._socket.send(json.dumps({"t": "cursor", "shown": now.shown}))
