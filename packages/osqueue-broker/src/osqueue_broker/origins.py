"""Which web pages may call the broker: CORS for HTTP, and the same list for the WebSocket handshake."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from osqueue_client.errors import ConfigError

_LOCAL_HOSTS: Final = frozenset({"localhost", "127.0.0.1", "[::1]"})
_ORIGIN: Final = re.compile(
    r"(?P<scheme>[a-z][a-z0-9+.-]*)://(?P<host>[a-z0-9_.-]+|\[[0-9a-f:.]+\])(:(?P<port>\d{1,5}))?"
)
_IMPLIED_PORTS: Final = {"http": 80, "https": 443}
_METHODS: Final = "GET, POST, OPTIONS"
_REQUEST_HEADERS: Final = "Content-Type, Connect-Protocol-Version, Connect-Timeout-Ms"
_EXPOSED: Final = "Connect-Protocol-Version"


class Origins:
    """The allowed origins: a list, `*` for any, or by default those on this machine, whatever their port.

    Raises `ConfigError` for what is not an origin. The origin `null` is never allowed.
    """

    def __init__(self, allowed: Sequence[str] | None = None) -> None:
        self._allows_any = allowed is not None and "*" in allowed
        self._allowed = None if allowed is None else frozenset(_checked(origin) for origin in allowed)

    def allow(self, origin: str) -> bool:
        """Whether a page of this origin may call."""
        if origin == "null":
            return False
        if self._allowed is None:
            found = _ORIGIN.fullmatch(origin)
            return found is not None and found["host"] in _LOCAL_HOSTS and found["scheme"] in _IMPLIED_PORTS
        return self._allows_any or origin in self._allowed


class CrossOrigin:
    """Wraps an application: answers preflights, marks answers for allowed origins, turns away WebSockets."""

    def __init__(self, app: ASGIApp, origins: Origins) -> None:
        self._app = app
        self._origins = origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        origin = _origin(scope)
        if origin is None:
            await self._app(scope, receive, send)
            return
        is_allowed = self._origins.allow(origin)
        if scope["type"] == "websocket":
            if not is_allowed:
                await send({"type": "websocket.close", "code": 1008})  # before the handshake: HTTP 403
                return
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        if scope["method"] == "OPTIONS" and "access-control-request-method" in headers:
            await _preflight(origin if is_allowed else None)(scope, receive, send)
            return

        async def send_marked(message: Message) -> None:
            if message["type"] == "http.response.start":
                marked = MutableHeaders(scope=message)
                marked.add_vary_header("Origin")
                if is_allowed:
                    marked["access-control-allow-origin"] = origin
                    marked["access-control-expose-headers"] = _EXPOSED
            await send(message)

        await self._app(scope, receive, send_marked)


def _origin(scope: Scope) -> str | None:
    for name, value in scope["headers"]:
        if name == b"origin":
            return str(value.decode("latin-1"))
    return None


def _preflight(origin: str | None) -> Response:
    headers = {"vary": "Origin"}
    if origin is not None:
        headers |= {
            "access-control-allow-origin": origin,
            "access-control-allow-methods": _METHODS,
            "access-control-allow-headers": _REQUEST_HEADERS,
            "access-control-expose-headers": _EXPOSED,
            "access-control-max-age": "7200",
        }
    return Response(status_code=204, headers=headers)


def _checked(origin: str) -> str:
    """Return an origin as browsers write it: in lower case, without the port that its scheme implies."""
    if origin == "*":
        return origin
    found = _ORIGIN.fullmatch(origin.lower())
    port = int(found["port"] or 0) if found else 0
    if found is None or port > 65535:
        raise ConfigError(
            f"{origin!r} is not an origin: it should look like https://app.example.com, or * for any"
        )
    implied = port == _IMPLIED_PORTS.get(found["scheme"])
    return f"{found['scheme']}://{found['host']}" + (f":{port}" if port and not implied else "")
