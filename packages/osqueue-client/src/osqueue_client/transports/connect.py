"""Connect, on connectrpc and pyqwest."""

from __future__ import annotations

import asyncio
import atexit
import os
import re
import time
from functools import cache
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

import pyqwest
from connectrpc.client import ConnectClient
from connectrpc.code import Code
from connectrpc.codec import proto_binary_codec, proto_json_codec
from connectrpc.errors import ConnectError, ErrorDetail
from connectrpc.method import IdempotencyLevel, MethodInfo, StreamType
from protobuf import Message
from protobuf.wkt import Struct

from .. import wire_proto
from ..errors import OsqueueError, TransportConfigError, TransportRequestError, error_from_wire
from ..models import Model
from ..operations import SERVICE_NAME, AnyOperation, Operation
from ..wire_json import check_text, malformed_answer
from . import CONNECT_TIMEOUT
from .connection_errors import WRONG_URL, no_answer, not_connected, reason
from .tls import CaFile, context_of
from .userinfo import without_userinfo

Req = TypeVar("Req", bound=Model)
Res = TypeVar("Res", bound=Model)
M = TypeVar("M", bound=Message[Any])

# pyqwest raises ConnectionError itself where it could not connect; these are of a connection that stood.
_BROKEN_LATER: Final = (ConnectionResetError, ConnectionAbortedError, BrokenPipeError)
_OS_ERROR: Final = re.compile(r": ([^:]+) \(os error \d+\)$")
_CONNECTION: Final = (OSError, pyqwest.ReadError, pyqwest.WriteError, pyqwest.RemoteProtocolError)
# With these a server says that it did not do what was asked. The others leave it open.
_REFUSALS: Final = frozenset(
    {
        Code.INVALID_ARGUMENT,
        Code.NOT_FOUND,
        Code.PERMISSION_DENIED,
        Code.UNAUTHENTICATED,
        Code.UNIMPLEMENTED,
        Code.FAILED_PRECONDITION,
        Code.RESOURCE_EXHAUSTED,
    }
)

# For a moment after an answer, pyqwest's threads still need the interpreter: one that ends within it (any short
# program) aborts the process with SIGABRT, in up to 1 of 6 runs, on Python before 3.14
# (https://github.com/curioswitch/pyqwest/issues/164). There is nothing to wait for, so this waits some time.
atexit.register(time.sleep, 0.02)


_used_by: int | None = None
"""The process that pyqwest's threads were started in, by the first request. They do not live on in a fork of it."""


class _CheckedJson:
    """The JSON codec for answers of any kind: protobuf's own ends the process where they are nested too deep."""

    def __init__(self) -> None:
        self._codec = proto_json_codec()

    def name(self) -> str:
        return self._codec.name()

    def encode(self, message: Message[Any]) -> bytes:
        return self._codec.encode(message)

    def decode(self, data: bytes | bytearray, message_class: type[M]) -> M:
        check_text(bytes(data), "the answer")
        message: M = self._codec.decode(data, message_class)
        return message


class ConnectTransport:
    """Calls a broker over Connect, with protobuf messages or, for reading along, with JSON ones.

    No time limit of its own but that of connecting: the client sets one around each call. Raises
    `TransportConfigError` in a fork of a process that had used one.
    """

    def __init__(
        self, base_url: str, *, codec: Literal["proto", "json"] = "proto", ca_file: CaFile | None = None
    ) -> None:
        _require_threads()
        # pyqwest shows the URL in its errors, and a password with it.
        url, self._headers = without_userinfo(base_url)
        self._url = url
        # A pool of its own: the shared default one would outlive the event loop that made it.
        self._pool = _pool(url, ca_file)
        self._client = ConnectClient(
            url,
            codec=proto_binary_codec() if codec == "proto" else _CheckedJson(),
            accept_compression=(),
            send_compression=None,
            http_client=pyqwest.Client(self._pool),
        )

    async def call(self, operation: Operation[Req, Res], request: Req, /) -> Res:
        """See `Transport.call`."""
        global _used_by
        _require_threads()
        _used_by = os.getpid()
        message = wire_proto.request_to_message(operation, request)
        try:
            answer = await self._client.execute_unary(
                request=message, method=_method(operation), headers=self._headers
            )
        except ConnectError as error:
            # connectrpc hides a cancellation in an error of its own: timeouts and task groups need the real one.
            if isinstance(error.__cause__, asyncio.CancelledError):
                raise error.__cause__ from None
            raise _translated(operation, self._url, error) from error
        return wire_proto.response_from_message(operation, answer)

    async def aclose(self) -> None:
        """See `Transport.aclose`."""
        await self._client.close()
        await self._pool.aclose()


def _require_threads() -> None:
    if _used_by not in (None, os.getpid()):
        raise TransportConfigError(
            "the connect transport cannot be used in a fork of a process that has used it: choose transport='rest' "
            "or 'ws', or start the process with multiprocessing's 'spawn' or 'forkserver'"
        )


def _pool(url: str, ca_file: CaFile | None) -> pyqwest.HTTPTransport:
    is_https = url.startswith("https:")
    if ca_file is not None:
        context_of(ca_file)  # for its errors
    return pyqwest.HTTPTransport(
        connect_timeout=CONNECT_TIMEOUT,
        tls_ca_cert=None if ca_file is None else Path(ca_file).read_bytes(),
        # Without the system's certificates it trusts none but those.
        tls_include_system_certs=is_https and ca_file is None,
        # A proxy for the scheme that is not used: any given one makes it ignore HTTP_PROXY, as the others do.
        proxy=pyqwest.Proxy("http://127.0.0.1:9", scheme="http" if is_https else "https"),
        # Shorter than a broker keeps an idle connection (75 s): a request should not meet a dying one.
        pool_idle_timeout=30.0,
        pool_max_idle_per_host=256,
        follow_redirects=False,
        enable_otel=False,
    )


@cache
def _method(operation: AnyOperation) -> MethodInfo[Message[Any], Message[Any]]:
    messages = wire_proto.messages_of(operation)
    return MethodInfo(
        name=operation.rpc,
        service_name=SERVICE_NAME,
        input=messages.request,
        output=messages.response,
        idempotency_level=IdempotencyLevel.UNKNOWN,
        stream_type=StreamType.UNARY,
    )


def _translated(operation: AnyOperation, url: str, error: ConnectError) -> OsqueueError:
    for detail in error.details:
        fields = _fields_of(detail)
        if fields is not None:
            return error_from_wire(fields, method=operation.name)
    match error.__cause__:
        case None:
            message = error.message or f"the broker answered {error.code.value} without a message"
            hint = f"; {WRONG_URL}" if error.code is Code.UNIMPLEMENTED else ""
            return TransportRequestError(
                f"{operation.name}: {message}{hint}",
                method=operation.name,
                remote_tag=error.code.value,
                outcome="not_applied" if error.code in _REFUSALS else "unknown",
            )
        case ConnectionError() as cause if not isinstance(cause, _BROKEN_LATER):
            return not_connected(operation.name, url, _reason(error))
        case cause if isinstance(cause, _CONNECTION):
            return no_answer(operation.name, url, _reason(error))
        case _:
            return malformed_answer(operation.name, error.message)


def _fields_of(detail: ErrorDetail) -> dict[str, object] | None:
    """Return our error's fields, None where the detail is another's or cannot be read."""
    if detail.type_name != Struct.desc().type_name:
        return None
    try:
        fields = detail.value(Struct)
    except (ValueError, RecursionError):
        return None
    return None if fields is None else dict(fields.to_python())


def _reason(error: ConnectError) -> str:
    cause = error.__cause__
    if isinstance(cause, TimeoutError):
        return reason(cause)
    # "… for url (http://…): client error (Connect): tcp connect error: Connection refused (os error 111)"
    text = error.message or type(cause).__name__
    if found := _OS_ERROR.search(text):
        return found[1]
    return text.rpartition("): ")[2] or text
