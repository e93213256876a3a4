"""The beginning of a VNC connection: versions, who may look, encryption.

libvncserver keeps the security types that it offers in globals, whichever screen they are for; here they belong to one
server. Spec: RFC 6143, 7.1; VeNCrypt 0.2 (type 19) for TLS.
"""

from __future__ import annotations

import hmac
import os
import re
import ssl
import struct
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

import trio

from devices.gpu._vnc import ffi, lib
from devices.gpu.clients import ClientError

__all__ = ["Encrypted", "HandshakeError", "Security", "shake_hands"]

_GREETING: Final = b"RFB 003.008\n"
_NONE, _PASSWORD, _VENCRYPT = 1, 2, 19
_X509_NONE, _X509_PASSWORD = 260, 261
_FAILED: Final = 1
#: seconds that who has given a wrong password waits for the answer
_PENALTY: Final = 1.0


class HandshakeError(ClientError):
    """The client is not let in: one sentence."""


@dataclass(frozen=True, slots=True)
class Security:
    """Who may look.

    Attributes:
        password: 1 to 8 bytes; None: everybody who can connect.
        tls: None: not encrypted.
    """

    password: bytes | None = None
    tls: ssl.SSLContext | None = None


class _StillRead(trio.abc.Stream):
    """The other end may hang up: what is sent then is lost, and what it said before is still there to be read.

    An encrypted stream that cannot write reads no more.
    """

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        with suppress(trio.BrokenResourceError):
            await self._stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        return await self._stream.receive_some(max_bytes)

    async def aclose(self) -> None:
        await self._stream.aclose()


Encrypted = trio.SSLStream[_StillRead]


def _answer(challenge: bytes, password: bytes) -> bytes:
    data = ffi.new("uint8_t[]", challenge)
    lib.vnc_answer(data, password.ljust(8, b"\0"))
    answer: bytes = ffi.buffer(data)[: lib.VNC_CHALLENGE]
    return answer


async def _exactly(stream: trio.abc.Stream, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = await stream.receive_some(size - len(data))
        if not more:
            raise HandshakeError("it hung up")
        data += more
    return data


async def _ask_password(stream: trio.abc.Stream, password: bytes) -> bool:
    challenge = os.urandom(lib.VNC_CHALLENGE)
    await stream.send_all(challenge)
    return hmac.compare_digest(await _exactly(stream, len(challenge)), _answer(challenge, password))


async def _version(stream: trio.abc.Stream) -> int:
    await stream.send_all(_GREETING)
    said = re.fullmatch(rb"RFB 003\.(\d{3})\n", await _exactly(stream, len(_GREETING)))
    if said is None:
        raise HandshakeError("it does not speak RFB 3")
    minor = int(said[1])
    return 3 if minor < 7 else min(minor, 8)


async def _choose(stream: trio.abc.Stream, minor: int, kind: int) -> None:
    if minor == 3:
        if kind == _VENCRYPT:
            reason = b"this display is encrypted, which takes RFB 3.7"
            await stream.send_all(struct.pack(">II", 0, len(reason)) + reason)
            raise HandshakeError("its version of RFB is too old for TLS")
        await stream.send_all(struct.pack(">I", kind))
        return
    await stream.send_all(bytes((1, kind)))
    if await _exactly(stream, 1) != bytes((kind,)):
        raise HandshakeError("it takes none of what is offered")


async def _encrypt(stream: trio.SocketStream, security: Security) -> Encrypted:
    assert security.tls is not None
    kind = _X509_NONE if security.password is None else _X509_PASSWORD
    await stream.send_all(b"\0\2")
    if await _exactly(stream, 2) != b"\0\2":
        await stream.send_all(b"\xff")
        raise HandshakeError("it speaks another version of VeNCrypt")
    await stream.send_all(b"\0\1" + struct.pack(">I", kind))
    if await _exactly(stream, 4) != struct.pack(">I", kind):
        await stream.send_all(b"\0")
        raise HandshakeError("it does not take TLS with a certificate")
    await stream.send_all(b"\1")
    encrypted = trio.SSLStream(_StillRead(stream), security.tls, server_side=True, https_compatible=True)
    try:
        await encrypted.do_handshake()
    except trio.BrokenResourceError as exc:
        raise HandshakeError(f"TLS failed: {exc.__cause__ or exc}") from exc
    return encrypted


async def shake_hands(
    stream: trio.SocketStream, security: Security
) -> tuple[trio.SocketStream | Encrypted, int]:
    """Let a client in; ClientInit comes next.

    Returns:
        the stream to go on with, and RFB's minor version.

    Raises:
        HandshakeError: it is not let in.
        trio.BrokenResourceError: it is gone.
    """
    minor = await _version(stream)
    on: trio.SocketStream | Encrypted = stream
    good = True
    if security.tls is not None:
        await _choose(stream, minor, _VENCRYPT)
        on = await _encrypt(stream, security)
    else:
        await _choose(stream, minor, _NONE if security.password is None else _PASSWORD)
    if security.password is not None:
        good = await _ask_password(on, security.password)
    if not good:
        await trio.sleep(_PENALTY)
        reason = b"wrong password"
        await on.send_all(struct.pack(">I", _FAILED) + (struct.pack(">I", len(reason)) + reason if minor == 8 else b""))
        raise HandshakeError("wrong password")
    if security.password is not None or security.tls is not None or minor == 8:
        await on.send_all(struct.pack(">I", 0))
    return on, minor
