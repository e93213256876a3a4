"""Fixtures of the tests with real guests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from guestlib import AssetError, Kernel, Qemu, backports_qemu, debian_display_kernel, system_qemu
from guestlib.checks import make_image

#: further combinations of what other tests of the same file show; for `make test-long`
_LONG = frozenset(
    {
        "test_disk[split-1]",
        "test_disk[packed-4]",
        "test_disk[backports-split-4]",
        "test_disk[backports-packed-1]",
        "test_reboot_under_a_kernel[split]",
        "test_virtual_iommu[packed]",
        "test_virtual_iommu[backports-split]",
        "test_memory_plugged_in_under_io[split]",
        "test_migration[backports-postcopy]",
        "test_migration[precopy]",
        "test_fio[qemu-file]",
    }
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.name in _LONG:
            item.add_marker(pytest.mark.long)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A raw image of 128 MiB, empty."""
    return make_image(tmp_path / "disk.img", 128)


@pytest.fixture
def qemu(request: pytest.FixtureRequest) -> Qemu:
    """The QEMU that the test asks for by name."""
    if getattr(request, "param", "system") == "system":
        return system_qemu()
    try:
        return backports_qemu()
    except AssetError as error:
        pytest.skip(str(error))


@pytest.fixture
def kernel() -> Kernel:
    """A kernel with drivers for displays and input."""
    try:
        return debian_display_kernel()
    except AssetError as error:
        pytest.skip(str(error))


@pytest.fixture
def hugepages() -> Iterator[int]:
    """Room for a guest of 256 MiB in 2 MiB pages, given back afterwards; the number of pages."""
    wanted = 256 // 2
    control = Path("/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages")
    free = control.with_name("free_hugepages")
    if not control.exists():
        pytest.skip("this kernel has no 2 MiB pages")
    before = int(control.read_text())
    if int(free.read_text()) < wanted:
        try:
            control.write_text(str(before + wanted))
        except OSError as error:
            pytest.skip(f"cannot reserve {wanted} huge pages: {error}")
    try:
        if int(free.read_text()) < wanted:
            pytest.skip(f"the machine has no {wanted * 2} MiB of memory left that make huge pages")
        yield wanted
    finally:
        if int(control.read_text()) != before:
            control.write_text(str(before))
