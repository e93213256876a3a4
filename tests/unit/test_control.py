"""The control socket: JSON-RPC 2.0 to the letter, parameters checked against the callables."""

import json
import os
import socket
import stat
from pathlib import Path

import pytest
import trio

from vhost.control import MAX_LINE, CallersFile, ControlError, ControlServer, call


class Disk:
    def __init__(self) -> None:
        self.size = 1

    async def resize(self, size: int) -> int:
        """Change the size."""
        if size < 1:
            raise ValueError("a disk has at least one byte")
        self.size = size
        return size

    def name(self, upper: bool = False, tag: str | None = None) -> str:
        return "DISK" if upper else tag or "disk"


def make() -> tuple[ControlServer, dict[str, Disk]]:
    disks = {"a": Disk(), "b": Disk()}
    devices = {k: {"resize": d.resize, "name": d.name} for k, d in disks.items()}
    devices["b"]["only"] = lambda: 7
    return ControlServer({"version": lambda: "1"}, lambda: devices), disks


async def ask(server: ControlServer, request: object) -> object:
    answer = await server.respond(json.dumps(request).encode())
    return None if answer is None else json.loads(answer)


async def test_methods_are_found_by_device_and_by_parameter() -> None:
    server, disks = make()
    assert await server.call("a.resize", {"size": 5}) == 5
    assert await server.call("resize", {"device": "b", "size": 6}) == 6
    assert (disks["a"].size, disks["b"].size) == (5, 6)
    assert await server.call("only", {}) == 7  # one device has it


@pytest.mark.parametrize(
    ("method", "params", "code", "words"),
    [
        ("resize", {"size": 1}, -32602, "say which device: a, b"),
        ("resize", {"device": "c", "size": 1}, -32602, "no device 'c'"),
        ("a.resize", {}, -32602, "'size' is missing"),
        ("a.resize", {"size": "big"}, -32602, "size='big' is not int"),
        ("a.resize", {"size": True}, -32602, "is not int"),
        ("a.resize", {"size": 1, "x": 1}, -32602, "no parameter 'x'"),
        ("a.name", {"tag": 5}, -32602, "tag=5"),
        ("nothing", {}, -32601, "'help' lists them"),
        ("a.resize", {"size": 0}, -32000, "at least one byte"),
    ],
)
async def test_refusals_name_what_is_wrong(method: str, params: dict[str, object], code: int, words: str) -> None:
    server, _ = make()
    with pytest.raises(ControlError, match=words) as caught:
        await server.call(method, params)
    assert caught.value.code == code


async def test_jsonrpc_forms() -> None:
    server, disks = make()
    assert await ask(server, {"jsonrpc": "2.0", "id": "x", "method": "version"}) == {
        "jsonrpc": "2.0",
        "id": "x",
        "result": "1",
    }
    assert await ask(server, {"jsonrpc": "2.0", "method": "a.resize", "params": {"size": 9}}) is None  # notification
    assert disks["a"].size == 9
    batch = await ask(server, [{"jsonrpc": "2.0", "id": 1, "method": "version"}, 5])
    assert isinstance(batch, list)
    assert [a.get("result", a.get("error", {}).get("code")) for a in batch] == ["1", -32600]
    for bad, code in (({"id": 1, "method": "version"}, -32600), ([], -32600), ({"jsonrpc": "2.0", "id": 1}, -32600)):
        answer = await ask(server, bad)
        assert isinstance(answer, dict)
        assert answer["error"]["code"] == code
    raw = await server.respond(b"{nonsense")
    assert raw is not None
    assert json.loads(raw)["error"]["code"] == -32700


async def test_help_lists_parameters() -> None:
    server, _ = make()
    listing = await server.call("help", {})
    assert listing["a.resize"] == {"params": {"size": "int"}, "help": "Change the size."}


async def test_socket_round_trip_and_its_file(tmp_path, nursery) -> None:  # type: ignore[no-untyped-def]
    path = str(tmp_path / "ctl")
    dead = socket.socket(socket.AF_UNIX)
    dead.bind(path)
    dead.close()  # a socket file nobody listens on is replaced
    server, _ = make()
    with trio.CancelScope() as scope:
        await nursery.start(server.serve, path)
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
        assert await call(path, "a.resize", {"size": 3}) == 3
        with pytest.raises(ControlError, match="no method"):
            await call(path, "nope", {})
        with pytest.raises(OSError, match="another program is listening"):
            await ControlServer({}, dict).serve(path)
        stream = await trio.open_unix_socket(path)
        async with stream:
            await stream.send_all(b"x" * (MAX_LINE + 2))
            with trio.fail_after(60):
                try:
                    assert await stream.receive_some() == b""
                except trio.BrokenResourceError:
                    pass
        nursery.cancel_scope.cancel()
    assert not scope.cancelled_caught


async def test_a_file_for_the_caller(tmp_path: Path) -> None:
    """It is written by the client, where the client says; a server cannot choose another place."""

    def picture(path: str) -> CallersFile:
        return CallersFile(b"\x89data" * 100_000, f"of {path}")

    server = ControlServer({"picture": picture}, dict)
    async with trio.open_nursery() as nursery:
        await nursery.start(server.serve, str(tmp_path / "ctl"))
        where = tmp_path / "a.png"
        assert await call(str(tmp_path / "ctl"), "picture", {"path": str(where)}) == f"of {where}"
        assert where.read_bytes() == b"\x89data" * 100_000
        with pytest.raises(ControlError, match=r"/nowhere/a\.png cannot be written: No such file"):
            await call(str(tmp_path / "ctl"), "picture", {"path": "/nowhere/a.png"})
        nursery.cancel_scope.cancel()
