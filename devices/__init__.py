"""Devices that vhostkit serves. Each is a package: its data path in C, its configuration, its stores or links.

``devices.blk`` is virtio-blk. Devices know ``vhost`` and ``ring``, never each other.
"""
