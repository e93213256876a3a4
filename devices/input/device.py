"""virtio-input as the server sees it [VIRTIO 1.3, 5.8]: events are put in from outside, and the guest reads them."""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import IntEnum, StrEnum
from typing import TYPE_CHECKING, Any, ClassVar, Final

import trio

import ring
from devices.input.keys import AMERICAN, BUTTONS, CODES, LAST_KEY, SCANCODES, SHIFT, Layout
from vhost import Device, Metric
from vhost.constants import ProtocolFeature
from vhost.device import Link
from vhost.errors import VhostError

if TYPE_CHECKING:
    from vhost.sandbox import Confinement

__all__ = ["AXIS_MAX", "Input", "InputError", "Kind"]

#: the largest x and y of a tablet
AXIS_MAX: Final = 32767
_EVENT: Final = struct.Struct("<HHi")
#: select, subsel, size
_SELECT: Final = struct.Struct("<3B5x")
_DATA: Final = 128
_IDS: Final = struct.Struct("<4H")
_AXIS: Final = struct.Struct("<5I")
_BUS_VIRTUAL: Final = 6
#: events that wait for a guest which does not read; a burst of typing is a tenth of it
_WAITING_MAX: Final = 4096
#: characters; each takes six keys pressed or let go at most, and a SYN for each of these
_TEXT_MAX: Final = _WAITING_MAX // 12
_SYN: Final = (0, 0, 0)
_LEDS: Final = ("num", "caps", "scroll")
_KEYBOARD_KEYS: Final = 0xFF


class InputError(VhostError, ValueError):
    """That cannot be put in: one sentence."""


class Kind(StrEnum):
    """What a device is to its guest."""

    KEYBOARD = "keyboard"
    TABLET = "tablet"
    MOUSE = "mouse"
    COMBINED = "combined"  # keyboard and tablet


class _Type(IntEnum):
    KEY = 1
    REL = 2
    ABS = 3
    LED = 17
    REP = 20


class _Ask(IntEnum):
    NAME = 1
    SERIAL = 2
    IDS = 3
    PROPERTIES = 0x10
    EVENTS = 0x11
    AXIS = 0x12


_REL_X, _REL_Y, _REL_HWHEEL, _REL_WHEEL = 0, 1, 6, 8


def _abilities(kind: Kind) -> dict[int, frozenset[int]]:
    """Event types, and the codes of each."""
    keys: set[int] = set()
    out: dict[int, frozenset[int]] = {}
    if kind in (Kind.KEYBOARD, Kind.COMBINED):
        keys |= set(range(1, _KEYBOARD_KEYS))
        out |= {_Type.LED: frozenset(range(len(_LEDS))), _Type.REP: frozenset((0, 1))}
    if kind is not Kind.KEYBOARD:
        keys |= set(BUTTONS.values())
        out[_Type.REL] = frozenset((_REL_HWHEEL, _REL_WHEEL))
    if kind in (Kind.TABLET, Kind.COMBINED):
        out[_Type.ABS] = frozenset((0, 1))
    if kind is Kind.MOUSE:
        out[_Type.REL] |= {_REL_X, _REL_Y}
    return {**out, _Type.KEY: frozenset(keys)}


def _bitmap(numbers: Iterable[int]) -> bytes:
    bits = sum(1 << number for number in numbers)
    return bits.to_bytes((bits.bit_length() + 7) // 8, "little")


class Input(Device):
    """A keyboard, a pointer, or both in one.

    What is put in while no driver listens is gone. A guest that does not read for long gets the newest state: what it
    has missed is left out, and keys held down are let go.

    Args:
        kind: what the guest sees.
        label: its name in the guest, at most 128 bytes of UTF-8.
        serial: likewise.
        layout: of the guest's keyboard, for what is told by what it writes (`devices.input.layouts.layout_of`).

    Raises:
        ValueError: too long.
    """

    device_id: ClassVar[int] = 18
    name: ClassVar[str] = "input"
    backend_type: ClassVar[str] = "input"
    queue_sizes: Sequence[int] = (64, 64)
    confinement: Confinement | None = None

    def __init__(
        self, kind: Kind | str = Kind.COMBINED, *, label: str = "", serial: str = "", layout: Layout = AMERICAN
    ) -> None:
        self.kind = Kind(kind)
        self.layout = layout
        self._able = _abilities(self.kind)
        texts = {_Ask.NAME: label or f"vhostkit {self.kind}", _Ask.SERIAL: serial}
        self._texts = {ask: text.encode() for ask, text in texts.items()}
        if any(len(text) > _DATA for text in self._texts.values()):
            raise ValueError(f"a label or serial number has at most {_DATA} bytes")
        self._selected = (0, 0)
        self._waiting: deque[tuple[int, int, int]] = deque()
        self._news = trio.Event()
        self._readers = 0
        self._down: set[int] = set()
        self._buttons = 0
        self._leds: set[int] = set()
        self._sent = self._lost = 0

    # What it is

    @property
    def protocol_features(self) -> ProtocolFeature:
        """The usual ones; no inflight record: buffers are not held."""
        return super().protocol_features & ~ProtocolFeature.INFLIGHT_SHMFD

    def config(self) -> bytes:
        """What the driver has selected, 136 bytes."""
        data = self._answer(*self._selected)
        return _SELECT.pack(*self._selected, len(data)) + data.ljust(_DATA, b"\0")

    def set_config(self, offset: int, data: bytes) -> None:
        """The driver selects; front-ends that write all of the space are understood, too."""
        select, subsel = self._selected
        if offset == 0:
            select = data[0]
        if offset <= 1 < offset + len(data):
            subsel = data[1 - offset]
        self._selected = (select, subsel)

    def _answer(self, select: int, subsel: int) -> bytes:
        if select == _Ask.EVENTS:
            return _bitmap(self._able.get(subsel, ()))
        if select == _Ask.AXIS:
            return _AXIS.pack(0, AXIS_MAX, 0, 0, 0) if subsel in self._able.get(_Type.ABS, ()) else b""
        if subsel:
            return b""
        if select == _Ask.IDS:
            return _IDS.pack(_BUS_VIRTUAL, 0x0627, list(Kind).index(self.kind) + 1, 1)
        return next((text for ask, text in self._texts.items() if ask == select), b"")

    # Life-cycle

    async def run(self, queue: ring.Virtqueue) -> None:
        """As `vhost.Device.run`: events on queue 0, the guest's lights on queue 1."""
        if queue.index:
            await self._take_lights(queue)
            return
        self._readers += 1
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._send, queue)
                await queue.ended()
                nursery.cancel_scope.cancel()
        finally:
            self._readers -= 1

    async def _send(self, queue: ring.Virtqueue) -> None:
        while True:
            while not self._waiting:
                queue.flush()
                await self._news.wait()
            chains = queue.pop_batch(min(len(self._waiting), 64))
            for chain in chains:
                event = _EVENT.pack(*self._waiting.popleft())
                chain.complete(chain.write(0, event))
                self._sent += 1
            if not chains and not await queue.wait():
                return

    async def _take_lights(self, queue: ring.Virtqueue) -> None:
        async for chain in queue:
            event = chain.read(0, _EVENT.size)
            if len(event) == _EVENT.size:
                kind, code, value = _EVENT.unpack(event)
                if kind == _Type.LED and code in self._able.get(_Type.LED, ()):
                    (self._leds.add if value else self._leds.discard)(code)
            chain.complete()

    def reset(self) -> None:
        """As `vhost.Device.reset`."""
        self._selected = (0, 0)
        self._waiting.clear()
        self._down.clear()
        self._leds.clear()

    def set_status(self, status: int) -> None:
        """A driver that resets the device knows of no keys held down."""
        if not status:
            self.reset()

    def detach(self, link: Link) -> None:
        """The guest is gone."""
        super().detach(link)
        self.reset()

    # Putting in: any of these may be called at any time from the event loop

    @property
    def listening(self) -> bool:
        """A driver reads events."""
        return self._readers > 0

    @property
    def lights(self) -> frozenset[str]:
        """Those of num, caps and scroll that are on."""
        return frozenset(_LEDS[code] for code in self._leds)

    def takes(self, kind: int, code: int) -> bool:
        """Whether it has that event."""
        return code in self._able.get(kind, ())

    def put(self, events: Iterable[tuple[int, int, int]]) -> None:
        """Events (type, code, value) that belong together; those it does not have are left out."""
        mine = [event for event in events if self.takes(*event[:2])]
        if not mine or not self.listening:
            return
        for kind, code, value in mine:
            if kind == _Type.KEY:
                (self._down.add if value else self._down.discard)(code)
        if len(self._waiting) + len(mine) >= _WAITING_MAX:
            mine = self._give_up()
        self._waiting.extend((*mine, _SYN))
        news, self._news = self._news, trio.Event()
        news.set()

    def _give_up(self) -> list[tuple[int, int, int]]:
        """Leave out what waits; what remains to be told is which keys are up."""
        up = {code for kind, code, value in self._waiting if kind == _Type.KEY and not value} | self._down
        self._lost += len(self._waiting)
        self._waiting.clear()
        self._down.clear()
        return [(_Type.KEY, code, 0) for code in sorted(up)]

    def key(self, code: int, down: bool) -> None:
        """A key or button by Linux's number; the guest repeats keys that are held by itself."""
        if down != (code in self._down):
            self.put([(_Type.KEY, code, int(down))])

    def name_key(self, name: str, down: bool) -> None:
        """A key as browsers name its place (KeyboardEvent.code); unknown ones are left out."""
        if name in CODES:
            self.key(CODES[name], down)

    def keysym(self, number: int, down: bool, *, place: int = 0) -> None:
        """A key by what it writes in X11; unknown ones are left out.

        Args:
            place: its XT scancode (bit 7: e0 is before it), which counts where it is known; 0: it is not.
        """
        code = SCANCODES.get(place) or self.layout.keysyms.get(number)
        if code is not None:
            self.key(code, down)

    def point(self, x: int, y: int, buttons: int) -> None:
        """The pointer is at a place, and buttons are held.

        Args:
            x: 0 to AXIS_MAX.
            buttons: bits from 0: left, middle, right; 3 to 6: a notch of the wheel up, down, left, right; side, extra.
        """
        events = [(int(_Type.ABS), 0, min(max(x, 0), AXIS_MAX)), (int(_Type.ABS), 1, min(max(y, 0), AXIS_MAX))]
        before, self._buttons = self._buttons, buttons
        for bit, name in ((0, "left"), (1, "middle"), (2, "right"), (7, "side"), (8, "extra")):
            if (before ^ buttons) >> bit & 1:
                events.append((_Type.KEY, BUTTONS[name], buttons >> bit & 1))
        pressed = buttons & ~before
        for bit, code, step in ((3, _REL_WHEEL, 1), (4, _REL_WHEEL, -1), (5, _REL_HWHEEL, -1), (6, _REL_HWHEEL, 1)):
            if pressed >> bit & 1:
                events.append((_Type.REL, code, step))
        self.put(events)

    def release(self) -> None:
        """Let go what is held down: whoever held it is gone."""
        self.put([(_Type.KEY, code, 0) for code in sorted(self._down)])
        self._buttons = 0

    # Control socket and metrics

    def controls(self) -> Mapping[str, Callable[..., Any]]:
        """As `vhost.Device.controls`."""
        return {
            "quiesce": self.quiesce,
            "resume": self.resume,
            "key": self._key,
            "type": self._type,
            "move": self._move,
            "click": self._click,
            "scroll": self._scroll,
            "state": self._state,
        }

    def _heard(self) -> None:
        if not self.listening:
            raise InputError("the guest does not listen: it has no driver for this device yet")

    def _able_to(self, kind: _Type, code: int, what: str) -> None:
        if not self.takes(kind, code):
            raise InputError(f"a {self.kind} has no {what}")
        self._heard()

    def _key(self, key: str, down: bool | None = None) -> None:
        """Press and let go a key (KeyA, Enter, F1, … or Linux's number), or one of both; several with + between."""
        codes = [int(name) if name.isdigit() else CODES.get(name, 0) for name in key.split("+")]
        for code, name in zip(codes, key.split("+"), strict=True):
            if not 0 < code <= LAST_KEY:
                raise InputError(f"no key {name!r}; keys are called as KeyboardEvent.code: KeyA, Digit1, Enter, F1, …")
        for code, name in zip(codes, key.split("+"), strict=True):
            self._able_to(_Type.KEY, code, f"key {name!r}")
        for code in codes if down is not False else ():
            self.key(code, True)
        for code in reversed(codes) if down is not True else ():
            self.key(code, False)

    def _type(self, text: str) -> None:
        """Type text, on a keyboard of the guest's layout."""
        try:
            wanted = self.layout.strokes(text)
        except ValueError as exc:
            raise InputError(str(exc)) from exc
        if len(wanted) > _TEXT_MAX:
            raise InputError(f"{len(wanted)} characters at once are too many; type at most {_TEXT_MAX}")
        self._able_to(_Type.KEY, SHIFT, "keys")
        for code, held in wanted:
            for each in (*held, code):
                self.key(each, True)
            for each in (code, *reversed(held)):
                self.key(each, False)

    def _move(self, x: int, y: int) -> None:
        """Move the pointer: 0 to 32767 from edge to edge; a mouse: by so many steps."""
        if self.kind is Kind.MOUSE:
            self._heard()
            self.put([(_Type.REL, _REL_X, x), (_Type.REL, _REL_Y, y)])
            return
        self._able_to(_Type.ABS, 0, "place to point at")
        if not 0 <= x <= AXIS_MAX or not 0 <= y <= AXIS_MAX:
            raise InputError(f"{x}, {y} is no place; give 0 to {AXIS_MAX}")
        self.put([(_Type.ABS, 0, x), (_Type.ABS, 1, y)])

    def _click(self, button: str = "left") -> None:
        """Press and let go a button: left, middle, right, side, extra."""
        if button not in BUTTONS:
            raise InputError(f"no button {button!r}; there are {', '.join(BUTTONS)}")
        self._able_to(_Type.KEY, BUTTONS[button], "buttons")
        self.key(BUTTONS[button], True)
        self.key(BUTTONS[button], False)

    def _scroll(self, notches: int, sideways: bool = False) -> None:
        """Turn the wheel: up, or to the right, by so many notches; negative ones the other way."""
        code = _REL_HWHEEL if sideways else _REL_WHEEL
        self._able_to(_Type.REL, code, "wheel")
        self.put([(_Type.REL, code, notches)])

    def _state(self) -> dict[str, Any]:
        """What it is, whether a driver listens, keys held down, lights."""
        return {
            "kind": str(self.kind),
            "listening": self.listening,
            "held": sorted(self._down),
            "lights": sorted(self.lights),
            "sent": self._sent,
            "waiting": len(self._waiting),
            "lost": self._lost,
        }

    def metrics(self) -> Iterable[Metric]:
        """As `vhost.Device.metrics`."""
        yield Metric("input_events_total", "counter", "Events that the guest was given.", self._sent)
        yield Metric("input_lost_total", "counter", "Events left out for a guest that does not read.", self._lost)
