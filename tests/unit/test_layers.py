"""The layers of docs/architecture.md, kept by reading imports and includes: ring <- vhost <- devices, nothing back."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
OURS = {"ring", "vhost", "devices", "examples", "tests", "bench"}
MAY = {"ring": {"ring"}, "vhost": {"ring", "vhost"}, "devices": {"ring", "vhost", "devices"}}
DEVICES = {p.name for p in (ROOT / "devices").iterdir() if p.is_dir() and not p.name.startswith("_")}


def imports(path: Path) -> set[str]:
    """Dotted names imported anywhere in a file, also inside functions and under TYPE_CHECKING."""
    out = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            out |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            out.add(node.module)
            out |= {f"{node.module}.{alias.name}" for alias in node.names}
    return out


def sources(folder: str, pattern: str) -> list[Path]:
    return sorted(p for p in (ROOT / folder).rglob(pattern) if "__pycache__" not in p.parts)


@pytest.mark.parametrize("layer", sorted(MAY))
def test_python_layers(layer: str) -> None:
    bad = []
    files = sources(layer, "*.py")
    assert files
    for path in files:
        for name in imports(path):
            parts = name.split(".")
            if parts[0] in OURS - MAY[layer]:
                bad.append(f"{path.relative_to(ROOT)} imports {name}")
            if layer == "devices" and parts[0] == "devices" and len(parts) > 1:
                mine = path.relative_to(ROOT / "devices").parts[0]
                if parts[1] in DEVICES and parts[1] != mine:
                    bad.append(f"{path.relative_to(ROOT)} imports {name}: devices do not know each other")
    assert not bad


def test_only_wire_knows_construct() -> None:
    users = {
        str(path.relative_to(ROOT))
        for layer in MAY
        for path in sources(layer, "*.py")
        if any(name.split(".")[0] == "construct" for name in imports(path))
    }
    assert users == {"vhost/wire.py"}


def test_session_has_no_io() -> None:
    files = [p for p in [ROOT / "vhost/session.py", *(ROOT / "vhost/session").glob("*.py")] if p.exists()]
    assert files
    for path in files:
        assert not {n.split(".")[0] for n in imports(path)} & {"trio", "socket", "mmap", "ring", "select"}, path


def test_c_includes() -> None:
    bad = []
    files = [*sources("ring/csrc", "*.[ch]"), *sources("devices", "*.[ch]")]
    assert files
    for path in files:
        if path.name.startswith("_"):
            continue  # made by cffi
        rel = path.relative_to(ROOT)
        for name in re.findall(r'^\s*#\s*include\s+[<"]([^>"]+)[>"]', path.read_text(), re.MULTILINE):
            if name == "Python.h":
                bad.append(f"{rel}: Python.h")
            if rel.parts[0] == "ring" and name.startswith("devices/"):
                bad.append(f"{rel}: the ring knows no device: {name}")
            if rel.parts[0] == "devices" and name.startswith("devices/") and name.split("/")[1] != rel.parts[1]:
                bad.append(f"{rel}: devices do not know each other: {name}")
    assert not bad
