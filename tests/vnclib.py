"""A VNC client of our own, which draws what comes uncompressed and says what it likes."""

from __future__ import annotations

import ssl
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import trio

RAW, DESKTOP_SIZE, CURSOR, EXTENDED_SIZE, PLACES = 0, -223, -239, -308, -258
BGRX = struct.pack(">4B3H3B3x", 32, 24, 0, 1, 255, 255, 255, 16, 8, 0)


class Closed(Exception):
    """The server has hung up."""


class Refused(Exception):
    """It says no."""


class Client:
    """One connection."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self.stream = stream
        self.width = self.height = 0
        self.name = ""
        self.pixels = bytearray()
        self.cursor: tuple[int, int, int, int, bytes] | None = None
        self.results: list[tuple[int, int]] = []  # reason and status of sizes
        self.places = False  # of keys are to be told

    async def exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            try:
                more = await self.stream.receive_some(size - len(data))
            except trio.BrokenResourceError:
                more = b""
            if not more:
                raise Closed
            data += more
        return data

    async def send(self, layout: str, *values: object) -> None:
        await self.stream.send_all(struct.pack(f">{layout}", *values))

    async def shake_hands(self, password: bytes | None = None, *, version: bytes = b"003.008") -> None:
        assert await self.exactly(12) == b"RFB 003.008\n"
        await self.stream.send_all(b"RFB " + version + b"\n")
        if version == b"003.003":
            (kind,) = struct.unpack(">I", await self.exactly(4))
        else:
            kinds = await self.exactly((await self.exactly(1))[0])
            kind = kinds[0]
            await self.stream.send_all(bytes((kind,)))
        checked = version == b"003.008"
        if kind == 19:
            checked = True
            kind = await self.encrypt()
        if kind == 2:
            checked = True
            await self.answer(password or b"")
        if checked and (await self.exactly(4)) != bytes(4):
            reason = b"?"
            if version == b"003.008":
                reason = await self.exactly(struct.unpack(">I", await self.exactly(4))[0])
            raise Refused(reason.decode())
        await self.stream.send_all(b"\1")
        self.width, self.height, _, name = struct.unpack(">HH16sI", await self.exactly(24))
        self.name = (await self.exactly(name)).decode()
        self.pixels = bytearray(self.width * self.height * 4)
        await self.stream.send_all(b"\0\0\0\0" + BGRX)

    async def answer(self, password: bytes) -> None:
        from devices.gpu._vnc import ffi, lib

        challenge = ffi.new("uint8_t[]", await self.exactly(16))
        lib.vnc_answer(challenge, password.ljust(8, b"\0"))
        await self.stream.send_all(ffi.buffer(challenge)[:16])

    async def encrypt(self) -> int:
        """VeNCrypt; what comes then: 1 none, 2 a password."""
        assert await self.exactly(2) == b"\0\2"
        await self.stream.send_all(b"\0\2")
        assert await self.exactly(2) == b"\0\1"
        (kind,) = struct.unpack(">I", await self.exactly(4))
        await self.send("I", kind)
        assert await self.exactly(1) == b"\1"
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        self.stream = trio.SSLStream(self.stream, context, https_compatible=True)
        await self.stream.do_handshake()
        return {260: 1, 261: 2}[kind]

    async def encodings(self, *kinds: int) -> None:
        await self.send(f"BxH{len(kinds)}i", 2, len(kinds), *kinds)

    async def ask(self, *, incremental: bool = False) -> None:
        await self.send("BBHHHH", 3, incremental, 0, 0, self.width, self.height)

    async def key(self, keysym: int, down: bool) -> None:
        await self.send("BBxxI", 4, down, keysym)

    async def place(self, keysym: int, scancode: int, down: bool) -> None:
        await self.send("BBHII", 255, 0, down, keysym, scancode)

    async def point(self, x: int, y: int, buttons: int = 0) -> None:
        await self.send("BBHH", 5, buttons, x, y)

    async def resize(self, width: int, height: int) -> None:
        await self.send("BxHHBxIHHHHI", 251, width, height, 1, 1, 0, 0, width, height, 0)

    async def update(self) -> list[tuple[int, int, int, int]]:
        """Take one update; the rectangles that were drawn."""
        assert (await self.exactly(2))[0] == 0
        drawn = []
        (count,) = struct.unpack(">H", await self.exactly(2))
        for _ in range(count):
            x, y, width, height, kind = struct.unpack(">4Hi", await self.exactly(12))
            if kind == RAW:
                self.draw(x, y, width, height, await self.exactly(width * height * 4))
                drawn.append((x, y, width, height))
            elif kind == CURSOR:
                image = await self.exactly(width * height * 4)
                await self.exactly((width + 7) // 8 * height)
                self.cursor = (x, y, width, height, image)
            elif kind == PLACES:
                self.places = True
            else:
                assert kind in (DESKTOP_SIZE, EXTENDED_SIZE)
                if kind == EXTENDED_SIZE:
                    self.results.append((x, y))
                    await self.exactly(16 * (await self.exactly(4))[0])
                if (width, height) != (self.width, self.height):
                    self.width, self.height = width, height
                    self.pixels = bytearray(width * height * 4)
        return drawn

    def draw(self, x: int, y: int, width: int, height: int, data: bytes) -> None:
        for row in range(height):
            at = ((y + row) * self.width + x) * 4
            self.pixels[at : at + width * 4] = data[row * width * 4 : (row + 1) * width * 4]

    def rgb(self) -> bytes:
        out = bytearray(self.width * self.height * 3)
        out[0::3], out[1::3], out[2::3] = self.pixels[2::4], self.pixels[1::4], self.pixels[0::4]
        return bytes(out)


@asynccontextmanager
async def client(
    where: Path | int, password: bytes | None = None, *, version: bytes = b"003.008"
) -> AsyncIterator[Client]:
    """A client that was let in."""
    if isinstance(where, int):
        stream = await trio.open_tcp_stream("127.0.0.1", where)
    else:
        stream = await trio.open_unix_socket(where)
    async with stream:
        made = Client(stream)
        await made.shake_hands(password, version=version)
        yield made
