"""A device of one's own: virtio-rng, which gives the guest random bytes.

    python examples/rng.py /tmp/rng.sock
    qemu-system-x86_64 … -object memory-backend-memfd,id=m,size=1G,share=on -machine memory-backend=m \\
        -chardev socket,id=c,path=/tmp/rng.sock -device vhost-user-rng-pci,chardev=c
"""

import os
import sys

import trio

import ring
import vhost


class Entropy(vhost.Device):
    """virtio-rng [VIRTIO 1.3, 5.4]: one queue of buffers to fill."""

    device_id = 4
    queue_sizes = (256,)

    async def run(self, queue: ring.Virtqueue) -> None:
        """Fill every buffer the guest offers."""
        async for chain in queue:
            for view in chain.writable:  # memoryviews that lie in guest memory
                view[:] = os.urandom(len(view))
            chain.complete(chain.in_bytes)


if __name__ == "__main__":
    trio.run(vhost.run_until_signal, vhost.serve, Entropy(), sys.argv[1])
