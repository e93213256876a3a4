"""Start a VMM and serve it a disk over a socketpair: no socket file, no waiting, and both end together.

    python examples/serve_socketpair.py disk.img qemu-system-x86_64 … \\
        -object memory-backend-memfd,id=m,size=1G,share=on -machine memory-backend=m \\
        -chardev socket,id=c,fd={fd} -device vhost-user-blk-pci,chardev=c

`{fd}` in the VMM's arguments becomes the number of the descriptor it inherits.
"""

import socket
import sys

import trio

import vhost
from devices.blk import Blk, FileStore


async def main(image: str, command: list[str]) -> int:
    """Run the VMM; returns its exit status."""
    ours, theirs = socket.socketpair()
    async with FileStore.open(image) as store, trio.open_nursery() as nursery:
        nursery.start_soon(vhost.serve_fd, Blk(store), ours.detach())
        with theirs:
            arguments = [word.replace("{fd}", str(theirs.fileno())) for word in command]
            vmm = await trio.lowlevel.open_process(arguments, pass_fds=[theirs.fileno()])
        # The VMM has the only other end now: when it exits, serve_fd returns.
        return await vmm.wait()


if __name__ == "__main__":
    sys.exit(trio.run(main, sys.argv[1], sys.argv[2:]))
