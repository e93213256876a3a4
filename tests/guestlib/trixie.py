"""libblkio, a vhost-user-blk client of its own kind, QEMU's tools on it, passt, virtiofsd: Debian's from trixie on.

Nothing is installed: the packages are unpacked into the cache. Where the release is older, its sources are the
machine's own with the suite renamed; libblkio asks for nothing newer than what bookworm has.
"""

from __future__ import annotations

import atexit
import functools
import hashlib
import os
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from guestlib import debian
from guestlib.debian import CACHE, AssetError, locked
from guestlib.process import FOREIGN

CLIENT = Path(__file__).resolve().parents[1] / "interop" / "blkio_client.c"
BASE = CACHE / "libblkio"
#: seconds for which a failure is remembered: no network now is no reason to ask again in each test
PATIENCE = 3600


@dataclass(frozen=True)
class Blkio:
    """Programs linked with libblkio: our client that verifies, and the library's own example that copies."""

    client: Path
    copy: Path


def libblkio() -> Blkio:
    """libblkio's programs, fetched and compiled at the first call. Raises: AssetError says why there are none."""
    with locked("libblkio"):
        failed = BASE / "unavailable"
        if failed.exists() and time.time() - failed.stat().st_mtime < PATIENCE:
            raise AssetError(failed.read_text())
        try:
            if not (BASE / "ready").exists():
                _fetch()
            client = _compile(CLIENT)
            copy = _compile(BASE / "root/usr/share/doc/libblkio-dev/examples/blkio-copy.c")
        except AssetError as error:
            reason = f"no libblkio: {error}"
            BASE.mkdir(parents=True, exist_ok=True)
            failed.write_text(reason)
            raise AssetError(reason) from error
    return Blkio(client, copy)


@dataclass(frozen=True)
class Tools:
    """QEMU's disk tools with libblkio as a block driver, run on the C library they were built for."""

    root: Path

    def command(self, name: str, *args: object) -> list[str]:
        """The command line of ``qemu-io``, ``qemu-img`` or ``qemu-nbd``."""
        libraries = self.libraries
        loader = next(libraries.glob("ld-linux*.so.*"), None) or next((self.root / "usr/lib64").glob("ld-linux*.so.*"))
        program = self.root / "usr/bin" / name
        return [str(loader), "--library-path", str(libraries), str(program), *map(str, args)]

    @property
    def libraries(self) -> Path:
        """Where the shared libraries are."""
        return next(self.root.glob("usr/lib/*/libblkio.so.1")).parent

    @property
    def env(self) -> dict[str, str]:
        """The environment to run them in."""
        return {**FOREIGN, "QEMU_MODULE_DIR": str(self.libraries / "qemu")}


def qemu_tools() -> Tools:
    """The tools of trixie's QEMU. Raises: AssetError says why there are none."""
    libblkio()
    return Tools(BASE / "tools")


PASST = CACHE / "passt"


def passt() -> tuple[str, ...]:
    """The first words of a passt that speaks vhost-user: this machine's, or trixie's. Raises: AssetError."""
    installed = shutil.which("passt")
    if installed:
        said = subprocess.run([installed, "--help"], capture_output=True, text=True, check=False)
        if "--vhost-user" in said.stdout + said.stderr:
            return (installed,)
    with locked("passt"):
        failed = PASST / "unavailable"
        if failed.exists() and time.time() - failed.stat().st_mtime < PATIENCE:
            raise AssetError(failed.read_text())
        if not (PASST / "ready").exists():
            try:
                _fetch_passt()
            except AssetError as error:
                PASST.mkdir(parents=True, exist_ok=True)
                failed.write_text(f"no passt with vhost-user: {error}")
                raise AssetError(failed.read_text()) from error
    return _loaded(PASST / "root", "usr/bin/passt")


def _fetch_passt() -> None:
    shutil.rmtree(PASST, ignore_errors=True)
    debian.unpack(_closure("passt"), PASST / "root", state=_lists())
    (PASST / "ready").touch()


VIRTIOFSD = CACHE / "virtiofsd"
#: what its package wants only for setting up user namespaces
_NOT_NEEDED = ("uidmap", "debconf", "cdebconf")


def virtiofsd() -> tuple[str, ...]:
    """The first words of virtiofsd in Rust: trixie's, or a newer release's own. Raises: AssetError."""
    with locked("virtiofsd"):
        failed = VIRTIOFSD / "unavailable"
        if failed.exists() and time.time() - failed.stat().st_mtime < PATIENCE:
            raise AssetError(failed.read_text())
        if not (VIRTIOFSD / "ready").exists():
            try:
                shutil.rmtree(VIRTIOFSD, ignore_errors=True)
                packages = [name for name in _closure("virtiofsd") if name not in _NOT_NEEDED]
                debian.unpack(packages, VIRTIOFSD / "root", state=_lists())
                (VIRTIOFSD / "ready").touch()
            except AssetError as error:
                VIRTIOFSD.mkdir(parents=True, exist_ok=True)
                failed.write_text(f"no virtiofsd in Rust: {error}")
                raise AssetError(failed.read_text()) from error
    return _loaded(VIRTIOFSD / "root", "usr/libexec/virtiofsd")


def _loaded(root: Path, program: str) -> tuple[str, ...]:
    """A program on the C library it was built for."""
    libraries = next(root.glob("usr/lib/*/libc.so.6")).parent
    loader = next(libraries.glob("ld-linux*.so.*"), None) or next((root / "usr/lib64").glob("ld-linux*.so.*"))
    return (str(loader), "--library-path", str(libraries), str(root / program))


def _fetch() -> None:
    """Unpack library, header, examples and QEMU's tools (45 MB)."""
    root, tools = BASE / "root", BASE / "tools"
    shutil.rmtree(root, ignore_errors=True)
    shutil.rmtree(tools, ignore_errors=True)
    debian.unpack(["libblkio1", "libblkio-dev"], root, state=_lists())
    # of the block drivers' libraries only libblkio: the others are Ceph and its like
    debian.unpack([*_closure("qemu-utils"), "qemu-block-extra", "libblkio1"], tools, state=_lists())
    (BASE / "ready").touch()


@functools.cache
def _lists() -> str:
    """The state of apt that has trixie's package lists, until this process ends."""
    release = debian.codename()
    if not release:
        raise AssetError("this is no Debian system whose sources would lead to it")
    name = f"trixie-{os.getpid()}"
    state = debian.APT / name
    atexit.register(shutil.rmtree, state, ignore_errors=True)
    (state / "sources.list.d").mkdir(parents=True, exist_ok=True)
    (state / "sources.list.d/debian.sources").write_text(_sources(release))
    debian._apt(["apt-get", "update"], state=name)
    return name


def _sources(release: str) -> str:
    """One source entry: the machine's main one, its suite trixie if the release is older than that."""
    suite = "trixie" if release in ("bullseye", "bookworm") else release
    for stanza in debian._stanzas(release):
        lines = {line.partition(":")[0]: line.partition(":")[2].strip() for line in stanza.splitlines()}
        if release in lines["Suites"].split() and "main" in lines["Components"].split():
            lines |= {"Types": "deb", "Suites": suite, "Components": "main", "Targets": "Packages"}
            return "".join(f"{key}: {value}\n" for key, value in lines.items() if not key.startswith("#"))
    raise AssetError(f"apt has no source entry for {release}; add one to /etc/apt/sources.list.d")


def _closure(package: str) -> list[str]:
    """``package`` and all it depends on."""
    hide = [f"--no-{what}" for what in ("recommends", "suggests", "conflicts", "breaks", "replaces", "enhances")]
    said = debian._apt(["apt-cache", "depends", "--recurse", *hide, package], state=_lists())
    names = {line for line in said.splitlines() if line and not line.startswith((" ", "<"))}
    return sorted(name for name in names if ":" not in name)


def _compile(source: Path) -> Path:
    text = source.read_bytes()
    target = BASE / f"{source.stem}-{hashlib.sha256(text).hexdigest()[:12]}"
    if not target.exists():
        usr = BASE / "root/usr"
        found = next(usr.glob("lib/*/libblkio.so.1"), None)
        if found is None:
            raise AssetError("the package has no libblkio.so.1")
        command = ["gcc", "-std=gnu11", "-O2", "-Wall", f"-I{usr / 'include'}", "-o", f"{target}.new", str(source)]
        command += [str(found), f"-Wl,-rpath,{found.parent}"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise AssetError(f"{source.name} does not compile: {done.stderr.strip()[:400]}")
        os.rename(f"{target}.new", target)
    return target
