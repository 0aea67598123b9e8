"""Connect: one endpoint for each operation of the table, with our errors in its error details.

The protocol is connectrpc's. What it refuses before a call begins (`_refusal`) and every error of a call
(`_Errors`) are put into the one form that `docs/protocol.md` promises.
"""

from __future__ import annotations

import base64
import re
import struct
import zlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final

import msgspec
from connectrpc.code import Code
from connectrpc.codec import Codec, proto_binary_codec, proto_json_codec
from connectrpc.compression.gzip import GzipCompression
from connectrpc.errors import ConnectError, ErrorDetail
from connectrpc.method import IdempotencyLevel, MethodInfo, StreamType
from connectrpc.request import RequestContext
from connectrpc.server import ConnectASGIApplication, Endpoint
from protobuf import Message
from protobuf.wkt import Struct
from starlette.types import Receive, Scope, Send

from osqueue_client import wire_json, wire_proto
from osqueue_client.errors import (
    BrokerProtocolError,
    OsqueueError,
    RequestTooLargeError,
    StorageBackendError,
    wire_fields,
)
from osqueue_client.operations import OPERATIONS, SERVICE_NAME, AnyOperation

from .rest import HeaderPairs, Service, send_json, unexpected

TAG_HEADER: Final = "osqueue-error"
"""The response header with an error's tag, for clients that do not read error details."""

_CONTENT_TYPES: Final = ("application/proto", "application/json")
_OPERATIONS: Final = {f"/{SERVICE_NAME}/{operation.rpc}": operation for operation in OPERATIONS}
_PROTO_FIELD: Final = re.compile(r"for field [\w.]+\.(\w+)")
_STORED_UP_TO: Final = 1024

AnyMessage = Message[Any]
Context = RequestContext[AnyMessage, AnyMessage]


class ConnectApplication(ConnectASGIApplication[Service]):
    """The ASGI application below `/osqueue.v1.QueueService/`."""

    def __init__(self, service: Service, max_request_bytes: int) -> None:
        super().__init__(
            service=service,
            endpoints=lambda service: {
                path: _endpoint(operation, service) for path, operation in _OPERATIONS.items()
            },
            interceptors=[_Errors(max_request_bytes)],
            read_max_bytes=max_request_bytes,
            compressions=[_Gzip(level=1)],
            codecs=[_Codec(proto_binary_codec()), _JsonCodec(proto_json_codec())],
        )

    @property
    def path(self) -> str:
        """Where the endpoints are."""
        return f"/{SERVICE_NAME}"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refusal = _refusal(scope)
        if refusal is None:
            await super().__call__(scope, receive, send)
        else:
            await refusal.send(send)

    async def _call_unary(
        self,
        endpoint: Any,
        http_method: str,
        headers: Any,
        codec: Any,
        query_params: dict[str, list[str]],
        receive: Any,
        loop: Any,
        scope: Any,
        ctx: Context,
    ) -> Any:
        """As connectrpc does it, without a second task per call that watches for the client to leave.

        That task costs as much as all the rest of a call. As over REST, a call is done whether or not its client
        waits for the answer; its deadline (Connect-Timeout-Ms) still ends it.
        """
        if http_method == "GET":
            request = await self._read_get_request(endpoint, codec, query_params)
        else:
            request = await self._read_post_request(endpoint, receive, codec, headers)
        return await endpoint.function(request, ctx)


def _endpoint(
    operation: AnyOperation, service: Service
) -> Any:  # connectrpc does not export its endpoint types
    messages = wire_proto.messages_of(operation)
    method = MethodInfo(
        name=operation.rpc,
        service_name=SERVICE_NAME,
        input=messages.request,
        output=messages.response,
        idempotency_level=IdempotencyLevel.NO_SIDE_EFFECTS if operation.is_read else IdempotencyLevel.UNKNOWN,
        stream_type=StreamType.UNARY,
    )

    async def function(message: AnyMessage, ctx: Context, /) -> AnyMessage:
        request = wire_proto.request_from_message(operation, message)
        answer = await service.call(operation, wire_json.require_job_id(operation, request))
        return wire_proto.response_to_message(operation, answer)

    handler: Callable[[AnyMessage, Context], Awaitable[AnyMessage]] = function
    return Endpoint.unary(method=method, function=handler)


class _Codec(Codec[AnyMessage, AnyMessage]):
    """A codec of connectrpc that says in our words what is wrong with a message."""

    def __init__(self, codec: Codec[AnyMessage, AnyMessage]) -> None:
        self._codec = codec

    def name(self) -> str:
        return self._codec.name()

    def encode(self, message: AnyMessage) -> bytes:
        try:
            return self._codec.encode(message)
        except Exception as error:  # noqa: BLE001  # whatever it is
            raise ConnectError(Code.INTERNAL, unexpected(error).message) from None  # its own text stays here

    def decode(self, data: bytes | bytearray, message_class: type[AnyMessage]) -> AnyMessage:
        try:
            decoded: AnyMessage = self._codec.decode(data, message_class)
            return decoded
        except Exception as error:  # noqa: BLE001  # protobuf raises half a dozen kinds
            raise _malformed(message_class, error) from None


class _JsonCodec(_Codec):
    """The JSON codec behind a check: deep nesting ends the process in protobuf-py's own JSON reader."""

    def decode(self, data: bytes | bytearray, message_class: type[AnyMessage]) -> AnyMessage:
        wire_json.check_text(bytes(data), _name_of(message_class))
        return super().decode(data, message_class)


class _Gzip(GzipCompression):
    """gzip that only wraps what is small: squeezing it costs more than sending it."""

    def compress(self, data: bytes | bytearray | memoryview) -> bytes:
        if len(data) > _STORED_UP_TO:
            return super().compress(data)
        size = len(data)
        block = struct.pack("<BHH", 1, size, size ^ 0xFFFF)  # RFC 1951, 3.2.4: one stored block, the last
        head = b"\x1f\x8b\x08\0\0\0\0\0\0\xff"  # RFC 1952: deflate, no name, no time
        return b"".join((head, block, data, struct.pack("<II", zlib.crc32(data), size)))


class _Errors:
    """Puts every error of a call, whoever raised it, into the form that clients of the protocol expect."""

    def __init__(self, max_request_bytes: int) -> None:
        self._limit = max_request_bytes

    async def on_start(self, ctx: Context) -> None:
        """Nothing to prepare."""

    async def on_end(self, token: None, ctx: Context, error: Exception | None, /) -> None:
        """Replace the error of a call by raising the one that is sent."""
        if error is None:
            return
        ours, code = self._ours(error)
        ctx.response_headers[TAG_HEADER] = ours.tag
        raise ConnectError(code, ours.message, details=[_detail(ours)]) from error

    def _ours(self, error: Exception) -> tuple[OsqueueError, Code]:
        if isinstance(error, ConnectError) and isinstance(error.__cause__, OsqueueError):
            error = error.__cause__
        if isinstance(error, OsqueueError):
            return error, Code(error.connect_code)
        if not isinstance(error, ConnectError):
            return unexpected(error), Code.INTERNAL
        match error.code:
            case Code.RESOURCE_EXHAUSTED:
                text = f"the request is larger than {self._limit:,} bytes"
                return RequestTooLargeError(text, outcome="not_applied"), error.code
            case Code.INVALID_ARGUMENT | Code.UNIMPLEMENTED:
                return BrokerProtocolError(error.message), error.code
            case Code.DEADLINE_EXCEEDED | Code.CANCELED:
                text = f"{error.message} before the store had answered"
                return StorageBackendError(text, outcome="unknown"), error.code
            case _:
                return unexpected(error), Code.INTERNAL


@dataclass(frozen=True, slots=True)
class _Refusal:
    """An answer that is given before connectrpc sees the request: it would send these without our tag."""

    message: str
    status: int = 400
    code: Code = Code.INVALID_ARGUMENT
    headers: HeaderPairs = ()

    async def send(self, send: Send) -> None:
        """Send it as the error of the Connect protocol."""
        error = BrokerProtocolError(self.message)
        detail = ErrorDetail(_detail(error))
        body = {
            "code": self.code.value,
            "message": error.message,
            "details": [
                {
                    "type": detail.type_name,
                    "value": base64.b64encode(detail.message_bytes).rstrip(b"=").decode(),
                    "debug": wire_fields(error),
                }
            ],
        }
        headers = [(TAG_HEADER.encode(), error.tag.encode()), *self.headers]
        await send_json(send, msgspec.json.encode(body), self.status, headers)


def _refusal(scope: Scope) -> _Refusal | None:
    path = scope["path"].removeprefix(scope.get("root_path", ""))
    operation = _OPERATIONS.get(path)
    if operation is None:
        return _Refusal(f"there is no procedure {path}", 404, Code.UNIMPLEMENTED)
    is_get = scope["method"] == "GET" and operation.is_read
    if scope["method"] != "POST" and not is_get:
        allow = b"GET, POST" if operation.is_read else b"POST"
        return _Refusal(f"{operation.name}: {scope['method']} is not taken", 405, headers=[(b"allow", allow)])
    if not scope["query_string"].isascii():
        return _Refusal(f"{operation.name}: the query string is not ASCII")
    kind = ""
    for name, value in scope["headers"]:
        if not value.isascii():
            return _Refusal(f"{operation.name}: header {name.decode('latin-1')} is not ASCII")
        if name == b"content-type":
            kind = value.decode()
        elif name == b"connect-protocol-version" and value != b"1":
            return _Refusal(f"{operation.name}: connect-protocol-version must be 1, not {value.decode()}")
        elif name == b"connect-timeout-ms" and not (value.isdigit() and len(value) <= 10):
            return _Refusal(
                f"{operation.name}: connect-timeout-ms must be a whole number, not {value.decode()}"
            )
    if is_get or kind in _CONTENT_TYPES or kind.partition(";")[0].strip().lower() in _CONTENT_TYPES:
        return None
    known = " or ".join(_CONTENT_TYPES)
    return _Refusal(
        f"{operation.name}: the content-type must be {known}, not {kind or 'none'}",
        415,
        headers=[(b"accept-post", ", ".join(_CONTENT_TYPES).encode())],
    )


def _detail(error: OsqueueError) -> Struct:
    return Struct.from_python(dict(wire_fields(error)))


def _name_of(message_class: type[AnyMessage]) -> str:
    rpc = message_class.__name__.removesuffix("Request")
    return rpc[:1].lower() + rpc[1:]


def _malformed(message_class: type[AnyMessage], error: Exception) -> BrokerProtocolError:
    """Name the field that protobuf could not read as it is spelt on the wire."""
    name, text = _name_of(message_class), str(error)
    if text.startswith("cannot decode"):  # what follows is all that was sent
        text = text.partition(" from JSON")[0] + " from what is not an object"
    if (named := _PROTO_FIELD.search(text)) is None:
        return BrokerProtocolError(f"{name}: the message is malformed: {text}", method=name)
    first, *rest = named.group(1).split("_")
    field = first + "".join(word.capitalize() for word in rest)
    return BrokerProtocolError(f"{name}: field '{field}': {text[: named.start()]}", field=field, method=name)
