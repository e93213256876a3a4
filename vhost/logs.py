"""Logging of the servers: one line per event, with the fields that say which VM and device it is about.

Records carry fields by ``extra={...}``; text shows them as ``key=value`` behind the message, JSON as members.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import TextIO

__all__ = ["LEVELS", "setup"]

LEVELS = ("debug", "info", "warning", "error")

_STANDARD = frozenset(vars(logging.LogRecord("", 0, "", 0, "", (), None))) | {"message", "asctime", "taskName"}


def _fields(record: logging.LogRecord) -> dict[str, object]:
    return {k: v for k, v in vars(record).items() if k not in _STANDARD and not k.startswith("_")}


class TextFormatter(logging.Formatter):
    """``level: message key=value …``; the time too where nobody else (journald) adds one."""

    def __init__(self, *, times: bool) -> None:
        super().__init__()
        self._times = times

    def format(self, record: logging.LogRecord) -> str:
        """One record as text."""
        fields = " ".join(f"{k}={v}" for k, v in _fields(record).items())
        stamp = time.strftime("%H:%M:%S ", time.localtime(record.created)) if self._times else ""
        line = f"{stamp}vhost: {record.levelname.lower()}: {record.getMessage()}"
        if fields:
            line += f" [{fields}]"
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return line


class JsonFormatter(logging.Formatter):
    """One JSON object per line: time (seconds since the epoch), level, logger, message and the record's fields."""

    def format(self, record: logging.LogRecord) -> str:
        """One record as JSON."""
        out: dict[str, object] = {
            "time": round(record.created, 6),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        out.update(_fields(record))
        if record.exc_info:
            out["traceback"] = self.formatException(record.exc_info)
        return json.dumps(out, default=str)


def setup(level: str, style: str = "text", stream: TextIO | None = None) -> None:
    """Send all log records of ``level`` and above to ``stream`` (stderr).

    Args:
        level: One of `LEVELS`.
        style: ``text`` or ``json``.
        stream: Where to; stderr if None.
    """
    stream = stream or sys.stderr
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter() if style == "json" else TextFormatter(times=stream.isatty()))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
