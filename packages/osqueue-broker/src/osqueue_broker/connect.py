"""Connect: one endpoint for each operation of the table, with our errors in its error details.

The protocol is connectrpc's. What it would refuse before a call begins is refused here (`_checked`), and every error
of a call (`_Errors`) is put into the same form, the one that `docs/protocol.md` promises.
"""

from __future__ import annotations

import base64
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import Any, Final, TypeVar
from urllib.parse import parse_qs

import msgspec
from connectrpc.code import Code
from connectrpc.codec import proto_binary_codec, proto_json_codec
from connectrpc.errors import ConnectError, ErrorDetail
from connectrpc.method import IdempotencyLevel, MethodInfo, StreamType
from connectrpc.request import RequestContext
from connectrpc.server import ConnectASGIApplication, Endpoint
from protobuf.wkt import Struct
from starlette.types import Message, Receive, Scope, Send

from osqueue_client import wire_json, wire_proto
from osqueue_client.errors import (
    BrokerProtocolError,
    OsqueueError,
    StorageBackendError,
    wire_fields,
)
from osqueue_client.models import Model
from osqueue_client.operations import CLAIM_JOB, CLAIM_JOBS, OPERATIONS, SERVICE_NAME, AnyOperation

from . import connect_grpc
from .connect_codec import AnyMessage, JsonMessageCodec, MessageCodec, OneMemberGzip
from .transport import (
    ClientLeft,
    NotTaken,
    NotThere,
    Service,
    UnknownMedia,
    call_while_connected,
    error_headers,
    has_left,
    refuse_lone_surrogate,
    send_json,
    too_large,
    unexpected,
    waits,
)

TAG_HEADER: Final = "osqueue-error"
"""The response header with an error's tag, for clients that do not read error details."""

TELLING_TIME: Final = 0.5
"""Seconds before its call's deadline at which a longer wait ends; a tenth of what is left, if that is less."""

_CONTENT_TYPES: Final = ("application/proto", "application/json")
_OPERATIONS: Final = {f"/{SERVICE_NAME}/{operation.rpc}": operation for operation in OPERATIONS}

_CLAIMS: Final = frozenset({CLAIM_JOB.rpc, CLAIM_JOBS.rpc})

Context = RequestContext[AnyMessage, AnyMessage]
Req = TypeVar("Req", bound=Model)


class DeadlineExceededError(OsqueueError):
    """A claim's `wait` was longer than its call's deadline, and no job came before that: nothing was given."""

    http_status = 504
    connect_code = "deadline_exceeded"


class _Delivery:
    """Sends what connectrpc answers to one call, and tells the service of an answer that was not handed over.

    The endpoint sees the answer, but not what becomes of it; here it is the other way round.
    """

    __slots__ = ("_call", "_is_over", "_scope", "_send", "_service", "receive")

    def __init__(self, service: Service, scope: Scope, receive: Receive, send: Send) -> None:
        self._service = service
        self.receive = receive
        self._scope = scope
        self._send = send
        self._call: tuple[AnyOperation, Model, Model] | None = None
        self._is_over = False

    def expect(self, operation: AnyOperation, request: Model, answer: Model) -> None:
        """Note the answer that is to be sent now."""
        self._call = operation, request, answer

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start" and (message["status"] != 200 or has_left(self._scope)):
            self.end()
        await self._send(message)
        if message["type"] == "http.response.body":
            self._is_over = not message.get("more_body", False)
        elif message["type"] == "http.response.trailers":  # gRPC says only here how a call has ended
            self._is_over = (b"grpc-status", b"0") in message["headers"]

    def end(self) -> None:
        """Tell the service if the answer was not sent in full."""
        if self._call is not None and not self._is_over:
            self._service.undelivered(*self._call)
        self._call = None


_delivery: ContextVar[_Delivery] = ContextVar("_delivery")
"""That of the call which the current task answers."""


class ConnectApplication(ConnectASGIApplication[Service]):
    """The ASGI application below `/osqueue.v1.QueueService/`."""

    def __init__(self, service: Service, max_request_bytes: int) -> None:
        self._called = service
        super().__init__(
            service=service,
            endpoints=lambda service: {
                path: _endpoint(operation, service) for path, operation in _OPERATIONS.items()
            },
            interceptors=[_Errors(max_request_bytes)],
            read_max_bytes=max_request_bytes,
            compressions=[OneMemberGzip(level=1)],
            codecs=[MessageCodec(proto_binary_codec()), JsonMessageCodec(proto_json_codec())],
        )

    @property
    def path(self) -> str:
        """Where the endpoints are."""
        return f"/{SERVICE_NAME}"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            scope = _checked(scope)
        except BrokerProtocolError as error:
            await _send_refusal(scope, send, error)
            return
        delivery = _Delivery(self._called, scope, receive, send)
        _delivery.set(delivery)
        try:
            await super().__call__(scope, receive, delivery.send)
        finally:
            delivery.end()

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

    async def function(message: AnyMessage, ctx: Context, /) -> Any:
        try:
            request = wire_proto.request_from_message(operation, message)
        except BrokerProtocolError as error:
            if error.field == "payload":
                refuse_lone_surrogate(b'{"payload":%b}' % getattr(message, "payload", b""), operation.name)
            raise
        request = asked = wire_json.require_job_id(operation, request)
        if waits(request):
            request = _ending_before_deadline(request, ctx)
        delivery = _delivery.get()
        try:
            answer = await call_while_connected(service, operation, request, delivery.receive)
        except ClientLeft:
            raise ConnectError(Code.CANCELED, "the client hung up") from None
        if request is not asked and answer == operation.response():
            raise DeadlineExceededError(
                f"{operation.name}: no job came before the deadline of the call, which is shorter than its wait",
                outcome="not_applied",
            )
        delivery.expect(operation, request, answer)
        return wire_proto.response_to_message(operation, answer)

    handler: Callable[[AnyMessage, Context], Awaitable[AnyMessage]] = function
    return Endpoint.unary(method=method, function=handler)


def _ending_before_deadline(claim: Req, ctx: Context) -> Req:
    """Return a claim that waits no longer than its call may last.

    At the deadline itself nobody can tell what becomes of a claim, as a commit may be giving it a job; where its wait
    has ended, nothing was given, and its caller can still be told.
    """
    wait: float = getattr(claim, "wait", 0.0)
    if ctx.timeout_ms is None or wait < (left := ctx.timeout_ms / 1000):
        return claim
    return msgspec.structs.replace(claim, wait=max(left - min(left / 10, TELLING_TIME), 0.0))


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
        ours, code = self._ours(error, ctx)
        ctx.response_headers[TAG_HEADER] = ours.tag
        raise ConnectError(code, ours.message, details=[_detail(ours)]) from error

    def _ours(self, error: Exception, ctx: Context) -> tuple[OsqueueError, Code]:
        if isinstance(error, ConnectError) and isinstance(error.__cause__, OsqueueError):
            error = error.__cause__
        if isinstance(error, OsqueueError):
            return error, Code(error.connect_code)
        if not isinstance(error, ConnectError):
            return unexpected(error), Code.INTERNAL
        match error.code:
            case Code.RESOURCE_EXHAUSTED:
                return too_large(self._limit), error.code
            case Code.INVALID_ARGUMENT | Code.UNIMPLEMENTED:
                return BrokerProtocolError(error.message), error.code
            case Code.DEADLINE_EXCEEDED | Code.CANCELED:
                text = f"{error.message} before the store had answered"
                if ctx.method.name in _CLAIMS:
                    text += (
                        ": a lease on its way is taken back (with a requestId, if no repeat comes in 10 s)"
                    )
                return StorageBackendError(text, outcome="unknown"), error.code
            case Code.INTERNAL if error.message.startswith("protocol error"):  # how a gRPC message is packed
                return BrokerProtocolError(error.message), error.code
            case _:
                return unexpected(error), Code.INTERNAL


async def _send_refusal(scope: Scope, send: Send, error: OsqueueError) -> None:
    """Send what is refused before connectrpc sees it as an error of the Connect protocol, or of gRPC."""
    if connect_grpc.is_grpc(scope):
        refusal = ConnectError(Code(error.connect_code), error.message, details=[_detail(error)])
        await connect_grpc.send_refusal(send, refusal, [(TAG_HEADER.encode(), error.tag.encode())])
        return
    detail = ErrorDetail(_detail(error))
    body = {
        "code": error.connect_code,
        "message": error.message,
        "details": [
            {
                "type": detail.type_name,
                "value": base64.b64encode(detail.message_bytes).rstrip(b"=").decode(),
                "debug": wire_fields(error),
            }
        ],
    }
    headers = [(TAG_HEADER.encode(), error.tag.encode()), *error_headers(error)]
    await send_json(send, msgspec.json.encode(body), error.http_status, headers)


def _checked(scope: Scope) -> Scope:
    """Return the scope for connectrpc, which would take a GET with the content type of another protocol for that.

    Raises `BrokerProtocolError` for all that connectrpc would refuse without our tag.
    """
    path = scope["path"].removeprefix(scope.get("root_path", ""))
    operation = _OPERATIONS.get(path)
    if operation is None:
        raise NotThere(f"there is no procedure {path}")
    is_get = scope["method"] == "GET" and operation.is_read
    if scope["method"] != "POST" and not is_get:
        allow = b"GET, POST" if operation.is_read else b"POST"
        raise NotTaken(f"{operation.name}: {scope['method']} is not taken", headers=[(b"allow", allow)])
    if not scope["query_string"].isascii():
        raise BrokerProtocolError(f"{operation.name}: the query string is not ASCII")
    kind = ""
    for name, value in scope["headers"]:
        if not value.isascii():
            raise BrokerProtocolError(f"{operation.name}: header {name.decode('latin-1')} is not ASCII")
        if name == b"content-type":
            kind = value.decode()
        elif name == b"connect-protocol-version" and value != b"1":
            raise BrokerProtocolError(
                f"{operation.name}: connect-protocol-version must be 1, not {value.decode()}"
            )
        elif name == b"connect-timeout-ms" and not (value.isdigit() and len(value) <= 10):
            raise BrokerProtocolError(
                f"{operation.name}: connect-timeout-ms must be a whole number of at most 10 digits, not "
                + (value.decode() or "empty")
            )
        elif name == b"grpc-timeout":
            connect_grpc.check_timeout(value, operation.name)
    if is_get:
        encoding = parse_qs(scope["query_string"].decode()).get("encoding", [""])[0]
        if f"application/{encoding}" not in _CONTENT_TYPES:
            raise UnknownMedia(f"{operation.name}: encoding must be proto or json, not {encoding or 'none'}")
        return _without_content_type(scope) if kind else scope
    if kind in _CONTENT_TYPES or kind.partition(";")[0].strip().lower() in _CONTENT_TYPES:
        return scope
    if connect_grpc.is_grpc(scope):
        return scope
    known = " or ".join(_CONTENT_TYPES)
    raise UnknownMedia(
        f"{operation.name}: the content-type must be {known}, not {kind or 'none'}",
        headers=[(b"accept-post", ", ".join(_CONTENT_TYPES).encode())],
    )


def _without_content_type(scope: Scope) -> Scope:
    return {**scope, "headers": [pair for pair in scope["headers"] if pair[0] != b"content-type"]}


def _detail(error: OsqueueError) -> Struct:
    return Struct.from_python(dict(wire_fields(error)))
