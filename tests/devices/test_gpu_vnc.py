"""A display over VNC: what clients see, type, point at, and what they may not do."""

from __future__ import annotations

import ctypes.util
import socket
import struct
import sys
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

from devices.gpu import Gpu, Mode
from devices.gpu.options import OPTIONS, TYPE, open_gpu
from vhost.errors import VhostError
from vhost.plugin import ConfigError

pytest.importorskip("devices.gpu.vnc", reason="built without libvncserver (Debian: libvncserver-dev)")
from vnclib import CURSOR, DESKTOP_SIZE, EXTENDED_SIZE, PLACES, RAW, Client, Closed, Refused, client

SIDE = 64
GRADIENT = bytes(v for y in range(SIDE) for x in range(SIDE) for v in (x * 4, y * 4, 128, 255))


@asynccontextmanager
async def shown(gpu_options: dict[str, Any], *, guest: bool = True) -> AsyncIterator[tuple[Any, Guest | None]]:
    """A display that is shown somewhere, and its guest."""
    values = {option.key: option.default for option in OPTIONS} | gpu_options
    async with open_gpu(values) as gpu, plugged(gpu) as path:
        if not guest:
            yield gpu, None
            return
        async with driver(path) as it:
            yield gpu, it


def at(tmp_path: Path) -> dict[str, Any]:
    return {"vnc": (f"unix:{tmp_path / 'vnc'}",)}


async def test_what_is_drawn_is_seen(tmp_path: Path) -> None:
    async with shown(at(tmp_path)) as (gpu, guest):
        await guest.paint(0, 1, SIDE, SIDE, GRADIENT)
        async with client(tmp_path / "vnc") as viewer:
            assert (viewer.width, viewer.height, viewer.name) == (SIDE, SIDE, "vhostkit scanout 0")
            await viewer.encodings(RAW, DESKTOP_SIZE, CURSOR)
            await viewer.ask()
            assert await viewer.update() == [(0, 0, SIDE, SIDE)]
            assert viewer.rgb() == rgb(gpu)
            # nothing but what changes
            await viewer.ask(incremental=True)
            guest.draw(1, bytes(SIDE * 4 * 8))
            await guest.transfer(1, Rect(3, 2, 10, 4), offset=(2 * SIDE + 3) * 4)
            await guest.flush(1, Rect(3, 2, 10, 4))
            with trio.fail_after(60):
                assert await viewer.update() == [(3, 2, 10, 4)]
            assert viewer.rgb() == rgb(gpu)
            # a client that asks now and then sees what is there when it asks
            for shade in (17, 99, 200):
                await repaint(guest, shade)
                await viewer.ask()
                with trio.fail_after(60):
                    await viewer.update()
                assert viewer.rgb() == bytes((shade,)) * (SIDE * SIDE * 3)


async def repaint(guest: Guest, shade: int) -> None:
    guest.draw(1, bytes((shade,)) * (SIDE * SIDE * 4))
    await guest.transfer(1, Rect(0, 0, SIDE, SIDE))
    await guest.flush(1, Rect(0, 0, SIDE, SIDE))


async def test_sizes_change(tmp_path: Path) -> None:
    async with shown(at(tmp_path)) as (gpu, guest), client(tmp_path / "vnc") as viewer:
        assert (viewer.width, viewer.height) == (1280, 800), "of the mode, while there is no driver"
        await viewer.encodings(RAW, DESKTOP_SIZE, EXTENDED_SIZE)
        await viewer.ask()
        await viewer.update()
        await guest.paint(0, 1, SIDE, SIDE, GRADIENT)
        with trio.fail_after(60):
            while viewer.width != SIDE:
                await viewer.ask(incremental=True)
                await viewer.update()
        await until_same_rgb(viewer, gpu)
        # the client asks for a size: the guest is told, and has the say
        await viewer.resize(800, 600)
        with trio.fail_after(60):
            while gpu.modes[0] != Mode(800, 600):
                await trio.testing.wait_all_tasks_blocked()
        await viewer.resize(3, 3)
        with trio.fail_after(60):
            while (1, 3) not in viewer.results:
                await viewer.ask(incremental=True)
                await viewer.update()
        # off: dark, of the same size
        await guest.show(0, 0, 0, 0)
        with trio.fail_after(60):
            while any(viewer.rgb()):
                await viewer.ask(incremental=True)
                await viewer.update()


async def until_same_rgb(viewer: Client, gpu: Gpu) -> None:
    with trio.fail_after(60):
        while viewer.rgb() != rgb(gpu):
            await viewer.ask(incremental=True)
            await viewer.update()


async def test_cursor(tmp_path: Path) -> None:
    shape = bytes(v for i in range(SIDE * SIDE) for v in ((10, 20, 30, 255) if i % SIDE < 8 else (0, 0, 0, 0)))
    async with shown(at(tmp_path)) as (gpu, guest), client(tmp_path / "vnc") as viewer:
        await guest.paint(0, 1, SIDE * 2, SIDE * 2, GRADIENT * 4)
        await guest.create(2, SIDE, SIDE, BGRA)
        await guest.attach(2, SIDE * SIDE * 4)
        guest.draw(2, shape)
        await guest.transfer(2, Rect(0, 0, SIDE, SIDE))
        await guest.cursor(2, 5, 6, hot=(3, 4))
        await viewer.encodings(RAW, DESKTOP_SIZE, CURSOR)
        await viewer.ask()
        with trio.fail_after(60):
            while viewer.cursor is None or viewer.cursor[2] == 0:
                await viewer.update()
                await viewer.ask(incremental=True)
        assert viewer.cursor[:4] == (3, 4, SIDE, SIDE)
        assert viewer.cursor[4][:4] == bytes((10, 20, 30, 0))
        # a client that draws no cursors gets it in the picture
        async with client(tmp_path / "vnc") as simple:
            await simple.encodings(RAW)
            with_cursor = gpu.picture()
            wanted = Image.frombytes("RGB", (SIDE * 2, SIDE * 2), with_cursor.pixels, "raw", "BGRX").tobytes()
            assert wanted != rgb(gpu)
            with trio.fail_after(60):
                while simple.rgb() != wanted:
                    await simple.ask()
                    await simple.update()


async def test_keys_and_pointer(tmp_path: Path) -> None:
    desk = Desk()
    async with shown(at(tmp_path)) as (gpu, guest):
        gpu.seat.add(desk)
        await guest.paint(0, 1, SIDE, SIDE, GRADIENT)
        async with client(tmp_path / "vnc") as viewer:
            await viewer.key(0x61, True)
            await viewer.key(0x61, False)
            await viewer.point(SIDE - 1, 0, 1)
            await viewer.point(0, SIDE - 1)
            right, bottom = (SIDE - 1) * 32767 // 1279, (SIDE - 1) * 32767 // 799
            await desk.until(("point", 0, bottom, 0))
            assert desk.seen == [("key", 0x61, True), ("key", 0x61, False), ("point", right, 0, 1), desk.seen[-1]]
        await desk.until(("release",))


@pytest.mark.parametrize("tls", [False, True])
async def test_keys_of_a_client_that_does_not_wait(tmp_path: Path, tls: bool) -> None:
    """What was typed before a client hung up arrives, though a picture was on its way to it."""
    desk, letters = Desk(), range(0x61, 0x7B)
    options = at(tmp_path)
    if tls:
        options |= await certified(tmp_path)
    async with shown(options, guest=False) as (gpu, _):
        gpu.seat.add(desk)
        for _ in range(20):
            desk.seen.clear()
            async with client(tmp_path / "vnc") as viewer:
                await viewer.encodings(RAW, PLACES, DESKTOP_SIZE)
                await viewer.ask()
                for letter in letters:
                    await viewer.key(letter, True)
            await desk.until(("release",))
            assert desk.seen == [*(("key", letter, True) for letter in letters), ("release",)]


async def test_places_of_keys(tmp_path: Path) -> None:
    """Clients that know of QEMU's extended key events say which key it is."""
    desk = Desk()
    async with shown(at(tmp_path)) as (gpu, _):
        gpu.seat.add(desk)
        async with client(tmp_path / "vnc") as viewer:
            await viewer.encodings(RAW, PLACES, DESKTOP_SIZE)
            with trio.fail_after(60):
                assert await viewer.update() == []
            assert viewer.places
            await viewer.place(ord("z"), 0x15, True)
            await viewer.place(0xFFE4, 0x9D, True)
            await viewer.key(ord("a"), True)
            await desk.until(("key", ord("a"), True))
            assert desk.seen == [("key", ord("z"), True, 0x15), ("key", 0xFFE4, True, 0x9D), ("key", ord("a"), True)]
            await viewer.encodings(RAW, PLACES)  # who forgets what was said at each is told at each
            with trio.fail_after(60):
                assert await viewer.update() == []
            await viewer.send("BBHII", 255, 1, 0, 0, 0)  # sound, which nobody has offered
            with pytest.raises(Closed):
                await viewer.exactly(1)
        async with client(tmp_path / "vnc") as viewer:
            await viewer.place(ord("z"), 0x15, True)
            with pytest.raises(Closed):
                await viewer.exactly(1)


async def test_libvncclient(tmp_path: Path) -> None:
    """Another implementation, with its own idea of how places of keys are asked for and told."""
    library = ctypes.util.find_library("vncclient")
    if library is None:
        pytest.skip("needs libvncclient (Debian: libvncclient1)")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    desk = Desk()
    async with shown({"vnc": (f"127.0.0.1:{port}",)}) as (gpu, guest):
        gpu.seat.add(desk)
        await guest.paint(0, 1, SIDE, SIDE, GRADIENT)
        words = [sys.executable, "-c", LIBVNCCLIENT, library, f"127.0.0.1:{port}"]
        with trio.fail_after(60):
            done = await trio.run_process(words, capture_stdout=True, capture_stderr=True, check=False)
        assert done.returncode == 0, done.stderr.decode()
        await desk.until(("key", ord("y"), False, 0x2C))
        assert ("key", ord("y"), True, 0x2C) in desk.seen


#: types the key right of the left Shift, which writes y on a German keyboard
LIBVNCCLIENT = """
import ctypes, sys
lib = ctypes.CDLL(sys.argv[1])
lib.rfbGetClient.restype = ctypes.c_void_p
made = ctypes.c_void_p(lib.rfbGetClient(8, 3, 4))
words = (ctypes.c_char_p * 2)(b"client", sys.argv[2].encode())
assert lib.rfbInitClient(made, ctypes.byref(ctypes.c_int(2)), words), "not let in"
for down in (1, 0):
    for _ in range(100):
        if lib.SendExtendedKeyEvent(made, ord("y"), 0x2C, down):
            break
        assert lib.WaitForMessage(made, 100000) < 1 or lib.HandleRFBServerMessage(made)
    else:
        raise SystemExit("the server does not say that it takes places of keys")
lib.rfbClientCleanup(made)
"""


async def test_password(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("openup\n")
    secret.chmod(0o600)
    async with shown({**at(tmp_path), "vnc_password_file": str(secret)}, guest=False):
        for version in (b"003.003", b"003.007", b"003.008"):
            async with client(tmp_path / "vnc", b"openup", version=version) as viewer:
                await viewer.ask()
                await viewer.update()
        with pytest.raises(Refused, match="wrong password"):
            async with client(tmp_path / "vnc", b"openUp"):
                pass
        # the security type of others is not taken
        async with await trio.open_unix_socket(tmp_path / "vnc") as stream:
            raw = Client(stream)
            await raw.exactly(12)
            await stream.send_all(b"RFB 003.008\n")
            assert await raw.exactly(2) == b"\1\2"
            await stream.send_all(b"\1")
            with pytest.raises(Closed):
                await raw.exactly(1)


async def certified(tmp_path: Path) -> dict[str, Any]:
    """Options of a server that encrypts."""
    key, cert = tmp_path / "key", tmp_path / "cert"
    words = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    words += ["-subj", "/CN=vm", "-keyout", str(key), "-out", str(cert)]
    await trio.run_process(words, capture_stderr=True)
    return {"vnc_tls_cert": str(cert), "vnc_tls_key": str(key)}


async def test_tls(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("12345678")
    secret.chmod(0o600)
    options = {**at(tmp_path), **await certified(tmp_path), "vnc_password_file": str(secret)}
    async with shown(options) as (gpu, guest):
        await guest.paint(0, 1, SIDE, SIDE, GRADIENT)
        async with client(tmp_path / "vnc", b"12345678") as viewer:
            await viewer.encodings(RAW, DESKTOP_SIZE)
            await until_same_rgb(viewer, gpu)
        with pytest.raises(Refused):
            async with client(tmp_path / "vnc", b"1234567"):
                pass


async def test_slow_and_gone_clients_hold_up_nobody(tmp_path: Path) -> None:
    async with shown(at(tmp_path)) as (_, guest):
        await guest.paint(0, 1, SIDE * 8, SIDE * 8, GRADIENT * 64)
        async with client(tmp_path / "vnc") as slow, client(tmp_path / "vnc") as quick:
            for viewer in (slow, quick):
                await viewer.encodings(RAW, DESKTOP_SIZE)
            for _ in range(20):  # it never reads: the socket is full soon
                await slow.ask()
            for shade in range(8):
                guest.draw(1, bytes((shade,)) * (SIDE * SIDE * 4))
                await guest.transfer(1, Rect(0, 0, SIDE, SIDE))
                await guest.flush(1, Rect(0, 0, SIDE, SIDE))
                with trio.fail_after(10):
                    await quick.ask()
                    await quick.update()
                assert quick.rgb()[:3] == bytes((shade,)) * 3
        # many at once, and one too many
        async with trio.open_nursery() as nursery:
            started = []
            for _ in range(20):
                stream = await trio.open_unix_socket(tmp_path / "vnc")
                started.append(stream)
            with trio.fail_after(10):
                for stream in started:
                    try:
                        await Client(stream).exactly(12)
                    except Closed:
                        break
                else:
                    raise AssertionError("20 clients at once")
            for stream in started:
                await stream.aclose()
            nursery.cancel_scope.cancel()


HOSTILE = [
    b"\x07" + bytes(40),  # file transfer
    b"\x08\x00",  # scaling
    b"\x0b" + b"\xff" * 12,  # chat
    b"\xfa" + bytes(3),
    b"\xff\x00" + b"\xff" * 10,  # places of keys
    b"\xff\x01" + bytes(10),
    b"\xff" * 100,
    b"\x02\x00\xff\xff" + b"\xff" * 1000,  # encodings that end
    b"\x00\0\0\0" + struct.pack(">4B3H3B3x", 7, 99, 1, 1, 0, 0, 0, 99, 99, 99),
    b"\x00\0\0\0" + struct.pack(">4B3H3B3x", 32, 24, 0, 1, 65535, 65535, 65535, 255, 255, 255),
    b"\x06\0\0\0" + struct.pack(">I", 1 << 31) + b"x" * 100,
    b"\x06\0\0\0" + struct.pack(">i", -5) + b"x" * 5,
    b"\xfb\0\0\0\0\0\xff\0" + bytes(16 * 255),
    b"\x03\0" + struct.pack(">4H", 65535, 65535, 65535, 65535),
]


async def test_hostile_clients(tmp_path: Path) -> None:
    async with shown(at(tmp_path)) as (gpu, guest):
        await guest.paint(0, 1, SIDE, SIDE, GRADIENT)
        for message in HOSTILE:
            async with client(tmp_path / "vnc") as bad:
                await bad.encodings(RAW, 2, 4, 5, 6, 7, 9, 16, 17, -260, -259, DESKTOP_SIZE, CURSOR, -0x3F5FFFFF)
                await bad.stream.send_all(message)
                await bad.ask()
                with trio.move_on_after(0.1):
                    while await bad.stream.receive_some(4096):
                        pass
        for nonsense in (b"", b"GET / HTTP/1.1\r\n\r\n", b"RFB 999.999\n", b"RFB 003.008\n\x05"):
            async with await trio.open_unix_socket(tmp_path / "vnc") as stream:
                await stream.send_all(nonsense)
        async with client(tmp_path / "vnc") as good:
            await good.encodings(RAW, DESKTOP_SIZE)
            await until_same_rgb(good, gpu)


@pytest.mark.parametrize("encoding", [2, 5, 6, 7, 16, 4, 9, 17])
async def test_every_encoding_while_pictures_change(tmp_path: Path, encoding: int) -> None:
    """What a client asks for is encoded; what comes is only counted."""
    async with shown(at(tmp_path)) as (_, guest):
        await guest.paint(0, 1, SIDE, SIDE, GRADIENT)
        async with client(tmp_path / "vnc") as viewer, trio.open_nursery() as nursery:
            await viewer.encodings(encoding, DESKTOP_SIZE, CURSOR, -32, -247)

            async def read() -> None:
                while await viewer.stream.receive_some(1 << 16):
                    pass

            nursery.start_soon(read)
            for shade in range(5):
                await repaint(guest, shade * 40)
                await viewer.ask(incremental=shade % 2 == 0)
                await guest.show(0, 1, SIDE - shade * 4, SIDE - shade * 8)
            nursery.cancel_scope.cancel()


async def test_a_real_client(tmp_path: Path) -> None:
    """vncdotool: another implementation, over TCP, with its own decoders."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    program = Path(sys.executable).with_name("vncdo")
    if not program.exists():
        pytest.skip("needs vncdotool (pip)")
    desk = Desk()
    async with shown({"vnc": (f"127.0.0.1:{port}",)}) as (gpu, guest):
        gpu.seat.add(desk)
        await guest.paint(0, 1, 160, 96, bytes(i * 7 % 251 for i in range(160 * 96 * 4)))
        png = tmp_path / "theirs.png"
        words = [str(program), "-s", f"127.0.0.1::{port}", "capture", str(png), "type", "hi", "key", "enter"]
        with trio.fail_after(60):
            await trio.run_process([*words, "move", "10", "20", "click", "1"], capture_stderr=True)
        with Image.open(png) as image:
            assert image.size == (160, 96)
            assert image.convert("RGB").tobytes() == rgb(gpu)
        keys = [event for event in desk.seen if event[0] == "key"]
        assert [sym for _, sym, down in keys if down] == [ord("h"), ord("i"), 0xFF0D]
        assert ("point", 10 * 32767 // 1279, 20 * 32767 // 799, 1) in desk.seen


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"vnc": ("nowhere",)}, "is not HOST:PORT"),
        ({"vnc": (":0,monitor=1",)}, "scanout=N"),
        ({"vnc": (":0,scanout=1",)}, "there is no scanout 1"),
        ({"vnc": ("0.0.0.0:0",)}, "lets everybody on the network use this VM"),
        ({"vnc": ("unix:/nowhere/vnc",)}, "/nowhere/vnc"),
        ({"vnc": ("192.0.2.1:5900",)}, "cannot listen on 192.0.2.1:5900"),
        ({"vnc": (":0",), "vnc_tls_cert": "x"}, "takes both"),
        ({"vnc": (":0",), "vnc_tls_cert": "/nowhere", "vnc_tls_key": "/nowhere"}, "no certificate"),
        ({"vnc": (":0",), "vnc_password_file": "/nowhere"}, "No such file"),
        ({"vnc_password_file": "/nowhere"}, "no --vnc ADDRESS"),
        ({"web": "0.0.0.0:80"}, "ssh -L"),
        ({"web": "80"}, "is not HOST:PORT"),
    ],
)
async def test_what_users_do_wrong(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        async with shown(options, guest=False):
            pass


async def test_passwords_that_others_can_read(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("x")
    secret.chmod(0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        async with shown({**at(tmp_path), "vnc_password_file": str(secret)}, guest=False):
            pass
    secret.write_text("123456789")
    secret.chmod(0o600)
    with pytest.raises(ConfigError, match="1 to 8 characters"):
        async with shown({**at(tmp_path), "vnc_password_file": str(secret)}, guest=False):
            pass


def test_companions() -> None:
    values = {option.key: option.default for option in OPTIONS}
    make = TYPE.companions
    assert make is not None
    assert make(values) == []
    assert [(c.name, c.given["kind"]) for c in make({**values, "input_socket": ("a",)})] == [("input", "combined")]
    two = make({**values, "input_socket": ("a", "b")})
    assert [(c.name, c.given["kind"], c.socket_path) for c in two] == [
        ("keyboard", "keyboard", "a"),
        ("tablet", "tablet", "b"),
    ]
    with pytest.raises(ConfigError, match="once or twice"):
        make({**values, "input_socket": ("a", "b", "c")})


async def test_devices_meet() -> None:
    desk = Desk()
    gpu = Gpu()
    gpu.seat.names = ("desk",)
    gpu.meet({"desk": desk}, [desk])  # type: ignore[dict-item, list-item]
    assert gpu.seat.sinks == [desk, desk]
    with pytest.raises(VhostError, match="there is no device 'desk'; there are disk"):
        gpu.meet({"disk": Gpu()}, [])
    with pytest.raises(VhostError, match="gpu is no input device"):
        gpu.meet({"desk": Gpu()}, [])
