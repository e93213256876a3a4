"""Displays on a web page of this machine."""

from devices.gpu.web.server import WebServer

__all__ = ["WebServer"]
