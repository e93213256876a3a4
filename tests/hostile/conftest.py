"""Every hostile test runs against devices in Python and against C workers, and ends with the invariants.

Modules that say CARDS are about rings, and run against network cards as well: session and memory are everybody's.
"""

from __future__ import annotations

from collections.abc import Iterator

import hostilelib
import pytest


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "process" in metafunc.fixturenames:
        cards = ["net-receive", "net-transmit"] if getattr(metafunc.module, "CARDS", False) else []
        metafunc.parametrize("process", ["rng", "blk", *cards], indirect=True, scope="module")


@pytest.fixture(scope="module")
def process(request: pytest.FixtureRequest) -> Iterator[hostilelib.Stand]:
    with hostilelib.stand(request.param) as stand:
        yield stand


@pytest.fixture
def stand(process: hostilelib.Stand) -> Iterator[hostilelib.Stand]:
    """The process under attack; the invariants are checked afterwards."""
    process.begin()
    yield process
    process.check()
