"""virtio-fs: a shared folder, or a file system of your own, for any guest.

::

    async with Passthrough.open("/srv/share") as folder:
        await vhost.serve(Fs(folder, tag="share"), "/run/vm0-fs.sock")
"""

from devices.fs.device import Fs
from devices.fs.server import NativeServer, NullServer, Server
from devices.fs.stats import FsStats

__all__ = ["Fs", "FsStats", "NativeServer", "NullServer", "Server"]
