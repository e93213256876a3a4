"""What holds for every test: nothing leaks, and a guest's last words stand in the report of a failure."""

from __future__ import annotations

import gc
import os
import warnings
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
from guestlib import process
from guestlib.guard import Guard


def _descriptors() -> dict[int, str]:
    """Open descriptors of this process and what they are."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
        except OSError:
            continue  # the listing's own
    return found


def _children() -> set[int]:
    """Processes whose parent is one of our threads."""
    pids: set[int] = set()
    for task in Path("/proc/self/task").iterdir():
        try:
            pids.update(int(pid) for pid in (task / "children").read_text().split())
        except OSError:
            continue  # the thread ended meanwhile
    return pids


def _named(pid: int) -> str:
    try:
        return (
            Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")[:120] or f"[{pid}]"
        )
    except OSError:
        return f"[{pid}]"


@pytest.fixture(autouse=True)
def no_leaks(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that leaves a descriptor open or a process running.

    What wider-scoped fixtures open before the test is not counted; a test marked ``leaks`` (it says why) is let off.
    """
    before, children = _descriptors(), _children()
    yield
    if request.node.get_closest_marker("leaks"):
        return
    after = _descriptors()
    if set(after) - set(before):
        with warnings.catch_warnings():
            # the failure below names them; an unraisable ResourceWarning would come first and name none
            warnings.simplefilter("ignore", ResourceWarning)
            gc.collect()
        after = _descriptors()
    leaked = {fd: after[fd] for fd in sorted(set(after) - set(before))}
    left = sorted(_named(pid) for pid in _children() - children)
    if leaked or left:
        pytest.fail(f"leaked descriptors: {leaked or 'none'}; processes left: {left or 'none'}", pytrace=False)


#: what does so much within so long, both ends polling: not beside others
CALM = (
    "conformance/test_bench.py::test_null",
    "conformance/test_bench.py::test_python_device",
    "conformance/test_bench.py::test_stores",
    "conformance/test_fs_bench.py::test_command",
    "conformance/test_fs_bench.py::test_queues_and_workers",
    "conformance/test_fs_bench.py::test_sections",
    "conformance/test_load.py",
    "conformance/test_net_bench.py::test_sections",
    "conformance/test_net_load.py",
    "interop/test_testpmd.py::test_virtio_user[",
    "interop/test_virtiofsd.py::test_loads",
    "interop/test_virtiofsd.py::test_ways_to_drive_it",
)


def pytest_configure(config: pytest.Config) -> None:
    config.add_cleanup(Guard().close)
    config.addinivalue_line("markers", "calm: wants the machine for itself; set by CALM")
    config.addinivalue_line("markers", "leaks(reason): the test leaves a descriptor or process behind on purpose")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Cheap tests first: real guests last, slow ones before them."""
    for item in items:
        if item.nodeid.startswith(tuple(f"tests/{part}" for part in CALM)):
            item.add_marker("calm")
    items.sort(
        key=lambda item: (item.get_closest_marker("guest") is not None, item.get_closest_marker("slow") is not None)
    )


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Put the consoles and logs of guests and back-ends into the report of a failed test."""
    if call.when == "setup":
        process.LOGS.clear()
    report = yield
    if report.failed:
        for title, path in process.LOGS:
            text = process.tail(path, 40)
            if text:
                report.sections.append((f"{title} ({path.name})", text))
            console = path.with_name("console.log")
            if console.exists() and path.name == "qemu.log":
                report.sections.append((f"{title} console", process.tail(console, 40)))
    if call.when == "teardown":
        process.LOGS.clear()
    return report
