"""Debian packages without installing them: fetched by apt into the cache, unpacked there.

apt runs on state of its own below the cache, so neither root nor a change of the system is needed; the sources are
the machine's own entries for its release, and one derived from them for the release's backports.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CACHE = Path(os.environ.get("VHOST_CACHE", ROOT / ".cache"))
APT = CACHE / "apt"


class AssetError(Exception):
    """Something a guest is made of could not be had; the text is one sentence that says what and why."""


@contextlib.contextmanager
def locked(name: str) -> Iterator[None]:
    """Hold the cache's lock ``name``, so that parallel callers build each thing once."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def codename() -> str:
    """The release's code name, such as ``bookworm``; empty where this is no Debian."""
    release = Path("/etc/os-release").read_text() if Path("/etc/os-release").exists() else ""
    match = re.search(r"^VERSION_CODENAME=\"?(\w+)", release, re.MULTILINE)
    return match[1] if match and "ID=debian" in release else ""


def _stanzas(name: str) -> Iterator[str]:
    """The machine's own source entries of release ``name`` as deb822 stanzas."""
    etc = Path("/etc/apt")
    for path in sorted(etc.glob("sources.list.d/*.sources")):
        text = "\n".join(line for line in path.read_text().splitlines() if not line.startswith("#"))
        for stanza in re.split(r"\n\s*\n", text):
            suites = re.search(r"^Suites:(.*)$", stanza, re.MULTILINE)
            if suites and any(suite.split("-")[0] == name for suite in suites[1].split()):
                yield stanza.strip()
    for path in [etc / "sources.list", *sorted(etc.glob("sources.list.d/*.list"))]:
        for line in path.read_text().splitlines() if path.exists() else []:
            match = re.match(
                rf"deb\s+(?:\[(?P<options>[^]]*)\]\s+)?(?P<uri>\S+)\s+(?P<suite>{name}\S*)\s+(?P<parts>.+)", line
            )
            if match:
                signed = re.search(r"signed-by=(\S+)", match["options"] or "")
                key = f"\nSigned-By: {signed[1]}" if signed else ""
                yield f"Types: deb\nURIs: {match['uri']}\nSuites: {match['suite']}\nComponents: {match['parts']}{key}"


def _sources(name: str, *, backports: bool) -> str:
    stanzas = list(_stanzas(name))
    if not stanzas:
        raise AssetError(
            f"apt has no source entry for {name}, so no Debian kernel can be had; add one to /etc/apt/sources.list.d"
        )
    if backports and not any(re.search(rf"^Suites:.*\b{name}-backports\b", s, re.MULTILINE) for s in stanzas):
        base = next((s for s in stanzas if re.search(rf"^Suites:.*\b{name}(\s|$)", s, re.MULTILINE)), stanzas[0])
        stanzas.append(re.sub(r"^Suites:.*$", f"Suites: {name}-backports", base, flags=re.MULTILINE))
    return "\n\n".join(stanzas) + "\n"


def _apt(command: Sequence[str], *, state: str, cwd: Path | None = None) -> str:
    """Run an apt tool on private state ``state``; its output. Raises AssetError with apt's own reason."""
    base = APT / state
    for folder in ("state/lists/partial", "cache/archives/partial", "sources.list.d"):
        (base / folder).mkdir(parents=True, exist_ok=True)
    options = {
        "Dir::State": base / "state",
        "Dir::State::status": "/var/lib/dpkg/status",
        "Dir::Cache": base / "cache",
        "Dir::Etc::SourceList": "/dev/null",
        "Dir::Etc::SourceParts": base / "sources.list.d",
        "Debug::NoLocking": "1",
        "APT::Sandbox::User": "",
        "Acquire::Languages": "none",
        "Acquire::Retries": "3",
    }
    if shutil.which(command[0]) is None:
        raise AssetError(f"{command[0]} is not installed, so no Debian kernel can be fetched; run on Debian")
    done = subprocess.run(
        [command[0], "-q", *(f"-o{k}={v}" for k, v in options.items()), *command[1:]],
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
        stdin=subprocess.DEVNULL,
    )
    if done.returncode != 0:
        words = [line for line in done.stderr.splitlines() if line.startswith("E:")] or done.stderr.splitlines()[-1:]
        raise AssetError(f"{' '.join(command[:2])} failed (no network?): {' '.join(words[:1])}")
    return done.stdout


def _update(state: str, *, backports: bool) -> None:
    """Fetch the package lists into ``state``, once per process run is plenty."""
    base = APT / state
    (base / "sources.list.d").mkdir(parents=True, exist_ok=True)
    (base / "sources.list.d" / "debian.sources").write_text(_sources(codename() or "bookworm", backports=backports))
    _apt(["apt-get", "update"], state=state)


def fetch_kernel(meta_package: str, into: Path) -> str:
    """Unpack the image package that ``meta_package`` depends on into ``into``; its kernel release."""
    _update("base", backports=False)
    answer = _apt(["apt-cache", "depends", "--important", meta_package], state="base")
    match = re.search(r"Depends: (linux-image-(\S+))", answer)
    if match is None:
        raise AssetError(f"apt knows no kernel package behind {meta_package}")
    unpack([match[1]], into, state="base")
    return match[2]


def unpack(packages: Sequence[str], into: Path, *, state: str = "base") -> None:
    """Download ``packages`` and unpack them below ``into`` without running or registering anything."""
    if not (APT / state / "sources.list.d" / "debian.sources").exists():
        _update(state, backports=False)
    with tempfile.TemporaryDirectory(prefix="debs-", dir=APT) as debs:
        _apt(["apt-get", "download", *packages], state=state, cwd=Path(debs))
        _extract(Path(debs), into)


def unpack_upgrade(package: str, into: Path) -> None:
    """Unpack ``package`` from the backports, with every library it needs beyond what is installed, into ``into``."""
    release = codename()
    _update("backports", backports=True)
    archives = APT / "backports" / "cache" / "archives"
    _apt(
        [
            "apt-get",
            "install",
            "--download-only",
            "-y",
            "--no-install-recommends",
            "-t",
            f"{release}-backports",
            package,
        ],
        state="backports",
    )
    _extract(archives, into)
    for deb in archives.glob("*.deb"):
        deb.unlink()


def _extract(folder: Path, into: Path) -> None:
    debs = sorted(folder.glob("*.deb"))
    if not debs:
        raise AssetError(f"apt downloaded nothing into {folder}")
    for deb in debs:
        into.mkdir(parents=True, exist_ok=True)
        done = subprocess.run(["dpkg", "-x", str(deb), str(into)], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise AssetError(f"dpkg could not unpack {deb.name}: {done.stderr.strip()}")
