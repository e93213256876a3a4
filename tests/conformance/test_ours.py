"""Every clause of the conformance suite on back-ends of ours: one test each."""

from __future__ import annotations

from collections.abc import Iterator

import peerlib
import pytest

from vhost.testing import Verdict, check_backend, checks_for, run_check
from vhost.testing.check_messages import MESSAGES
from vhost.testing.report import Check

#: what a disk of ours need not offer; everything else must pass
NOT_OFFERED_BY_BLK = {
    "DEVICE_STATE",  # a disk has no state beyond rings and configuration
    "ACCESS_PLATFORM",  # only with --iommu, tested below
    "MTU", "RARP", "CROSS_ENDIAN", "SHARED_OBJECT",
    "RO",  # only with --read-only, tested below
    "INBAND_NOTIFICATIONS",  # only with --inband, tested below
}  # fmt: skip


def _name(check: Check) -> str:
    return f"{check.clause}: {check.title}"


@pytest.fixture(scope="module")
def disk() -> Iterator[peerlib.Backend]:
    with peerlib.vhost_blk() as backend:
        yield backend


@pytest.mark.parametrize("check", checks_for("blk"), ids=_name)
def test_blk(disk: peerlib.Backend, check: Check) -> None:
    outcome = run_check(check, disk.connect, "blk", writable=True)
    if outcome.verdict is Verdict.NOT_OFFERED:
        assert outcome.detail in NOT_OFFERED_BY_BLK
    else:
        assert outcome.verdict is Verdict.PASS, outcome.detail
    assert disk.deaths == 0


@pytest.fixture(scope="module")
def card() -> Iterator[peerlib.Backend]:
    with peerlib.vhost_net("--echo", "--mac", "52:54:00:12:34:56", "--mtu", "9000") as backend:
        yield backend


@pytest.mark.parametrize("check", checks_for("net"), ids=_name)
def test_net(card: peerlib.Backend, check: Check) -> None:
    outcome = run_check(check, card.connect, "net")
    assert outcome.verdict in (Verdict.PASS, Verdict.NOT_OFFERED), outcome.detail
    if outcome.verdict is Verdict.NOT_OFFERED:
        # what a card has in flight may get lost, so there is no record of it
        assert outcome.detail in NOT_OFFERED_BY_BLK - {"MTU", "RARP"} | {"INFLIGHT_SHMFD"}
    assert card.deaths == 0


@pytest.fixture(scope="module")
def screen() -> Iterator[peerlib.Backend]:
    with peerlib.vhost_gpu("--scanouts", "2") as backend:
        yield backend


@pytest.mark.parametrize("check", checks_for("gpu"), ids=_name)
def test_gpu(screen: peerlib.Backend, check: Check) -> None:
    outcome = run_check(check, screen.connect, "gpu")
    assert outcome.verdict in (Verdict.PASS, Verdict.NOT_OFFERED), outcome.detail
    if outcome.verdict is Verdict.NOT_OFFERED:
        # what a guest draws is gone with the process, so there is no record of what was in flight; nobody migrates it
        assert outcome.detail in NOT_OFFERED_BY_BLK | {"INFLIGHT_SHMFD", "LOG_SHMFD", "PAGEFAULT"}
    assert screen.deaths == 0


@pytest.mark.parametrize(
    "args",
    [
        [],
        ["--filesystem", "examples.memory_fs:MemoryFilesystem"],
        ["--workers", "2", "--poll-us", "0", "--sandbox", "none"],
    ],
    ids=lambda args: " ".join(args) or "folder",
)
def test_fs(args: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The clauses about rings and requests, all in one go; with the default options those about messages, too."""
    monkeypatch.setenv("PYTHONPATH", str(peerlib.ROOT))
    checks = checks_for("fs") if not args else [check for check in checks_for("fs") if check not in MESSAGES.checks]
    with peerlib.vhost_fs(*args, folder="--filesystem" not in args) as backend:
        report = check_backend(backend.connect, "fs", writable=True, only=lambda check: check in checks)
        assert not report.failed, "\n".join(f"{found.clause}: {found.title}: {found.detail}" for found in report.failed)
        missing = {found.detail for found in report.outcomes if found.verdict is Verdict.NOT_OFFERED}
        # requests are not to be carried out twice; in its sandbox there is no userfaultfd
        assert missing <= NOT_OFFERED_BY_BLK | {"INFLIGHT_SHMFD", "PAGEFAULT"}
        assert backend.deaths == 0


@pytest.fixture(scope="module")
def entropy() -> Iterator[peerlib.Backend]:
    with peerlib.example("rng") as backend:
        yield backend


@pytest.mark.parametrize("check", checks_for("rng"), ids=_name)
def test_rng(entropy: peerlib.Backend, check: Check) -> None:
    """A device written in Python, on the same server."""
    outcome = run_check(check, entropy.connect, "rng")
    assert outcome.verdict in (Verdict.PASS, Verdict.NOT_OFFERED), outcome.detail
    if outcome.verdict is Verdict.NOT_OFFERED:
        # a page that is still on its way would hold up the thread that runs all Python devices
        assert outcome.detail in NOT_OFFERED_BY_BLK | {"CONFIG", "PAGEFAULT"}
    assert entropy.deaths == 0


@pytest.mark.parametrize(
    ("args", "store", "writable", "keeps"),
    [
        (["--read-only"], None, False, True),
        (["--blk-size", "4096"], None, True, True),
        (["--iommu"], None, True, True),
        ([], "null:64M", True, False),
        (["--workers", "2", "--poll-us", "0"], "memory:64M", True, True),
        (["--direct"], None, True, True),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else str(value),
)
def test_variants(args: list[str], store: str | None, writable: bool, keeps: bool) -> None:
    """The clauses about rings and requests with other stores and options, all in one go."""
    with peerlib.vhost_blk(*args, store=store) as backend:
        report = check_backend(
            backend.connect, "blk", writable=writable, keeps=keeps, only=lambda check: check not in MESSAGES.checks
        )
        assert not report.failed, "\n".join(f"{found.clause}: {found.title}: {found.detail}" for found in report.failed)
        assert report.count(Verdict.PASS) > 60
        assert backend.deaths == 0


def test_in_band() -> None:
    """Offered only on request, since QEMU takes it without being able to."""
    with peerlib.vhost_blk("--inband") as backend:
        report = check_backend(backend.connect, "blk", only=lambda check: "in-band notifications work" in check.title)
        assert [outcome.verdict for outcome in report.outcomes] == [Verdict.PASS], str(report)
