"""A short run of the session fuzzer; tests/fuzz/session_fuzz.py runs as long as one likes."""

import logging
import random
from collections.abc import Iterator

import pytest
from fuzz import session_fuzz
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Refusals are what this is about; they need not all be logged."""
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


@given(st.randoms(use_true_random=False))
@settings(
    max_examples=30,
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)
def test_short_connections_shrink(rnd: random.Random) -> None:
    session_fuzz.run(rnd, 12)


@pytest.mark.parametrize("seed", range(4))
def test_long_connections(seed: int) -> None:
    fuzz = session_fuzz.run(random.Random(seed), 1500)
    assert fuzz.steps["StartQueue"] > 3, "the fuzzer must reach running rings"


def test_framing_does_not_depend_on_pieces() -> None:
    for seed in range(300):
        session_fuzz.frame(random.Random(seed))
