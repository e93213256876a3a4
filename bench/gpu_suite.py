"""Sections gpu-*: a guest's frames through our display and QEMU's contrib vhost-user-gpu, beside memcpy()."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import click

from bench.contend import Contender, Driven, Figures, compiled, figures_of
from bench.peers import ALWAYS_US, Peer, Program, vhost_program
from bench.plan import Plan
from bench.rounds import Cell
from bench.stage import Live, Stage
from devices.gpu.load import Workload, measure

CONTRIB_PROGRAM = Path("/usr/lib/qemu/vhost-user-gpu")
CONTRIB = "contrib vhost-user-gpu"
WHERE = "install the Debian package qemu-system-gui"
MEMCPY = "memcpy"
FIGURE = "frames_per_second"
DEPTHS = (1, 8)
RECTS: tuple[tuple[int, int] | tuple[()], ...] = ((), (256, 256), (16, 16))
SECTIONS = {
    "gpu-display": "transfer and flush of 1920x1080, QEMU's display attached and read by the front-end",
    "gpu-alone": "transfer and flush of 1920x1080, nobody looks",
    "gpu-3d": "submissions of virgl with their fences, drawn by Mesa's software renderer",
}
#: what is submitted: so many words that change state, and perhaps a clear of the picture
SUBMITTED = ((5, False), (1000, False), (5, True))
PICTURE_3D = (256, 256)
#: Mesa without a GPU, as `vhost gpu` starts it
SOFTWARE = ("EGL_PLATFORM=surfaceless", "LIBGL_ALWAYS_SOFTWARE=1")


def ours_name(*, packed: bool = False) -> str:
    """What tables call ours."""
    return f"vhost gpu, {'packed' if packed else 'split'}"


def ours(*, packed: bool = False) -> Peer:
    """`vhost gpu`."""
    command = (vhost_program(), "gpu", "--socket-path", "{folder}/s", "--log-level", "warning")
    # so that its processor is all its own: it sleeps otherwise, and wakes late on a virtual machine
    return Peer(ours_name(packed=packed), Program((*command, "--poll-us", str(ALWAYS_US)), spins=True), packed=packed)


def contrib() -> Peer:
    """QEMU's. It ends with its first connection."""
    return Peer(CONTRIB, Program((str(CONTRIB_PROGRAM), "--socket-path", "{folder}/s"), once=True))


def ours_3d(*, packed: bool = False) -> Peer:
    """`vhost gpu --virgl`: device, renderer and what draws on one processor."""
    command = ("taskset", "-c", "{back}", vhost_program(), "gpu", "--virgl", "--socket-path", "{folder}/s")
    return Peer(ours_name(packed=packed), Program((*command, "--log-level", "warning")), packed=packed)


def contrib_3d(surfaceless: Path) -> Peer:
    """QEMU's, with `surfaceless.c` preloaded."""
    command = ("env", f"LD_PRELOAD={surfaceless}", *SOFTWARE, "taskset", "-c", "{back}", str(CONTRIB_PROGRAM))
    return Peer(CONTRIB, Program((*command, "--virgl", "--socket-path", "{folder}/s"), once=True))


@dataclass(frozen=True)
class GpuBackend(Driven):
    """A display, driven by our load generator."""

    def _once(self, stage: Stage, live: Live, workload: Workload, *, together: bool) -> Figures:
        with self.blamed(self._again(stage, live, together=together)):
            result = self._measured(measure, stage.sockets(self.peer)[0], workload, "commands")
        return {**figures_of(result), "share": self._share(result, result.frames, together=together)}


@dataclass(frozen=True)
class Copies:
    """memcpy() of as many bytes as a frame has, from one picture to another, on the back-end's processor."""

    name: str = MEMCPY

    def run(self, stage: Stage, workload: Workload, *, together: bool) -> Figures:
        stage.awake(None)
        cpu = stage.places.front if together else stage.places.back
        with tempfile.TemporaryDirectory(prefix="vhb-") as folder:
            program = compiled("memcpy", Path(folder))
            numbers = (workload.bytes, workload.frame_bytes, 1, int(workload.runtime * 1e9), cpu)
            done = subprocess.run([program, *map(str, numbers)], capture_output=True, text=True, check=False)
        if done.returncode:
            raise click.ClickException(f"bench/memcpy.c failed: {done.stderr.strip()}")
        pieces, nanoseconds = map(int, done.stdout.split())
        rate = pieces / nanoseconds * 1e9
        return {
            "workload": asdict(workload),
            "seconds": nanoseconds / 1e9,
            FIGURE: rate,
            "bytes_per_second": rate * workload.frame_bytes,
        }


def label(workload: Workload) -> str:
    """As tables have it."""
    if workload.words:
        return f"{workload.words} words{' and clear' * workload.clear}, {workload.depth}"
    area = "x".join(map(str, workload.rect)) if workload.rect else "all"
    return f"{area}, {workload.depth}"


def _cells(plan: Plan, section: str) -> list[Cell]:
    display = section == "gpu-display"
    mine: list[Contender] = [GpuBackend(ours(packed=packed)) for packed in (False, True)]
    if display and CONTRIB_PROGRAM.exists():
        mine.append(GpuBackend(contrib()))
    cells = []
    for rect in RECTS:
        for depth in plan.depths if len(plan.depths) < 3 else DEPTHS:
            workload = Workload(rect=rect, depth=depth, display=display, runtime=plan.runtime, warmup=plan.warmup)
            those = mine if rect else [*mine, Copies()]
            base = mine[-1].name if display else MEMCPY if not rect else ""
            cell = Cell(section, label(workload), workload, list(those), base, figure=FIGURE, device="gpu")
            cells += plan.chosen([cell])
    return cells


def _cells_3d(plan: Plan, surfaceless: Path | None) -> Iterator[Cell]:
    mine: list[Contender] = [GpuBackend(ours_3d(packed=packed)) for packed in (False, True)]
    if surfaceless is not None:
        mine.append(GpuBackend(contrib_3d(surfaceless)))
    for words, clear in SUBMITTED:
        for depth in plan.depths if len(plan.depths) < 3 else DEPTHS:
            workload = Workload(
                PICTURE_3D, words=words, clear=clear, depth=depth, runtime=plan.runtime, warmup=plan.warmup
            )
            cell = Cell("gpu-3d", label(workload), workload, list(mine), mine[-1].name, figure=FIGURE, device="gpu")
            yield from plan.chosen([cell])


@contextmanager
def opened(section: str, _stage: Stage, plan: Plan) -> Iterator[tuple[str, list[Cell]]]:
    """Title and cells."""
    if not CONTRIB_PROGRAM.exists():
        plan.say(f"not compared: {CONTRIB} ({WHERE})")
    if section != "gpu-3d":
        yield SECTIONS[section], _cells(plan, section)
        return
    with tempfile.TemporaryDirectory(prefix="vhb-") as folder:
        found = CONTRIB_PROGRAM.exists()
        surfaceless = compiled("surfaceless", Path(folder), "-shared", "-fPIC") if found else None
        yield SECTIONS[section], list(_cells_3d(plan, surfaceless))
