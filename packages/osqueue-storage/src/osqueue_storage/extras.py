"""What is said when the client library of a store is not installed."""

from __future__ import annotations

from .errors import ConfigError


def missing_extra(backend: str, extra: str) -> ConfigError:
    """Return the error for a backend whose client library is not installed."""
    return ConfigError(f"{backend} needs more than is installed: pip install 'osqueue-storage[{extra}]'")
