"""A device that copies what it reads back to where it may write: for tests and benches of the ring and server alone.

    python examples/echo.py /tmp/echo.sock

It works by the batch: one wait, one pop and one notification for as many requests as there are.
"""

import sys

import trio

import ring
import vhost


class Echo(vhost.Device):
    """Any number of queues; not a device of the virtio specification."""

    device_id = 0xFFFF
    queue_sizes = (1024,) * 4

    async def run(self, queue: ring.Virtqueue) -> None:
        """Copy the readable bytes of each request to its writable ones."""
        while await queue.wait():
            for chain in queue.pop_batch():
                chain.complete(chain.write(0, chain.read()))
            queue.flush()


if __name__ == "__main__":
    trio.run(vhost.run_until_signal, vhost.serve, Echo(), sys.argv[1])
