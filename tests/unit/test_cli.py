"""The ``vhost`` command as a process: what it prints, what it answers to mistakes, how it starts and ends."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import peerlib
import pytest
import trio

from devices.blk.options import TYPE
from vhost.config import CONNECTION_OPTIONS, SERVER_OPTIONS
from vhost.errors import VhostError
from vhost.frontend import Frontend, Queue
from vhost.testing import connect_to

VHOST = str(Path(sys.executable).with_name("vhost"))
MIB = 1 << 20
CAPABILITIES = {"type": "block", "features": ["read-only", "blk-file"]}


@pytest.fixture
def here() -> Iterator[Path]:
    """A folder short enough for sockets, with an image ``disk`` of 4 MiB."""
    with peerlib.short_folder() as folder:
        (folder / "disk").write_bytes(bytes(4 * MIB))
        yield folder


class Quick:
    """A process that has the command's modules loaded and forks to run it: the same entry point, ten times faster."""

    SERVER = """
import io, json, os, sys
import devices.blk.options, vhost.cli, vhost.cli.install, vhost.cli.run, vhost.cli.serve
for line in sys.stdin:
    args, out, err = json.loads(line)
    pid = os.fork()
    if not pid:
        os.dup2(os.open("/dev/null", os.O_RDONLY), 0)
        for number, path in ((1, out), (2, err)):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), number)
        sys.argv[1:] = args
        status = 70
        try:
            vhost.cli.main()
        except SystemExit as exc:
            status = 0 if exc.code is None else exc.code
        finally:
            sys.stdout.flush()
            os._exit(status)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", self.SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __call__(self, *args: object) -> subprocess.CompletedProcess[str]:
        words = [str(arg) for arg in args]
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with peerlib.short_folder() as folder:
            out, err = folder / "out", folder / "err"
            self.process.stdin.write(json.dumps([words, str(out), str(err)]) + "\n")
            self.process.stdin.flush()
            status = int(self.process.stdout.readline())
            return subprocess.CompletedProcess(words, status, out.read_text(), err.read_text())

    def end(self) -> None:
        """End the process."""
        with self.process:
            pass


@pytest.fixture(scope="module", autouse=True)
def quick() -> Iterator[Quick]:
    global _quick
    _quick = Quick()
    yield _quick
    _quick.end()


_quick: Quick


def vhost(*args: object, **how: object) -> subprocess.CompletedProcess[str]:
    """Run ``vhost ARGS`` to its end; with options of subprocess.run as a program of its own."""
    if not how:
        return _quick(*args)
    options: dict[str, object] = {"capture_output": True, "text": True, "timeout": 60, "check": False, **how}
    return subprocess.run([VHOST, *map(str, args)], **options)  # type: ignore[call-overload,no-any-return]


def refused(*args: object, **how: object) -> str:
    """The one sentence with which ``vhost ARGS`` refuses to start."""
    done = vhost(*args, **how)
    assert done.returncode not in (0, -signal.SIGKILL), done
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    words = done.stderr.strip()
    last = words.splitlines()[-1]
    assert words.count("\n") == 0 or words.startswith("Usage:"), words
    assert re.match(r"(vhost: |Error: )\S", last), last
    return last.partition(": ")[2]


@contextmanager
def serving(
    *args: object, ready: Sequence[Path] = (), status: int | None = 0, pass_fds: Sequence[int] = ()
) -> Iterator[subprocess.Popen[str]]:
    """Run ``vhost ARGS`` until the block ends, then SIGTERM; its last words are in ``.stderr``'s file."""
    log = (ready[0].parent if ready else Path("/tmp")) / f"log-{time.monotonic_ns()}"
    with log.open("w") as out:
        process = subprocess.Popen(
            [VHOST, *map(str, args)], stdin=subprocess.DEVNULL, stdout=out, stderr=out, pass_fds=pass_fds, text=True
        )
    try:
        for path in ready:
            end = time.monotonic() + 60
            while True:
                assert process.poll() is None, f"it ended with {process.returncode}: {log.read_text()}"
                assert time.monotonic() < end, f"{path} does not listen: {log.read_text()}"
                try:
                    connect_to(path, timeout=0.05)().close()
                    break
                except OSError:
                    time.sleep(0.02)
        yield process
        if process.poll() is None:
            process.terminate()
        assert process.wait(15) == status, log.read_text()
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        words = log.read_text()
        log.unlink()
    assert "Traceback" not in words, words


async def read_sector(queue: Queue, sector: int = 0, **how: float) -> bytes:
    out = bytes(8) + sector.to_bytes(8, "little")
    length, (data, state) = await queue.request([out], [512, 1], **how)  # type: ignore[arg-type]
    assert (length, state) == (513, b"\0")
    return data


async def write_sector(queue: Queue, data: bytes, sector: int = 0) -> None:
    out = b"\1" + bytes(7) + sector.to_bytes(8, "little")
    assert await queue.request([out, data], [1], timeout=30) == (1, [b"\0"])


# --- help and capabilities


@pytest.mark.parametrize(
    "command", ["", "blk", "serve", "ctl", "check", "bench", "bench blk", "install-capabilities"], ids=str
)
def test_help(command: str) -> None:
    done = vhost(*command.split(), "--help", stdin=subprocess.DEVNULL)
    assert done.returncode == 0
    assert done.stderr == ""
    assert done.stdout.startswith(f"Usage: {' '.join(['vhost', *command.split()])} ")
    assert "-h, --help" in done.stdout
    if command == "":
        for name in ("blk", "serve", "ctl", "check", "bench", "install-capabilities"):
            assert re.search(rf"^  {name} +\S", done.stdout, re.MULTILINE), f"{name} has no line of help"


def test_every_option_of_a_disk_is_explained() -> None:
    text = vhost("blk", "--help").stdout
    names = re.findall(r"^  (?:-\w, )?(--[\w-]+)", text, re.MULTILINE)
    expected = "socket-path fd connect print-capabilities blk-file store read-only direct num-queues queue-size poll-us"
    expected += " workers cpus iommu serial blk-size lock control metrics log-level"
    assert not {f"--{name}" for name in expected.split()} - set(names)
    for option in (*TYPE.options, *CONNECTION_OPTIONS, *SERVER_OPTIONS):
        assert f"--{option.name}" in names
        assert len(option.help.split()) > 1, option.name


def test_version() -> None:
    done = vhost("--version", stdin=subprocess.DEVNULL)
    assert (done.returncode, done.stderr) == (0, "")
    assert re.fullmatch(r"vhost, version \d+\.\d+\.\d+\n", done.stdout)


@pytest.mark.parametrize(
    "others",
    [
        [],
        ["--socket-path", "/nonexistent/s", "--blk-file", "/nonexistent/disk"],
        ["--socket-path", "/nonexistent/s", "--fd", "7", "--connect", "x"],
        ["--num-queues", "many"],
        ["--of-a-later-version"],
        ["--blk-file"],
    ],
    ids=lambda others: " ".join(others) or "alone",
)
def test_print_capabilities_ignores_all_else(others: list[str]) -> None:
    for args in (["--print-capabilities", *others], [*others, "--print-capabilities"]):
        if others == ["--blk-file"] and args[0] == "--blk-file":
            continue  # there it is the name of a file
        done = vhost("blk", *args)
        assert (done.returncode, done.stderr) == (0, ""), args
        assert json.loads(done.stdout) == CAPABILITIES


def test_install_capabilities(tmp_path: Path) -> None:
    folder, programs = tmp_path / "qemu/vhost-user", tmp_path / "bin"
    done = vhost("install-capabilities", "--dir", folder, "--bin-dir", programs)
    assert (done.returncode, done.stderr) == (0, "")
    for line in done.stdout.splitlines():
        assert Path(line).exists()
    found = json.loads((folder / "60-vhostkit-blk.json").read_text())
    assert found.keys() == {"description", "type", "binary", "features"}
    assert (found["type"], found["features"]) == (CAPABILITIES["type"], CAPABILITIES["features"])
    launcher = Path(found["binary"])
    assert launcher.parent == programs.resolve()
    assert launcher.stat().st_mode & 0o111 == 0o111
    env = {**os.environ, "PATH": f"{Path(VHOST).parent}:{os.environ['PATH']}"}
    said = subprocess.run([launcher, "--print-capabilities"], capture_output=True, text=True, env=env, check=True)
    assert json.loads(said.stdout) == CAPABILITIES
    again = vhost("install-capabilities", "--dir", folder, "--bin-dir", programs)
    assert again.returncode == 0, "installing twice is no mistake"


def test_install_capabilities_says_where_it_cannot_write(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    words = refused("install-capabilities", "--dir", tmp_path / "file/below", "--bin-dir", tmp_path)
    assert str(tmp_path / "file") in words


# --- mistakes


def test_no_command_and_no_such_command() -> None:
    assert vhost().stdout.startswith("Usage:") or vhost().stderr.startswith("Usage:")
    assert "floppy" in refused("floppy")


def test_ways_to_the_front_end_exclude_each_other(here: Path) -> None:
    disk = ["--blk-file", here / "disk"]
    for ways in (
        [],
        ["--socket-path", here / "s", "--fd", "7"],
        ["--socket-path", here / "s", "--connect", here / "t"],
    ):
        assert "one of --socket-path PATH, --fd FDNUM and --connect PATH" in refused("blk", *disk, *ways)
    assert not (here / "s").exists()


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ([], "give one of blk-file PATH and store SPEC"),
        (["--blk-file", "{}/disk", "--store", "null:1M"], "give one of blk-file PATH and store SPEC"),
        (["--blk-file", "{}/none"], "none does not exist; make it first: truncate"),
        (["--blk-file", "{}"], "is a directory"),
        (["--blk-file", "/dev/null"], "neither a regular file nor a block device"),
        (["--blk-file", "{}/pipe"], "neither a regular file nor a block device"),
        (["--blk-file", "{}/empty"], "is empty; make it as big as the disk is to be"),
        (["--blk-file", "{}/tiny"], "is empty; make it as big"),
        (["--store", "floppy:1M"], "no kind 'floppy'; there are raw, memory, null"),
        (["--store", "memory"], "is not KIND:WHERE"),
        (["--store", "memory:lots"], "'lots' is not a size"),
        (["--store", "memory:0"], ""),
        (["--store", "null:1M", "--direct"], "only raw files"),
        (["--store", "nbd+unix:///x?socket=/nonexistent/s"], "nbd+unix:///x?socket=/nonexistent/s"),
        (["--blk-file", "{}/disk", "--num-queues", "0"], "0 is less than 1"),
        (["--blk-file", "{}/disk", "--num-queues", "257"], "257 is more than 256"),
        (["--blk-file", "{}/disk", "--queue-size", "65536"], "more than 32768"),
        (["--blk-file", "{}/disk", "--blk-size", "1000"], "blk_size is 1000; give a power of two"),
        (["--blk-file", "{}/disk", "--blk-size", "huge"], "'huge' is not a size"),
        (["--blk-file", "{}/disk", "--serial", "x" * 21], "longer than 20"),
        (["--blk-file", "{}/disk", "--iops", "fast"], "'fast' is not a rate"),
        (["--blk-file", "{}/disk", "--lock", "maybe"], "maybe"),
        (["--blk-file", "{}/disk", "--cpus", "a-b"], "'a-b' is not a list of CPUs"),
        (["--blk-file", "{}/disk", "--cpus", "4095"], "4095"),
        (["--blk-file", "{}/disk", "--metrics", "here"], "'here' is not HOST:PORT"),
        (["--blk-file", "{}/disk", "--poll-us", "-2"], "-2 is less than -1"),
        (["--blk-file", "{}/disk", "--socket-mode", "999"], "not an octal mode"),
        (["--blk-file", "{}/disk", "--flavour", "x"], "--flavour"),
    ],
    ids=lambda value: " ".join(value)[:60] if isinstance(value, list) else "",
)
def test_a_disk_that_cannot_be(here: Path, args: list[str], words: str) -> None:
    (here / "empty").touch()
    (here / "tiny").write_bytes(b"x" * 100)
    os.mkfifo(here / "pipe")
    given = [arg.format(here) for arg in args]
    said = refused("blk", "--socket-path", here / "s", *given)
    assert words in said
    assert not (here / "s").exists(), "a back-end that did not start leaves no socket"


def without_privileges(*command: object) -> subprocess.CompletedProcess[str]:
    """Run as somebody whom file permissions stop."""
    words = [str(word) for word in command]
    if os.geteuid() == 0:
        if shutil.which("setpriv") is None:
            pytest.skip("root is not stopped by permissions, and setpriv (util-linux) is not there to change that")
        words = ["setpriv", "--bounding-set=-dac_override,-dac_read_search", *words]
    return subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)


def test_no_permission(here: Path) -> None:
    disk = here / "disk"
    locked = here / "locked"
    locked.mkdir(mode=0o500)
    try:
        done = without_privileges(VHOST, "blk", "--socket-path", locked / "s", "--blk-file", disk)
        assert done.returncode == 1
        assert "no permission to create a file in" in done.stderr
        assert done.stderr.count("\n") == 1
        disk.chmod(0o400)
        done = without_privileges(VHOST, "blk", "--socket-path", here / "s", "--blk-file", disk)
        assert done.returncode == 1
        assert "may not be read and written; --read-only may do" in done.stderr
        disk.chmod(0)
        done = without_privileges(VHOST, "blk", "--socket-path", here / "s", "--blk-file", disk, "--read-only")
        assert done.returncode == 1
        assert "may not be read" in done.stderr
        assert done.stderr.count("\n") == 1
    finally:
        locked.chmod(0o700)


def test_sockets_that_cannot_be(here: Path) -> None:
    disk = ["--blk-file", here / "disk"]
    assert "does not exist; create it first" in refused("blk", "--socket-path", here / "no/s", *disk)
    assert "too long" in refused("blk", "--socket-path", here / ("x" * 200), *disk)
    (here / "file").write_text("precious")
    assert "a file that is no socket is in the way" in refused("blk", "--socket-path", here / "file", *disk)
    assert (here / "file").read_text() == "precious"
    assert "file descriptor 99 is not open" in refused("blk", "--fd", "99", *disk)
    with (here / "file").open() as file:
        words = refused("blk", "--fd", file.fileno(), *disk, pass_fds=[file.fileno()])
        assert "is not a socket" in words
    with socket.socket(socket.AF_INET) as sock:
        assert "not a Unix stream socket" in refused("blk", "--fd", sock.fileno(), *disk, pass_fds=[sock.fileno()])
    with socket.socket(socket.AF_UNIX) as sock:
        words = refused("blk", "--fd", sock.fileno(), *disk, pass_fds=[sock.fileno()])
        assert "neither listening nor connected" in words


def test_a_socket_in_use_and_a_dead_one(here: Path) -> None:
    path = here / "s"
    (here / "disk2").write_bytes(bytes(MIB))
    with serving("blk", "--socket-path", path, "--blk-file", here / "disk", ready=[path]):
        words = refused("blk", "--socket-path", path, "--blk-file", here / "disk2")
        assert "another program is listening there; stop it or choose another path" in words
        connect_to(path)().close()  # the first is none the worse
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    assert path.is_socket()
    with serving("blk", "--socket-path", path, "--blk-file", here / "disk", ready=[path]):
        pass


# --- locks


def test_an_image_in_use_by_a_second_server(here: Path) -> None:
    disk = here / "disk"
    with serving("blk", "--socket-path", here / "s", "--blk-file", disk, ready=[here / "s"]):
        words = refused("blk", "--socket-path", here / "t", "--blk-file", disk)
        assert str(disk) in words
        assert "another program" in words
        assert "another program" in refused("blk", "--socket-path", here / "t", "--blk-file", disk, "--read-only")
        with serving("blk", "--socket-path", here / "t", "--blk-file", disk, "--lock", "off", ready=[here / "t"]):
            pass
    # readers may be many
    only = ["--blk-file", disk, "--read-only"]
    with (
        serving("blk", "--socket-path", here / "s", *only, ready=[here / "s"]),
        serving("blk", "--socket-path", here / "t", *only, ready=[here / "t"]),
    ):
        assert "another program" in refused("blk", "--socket-path", here / "u", "--blk-file", disk)
    # and two that say so
    both = ["--blk-file", disk, "--lock", "shared"]
    with (
        serving("blk", "--socket-path", here / "s", *both, ready=[here / "s"]),
        serving("blk", "--socket-path", here / "t", *both, ready=[here / "t"]),
    ):
        assert "another program" in refused("blk", "--socket-path", here / "u", "--blk-file", disk)


def needs(program: str) -> str:
    path = shutil.which(program)
    if path is None:
        pytest.skip(f"{program} is not installed (Debian package qemu-utils)")
    return path


def test_an_image_in_use_by_qemu(here: Path) -> None:
    """Both ways round: QEMU's lock stops us, ours stops QEMU."""
    disk, nbd, program = here / "disk", here / "nbd", needs("qemu-nbd")
    daemon = subprocess.Popen([program, "-f", "raw", "-k", str(nbd), "--persistent", str(disk)])
    try:
        end = time.monotonic() + 60
        while not nbd.exists() and time.monotonic() < end:
            time.sleep(0.02)
        words = refused("blk", "--socket-path", here / "s", "--blk-file", disk)
        assert "another program (a second server, or QEMU)" in words
    finally:
        daemon.terminate()
        daemon.wait()
    with serving("blk", "--socket-path", here / "s", "--blk-file", disk, ready=[here / "s"]):
        done = subprocess.run(
            [needs("qemu-io"), "-f", "raw", "-c", "write 0 4k", str(disk)], capture_output=True, text=True, check=False
        )
        assert "lock" in done.stderr + done.stdout, done
    done = subprocess.run(
        [needs("qemu-io"), "-f", "raw", "-c", "read 0 4k", str(disk)], capture_output=True, text=True, check=True
    )
    assert "read 4096/4096" in done.stdout, "the lock ends with the server"


def test_an_image_in_use_by_qemu_io(here: Path) -> None:
    disk = here / "disk"
    shell = subprocess.Popen(
        [needs("qemu-io"), "-f", "raw", str(disk)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with shell:
        assert shell.stdin is not None
        assert shell.stdout is not None
        shell.stdin.write("length\n")
        shell.stdin.flush()
        assert "4 MiB" in shell.stdout.readline()
        assert "another program" in refused("blk", "--socket-path", here / "s", "--blk-file", disk)
        shell.stdin.close()
        shell.stdout.read()


# --- starting and ending


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_at_once(here: Path, number: signal.Signals) -> None:
    path, control = here / "s", here / "ctl"
    command = ["blk", "--socket-path", path, "--blk-file", here / "disk", "--control", control]
    with serving(*command, ready=[path, control]) as process:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(control.stat().st_mode) == 0o600
        for name in ("0", "1", "2"):
            assert Path(f"/proc/{process.pid}/fd/{name}").exists()
        assert os.getpgid(process.pid) == os.getpgid(0), "a back-end does not daemonize"
        start = time.monotonic()
        process.send_signal(number)
        assert process.wait(10) == 0
        assert time.monotonic() - start < 4.5  # of 5 that are left to requests in flight
        assert not path.exists()
        assert not control.exists()


async def test_a_signal_under_load(here: Path) -> None:
    """What the front-end was told is done is done; the rest stays in its ring. The process does not wait for it all."""
    path = here / "s"
    command = ["blk", "--socket-path", path, "--blk-file", here / "disk", "--write-iops", 100]
    finished: dict[int, bytes] = {}

    async def one(queue: Queue, sector: int) -> None:
        data = os.urandom(512)
        with suppress(VhostError):
            await write_sector(queue, data, sector)
            finished[sector] = data

    with serving(*command, ready=[path]) as process:
        async with Frontend.connect(path) as frontend:
            await frontend.start(size=1024)
            with trio.fail_after(60):
                async with trio.open_nursery() as nursery:
                    for sector in range(300):
                        nursery.start_soon(one, frontend.queues[0], sector)
                    while len(finished) < 10:
                        await trio.sleep(0.01)
                    process.terminate()
                    await frontend.link.gone.wait()
        assert await trio.to_thread.run_sync(process.wait, 15) == 0
    assert 10 <= len(finished) < 300
    image = (here / "disk").read_bytes()
    assert all(image[512 * sector :][:512] == data for sector, data in finished.items())


async def test_socket_mode_and_name(here: Path) -> None:
    path = here / "s"
    command = ["blk", "--socket-path", path, "--store", "memory:1M", "--socket-mode", "660", "--name", "root"]
    with serving(*command, "--control", here / "c", ready=[path, here / "c"]):
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
        assert list(json.loads(vhost("ctl", "-s", here / "c", "--json", "status").stdout)) == ["root"]


async def test_fd_that_listens(here: Path) -> None:
    """As a service manager with socket activation passes it; one front-end after another."""
    path = here / "s"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        with serving("blk", "--fd", listener.fileno(), "--store", "memory:1M", pass_fds=[listener.fileno()]) as process:
            for _ in range(2):
                async with Frontend.connect(path, timeout=30) as frontend:
                    await frontend.start()
                    assert await read_sector(frontend.queues[0]) == bytes(512)
            process.terminate()
            assert await trio.to_thread.run_sync(process.wait, 10) == 0
            assert path.exists(), "a socket that was given is not ours to remove"


async def test_fd_that_is_connected(here: Path) -> None:
    """As a VMM that starts its back-end passes it; the back-end ends with its front-end."""
    ours, theirs = socket.socketpair()
    with theirs:
        command = ["blk", "--fd", theirs.fileno(), "--blk-file", here / "disk"]
        with serving(*command, pass_fds=[theirs.fileno()]) as process:
            theirs.close()
            async with Frontend.connect(ours, timeout=30) as frontend:
                await frontend.start()
                assert await read_sector(frontend.queues[0]) == bytes(512)
                assert process.poll() is None
            assert await trio.to_thread.run_sync(process.wait, 10) == 0


async def test_client_mode_connects_again(here: Path) -> None:
    path = here / "s"
    with serving("blk", "--connect", path, "--store", "memory:1M") as process:
        for _ in range(2):
            with trio.fail_after(60):
                async with Frontend.accept(path) as frontend:
                    await frontend.start()
                    assert await read_sector(frontend.queues[0]) == bytes(512)
        assert process.poll() is None


def test_few_descriptors_are_enough_to_start(here: Path) -> None:
    """The soft limit is raised to the hard one; many queues do not fail for descriptors."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    path = here / "s"
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(256, hard), hard))
    try:
        command = ["blk", "--socket-path", path, "--store", "null:1G", "--num-queues", 64]
        with serving(*command, ready=[path]) as process:
            limits = Path(f"/proc/{process.pid}/limits").read_text()
            found = re.search(r"Max open files +(\d+) +(\d+)", limits)
            assert found is not None
            assert found[1] == found[2]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("style", ["text", "json"])
def test_log_lines(here: Path, style: str) -> None:
    path = here / "s"
    command = [VHOST, "blk", "--socket-path", path, "--store", "memory:1M", "--log-level", "debug"]
    with subprocess.Popen(
        [*map(str, command), "--log-style", style], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        end = time.monotonic() + 60
        while time.monotonic() < end:
            try:
                connect_to(path, timeout=0.05)().close()
                break
            except OSError:
                time.sleep(0.02)
        time.sleep(0.2)
        process.terminate()
        out, err = process.communicate(timeout=20)
    assert out == "", "logs go to stderr"
    assert err
    for line in err.splitlines():
        if style == "json":
            entry = json.loads(line)
            assert entry.keys() >= {"time", "level", "logger", "message"}
        else:
            assert re.match(r"(\d\d:\d\d:\d\d )?vhost: (debug|info|warning|error): ", line), line


# --- many devices, control socket, metrics


@contextmanager
def fleet(here: Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Three disks in one process by ``vhost serve``; the process and its metrics port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    (here / "fleet.toml").write_text(
        f"""
        [server]
        control = "{here}/ctl"
        metrics = "127.0.0.1:{port}"
        workers = 2

        [[device]]
        type = "blk"
        socket-path = "{here}/a.sock"
        blk-file = "{here}/disk"
        num-queues = 2

        [[device]]
        type = "blk"
        name = "scratch"
        socket-path = "{here}/b.sock"
        store = "memory:8M"
        iops = "5k"

        [[device]]
        type = "blk"
        name = "nothing"
        socket-path = "{here}/c.sock"
        store = "null:1G"
        read-only = true
        """
    )
    ready = [here / name for name in ("a.sock", "b.sock", "c.sock", "ctl")]
    with serving("serve", here / "fleet.toml", ready=ready) as process:
        yield process, port
    assert not [path for path in ready if path.exists()]


def ctl(here: Path, *words: str) -> object:
    """The result of ``vhost ctl``."""
    done = vhost("ctl", "--socket", here / "ctl", "--json", *words)
    assert (done.returncode, done.stderr) == (0, ""), done
    return json.loads(done.stdout)


def test_serve_check(here: Path) -> None:
    (here / "x.toml").write_text(f'[[device]]\ntype = "blk"\nsocket-path = "{here}/s"\nstore = "null:1M"\n')
    done = vhost("serve", "--check", here / "x.toml")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"s: blk at {here}/s\n", "")
    (here / "x.toml").write_text(f'[[device]]\ntype = "blk"\nsocket-path = "{here}/s"\nstorre = "null:1M"\n')
    for more in ([], ["--check"]):
        words = refused("serve", *more, here / "x.toml")
        assert "x.toml: device 1" in words
        assert "no option 'storre'" in words
    assert "none.toml: No such file" in refused("serve", here / "none.toml")


def test_serve_starts_all_or_nothing(here: Path) -> None:
    (here / "x.toml").write_text(
        f'[[device]]\ntype = "blk"\nsocket-path = "{here}/a"\nstore = "null:1M"\n'
        f'[[device]]\ntype = "blk"\nsocket-path = "{here}/b"\nblk-file = "{here}/none"\n'
    )
    assert "none does not exist" in refused("serve", here / "x.toml")
    assert not (here / "a").exists()
    assert not (here / "b").exists()


async def test_serve_three_disks(here: Path) -> None:
    (here / "disk").write_bytes(b"\x11" * MIB + bytes(3 * MIB))
    with fleet(here):
        async with (
            Frontend.connect(here / "a.sock") as a,
            Frontend.connect(here / "b.sock") as b,
            Frontend.connect(here / "c.sock") as c,
        ):
            for frontend, size in ((a, 4 * MIB), (b, 8 * MIB), (c, 1024 * MIB)):
                assert int.from_bytes(await frontend.get_config(0, 8), "little") == size // 512
                await frontend.start()
            assert a.num_queues == 2
            assert await read_sector(a.queues[0]) == b"\x11" * 512
            await write_sector(b.queues[0], b"\x22" * 512)
            assert await read_sector(b.queues[0]) == b"\x22" * 512
            length, (state,) = await c.queues[0].request([b"\1" + bytes(15), bytes(512)], [1])
            assert (length, state) != (1, b"\0"), "nothing is written to a read-only disk"


async def test_control(here: Path) -> None:
    def run(*words: str) -> object:
        return ctl(here, *words)

    with fleet(here):
        async with Frontend.connect(here / "a.sock") as frontend:
            await frontend.start(queues=2)
            await write_sector(frontend.queues[0], b"\x33" * 512)
            to_thread = trio.to_thread.run_sync
            status = await to_thread(run, "status")
            assert isinstance(status, dict)
            assert status.keys() == {"a", "scratch", "nothing"}
            assert (status["a"]["connected"], status["scratch"]["connected"]) == (True, False)
            assert status["a"]["pid"] == os.getpid()
            assert [ring["index"] for ring in status["a"]["rings"]] == [0, 1]
            # the guest hears of a disk that grows
            async with trio.open_nursery() as nursery:
                nursery.start_soon(frontend.config_changed)
                assert await to_thread(run, "resize", "device=a", "size=16M") == 16 * MIB
            assert int.from_bytes(await frontend.get_config(0, 8), "little") == 16 * MIB // 512
            assert (here / "disk").stat().st_size == 16 * MIB
            # limits hold, and go again
            limits = await to_thread(run, "a.set_limits", "read_iops=20")
            assert isinstance(limits, dict)
            assert limits["read_iops"] == 20
            start = trio.current_time()
            for _ in range(6):
                await read_sector(frontend.queues[0])
            assert trio.current_time() - start > 0.15
            await to_thread(run, "a.set_limits")
            # a disk at rest takes nothing
            await to_thread(run, "a.quiesce")
            async with trio.open_nursery() as nursery:
                nursery.start_soon(write_sector, frontend.queues[0], b"\x44" * 512, 8)
                await trio.sleep(0.3)
                assert frontend.queues[0].in_flight == 1
                assert (here / "disk").read_bytes()[8 * 512 :][:512] == bytes(512)
                info = await to_thread(run, "a.info")
                assert isinstance(info, dict)
                assert info["quiesced"]
                await to_thread(run, "a.resume")
            assert (here / "disk").read_bytes()[8 * 512 :][:512] == b"\x44" * 512
            help_ = await to_thread(run, "help")
            assert isinstance(help_, dict)
            assert {"status", "metrics", "a.resize", "scratch.set_limits", "nothing.quiesce"} <= help_.keys()
            assert all(entry["help"] for entry in help_.values()), "every method says what it does"


def test_control_for_people(here: Path) -> None:
    """Tables and plain text without --json; mistakes in a sentence."""
    with fleet(here):
        listed = vhost("ctl", "-s", here / "ctl", env={**os.environ, "COLUMNS": "200"})
        assert listed.returncode == 0
        assert "a.resize" in listed.stdout
        assert "size: " in listed.stdout
        text = vhost("ctl", "-s", here / "ctl", "metrics")
        assert "# TYPE vhost_blk_" in text.stdout
        for words, said in (
            (["explode"], "no method 'explode'; 'help' lists them"),
            (["resize", "size=1G"], "say which device: a, nothing, scratch"),
            (["resize", "device=b", "size=1G"], "no device 'b'"),
            (["a.resize", "size=1M"], "only grows"),
            (["a.resize", "size=huge"], "not a size"),
            (["a.resize", "speed=1"], "no parameter 'speed'"),
            (["a.set_limits", "iops=-1"], ""),
            (["a.resize", "size"], "'size' is not NAME=VALUE"),
        ):
            assert said in refused("ctl", "-s", here / "ctl", *words)
        shrink = vhost("ctl", "-s", here / "ctl", "status")
        assert shrink.returncode == 0
    assert "no server answers at" in refused("ctl", "-s", here / "ctl", "status")
    assert "--socket" in refused("ctl", "status")


RING_SAMPLES = ("requests_total", "notifications_total", "notifications_held_total", "in_flight", "size")


async def test_metrics_over_http(here: Path) -> None:
    def scrape(port: int, path: str = "/metrics") -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
            assert answer.status == 200
            text: str = answer.read().decode()
            return text

    with fleet(here) as (_, port):
        async with Frontend.connect(here / "b.sock") as frontend:
            await frontend.start()
            for _ in range(7):
                await read_sector(frontend.queues[0])
            text = await trio.to_thread.run_sync(scrape, port)
        samples = {
            line.rpartition(" ")[0]: float(line.rpartition(" ")[2])
            for line in text.splitlines()
            if line and not line.startswith("#")
        }
        assert samples['vhost_connected{device="scratch"}'] == 1
        assert samples['vhost_connected{device="a"}'] == 0
        reads = [
            value
            for name, value in samples.items()
            if 'device="scratch"' in name and "read" in name and name.startswith("vhost_blk_requests_total")
        ]
        assert reads == [7]
        assert samples['vhost_blk_capacity_bytes{device="scratch"}'] == 8 * MIB
        ring = {name: samples[f'vhost_ring_{name}{{device="scratch",ring="0"}}'] for name in RING_SAMPLES}
        assert 1 <= ring.pop("notifications_total") <= 7
        assert ring == {"requests_total": 7, "notifications_held_total": 0, "in_flight": 0, "size": 128}
        assert not any(name.startswith("vhost_ring") and 'device="a"' in name for name in samples), "nobody is there"
        for name in samples:
            assert re.fullmatch(r'vhost_[a-z_]+\{((device|worker)="[\w-]+"|[a-z]+="[^"]*"|,)+\}', name), name


def test_metrics_port_in_use(here: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        where = f"127.0.0.1:{taken.getsockname()[1]}"
        words = refused("blk", "--socket-path", here / "s", "--store", "null:1M", "--metrics", where)
        assert where in words
        assert not (here / "s").exists()


# --- check and bench against a back-end


def test_check_and_bench(here: Path) -> None:
    assert vhost("check", "blk", "--socket-path", here / "s").returncode == 2
    with serving("blk", "--socket-path", here / "s", "--blk-file", here / "disk", ready=[here / "s"]):
        done = vhost("check", "blk", "--socket-path", here / "s", "--only", "GET_CONFIG")
        assert done.returncode == 0, done.stdout
        assert re.search(r"[1-9]\d* pass", done.stdout)
        quick = ["--runtime", "0.3", "--warmup", "0.1", "--iodepth", "4"]
        done = vhost("bench", "blk", "--socket-path", here / "s", *quick, "--json", here / "result")
        assert done.returncode == 0, done.stderr
        json.loads((here / "result").read_text())
        assert "write-ok" in refused("bench", "blk", "--socket-path", here / "s", "--rw", "randwrite", *quick)
