"""virtio-fs: a shared folder, or a file system of your own, for any guest.

::

    async with Passthrough("/srv/share") as folder:
        await vhost.serve(Fs(folder, tag="share"), "/run/vm0-fs.sock")
"""

from devices.fs.device import Fs
from devices.fs.passthrough import Passthrough, PassthroughError
from devices.fs.server import NativeServer, NullServer, Server, Session
from devices.fs.stats import FsStats

__all__ = ["Fs", "FsStats", "NativeServer", "NullServer", "Passthrough", "PassthroughError", "Server", "Session"]
