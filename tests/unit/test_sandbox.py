"""What a sealed process can still do: each test seals a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import peerlib
import pytest

from vhost.plugin import ConfigError
from vhost.sandbox import Confinement, IdMap, parse_id_map
from vhost.sandbox.confinement import merged

ROOT = os.geteuid() == 0

#: tries something and says how it went
TRY = """
import errno, json, os, socket, sys
os.environ.clear()
def attempt(function, *args, **kwargs):
    try:
        got = function(*args, **kwargs)
    except OSError as exc:
        return errno.errorcode[exc.errno]
    return got if isinstance(got, (int, str, list)) else "done"
found = {}
"""

FS = ("openat2", "mkdirat", "symlinkat", "linkat", "renameat2", "fchmodat", "fchownat", "setfsuid", "capget")


def sealed(code: str, *, user: int | None = None, env: dict[str, str] | None = None) -> dict[str, Any]:
    """What ``code`` puts into ``found``, run by a Python of its own."""
    script = TRY + textwrap.dedent(code) + "\nprint(json.dumps(found))\n"
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True, text=True, timeout=60, user=user, group=user, extra_groups=None if user is None else [],
        env={**os.environ, **(env or {})}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert isinstance(found, dict)
    return found


def seal(folder: Path, mode: str = "namespace", others: str = "deny", *, landlock: bool = True, more: str = "") -> str:
    """Code that opens ``folder`` as ``root`` and seals the process."""
    return f"""
import vhost.sandbox as sandbox
root = os.open({str(folder)!r}, os.O_PATH | os.O_DIRECTORY)
procfs = os.open("/proc/self/fd", os.O_PATH)
found["missing"] = sandbox.seal([sandbox.Confinement(
    {mode!r}, {others!r}, frozenset({FS}), frozenset({{"chown", "setuid"}}), root, landlock={landlock}{more})])
"""


CHECKS = """
found["etc"] = attempt(open, "/etc/passwd")
found["list"] = attempt(os.listdir, "/")
found["up"] = attempt(os.open, "../..", os.O_RDONLY, dir_fd=root)
found["make"] = attempt(os.open, "new", os.O_CREAT | os.O_WRONLY, dir_fd=root)
found["again"] = attempt(os.open, str(os.open("old", os.O_PATH, dir_fd=root)), os.O_RDWR, dir_fd=procfs)
found["root"] = attempt(os.open, "/x", os.O_CREAT | os.O_WRONLY)
found["internet"] = attempt(socket.socket, socket.AF_INET)
found["exec"] = attempt(os.execv, sys.executable, [sys.executable])
found["fork"] = attempt(os.unshare, os.CLONE_NEWUSER) if hasattr(os, "unshare") else "EPERM"
found["chown"] = attempt(os.chown, "old", 5, 5, dir_fd=root)
found["mknod"] = attempt(os.mknod, "node", 0o600, dir_fd=root)
import xml.dom.minidom, threading, subprocess
thread = threading.Thread(target=lambda: found.update(thread=attempt(open, "/etc/passwd")))
thread.start(); thread.join()
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shared = tmp_path / "shared"
    shared.mkdir()
    (shared / "old").write_text("old")
    return shared


def code_folders(found: dict[str, Any]) -> list[str]:
    if found["list"] == "EACCES":  # Landlock
        return []
    return [name for name in found["list"] if name not in {Path(p).parts[1] for p in sys.path if p.startswith("/")}]


@pytest.mark.skipif(not ROOT, reason="namespaces and capabilities of root")
def test_namespace(folder: Path) -> None:
    found = sealed(seal(folder) + CHECKS)
    assert found["missing"] == []
    assert isinstance(found["make"], int)
    assert isinstance(found["again"], int)
    assert found["etc"] == found["thread"] == "ENOENT"
    assert code_folders(found) == []
    assert (found["root"], found["internet"], found["exec"], found["mknod"]) == ("EROFS", "EPERM", "EPERM", "EPERM")
    assert found["up"] == "EACCES", "Landlock"
    assert (found["chown"], (folder / "old").stat().st_uid) == ("done", 5)


@pytest.mark.skipif(not ROOT, reason="becomes another user")
def test_unprivileged(folder: Path) -> None:
    nobody = 65534
    os.chown(folder, nobody, nobody)
    os.chown(folder / "old", nobody, nobody)
    for parent in list(folder.parents)[:3]:
        parent.chmod(0o755)
    peerlib.needs_public_tree([sys.executable, "-c", "import vhost.sandbox"], nobody)
    found = sealed(seal(folder) + CHECKS, user=nobody)
    if found["missing"] and "user namespaces" in found["missing"][0]:
        pytest.skip(found["missing"][0])
    assert found["missing"] == []
    assert isinstance(found["make"], int)
    assert (folder / "new").stat().st_uid == nobody
    assert found["etc"] == found["thread"] == "ENOENT"
    assert code_folders(found) == []
    assert (found["internet"], found["exec"], found["chown"]) == ("EPERM", "EPERM", "EINVAL")


@pytest.mark.skipif(not ROOT, reason="a map of ids")
def test_map_of_ids(folder: Path) -> None:
    maps = ", uid_map=(sandbox.IdMap(0, 100000, 65536),), gid_map=(sandbox.IdMap(0, 200000, 65536),)"
    os.chown(folder, 100000, 200000)
    os.chown(folder / "old", 100007, 200007)
    code = "import xml.dom.minidom\nfound['ids'] = [os.stat('old', dir_fd=root).st_uid, os.getuid()]"
    found = sealed(seal(folder, more=maps) + code + CHECKS)
    assert found["missing"] == []
    assert found["ids"][0] == 7
    assert found["chown"] == "done"
    assert ((folder / "old").stat().st_uid, (folder / "old").stat().st_gid) == (100005, 200005)


@pytest.mark.skipif(not ROOT, reason="chroot")
def test_chroot(folder: Path) -> None:
    found = sealed("import xml.dom.minidom, threading, subprocess" + seal(folder, "chroot") + CHECKS)
    assert found["missing"] == []
    assert found["list"] == ["old", "new"] or found["list"] == ["old"]
    assert found["etc"] == "ENOENT"
    assert isinstance(found["make"], int)


@pytest.mark.skipif(not ROOT, reason="capabilities of root")
def test_none_still_drops(folder: Path) -> None:
    found = sealed(seal(folder, "none") + CHECKS)
    assert found["missing"] == []
    assert found["etc"] == "done"
    assert (found["internet"], found["exec"], found["mknod"]) == ("EPERM", "EPERM", "EPERM")


def test_kill_ends_the_process(folder: Path) -> None:
    script = TRY + textwrap.dedent(seal(folder, "none", "kill")) + "\nsocket.socket(socket.AF_INET)\n"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=60, check=False)
    assert done.returncode == -31, "SIGSYS"


def test_threads_that_run_already(folder: Path) -> None:
    code = "import threading, time\nthreading.Thread(target=time.sleep, args=(5,), daemon=True).start()\n"
    script = TRY + code + textwrap.dedent(seal(folder))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "threads run already" in done.stderr


def test_what_devices_need_together() -> None:
    one = Confinement("namespace", "kill", frozenset({"a"}), frozenset({"chown"}), 5)
    both = merged([one, Confinement("none", "deny", frozenset({"b"}), frozenset(), 6, landlock=False)])
    assert (both.mode, both.others, both.syscalls, both.roots) == ("none", "deny", {"a", "b"}, (5, 6))
    assert not both.landlock
    with pytest.raises(ConfigError, match="chroot has room for one"):
        merged([Confinement("chroot", root=5), one])
    with pytest.raises(ConfigError, match="one uid-map"):
        merged([one, Confinement(uid_map=(IdMap(0, 1, 1),))])


@pytest.mark.parametrize("text", ["", "x", "1:2", ":1:2:", ":0:1:0:", ":-1:0:1:", ":0:0:4294967297:"])
def test_maps_that_are_none(text: str) -> None:
    with pytest.raises(ConfigError, match="no map of ids"):
        parse_id_map(text)


def test_maps() -> None:
    assert parse_id_map(":0:100000:65536:") == parse_id_map("0:100000:65536") == IdMap(0, 100000, 65536)
