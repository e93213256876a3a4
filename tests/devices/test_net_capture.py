"""Captures: what passes a card is in the pcapng file, as often as it passed, with its time and direction."""

from __future__ import annotations

import os
import shutil
import struct
import time
from pathlib import Path

import pytest
import trio
from netrig import BASE, NEEDS_CSUM, TCPV4, Header, frame, guest, serving
from pcapng import IN, OUT, read

from devices.net import EchoLink, Net, NetFeature
from devices.net.capture import Capture, CaptureError


@pytest.mark.parametrize("snaplen", [0, 64])
async def test_echo(tmp_path: Path, snaplen: int) -> None:
    """A frame out, the same frame in, in this order, at the time it was."""
    path = tmp_path / "vm0.pcapng"
    sent = [frame(length, tag=length) for length in (14, 60, 61, 62, 63, 64, 127, 128, 129, 1514, 3000)]
    card = Net(EchoLink())
    async with serving(card) as [socket], guest(socket, features=BASE) as g:
        pcap = card.capture
        pcap.start(path, snaplen=snaplen)
        before = time.time_ns()
        for data in sent:
            g.offer(1, 4096)
            g.push(data)
            await g.receive(1)
        after = time.time_ns()
        stats = await pcap.stop()
        got = read(path)
        assert got.names == ["echo"]
        wanted = [(0, data[: snaplen or None], len(data), way) for data in sent for way in (OUT, IN)]
        assert [(number, data, full, way) for number, _, data, full, way in got.packets] == wanted
        times = [ns for _, ns, _, _, _ in got.packets]
        assert times == sorted(times)
        assert before <= times[0]
        assert times[-1] <= after
        assert (got.received, got.dropped) == ({0: 2 * len(sent)}, {0: 0})
        assert (stats.frames, stats.bytes, stats.lost) == (2 * len(sent), 2 * sum(map(len, sent)), 0)
        assert (stats.files, stats.written, stats.error) == (1, stats.written, 0)
    assert path.stat().st_mode & 0o777 == 0o600


async def test_on_and_off_under_traffic(tmp_path: Path) -> None:
    """Captures come and go while frames pass; each holds an unbroken run of them."""
    card = Net(EchoLink())
    begun = []
    async with serving(card) as [socket], guest(socket, features=BASE) as g:
        pcap = card.capture
        passed = 0

        async def traffic(*, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
            nonlocal passed
            task_status.started()
            while True:
                g.offer(16, 512)
                for i in range(16):
                    g.push(b"\xff" * 12 + b"\x88\xb5" + struct.pack("<I", passed + i), publish=False)
                g.publish()
                await g.receive(16)
                await g.sent(16)
                passed += 16

        async with trio.open_nursery() as nursery:
            await nursery.start(traffic)
            for i in range(8):
                path = tmp_path / f"run{i}"
                pcap.start(path)
                target = passed + 200
                while passed < target:
                    await trio.sleep(0.001)
                stats = await pcap.stop()
                got = [(way, struct.unpack("<I", data[14:18])[0]) for _, _, data, _, way in read(path).packets]
                assert len(got) == stats.frames
                assert stats.lost == 0
                for wanted in (IN, OUT):
                    run = [n for way, n in got if way == wanted]
                    assert len(run) > 150
                    assert run == list(range(run[0], run[0] + len(run)))
                begun.append(run[0])
            nursery.cancel_scope.cancel()
    assert begun == sorted(set(begun))


async def test_unfinished_frames(tmp_path: Path) -> None:
    """A large frame is captured as the driver sent it; what is cut of it, as it is delivered."""
    path = tmp_path / "large.pcapng"
    head = bytearray(54)
    head[12:15] = b"\x08\x00\x45"
    head[16:18] = struct.pack(">H", 3040)
    head[23] = 6
    head[46] = 0x50
    features = BASE | int(NetFeature.CSUM | NetFeature.HOST_TSO4)
    card = Net(EchoLink())
    async with serving(card) as [socket], guest(socket, features=features) as g:
        pcap = card.capture
        pcap.start(path)
        g.offer(3, 2048)
        g.push(bytes(head) + bytes(3000), Header(NEEDS_CSUM, TCPV4, 54, 1000, 34, 16))
        await g.receive(3)
        await pcap.stop()
    assert [(full, way) for _, _, _, full, way in read(path).packets] == [(3054, OUT)] + [(1054, IN)] * 3


async def test_ring_of_files(tmp_path: Path) -> None:
    """The newest files stay, each readable by itself; nothing is missing between them."""
    card = Net(EchoLink())
    async with serving(card) as [socket], guest(socket, features=BASE) as g:
        pcap = card.capture
        pcap.start(tmp_path / "vm0.pcapng", file_size=1 << 16, files=2)
        for i in range(200):
            g.offer(1, 2048)
            g.push(frame(1000, tag=i))
            await g.receive(1)
        stats = await pcap.stop()
        assert stats.files >= 6
    names = sorted(tmp_path.iterdir())
    assert [name.name for name in names] == [f"vm0-{n:05}.pcapng" for n in (stats.files - 1, stats.files)]
    got = [read(name) for name in names]
    assert all(section.names == ["echo"] for section in got)
    assert names[0].stat().st_size >= 1 << 16
    wanted = [frame(1000, tag=i) for i in range(200) for _ in (OUT, IN)]
    packets = [data for section in got for _, _, data, _, _ in section.packets]
    assert packets == wanted[len(wanted) - len(packets) :]
    assert got[-1].received == {0: 400}


async def test_controls(tmp_path: Path) -> None:
    """Live through the control socket, in words that JSON has."""
    path = tmp_path / "a.pcapng"
    card = Net(EchoLink())
    async with serving(card) as [socket], guest(socket, features=BASE) as g:
        do = card.controls()
        assert do["capture"]() == {
            "path": None,
            **dict.fromkeys(("frames", "bytes", "lost", "written", "files"), 0),
            "error": None,
        }
        assert do["capture_start"](path=str(path), snaplen=20)["path"] == str(path)
        g.offer(1)
        g.push(frame())
        await g.receive(1)
        assert do["capture"]()["frames"] == 2
        assert (await do["capture_stop"]())["frames"] == 2
        assert do["capture"]()["path"] is None
        assert (await do["capture_stop"]())["frames"] == 2
    assert [data for _, _, data, _, _ in read(path).packets] == [frame()[:20]] * 2


async def test_closed_with_the_card(tmp_path: Path) -> None:
    """What nobody stopped is whole all the same."""
    path = tmp_path / "a.pcapng"
    card = Net(EchoLink())
    async with serving(card) as [socket], guest(socket, features=BASE) as g:
        card.capture.start(path)
        g.offer(1)
        g.push(frame())
        await g.receive(1)
    assert read(path).received == {0: 2}


async def test_two_cards_in_one_file(tmp_path: Path) -> None:
    """Each is an interface of its own; one that is detached stays described."""
    path = tmp_path / "both"
    cards = [Net(EchoLink()), Net(EchoLink())]
    capture = Capture.open(path)
    for i, card in enumerate(cards):
        capture.attach(card.port, f"vm{i}")  # no worker runs them yet
    async with serving(*cards) as sockets, guest(sockets[0]) as a, guest(sockets[1]) as b:
        for g, tag in ((a, 1), (b, 2), (a, 3)):
            g.offer(1)
            g.push(frame(tag=tag))
            await g.receive(1)
        capture.on = False
        a.offer(1)
        a.push(frame(tag=4))
        await a.receive(1)
        capture.on = True
        with pytest.raises(RuntimeError, match="still has ports"):
            capture.close()
        await capture.sync()
        assert len(read(path).packets) == 6
        for card in cards:
            capture.detach(card.port, {source.worker for source in card._running.values()})
        await capture.aclose()
        capture.close()
        with pytest.raises(CaptureError, match="is closed"):
            capture.attach(cards[0].port, "late")
    got = read(path)
    names = [got.names[interface] for interface, *_ in got.packets]
    assert names == ["vm0", "vm0", "vm1", "vm1", "vm0", "vm0"]
    assert {got.names[i]: n for i, n in got.received.items()} == {"vm0": 4, "vm1": 2}


async def test_full_disk() -> None:
    """The capture ends and says so; the network does not notice."""
    card = Net(EchoLink())
    async with serving(card) as [socket], guest(socket, features=BASE) as g:
        pcap = card.capture
        pcap.start("/dev/full")
        for i in range(20):
            g.offer(1)
            g.push(frame(tag=i))
            await g.receive(1)
        assert pcap.path == "/dev/full"
        stats = await pcap.stop()
        assert stats.as_dict()["error"] == os.strerror(28)
        assert stats.frames + stats.lost == 40
        assert stats.written == 0
        with pytest.raises(CaptureError, match=r"cannot capture to /nowhere/x: No such file"):
            pcap.start("/nowhere/x")
        assert {metric.name for metric in pcap.metrics()} == {"net_captured_total", "net_capture_lost_total"}


async def test_refusals(tmp_path: Path) -> None:
    card = Net(EchoLink())
    try:
        pcap = card.capture
        empty = tmp_path / "empty"
        pcap.start(empty)
        await pcap.stop()
        assert (read(empty).names, read(empty).packets) == (["echo"], [])
        with pytest.raises(CaptureError, match="is a folder"):
            pcap.start(tmp_path)
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(CaptureError, match="start its reader first"):
            pcap.start(tmp_path / "pipe")
        pcap.start(tmp_path / "a")
        with pytest.raises(CaptureError, match=r"is captured to .*/a already"):
            pcap.start(tmp_path / "b")
        pcap.close()
        pcap.close()
        for arguments, words in (
            ({"file_size": 1000}, "at least 65536"),
            ({"files": 3}, "without file_size"),
            ({"snaplen": -1}, "number of bytes"),
            ({"ring_size": 300000}, "power of two"),
        ):
            with pytest.raises(ValueError, match=words):
                Capture.open(tmp_path / "c", **arguments)
        assert not (tmp_path / "c").exists()
    finally:
        card.close()


async def test_pipe(tmp_path: Path) -> None:
    """A reader of a named pipe sees frames as they pass."""
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    card = Net(EchoLink())
    try:
        async with serving(card) as [socket], guest(socket, features=BASE) as g:
            pcap = card.capture
            pcap.start(tmp_path / "pipe")
            g.offer(1)
            g.push(frame(tag=9))
            await g.receive(1)
            await trio.sleep(0.2)
            (tmp_path / "copy").write_bytes(os.read(reader, 65536))
            await pcap.stop()
    finally:
        os.close(reader)
    assert [data for _, _, data, _, _ in read(tmp_path / "copy").packets] == [frame(tag=9)] * 2


@pytest.mark.skipif(shutil.which("tcpdump") is None, reason="tcpdump is not installed")
async def test_tcpdump_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "vm0.pcapng"
    card = Net(EchoLink())
    async with serving(card) as [socket], guest(socket, features=BASE) as g:
        pcap = card.capture
        pcap.start(path)
        g.offer(1)
        g.push(frame(60, src=b"\x52\x54\0\0\0\7"))
        await g.receive(1)
        await pcap.stop()
    done = await trio.run_process(["tcpdump", "-enr", path], capture_stdout=True, capture_stderr=True)
    assert done.stdout.count(b"52:54:00:00:00:07 > ff:ff:ff:ff:ff:ff") == 2
