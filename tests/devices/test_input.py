"""virtio-input through our front-end: what it says it is, and events that arrive in order."""

from __future__ import annotations

import itertools
import json
import struct
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing
from guestlib.backends import vhost as vhost_command
from guestlib.backends import vhost_program

import vhost
from devices.input import Input, InputError
from devices.input.device import AXIS_MAX
from devices.input.keys import ALT_GR, AMERICAN, CODES, SCANCODES
from devices.input.layouts import layout_of
from vhost.control import call
from vhost.frontend import Frontend

KEY, REL, ABS, LED = 1, 2, 3, 17
SYN = (0, 0, 0)
A, SHIFT, LEFT = 30, 42, 0x110


class Driver:
    """Reads events one by one."""

    def __init__(self, fe: Frontend) -> None:
        self.fe = fe

    async def event(self) -> tuple[int, int, int]:
        used, (data,) = await self.fe.queues[0].request(in_=[8])
        assert used == 8
        return struct.unpack("<HHi", data)

    async def group(self) -> list[tuple[int, int, int]]:
        """Up to the next SYN, which is left out."""
        out = []
        while (event := await self.event()) != SYN:
            out.append(event)
        return out

    async def ask(self, select: int, subsel: int = 0) -> bytes:
        await self.fe.set_config(0, bytes((select, subsel)))
        data = await self.fe.get_config(0, 136)
        assert data[:2] == bytes((select, subsel))
        assert not any(data[8 + data[2] :])
        return data[8 : 8 + data[2]]

    async def bits(self, kind: int) -> set[int]:
        data = await self.ask(0x11, kind)
        return {8 * at + bit for at, byte in enumerate(data) for bit in range(8) if byte >> bit & 1}

    async def light(self, code: int, on: int) -> None:
        used, _ = await self.fe.queues[1].request([struct.pack("<HHi", LED, code, on)])
        assert used == 0


@asynccontextmanager
async def seat(device: Input, *, packed: bool = False) -> AsyncIterator[Driver]:
    with tempfile.TemporaryDirectory(prefix="vhk-") as folder:
        path = str(Path(folder) / "s")
        async with trio.open_nursery() as nursery:
            await nursery.start(vhost.serve, device, path)
            async with Frontend.connect(path, memory_size=1 << 20) as fe:
                await fe.start(queues=2, size=16, packed=packed)
                while not device.listening:
                    await trio.testing.wait_all_tasks_blocked()
                yield Driver(fe)
            nursery.cancel_scope.cancel()


async def test_what_it_is() -> None:
    async with seat(Input("combined", label="desk", serial="7")) as driver:
        assert await driver.ask(1) == b"desk"
        assert await driver.ask(2) == b"7"
        assert struct.unpack("<4H", await driver.ask(3))[0] == 6
        assert await driver.ask(0x10) == b""
        assert {A, SHIFT, LEFT} <= await driver.bits(KEY)
        assert await driver.bits(ABS) == {0, 1}
        assert await driver.bits(REL) == {6, 8}
        assert await driver.bits(LED) == {0, 1, 2}
        assert struct.unpack("<5I", await driver.ask(0x12, 1)) == (0, AXIS_MAX, 0, 0, 0)
        assert await driver.ask(0x12, 2) == b""
        assert await driver.ask(0xFF, 0xFF) == b""
        # a front-end that writes all of the space
        await driver.fe.set_config(0, bytes((1, 0)) + bytes(134))
        assert (await driver.fe.get_config(0, 12))[8:12] == b"desk"


async def test_kinds_differ() -> None:
    async with seat(Input("keyboard")) as driver:
        assert LEFT not in await driver.bits(KEY)
        assert await driver.bits(ABS) == set()
    async with seat(Input("mouse")) as driver:
        assert await driver.bits(REL) == {0, 1, 6, 8}
        assert A not in await driver.bits(KEY)


@pytest.mark.parametrize("packed", [False, True])
async def test_events(packed: bool) -> None:
    device = Input()
    async with seat(device, packed=packed) as driver:
        device.keysym(ord("a"), True)
        device.keysym(ord("a"), True)  # the guest repeats by itself
        device.name_key("KeyA", False)
        device.name_key("nonsense", True)
        assert [await driver.group(), await driver.group()] == [[(KEY, A, 1)], [(KEY, A, 0)]]
        device.point(-5, AXIS_MAX + 1, 1)
        device.point(7, 8, 8)
        device.point(7, 8, 8)
        assert await driver.group() == [(ABS, 0, 0), (ABS, 1, AXIS_MAX), (KEY, LEFT, 1)]
        assert await driver.group() == [(ABS, 0, 7), (ABS, 1, 8), (KEY, LEFT, 0), (REL, 8, 1)]
        assert await driver.group() == [(ABS, 0, 7), (ABS, 1, 8)]
        device.key(A, True)
        device.release()
        assert [await driver.group(), await driver.group()] == [[(KEY, A, 1)], [(KEY, A, 0)]]


async def test_lights() -> None:
    device = Input("keyboard")
    async with seat(device) as driver:
        await driver.light(1, 1)
        assert device.lights == {"caps"}
        await driver.light(77, 1)
        await driver.light(1, 0)
        assert not device.lights


async def test_a_guest_that_does_not_read() -> None:
    device = Input()
    async with seat(device) as driver:
        device.key(A, True)
        for x in range(3000):
            device.point(x, 0, 0)
        assert len(device._waiting) < 4096
        last = []
        with trio.move_on_after(0.5):
            while True:
                last.append(await driver.event())
        assert (KEY, A, 0) in last
        assert last[-3:] == [(ABS, 0, 2999), (ABS, 1, 0), SYN]


async def test_queues_stop_while_it_waits() -> None:
    device = Input()
    async with seat(device) as driver:
        with trio.fail_after(60):
            bases = await driver.fe.stop()
        assert not device.listening
        device.key(A, True)  # nobody listens
        await driver.fe.start_queues(bases)
        while not device.listening:
            await trio.testing.wait_all_tasks_blocked()
        device.key(SHIFT, True)
        assert await driver.group() == [(KEY, SHIFT, 1)]


async def test_buffers_of_other_sizes() -> None:
    device = Input()
    async with seat(device) as driver:
        device.key(A, True)
        assert (await driver.fe.queues[0].request(in_=[3]))[0] == 3
        assert (await driver.fe.queues[0].request([b"?"]))[0] == 0
        await driver.fe.queues[1].request([b"x"])
        await driver.fe.queues[1].request(in_=[64])
        device.key(A, False)
        assert await driver.group() == [(KEY, A, 0)]


def test_every_printable_character_has_a_key() -> None:
    printable = "".join(map(chr, range(0x20, 0x7F)))
    assert len(AMERICAN.strokes(printable)) == len(printable)
    assert {AMERICAN.keysyms[ord(char)] for char in printable} <= set(CODES.values())
    assert AMERICAN.strokes("aA") == [(A, ()), (A, (SHIFT,))]
    with pytest.raises(ValueError, match="'ß' is on no key"):
        AMERICAN.strokes("ß")


def test_scancodes() -> None:
    assert max(SCANCODES) < 0x100
    assert len(set(SCANCODES.values())) == len(SCANCODES) - 1, "one key has two: it is another one with Alt"
    there = set(SCANCODES.values())
    assert [name for name, code in CODES.items() if code not in there] == []
    for scancode, name in ((0x1E, "KeyA"), (0x9D, "ControlRight"), (0xC8, "ArrowUp"), (0x56, "IntlBackslash")):
        assert SCANCODES[scancode] == CODES[name]


@pytest.fixture
def layouts() -> None:
    pytest.importorskip("devices.input._xkb", reason="built without libxkbcommon (Debian: libxkbcommon-dev)")
    if not Path("/usr/share/X11/xkb/symbols/de").exists():
        pytest.skip("no keyboard layouts (Debian: xkb-data)")


@pytest.mark.usefixtures("layouts")
def test_layouts() -> None:
    german = layout_of("de")
    assert german.strokes("zß@Ä<\n") == [(21, ()), (12, ()), (16, (ALT_GR,)), (40, (SHIFT,)), (86, ()), (28, ())]
    assert [german.keysyms[sym] for sym in (ord("y"), 0xDF, 0xFE03, 0xFFBE)] == [44, 12, ALT_GR, 59]
    printable = "".join(chr(code) for code in range(0x20, 0x7F) if chr(code) not in "^`~'\"")  # which are dead keys
    for name in ("de(nodeadkeys)", "en-gb", "fr", "br", "ch(fr)"):
        assert len(layout_of(name).strokes(printable)) == len(printable)
    assert layout_of("de(nodeadkeys)").strokes("^") == [(41, ())]
    assert layout_of("en-gb").strokes('"\\') == [(3, (SHIFT,)), (86, ())]
    russian = layout_of("ru")
    assert russian.strokes("ф") == [(A, ())]
    assert russian.keysyms[0x6C6] == russian.keysyms[0x1000444] == A
    assert layout_of("en-us") is layout_of("us") is AMERICAN
    for name in ("klingon", "de(klingon)", "../de", "de\n", ""):
        with pytest.raises(ValueError, match="layout"):
            layout_of(name)


@pytest.mark.usefixtures("layouts")
async def test_typed_on_another_layout() -> None:
    device = Input(layout=layout_of("de"))
    async with seat(device) as driver:
        device.controls()["type"](text="@")
        device.keysym(ord("y"), True)
        device.keysym(ord("y"), False, place=0x2C)
        device.keysym(ord("y"), True, place=0x15)
        device.keysym(ord("y"), False, place=0x7F)  # no such place: by what it writes
        typed = [(await driver.group())[0] for _ in range(7)]
        assert typed[:4] == [(KEY, ALT_GR, 1), (KEY, 16, 1), (KEY, 16, 0), (KEY, ALT_GR, 0)]
        assert typed[4:] == [(KEY, 44, 1), (KEY, 44, 0), (KEY, 21, 1)]
        with pytest.raises(InputError, match="'ф' is on no key of the layout de"):
            device.controls()["type"](text="ф")


def test_unheard() -> None:
    with pytest.raises(InputError, match="does not listen"):
        Input().controls()["type"](text="a")
    with pytest.raises(InputError, match="a keyboard has no wheel"):
        Input("keyboard").controls()["scroll"](notches=1)
    with pytest.raises(InputError, match="no key 'KeyÄ'"):
        Input().controls()["key"](key="ShiftLeft+KeyÄ")
    with pytest.raises(ValueError, match="at most 128 bytes"):
        Input(label="x" * 129)


async def test_command(tmp_path: Path) -> None:
    sock, control = tmp_path / "s", tmp_path / "ctl"
    words = ["input", "--socket-path", str(sock), "--control", str(control)]
    served = vhost_command(tmp_path, [sock, control], *words)
    async with served, Frontend.connect(str(sock), memory_size=1 << 20) as fe:
        await fe.start(queues=2, size=16)
        driver = Driver(fe)
        command = [vhost_program(), "ctl", "--socket", str(control), "--json"]
        await call(str(control), "input.type", {"text": "A"})
        await call(str(control), "input.key", {"key": "ControlLeft+KeyC"})
        await call(str(control), "input.click", {})
        typed = [(await driver.group())[0] for _ in range(10)]
        assert typed[:4] == [(KEY, SHIFT, 1), (KEY, A, 1), (KEY, A, 0), (KEY, SHIFT, 0)]
        assert typed[4:8] == [(KEY, 29, 1), (KEY, 46, 1), (KEY, 46, 0), (KEY, 29, 0)]
        assert typed[8:] == [(KEY, LEFT, 1), (KEY, LEFT, 0)]
        done = await trio.run_process([*command, "input.state"], capture_stdout=True)
        assert json.loads(done.stdout)["listening"] is True


@pytest.mark.parametrize("more", [(), ("--sandbox", "none", "--seccomp", "none")], ids=["sealed", "as it is"])
async def test_sandbox(tmp_path: Path, more: tuple[str, ...]) -> None:
    sock = tmp_path / "s"
    words = ["input", "--socket-path", str(sock), *more]
    async with vhost_command(tmp_path, [sock], *words) as served, Frontend.connect(str(sock)) as fe:
        await fe.start(queues=2, size=16)
        status = Path(f"/proc/{served.proc.pid}/status").read_text()
        assert ("Seccomp:\t2" in status) == (not more)
        assert "warning" not in served.log


async def test_hostile_guests(tmp_path: Path) -> None:
    """Config space of any offset and length, lights and events of any kind, rings that make no sense."""
    device = Input()
    async with seat(device) as driver:
        for select, subsel in itertools.product((0, 1, 2, 3, 0x10, 0x11, 0x12, 0x80, 0xFF), (0, 1, 2, 3, 17, 20, 0xFF)):
            assert len(await driver.ask(select, subsel)) <= 128
        for offset in (0, 1, 2, 8, 100, 135):
            await driver.fe.set_config(offset, bytes([0xFF]) * (136 - offset))
        values = -(1 << 31), -1, 1, (1 << 31) - 1
        for kind, code, value in itertools.product((0, 1, 17, 0xFFFF), (0, 1, 0xFFFF), values):
            await driver.fe.queues[1].request([struct.pack("<HHi", kind, code, value)])
        assert device.lights <= {"num", "caps", "scroll"}
        await driver.fe.queues[1].request([b"\xff" * 4096])
        await driver.fe.queues[1].request([b"\x11", b"\0\0", b"\0", b"\1\0\0\0"])  # in pieces, as it may
        assert "num" in device.lights
        device.key(A, True)
        assert await driver.group() == [(KEY, A, 1)]
