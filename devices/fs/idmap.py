"""Translation of user and group ids between a guest and the host, in virtiofsd's syntax."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum
from itertools import pairwise

__all__ = ["IdRange", "IdTranslation", "RangeKind", "parse_translation"]

_IDS = 1 << 32
_FORMS = {
    "guest": "guest:GUEST:HOST:COUNT",
    "host": "host:HOST:GUEST:COUNT",
    "map": "map:GUEST:HOST:COUNT",
    "squash-guest": "squash-guest:GUEST:HOST:COUNT",
    "squash-host": "squash-host:HOST:GUEST:COUNT",
    "forbid-guest": "forbid-guest:GUEST:COUNT",
}


class RangeKind(IntEnum):
    """What becomes of an id; PASS_RANGE_* of C."""

    MAP = 0
    SQUASH = 1
    FORBID = 2


@dataclass(frozen=True, slots=True)
class IdRange:
    """Ids from `start`, `count` of them: they become `to` and the following, or all `to`, or are refused."""

    kind: RangeKind
    start: int
    to: int
    count: int


@dataclass(frozen=True, slots=True)
class IdTranslation:
    """Both ways; what is in no range stays as it is."""

    to_host: tuple[IdRange, ...] = ()
    to_guest: tuple[IdRange, ...] = ()


def parse_translation(texts: Iterable[str]) -> IdTranslation:
    """The ranges of `texts`.

    Args:
        texts: each one of guest:GUEST:HOST:COUNT, host:HOST:GUEST:COUNT, map:GUEST:HOST:COUNT (both ways),
            squash-guest:GUEST:HOST:COUNT, squash-host:HOST:GUEST:COUNT (all become the one), forbid-guest:GUEST:COUNT.

    Raises:
        ValueError: what is wrong, and where.
    """
    to_host: list[IdRange] = []
    to_guest: list[IdRange] = []
    for text in texts:
        kind, _, rest = text.partition(":")
        if kind not in _FORMS:
            raise ValueError(f"translation {text!r}: there is no {kind!r}, only {', '.join(_FORMS)}")
        first, second, count = _numbers(text, kind, rest)
        if kind == "forbid-guest":
            to_host.append(IdRange(RangeKind.FORBID, first, 0, count))
        elif kind.startswith("squash-"):
            _check(text, second, 1)
            (to_host if kind.endswith("guest") else to_guest).append(IdRange(RangeKind.SQUASH, first, second, count))
        else:
            _check(text, second, count)
            if kind in ("guest", "map"):
                to_host.append(IdRange(RangeKind.MAP, first, second, count))
            if kind == "map":
                first, second = second, first
            if kind in ("host", "map"):
                to_guest.append(IdRange(RangeKind.MAP, first, second, count))
    _check_apart(to_host, "the guest")
    _check_apart(to_guest, "the host")
    return IdTranslation(tuple(to_host), tuple(to_guest))


def _numbers(text: str, kind: str, rest: str) -> tuple[int, int, int]:
    parts = rest.split(":")
    form = _FORMS[kind]
    if len(parts) != form.count(":") or not all(part.isascii() and part.isdigit() for part in parts):
        raise ValueError(f"translation {text!r}: write {form}, ids and count in decimal")
    first, *middle, count = map(int, parts)
    _check(text, first, count)
    return first, middle[0] if middle else 0, count


def _check(text: str, start: int, count: int) -> None:
    if count < 1 or start + count > _IDS:
        raise ValueError(f"translation {text!r}: ids go from 0 to {_IDS - 1}, and there is at least one in a range")


def _check_apart(ranges: list[IdRange], whose: str) -> None:
    ordered = sorted(ranges, key=lambda item: item.start)
    for one, other in pairwise(ordered):
        if one.start + one.count > other.start:
            raise ValueError(f"translation: id {other.start} of {whose} is in two ranges")
