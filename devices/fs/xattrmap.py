"""Rules for the names of extended attributes: what guests may set, and under which names the host keeps it.

The syntax is that of virtiofsd's `--xattrmap`: rules one after the other, each begun and parted by a character of its
own choice, white space between them:

    :prefix:all:trusted.:user.guest.:  :bad:server::trusted.:  :ok:all:::
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum, IntFlag

__all__ = ["XattrAction", "XattrRule", "XattrScope", "parse_xattrmap"]

_NAME_MAX = 255


class XattrAction(IntEnum):
    """What becomes of a name; PASS_XATTR_* of C."""

    PREFIX = 0
    OK = 1
    BAD = 2
    UNSUPPORTED = 3


class XattrScope(IntFlag):
    """Which names a rule is for: those that guests use, those that the host lists."""

    CLIENT = 1
    SERVER = 2
    ALL = 3


@dataclass(frozen=True, slots=True)
class XattrRule:
    """One rule; the first that fits decides.

    Attributes:
        action: what is done.
        scope: names it is for.
        key: guests' names begin with it.
        prepend: the host's names begin with it; `PREFIX` puts it in front of guests' names.
    """

    action: XattrAction
    scope: XattrScope
    key: str = ""
    prepend: str = ""


def parse_xattrmap(text: str) -> tuple[XattrRule, ...]:
    """The rules of `text`.

    Args:
        text: rules as virtiofsd has them; `map` stands for the rules that it is short for, and ends them.

    Raises:
        ValueError: what is wrong, and where.
    """
    return tuple(_rules(text))


def _rules(text: str) -> Iterator[XattrRule]:
    at, number = 0, 0
    while (at := _skip_space(text, at)) < len(text):
        number += 1
        mark, at = text[at], at + 1
        fields: list[str] = []
        wanted = 4
        while len(fields) < wanted:
            end = text.find(mark, at)
            if end < 0:
                raise ValueError(f"xattrmap rule {number}: {_missing(fields, wanted)} must be followed by {mark!r}")
            fields.append(text[at:end])
            at = end + 1
            if fields[0] == "map":
                wanted = 3
        if wanted == 3:
            if rest := text[_skip_space(text, at) :]:
                raise ValueError(f"xattrmap rule {number}: 'map' must be the last rule, but {rest!r} follows")
            yield from _map(number, fields[1], fields[2])
            return
        yield _rule(number, fields)
    if not number:
        raise ValueError("xattrmap: there is no rule in it; ':ok:all:::' lets all names pass")


def _skip_space(text: str, at: int) -> int:
    while at < len(text) and text[at].isspace():
        at += 1
    return at


def _missing(fields: list[str], wanted: int) -> str:
    names = ("type", "key", "prepend") if wanted == 3 else ("type", "scope", "key", "prepend")
    return f"its {names[len(fields)]}"


def _rule(number: int, fields: list[str]) -> XattrRule:
    action, scope, key, prepend = fields
    try:
        rule = XattrRule(XattrAction[action.upper()], XattrScope[scope.upper()], key, prepend)
    except KeyError:
        if action.upper() not in XattrAction.__members__:
            known = "prefix, ok, bad, unsupported, map"
            raise ValueError(f"xattrmap rule {number}: there is no type {action!r}, only {known}") from None
        raise ValueError(f"xattrmap rule {number}: there is no scope {scope!r}, only client, server, all") from None
    _check(number, key, prepend)
    return rule


def _map(number: int, key: str, prepend: str) -> Iterator[XattrRule]:
    if not prepend:
        raise ValueError(f"xattrmap rule {number}: 'map' needs what is to be put in front of names")
    _check(number, key, prepend)
    yield XattrRule(XattrAction.PREFIX, XattrScope.ALL, key, prepend)
    if not key:
        yield XattrRule(XattrAction.BAD, XattrScope.ALL)
        return
    # what guests are given another name for must not be reached by its own, on neither side
    yield XattrRule(XattrAction.BAD, XattrScope.SERVER, "", key)
    yield XattrRule(XattrAction.BAD, XattrScope.CLIENT, prepend, "")
    yield XattrRule(XattrAction.OK, XattrScope.ALL)


def _check(number: int, *names: str) -> None:
    for name in names:
        if "\0" in name or len(name.encode()) > _NAME_MAX:
            what = f"{name[:40]!r} cannot begin the name of an attribute ({_NAME_MAX} bytes at most)"
            raise ValueError(f"xattrmap rule {number}: {what}")
