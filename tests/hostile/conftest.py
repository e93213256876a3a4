"""Every hostile test runs against devices in Python and against C workers, and ends with the invariants."""

from __future__ import annotations

from collections.abc import Iterator

import hostilelib
import pytest


@pytest.fixture(scope="module", params=["rng", "blk"])
def process(request: pytest.FixtureRequest) -> Iterator[hostilelib.Stand]:
    with hostilelib.stand(request.param) as stand:
        yield stand


@pytest.fixture
def stand(process: hostilelib.Stand) -> Iterator[hostilelib.Stand]:
    """The process under attack; the invariants are checked afterwards."""
    process.begin()
    yield process
    process.check()
