"""The broker's ASGI application: REST, WebSocket and Connect over one service, on one port."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Final

from starlette.routing import Route, Router
from starlette.types import ASGIApp, Receive, Scope, Send

from osqueue_client.operations import SERVICE_NAME

from . import rest
from .connect import ConnectApplication
from .origins import CrossOrigin, Origins
from .rest import WEBSOCKET_PATH
from .transport import Service
from .websocket import WebSocketEndpoint

logger = logging.getLogger("osqueue.broker")

_CONNECT_PREFIX: Final = f"/{SERVICE_NAME}/"


class BrokerApp:
    """The composed application, to serve or to mount below any path. `drain` ends its WebSocket sessions."""

    def __init__(self, service: Service, *, origins: Origins, max_request_bytes: int) -> None:
        self._websocket = WebSocketEndpoint(service, max_request_bytes)
        dispatch = _Dispatch(
            rest.endpoints(service, max_request_bytes),
            ConnectApplication(service, max_request_bytes),
            self._websocket,
        )
        self._app: ASGIApp = CrossOrigin(dispatch, origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app(scope, receive, send)

    async def drain(self, timeout: float | None = None) -> None:
        """Take no more WebSocket requests, answer those that were read, and close every session with 1012.

        It waits for peers to read their answers, for `timeout` seconds at most: close the connections afterwards.
        """
        try:
            async with asyncio.timeout(timeout):
                await self._websocket.drain()
        except TimeoutError:
            logger.warning("drain_timed_out")  # a peer does not read what it asked for: it will be cut off


class _Dispatch:
    """Finds the application of a request by its path.

    A path without parameters is looked up, whatever else there is. Only the rest is Starlette's router's:
    trying its routes one by one costs more than all else on a request's way.
    """

    def __init__(self, endpoints: Mapping[str, ASGIApp], connect: ASGIApp, websocket: ASGIApp) -> None:
        self._fixed = {path: app for path, app in endpoints.items() if "{" not in path}
        self._connect = connect
        self._websocket = websocket
        self._router: ASGIApp = Router(
            # A job's id from elsewhere may hold a slash.
            [
                Route(path.replace("{jobId}", "{job_id:path}"), app)
                for path, app in endpoints.items()
                if path not in self._fixed
            ],
            redirect_slashes=False,
            default=rest.not_found,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        kind = scope["type"]
        path: str = scope["path"].removeprefix(scope.get("root_path", "")) if kind != "lifespan" else ""
        if kind == "http" and (app := self._fixed.get(path)) is not None:
            await app(scope, receive, send)
        elif kind == "http" and path.startswith(_CONNECT_PREFIX):
            await self._connect(scope, receive, send)
        elif kind == "websocket" and path == WEBSOCKET_PATH:
            await self._websocket(scope, receive, send)
        else:
            await self._router(scope, receive, send)
