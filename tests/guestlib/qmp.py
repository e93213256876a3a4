"""QEMU's monitor protocol on trio, read only while someone waits for an answer or event."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from typing import Any

import trio

from guestlib.process import GuestError


class QmpError(GuestError):
    """QEMU refused a command; the text is its own."""


class Qmp:
    """One monitor connection over ``stream``, which it owns."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self._stream = stream
        self._rest = b""
        self._ids = itertools.count(1)
        self._lock = trio.Lock()
        self.events: list[dict[str, Any]] = []

    async def aclose(self) -> None:
        """Close the connection; QEMU lives on."""
        await trio.aclose_forcefully(self._stream)

    async def _message(self) -> dict[str, Any]:
        while b"\n" not in self._rest:
            try:
                more = await self._stream.receive_some(65536)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                more = b""
            if not more:
                raise GuestError("QEMU closed its monitor")
            self._rest += more
        line, _, self._rest = self._rest.partition(b"\n")
        message: dict[str, Any] = json.loads(line)
        return message

    async def negotiate(self) -> None:
        """Take the greeting and enter command mode."""
        await self._message()
        await self.execute("qmp_capabilities")

    async def execute(self, command: str, timeout: float = 60, **arguments: Any) -> Any:
        """Run a command; argument names take ``_`` for ``-``. Raises QmpError with QEMU's words."""
        number = next(self._ids)
        request: dict[str, Any] = {"execute": command, "id": number}
        if arguments:
            request["arguments"] = {name.replace("_", "-"): value for name, value in arguments.items()}
        async with self._lock:
            with trio.move_on_after(timeout):
                try:
                    await self._stream.send_all(json.dumps(request).encode() + b"\n")
                except trio.BrokenResourceError:
                    raise GuestError("QEMU closed its monitor") from None
                while True:
                    message = await self._message()
                    if "event" in message:
                        self.events.append(message)
                    elif message.get("id") == number:
                        if "error" in message:
                            raise QmpError(f"{command}: {message['error']['desc']}")
                        return message.get("return")
        raise GuestError(f"QEMU did not answer {command} within {timeout:g} s")

    async def human(self, line: str) -> str:
        """A line for the human monitor; its answer."""
        answer = await self.execute("human-monitor-command", command_line=line)
        return str(answer)

    async def event(
        self, name: str, where: Callable[[dict[str, Any]], bool] = lambda _: True, timeout: float = 60
    ) -> dict[str, Any]:
        """Wait for event ``name`` whose data satisfies ``where``, or take it from those already seen."""
        async with self._lock:
            with trio.move_on_after(timeout):
                while True:
                    for seen in self.events:
                        if seen["event"] == name and where(seen.get("data", {})):
                            self.events.remove(seen)
                            return seen
                    message = await self._message()
                    if "event" in message:
                        self.events.append(message)
        raise GuestError(f"no QEMU event {name} within {timeout:g} s; seen: {[e['event'] for e in self.events]}")
