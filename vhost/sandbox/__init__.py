"""What a process of ours gives up before it serves: its view of the file system, networks, capabilities, system calls.

A device says what it still needs (`Confinement`, from `vhost.Device.confinement`); `seal` then takes the rest from the
whole process, once, after sockets and stores are open and before the first worker thread runs. A process whose devices
do not all say so is not sealed: what they need is not known.

Only the ``vhost`` commands seal. A program that embeds the library decides for itself what it gives up.
"""

from __future__ import annotations

from vhost.sandbox.confinement import Confinement, IdMap, parse_id_map
from vhost.sandbox.seal import seal

__all__ = ["Confinement", "IdMap", "parse_id_map", "seal"]
