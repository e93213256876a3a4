"""Networks for guests: back-ends and peers, namespaces, and traffic whose every byte both ends know (netio)."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import shutil
import socket
import subprocess
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import trio

from guestlib import assets, trixie
from guestlib.agent import Result
from guestlib.backends import Backend, vhost, vhost_program
from guestlib.debian import AssetError
from guestlib.process import GuestError, Proc, listening, started, until

#: virtio's number of a network card
NET = 1
#: where netio listens, in guests and in namespaces
PORT = 7000
MIB = 1 << 20
_count = itertools.count(1)


class Guest(Protocol):
    """What a QEMU and a User-mode Linux guest have in common."""

    async def run(self, script: str, *, timeout: float = 60, check: bool = True) -> Result:
        """Run a shell script in the guest; see Agent.run."""

    async def output(self, script: str, *, timeout: float = 60) -> str:
        """Its output."""


def mac(number: int) -> str:
    """A locally administered address for guest ``number``, 1 to 255."""
    return f"52:54:00:00:01:{number:02x}"


def free_port() -> int:
    """A TCP port of the host that nobody listens on now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


# --- back-ends


@contextlib.asynccontextmanager
async def vhost_net(
    folder: Path,
    *args: str | Path,
    socket: Path | None = None,
    name: str = "vhost-net",
    clean: bool = True,
    namespace: Namespace | None = None,
) -> AsyncIterator[Backend]:
    """``vhost net`` with ``args`` behind its socket, in ``namespace``; see backends.vhost."""
    socket = socket or folder / f"{name}.sock"
    if namespace is None:
        async with vhost(folder, [socket], "net", "--socket-path", socket, *args, name=name, clean=clean) as backend:
            yield backend
        return
    command = namespace.command(vhost_program(), "net", "--socket-path", socket, *args)
    async with started(name, command, folder / f"{name}.log", env={"PYTHONUNBUFFERED": "1"}) as proc:
        await until(lambda: listening(socket, proc.pid), proc, f"listening on {socket.name}")
        yield Backend(proc, socket)
        if clean:
            status = await proc.terminate()
            if status != 0:
                raise proc.fail(f"SIGTERM gave status {status}, not 0")


@contextlib.asynccontextmanager
async def vhost_serve(
    folder: Path, config: str, sockets: Sequence[Path], *, name: str = "vhost-serve", clean: bool = True
) -> AsyncIterator[Backend]:
    """``vhost serve`` with the configuration file ``config`` until it listens on all of ``sockets``."""
    path = folder / f"{name}.toml"
    path.write_text(config)
    async with vhost(folder, sockets, "serve", path, name=name, clean=clean) as backend:
        yield backend


@contextlib.asynccontextmanager
async def passt(folder: Path, *args: str, socket: Path | None = None, name: str = "passt") -> AsyncIterator[Backend]:
    """passt as a vhost-user back-end. Raises: AssetError where there is none that can."""
    command = trixie.passt()
    socket = socket or folder / f"{name}.sock"
    words: list[str | Path] = [*command, "--vhost-user", "-f", "-s", socket, "--runas", "0", *args]
    async with started(name, words, folder / f"{name}.log") as proc:
        await until(lambda: listening(socket), proc, f"listening on {socket.name}")
        yield Backend(proc, socket)


# --- the host's side


class Namespace:
    """A network namespace of the host."""

    def __init__(self, name: str) -> None:
        self.name = name

    def command(self, *words: str | Path) -> list[str]:
        """The command line that runs ``words`` in it."""
        return [_ip(), "netns", "exec", self.name, *map(str, words)]

    def run(self, *words: str | Path) -> str:
        """Run ``words`` in it, a short command; its output. Raises: GuestError with what it said."""
        done = subprocess.run(self.command(*words), capture_output=True, text=True, check=False, timeout=60)
        if done.returncode != 0:
            raise GuestError(f"{' '.join(map(str, words))}: status {done.returncode}\n{done.stdout}{done.stderr}")
        return done.stdout.strip()


def _ip() -> str:
    path = shutil.which("ip", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if path is None:
        raise AssetError("ip is not installed; install the Debian package iproute2")
    return path


@contextlib.contextmanager
def namespace() -> Iterator[Namespace]:
    """A fresh network namespace with its loopback up. Raises: AssetError where this process may make none."""
    name = f"vhk-{os.getpid()}-{next(_count)}"
    done = subprocess.run([_ip(), "netns", "add", name], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise AssetError(f"no network namespace can be made here: {done.stderr.strip()}")
    try:
        space = Namespace(name)
        space.run("ip", "link", "set", "lo", "up")
        yield space
    finally:
        subprocess.run([_ip(), "netns", "del", name], check=False)


@contextlib.asynccontextmanager
async def listener(folder: Path, port: int = PORT, *, space: Namespace | None = None) -> AsyncIterator[Proc]:
    """``netio listen`` on the host, or in a namespace of it."""
    number = next(_count)
    command: list[str | Path] = [assets.netio(), "listen", str(port)]
    log = folder / f"netio{number}.log"
    async with started(f"netio {number}", space.command(*command) if space else command, log) as proc:
        await until(lambda: "listening" in log.read_text(), proc, "listening")
        yield proc


async def host_netio(*words: str, space: Namespace | None = None, timeout: float = 60) -> str:
    """netio on the host, to its end; what it printed. Raises: GuestError when bytes were wrong or lost."""
    command = [str(assets.netio()), *words]
    with trio.move_on_after(timeout):
        done = await trio.run_process(
            space.command(*command) if space else command, capture_stdout=True, capture_stderr=True, check=False
        )
        said = (done.stdout + done.stderr).decode()
        if done.returncode != 0:
            raise GuestError(f"netio {' '.join(words)}: status {done.returncode}\n{said}")
        return said
    raise GuestError(f"netio {' '.join(words)} did not end within {timeout:g} s")


@contextlib.asynccontextmanager
async def http_server(content: bytes) -> AsyncIterator[int]:
    """A server on the host's loopback that answers every GET with ``content``; its port."""

    async def answer(stream: trio.SocketStream) -> None:
        async with stream:
            with contextlib.suppress(trio.BrokenResourceError):
                asked = b""
                while b"\r\n\r\n" not in asked and (more := await stream.receive_some()):
                    asked += more
                head = f"HTTP/1.0 200 OK\r\nContent-Length: {len(content)}\r\nConnection: close\r\n\r\n"
                await stream.send_all(head.encode() + content)

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(trio.serve_tcp, answer, 0)
        yield int(listeners[0].socket.getsockname()[1])
        nursery.cancel_scope.cancel()


# --- in a guest


@dataclass(frozen=True)
class Datagrams:
    """What became of a UDP run."""

    sent: int
    received: int
    doubled: int


async def address(guest: Guest, *addresses: str, mtu: int = 1500, device: str = "eth0") -> None:
    """Give ``device`` its addresses (with prefix length) and bring it up, until it has a carrier."""
    adds = "\n".join(f"ip addr add {each} dev {device}" for each in addresses)
    wait = f"for i in $(seq 100); do grep -q 1 /sys/class/net/{device}/carrier && exit 0; sleep 0.05; done; exit 9"
    await guest.run(f"set -e\nip link set {device} mtu {mtu}\nip link set {device} up\n{adds}\n{wait}")


async def dhcp(guest: Guest, device: str = "eth0") -> str:
    """Ask for an address and take it; which."""
    await guest.run(f"ip link set {device} up; udhcpc -i {device} -q -n -f -t 10 -T 1 2>&1", timeout=60)
    said = await guest.output(f"ip -4 addr show dev {device}")
    found = re.search(r"inet ([0-9.]+)/", said)
    assert found, said
    return found[1]


async def advertised_ipv6(guest: Guest, device: str = "eth0") -> str:
    """The address that the card made for itself from a router's advertisement, once it may be used."""
    return await _ipv6(guest, device, r"inet6 (\S+)/.*\bdynamic\b")


async def link_local(guest: Guest, device: str = "eth0") -> str:
    """The card's IPv6 link-local address, once it may be used."""
    return await _ipv6(guest, device, r"inet6 (fe80:\S+)/")


async def _ipv6(guest: Guest, device: str, pattern: str) -> str:
    for _ in range(100):
        said = await guest.output(f"ip -6 addr show dev {device}")
        found = re.search(pattern, said)
        if found and "tentative" not in said:
            return found[1]
        await trio.sleep(0.1)
    raise GuestError(f"{device} has no address like '{pattern}':\n{said}")


async def ping(guest: Guest, host: str, *, size: int = 56, count: int = 3) -> None:
    """All ``count`` echo requests of ``size`` bytes are answered."""
    program = "ping6" if ":" in host else "ping"
    said = await guest.output(f"{program} -c {count} -i 0.1 -W 5 -s {size} {host}", timeout=60)
    assert f" {count} packets received" in said, said


async def listen(guest: Guest, port: int = PORT) -> None:
    """``netio listen`` in the background of the guest."""
    await guest.run(
        f"netio listen {port} >/tmp/netio.{port} 2>&1 </dev/null &\n"
        f"while ! grep -q listening /tmp/netio.{port}; do sleep 0.05; done"
    )


async def tcp(
    guest: Guest, host: str, *, up: int = 4 * MIB, down: int = 4 * MIB, port: int = PORT, timeout: float = 60
) -> None:
    """Bytes there and back at once, every one of them right at both ends."""
    said = await guest.output(f"netio tcp {host} {port} {up} {down}", timeout=timeout)
    assert f"sent={up} got={down} bad=0" in said, said


async def udp(
    guest: Guest, host: str, count: int, size: int, *, segment: int = 1, pause_us: int = 0, port: int = PORT
) -> Datagrams:
    """Datagrams there; what arrived, none of it wrong."""
    said = await guest.output(f"netio udp {host} {port} {count} {size} {segment} {pause_us}", timeout=60)
    found = re.search(r"sent=(\d+) received=(\d+) bad=0 doubled=(\d+)", said)
    assert found, said
    return Datagrams(*map(int, found.groups()))


async def offloads(guest: Guest, on: bool, device: str = "eth0") -> None:
    """Checksums, segmentation and joining by the card, all on or all off."""
    word = "on" if on else "off"
    await guest.run(f"ethtool -K {device} tx {word} sg {word} tso {word} gso {word} gro {word} 2>&1")


async def iperf3(guest: Guest, host: str, *words: str, seconds: float = 1) -> dict[str, Any]:
    """iperf3 in the guest against a server at ``host``; the ``end`` of its report. Its data is not looked at."""
    said = await guest.output(f"iperf3 -J -c {host} -t {seconds} {' '.join(words)}", timeout=60)
    report: dict[str, Any] = json.loads(said)
    assert "error" not in report, report["error"]
    end: dict[str, Any] = report["end"]
    return end


class Stream:
    """A TCP connection of ``guest`` to a ``netio listen`` at ``host``, verified both ways until it is stopped."""

    def __init__(self, guest: Guest, host: str, *, port: int = PORT, pause_us: int = 5000) -> None:
        self.guest = guest
        self._words = f"netio tcp {host} {port} - - {pause_us}"
        self._log = f"/tmp/stream.{next(_count)}"

    async def start(self) -> None:
        """Start it and wait until bytes have come back."""
        await self.guest.run(f"{self._words} >{self._log} 2>&1 </dev/null & echo $! >{self._log}.pid")
        await self.beyond(0)

    async def moved(self) -> int:
        """Bytes that came back so far."""
        said = await self.guest.output(f"tail -n 1 {self._log}")
        if not said:
            return 0  # not even connected
        if not said.startswith("moved "):
            raise GuestError(f"the stream ended: {await self.guest.output(f'tail -n 5 {self._log}')}")
        return int(said.split()[1])

    async def beyond(self, count: int, timeout: float = 60) -> int:
        """Wait until more than ``count`` bytes have come back; how many."""
        now = 0
        with trio.move_on_after(timeout):
            while (now := await self.moved()) <= count:
                await trio.sleep(0.1)
            return now
        raise GuestError(f"the stream stands at {now} bytes, wanted more than {count} within {timeout:g} s")

    async def goes_on(self, timeout: float = 60) -> int:
        """Wait until half a MiB more has come back; how many bytes in all."""
        return await self.beyond(await self.moved() + MIB // 2, timeout)

    async def stop(self) -> int:
        """End it: all bytes right at both ends; how many came back."""
        script = f"""
            kill -TERM $(cat {self._log}.pid)
            while kill -0 $(cat {self._log}.pid) 2>/dev/null; do sleep 0.1; done
            tail -n 1 {self._log}
        """
        said = await self.guest.output(script, timeout=60)
        found = re.search(r"got=(\d+) bad=0", said)
        assert found, f"the stream ended with: {await self.guest.output(f'tail -n 5 {self._log}')}"
        return int(found[1])
