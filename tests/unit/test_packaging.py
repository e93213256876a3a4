"""sdist -> wheel -> a clean environment -> a working ``vhost`` command, as a user of the package gets it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run(*argv: str | Path, cwd: Path, **env: str) -> str:
    clean = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(
        [str(a) for a in argv], cwd=cwd, env={**clean, **env}, capture_output=True, text=True, timeout=400, check=False
    )
    assert done.returncode == 0, f"{argv}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


@pytest.mark.slow
@pytest.mark.timeout(600)  # all extensions are compiled
def test_sdist_wheel_install(tmp_path: Path) -> None:
    # a copy of what git knows: the build must not lean on files lying about in the tree
    source = tmp_path / "source"
    source.mkdir()
    names = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    ).stdout.decode()
    for name in filter(None, names.split("\0")):
        if (ROOT / name).is_file():
            target = source / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes((ROOT / name).read_bytes())
    dist = tmp_path / "dist"
    run(sys.executable, "-m", "build", "--no-isolation", "--sdist", "--outdir", dist, cwd=source)
    (sdist,) = dist.glob("*.tar.gz")
    with tarfile.open(sdist) as tar:
        inside = {n.partition("/")[2] for n in tar.getnames()}
    assert {"ffi_build.py", "LICENSE", "README.md", "ring/csrc/ring.h", "devices/blk/csrc/blk.h"} <= inside

    unpacked = tmp_path / "unpacked"
    unpacked.mkdir()
    run("tar", "-xf", sdist, "-C", unpacked, cwd=tmp_path)  # extractall wants a filter from 3.12 on, 3.11.2 knows none
    (tree,) = unpacked.iterdir()
    quick = {"CFLAGS": "-O0 -g0"}
    run(sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", dist, cwd=tree, **quick)
    (wheel,) = dist.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        files = archive.namelist()
    assert "ring/py.typed" in files
    assert "ring/_ring.pyi" in files
    assert any(f.startswith("ring/_ring.") and f.endswith(".so") for f in files)
    assert not [f for f in files if f.startswith(("tests/", "bench/", "examples/", "tools/"))]

    env = tmp_path / "env"
    venv.create(env, with_pip=False, system_site_packages=False)
    pip = [sys.executable, "-m", "pip", "--python", env / "bin/python", "--disable-pip-version-check"]
    run(*pip, "install", "--quiet", "--no-compile", wheel, cwd=tmp_path)
    vhost = env / "bin/vhost"
    said = json.loads(run(vhost, "blk", "--print-capabilities", cwd=tmp_path))
    assert said["type"] == "block"
    assert "blk-file" in said["features"]
    assert "blk" in run(vhost, "--help", cwd=tmp_path)
