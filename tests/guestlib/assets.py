"""What guests are made of, built once into the cache: kernel, initramfs, boot disk, a newer QEMU, a usable accelerator.

``python -m guestlib demo|test`` makes them ahead of time, so that a missing network is said before any test runs.
"""

from __future__ import annotations

import functools
import hashlib
import lzma
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from guestlib import debian
from guestlib.debian import CACHE, AssetError, locked
from guestlib.trixie import libblkio, passt, virtiofsd

HERE = Path(__file__).resolve().parent
GUEST = CACHE / "guest"
_XZ = b"\xfd7zXZ\0"

#: drivers a test may need; those built into a kernel or absent from it are passed over
DRIVERS = ("virtio_pci", "virtio_blk", "virtio_rng", "ext4", "crc32c_generic", "ipv6", "virtio_net", "virtiofs")
#: programs copied from this machine with their libraries, and the packages they are from; the rest is busybox
TOOLS = {"mkfs.ext4": "e2fsprogs", "e2fsck": "e2fsprogs", "resize2fs": "e2fsprogs", "blkdiscard": "util-linux"}
#: the same, left out where they are not installed: a demo needs neither
OPTIONAL = ("iperf3", "ethtool")
#: the applets tests call by name; busybox runs any other as ``busybox NAME``
APPLETS = """
sh ash cat echo dd sha256sum md5sum cmp cp mv rm mkdir rmdir ls ln mount umount mknod sync sleep seq head tail grep sed
awk tr cut wc sort uniq od hexdump xxd base64 stty setsid insmod lsmod uname dmesg reboot poweroff halt blockdev fstrim
stat touch test true false printf date kill killall ps free df du find xargs tee timeout time nproc truncate lsof fdisk
losetup swapon mkswap cpio gzip gunzip env expr id which readlink realpath hostname usleep nohup lspci yes
ip ping ping6 arping udhcpc wget nc httpd ifconfig route
"""


@dataclass(frozen=True)
class Kernel:
    """A kernel image and the folder its modules lie in (``None`` where none are)."""

    release: str
    image: Path
    modules: Path | None


@dataclass(frozen=True)
class Qemu:
    """One QEMU: the command's first words and the environment it needs."""

    name: str
    command: tuple[str, ...]
    env: tuple[tuple[str, str], ...] = ()


# --- kernels


def debian_kernel() -> Kernel:
    """Debian's current cloud kernel for this release, fetched at the first call."""
    return _debian_kernel("kernel", "linux-image-cloud-amd64")


def debian_display_kernel() -> Kernel:
    """Debian's current kernel with drivers for displays, which the cloud kernel lacks; fetched at the first call."""
    return _debian_kernel("kernel-full", "linux-image-amd64")


def _debian_kernel(name: str, package: str) -> Kernel:
    base = GUEST / name
    with locked("kernel"):
        if not (base / "release").exists():
            shutil.rmtree(base, ignore_errors=True)
            try:
                release = debian.fetch_kernel(package, base / "root")
            except AssetError as error:
                raise AssetError(f"no Debian kernel for the guest: {error}") from error
            tree = base / "root" if (base / "root/lib").exists() else base / "root/usr"
            subprocess.run(["depmod", "-b", str(tree), release], check=True, env=_sbin_env())
            (base / "release").write_text(release)
    release = (base / "release").read_text()
    tree = base / "root" if (base / "root/lib").exists() else base / "root/usr"
    return Kernel(release, base / "root/boot" / f"vmlinuz-{release}", tree / "lib/modules" / release)


@functools.cache
def unpacked(kernel: Kernel) -> Path:
    """The kernel as QEMU boots it at once (PVH), where it is packed by xz: unpacking it takes an emulated CPU long."""
    target = kernel.image.with_name(f"vmlinux-{kernel.release}")
    with locked("kernel"):
        if not target.exists():
            data = kernel.image.read_bytes()
            # Linux's boot protocol: sectors of real-mode code; where the packed kernel lies behind it
            at = (data[0x1F1] + 1) * 512 + int.from_bytes(data[0x248:0x24C], "little")
            if data[at : at + len(_XZ)] != _XZ:
                return kernel.image
            fresh = target.with_suffix(".new")
            fresh.write_bytes(lzma.LZMADecompressor().decompress(data[at:]))
            fresh.rename(target)
    return target


def uml_kernel() -> Kernel:
    """The User-mode Linux of Debian's package."""
    image = shutil.which("linux.uml")
    folders = sorted(Path("/usr/lib/uml/modules").glob("*"))
    if image is None or not folders:
        raise AssetError("User-mode Linux is not installed; install the Debian package user-mode-linux")
    return Kernel(folders[-1].name, Path(image), folders[-1])


def _sbin_env() -> dict[str, str]:
    return {**os.environ, "PATH": f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"}


def _module_files(kernel: Kernel, names: Iterable[str]) -> list[Path]:
    """The files of ``names`` and of all they need, in the order to load them."""
    if kernel.modules is None:
        return []
    needs: dict[str, list[str]] = {}
    for line in (kernel.modules / "modules.dep").read_text().splitlines():
        file, _, rest = line.partition(":")
        needs[file] = rest.split()
    by_name = {Path(file).name.split(".")[0].replace("-", "_"): file for file in needs}
    order: list[str] = []
    for name in names:
        wanted = by_name.get(name.replace("-", "_"))
        if wanted is None:
            continue  # built in, or not offered by this kernel
        for each in [*reversed(needs[wanted]), wanted]:
            if each not in order:
                order.append(each)
    return [kernel.modules / file for file in order]


# --- the initramfs


class Cpio:
    """A newc archive in memory; device nodes need no root this way."""

    def __init__(self) -> None:
        self._out = bytearray()
        self._inode = 0
        self._folders: set[str] = set()

    def _add(self, name: str, mode: int, data: bytes = b"", rdev: tuple[int, int] = (0, 0)) -> None:
        self._inode += 1
        encoded = name.encode() + b"\0"
        fields = (self._inode, mode, 0, 0, 1, 0, len(data), 0, 0, rdev[0], rdev[1], len(encoded), 0)
        self._out += b"070701" + b"".join(b"%08X" % field for field in fields) + encoded
        self._out += bytes(-len(self._out) % 4) + data
        self._out += bytes(-len(self._out) % 4)

    def folder(self, name: str) -> None:
        """Add folder ``name`` and those above it."""
        parts = name.strip("/").split("/")
        for depth in range(1, len(parts) + 1):
            path = "/".join(parts[:depth])
            if path and path not in self._folders:
                self._folders.add(path)
                self._add(path, 0o040755)

    def file(self, name: str, data: bytes, *, mode: int = 0o644) -> None:
        """Add a regular file and the folders above it."""
        self.folder(str(Path(name).parent).strip("."))
        self._add(name, 0o100000 | mode, data)

    def link(self, name: str, target: str) -> None:
        """Add a symbolic link."""
        self.folder(str(Path(name).parent).strip("."))
        self._add(name, 0o120777, target.encode())

    def device(self, name: str, major: int, minor: int) -> None:
        """Add a character device node."""
        self.folder(str(Path(name).parent).strip("."))
        self._add(name, 0o020600, rdev=(major, minor))

    def finish(self) -> bytes:
        """The archive."""
        self._add("TRAILER!!!", 0)
        return bytes(self._out) + bytes(-len(self._out) % 512)


def _libraries(program: str) -> list[str]:
    """The shared libraries of ``program``, its loader included."""
    text = subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout
    words = [word for line in text.splitlines() for word in line.split() if word.startswith("/")]
    return sorted(set(words))


def _need(program: str, package: str) -> str:
    path = shutil.which(program, path=_sbin_env()["PATH"])
    if not path:
        raise AssetError(f"{program} is not installed, the guest needs it; install the Debian package {package}")
    return path


def guestio() -> Path:
    """The guest's program for disks, compiled when its source changed."""
    return _program("guestio")


def netio() -> Path:
    """The program for traffic, in guests and on the host, compiled when its source changed."""
    return _program("netio")


def fsio() -> Path:
    """The program for file systems, in guests and on the host, compiled when its source changed."""
    return _program("fsio")


def kmsio() -> Path:
    """The guest's program for displays, compiled when its source changed."""
    return _program("kmsio")


def glio() -> Path:
    """The program for OpenGL, which runs in the host's root: it is linked with the machine's Mesa."""
    flags = ["-I/usr/include/libdrm", "-lEGL", "-lGLESv2", "-lgbm", "-ldrm"]
    try:
        return _program("glio", flags)
    except AssetError as error:
        hint = "install libegl-dev, libgles-dev, libgbm-dev and libdrm-dev"
        raise AssetError(f"{error}; {hint}") from error


def _program(name: str, libraries: Iterable[str] = ("-static", "-pthread")) -> Path:
    source = HERE / f"{name}.c"
    target = GUEST / f"{name}-{hashlib.sha256(source.read_bytes()).hexdigest()[:12]}"
    with locked(name):
        if not target.exists():
            GUEST.mkdir(parents=True, exist_ok=True)
            command = [
                "gcc",
                "-std=gnu11",
                "-O2",
                "-Wall",
                "-Wextra",
                "-o",
                f"{target}.new",
                str(source),
                *libraries,
            ]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                raise AssetError(f"gcc could not build the guest's {name}: {done.stderr.strip()}")
            Path(f"{target}.new").rename(target)
    return target


def initramfs(kernel: Kernel, *, drivers: Iterable[str] = DRIVERS) -> Path:
    """An initramfs for ``kernel`` with busybox, tools, our programs and ``drivers``; made when any part changed."""
    drivers = tuple(drivers)
    busybox = Path(_need("busybox", "busybox-static"))
    tools = [Path(_need(tool, package)) for tool, package in TOOLS.items()]
    tools += [Path(path) for tool in OPTIONAL if (path := shutil.which(tool, path=_sbin_env()["PATH"]))]
    programs = {"guestio": guestio(), "netio": netio(), "fsio": fsio(), "kmsio": kmsio()}
    parts = [repr((kernel.release, drivers)), *(program.name for program in programs.values())]
    parts += [f"{path}:{path.stat().st_mtime_ns}" for path in (busybox, *tools)]
    parts += [(HERE / "init.sh").read_text(), (HERE / "udhcpc.sh").read_text(), Path(__file__).read_text()]
    key = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
    target = GUEST / f"initramfs-{kernel.release}-{key}.cpio"
    with locked("initramfs"):
        if not target.exists():
            olds = sorted(GUEST.glob(f"initramfs-{kernel.release}-*.cpio"), key=lambda path: path.stat().st_mtime)
            for old in olds[:-2]:  # a guest that runs has read its own long ago
                old.unlink()
            fresh = target.with_suffix(".new")
            fresh.write_bytes(_pack(kernel, drivers, busybox, tools, programs))
            fresh.rename(target)
    return target


def _pack(kernel: Kernel, drivers: Iterable[str], busybox: Path, tools: list[Path], programs: dict[str, Path]) -> bytes:
    cpio = Cpio()
    for folder in ("dev", "proc", "sys", "tmp", "mnt", "bin", "sbin", "etc", "lib/modules", "lib64", "run", "root"):
        cpio.folder(folder)
    cpio.device("dev/console", 5, 1)
    cpio.device("dev/null", 1, 3)
    cpio.file("bin/busybox", busybox.read_bytes(), mode=0o755)
    for applet in APPLETS.split():
        cpio.link(f"bin/{applet}", "busybox")
    for name, program in programs.items():
        cpio.file(f"bin/{name}", program.read_bytes(), mode=0o755)
    cpio.file("etc/udhcpc/default.script", (HERE / "udhcpc.sh").read_bytes(), mode=0o755)
    for tool in tools:
        cpio.file(f"sbin/{tool.name}", tool.read_bytes(), mode=0o755)
    for library in sorted({library for tool in tools for library in _libraries(str(tool))}):
        where = "lib64" if Path(library).name.startswith("ld-") else "lib"
        cpio.file(f"{where}/{Path(library).name}", Path(library).read_bytes(), mode=0o755)
    cpio.file("etc/mke2fs.conf", Path("/etc/mke2fs.conf").read_bytes() if Path("/etc/mke2fs.conf").exists() else b"")
    cpio.file("etc/mtab", b"")
    modules = _module_files(kernel, drivers)
    for module in modules:
        cpio.file(f"lib/modules/{module.name}", module.read_bytes())
    cpio.file("lib/modules.list", "".join(f"{module.name}\n" for module in modules).encode())
    cpio.file("init", (HERE / "init.sh").read_bytes(), mode=0o755)
    return cpio.finish()


# --- QEMUs


def debian_root() -> Path:
    """A small Debian by debootstrap, made at the first call. Nobody changes it: tests copy it."""
    return _debian_root("debian-root")


def mesa_root() -> Path:
    """The same with Mesa, an X server, and programs that draw by it."""
    programs = ("mesa-utils", "mesa-utils-bin", "kmscube", "glmark2-es2-drm", "xserver-xorg-core")
    return _debian_root("mesa-root", "libgl1-mesa-dri", *programs)


@functools.cache
def _debian_root(name: str, *packages: str) -> Path:
    root, ready = GUEST / name, GUEST / f"{name}.ready"
    with locked(name):
        if ready.exists() and ready.read_text().split() == list(packages):
            return root
        program = shutil.which("debootstrap") or shutil.which("debootstrap", path="/usr/sbin")
        if program is None:
            raise AssetError("debootstrap is not installed; install the Debian package debootstrap")
        if os.geteuid() != 0:
            raise AssetError("debootstrap needs root")
        shutil.rmtree(root, ignore_errors=True)
        include = [f"--include={','.join(packages)}"] if packages else []
        command = [program, "--variant=minbase", *include, debian.codename() or "bookworm", str(root)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=_sbin_env())
        if done.returncode != 0:
            words = [line for line in done.stdout.splitlines() if line.startswith("E:")][:1]
            raise AssetError(f"debootstrap failed (no network?): {' '.join(words) or done.stderr.strip()[-200:]}")
        for deb in (root / "var/cache/apt/archives").glob("*.deb"):
            deb.unlink()
        ready.write_text(" ".join(packages))
    return root


def system_qemu() -> Qemu:
    """Debian's own QEMU."""
    path = shutil.which("qemu-system-x86_64")
    if path is None:
        raise AssetError("qemu-system-x86_64 is not installed; install the Debian package qemu-system-x86")
    return Qemu("system", (path,))


@functools.cache
def backports_qemu() -> Qemu:
    """The release's backports QEMU, unpacked into the cache; AssetError says why where there is none."""
    base = GUEST / "qemu-backports"
    with locked("qemu-backports"):
        if (base / "unavailable").exists():
            raise AssetError((base / "unavailable").read_text())
        if not (base / "ready").exists():
            shutil.rmtree(base, ignore_errors=True)
            base.mkdir(parents=True)
            try:
                if not debian.codename():
                    raise AssetError("this is no Debian release with backports")
                debian.unpack_upgrade("qemu-system-x86", base / "root")
                _try_qemu(_backports_at(base / "root"))
            except AssetError as error:
                reason = f"no QEMU from {debian.codename()}-backports: {error}"
                (base / "unavailable").write_text(reason)
                raise AssetError(reason) from error
            (base / "ready").touch()
    return _backports_at(base / "root")


def _backports_at(root: Path) -> Qemu:
    libraries = root / "usr/lib/x86_64-linux-gnu"
    command = (
        str(root / "usr/bin/qemu-system-x86_64"),
        "-L",
        str(root / "usr/share/qemu"),
        "-L",
        str(root / "usr/share/seabios"),
    )
    return Qemu(
        "backports", command, (("LD_LIBRARY_PATH", str(libraries)), ("QEMU_MODULE_DIR", str(libraries / "qemu")))
    )


def _try_qemu(qemu: Qemu) -> None:
    # not `-device help`: that loads every module, those of the installed QEMU too
    done = subprocess.run(
        [*qemu.command, "-device", "vhost-user-blk-pci,help"],
        env={**os.environ, **dict(qemu.env)},
        capture_output=True,
        text=True,
        check=False,
    )
    if "num-queues" not in done.stdout:
        raise AssetError(f"it does not run here: {(done.stderr or done.stdout).strip()[:200]}")


def qemu_version(qemu: Qemu) -> tuple[int, int]:
    """Major and minor version of ``qemu``."""
    text = subprocess.run(
        [*qemu.command[:1], "--version"],
        env={**os.environ, **dict(qemu.env)},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    major, minor = text.split("version ")[1].split(".")[:2]
    return int(major), int(minor)


# --- a disk that boots

_PARTITION_AT = 2048  # sectors: room for the boot loader's core, and what every partitioner does


def boot_disk(kernel: Kernel) -> Path:
    """A raw disk with GRUB, an ext4 partition and on it ``kernel`` and the initramfs; to be copied before use."""
    ramdisk = initramfs(kernel)
    key = hashlib.sha256(f"{ramdisk.name} {Path(__file__).read_text()}".encode()).hexdigest()[:12]
    target = GUEST / f"bootdisk-{key}.raw"
    with locked("bootdisk"):
        if not target.exists():
            for old in GUEST.glob("bootdisk-*.raw"):
                old.unlink()
            _make_boot_disk(kernel, ramdisk, target)
    return target


def _make_boot_disk(kernel: Kernel, ramdisk: Path, target: Path) -> None:
    grub = GUEST / "grub"
    if not (grub / "usr/lib/grub/i386-pc").exists():
        debian.unpack(
            ["grub-pc-bin", "grub-common", "libdevmapper1.02.1", "libfuse3-3", "libefivar1", "libefiboot1"], grub
        )
    images = grub / "usr/lib/grub/i386-pc"
    work = target.with_suffix(".tree")
    shutil.rmtree(work, ignore_errors=True)
    (work / "boot").mkdir(parents=True)
    shutil.copy(kernel.image, work / "boot/vmlinuz")
    shutil.copy(ramdisk, work / "boot/initrd")
    script = work / "grub.cfg"
    script.write_text(
        "serial --unit=0 --speed=115200\n"
        "terminal_output serial\n"
        "set root=(hd0,msdos1)\n"
        "linux /boot/vmlinuz console=ttyS0 quiet panic=-1 no_timer_check agent=ttyS1 booted_from=disk\n"
        "initrd /boot/initrd\n"
        "boot\n"
    )
    core = work / "core.img"
    env = {**os.environ, "LD_LIBRARY_PATH": f"{grub}/usr/lib/x86_64-linux-gnu:{grub}/lib/x86_64-linux-gnu"}
    modules = ["biosdisk", "part_msdos", "ext2", "linux", "boot", "serial", "terminal"]
    done = subprocess.run(
        [
            str(grub / "usr/bin/grub-mkimage"),
            "-O",
            "i386-pc",
            "-d",
            str(images),
            "-c",
            str(script),
            "-p",
            "(hd0,msdos1)/boot",
            "-o",
            str(core),
            *modules,
        ],
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise AssetError(f"grub-mkimage failed: {done.stderr.strip()}")
    if core.stat().st_size > (_PARTITION_AT - 1) * 512:
        raise AssetError("the boot loader's core does not fit before the first partition")
    size = 96 << 20
    fresh = target.with_suffix(".new")
    (work / "payload").mkdir()
    (work / "boot").rename(work / "payload/boot")
    with fresh.open("wb") as disk:
        disk.truncate(size)
    subprocess.run(
        [
            _need("mkfs.ext4", "e2fsprogs"),
            "-q",
            "-F",
            "-O",
            "^metadata_csum_seed,^orphan_file",
            "-d",
            str(work / "payload"),
            "-E",
            f"offset={_PARTITION_AT * 512}",
            str(fresh),
            f"{(size >> 10) - _PARTITION_AT // 2}k",
        ],
        check=True,
        capture_output=True,
    )
    with fresh.open("r+b") as disk:
        boot = bytearray((images / "boot.img").read_bytes())
        entry = struct.pack(
            "<B3sB3sII", 0x80, b"\xfe\xff\xff", 0x83, b"\xfe\xff\xff", _PARTITION_AT, size // 512 - _PARTITION_AT
        )
        boot[440:446] = b"vhst\0\0"
        boot[446:510] = entry + bytes(48)  # over boot.img's code for floppies
        boot[510:512] = b"\x55\xaa"
        disk.write(boot)
        disk.write(core.read_bytes())
    shutil.rmtree(work)
    fresh.rename(target)


# --- ahead of time


def prepare(level: str) -> int:
    """Make what ``level`` (demo or test) needs; 1 after a sentence on stderr where something cannot be had."""
    if level == "demo":
        return _needed(("initramfs", lambda: initramfs(debian_kernel())))
    with ThreadPoolExecutor() as side_by_side:
        # most of each is waiting for the network; what is in one of these uses the same package lists
        kernels = side_by_side.submit(_kernels)
        others = ((debian_root,), (backports_qemu,), (libblkio, passt, virtiofsd))
        for other in [side_by_side.submit(_wanted, *few) for few in others]:
            other.result()
        return kernels.result()


def _kernels() -> int:
    missing = _needed(
        ("initramfs", lambda: initramfs(debian_kernel())),
        ("boot disk", lambda: boot_disk(debian_kernel())),
        ("UML initramfs", lambda: initramfs(uml_kernel())),
    )
    if not missing:
        _wanted(debian_display_kernel)
    return missing


def _needed(*steps: tuple[str, Callable[[], object]]) -> int:
    for name, make in steps:
        try:
            make()
        except AssetError as error:
            print(f"setup: {name}: {error}", file=sys.stderr)
            return 1
    return 0


def _wanted(*makers: Callable[[], object]) -> None:
    for make in makers:
        try:
            make()
        except AssetError as error:
            print(f"setup: {error}; its tests will be skipped", file=sys.stderr)
