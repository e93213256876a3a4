"""virtio-input: a keyboard and a pointer for a VM.

seat = Input("combined")
async with trio.open_nursery() as nursery:
    await nursery.start(vhost.serve, seat, "/run/vm1-input.sock")
    seat.name_key("Enter", True)
"""

from devices.input.device import Input, InputError, Kind

__all__ = ["Input", "InputError", "Kind"]
