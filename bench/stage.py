"""Programs that run for a measurement: started once, all but the one that is measured stopped, pinned, ended."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import click

from bench.peers import Peer, Program


@dataclass(frozen=True)
class Places:
    """Processors: `front` for the front-end, `back` for the back-end; the same where there is but one."""

    front: int
    back: int

    @classmethod
    def usable(cls) -> Self:
        """The first two that this process may use."""
        cpus = sorted(os.sched_getaffinity(0))
        return cls(cpus[0], cpus[1 % len(cpus)])


@dataclass
class Live:
    """A program that runs."""

    process: subprocess.Popen[bytes]
    folder: Path
    asleep: bool = False
    used: bool = False

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def cpu_clock(self) -> int:
        """Of the process, all threads included (clock_getcpuclockid)."""
        return ~self.pid << 3 | 2

    @property
    def words(self) -> str:
        """The last it said."""
        return (self.folder / "log").read_text(errors="replace")[-800:]

    def pin(self, *cpus: int) -> None:
        """All its threads to these processors."""
        for task in Path(f"/proc/{self.pid}/task").iterdir():
            try:
                os.sched_setaffinity(int(task.name), cpus)
            except ProcessLookupError:
                pass  # a helper thread that just ended

    def freeze(self, on: bool) -> None:
        """A program that polls would take the processor from the one that is measured."""
        if on != self.asleep:
            self.process.send_signal(signal.SIGSTOP if on else signal.SIGCONT)
            self.asleep = on

    def end(self) -> None:
        self.freeze(False)
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class Stage:
    """All programs of one section.

    Resource handling: ends them at the end of the `with` block.
    """

    def __init__(self, places: Places | None = None) -> None:
        self.places = places or Places.usable()
        self._live: dict[Program, Live] = {}
        self._started = 0
        self._folder = tempfile.TemporaryDirectory(prefix="vhb-")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for live in self._live.values():
            live.end()
        self._folder.cleanup()

    def awake(self, peer: Peer | None, *, together: bool = False) -> Live | None:
        """Let only `peer` run, on the back-end's processor, or on the front-end's; None: nobody.

        Raises: ClickException: it does not start, or has died.
        """
        for program, live in self._live.items():
            if peer is None or program != peer.program:
                live.freeze(True)
        if peer is None:
            return None
        if peer.program.once and peer.program in self._live and self._live[peer.program].used:
            self._live.pop(peer.program).end()
        if peer.program not in self._live:
            self._start(peer)
        found = self._live[peer.program]
        if found.process.poll() is not None:
            raise click.ClickException(f"{peer.name} ended with status {found.process.returncode}: {found.words}")
        found.freeze(False)
        found.pin(self.places.front if together else self.places.back)
        return found

    def sockets(self, peer: Peer) -> Sequence[str]:
        """Of a peer that was awake: a connection to them follows."""
        live = self._live[peer.program]
        live.used = True
        return [str(live.folder / name) for name in peer.sockets]

    def _start(self, peer: Peer) -> None:
        program = peer.program
        folder = Path(self._folder.name) / str(self._started)
        self._started += 1
        folder.mkdir()
        names = {"{folder}": str(folder), "{front}": str(self.places.front), "{back}": str(self.places.back)}

        def filled(text: str) -> str:
            for name, value in names.items():
                text = text.replace(name, value)
            return text

        (folder / "config").write_text(filled(program.config))
        with (folder / "log").open("ab") as log:
            process = subprocess.Popen(
                [filled(part) for part in program.command], stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        live = self._live[program] = Live(process, folder)
        deadline = time.monotonic() + 30
        while not all((folder / name).exists() for name in program.sockets):
            if process.poll() is not None or time.monotonic() > deadline:
                raise click.ClickException(f"{peer.name} does not start: {live.words}")
            time.sleep(0.02)
