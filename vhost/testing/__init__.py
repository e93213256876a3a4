"""Tools to test vhost-user back-ends with: a byte-exact peer, crafted rings, and a conformance suite.

    report = check_backend(connect_to("/run/disk.sock"), device="blk")
    assert not report.failed, str(report)

All of it blocks; from trio call `trio.to_thread.run_sync(check_backend, …)`.
"""

from __future__ import annotations

from collections.abc import Callable

from vhost.constants import FrontendRequest
from vhost.frontend.rings import PackedRing, SplitRing, packed_desc, split_desc
from vhost.testing.check_blk import BLK
from vhost.testing.check_blk import PROBE as BLK_PROBE
from vhost.testing.check_fs import FS
from vhost.testing.check_fs import PROBE as FS_PROBE
from vhost.testing.check_gpu import GPU
from vhost.testing.check_gpu import PROBE as GPU_PROBE
from vhost.testing.check_messages import MESSAGES
from vhost.testing.check_net import NET
from vhost.testing.check_rings import RINGS
from vhost.testing.check_rng import PROBE as RNG_PROBE
from vhost.testing.check_rng import RNG
from vhost.testing.peer import Connect, Failure, Gone, NotOffered, Peer, Reply, Ring, connect_to
from vhost.testing.report import Check, Outcome, Report, Suite, Trial, Verdict

__all__ = [
    "DEVICES",
    "Connect",
    "Failure",
    "Gone",
    "NotOffered",
    "Outcome",
    "PackedRing",
    "Peer",
    "Reply",
    "Report",
    "Ring",
    "SplitRing",
    "Verdict",
    "check_backend",
    "checks_for",
    "connect_to",
    "packed_desc",
    "run_check",
    "split_desc",
]

DEVICES = {
    "blk": (BLK, BLK_PROBE),
    "fs": (FS, FS_PROBE),
    "gpu": (GPU, GPU_PROBE),
    "net": (NET, None),
    "rng": (RNG, RNG_PROBE),
    "any": (Suite(), None),
}
"""Device types the suite knows; "any" is only about messages. A card answers no request: it has no probe for rings."""


def checks_for(device: str) -> tuple[Check, ...]:
    """All clauses for a device type of DEVICES."""
    own, probe = DEVICES[device]
    return (*MESSAGES.checks, *(RINGS.checks if probe else ()), *own.checks)


def check_backend(
    connect: Connect,
    device: str = "blk",
    *,
    writable: bool = False,
    keeps: bool = True,
    once: bool = False,
    only: Callable[[Check], bool] = lambda _check: True,
    progress: Callable[[Outcome], None] = lambda _outcome: None,
) -> Report:
    """Try every clause on a back-end.

    Args:
        connect: makes a connection; at most two are open at a time, and the suite waits for one to be accepted.
        device: one of DEVICES.
        writable: what is on the disk may be overwritten; else those clauses are not run.
        keeps: what is written can be read back; False for a null store.
        once: it serves one connection and ends, and something starts it again: whether it died cannot be told.
        only: which checks to run.
        progress: called after each clause.

    Returns: the report; clauses that the back-end fails are in it, not raised.
    """
    outcomes: list[Outcome] = []
    gone = ""
    for check in checks_for(device):
        if not only(check):
            continue
        if gone or (check.writes and not writable):
            outcome = Outcome(check.clause, check.title, Verdict.NOT_RUN, gone or "it overwrites the disk")
        else:
            outcome = run_check(check, connect, device, writable=writable, keeps=keeps, once=once)
            if outcome.verdict is Verdict.FAIL and not once and not _process(connect):
                gone = "the back-end is gone"
        outcomes.append(outcome)
        progress(outcome)
    return Report(tuple(outcomes))


def _process(connect: Connect) -> int:
    """Process id of a back-end that answers, 0 where none does."""
    try:
        with Peer(connect()) as peer:
            peer.ask_u64(FrontendRequest.GET_FEATURES)
            return peer.pid
    except (OSError, Failure):
        return 0


def run_check(
    check: Check,
    connect: Connect,
    device: str = "blk",
    *,
    writable: bool = False,
    keeps: bool = True,
    once: bool = False,
) -> Outcome:
    """Try one clause, as check_backend."""
    before = 0 if once else _process(connect)
    outcome = _try(check, Trial(connect, DEVICES[device][1], writable, keeps))
    if before and (after := _process(connect)) != before:
        how = "and was started again" if after else "or serves nobody any more"
        return Outcome(check.clause, check.title, Verdict.FAIL, f"the back-end died {how}")
    return outcome


def _try(check: Check, trial: Trial) -> Outcome:
    try:
        check.body(trial)
    except NotOffered as missing:
        return Outcome(check.clause, check.title, Verdict.NOT_OFFERED, str(missing))
    except Failure as failure:
        return Outcome(check.clause, check.title, Verdict.FAIL, str(failure))
    except OSError as error:
        return Outcome(check.clause, check.title, Verdict.FAIL, f"the connection failed: {error.strerror or error}")
    finally:
        trial.close()
    return Outcome(check.clause, check.title, Verdict.PASS)
