"""Configuration files and option values: what is read, and the sentence a mistake gets."""

from pathlib import Path

import pytest

from vhost.config import load, parse_cpus, parse_endpoint
from vhost.plugin import ConfigError, Option, parse_rate, parse_size


@pytest.mark.parametrize(
    ("text", "size"), [("4096", 4096), ("64M", 64 << 20), ("10g", 10 << 30), ("1TiB", 1 << 40), (7, 7)]
)
def test_sizes(text: str | int, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "-1", "1.5G", "G", "10 G G", "0x10"])
def test_bad_sizes(text: str) -> None:
    with pytest.raises(ValueError, match="not a size"):
        parse_size(text)


def test_rates_are_decimal() -> None:
    assert (parse_rate("5k"), parse_rate("100M"), parse_rate(3)) == (5000, 100_000_000, 3)


def test_cpus_and_endpoints() -> None:
    assert parse_cpus("0,2-4") == [0, 2, 3, 4]
    assert parse_endpoint("127.0.0.1:80") == ("127.0.0.1", 80)
    assert parse_endpoint("9123") == ("127.0.0.1", 9123)
    assert parse_endpoint("[::1]:9123") == ("::1", 9123)
    for bad in ("a-b", "3-1", ""):
        with pytest.raises(ConfigError):
            parse_cpus(bad)
    with pytest.raises(ConfigError):
        parse_endpoint("host")


def test_options_convert() -> None:
    number = Option("n", "int", "", minimum=1, maximum=4)
    assert number.convert("3") == 3
    for bad in ("0", 5, "x", True, None):
        with pytest.raises(ConfigError, match="option n"):
            number.convert(bad)
    choice = Option("c", "choice", "", choices=("on", "off"))
    with pytest.raises(ConfigError, match="none of on, off"):
        choice.convert("maybe")


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "vms.toml"
    path.write_text(text)
    return path


def test_a_file_with_two_devices(tmp_path: Path) -> None:
    config = load(
        write(
            tmp_path,
            """
            [server]
            workers = 2
            poll-us = 0
            [[device]]
            type = "blk"
            socket-path = "/tmp/a.sock"
            store = "null:1G"
            [[device]]
            type = "blk"
            name = "second"
            connect = "/tmp/b.sock"
            store = "memory:64M"
            num-queues = 4
            """,
        )
    )
    assert config.server["workers"] == 2
    assert [d.name for d in config.devices] == ["a", "second"]
    assert config.devices[1].values["num_queues"] == 4
    assert config.devices[1].connection["connect"] == "/tmp/b.sock"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[[device]]\nsocket-path='/x'", "device 1: type is missing"),
        ("[[device]]\ntype='blq'\nsocket-path='/x'", "no device type 'blq'"),
        ("[[device]]\ntype='blk'\nstore='null:1G'", "give either socket-path or connect"),
        ("[[device]]\ntype='blk'\nsocket-path='/x'\nstore='null:1G'\nnum-quues=1", "no option 'num-quues'"),
        ("[[device]]\ntype='blk'\nsocket-path='/x'\nstore='null:1G'\nnum-queues='many'", "option num-queues: 'many'"),
        ("[server]\nworkers=0", r"\[server\]: option workers: 0 is less than 1"),
        ("[server]\nwrkers=1", "no option 'wrkers'"),
        ("[device]\ntype='blk'", "list of tables"),
        ("[devices]", "unknown table"),
        ("= nonsense", "not TOML"),
        ("", "no \\[\\[device\\]\\]"),
        (
            2 * "[[device]]\ntype='blk'\nsocket-path='/x'\nstore='null:1G'\n",
            "devices 1 and 2 have the same name",
        ),
    ],
)
def test_mistakes_get_a_sentence(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        load(write(tmp_path, text))
    assert "vms.toml" in str(caught.value)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        load(tmp_path / "none.toml")
