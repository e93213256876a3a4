"""Definitions of the C extensions: the marked part of each public header is the cdef.

Between ``cffi:begin`` and ``cffi:end`` a header holds only what cffi can parse (enums with literal values, plain and
opaque structs, prototypes). The same text is included by the C code, so the two cannot drift apart.

It lives outside the packages: importing a build script from inside ``ring`` would import the not yet built extension.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # a PEP 517 front-end does not run us from the source tree

from cffi import FFI

ROOT = Path(__file__).parent
os.chdir(ROOT)  # sources are relative: setuptools refuses absolute paths

CFLAGS = [
    "-std=gnu11",
    *(flag for flag in ("-O2", "-g") if flag[:2] not in os.environ.get("CFLAGS", "")),  # who builds may say how
    "-fvisibility=hidden",
    "-Wall",
    "-Wextra",
    "-Wshadow",
    "-Wconversion",
    "-Wvla",
    "-Wstrict-prototypes",
]
#: cffi's generated glue is not ours to clean up
GLUE = ["-Wno-unused-parameter", "-Wno-sign-conversion", "-Wno-conversion", "-Wno-missing-field-initializers"]


def cdef_of(header: str) -> str:
    """The text between the cffi marks of ``header``; without marks the header has no public part."""
    parts = (ROOT / header).read_text().split("/* cffi:begin")
    out = []
    for part in parts[1:]:
        body = part.split("*/", 1)[1]
        out.append(body.split("/* cffi:end */", 1)[0])
    if not out:
        raise SystemExit(f"{header}: no cffi:begin … cffi:end part")
    return "\n".join(out)


def pkg_config(package: str, *what: str) -> list[str] | None:
    """Flags of ``package`` by pkg-config, or None where it is not installed."""
    try:
        done = subprocess.run(["pkg-config", *what, package], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return done.stdout.split() if done.returncode == 0 else None


def has_slirp() -> bool:
    """A new enough libslirp. Its .pc file asks for glib's, which its header and Debian's package do not need."""
    want = "--atleast-version=4.7"
    return any(pkg_config("slirp", *how, want) is not None for how in (("--maximum-traverse-depth=1",), ()))


def sources(folder: str, *names: str) -> list[str]:
    """Source paths under ``folder``."""
    return [f"{folder}/{name}" for name in names]


def headers(*folders: str) -> list[str]:
    """All headers: an edit of any of them rebuilds."""
    return [str(path.relative_to(ROOT)) for folder in folders for path in sorted((ROOT / folder).glob("*.h"))]


#: what every device extension compiles in: the ring's hot path, free of globals
RING_HOT = sources(
    "ring/csrc", "split.c", "packed.c", "chain.c", "span.c", "walk.c", "translate.c", "log.c", "inflight.c"
)
#: what only ``ring._ring`` holds: set-up, the driver side, the worker, the SIGBUS guard (process-wide, hence once)
RING_CONTROL = sources(
    "ring/csrc",
    "vq.c",
    "mem.c",
    "sigbus.c",
    "iotlb.c",
    "driver.c",
    "worker.c",
    "worker_loop.c",
    "gaps.c",
    "uring.c",
    "uffd.c",
)
RING_CDEF = [
    "ring/csrc/mem.h",
    "ring/csrc/ring.h",
    "ring/csrc/worker.h",
    "ring/csrc/driver.h",
    "ring/csrc/uffd.h",
]

#: what load generators share
LOADGEN_CDEF = ["ring/csrc/loadgen.h"]
LOADGEN = sources("ring/csrc", "driver.c", "loadgen.c")

BLK_SOURCES = ("blk.c", "request.c", "io.c", "inline.c", "throttle.c", "store_file.c", "store_mem.c", "store_fault.c")

#: folder's sources that are extensions of their own
NET_ALONE = ("load", "slirp")
NET_CDEF = ("net.h", "switch.h", "fdlink.h", "capture.h")

#: the file system's core; what is in the folder besides is the passthrough and the load generator
FS_CORE = ("decode.c", "queue.c", "pool.c", "init.c", "server.c", "python.c")
FS_CDEF = ("python.h", "pass.h", "state.h", "keep.h", "window.h", "sandbox.h")

#: what a display and its renderer have in common
GPU_WIRE = "devices/gpu/render/csrc"

#: library -> what is made of it
SANDBOX_OPTIONAL = {"libseccomp": "sandbox_seccomp", "libcap-ng": "sandbox_caps"}

COMMON = {
    "include_dirs": ["."],
    "extra_compile_args": [*CFLAGS, *GLUE],
    "define_macros": [("_GNU_SOURCE", "1")],
}


def extension(
    name: str,
    cdefs: list[str],
    srcs: list[str],
    *,
    libraries: list[str],
    include: FFI | None = None,
    folders: tuple[str, ...] = (),
) -> FFI:
    """One API-mode extension ``name`` from marked headers and C sources; ``folders`` hold further headers."""
    ffi = FFI()
    if include is not None:
        ffi.include(include)
    for header in cdefs:
        ffi.cdef(cdef_of(header))
    includes = "".join(f'#include "{h}"\n' for h in (RING_CDEF if include is not None else []) + cdefs)
    near = {str(Path(h).parent) for h in cdefs}
    depends = headers("ring/csrc", *near, *([GPU_WIRE] if any(h.startswith("devices/gpu/") for h in cdefs) else []))
    how = COMMON | {"include_dirs": [".", *folders]}
    ffi.set_source(name, includes, sources=srcs, libraries=libraries, depends=depends, **how)
    return ffi


ring = extension("ring._ring", RING_CDEF, RING_HOT + RING_CONTROL, libraries=["uring"])


def modules() -> list[str]:
    """The ``cffi_modules`` of this machine: optional ones only where their library is found."""
    found = ["ffi_build.py:ring", "ffi_build.py:sandbox_confine"]
    for package, name in SANDBOX_OPTIONAL.items():
        if pkg_config(package, "--exists") is not None:
            found.append(f"ffi_build.py:{name}")
    if (ROOT / "devices/blk/csrc/load.h").exists():
        found.append("ffi_build.py:blk_load")
    if (ROOT / "devices/blk/csrc/blk.h").exists():
        found.append("ffi_build.py:blk")
        if (ROOT / "devices/blk/csrc/nbd.h").exists():
            if pkg_config("libnbd", "--exists") is not None:
                found.append("ffi_build.py:nbd")
            elif os.environ.get("VHOST_WITH_NBD") == "1":
                raise SystemExit("VHOST_WITH_NBD=1 but pkg-config finds no libnbd; install libnbd-dev")
    if (ROOT / "devices/gpu/csrc/gpu.h").exists():
        found.append("ffi_build.py:gpu")
        found.append("ffi_build.py:gpu_null")
        if pkg_config("virglrenderer", "--exists") is not None:
            found.append("ffi_build.py:gpu_virgl")
        elif os.environ.get("VHOST_WITH_VIRGL") == "1":
            raise SystemExit("VHOST_WITH_VIRGL=1 but pkg-config finds no virglrenderer; install libvirglrenderer-dev")
        found.append("ffi_build.py:gpu_load")
    if pkg_config("libvncserver", "--atleast-version=0.9.13") is not None:
        found.append("ffi_build.py:gpu_vnc")
    elif os.environ.get("VHOST_WITH_VNC") == "1":
        raise SystemExit("VHOST_WITH_VNC=1 but pkg-config finds no libvncserver 0.9.13; install libvncserver-dev")
    if pkg_config("xkbcommon", "--atleast-version=1.0") is not None:
        found.append("ffi_build.py:input_xkb")
    if (ROOT / "devices/net/csrc/net.h").exists():
        found.append("ffi_build.py:net")
        if (ROOT / "devices/net/csrc/load.h").exists():
            found.append("ffi_build.py:net_load")
        if (ROOT / "devices/net/csrc/slirp.h").exists():
            if has_slirp():
                found.append("ffi_build.py:net_slirp")
            elif os.environ.get("VHOST_WITH_SLIRP") == "1":
                raise SystemExit("VHOST_WITH_SLIRP=1 but pkg-config finds no libslirp 4.7; install libslirp-dev")
    if (ROOT / "devices/fs/csrc/fs.h").exists():
        found.append("ffi_build.py:fs")
    if (ROOT / "devices/fs/csrc/load.h").exists():
        found.append("ffi_build.py:fs_load")
    return found


# Device extensions are functions (cffi calls them): made on demand, one missing library does not spoil the others.


def sandbox(name: str, *libraries: str) -> FFI:
    """One part of the sandbox, of the source of that name."""
    folder = "vhost/sandbox/csrc"
    parts = [f"{folder}/{name}.h"], [f"{folder}/{name}.c"]
    return extension(f"vhost.sandbox._{name}", *parts, libraries=list(libraries))


def sandbox_confine() -> FFI:
    """Namespaces, roots, Landlock: system calls only."""
    return sandbox("confine")


def sandbox_seccomp() -> FFI:
    """A filter of system calls; needs libseccomp."""
    return sandbox("seccomp", "seccomp")


def sandbox_caps() -> FFI:
    """Capabilities; needs libcap-ng."""
    return sandbox("caps", "cap-ng")


def blk() -> FFI:
    """The virtio-blk data path."""
    return extension(
        "devices.blk._blk",
        ["devices/blk/csrc/blk.h"],
        sources("devices/blk/csrc", *BLK_SOURCES) + RING_HOT,
        libraries=["uring"],
        include=ring,
    )


def blk_load() -> FFI:
    """The load generator."""
    return extension(
        "devices.blk._load",
        [*LOADGEN_CDEF, "devices/blk/csrc/load.h"],
        sources("devices/blk/csrc", "load.c") + LOADGEN,
        libraries=[],
        include=ring,
    )


def nbd() -> FFI:
    """The NBD store; needs libnbd."""
    return extension(
        "devices.blk._nbd",
        ["devices/blk/csrc/nbd.h"],
        sources("devices/blk/csrc", "nbd.c", "nbd_conn.c", "nbd_op.c"),
        libraries=["nbd"],
        include=blk(),
    )


def existing(folder: str, *headers_: str) -> list[str]:
    """Those of ``headers_`` in ``folder`` that have a source of the same name, as paths."""
    return [path for path in sources(folder, *headers_) if (ROOT / path).with_suffix(".c").exists()]


def net() -> FFI:
    """The virtio-net data path, the switch, taps, capture."""
    folder = "devices/net/csrc"
    names = sorted(path.name for path in (ROOT / folder).glob("*.c") if not path.stem.startswith(NET_ALONE))
    return extension(
        "devices.net._net",
        existing(folder, *NET_CDEF),
        sources(folder, *names) + RING_HOT,
        libraries=[],
        include=ring,
    )


def gpu() -> FFI:
    """The virtio-gpu data path: 2D, and the way to a renderer."""
    folder = "devices/gpu/csrc"
    names = sorted(path.name for path in (ROOT / folder).glob("*.c") if not path.stem.startswith("load"))
    return extension(
        "devices.gpu._gpu", [f"{folder}/gpu.h"], sources(folder, *names) + RING_HOT, libraries=[], include=ring
    )


def renderer(name: str, *libraries: str, more: tuple[str, ...] = (), folders: tuple[str, ...] = ()) -> FFI:
    """A renderer: what draws is the source of that name, and `more`."""
    folder = "devices/gpu/render/csrc"
    return extension(
        f"devices.gpu.render._{name}",
        [f"{folder}/render.h"],
        sources(folder, "loop.c", "rings.c", "commands.c", "guest.c", "apart.c", f"{name}.c", *more),
        libraries=list(libraries),
        folders=folders,
    )


def gpu_null() -> FFI:
    """The renderer that draws nothing."""
    return renderer("null")


def gpu_virgl() -> FFI:
    """OpenGL and Vulkan for guests; needs libvirglrenderer."""
    flags = pkg_config("virglrenderer", "--cflags-only-I") or []
    return renderer("virgl", "virglrenderer", more=("venus.c",), folders=tuple(flag[2:] for flag in flags))


def gpu_load() -> FFI:
    """The load generator for displays."""
    return extension(
        "devices.gpu._load",
        [*LOADGEN_CDEF, "devices/gpu/csrc/load.h"],
        sources("devices/gpu/csrc", "load.c", "load_display.c") + LOADGEN,
        libraries=[],
        include=ring,
    )


def gpu_vnc() -> FFI:
    """A display's VNC clients; needs libvncserver."""
    folder = "devices/gpu/vnc/csrc"
    return extension("devices.gpu._vnc", [f"{folder}/vnc.h"], sources(folder, "vnc.c"), libraries=["vncserver"])


def input_xkb() -> FFI:
    """Keyboard layouts; needs libxkbcommon."""
    folder = "devices/input/csrc"
    return extension("devices.input._xkb", [f"{folder}/xkb.h"], sources(folder, "xkb.c"), libraries=["xkbcommon"])


def net_load() -> FFI:
    """The load generator for networks."""
    return extension(
        "devices.net._load",
        [*LOADGEN_CDEF, "devices/net/csrc/load.h"],
        sources("devices/net/csrc", "load.c", "load_frame.c") + LOADGEN,
        libraries=[],
        include=ring,
    )


def net_slirp() -> FFI:
    """User-mode NAT; needs libslirp."""
    return extension(
        "devices.net._slirp",
        ["devices/net/csrc/slirp.h"],
        sources("devices/net/csrc", "slirp.c", "slirp_merge.c", "slirp_mss.c", "slirp_pieces.c"),
        libraries=["slirp"],
    )


def fs_load() -> FFI:
    """The load generator for file systems."""
    return extension(
        "devices.fs._load",
        [*LOADGEN_CDEF, "devices/fs/csrc/load.h"],
        sources("devices/fs/csrc", "load.c", "load_req.c") + LOADGEN,
        libraries=[],
        include=ring,
    )


def fs() -> FFI:
    """The virtio-fs data path: requests, and servers in C."""
    folder = "devices/fs/csrc"
    present = sorted(path.name for path in (ROOT / folder).glob("*.c") if not path.stem.startswith("load"))
    if "pass.c" not in present:
        present = [name for name in present if name in FS_CORE]
    return extension(
        "devices.fs._fs",
        [f"{folder}/fs.h", *existing(folder, *FS_CDEF)],
        sources(folder, *present) + RING_HOT,
        libraries=[],
        include=ring,
    )
