"""How long a request to a remote store may take, and how far apart its writes must be."""

from __future__ import annotations

import math
from typing import Final

from .errors import ConfigError

DEFAULT_TIMEOUT: Final = 10.0
CONNECT_TIMEOUT: Final = 3.0

SLOWEST_LINK: Final = 1024 * 1024
"""Bytes a second below which a connection counts as dead."""


def seconds_for(size: int, timeout: float) -> float:
    """Return how long a request with a body of `size` bytes may take, if one without may take `timeout`."""
    return timeout + size / SLOWEST_LINK


def checked_timeout(timeout: float) -> float:
    """Return a timeout in seconds. Raises `ConfigError` if it cannot be one."""
    if not (math.isfinite(timeout) and timeout > 0):
        raise ConfigError(f"timeout must be more than 0 seconds, not {timeout!r}")
    return timeout


def checked_interval(interval: float) -> float:
    """Return the seconds between two writes. Raises `ConfigError` if they cannot be."""
    if not (math.isfinite(interval) and interval >= 0):
        raise ConfigError(f"min_write_interval must be 0 or more seconds, not {interval!r}")
    return interval
