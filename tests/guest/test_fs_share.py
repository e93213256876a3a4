"""A shared folder in real guests: what programs do there is what is on the host, and the other way round."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import stat
import struct
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import guestlib
import pytest
import trio
from guestlib import AssetError, QemuConfig, QemuGuest, UmlDevice, UmlGuest, VhostFs, boot_qemu, boot_uml
from guestlib.assets import debian_root, fsio
from guestlib.fs import FS, guest_sums, host_root, make_tree, mount, tree_sums, vhost_fs

pytestmark = [pytest.mark.guest, pytest.mark.timeout(300)]


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    folder = tmp_path / "shared"
    folder.mkdir()
    return folder


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path | None]:
    """A file system of 8 MiB; None where nothing may be mounted."""
    folder = tmp_path / "small"
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "small", folder], check=False, capture_output=True)
    try:
        yield folder if done.returncode == 0 else None
    finally:
        if done.returncode == 0:
            subprocess.run(["umount", "-l", folder], check=True)


def _host(*words: str | Path, status: int = 0) -> str:
    """fsio on the host; what it says."""
    done = subprocess.run(
        [fsio(), *map(str, words)], capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
    )
    assert done.returncode == status, done.stdout
    return done.stdout.strip()


@contextlib.asynccontextmanager
async def _held(*words: str | Path) -> AsyncIterator[None]:
    """A lock that fsio holds on the host for the length of the block."""
    proc = await trio.lowlevel.open_process(
        [fsio(), *map(str, words), "hold"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert proc.stdin is not None
    assert proc.stdout is not None
    async with proc.stdin, proc.stdout:
        assert await proc.stdout.receive_some() == b"ok\n"
        yield
        await proc.stdin.aclose()
        assert await proc.wait() == 0


async def _hold(guest: QemuGuest, command: str) -> None:
    """Start ``fsio COMMAND hold`` in the guest, for ever; it has its lock."""
    await guest.run("rm -f /tmp/end /tmp/held; mkfifo /tmp/end; sleep 600 >/tmp/end & echo $! >/tmp/pid")
    await guest.run(f"fsio {command} hold </tmp/end >/tmp/held 2>&1 &")
    await guest.run("for i in $(seq 100); do grep -q ok /tmp/held && exit 0; sleep 0.1; done; exit 1")


async def _trees(guest: QemuGuest, shared: Path) -> None:
    """Copied in both directions; modes, times, hard links too."""
    make_tree(shared / "from_host", files=100)
    assert await guest_sums(guest, "/share/from_host") == tree_sums(shared / "from_host")
    await guest.run("cp -a /share/from_host /share/from_guest", timeout=120)
    assert tree_sums(shared / "from_guest") == tree_sums(shared / "from_host")
    for path in (shared / "from_host").rglob("*"):
        copy = shared / "from_guest" / path.relative_to(shared / "from_host")
        one, other = path.lstat(), copy.lstat()
        assert (one.st_mode, one.st_uid, one.st_nlink) == (other.st_mode, other.st_uid, other.st_nlink), path
        if stat.S_ISREG(one.st_mode):
            assert one.st_mtime_ns // 10**9 == other.st_mtime_ns // 10**9, path
    await guest.run("rm -r /share/from_host", timeout=60)
    assert not (shared / "from_host").exists()


async def _lists(guest: QemuGuest, shared: Path) -> None:
    """What the host does to a folder is in the guest's next listing, though the kernel may use its last one again."""
    folder = shared / "listed"
    folder.mkdir()
    for number in range(60):
        (folder / f"file-{number}").write_text("")

    async def same() -> None:
        names = " ".join(sorted(path.name for path in folder.iterdir()))
        assert await guest.output("ls -1 /share/listed | LC_ALL=C sort | tr '\\n' ' '") == names

    for number in range(5):
        await trio.sleep(0.1)  # one that has just changed is read once more
        for _ in range(3):
            await same()
        (folder / f"host-{number}").write_text("")
        await same()
        (folder / f"file-{number}").unlink()
        await same()
        (folder / f"host-{number}").rename(folder / f"renamed-{number}")
        await same()
        await guest.run(
            f"cd /share/listed && rm renamed-{number} && mv file-5{number} moved && mv moved file-5{number} && >new"
        )
        await same()


async def _locks(guest: QemuGuest, shared: Path) -> None:
    """Host and guest see each other's locks, wait for them, and get them."""
    file = shared / "locked"
    async with _held("lock", file, "w", "10", "5"):
        said = await guest.run("fsio lock /share/locked w 0 100", check=False)
        assert (said.status, said.output) == (3, "busy 10+5")
        assert (await guest.run("fsio lock /share/locked w 15 5")).output == "ok"
        await guest.run("fsio lock /share/locked w 0 100 wait >/tmp/waited 2>&1 &")
        await guest.run("fsio many /share/meanwhile 20")  # who waits holds up nobody
        assert await guest.output("cat /tmp/waited") == ""
    await guest.run("for i in $(seq 100); do grep -q ok /tmp/waited && exit 0; sleep 0.1; done; exit 1")
    async with _held("flock", file, "r"):
        assert (await guest.run("fsio flock /share/locked w", check=False)).status == 3
        assert (await guest.run("fsio flock /share/locked r")).output == "ok"
    await _hold(guest, "lock /share/locked r 0 0")
    assert _host("lock", file, "w", "0", "1", status=3) == "busy 0+0"
    assert _host("lock", file, "r", "0", "1") == "ok"
    await guest.run("kill $(cat /tmp/pid)")
    with trio.fail_after(60):
        lock = [fsio(), "lock", file, "w", "0", "1"]
        while (await trio.run_process(lock, stdout=subprocess.DEVNULL, check=False)).returncode:
            await trio.sleep(0.05)


async def _permissions(guest: QemuGuest, shared: Path) -> None:
    """A user of the guest is that user on the host; groups, SGID folders and the sticky bit count."""
    folder = shared / "users"
    folder.mkdir()
    folder.chmod(0o777)
    (folder / "secret").write_text("secret")
    (folder / "secret").chmod(0o600)
    (folder / "team").mkdir()
    os.chown(folder / "team", 0, 4000)
    (folder / "team").chmod(0o2770)
    (folder / "sticky").mkdir()
    (folder / "sticky").chmod(0o1777)
    (folder / "sticky" / "roots").touch()
    await guest.run(
        """
        cd /share/users
        as() { fsio as 1000 1000 "$@"; }
        as 1000 sh -c 'umask 027; echo text >mine; mkdir dir; ln -s x link' || exit 1
        as 1000 cat secret 2>/dev/null && exit 2
        as 1000 touch team/no 2>/dev/null && exit 3
        as 1000,4000 touch team/yes || exit 4
        as 1000,4000 mkdir team/dir || exit 5
        as 1000 rm -f sticky/roots 2>/dev/null && exit 6
        as 1000 chown 0 mine 2>/dev/null && exit 7
        cp /bin/busybox suid && chown 1000 suid && chmod 4777 suid && as 1000 sh -c 'echo x >>suid' || exit 8
        mknod null c 1 3 && echo gone >null && mkfifo fifo || exit 9
        exit 0
        """
    )
    mine = (folder / "mine").stat()
    assert (mine.st_uid, mine.st_gid, stat.S_IMODE(mine.st_mode)) == (1000, 1000, 0o640)
    assert stat.S_IMODE((folder / "dir").stat().st_mode) == 0o750
    assert (folder / "link").lstat().st_uid == 1000
    made = (folder / "team" / "yes").stat(), (folder / "team" / "dir").stat()
    assert [(st.st_uid, st.st_gid) for st in made] == [(1000, 4000)] * 2
    assert made[1].st_mode & stat.S_ISGID
    assert not (folder / "suid").stat().st_mode & stat.S_ISUID
    assert stat.S_ISCHR((folder / "null").stat().st_mode)


async def _full(guest: QemuGuest, small: Path) -> None:
    """A full disk is said so, and half of a file is half of it."""
    await mount(guest, "small")
    said = await guest.run("dd if=/dev/zero of=/small/big bs=64k count=1000 2>&1", check=False)
    assert said.status != 0
    assert "No space left" in said.output
    assert 7 << 20 < (small / "big").stat().st_size <= 8 << 20
    assert "No space left" in (await guest.run("echo text >/small/more", check=False)).output
    await guest.run("rm /small/big && echo text >/small/more && sync && umount /small")
    assert (small / "more").read_text() == "text\n"


#: of stress-ng: those that look at what they did, and need nothing but a folder. Not lockf: it holds a lock while it
#: kills, and waits for, a process that waits for the lock, and Linux's driver takes no request back
_STRESSORS = (
    "access", "chmod", "copy-file", "dentry", "dir", "dup", "fallocate", "fcntl", "filename", "flock", "fstat",
    "getdent", "hdd", "lease", "link", "locka", "lockofd", "open", "rename", "seek", "symlink", "sync-file",
    "touch", "utime", "xattr",
)  # fmt: skip


def _make_program(folder: Path) -> None:
    """Some files of C, and what builds them."""
    for number in range(16):
        (folder / f"part{number}.c").write_text(
            f"#include <stdio.h>\n#include <sys/stat.h>\nint part{number}(void) {{ return {number}; }}\n"
        )
    parts = " + ".join(f"part{number}()" for number in range(16))
    declared = "".join(f"int part{number}(void);\n" for number in range(16))
    main = f'#include <stdio.h>\n{declared}int main(void) {{ printf("%d\\n", {parts}); return 0; }}\n'
    (folder / "main.c").write_text(main)
    objects = " ".join(["main.o", *(f"part{number}.o" for number in range(16))])
    (folder / "Makefile").write_text(f"program: {objects}\n\tgcc -o $@ $^\n")
    (folder / ".gitignore").write_text("*.o\nprogram\n")


async def _programs(guest: UmlGuest, shared: Path, both: Path) -> None:
    """The host's own programs, run from its root over virtio-fs, at work in the share."""
    host = await host_root(guest)
    await guest.run(f"mkdir {host}/mnt/share && mount --bind /share {host}/mnt/share")
    if shutil.which("fio"):
        await guest.run(
            f"""
            chroot {host} fio --name=v --directory=/mnt/share --rw=randrw --bsrange=512-128k --size=16m --numjobs=2 \\
                --thread --ioengine=psync --verify=crc32c --verify_fatal=1 --output=/tmp/fio --fallocate=none
            """,
            timeout=120,
        )
    if shutil.which("sqlite3"):
        await _database(guest, host, both)
    if shutil.which("stress-ng"):
        words = " ".join(f"--{kind} 1" for kind in _STRESSORS)
        await guest.run(
            f"chroot {host} stress-ng --temp-path /mnt/share --timeout 4 --verify {words} 2>&1",
            timeout=120,
        )
    if shutil.which("git"):
        make_tree(shared / "source", files=60)
        compiles = shutil.which("gcc") and shutil.which("make")
        if compiles:
            _make_program(shared / "source")
        for words in (["init", "-q"], ["add", "-A"], ["-c", "user.name=n", "-c", "user.email=e", "commit", "-qm", "m"]):
            await trio.run_process(["git", *words], cwd=shared / "source")
        await guest.run(
            f"""
            set -e
            export HOME=/tmp GIT_CONFIG_COUNT=1 GIT_CONFIG_KEY_0=safe.directory GIT_CONFIG_VALUE_0='*'
            chroot {host} git clone -q --no-local /mnt/share/source /mnt/share/clone
            chroot {host} git -C /mnt/share/clone fsck --full
            {f"chroot {host} make -s -j2 -C /mnt/share/clone program" if compiles else ""}
            """,
            timeout=120,
        )
        if compiles:
            built = shared / "clone" / "program"
            assert subprocess.run([built], capture_output=True, text=True, check=True).stdout == "120\n"  # noqa: ASYNC221
            for path in (built, *(shared / "clone").glob("*.o")):
                path.unlink()
        done = await trio.run_process(["git", "status", "--porcelain"], cwd=shared / "clone", capture_stdout=True)
        assert done.stdout == b""
        source, clone = tree_sums(shared / "source"), tree_sums(shared / "clone")
        assert {k: v for k, v in source.items() if not k.startswith(".git")} == {
            k: v for k, v in clone.items() if not k.startswith(".git")
        }


async def _database(guest: UmlGuest, host: str, both: Path) -> None:
    """Host and guest write to it at once. That needs `--cache never`: else a kernel trusts what it has a second."""
    await mount(guest, "both", f"{host}/mnt/both")
    with contextlib.closing(sqlite3.connect(both / "db", isolation_level=None, timeout=60)) as database:
        database.execute("create table t (who text, n integer)")
        script = "".join(f"insert into t values ('guest', {n});" for n in range(25))
        (both / "script").write_text(f".timeout 60000\n{script}")
        number = await guest.agent.send(f"chroot {host} sqlite3 /mnt/both/db <{host}/mnt/both/script")
        for n in range(25):
            await trio.to_thread.run_sync(_insert, both / "db", n)
        result = await guest.agent.result(number, timeout=120)
        assert result.status == 0, result.output
        assert database.execute("pragma integrity_check").fetchone() == ("ok",)
        assert sorted(database.execute("select * from t")) == [(w, n) for w in ("guest", "host") for n in range(25)]


def _insert(path: Path, n: int) -> None:
    with sqlite3.connect(path, timeout=60) as database:
        database.execute("insert into t values ('host', ?)", (n,))
    database.close()


async def test_files(tmp_path: Path, shared: Path, small: Path | None) -> None:
    """One guest: all that one can do to files."""
    async with contextlib.AsyncExitStack() as stack:
        share = await stack.enter_async_context(vhost_fs(tmp_path, shared))
        root = await stack.enter_async_context(
            vhost_fs(tmp_path, Path("/"), tag="root", args=["--readonly"], name="root")
        )
        devices = [VhostFs(share.socket, "share", request_queues=2), VhostFs(root.socket, "root")]
        if small is not None:
            full = await stack.enter_async_context(vhost_fs(tmp_path, small, tag="small", name="full"))
            devices.append(VhostFs(full.socket, "small", packed=True))
        guest = await stack.enter_async_context(boot_qemu(QemuConfig(devices=tuple(devices)), tmp_path))
        await mount(guest, "share")
        await _trees(guest, shared)
        await _lists(guest, shared)
        for command in ("mmap /share/mapped 3000000", "holes /share/holes", "xattr /share/attrs", "big /share/big",
                        "tmpfile /share", "open /share", "storm /share/storm 4 1", "verify /share/v 3000000 2",
                        "many /share/many 1000"):  # fmt: skip
            assert (await guest.output(f"fsio {command}", timeout=120)).startswith("ok"), command
        assert os.getxattr(shared / "attrs", "user.big") == b"b" * 3000
        await _locks(guest, shared)
        await _permissions(guest, shared)
        if small is not None:
            await _full(guest, small)
        await guest.power_off()


async def test_two_guests(tmp_path: Path, shared: Path) -> None:
    """Appends of two guests and the host, locks between guests, one killed, one rebooted, a back-end killed."""
    async with (
        vhost_fs(tmp_path, shared, name="a", clean=False) as a,
        vhost_fs(tmp_path, shared, name="b") as b,
        boot_qemu(QemuConfig((VhostFs(a.socket, "share"),), 256, smp=1, reboots=True), tmp_path) as one,
        boot_qemu(QemuConfig((VhostFs(b.socket, "share"),), 256, smp=1), tmp_path) as two,
    ):
        for guest in (one, two):
            await mount(guest, "share")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(one.run, "fsio append /share/log one 400")
            nursery.start_soon(two.run, "fsio append /share/log two 400")
            await trio.to_thread.run_sync(_host, "append", shared / "log", "host", "400")
        lines = (shared / "log").read_text().splitlines()
        assert len(lines) == 1200
        for who in ("one", "two", "host"):
            assert [line for line in lines if line.startswith(who)] == [f"{who:<10} {n:020d}" for n in range(400)]
        await _hold(two, "flock /share/lock w")
        assert (await one.run("fsio flock /share/lock w", check=False)).status == 3
        number = await one.agent.send("fsio flock /share/lock w wait")
        await two.kill()
        assert (await one.agent.result(number, timeout=30)).output == "ok"
        await one.run("echo kept >/share/kept")
        await one.reboot()
        await mount(one, "share")
        assert await one.output("cat /share/kept && fsio open /share") == "kept\nok"
        await one.run("echo synced >/share/synced && sync")
        await a.kill()
        await one.kill()
    assert (shared / "synced").read_text() == "synced\n"


def _make_many(folder: Path, number: int) -> None:
    folder.mkdir()
    for i in range(number):
        os.close(os.open(folder / f"file-{i}", os.O_CREAT | os.O_WRONLY))


async def _acls(guest: UmlGuest, shared: Path) -> None:
    """Users who are not root: what the host allows them, what the guest does, what new files inherit."""
    folder = shared / "acls"
    folder.mkdir()
    for name in ("theirs", "nobodys"):
        (folder / name).write_text(name)
        (folder / name).chmod(0o600)
    os.setxattr(folder / "theirs", "system.posix_acl_access", _acl(access=4))
    (folder / "team").mkdir(mode=0o755)
    os.setxattr(folder / "team", "system.posix_acl_access", _acl(access=7, others=5))
    os.setxattr(folder / "team", "system.posix_acl_default", _acl(access=7))
    await guest.run(
        """
        cd /share/acls
        as() { fsio as "$@"; }
        as 1000 1000 1000 cat theirs || exit 1
        as 1000 1000 1000 sh -c 'echo x >>theirs' 2>/dev/null && exit 2
        as 1001 1001 1001 cat theirs 2>/dev/null && exit 3
        as 1000 1000 1000 cat nobodys 2>/dev/null && exit 4
        as 1000 1000 1000 touch team/mine || exit 5
        as 1001 1001 1001 touch team/no 2>/dev/null && exit 6
        (umask 077; mkdir team/roots; echo text >team/roots/file)
        as 1000 1000 1000 sh -c 'echo more >>team/roots/file && touch team/roots/new' || exit 7
        as 1001 1001 1001 cat team/roots/file 2>/dev/null && exit 8
        echo text >given && fsio acl given 1001 rw || exit 9
        as 1001 1001 1001 sh -c 'echo more >>given' || exit 10
        as 1000 1000 1000 cat given 2>/dev/null && exit 11
        exit 0
        """
    )
    assert os.getxattr(folder / "given", "system.posix_acl_access")[16:20] == struct.pack("<I", 1001)
    assert (folder / "team" / "roots" / "file").read_text() == "text\nmore\n"


def _acl(*, access: int, others: int = 0) -> bytes:
    """The owner may do everything, user 1000 `access`."""
    entries = [(1, 7, 2**32 - 1), (2, access, 1000), (4, 0, 2**32 - 1), (16, 7, 2**32 - 1), (32, others, 2**32 - 1)]
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


async def test_uml(tmp_path: Path, shared: Path) -> None:
    """User-mode Linux, which reads the tag from the configuration space and is quick: many files, and real programs."""
    make_tree(shared / "tree", files=60)
    both = tmp_path / "both"
    both.mkdir()
    async with (
        vhost_fs(tmp_path, shared, tag="share", args=["--posix-acl"]) as served,
        vhost_fs(tmp_path, both, tag="both", args=["--cache", "never"], name="both") as other,
        vhost_fs(tmp_path, Path("/"), tag="root", args=["--readonly"], name="root") as root,
        boot_uml(tmp_path, *(UmlDevice(one.socket, FS) for one in (served, other, root)), memory_mib=512) as guest,
    ):
        await mount(guest, "share")
        assert await guest_sums(guest, "/share/tree") == tree_sums(shared / "tree")
        await guest.run("cp -a /share/tree /share/copy && fsio verify /share/v 1000000 2 && fsio mmap /share/m 500000")
        assert (await guest.output("fsio many /share/many 5000", timeout=120)).startswith("ok")
        await trio.to_thread.run_sync(_make_many, shared / "crowd", 100_000)
        assert (await guest.output("fsio many /share/crowd 100000 there", timeout=120)).startswith("ok")
        await _acls(guest, shared)
        await _programs(guest, shared, both)
        await guest.power_off()
    assert tree_sums(shared / "copy") == tree_sums(shared / "tree")


async def test_debian_root(tmp_path: Path) -> None:
    """A whole Debian whose root is the share: it verifies its packages, installs one, makes a user."""
    try:
        cached = debian_root()
    except AssetError as error:
        pytest.skip(str(error))
    root = tmp_path / "root"
    await trio.run_process(["cp", "-a", cached, root])
    shutil.copy(Path(guestlib.__file__).with_name("init.sh"), root / "agent")
    (root / "agent").chmod(0o755)
    async with (
        vhost_fs(tmp_path, root, tag="root", args=["--cache", "always"]) as served,
        boot_uml(tmp_path, UmlDevice(served.socket, FS), memory_mib=512, append="realroot=root") as guest,
    ):
        assert await guest.output("stat -f -c %T /; cat /etc/debian_version") == (
            f"fuseblk\n{(cached / 'etc/debian_version').read_text().strip()}"
        )
        assert await guest.output("dpkg --verify", timeout=120) == ""
        await guest.run(
            """
            set -e
            mkdir -p /tmp/p/DEBIAN /tmp/p/usr/share/p
            printf 'Package: p\\nVersion: 1\\nArchitecture: all\\nMaintainer: M <m@example.org>\\nDescription: d\\n' \\
                >/tmp/p/DEBIAN/control
            seq 1000 >/tmp/p/usr/share/p/numbers
            dpkg-deb -b /tmp/p /var/tmp/p.deb >/dev/null && dpkg -i /var/tmp/p.deb >/dev/null
            useradd -m tester
            su tester -c 'cd && umask 077 && seq 10 >mine && perl -ne "print if /7/" <mine >sevens'
            su tester -c 'touch /etc/no' 2>/dev/null && exit 1
            sync
            """,
            timeout=120,
        )
    assert (root / "usr/share/p/numbers").read_text().splitlines() == [str(n) for n in range(1, 1001)]
    home = root / "home/tester"
    assert (home / "sevens").read_text() == "7\n"
    assert (home / "mine").stat().st_uid == home.stat().st_uid == 1000
    assert "Package: p\nStatus: install ok installed\n" in (root / "var/lib/dpkg/status").read_text()
