"""Displays over VNC (RFC 6143), by libvncserver."""

from devices.gpu.vnc.server import VncServer

__all__ = ["VncServer"]
