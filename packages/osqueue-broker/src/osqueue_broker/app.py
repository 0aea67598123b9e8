"""The broker's ASGI application: REST, WebSocket and Connect over one service, on one port."""

from __future__ import annotations

from typing import Final

from starlette.applications import Starlette
from starlette.routing import WebSocketRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from osqueue_client.operations import OPERATIONS, SERVICE_NAME

from . import rest
from .connect import ConnectApplication
from .origins import CrossOrigin, Origins
from .rest import Service
from .websocket import WebSocketEndpoint

_CONNECT_PATHS: Final = frozenset(f"/{SERVICE_NAME}/{operation.rpc}" for operation in OPERATIONS)


class BrokerApp:
    """The composed application. `drain` ends its WebSocket sessions."""

    def __init__(self, service: Service, *, origins: Origins, max_request_bytes: int) -> None:
        websocket = WebSocketEndpoint(service, max_request_bytes)
        starlette = Starlette(
            routes=[
                *rest.routes(service, max_request_bytes),
                WebSocketRoute("/v1/ws", websocket),
            ],
            exception_handlers={404: rest.not_found, 405: rest.method_not_allowed, Exception: rest.failed},
        )
        self._websocket = websocket
        self._app: ASGIApp = CrossOrigin(
            _Fork(ConnectApplication(service, max_request_bytes), starlette), origins
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app(scope, receive, send)

    async def drain(self) -> None:
        """Answer what the WebSocket sessions have read, and close them with 1012."""
        await self._websocket.drain()


class _Fork:
    """Sends the paths of Connect to the one application, all others to the other.

    Before Starlette's router and not in it: its mount costs more than the rest of a Connect call's way.
    """

    def __init__(self, connect: ConnectApplication, other: ASGIApp) -> None:
        self._connect = connect
        self._other = other

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"].removeprefix(scope.get("root_path", "")) if scope["type"] == "http" else ""
        if path in _CONNECT_PATHS and scope["method"] != "OPTIONS":
            await self._connect(scope, receive, send)
        else:
            await self._other(scope, receive, send)
