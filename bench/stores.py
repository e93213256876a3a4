"""Sections by what lies behind the disk: null, memory, page-cached file, tmpfs with O_DIRECT."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import click
import trio

from bench.contend import Backend, Contender, Fio, Memcpy
from bench.peers import MIB, NULL_BYTES, STORAGE_DAEMON, WHERE, Peer, Store, missing, ours, spdk, storage_daemon
from bench.plan import Plan
from bench.rounds import Cell
from bench.stage import Stage
from devices.blk.load import Workload, measure

BYTES = 256 * MIB
SECTIONS = ("null", "memory", "file", "tmpfs")


def direct_tmpfs() -> Path | None:
    """A folder on a tmpfs that takes O_DIRECT (Linux 6.6), or None."""
    for place in ("/dev/shm", tempfile.gettempdir()):
        path = Path(place)
        if not path.is_dir() or os.statvfs(path).f_bavail * os.statvfs(path).f_frsize < 2 * BYTES:
            continue
        if _kind_of_mount(path) != "tmpfs":
            continue
        with tempfile.NamedTemporaryFile(dir=path) as file:
            try:
                os.close(os.open(file.name, os.O_RDONLY | os.O_DIRECT))
            except OSError:
                continue
        return path
    return None


def _kind_of_mount(path: Path) -> str:
    device = path.stat().st_dev
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields = line.split()
        if fields[2] == f"{os.major(device)}:{os.minor(device)}":
            return fields[fields.index("-") + 1]
    return ""


@contextmanager
def _image(folder: Path | None, bytes_: int) -> Iterator[Path]:
    """A file without holes, its pages in the cache."""
    with tempfile.NamedTemporaryFile(dir=folder, prefix="vhb-", suffix=".img") as file:
        piece = os.urandom(MIB)
        for _ in range(bytes_ // MIB):
            file.write(piece)
        file.flush()
        os.fsync(file.fileno())
        yield Path(file.name)


def _fill(stage: Stage, peer: Peer, store: Store) -> None:
    """Write all of a disk in memory: what was never written need not be in memory, and reads faster than any copy."""
    stage.awake(peer)
    (socket,) = stage.sockets(peer)
    workload = Workload(
        rw="read", block_bytes=65536, depth=8, verify=True, size=store.bytes, runtime=0.01, warmup=0,
        hugepages=peer.hugepages,
    )  # fmt: skip
    result = trio.run(measure, socket, workload)
    if result.errors:
        raise click.ClickException(f"{peer.name}: {result.first_error}")


def _peers(store: Store) -> list[Peer]:
    """Ours first, polling and with default settings; then the others."""
    other = storage_daemon(store)
    return [
        ours(store, polling=True),
        ours(store, packed=True, polling=True),
        ours(store),
        ours(store, packed=True),
        *([other] if other else []),
        *spdk(store),
    ]


def _baselines(store: Store, say: Callable[[str], None]) -> list[Contender]:
    if store.kind == "memory":
        if shutil.which("cc"):
            return [Memcpy(store)]
        say(f"not compared: memcpy ({WHERE['memcpy']})")
    elif store.path is not None:
        if shutil.which("fio"):
            return [Fio(store)]
        say(f"not compared: fio ({WHERE['fio']})")
    return []


@contextmanager
def _store(section: str) -> Iterator[Store | None]:
    """What a section is about; None where this machine cannot have it."""
    if section == "null":
        yield Store("null", NULL_BYTES)
    elif section == "memory":
        yield Store("memory", BYTES)
    elif section == "file":
        with _image(None, BYTES) as path:
            yield Store("file", BYTES, path)
    elif (folder := direct_tmpfs()) is not None:
        with _image(folder, BYTES) as path:
            yield Store("direct", BYTES, path)
    else:
        yield None


def cells_of(section: str, store: Store, plan: Plan) -> list[Cell]:
    """Polling front-end with the back-end on a processor of its own; sleeping ones share the front-end's."""
    peers = _peers(store)
    for name, where in missing(peers):
        if (name, store.kind) not in ((STORAGE_DAEMON, "memory"), ("SPDK vhost", "file")):
            plan.say(f"not compared: {name} ({where})")
    hugepages = any(peer.hugepages for peer in peers)
    base = next((peer.name for peer in peers if peer.name == STORAGE_DAEMON), "")
    baselines = _baselines(store, plan.say)
    base = base or (baselines[0].name if baselines else peers[0].name)
    found = []
    for poll in (True, False):
        # an adaptive worker beside a polling front-end is a row of the null store only: elsewhere it says the same
        mine = [
            peer
            for peer in peers
            if (poll or not peer.program.spins) and (not poll or section == "null" or "vhost blk" not in peer.name
                or peer.program.spins)
        ]  # fmt: skip
        contenders = [*(Backend(peer, hugepages) for peer in mine), *(baselines if poll else ())]
        for depth in plan.depths:
            label = f"{'polling' if poll else 'sleeping'}, {depth}"
            workload = plan.workload(depth, poll=poll, size=store.bytes)
            found.append(Cell(section, label, workload, contenders, base, together=not poll))
    return plan.chosen(found)


TITLES = {
    "null": "null store",
    "memory": "256 MiB in memory, all written",
    "file": "256 MiB file in the page cache",
    "tmpfs": "256 MiB file on tmpfs, O_DIRECT",
}


@contextmanager
def opened(section: str, stage: Stage, plan: Plan) -> Iterator[tuple[str, list[Cell]]]:
    """Title and cells of a section; what it needs on disk is there until the end."""
    with _store(section) as store:
        if store is None:
            plan.say(f"{section}: left out, there is no tmpfs with room that takes O_DIRECT (Linux 6.6)")
            yield "", []
            return
        cells = cells_of(section, store, plan)
        if store.kind == "memory":
            for contender in {each.name: each for cell in cells for each in cell.contenders}.values():
                if isinstance(contender, Backend):
                    _fill(stage, contender.peer, store)
        yield f"{TITLES[section]}, 4 KiB random read, 1 queue", cells
