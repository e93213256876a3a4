"""Foreign front-ends: what they need, or why they are not here."""

from __future__ import annotations

import pytest
from guestlib.debian import AssetError
from guestlib.trixie import Blkio, libblkio


@pytest.fixture(scope="session")
def blkio() -> Blkio:
    """libblkio's programs."""
    try:
        return libblkio()
    except AssetError as error:
        pytest.skip(str(error))
