"""Options of a device that needs nothing of the host once it is served."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vhost.plugin import Option
from vhost.sandbox.confinement import Confinement

__all__ = ["OPTIONS", "SECCOMP", "confinement_of"]

SECCOMP = Option("seccomp", "choice", "system calls that are not needed: fail, end the process, are logged, pass",
                 "deny", choices=("deny", "kill", "log", "none"))  # fmt: skip
OPTIONS = (
    Option("sandbox", "choice", "what it sees of the host's files and networks: nothing (namespace), all (none)",
           "namespace", choices=("namespace", "none")),
    SECCOMP,
)  # fmt: skip


def confinement_of(values: Mapping[str, Any]) -> Confinement:
    """The confinement that the options ask for."""
    return Confinement(mode=values["sandbox"], others=values["seccomp"])
