"""Connect, on connectrpc and pyqwest."""

from __future__ import annotations

import asyncio
from typing import Any, Literal, TypeVar

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

Req = TypeVar("Req", bound=Model)
Res = TypeVar("Res", bound=Model)


_BROKEN_LATER = (ConnectionResetError, ConnectionAbortedError, BrokenPipeError)


class ConnectTransport:
    """Calls a broker over Connect, with protobuf messages or, for reading along, with JSON ones.

    No time limit of its own: the client sets one around each call.
    """

    def __init__(self, base_url: str, *, codec: Literal["proto", "json"] = "proto") -> None:
        # A pool of its own: the shared default one would outlive the event loop that made it.
        self._pool = pyqwest.HTTPTransport()
        self._client = ConnectClient(
            base_url,
            codec=proto_binary_codec() if codec == "proto" else proto_json_codec(),
            accept_compression=(),
            send_compression=None,
            http_client=pyqwest.Client(self._pool),
        )

    async def call(self, operation: Operation[Req, Res], request: Req, /) -> Res:
        """See `Transport.call`."""
        message = wire_proto.request_to_message(operation, request)
        try:
            answer = await self._client.execute_unary(request=message, method=_method(operation))
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
        fields = detail.value(Struct)
        if fields is not None:
            return error_from_wire(dict(fields.to_python()), method=operation.name)
    if error.code is Code.UNAVAILABLE and error.__cause__ is not None:
        was_sent = not isinstance(error.__cause__, ConnectionError) or isinstance(
            error.__cause__, _BROKEN_LATER
        )
        return TransportConnectionError(
            f"{operation.name}: no answer from the broker: {error.message}",
            outcome="unknown" if was_sent else "not_applied",
        )
    return TransportRequestError(error.message, method=operation.name, remote_tag=error.code.value)
