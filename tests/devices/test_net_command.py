"""``vhost net`` as a process: what it answers to mistakes, the control socket, metrics, a configuration file."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import peerlib
import pytest
import trio
import trio.testing
from netrig import BASE, frame, free_port, guest

from devices.net import Net, NetFeature
from devices.net.options import TYPE
from vhost.plugin import ConfigError

VHOST = str(Path(sys.executable).with_name("vhost"))


def vhost(*args: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([VHOST, *map(str, args)], capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--vlan", "5"], "option vlan is for switch only"),
        (["--echo", "--null"], "echo and null were given"),
        (["--echo", "--mac", "01:00:00:00:00:01"], "01:00:00:00:00:01 is a multicast address"),
        (["--echo", "--mac", "52:54:00"], "'52:54:00' is not a MAC address such as 52:54:00:12:34:56"),
        (["--echo", "--forward", "tcp::1-:2"], "option forward is for user only"),
        (["--echo", "--bridge", "br0"], "option bridge is for tap and tap-fd only"),
        (["--source", "13"], "a frame of 13 bytes cannot be"),
        (["--tap-fd", "seven"], "no number of a descriptor"),
        (["--tap-fd", "99"], "tap-fd 99"),
        (["--echo", "--pcap", "/nowhere/x"], "/nowhere/x"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistakes(tmp_path: Path, args: list[str], words: str) -> None:
    done = vhost("net", "--socket-path", tmp_path / "s", *args)
    assert done.returncode not in (0, -9)
    assert words in done.stderr
    assert done.stderr.count("\n") == 1, done.stderr


async def test_the_default_is_the_nat() -> None:
    async with TYPE.open(TYPE.values({"forward": [f"tcp:127.0.0.1:{free_port()}-:22"]})) as card:
        assert isinstance(card, Net)
        assert card.link.description.startswith("user-mode network 10.0.2.0")


@pytest.mark.parametrize("given", [{}, {"user": True}, {"switch": "s", "uplink": ["user"]}], ids=str)
async def test_without_libslirp(monkeypatch: pytest.MonkeyPatch, given: dict[str, object]) -> None:
    monkeypatch.setitem(sys.modules, "devices.net._slirp", None)
    monkeypatch.delitem(sys.modules, "devices.net.links.user", raising=False)
    with pytest.raises(ConfigError, match=r"install libslirp 4.7 or newer \(Debian: libslirp-dev\)") as caught:
        async with TYPE.open(TYPE.values(given)):
            pass
    assert "\n" not in str(caught.value)


def test_capabilities() -> None:
    done = vhost("net", "--print-capabilities", "--no-such-option")
    assert json.loads(done.stdout) == {"type": "net", "features": []}


def ctl(here: Path, *words: str) -> object:
    done = vhost("ctl", "--socket", here / "ctl", "--json", *words)
    assert (done.returncode, done.stderr) == (0, ""), done
    return json.loads(done.stdout)


@contextmanager
def cards(here: Path) -> Iterator[None]:
    """Two cards of one process: "a" and "nowhere"."""
    (here / "net.toml").write_text(
        f"""
        [server]
        control = "{here}/ctl"

        [[device]]
        type = "net"
        socket-path = "{here}/a"
        echo = true
        mac = "52:54:00:00:00:01"
        mtu = 9000
        queues = 2

        [[device]]
        type = "net"
        name = "nowhere"
        socket-path = "{here}/b"
        null = true
        """
    )
    with peerlib.running([VHOST, "serve", str(here / "net.toml")], here / "b", here / "log"):
        yield


async def test_control() -> None:
    features = BASE | int(NetFeature.STATUS | NetFeature.MAC)
    with peerlib.short_folder() as here, cards(here):
        run = partial(trio.to_thread.run_sync, partial(ctl, here))
        async with guest(str(here / "a"), features=features) as g:
            info = await run("a.info")
            assert isinstance(info, dict)
            assert (info["mac"], info["mtu"], info["pairs"], info["up"]) == ("52:54:00:00:00:01", 9000, 2, True)
            await run("a.capture_start", f"path={here}/x.pcapng")
            g.offer(2)
            g.push(frame(60))
            await g.receive()
            await run("a.capture_stop")
            assert frame(60) in (here / "x.pcapng").read_bytes()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(g.fe.config_changed)
                await trio.testing.wait_all_tasks_blocked()
                await run("a.set_link", "up=false")
            assert await g.fe.get_config(6, 2) == b"\0\0"
            g.push(frame(60))
            await g.sent(2)
            stats = await run("a.stats")
            assert isinstance(stats, dict)
            assert stats["in"] == stats["out"] == {"frames": 1, "bytes": 60}
            assert stats["dropped"] == {"down": 1}
            assert await run("a.set_mac", "mac=52:54:00:00:00:09") == "52:54:00:00:00:09"
            assert (await g.fe.get_config(0, 6)).hex() == "525400000009"
            metrics = await run("metrics")
            assert 'vhost_net_frames_total{device="a",direction="in"} 1' in str(metrics)
            assert 'vhost_net_dropped_total{device="a",reason="down"} 1' in str(metrics)
            assert 'vhost_net_up{device="a"} 0' in str(metrics)
        refused = await trio.to_thread.run_sync(
            vhost, "ctl", "--socket", here / "ctl", "a.set_mac", "mac=01:00:00:00:00:01"
        )
        assert refused.returncode
        assert "multicast" in refused.stderr
        help_ = await run("help")
        assert isinstance(help_, dict)
        assert {"a.announce", "nowhere.stats", "nowhere.set_link"} <= help_.keys()
        assert all(entry["help"] for entry in help_.values()), "every method says what it does"
