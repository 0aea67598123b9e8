"""Connect, on connectrpc and pyqwest."""

from __future__ import annotations

import asyncio
import atexit
import time
from base64 import b64encode
from typing import Any, Final, Literal, TypeVar
from urllib.parse import unquote, urlsplit, urlunsplit

import pyqwest
from connectrpc.client import ConnectClient
from connectrpc.code import Code
from connectrpc.codec import proto_binary_codec, proto_json_codec
from connectrpc.errors import ConnectError
from connectrpc.method import IdempotencyLevel, MethodInfo, StreamType
from protobuf import Message
from protobuf.wkt import Struct

from .. import wire_proto
from ..errors import OsqueueError, TransportConnectionError, TransportRequestError, error_from_wire
from ..models import Model
from ..operations import SERVICE_NAME, AnyOperation, Operation
from ..wire_json import malformed_answer
from . import CONNECT_TIMEOUT

Req = TypeVar("Req", bound=Model)
Res = TypeVar("Res", bound=Model)

# pyqwest raises ConnectionError itself where it could not connect; these are of a connection that stood.
_BROKEN_LATER: Final = (ConnectionResetError, ConnectionAbortedError, BrokenPipeError)
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


class ConnectTransport:
    """Calls a broker over Connect, with protobuf messages or, for reading along, with JSON ones.

    No time limit of its own but that of connecting: the client sets one around each call.
    """

    def __init__(self, base_url: str, *, codec: Literal["proto", "json"] = "proto") -> None:
        url, self._headers = _without_userinfo(base_url)
        # A pool of its own: the shared default one would outlive the event loop that made it.
        self._pool = _pool(url)
        self._client = ConnectClient(
            url,
            codec=proto_binary_codec() if codec == "proto" else proto_json_codec(),
            accept_compression=(),
            send_compression=None,
            http_client=pyqwest.Client(self._pool),
        )

    async def call(self, operation: Operation[Req, Res], request: Req, /) -> Res:
        """See `Transport.call`."""
        message = wire_proto.request_to_message(operation, request)
        try:
            answer = await self._client.execute_unary(
                request=message, method=_method(operation), headers=self._headers
            )
        except ConnectError as error:
            # connectrpc hides a cancellation in an error of its own: timeouts and task groups need the real one.
            if isinstance(error.__cause__, asyncio.CancelledError):
                raise error.__cause__ from None
            raise _translated(operation, error) from error
        return wire_proto.response_from_message(operation, answer)

    async def aclose(self) -> None:
        """See `Transport.aclose`."""
        await self._client.close()
        await self._pool.aclose()


def _pool(url: str) -> pyqwest.HTTPTransport:
    is_https = url.startswith("https:")
    return pyqwest.HTTPTransport(
        connect_timeout=CONNECT_TIMEOUT,
        # Without the system's certificates it trusts none at all.
        tls_include_system_certs=is_https,
        # A proxy for the scheme that is not used: any given one makes it ignore HTTP_PROXY, as the others do.
        proxy=pyqwest.Proxy("http://127.0.0.1:9", scheme="http" if is_https else "https"),
        # Shorter than a broker keeps an idle connection (75 s): a request should not meet a dying one.
        pool_idle_timeout=30.0,
        pool_max_idle_per_host=256,
        follow_redirects=False,
        enable_otel=False,
    )


def _without_userinfo(url: str) -> tuple[str, dict[str, str]]:
    # pyqwest shows the URL in its errors, and a password with it.
    parts = urlsplit(url)
    userinfo, at, netloc = parts.netloc.rpartition("@")
    if not at:
        return url, {}
    token = b64encode(unquote(userinfo).encode()).decode()
    return urlunsplit(parts._replace(netloc=netloc)), {"authorization": f"Basic {token}"}


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


def _translated(operation: AnyOperation, error: ConnectError) -> OsqueueError:
    for detail in error.details:
        fields = detail.value(Struct) if detail.type_name == Struct.desc().type_name else None
        if fields is not None:
            return error_from_wire(dict(fields.to_python()), method=operation.name)
    match error.__cause__:
        case None:
            return TransportRequestError(
                error.message
                or f"{operation.name}: the broker answered {error.code.value} without a message",
                method=operation.name,
                remote_tag=error.code.value,
                outcome="not_applied" if error.code in _REFUSALS else "unknown",
            )
        case ConnectionError() as cause if not isinstance(cause, _BROKEN_LATER):
            return TransportConnectionError(_lost(operation, error, cause), outcome="not_applied")
        case cause if isinstance(cause, _CONNECTION):
            return TransportConnectionError(_lost(operation, error, cause), outcome="unknown")
        case _:
            return malformed_answer(operation.name, error.message)


def _lost(operation: AnyOperation, error: ConnectError, cause: BaseException) -> str:
    return f"{operation.name}: no answer from the broker: {error.message or type(cause).__name__}"
