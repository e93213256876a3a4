"""A page's other half without a browser: HTTP requests and a web socket that draws what comes."""

from __future__ import annotations

import json
import os
import re
import signal
import struct
import subprocess
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import trio
from guestlib.process import FOREIGN
from wsproto import ConnectionType, WSConnection
from wsproto.events import AcceptConnection, BytesMessage, CloseConnection, RejectConnection, Request, TextMessage


class Rejected(Exception):
    """No socket for us; the status."""


async def fetch(url: str, *, method: str = "GET", headers: str = "", host: str | None = None) -> tuple[int, bytes]:
    """One request: status, all that came."""
    parts = urlsplit(url)
    stream = await trio.open_tcp_stream(parts.hostname or "", parts.port or 80)
    async with stream:
        await stream.send_all(
            f"{method} {parts.path} HTTP/1.1\r\nHost: {host or parts.netloc}\r\n{headers}\r\n".encode()
        )
        data = b""
        while more := await stream.receive_some(65536):
            data += more
            head, end, body = data.partition(b"\r\n\r\n")
            length = re.search(rb"(?i)^content-length:\s*(\d+)", head, re.MULTILINE)
            if end and length and len(body) >= int(length[1]):
                break  # not everybody closes
    return int(data.split(b" ", 2)[1]), data


class Page:
    """A web socket, and the picture."""

    def __init__(self, stream: trio.SocketStream, ws: WSConnection) -> None:
        self.stream = stream
        self.ws = ws
        self.width = self.height = 0
        self.pixels = bytearray()
        self.cursor: bytes | None = None
        self.screens: list[dict[str, Any]] = []
        self.updates: list[tuple[int, int, int, int]] = []
        self.bytes = 0

    async def send(self, **message: Any) -> None:
        await self.stream.send_all(self.ws.send(TextMessage(data=json.dumps(message))))

    async def message(self) -> str | bytes | None:
        """The next one; None: closed."""
        parts: list[Any] = []
        while True:
            for event in self.ws.events():
                if isinstance(event, (TextMessage, BytesMessage)):
                    parts.append(event.data)
                    if event.message_finished:
                        return "".join(parts) if isinstance(event, TextMessage) else b"".join(parts)
                elif isinstance(event, CloseConnection):
                    return None
            try:
                data = await self.stream.receive_some(1 << 20)
            except trio.BrokenResourceError:
                return None
            if not data:
                return None
            self.bytes += len(data)
            self.ws.receive_data(data)

    async def step(self, *, drawn: bool = True) -> str:
        """Take one message, and say that it is drawn; what it was."""
        message = await self.message()
        assert message is not None, "closed"
        if isinstance(message, str):
            told = json.loads(message)
            if told["t"] == "screen":
                self.screens.append(told)
                self.width, self.height = told["width"], told["height"]
                self.pixels = bytearray(self.width * self.height * 4)
            return str(told["t"])
        kind, x, y, width, height = struct.unpack_from("<B3x4H", message)
        data = message[12:]
        if kind == 3:
            self.cursor = data
            return "shape"
        if kind == 2:
            data = zlib.decompress(data)
        assert len(data) == width * height * 4
        for row in range(height):
            at = ((y + row) * self.width + x) * 4
            self.pixels[at : at + width * 4] = data[row * width * 4 : (row + 1) * width * 4]
        self.updates.append((x, y, width, height))
        if drawn:
            await self.send(t="drawn")
        return "pixels"


class Browser:
    """Headless Chromium by its DevTools protocol: one page."""

    def __init__(self, socket: Page) -> None:
        self._socket = socket
        self._number = 0

    async def do(self, method: str, **params: Any) -> dict[str, Any]:
        """One command; its result."""
        self._number += 1
        text = json.dumps({"id": self._number, "method": method, "params": params})
        await self._socket.stream.send_all(self._socket.ws.send(TextMessage(data=text)))
        while (message := await self._socket.message()) is not None:
            answer = json.loads(message)
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return dict(answer["result"])
        raise AssertionError("the browser has gone")

    async def evaluate(self, script: str) -> Any:
        """The value of an expression in the page."""
        result = await self.do("Runtime.evaluate", expression=script, returnByValue=True)
        return result["result"].get("value")

    async def until(self, script: str) -> None:
        """Wait until an expression is true."""
        with trio.fail_after(60):
            while not await self.evaluate(script):
                await trio.sleep(0.05)


@asynccontextmanager
async def browser(program: str, folder: Path) -> AsyncIterator[Browser]:
    """A browser with an empty page of 640 by 480."""
    words = [program, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=640,480"]
    words += ["--force-color-profile=srgb", "--remote-debugging-port=0", f"--user-data-dir={folder}", "about:blank"]
    with (folder.parent / "browser.log").open("wb") as log:
        # a group of its own: Debian's program is a script, and has children
        process = await trio.lowlevel.open_process(
            words, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, env=FOREIGN
        )
    try:
        told = folder / "DevToolsActivePort"
        with trio.fail_after(60):
            while not told.exists() or not told.read_text().strip():
                await trio.sleep(0.05)
            port = told.read_text().split()[0]
            socket_url = ""
            while not socket_url:
                _, data = await fetch(f"http://127.0.0.1:{port}/json/list")
                listed = json.loads(data.split(b"\r\n\r\n", 1)[1])
                socket_url = next((each["webSocketDebuggerUrl"] for each in listed if each["type"] == "page"), "")
        async with page(socket_url, origin="", name="") as socket:
            yield Browser(socket)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        with trio.CancelScope(shield=True):
            await process.wait()


@asynccontextmanager
async def page(url: str, *, origin: str | None = None, name: str = "socket") -> AsyncIterator[Page]:
    """A socket of the page at `url`."""
    parts = urlsplit(url)
    stream = await trio.open_tcp_stream(parts.hostname or "", parts.port or 80)
    async with stream:
        ws = WSConnection(ConnectionType.CLIENT)
        headers = [(b"Origin", (origin or f"http://{parts.netloc}").encode())] if origin != "" else []
        await stream.send_all(ws.send(Request(host=parts.netloc, target=parts.path + name, extra_headers=headers)))
        while True:
            ws.receive_data(await stream.receive_some(65536) or None)
            event = next(ws.events(), None)
            if isinstance(event, (RejectConnection, CloseConnection)):
                raise Rejected(getattr(event, "status_code", 0))
            if isinstance(event, AcceptConnection):
                break
        yield Page(stream, ws)
