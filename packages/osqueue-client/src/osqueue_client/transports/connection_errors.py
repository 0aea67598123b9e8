"""The one form of what every transport says when there is no connection or no answer."""

from __future__ import annotations

import os
from asyncio import CancelledError
from ssl import SSLError
from typing import Final
from urllib.parse import urlsplit, urlunsplit

from ..errors import OsqueueError, TransportConnectionError
from . import CONNECT_TIMEOUT

WRONG_URL: Final = "is the broker's URL right?"
_NO_BROKER: Final = "is a broker running there?"
_NO_TRUST: Final = "does ca_file= name the authority of its certificate?"


def not_connected(
    operation: str, url: str, cause: BaseException | str, hint: str | None = None
) -> TransportConnectionError:
    """Return the error where no connection came about: nothing was sent."""
    why = cause if isinstance(cause, str) else reason(cause)
    hint = hint or (_NO_TRUST if "certificate" in why.lower() else _NO_BROKER)
    return TransportConnectionError(
        f"{operation}: cannot connect to {shown(url)}: {why}; {hint}", outcome="not_applied"
    )


def no_answer(operation: str, url: str, cause: BaseException | str) -> TransportConnectionError:
    """Return the error where the connection ended before the answer came."""
    why = cause if isinstance(cause, str) else reason(cause)
    return TransportConnectionError(f"{operation}: no answer from {shown(url)}: {why}", outcome="unknown")


def shown(url: str) -> str:
    """Return the URL without the user and the password."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def reason(error: BaseException) -> str:
    """Return what lies under an HTTP library's error: the system's words where there are any."""
    name, text = type(error).__name__, ""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, OsqueueError | CancelledError):
        if isinstance(cause, OSError) and not isinstance(cause, SSLError) and cause.errno is not None:
            # Not those of asyncio, which has its own for a refused connection.
            return os.strerror(cause.errno) if cause.errno > 0 else cause.strerror or text
        if isinstance(cause, TimeoutError):
            return f"no connection within {CONNECT_TIMEOUT:g} s"
        text = str(cause) or text
        cause = cause.__cause__ or cause.__context__
    return text or name
