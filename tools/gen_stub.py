"""Writes the type stubs of the C extensions from the built modules.

    tools/gen_stub.py [--check] [MODULE...]

Without names: all that are built. ``--check`` writes nothing; it fails if a committed stub is not what it would write.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
MODULES = (
    "ring._ring",
    "vhost.sandbox._confine",
    "vhost.sandbox._seccomp",
    "vhost.sandbox._caps",
    "devices.blk._blk",
    "devices.blk._load",
    "devices.blk._nbd",
    "devices.gpu._gpu",
    "devices.gpu.render._null",
    "devices.gpu.render._virgl",
    "devices.gpu._vnc",
    "devices.gpu._load",
    "devices.input._xkb",
    "devices.net._net",
    "devices.net._load",
    "devices.net._slirp",
    "devices.fs._fs",
    "devices.fs._load",
)

HEAD = """\
# Written by tools/gen_stub.py from the built module; do not edit.

from typing import Any, Final

from _cffi_backend import FFI

CData = FFI.CData

class _FFI(FFI):
    # what is made here is a struct, an array or a number: its fields are known to C only
    def new(self, cdecl: Any, init: Any = ...) -> Any: ...
    def cast(self, cdecl: Any, value: Any) -> Any: ...
    def from_buffer(self, *args: Any, **kwargs: Any) -> Any: ...
    def string(self, cdata: CData, maxlen: int = ...) -> Any: ...
    def unpack(self, cdata: CData, length: int) -> Any: ...
    def addressof(self, *args: Any) -> Any: ...
    def gc(self, cdata: CData, destructor: Any, size: int = ...) -> Any: ...

class _Lib:
"""


def python_type(ffi: Any, ctype: Any, *, result: bool = False) -> str:
    """What ``ctype`` is for Python. What a call gives is precise; char pointers and callbacks may be given freely."""
    if ctype.kind == "void":
        return "None"
    if ctype.kind == "primitive":
        if ctype.cname in ("float", "double"):
            return "float"
        return "bool" if ctype.cname == "_Bool" and result else "int"
    if ctype.kind == "enum":
        return "int"
    if not result and ctype.kind == "pointer" and ctype.item.cname in ("char", "void"):
        return "CData | bytes | None" if ctype.item.cname == "char" else "CData"
    return "CData"


def stub_of(name: str) -> str:
    """The text of the stub of module ``name``."""
    module = importlib.import_module(name)
    ffi, lib = module.ffi, module.lib
    constants, functions = [], []
    for symbol in sorted(dir(lib)):
        value = getattr(lib, symbol)
        if isinstance(value, int):
            constants.append(f"    {symbol}: Final[int]\n")
            continue
        ctype = ffi.typeof(value)
        if ctype.kind != "function":
            constants.append(f"    {symbol}: Any\n")
            continue
        args = [f"_{i}: {python_type(ffi, arg)}" for i, arg in enumerate(ctype.args)]
        if ctype.ellipsis:
            args.append("*args: Any")
        elif args:
            args.append("/")
        returns = python_type(ffi, ctype.result, result=True)
        text = f"    def {symbol}(self{''.join(', ' + arg for arg in args)}) -> {returns}:\n"
        if len(text) > 120:
            inner = "".join(f"        {arg},\n" for arg in args)
            text = f"    def {symbol}(\n        self,\n{inner}    ) -> {returns}:\n"
        functions.append(f'{text}        """{ctype.cname}"""\n')
    body = "".join(constants) + ("\n" if constants and functions else "") + "".join(functions)
    head = HEAD if constants else HEAD.replace("Any, Final", "Any")
    return f"{head}{body or '    pass'}\nffi: _FFI\nlib: _Lib\n"


def built(name: str) -> bool:
    """The module ``name`` has been built in this tree."""
    folder = ROOT.joinpath(*name.split(".")[:-1])
    return any(folder.glob(name.rsplit(".", 1)[1] + ".*.so"))


def path_of(name: str) -> Path:
    """Where the stub of ``name`` lives."""
    return ROOT.joinpath(*name.split(".")).with_suffix(".pyi")


def main(argv: list[str]) -> int:
    """See the module's text."""
    sys.path.insert(0, str(ROOT))
    check = "--check" in argv
    names = [arg for arg in argv if arg != "--check"] or [name for name in MODULES if built(name)]
    stale = []
    for name in names:
        text = stub_of(name)
        path = path_of(name)
        if (path.read_text() if path.exists() else "") == text:
            continue
        if check:
            stale.append(str(path.relative_to(ROOT)))
        else:
            path.write_text(text)
            print(f"wrote {path.relative_to(ROOT)}")
    if stale:
        print(f"out of date: {', '.join(stale)}; run tools/gen_stub.py", file=sys.stderr)
    return bool(stale)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
