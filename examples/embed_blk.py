"""A VMM with our disk in its own process: memory and eventfds are handed over, no socket in between.

    python examples/embed_blk.py disk.img

This plays both the VMM (memory, eventfds, configuration) and, for lack of a guest, the guest's driver: it writes a
sector, reads it back and prints what the disk said. The image has to exist; its first sector is overwritten.
"""

import mmap
import os
import struct
import sys

import trio

import ring
import vhost
from devices.blk import Blk, FileStore

MEMORY = 16 << 20  # bytes of guest memory, at guest-physical address 0
RING, HEADER, DATA, STATUS = 0, 1 << 20, 2 << 20, 3 << 20  # where the "guest" keeps things in it
READ, WRITE = 0, 1


class Guest:
    """Guest memory, and a driver that does one request at a time."""

    def __init__(self, features: int) -> None:
        self.memfd = os.memfd_create("guest", os.MFD_CLOEXEC)
        os.ftruncate(self.memfd, MEMORY)
        self.memory = mmap.mmap(self.memfd, MEMORY)
        self.ring = ring.Driver(self.memory, gpa=RING, size=64, features=features)
        self.kick = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.call = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    async def request(self, kind: int, sector: int, data: bytes = bytes(512)) -> tuple[int, bytes]:
        """Status byte and data of one request."""
        self.memory[HEADER : HEADER + 16] = struct.pack("<IIQ", kind, 0, sector)
        self.memory[DATA : DATA + len(data)] = data
        header, buffer, status = (HEADER, 16), (DATA, len(data)), (STATUS, 1)
        if kind == WRITE:
            self.ring.add([header, buffer], [status])
        else:
            self.ring.add([header], [buffer, status])
        if self.ring.publish():
            os.eventfd_write(self.kick, 1)
        while not self.ring.poll():
            if self.ring.calls_on():
                continue
            await trio.lowlevel.wait_readable(self.call)
            os.eventfd_read(self.call)
        return self.memory[STATUS], self.memory[DATA : DATA + len(data)]

    def close(self) -> None:
        """Give everything back."""
        self.ring.close()
        self.memory.close()
        for fd in (self.memfd, self.kick, self.call):
            os.close(fd)


async def main(path: str) -> None:
    """Embed, use, take out again."""
    async with FileStore.open(path) as store, vhost.open_embedder() as embedder, embedder.attach(Blk(store)) as disk:
        print("capacity:", struct.unpack("<Q", disk.read_config(0, 8))[0] * 512, "bytes")
        await disk.set_features(disk.offered_features)
        guest = Guest(disk.features)
        await disk.add_memory(guest.memfd, gpa=0, size=MEMORY)
        await disk.start_queue(
            0,
            size=64,
            desc=guest.ring.desc,
            avail=guest.ring.avail,
            used=guest.ring.used,
            kick=guest.kick,
            call=guest.call,
        )
        message = b"written without a socket".ljust(512, b".")
        status, _ = await guest.request(WRITE, 0, message)
        print("write:", "ok" if status == 0 else f"status {status}")
        status, data = await guest.request(READ, 0)
        print("read:", data.rstrip(b".").decode() if status == 0 else f"status {status}")
        await disk.stop_queue(0)
        guest.close()


if __name__ == "__main__":
    trio.run(main, sys.argv[1])
