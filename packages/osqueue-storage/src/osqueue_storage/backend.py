"""What osqueue asks of a store: one object, read whole and replaced by compare-and-set."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self, runtime_checkable


@dataclass(frozen=True, slots=True)
class StoredObject:
    """One object as it stood at one moment: its whole body, and the version that belongs to that body."""

    body: bytes
    version: str


class StorageBackend(Protocol):
    """A store that can replace an object only if it is still at the version that the caller saw.

    The outcome of `write`, `create` and `delete` is told in three ways, and every caller relies on it:

    * it returns: the change has landed and is durable;
    * `CASConflictError`: this call surely changed nothing, and never will;
    * any other exception, or a cancellation: unknown. The change may have landed, or may land later.

    A version is an opaque string. Two states of one object never share a version, except that a store which
    derives it from the content gives equal bodies equal versions (osqueue never writes two equal bodies).
    Keys are non-empty strings with `/` between their parts. A backend may be used by many tasks at once,
    on one event loop.
    """

    # Properties, so that a backend may have them as attributes or compute them; nobody else sets them.

    @property
    def min_write_interval(self) -> float:
        """Seconds that must pass between two writes of one object for the store to accept them (0: none)."""
        ...

    @property
    def slowest_write_interval(self) -> float:
        """Seconds by which the store, or a budget on it, may at the most space the writes of one object.

        At least `min_write_interval`. A leader whose signs of life may be delayed longer than others wait for
        them cannot keep its lead.
        """
        ...

    @property
    def max_object_bytes(self) -> int | None:
        """The largest body that the store takes, in bytes; None when it states no limit."""
        ...

    async def read(self, key: str) -> StoredObject | None:
        """Return the object's body and version, which belong together, or None if there is no such object."""
        ...

    async def write(self, key: str, body: bytes, expected_version: str) -> str:
        """Replace the object if it is at `expected_version`; return the new version.

        Raises `CASConflictError` if it is not, also when there is no such object.
        """
        ...

    async def create(self, key: str, body: bytes) -> str:
        """Create the object if there is none; return its version. Raises `CASConflictError` if there is one."""
        ...

    async def delete(self, key: str) -> None:
        """Delete the object, whatever its version. No error if there is none."""
        ...

    def list(self, prefix: str) -> AsyncIterator[str]:
        """Yield the keys that begin with `prefix`, in the order of their UTF-8 bytes."""
        ...

    async def aclose(self) -> None:
        """Give back what the backend holds. Safe to call twice; the backend is not used afterwards."""
        ...

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None, /
    ) -> None: ...


@runtime_checkable
class Remote(Protocol):
    """What a backend says in addition whose objects programs on other machines may reach."""

    @property
    def is_remote(self) -> bool:
        """Whether they can."""
        ...


def is_remote(storage: StorageBackend) -> bool:
    """Return whether programs on other machines can reach the same objects: not if the backend says nothing of it."""
    return isinstance(storage, Remote) and storage.is_remote


@runtime_checkable
class ConditionalReader(Protocol):
    """What a backend offers in addition when it can tell cheaply that nothing has changed."""

    async def read_if_changed(self, key: str, version: str) -> StoredObject | None:
        """Return the object if it is not at `version`, or None if it still is, without moving its body.

        Raises `StorageBackendError` if there is no such object.
        """
        ...
