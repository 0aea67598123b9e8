"""Connect: one endpoint for each operation of the table, with our errors in its error details."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from typing import Any

from connectrpc.code import Code
from connectrpc.codec import Codec, proto_binary_codec, proto_json_codec
from connectrpc.errors import ConnectError
from connectrpc.method import IdempotencyLevel, MethodInfo, StreamType
from connectrpc.request import RequestContext
from connectrpc.server import ConnectASGIApplication, Endpoint
from protobuf import Message
from protobuf.wkt import Struct

from osqueue_client import wire_json, wire_proto
from osqueue_client.errors import BrokerProtocolError, OsqueueError, RequestTooLargeError, wire_fields
from osqueue_client.operations import OPERATIONS, SERVICE_NAME, AnyOperation

from .rest import Service, unexpected

TAG_HEADER = "osqueue-error"
"""The response header with an error's tag, for clients that do not read error details."""

_PROTO_FIELD = re.compile(r"for field [\w.]+\.(\w+)")

AnyMessage = Message[Any]


class ConnectApplication(ConnectASGIApplication[Service]):
    """The ASGI application below `/osqueue.v1.QueueService/`."""

    def __init__(self, service: Service, max_request_bytes: int) -> None:
        super().__init__(
            service=service,
            endpoints=lambda service: {
                f"/{SERVICE_NAME}/{operation.rpc}": _endpoint(operation, service) for operation in OPERATIONS
            },
            interceptors=[_Errors(max_request_bytes)],
            read_max_bytes=max_request_bytes,
            codecs=[proto_binary_codec(), _CheckedJsonCodec()],
        )

    @property
    def path(self) -> str:
        """Where the endpoints are."""
        return f"/{SERVICE_NAME}"


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

    async def function(message: AnyMessage, ctx: RequestContext[AnyMessage, AnyMessage], /) -> AnyMessage:
        request = wire_proto.request_from_message(operation, message)
        answer = await service.call(operation, wire_json.require_job_id(operation, request))
        return wire_proto.response_to_message(operation, answer)

    handler: Callable[[AnyMessage, RequestContext[AnyMessage, AnyMessage]], Awaitable[AnyMessage]] = function
    return Endpoint.unary(method=method, function=handler)


class _CheckedJsonCodec(Codec[AnyMessage, AnyMessage]):
    """The JSON codec behind a check: deep nesting ends the process in protobuf-py's own JSON reader."""

    def __init__(self) -> None:
        self._codec = proto_json_codec()

    def name(self) -> str:
        return self._codec.name()

    def encode(self, message: AnyMessage) -> bytes:
        return self._codec.encode(message)

    def decode(self, data: bytes | bytearray, message_class: type[AnyMessage]) -> AnyMessage:
        wire_json.check_text(bytes(data), message_class.__name__)
        decoded: AnyMessage = self._codec.decode(data, message_class)
        return decoded


class _Errors:
    """Puts every error of a call, whoever raised it, into the form that clients of the protocol expect."""

    def __init__(self, max_request_bytes: int) -> None:
        self._limit = max_request_bytes

    async def on_start(self, ctx: RequestContext[AnyMessage, AnyMessage]) -> None:
        """Nothing to prepare."""

    async def on_end(
        self, token: None, ctx: RequestContext[AnyMessage, AnyMessage], error: Exception | None, /
    ) -> None:
        """Replace the error of a call by raising the one that is sent."""
        if error is None:
            return
        ours = self._ours(error)
        if ours is None:
            return
        ctx.response_headers[TAG_HEADER] = ours.tag
        detail = Struct.from_python(dict(wire_fields(ours)))
        raise ConnectError(Code(ours.connect_code), ours.message, details=[detail]) from error

    def _ours(self, error: Exception) -> OsqueueError | None:
        if isinstance(error, OsqueueError):
            return error
        if not isinstance(error, ConnectError):
            return unexpected(error)
        if isinstance(error.__cause__, OsqueueError):
            return error.__cause__
        match error.code:
            case Code.RESOURCE_EXHAUSTED:
                return RequestTooLargeError(
                    f"the request is larger than {self._limit:,} bytes", outcome="not_applied"
                )
            case Code.INVALID_ARGUMENT:
                return _malformed(error.message)
            case _:
                return None  # the caller has gone, or its deadline has passed: connectrpc says so itself


def _malformed(message: str) -> BrokerProtocolError:
    """Name the field that protobuf could not read as it is spelt on the wire."""
    named = _PROTO_FIELD.search(message)
    if named is None:
        return BrokerProtocolError(message)
    first, *rest = named.group(1).split("_")
    field = first + "".join(word.capitalize() for word in rest)
    return BrokerProtocolError(f"field '{field}': {message}", field=field)
