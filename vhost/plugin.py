"""What a device declares once: its name, options and how to open it.

From one :class:`DeviceType` come the command (``vhost blk …``), the ``[[device]]`` table of a configuration file, the
capability JSON for libvirt and the names in metrics and the control socket. Device types are found by the entry point
group ``vhost.devices``, so a package of somebody else's adds a device the same way as ours.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, Literal

from vhost.errors import VhostError

if TYPE_CHECKING:
    from vhost.device import Device

__all__ = [
    "Companion",
    "ConfigError",
    "DeviceType",
    "Option",
    "device_types",
    "find_device_type",
    "is_device_type",
    "parse_rate",
    "parse_size",
]

GROUP = "vhost.devices"

Kind = Literal["text", "int", "size", "rate", "flag", "path", "choice", "mode", "texts"]


class ConfigError(VhostError):
    """The user asked for something that cannot be: the message says what, where and what to do."""


_SIZES = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40, "P": 1 << 50}
_RATES = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9}


def _parse(text: str | int, what: str, pattern: str, units: Mapping[str, int], hint: str) -> int:
    """A number with one of ``units`` behind it."""
    if isinstance(text, int) and not isinstance(text, bool):
        if text < 0:
            raise ValueError(f"a {what} is not negative")
        return text
    match = re.fullmatch(pattern, str(text).strip(), re.IGNORECASE)
    if match is None:
        raise ValueError(f"{text!r} is not a {what}; write {hint}")
    return int(match[1]) * units[match[2].upper()]


def parse_size(text: str | int) -> int:
    """Bytes from ``4096``, ``64M``, ``10G`` (powers of 1024, as in QEMU).

    Raises:
        ValueError: not a size.
    """
    hint = "bytes or a number with K, M, G or T, such as 10G"
    return _parse(text, "size", r"(\d+)([KMGTP]?)(?:iB|B)?", _SIZES, hint)


def parse_rate(text: str | int) -> int:
    """A number per second from ``5000``, ``5k`` or ``100M`` (powers of 1000).

    Raises:
        ValueError: not a rate.
    """
    return _parse(text, "rate", r"(\d+)([kmg]?)", _RATES, "a number per second, such as 5000 or 100M")


def _parse_mode(value: str | int) -> int:
    """Permission bits from text in octal; TOML's 0o660 is a number already."""
    try:
        mode = value if isinstance(value, int) else int(value, 8)
    except ValueError:
        raise ValueError(f"{value!r} is not an octal mode such as 660") from None
    if not 0 <= mode <= 0o777:
        raise ValueError(f"{value!r} has more than permission bits")
    return mode


@dataclass(frozen=True, slots=True)
class Option:
    """One option of a device: ``--name`` on the command line, ``name =`` in a configuration file.

    Args:
        name: With dashes, as the user writes it.
        kind: How it is read: ``size`` takes 64M, ``rate`` takes 5k, a ``flag`` takes no value; ``texts`` may be given
            several times on a command line, and is a list in a configuration file.
        help: One line for the user; units included.
        default: What the device gets when the user says nothing.
        choices: For ``choice``.
        metavar: The value's name in the help text.
        required: The user must give it.
        minimum: Smallest number, for ``int``.
        maximum: Largest number, for ``int``.
    """

    name: str
    kind: Kind
    help: str
    default: Any = None
    choices: Sequence[str] = ()
    metavar: str | None = None
    required: bool = False
    minimum: int | None = None
    maximum: int | None = None

    @property
    def key(self) -> str:
        """The name as a Python identifier."""
        return self.name.replace("-", "_")

    def convert(self, value: object) -> Any:
        """``value`` (text from a command line or a TOML value) as the device gets it.

        Raises:
            ConfigError: names the option, the value and what would do.
        """
        try:
            return self._convert(value)
        except ValueError as exc:
            raise ConfigError(f"option {self.name}: {exc}") from None

    def _convert(self, value: object) -> Any:
        if self.kind == "flag":
            if isinstance(value, bool):
                return value
            raise ValueError(f"{value!r} is not true or false")
        if self.kind == "texts":
            items = list(value) if isinstance(value, (list, tuple)) else [value]
            if not all(isinstance(item, str) for item in items):
                raise ValueError(f"{value!r} is not a list of texts")
            return tuple(items)
        if isinstance(value, bool) or not isinstance(value, (str, int)):
            raise ValueError(f"{value!r} is not a {self.kind}")
        if self.kind == "size":
            return parse_size(value)
        if self.kind == "rate":
            return parse_rate(value)
        if self.kind == "int":
            return self._int(value)
        if self.kind == "mode":
            return _parse_mode(value)
        if self.kind == "choice" and value not in self.choices:
            raise ValueError(f"{value!r} is none of {', '.join(self.choices)}")
        return str(value)

    def _int(self, value: str | int) -> int:
        try:
            number = int(value)
        except ValueError:
            raise ValueError(f"{value!r} is not a whole number") from None
        if self.minimum is not None and number < self.minimum:
            raise ValueError(f"{number} is less than {self.minimum}")
        if self.maximum is not None and number > self.maximum:
            raise ValueError(f"{number} is more than {self.maximum}")
        return number


@dataclass(frozen=True, slots=True)
class Companion:
    """A second device that comes with one, served on a socket of its own.

    Attributes:
        type: its device type's name.
        name: in logs, metrics and the control socket, behind the name of the first and a dash.
        socket_path: where it is served.
        given: its options, names with dashes.
    """

    type: str
    name: str
    socket_path: str
    given: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class DeviceType:
    """A kind of device that the command, the configuration file and libvirt can name.

    Args:
        name: The command: ``vhost NAME``.
        backend_type: The type in QEMU's ``vhost-user.json`` schema (``block``, ``net``, …).
        summary: One line for the help text.
        options: Its options, beyond those every device has (socket, workers, …).
        open: Makes the device from option values (keys with underscores, every option present); its exit closes
            stores and links. Raises :class:`ConfigError` for what the user can mend.
        features: Names for the capability JSON; those of QEMU's schema only.
        parameter_help: Text under the options in ``--help``.
        companions: Devices that are served beside it, by its option values; it finds them by `Device.meet`.
    """

    name: str
    backend_type: str
    summary: str
    options: Sequence[Option]
    open: Callable[[Mapping[str, Any]], AbstractAsyncContextManager[Device]]
    features: Sequence[str] = ()
    parameter_help: str = ""
    companions: Callable[[Mapping[str, Any]], Sequence[Companion]] | None = None

    def values(self, given: Mapping[str, object]) -> dict[str, Any]:
        """Every option's value: ``given`` (option names with dashes) converted, defaults for the rest.

        Raises:
            ConfigError: an unknown, missing or unreadable option.
        """
        known = {option.name: option for option in self.options}
        for name in given:
            if name not in known:
                raise ConfigError(f"{self.name}: no option {name!r}; there are {', '.join(sorted(known))}")
        out: dict[str, Any] = {}
        for name, option in known.items():
            if name in given and given[name] is not None:
                out[option.key] = option.convert(given[name])
            elif option.required:
                raise ConfigError(f"{self.name}: option {name} is missing: {option.help}")
            else:
                out[option.key] = option.default
        return out


def device_types() -> dict[str, DeviceType]:
    """All installed device types by name; one that cannot be imported is left out (see :func:`find_device_type`)."""
    found = {}
    for entry in entry_points(group=GROUP):
        try:
            found[entry.name] = entry.load()
        except ImportError:
            continue
    return found


def is_device_type(name: str) -> bool:
    """Whether a device type of that name is installed (it may still lack a library)."""
    return name in {entry.name for entry in entry_points(group=GROUP)}


def find_device_type(name: str) -> DeviceType:
    """The device type called ``name``.

    Raises:
        ConfigError: none of that name, or it lacks a library (which the message names).
    """
    entries = {entry.name: entry for entry in entry_points(group=GROUP)}
    if name not in entries:
        raise ConfigError(f"no device type {name!r}; installed are {', '.join(sorted(entries)) or 'none'}")
    try:
        found: DeviceType = entries[name].load()
    except ImportError as exc:
        raise ConfigError(f"device type {name!r} cannot be loaded: {exc}") from exc
    return found
