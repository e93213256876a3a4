"""The control socket of a running server: JSON-RPC 2.0, one object per line, over a Unix socket.

Methods come from what devices and the server declare (a mapping of names to callables); their parameters are checked
against the callables' annotations, so a device writes a plain typed function and nothing else. ``help`` lists them.

Addressing: a method of a device is called ``DEVICE.METHOD`` or as ``METHOD`` with a ``device`` parameter, which may be
left out where only one device is served.
"""

from __future__ import annotations

import base64
import inspect
import json
import logging
import types
import typing
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import trio

from vhost import listener
from vhost.errors import VhostError

__all__ = ["APPLICATION_ERROR", "CallersFile", "ControlError", "ControlServer", "Methods", "call"]

log = logging.getLogger(__name__)

#: name -> function, plain or async, with annotated keyword parameters of JSON types
Methods = Mapping[str, Callable[..., Any]]

PARSE_ERROR = -32700
INVALID_REQUEST = -32600
METHOD_NOT_FOUND = -32601
INVALID_PARAMS = -32602
INTERNAL_ERROR = -32603
#: the method ran and says no; its words are in the message
APPLICATION_ERROR = -32000

#: a request is one line; a control message of ours needs a hundredth of this
MAX_LINE = 64 * 1024
#: at once; an operator and a monitoring agent need two
MAX_CLIENTS = 16


@dataclass(frozen=True, slots=True)
class CallersFile:
    """A method's result with a file, which `call` writes where its parameter ``path`` says: servers may see no folders.

    Attributes:
        data: of the file.
        result: what the method's result is besides.
    """

    data: bytes
    result: Any = None

    def as_json(self) -> dict[str, Any]:
        """As it is sent."""
        return {"result": self.result, "base64": base64.b64encode(self.data).decode()}


class ControlError(Exception):
    """A JSON-RPC error, to be sent (server) or as received (client).

    Args:
        code: The JSON-RPC code.
        message: One sentence.
    """

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


def _accepts(annotation: Any, value: object) -> bool:
    """Whether a JSON ``value`` fits a parameter annotated so; unknown annotations accept anything."""
    origin = typing.get_origin(annotation)
    if origin in (typing.Union, types.UnionType):
        return any(_accepts(arm, value) for arm in typing.get_args(annotation))
    if origin is typing.Literal:
        return value in typing.get_args(annotation)
    if annotation is None or annotation is type(None):
        return value is None
    if annotation is bool:
        return isinstance(value, bool)
    if annotation is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if annotation is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if annotation is str:
        return isinstance(value, str)
    return True


def _signature(function: Callable[..., Any]) -> inspect.Signature:
    return inspect.signature(function, eval_str=True)


def _bind(method: str, function: Callable[..., Any], params: Mapping[str, Any]) -> None:
    """Refuse parameters that do not fit ``function``, in words."""
    signature = _signature(function)
    for name, value in params.items():
        parameter = signature.parameters.get(name)
        if parameter is None:
            names = ", ".join(signature.parameters) or "no parameters"
            raise ControlError(INVALID_PARAMS, f"{method}: no parameter {name!r}; it takes {names}")
        if not _accepts(parameter.annotation, value):
            raise ControlError(INVALID_PARAMS, f"{method}: {name}={value!r} is not {_type_name(parameter.annotation)}")
    for name, parameter in signature.parameters.items():
        if parameter.default is parameter.empty and name not in params:
            raise ControlError(INVALID_PARAMS, f"{method}: parameter {name!r} is missing")


def _type_name(annotation: Any) -> str:
    if annotation is inspect.Parameter.empty:
        return "any"
    if isinstance(annotation, type):
        return annotation.__name__
    return str(annotation).replace("typing.", "")


def _first_line(function: Callable[..., Any]) -> str:
    return (inspect.getdoc(function) or "").partition("\n")[0]


class ControlServer:
    """Serves methods of a process and of its devices on one socket.

    Args:
        methods: Methods of the process itself.
        devices: Called at each request: device name -> its methods.
    """

    def __init__(self, methods: Methods, devices: Callable[[], Mapping[str, Methods]]) -> None:
        self._methods = dict(methods)
        self._devices = devices
        self._methods["help"] = self.help

    def help(self) -> dict[str, Any]:
        """Every method with its parameters and a line of help."""
        out: dict[str, Any] = {}
        for name, function in sorted(self._all().items()):
            out[name] = {
                "params": {
                    p.name: _type_name(p.annotation) + ("" if p.default is p.empty else f" = {p.default!r}")
                    for p in _signature(function).parameters.values()
                },
                "help": _first_line(function),
            }
        return out

    def _all(self) -> dict[str, Callable[..., Any]]:
        out = dict(self._methods)
        for device, methods in self._devices().items():
            out.update({f"{device}.{name}": function for name, function in methods.items()})
        return out

    def _find(self, method: str, params: dict[str, Any]) -> Callable[..., Any]:
        found = self._all()
        if method in found:
            return found[method]
        devices = self._devices()
        having = sorted(name for name, methods in devices.items() if method in methods)
        device = params.pop("device", None)
        if device is None and len(having) == 1:
            device = having[0]
        if device is None and having:
            raise ControlError(INVALID_PARAMS, f"{method}: say which device: {', '.join(having)}")
        if device is not None and having and device not in devices:
            raise ControlError(INVALID_PARAMS, f"{method}: no device {device!r}; there are {', '.join(devices)}")
        if device is None or device not in having:
            raise ControlError(METHOD_NOT_FOUND, f"no method {method!r}; 'help' lists them")
        return devices[device][method]

    async def call(self, method: str, params: Mapping[str, Any]) -> Any:
        """Run one method as a client would.

        Raises:
            ControlError: unknown method, parameters that do not fit, or the method refused.
        """
        given = dict(params)
        function = self._find(method, given)
        _bind(method, function, given)
        try:
            result = function(**given)
            if isinstance(result, Awaitable):
                result = await result
        except ControlError:
            raise
        except (VhostError, ValueError, OSError, RuntimeError) as exc:
            raise ControlError(APPLICATION_ERROR, f"{method}: {exc}") from exc
        return result

    async def _answer(self, request: object) -> dict[str, Any] | None:
        """The response object to one request object; None for a notification."""
        ident = request.get("id") if isinstance(request, dict) else None
        try:
            if not isinstance(request, dict) or request.get("jsonrpc") != "2.0":
                raise ControlError(INVALID_REQUEST, 'not a JSON-RPC 2.0 request: "jsonrpc": "2.0" is missing')
            method, params = request.get("method"), request.get("params", {})
            if not isinstance(method, str) or (ident is not None and not isinstance(ident, (str, int, float))):
                raise ControlError(INVALID_REQUEST, "method must be a string, id a string or number")
            if not isinstance(params, dict):
                raise ControlError(INVALID_PARAMS, "params must be an object with named parameters")
            result = await self.call(method, params)
        except ControlError as exc:
            error = {"code": exc.code, "message": exc.message}
            if isinstance(request, dict) and "id" not in request and exc.code != INVALID_REQUEST:
                return None
            return {"jsonrpc": "2.0", "id": ident, "error": error}
        except Exception:
            log.exception("control method failed")
            error = {"code": INTERNAL_ERROR, "message": "internal error; the server's log has the traceback"}
            return {"jsonrpc": "2.0", "id": ident, "error": error}
        if "id" not in request:
            return None
        if isinstance(result, CallersFile):
            result = result.as_json()
        return {"jsonrpc": "2.0", "id": ident, "result": result}

    async def respond(self, line: bytes) -> bytes | None:
        """The response line to one request line (a request or a batch), or None where none is due."""
        try:
            request = json.loads(line)
        except (ValueError, RecursionError):
            error = {"code": PARSE_ERROR, "message": "not JSON"}
            return json.dumps({"jsonrpc": "2.0", "id": None, "error": error}).encode() + b"\n"
        answer: Any
        if isinstance(request, list) and request:
            answer = [a for a in [await self._answer(r) for r in request] if a is not None] or None
        else:
            answer = await self._answer(request)
        return None if answer is None else json.dumps(answer).encode() + b"\n"

    async def _client(self, stream: trio.SocketStream) -> None:
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            async with stream:
                buffer = b""
                while chunk := await stream.receive_some(MAX_LINE):
                    buffer += chunk
                    *lines, buffer = buffer.split(b"\n")
                    for line in lines:
                        if line.strip() and (answer := await self.respond(line)) is not None:
                            await stream.send_all(answer)
                    if len(buffer) > MAX_LINE:
                        log.warning("control client closed: a request of more than %d bytes", MAX_LINE)
                        return

    async def serve(self, path: str, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Listen on the Unix socket ``path`` (mode 0600) until cancelled; the file is removed then.

        Args:
            path: Where; a dead socket file there is replaced.
            task_status: Started once clients can connect.

        Raises:
            SocketError: somebody listens there, or the folder is not writable.
        """
        limiter = trio.CapacityLimiter(MAX_CLIENTS)

        async def handler(stream: trio.SocketStream) -> None:
            async with limiter:
                await self._client(stream)

        async with listener.listen(path) as sock:
            task_status.started()
            await trio.serve_listeners(handler, [trio.SocketListener(sock)])


async def call(path: str, method: str, params: Mapping[str, Any]) -> Any:
    """Ask the server at the control socket ``path`` to run ``method``; its result.

    A file that comes with it is written where the parameter ``path`` says.

    Raises:
        ControlError: the server's error.
        OSError: nobody listens there.
    """
    stream = await trio.open_unix_socket(path)
    async with stream:
        request = {"jsonrpc": "2.0", "id": 1, "method": method, "params": dict(params)}
        await stream.send_all(json.dumps(request).encode() + b"\n")
        buffer = bytearray()
        while not buffer.endswith(b"\n"):
            chunk = await stream.receive_some(MAX_LINE)
            if not chunk:
                raise ControlError(INTERNAL_ERROR, "the server closed the control socket without an answer")
            buffer += chunk
    answer = json.loads(buffer)
    if "error" in answer:
        raise ControlError(answer["error"]["code"], answer["error"]["message"])
    result = answer["result"]
    if isinstance(result, dict) and result.keys() == {"result", "base64"} and "path" in params:
        try:
            await trio.Path(params["path"]).write_bytes(base64.b64decode(result["base64"]))
        except OSError as exc:
            raise ControlError(APPLICATION_ERROR, f"{params['path']} cannot be written: {exc.strerror}") from exc
        return result["result"]
    return result
