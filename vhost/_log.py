"""Log records with fields, and limits on how often a guest may make us write one."""

import logging
from collections.abc import Mapping, MutableMapping
from typing import Any

import trio

__all__ = ["Fields", "RateLimit"]


class Fields(logging.LoggerAdapter[logging.Logger]):
    """A logger whose records carry fields (device, socket, …); a call's own `extra` is added to them."""

    def __init__(self, logger: logging.Logger, fields: Mapping[str, Any]) -> None:
        """Args: fields: JSON-able values; None ones are left out."""
        super().__init__(logger, {key: value for key, value in fields.items() if value is not None})

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        """Merge the fields."""
        kwargs["extra"] = {**(self.extra or {}), **kwargs.get("extra", {})}
        return msg, kwargs

    def sub(self, **fields: Any) -> "Fields":
        """The same with more fields."""
        return Fields(self.logger, {**(self.extra or {}), **fields})

    def quiet(self) -> "Fields":
        """The same, for what happens too often: nothing below errors is written."""
        return _Quiet(self.logger, self.extra or {})


class _Quiet(Fields):
    def isEnabledFor(self, level: int) -> bool:  # noqa: N802 - logging's name
        return level >= logging.ERROR and super().isEnabledFor(level)

    def sub(self, **fields: Any) -> "Fields":
        return _Quiet(self.logger, {**(self.extra or {}), **fields})


class RateLimit:
    """A token bucket: `burst` lines at once, then one per `seconds`."""

    def __init__(self, burst: int = 5, seconds: float = 10.0) -> None:
        self._burst = burst
        self._seconds = seconds
        self._tokens = float(burst)
        self._last: float | None = None
        self.suppressed = 0

    def __call__(self) -> bool:
        """True if a line may be written now; else it is counted in `suppressed`."""
        now = trio.current_time()
        if self._last is not None:
            self._tokens = min(self._burst, self._tokens + (now - self._last) / self._seconds)
        self._last = now
        if self._tokens >= 1:
            self._tokens -= 1
            return True
        self.suppressed += 1
        return False
