"""Real guests for tests, the demo and benches: Debian kernels under QEMU and User-mode Linux, driven from trio.

>>> async with storage_daemon(folder, image) as backend:            # or vhost_blk(folder, image), our own
...     async with boot_qemu(QemuConfig(devices=(VhostUser(backend.socket),)), folder) as guest:
...         await guest.run("mkfs.ext4 -q /dev/vda")
"""

from guestlib.agent import Agent, CommandFailed, Result
from guestlib.assets import Kernel, Qemu, backports_qemu, boot_disk, debian_display_kernel, debian_kernel, system_qemu
from guestlib.backends import Backend, storage_daemon, vhost, vhost_blk
from guestlib.debian import AssetError
from guestlib.process import GuestError, Proc, started, tail
from guestlib.qemu import (
    QemuConfig,
    QemuGuest,
    VhostFs,
    VhostGpu,
    VhostNet,
    VhostUser,
    boot_qemu,
    find_accel,
    memory_object,
)
from guestlib.qmp import Qmp, QmpError
from guestlib.uml import UmlDevice, UmlGuest, boot_uml

__all__ = [
    "Agent",
    "AssetError",
    "Backend",
    "CommandFailed",
    "GuestError",
    "Kernel",
    "Proc",
    "Qemu",
    "QemuConfig",
    "QemuGuest",
    "Qmp",
    "QmpError",
    "Result",
    "UmlDevice",
    "UmlGuest",
    "VhostFs",
    "VhostGpu",
    "VhostNet",
    "VhostUser",
    "backports_qemu",
    "boot_disk",
    "boot_qemu",
    "boot_uml",
    "debian_display_kernel",
    "debian_kernel",
    "find_accel",
    "memory_object",
    "started",
    "storage_daemon",
    "system_qemu",
    "tail",
    "vhost",
    "vhost_blk",
]
