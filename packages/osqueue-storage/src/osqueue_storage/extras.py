"""The client libraries of stores: large, optional, and not imported before they are needed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from importlib.util import find_spec
from typing import Generic, Protocol, TypeVar

from .errors import ConfigError, StorageBackendError


def missing_extra(backend: str, extra: str) -> ConfigError:
    """Return the error for a backend whose client library is not installed."""
    return ConfigError(f"{backend} needs more than is installed: pip install 'osqueue-storage[{extra}]'")


def is_installed(*modules: str) -> bool:
    """Whether modules can be imported, without importing them."""
    try:
        return all(find_spec(module) is not None for module in modules)
    except ModuleNotFoundError:  # not even the package around one of them
        return False


class _Closable(Protocol):
    async def aclose(self) -> None: ...


C = TypeVar("C", bound=_Closable)


class FirstUse(Generic[C]):
    """A connection that is made when it is first needed, in a thread: to import its library takes half a second."""

    def __init__(self, owner: str, make: Callable[[], C]) -> None:
        self._owner = owner
        self._make = make
        self._made: C | None = None
        self._making = asyncio.Lock()
        self._is_closed = False

    async def get(self) -> C:
        """Return the connection, the same for all. Raises `StorageBackendError` after `aclose`."""
        if self._made is None and not self._is_closed:
            async with self._making:
                if self._made is None:
                    self._made = await asyncio.to_thread(self._make)
        if self._made is None or self._is_closed:  # it may have been closed meanwhile
            raise StorageBackendError(f"{self._owner}: the backend is closed", outcome="not_applied")
        return self._made

    async def aclose(self) -> None:
        """Close the connection if there is one. Safe to call twice."""
        self._is_closed = True
        async with self._making:
            if self._made is not None:
                await self._made.aclose()
