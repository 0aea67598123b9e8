"""What carries an operation to a broker. A transport is one method; its module is imported when it is chosen."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Final, Literal, Protocol, TypeAlias, TypeVar, get_args
from urllib.parse import urlsplit

from ..errors import TransportConfigError
from ..models import Model
from ..operations import Operation
from .tls import CaFile, context_of

Req = TypeVar("Req", bound=Model)
Res = TypeVar("Res", bound=Model)

TransportName = Literal["connect", "rest", "ws"]

CONNECT_TIMEOUT: Final = 5.0
"""Seconds in which a connection must stand. What fails to connect was surely not sent; after that, who knows."""

_FORMS = "http://127.0.0.1:8080, https://queue.example.com or 127.0.0.1:8080"


class Transport(Protocol):
    """Carries requests to one broker. Used by many tasks at once, on one event loop."""

    async def call(self, operation: Operation[Req, Res], request: Req, /) -> Res:
        """Return the broker's answer.

        Raises the broker's own error where it refused; `TransportRequestError` where it refused with one that
        is not known here; `BrokerProtocolError` (outcome `"unknown"`) where its answer cannot be read;
        `TransportConnectionError` where no answer came, its `outcome` telling whether the request may have had
        an effect. A cancellation passes through.
        """
        ...

    async def aclose(self) -> None:
        """Give back the connections. Safe to call twice."""
        ...


TransportFactory: TypeAlias = Callable[[str], Transport]
"""Makes a transport to the broker at a URL; nothing is connected yet."""


def factory_of(
    transport: TransportName | TransportFactory, ca_file: CaFile | None = None
) -> TransportFactory:
    """Return what makes a transport to a URL. Raises `TransportConfigError` for settings that cannot work."""
    if isinstance(transport, str):
        if ca_file is not None:
            context_of(ca_file)  # raises now what it would raise when it is used
        return partial(open_transport, checked_name(transport), ca_file=ca_file)
    if ca_file is not None:
        raise TransportConfigError(
            "ca_file= is for 'connect', 'rest' and 'ws': give it to your own transport"
        )
    return transport


def open_transport(name: TransportName, broker_url: str, *, ca_file: CaFile | None = None) -> Transport:
    """Return a transport to the broker at `broker_url`; nothing is connected yet.

    Over https it trusts the authorities in `ca_file` (PEM), or those of the system. Raises
    `TransportConfigError` for an unknown name, and for a URL or a file that cannot be one.
    """
    url = checked_url(broker_url)
    match checked_name(name):
        case "connect":
            from .connect import ConnectTransport

            return ConnectTransport(url, ca_file=ca_file)
        case "rest":
            from .rest import RestTransport

            return RestTransport(url, ca_file=ca_file)
        case "ws":
            from .websocket import WebSocketTransport

            return WebSocketTransport(url, ca_file=ca_file)


def checked_name(name: TransportName) -> TransportName:
    """Return the name. Raises `TransportConfigError` if no transport has it."""
    if name not in get_args(TransportName):
        raise TransportConfigError(f"no transport is called {name!r}: there are 'connect', 'rest' and 'ws'")
    return name


def checked_url(broker_url: str) -> str:
    """Return the URL with its scheme and without a slash at its end. Raises `TransportConfigError`.

    Without a scheme it is http, and must have a port: `localhost:8080`, but not `localhost`.
    """
    has_scheme = "://" in broker_url
    url = broker_url if has_scheme else f"http://{broker_url}"
    scheme, _, rest = url.partition("://")
    url = f"{scheme.lower()}://{rest}"
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
        host.encode("idna")
        is_usable = parts.scheme in ("http", "https") and bool(host) and parts.port != 0
        is_usable = is_usable and (has_scheme or parts.port is not None)
    except ValueError:
        is_usable = False
    if not is_usable or not url.isprintable() or " " in url or parts.query or parts.fragment:
        # The URL itself is not shown: it may hold a password.
        raise TransportConfigError(f"the broker's URL cannot be used; it should look like {_FORMS}")
    return url.rstrip("/")
