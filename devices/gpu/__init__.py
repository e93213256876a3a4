"""virtio-gpu: a display for a VM.

gpu = Gpu(scanouts=2)
await vhost.serve(gpu, "/run/vm1-gpu.sock")
...
gpu.picture(0)                     # what the guest shows now
"""

from devices.gpu.device import Gpu
from devices.gpu.edid import edid_of
from devices.gpu.limits import Limits
from devices.gpu.picture import Mode, Picture, PictureError, parse_mode
from devices.gpu.stats import GpuStats

__all__ = ["Gpu", "GpuStats", "Limits", "Mode", "Picture", "PictureError", "edid_of", "parse_mode"]
