"""Where the leader is: at a URL that the program knows, or at the address that the queue document names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

from osqueue_storage import StorageBackend

from .errors import ConfigError, DiscoveryError
from .transports import checked_url

DOCUMENT_KEY: Final = "queue.json"


class _Document(msgspec.Struct):
    broker: str | None = None


class Discovery:
    """Names the brokers to try, in order. Raises `ConfigError` unless it has URLs or a store to ask."""

    def __init__(self, broker_url: str | Sequence[str] | None, storage: StorageBackend | None) -> None:
        urls = (broker_url,) if isinstance(broker_url, str) else tuple(broker_url or ())
        if bool(urls) == (storage is not None):
            raise ConfigError(
                "give a broker URL, as in OsqueueClient('http://127.0.0.1:8080'), or storage= to find it through"
            )
        self._urls = tuple(checked_url(url) for url in urls)
        self._storage = storage

    def url_of(self, leader: str) -> str:
        """Return the URL of a leader's `host:port`; where the known URLs are https, it is, too."""
        scheme = "https" if self._urls and self._urls[0].startswith("https:") else "http"
        return f"{scheme}://{leader}"

    async def candidates(self) -> tuple[str, ...]:
        """Return the URLs to try. Raises `DiscoveryError` if the store names no leader."""
        if self._storage is None:
            return self._urls
        found = await self._storage.read(DOCUMENT_KEY)
        if found is None:
            raise DiscoveryError(f"the store has no {DOCUMENT_KEY}: start a broker on it first")
        try:
            leader = msgspec.json.decode(found.body, type=_Document).broker
        except msgspec.DecodeError as error:
            raise DiscoveryError(f"{DOCUMENT_KEY} in the store is not a queue document: {error}") from error
        if not leader:
            raise DiscoveryError("no broker leads the queue now")
        return (self.url_of(leader),)
