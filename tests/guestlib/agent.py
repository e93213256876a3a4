"""The line to a guest: scripts go in, their output and status come back.

Nothing reads in the background: what the guest prints waits in the socket until someone asks.
"""

from __future__ import annotations

import base64
import textwrap
from dataclasses import dataclass
from pathlib import Path

import trio

from guestlib.process import GuestError, tail


@dataclass(frozen=True)
class Result:
    """What a script in the guest printed (both streams) and its exit status."""

    output: str
    status: int

    @property
    def lines(self) -> list[str]:
        """The output's lines without empty ones."""
        return [line for line in self.output.splitlines() if line.strip()]


class CommandFailed(GuestError):
    """A script in the guest ended with a status other than 0."""


class Agent:
    """Commands to one guest over ``stream``, which the agent owns and closes."""

    def __init__(self, name: str, stream: trio.abc.Stream, console: Path) -> None:
        self.name = name
        self.console = console
        self._stream = stream
        self._rest = b""
        self._next = 0
        self._lock = trio.Lock()

    async def aclose(self) -> None:
        """Close the line; the guest lives on."""
        await trio.aclose_forcefully(self._stream)

    def _fail(self, what: str, output: list[str]) -> GuestError:
        said = textwrap.indent("\n".join(output[-20:]), "  | ")
        return GuestError(f"{self.name}: {what}\n{said}\n  console:\n{textwrap.indent(tail(self.console), '  # ')}")

    async def _line(self) -> str:
        while b"\n" not in self._rest:
            try:
                more = await self._stream.receive_some(65536)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                more = b""
            if not more:
                raise EOFError
            self._rest += more
        line, _, self._rest = self._rest.partition(b"\n")
        return line.decode(errors="replace").rstrip("\r")

    async def wait_ready(self, timeout: float = 120) -> str:
        """Wait until the guest's init takes commands, at most ``timeout`` s; the kernel's release."""
        output: list[str] = []
        async with self._lock:
            with trio.move_on_after(timeout):
                try:
                    while True:
                        line = await self._line()
                        if line.startswith("@@ready"):
                            return line.split()[1]
                        output.append(line)
                except EOFError:
                    raise self._fail("ended before it was ready", output) from None
        raise self._fail(f"not ready within {timeout:g} s", output)

    async def send(self, script: str) -> int:
        """Start ``script`` and return its number without waiting; nothing else runs in the guest before it ends."""
        self._next += 1
        encoded = base64.b64encode(script.encode()).decode()
        try:
            await self._stream.send_all(f"\n{self._next} {encoded}\n".encode())
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            raise self._fail("is gone", []) from None
        return self._next

    async def result(self, number: int, timeout: float = 60) -> Result:
        """Wait for the script that ``send`` numbered, at most ``timeout`` s."""
        output: list[str] = []
        begun = False
        with trio.move_on_after(timeout):
            try:
                while True:
                    line = await self._line()
                    if line == f"@@begin {number}":
                        begun = True
                        output.clear()
                    elif line.startswith(f"@@end {number} "):
                        return Result("\n".join(output).strip("\n"), int(line.split()[2]))
                    elif line.startswith("@@ready"):
                        raise self._fail("rebooted under the command", output)
                    else:
                        output.append(line)
            except EOFError:
                raise self._fail("ended under the command", output) from None
        said = "did not end" if begun else "was not begun"
        raise self._fail(f"the command {said} within {timeout:g} s", output)

    async def run(self, script: str, *, timeout: float = 60, check: bool = True) -> Result:
        """Run a shell script in the guest.

        Args:
            script: lines for busybox's sh; its stdin is empty.
            timeout: seconds, after which GuestError says what was printed so far.
            check: raise CommandFailed on a status other than 0.
        """
        async with self._lock:
            result = await self.result(await self.send(script), timeout)
        if check and result.status != 0:
            error = self._fail(f"status {result.status} from\n{textwrap.indent(script.strip(), '  $ ')}", result.lines)
            raise CommandFailed(str(error))
        return result

    async def output(self, script: str, *, timeout: float = 60) -> str:
        """The output of a script that must end with status 0."""
        return (await self.run(script, timeout=timeout)).output.strip()
