"""Where the leader is: at a URL that the program knows, or at the address that the queue document names."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

import msgspec

from osqueue_storage import StorageBackend

from .errors import ConfigError, DiscoveryError, StorageBackendError, TransportConfigError
from .transports import checked_url
from .wire_json import UNREADABLE

DOCUMENT_KEY: Final = "queue.json"
_PATIENCE: Final = 10.0
"""Seconds for one read of the document."""


class _Document(msgspec.Struct):
    broker: str | None = None


class Discovery:
    """Names the brokers to try, in order. Raises `ConfigError` unless it has URLs or a store to ask."""

    def __init__(self, broker_url: str | Sequence[str] | None, storage: StorageBackend | None) -> None:
        urls = (broker_url,) if isinstance(broker_url, str) else tuple(broker_url or ())
        if not urls and storage is None:
            raise ConfigError(
                "there is neither a broker's URL nor a storage: give one, as in "
                "OsqueueClient('http://127.0.0.1:8080') or OsqueueClient(storage=FileBackend('./data'))"
            )
        if urls and storage is not None:
            raise ConfigError(
                "there is a broker's URL and a storage: give one of them, since the leader is found through either"
            )
        self._urls = tuple(checked_url(url) for url in urls)
        self._storage = storage

    @property
    def uses_tls(self) -> bool:
        """Whether a broker is asked over https."""
        return any(url.startswith("https:") for url in self._urls)

    def url_of(self, leader: str) -> str:
        """Return the URL of a leader's `host:port`; where the first known URL is https, it is, too.

        Raises `DiscoveryError` if it is none.
        """
        scheme = "https" if self._urls and self._urls[0].startswith("https:") else "http"
        try:
            if "://" in leader:
                raise TransportConfigError("a URL in place of an address")
            return checked_url(f"{scheme}://{leader}")
        except TransportConfigError as error:
            raise DiscoveryError(f"the leader's address {leader!r} is not one, as host:port is") from error

    async def candidates(self) -> tuple[str, ...]:
        """Return the URLs to try. Raises `DiscoveryError` if the store names no leader, or does not answer."""
        if self._storage is None:
            return self._urls
        try:
            # All who look for the leader wait for this one read, and those who come meanwhile: it must end.
            async with asyncio.timeout(_PATIENCE):
                found = await self._storage.read(DOCUMENT_KEY)
        except TimeoutError as error:
            raise DiscoveryError(
                f"the store was asked who leads: no answer within {_PATIENCE:g} s"
            ) from error
        except StorageBackendError as error:
            raise DiscoveryError(f"the store was asked who leads: {error.message}") from error
        if found is None:
            raise DiscoveryError(f"the store has no {DOCUMENT_KEY}: start a broker on it first")
        try:
            leader = msgspec.json.decode(found.body, type=_Document).broker
        except UNREADABLE as error:
            raise DiscoveryError(f"{DOCUMENT_KEY} in the store is not a queue document: {error}") from error
        if not leader:
            raise DiscoveryError("no broker leads the queue now")
        return (self.url_of(leader),)
