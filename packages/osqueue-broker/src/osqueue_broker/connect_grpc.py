"""gRPC, which connectrpc speaks beside Connect where the server can send trailers: over HTTP/2."""

from __future__ import annotations

import re
from typing import Final

from connectrpc._protocol_grpc import GRPCServerProtocol
from connectrpc.errors import ConnectError
from starlette.types import Scope, Send

from osqueue_client.errors import BrokerProtocolError

CONTENT_TYPES: Final = (b"application/grpc", b"application/grpc+proto", b"application/grpc+json")

_TIMEOUT: Final = re.compile(rb"\d{1,8}[HMSmun]")
_PROTOCOL: Final = GRPCServerProtocol()


def is_grpc(scope: Scope) -> bool:
    """Whether a request is a gRPC call that can be answered as one."""
    return "http.response.trailers" in scope.get("extensions", {}) and any(
        name == b"content-type" and value in CONTENT_TYPES for name, value in scope["headers"]
    )


def check_timeout(value: bytes, method: str) -> None:
    """Raise `BrokerProtocolError` for a header `grpc-timeout` that connectrpc would refuse without our tag."""
    if _TIMEOUT.fullmatch(value) is None:
        raise BrokerProtocolError(
            f"{method}: grpc-timeout must be at most 8 digits and one of HMSmun, not {value.decode() or 'empty'}"
        )


async def send_refusal(send: Send, error: ConnectError, headers: list[tuple[bytes, bytes]]) -> None:
    """Send an error before the call has begun: gRPC wants it in the head of an answer without a body."""
    status = _PROTOCOL.trailers_only_headers(None, error)
    head = [(name.encode(), value.encode()) for name, value in status.allitems()]
    await send({"type": "http.response.start", "status": 200, "headers": [*head, *headers]})
    await send({"type": "http.response.body", "body": b""})
