"""Where ``vhost gpu`` shows its picture, as options say it: sockets are made here, before anything is sealed."""

from __future__ import annotations

import ipaddress
import logging
import re
import socket
import ssl
import stat
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import trio

from devices.gpu.device import Gpu
from vhost import listener
from vhost.errors import VhostError
from vhost.plugin import Companion, ConfigError, Option

if TYPE_CHECKING:
    from devices.gpu.vnc.handshake import Security

__all__ = ["OPTIONS", "companions", "open_viewers"]

_LOG: Final = logging.getLogger("vhost.gpu")
_VNC_PORT: Final = 5900
_PASSWORD_MAX: Final = 8
#: options that a display's input devices have, too
_OF_COMPANIONS: Final = ("keyboard", "sandbox", "seccomp")

OPTIONS: Final = (
    Option("vnc", "texts", "show a scanout over VNC: :N, HOST:PORT or unix:PATH; ,scanout=N", metavar="ADDRESS"),
    Option("vnc-password-file", "path", "its first line is the VNC password, at most 8 characters", metavar="FILE"),
    Option("vnc-tls-cert", "path", "encrypt VNC: certificate chain, PEM", metavar="FILE"),
    Option("vnc-tls-key", "path", "encrypt VNC: private key, PEM", metavar="FILE"),
    Option("web", "text", "show it on a web page on HOST:PORT of this machine; port 0: any", metavar="HOST:PORT"),
    Option(
        "input-socket",
        "texts",
        "serve a virtio-input device beside it for what viewers type: one is keyboard and tablet, two are one each",
        metavar="PATH",
    ),
    Option(
        "keyboard",
        "text",
        "the guest's layout, for --input-socket: us, de, gb, de(nodeadkeys), …",
        "us",
        metavar="LAYOUT",
    ),
    Option("input", "texts", "input devices of this process, by name, for what viewers type", metavar="NAME"),
)


def companions(values: Mapping[str, Any]) -> Sequence[Companion]:
    """The input devices of ``--input-socket``.

    Raises:
        ConfigError: too many.
    """
    paths = values["input_socket"] or ()
    if len(paths) > 2:
        raise ConfigError("give --input-socket once or twice: one device for both, or a keyboard and a tablet")
    kinds = ("combined",) if len(paths) < 2 else ("keyboard", "tablet")
    names = ("input",) if len(paths) < 2 else kinds
    return [
        Companion("input", name, path, {"kind": kind} | {option: values[option] for option in _OF_COMPANIONS})
        for name, path, kind in zip(names, paths, kinds, strict=False)
    ]


@asynccontextmanager
async def open_viewers(gpu: Gpu, values: Mapping[str, Any]) -> AsyncIterator[None]:
    """Listen where `values` (of `OPTIONS`) say, and let `gpu` show what it has there when it is served.

    Raises:
        ConfigError: the user can mend it.
    """
    gpu.seat.names = values["input"] or ()
    async with AsyncExitStack() as stack:
        if values["vnc"]:
            await _open_vnc(stack, gpu, values)
        elif values["vnc_password_file"] or values["vnc_tls_cert"] or values["vnc_tls_key"]:
            raise ConfigError("a password or TLS for VNC, but no --vnc ADDRESS to use it on")
        if values["web"]:
            await _open_web(stack, gpu, values["web"])
        yield


# VNC


async def _open_vnc(stack: AsyncExitStack, gpu: Gpu, values: Mapping[str, Any]) -> None:
    try:
        from devices.gpu.vnc import VncServer
    except ImportError:
        raise ConfigError(
            "vnc: this vhostkit was built without libvncserver; install libvncserver-dev and build it again"
        ) from None
    security = _security(values)
    for text in values["vnc"]:
        address, scanout = _vnc_address(text)
        if scanout >= gpu.scanouts:
            raise ConfigError(f"vnc: {text}: there is no scanout {scanout}; there are 0 to {gpu.scanouts - 1}")
        sock, where = await _listen(stack, address, "vnc")
        if isinstance(address, tuple) and not _is_loopback(address[0]):
            if security.password is None:
                what = "give --vnc-password-file FILE, or listen on 127.0.0.1"
                raise ConfigError(f"vnc: {text} lets everybody on the network use this VM; {what}")
            if security.tls is None:
                _LOG.warning("vnc on %s is not encrypted; give --vnc-tls-cert and --vnc-tls-key", where)
        gpu.viewers.append(VncServer(gpu, sock, scanout=scanout, security=security, where=where))
        _LOG.info("scanout %d over vnc on %s", scanout, where)


def _security(values: Mapping[str, Any]) -> Security:
    from devices.gpu.vnc.handshake import Security

    cert, key = values["vnc_tls_cert"], values["vnc_tls_key"]
    if (cert is None) != (key is None):
        raise ConfigError("vnc: TLS takes both --vnc-tls-cert and --vnc-tls-key")
    tls = None
    if cert is not None:
        tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        try:
            tls.load_cert_chain(cert, key)
        except OSError as exc:  # ssl.SSLError is one
            raise ConfigError(f"vnc: {cert} and {key} are no certificate with its key: {exc}") from exc
    path = values["vnc_password_file"]
    return Security(None if path is None else _password(Path(path)), tls)


def _password(path: Path) -> bytes:
    try:
        mode = path.stat().st_mode
        lines = path.read_bytes().splitlines()
    except OSError as exc:
        raise ConfigError(f"vnc-password-file: {path}: {exc.strerror}") from exc
    if stat.S_IMODE(mode) & 0o077:
        raise ConfigError(f"vnc-password-file: {path} can be read by others; run: chmod 600 {path}")
    password = lines[0] if lines else b""
    if not 1 <= len(password) <= _PASSWORD_MAX or b"\0" in password:
        raise ConfigError(f"vnc-password-file: the first line of {path} is to have 1 to {_PASSWORD_MAX} characters")
    return password


def _vnc_address(text: str) -> tuple[str | tuple[str, int], int]:
    """A path or host and port, and a scanout."""
    address, *rest = text.split(",")
    scanout = 0
    if rest:
        match = re.fullmatch(r"scanout=(\d{1,2})", rest[0])
        if len(rest) > 1 or match is None:
            raise ConfigError(f"vnc: {text!r}: after the address there may be ,scanout=N")
        scanout = int(match[1])
    if address.startswith("unix:"):
        return address[5:], scanout
    if match := re.fullmatch(r":(\d{1,4})", address):
        return ("127.0.0.1", _VNC_PORT + int(match[1])), scanout
    return _host_port(address, "vnc", "; write :0, 127.0.0.1:5900 or unix:PATH"), scanout


# Sockets


def _host_port(text: str, what: str, hint: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    host = host.strip("[]")
    if host == "localhost":
        host = "127.0.0.1"
    try:
        ipaddress.ip_address(host)
        if not colon or not port.isdigit() or int(port) > 65535:
            raise ValueError(port)
    except ValueError:
        raise ConfigError(f"{what}: {text!r} is not HOST:PORT, with the host's number{hint}") from None
    return host, int(port)


def _is_loopback(host: str) -> bool:
    return ipaddress.ip_address(host).is_loopback


async def _listen(
    stack: AsyncExitStack, address: str | tuple[str, int], what: str
) -> tuple[trio.socket.SocketType, str]:
    """A listening socket, and its address in words. Takes no thread: the sandbox is made while there is none."""
    if isinstance(address, str):
        try:
            return await stack.enter_async_context(listener.listen(address)), f"unix:{address}"
        except VhostError as exc:
            raise ConfigError(f"{what}: {exc}") from exc
    host, port = address
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    plain = socket.socket(family, socket.SOCK_STREAM)
    try:
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        plain.bind((host, port))
        plain.listen(16)
    except OSError as exc:
        plain.close()
        raise ConfigError(f"{what}: cannot listen on {host}:{port}: {exc.strerror}") from exc
    bound = plain.getsockname()[1]
    sock = stack.enter_context(trio.socket.from_stdlib_socket(plain))
    return sock, f"[{host}]:{bound}" if ":" in host else f"{host}:{bound}"


# Web page


async def _open_web(stack: AsyncExitStack, gpu: Gpu, text: str) -> None:
    try:
        from devices.gpu.web import WebServer
    except ImportError:
        raise ConfigError("web: the page takes h11 and wsproto; run: pip install 'vhostkit[web]'") from None
    address = _host_port(text, "web", ", such as 127.0.0.1:8080")
    if not _is_loopback(address[0]):
        what = "listen on 127.0.0.1 and reach it by: ssh -L"
        raise ConfigError(f"web: {text} is not this machine alone, and the page is not encrypted; {what}")
    sock, where = await _listen(stack, address, "web")
    server = WebServer(gpu, sock, where=where)
    gpu.viewers.append(server)
    _LOG.info("the display on a web page: %s", server.url)
