"""``python -m devices.gpu.render``: the launcher, started by `devices.gpu.render.renderer`."""

from devices.gpu.render.launcher import main

main()
