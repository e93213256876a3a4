"""Back-ends under test, as data: which program, which sockets it makes, which ring layout its disk is driven with."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import click

MIB = 1 << 20
NULL_BYTES = 1 << 30
ALWAYS_US = 2**31 - 1

STORAGE_DAEMON = "qemu-storage-daemon"
SPDK = "SPDK vhost"
#: who brings what is not there
WHERE = {
    STORAGE_DAEMON: "install the Debian package qemu-system-common",
    "fio": "install the Debian package fio",
    "memcpy": "needs a C compiler: install the Debian package gcc",
    SPDK: "no Debian package: build it from source (github.com/spdk/spdk) and set SPDK_DIR to its tree",
}


@dataclass(frozen=True)
class Store:
    """What lies behind the disk.

    Attributes:
        kind: null, memory, file (page cache) or direct (O_DIRECT).
        bytes: of the disk.
        path: of the image; kinds file and direct.
    """

    kind: str
    bytes: int
    path: Path | None = None


@dataclass(frozen=True)
class Program:
    """A process with one or more vhost-user sockets; runs in a folder of its own.

    Attributes:
        command: with {folder}, {front} and {back} (numbers of processors) in it.
        sockets: files in its folder; it runs once they are there.
        config: text of {folder}/config.
        spins: it takes a whole processor whatever it does: not to be put beside a front-end.
        once: it ends with its first connection, and is started anew for each.
    """

    command: tuple[str, ...]
    sockets: tuple[str, ...] = ("s",)
    config: str = ""
    spins: bool = False
    once: bool = False


@dataclass(frozen=True)
class Peer:
    """A disk of a program.

    Attributes:
        name: in tables and results.
        sockets: of its program, all of which are driven, by one front-end thread.
        packed: ring layout to ask for.
        hugepages: it needs guest memory in 2 MiB pages.
    """

    name: str
    program: Program
    sockets: tuple[str, ...] = ("s",)
    packed: bool = False
    hugepages: bool = False


def vhost_program() -> str:
    """The command beside this interpreter."""
    return str(Path(sys.executable).with_name("vhost"))


def _layout(packed: bool) -> str:
    return "packed" if packed else "split"


def ours_name(*, packed: bool = False, polling: bool = False, more: str = "") -> str:
    """What tables call one of ours."""
    return ", ".join(filter(None, ("vhost blk", _layout(packed), "polling" if polling else "", more)))


def _spec(store: Store) -> str:
    return f"{store.kind}:{store.bytes}" if store.path is None else f"raw:{store.path}"


def ours(
    store: Store, *, packed: bool = False, polling: bool = False, options: Sequence[str] = (), more: str = ""
) -> Peer:
    """`vhost blk` on `store`; `polling`: its worker never sleeps, else default settings."""
    command = [vhost_program(), "blk", "--socket-path", "{folder}/s", "--store", _spec(store)]
    command += ["--log-level", "warning", *options]
    if store.path is not None:
        command += ["--lock", "off", *(["--direct"] if store.kind == "direct" else [])]
    if polling:
        command += ["--poll-us", str(ALWAYS_US)]
    program = Program(tuple(command), spins=polling)
    return Peer(ours_name(packed=packed, polling=polling, more=more), program, packed=packed)


def ours_many(store: Store, disks: int, driven: int, more: str) -> Peer:
    """`vhost serve` with `disks` disks, of which the front-end drives the last `driven`."""
    lines = ["[server]", 'log-level = "warning"']
    for number in range(disks):
        lines += ["[[device]]", 'type = "blk"', f'socket-path = "{{folder}}/{number}"', f'store = "{_spec(store)}"']
    sockets = tuple(map(str, range(disks)))
    program = Program((vhost_program(), "serve", "{folder}/config"), sockets, "\n".join(lines) + "\n")
    return Peer(ours_name(more=more), program, sockets[disks - driven :])


def storage_daemon(store: Store) -> Peer | None:
    """None: not installed, or it has no such store."""
    program = shutil.which(STORAGE_DAEMON)
    file = f"driver=file,node-name=f,filename={store.path},aio=io_uring,locking=off"
    nodes = {
        "null": [f"driver=null-co,node-name=n,size={store.bytes},read-zeroes=off"],
        "file": [file, "driver=raw,node-name=n,file=f"],
        "direct": [f"{file},cache.direct=on", "driver=raw,node-name=n,file=f,cache.direct=on"],
    }.get(store.kind)
    if program is None or nodes is None:
        return None
    command = [program, *(part for node in nodes for part in ("--blockdev", node))]
    command += ["--export", "type=vhost-user-blk,id=e,node-name=n,addr.type=unix,addr.path={folder}/s,writable=on"]
    return Peer(STORAGE_DAEMON, Program(tuple(command)))


# --- SPDK


def spdk_name(store: Store, *, packed: bool) -> str:
    """What tables call its disk."""
    bdev = {"null": "null", "memory": "malloc", "direct": "uring"}[store.kind]
    return f"{SPDK}, {bdev}, {_layout(packed)}"


def spdk_folder() -> Path | None:
    """Its built source tree, from the environment; None without.

    Raises: ClickException: the variable is set and there is no such program.
    """
    where = os.environ.get("SPDK_DIR")
    if not where:
        return None
    path = Path(where)
    if not (path / "build/bin/vhost").exists():
        raise click.ClickException(f"SPDK_DIR={where}: there is no build/bin/vhost in it; build SPDK, or unset it")
    return path


def spdk(store: Store) -> list[Peer]:
    """Its vhost target, split and packed; none where it is not built or has no such store."""
    folder = spdk_folder()
    if folder is None or store.kind == "file":
        return []
    _needs_huge_pages()
    blocks = store.bytes // 512
    method, params = {
        "null": ("bdev_null_create", {}),
        "memory": ("bdev_malloc_create", {}),
        "direct": ("bdev_uring_create", {"filename": str(store.path)}),
    }[store.kind]
    disk: dict[str, object] = {"name": "disk", "block_size": 512, **params}
    if not params:
        disk["num_blocks"] = blocks
    steps: list[tuple[str, str, dict[str, object]]] = [("bdev", method, disk)]
    for packed in (False, True):
        controller: dict[str, object] = {"ctrlr": _layout(packed), "dev_name": "disk", "packed_ring": packed}
        steps.append(("vhost_blk", "vhost_create_blk_controller", controller))
    config = {
        "subsystems": [
            {"subsystem": name, "config": [{"method": method, "params": params}]} for name, method, params in steps
        ]
    }
    mib = 256 + (store.bytes // MIB if store.kind == "memory" else 0)
    command = (
        str(folder / "build/bin/vhost"), "-m", "[{back}]", "-S", "{folder}", "-r", "{folder}/rpc",
        "-c", "{folder}/config", "-s", str(mib), "-R", "--no-pci", "--iova-mode", "va", "--disable-cpumask-locks",
        "--num-trace-entries", "0",
    )  # fmt: skip
    program = Program(command, ("split", "packed"), json.dumps(config), spins=True)
    return [
        Peer(spdk_name(store, packed=packed), program, (_layout(packed),), packed, hugepages=True)
        for packed in (False, True)
    ]


def _needs_huge_pages() -> None:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("HugePages_Total:") and not int(line.split()[1]):
            raise click.ClickException(
                "SPDK needs huge pages: write 1024 to /proc/sys/vm/nr_hugepages, or unset SPDK_DIR"
            )


def missing(peers: Sequence[Peer]) -> Iterator[tuple[str, str]]:
    """Peers that could take part and do not, each with who brings it."""
    names = [peer.name for peer in peers]
    for name in (STORAGE_DAEMON, SPDK):
        if not any(have.startswith(name) for have in names):
            yield name, WHERE[name]
