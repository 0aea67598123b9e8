"""A store in a bucket of Amazon S3, or of any other that speaks its protocol and has conditional writes."""

from __future__ import annotations

import asyncio
import importlib.util
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

from .backend import StoredObject
from .endpoints import checked_endpoint, is_loopback
from .errors import StorageBackendError
from .extras import missing_extra
from .patience import DEFAULT_TIMEOUT, checked_interval
from .s3_settings import Addressing, S3Settings, provider_of

if TYPE_CHECKING:
    from .s3_client import S3Client

_OPENING_TIMEOUT: Final = 30.0
"""Seconds for what happens once, at the first use: to import the libraries and find credentials."""


class S3Backend:
    """Objects are objects of `bucket`, which must exist; their names begin with `prefix`, taken as it is.

    * `endpoint_url`: the store, if it is not Amazon's: `https://ACCOUNT.r2.cloudflarestorage.com` (R2),
      `https://t3.storage.dev` (Tigris), `http://host:9000` (MinIO), `http://host:7480` (Ceph).
    * `region`: if None it comes from the AWS configuration; on R2 and Tigris it is `auto`. On Amazon S3 a
      bucket in another region is found, at the cost of a request.
    * `addressing`: where the bucket stands in the URL. `auto` is `path` with an `endpoint_url`, but `virtual`
      on Tigris; on Amazon S3 it is `virtual` where the name allows that.
    * `quoted_if_match`: False for Ceph RGW, which compares an ETag with its quotes to its own without.
    * `signed_payload`: True to sign the body, too, where the store or a policy of the bucket demands it. Its
      SHA-256 is taken in the event loop, which stands still for about 0.8 ms for each MB. Without it the body
      is covered by its MD5, which is always sent and signed: enough against accidents, and over https,
      but over plain http not against somebody on the line who can forge an MD5.
    * `access_key_id`, `secret_access_key`, `session_token`: credentials. Without them, those of the AWS chain:
      environment, `profile` and the files of the AWS CLI, SSO, web identity, the machine's role; they are
      renewed in time.
    * `min_write_interval`: see `StorageBackend`. If None, it is what the provider documents: 1 second on R2,
      else 0.
    * `timeout`: seconds that a request may take, plus a second for each MiB of its body.

    A version is the object's ETag as the store gives it; equal bodies may have equal ones. A request is sent
    once, or again if the store points to another region: a write whose answer is lost is told as unknown, not
    as the conflict that a second try would meet. Without the permission s3:ListBucket, Amazon S3 refuses the
    read of a missing object instead of calling it missing.

    Nothing is opened before the first use. Raises `ConfigError` for an argument that cannot be right, or if
    the extra `s3` is not installed.
    """

    def __init__(
        self,
        bucket: str,
        *,
        prefix: str = "",
        region: str | None = None,
        endpoint_url: str | None = None,
        addressing: Addressing = "auto",
        quoted_if_match: bool = True,
        signed_payload: bool = False,
        profile: str | None = None,
        access_key_id: str | None = None,
        secret_access_key: str | None = None,
        session_token: str | None = None,
        min_write_interval: float | None = None,
        timeout: float = DEFAULT_TIMEOUT,
    ) -> None:
        if endpoint_url is not None:
            endpoint_url = checked_endpoint(endpoint_url, example="https://host or http://host:port")
        provider = provider_of(endpoint_url)
        self._settings = S3Settings(
            bucket=bucket,
            prefix=prefix,
            region=region or provider.region,
            endpoint_url=endpoint_url,
            addressing=provider.addressing if addressing == "auto" else addressing,
            quoted_if_match=quoted_if_match,
            signed_payload=signed_payload,
            timeout=timeout,
            profile=profile,
            access_key_id=access_key_id,
            secret_access_key=secret_access_key,
            session_token=session_token,
        )
        interval = checked_interval(
            provider.min_write_interval if min_write_interval is None else min_write_interval
        )
        if importlib.util.find_spec("aiobotocore") is None:
            raise missing_extra("S3Backend", "s3")
        self.min_write_interval: float = interval
        self.slowest_write_interval: float = interval
        self.is_remote = endpoint_url is None or not is_loopback(endpoint_url)
        self.max_object_bytes: int | None = provider.max_object_bytes
        self._client: S3Client | None = None
        self._opening = asyncio.Lock()
        self._open = AsyncExitStack()
        self._closed = False

    def __repr__(self) -> str:
        settings = self._settings
        return f"S3Backend({settings.bucket!r}, prefix={settings.prefix!r}, endpoint_url={settings.endpoint_url!r})"

    async def read(self, key: str) -> StoredObject | None:
        """See `StorageBackend.read`. Raises `StorageBackendError` if the store gives no clear answer."""
        return await (await self._opened()).read(key)

    async def read_if_changed(self, key: str, version: str) -> StoredObject | None:
        """See `ConditionalReader.read_if_changed`. Raises `StorageBackendError` as `read` does."""
        return await (await self._opened()).read_if_changed(key, version)

    async def write(self, key: str, body: bytes, expected_version: str) -> str:
        """See `StorageBackend.write`.

        Raises `StorageBackendError`, whose `outcome` tells whether the write may have landed.
        """
        return await (await self._opened()).write(key, body, expected_version)

    async def create(self, key: str, body: bytes) -> str:
        """See `StorageBackend.create`. Raises `StorageBackendError` as `write` does."""
        return await (await self._opened()).create(key, body)

    async def delete(self, key: str) -> None:
        """See `StorageBackend.delete`. Raises `StorageBackendError` as `write` does."""
        await (await self._opened()).delete(key)

    async def list(self, prefix: str) -> AsyncIterator[str]:
        """See `StorageBackend.list`. Raises `StorageBackendError` if the store gives no clear answer."""
        for key in await (await self._opened()).keys(prefix):
            yield key

    async def aclose(self) -> None:
        """Close the connections; a request that still runs fails, with its outcome unknown."""
        self._closed = True
        async with self._opening:
            self._client = None
            await self._open.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.aclose()

    async def _opened(self) -> S3Client:
        """Return the client, one for the life of the backend, however many tasks ask for it at once."""
        if self._client is not None:
            return self._client
        try:
            async with asyncio.timeout(_OPENING_TIMEOUT), self._opening:
                if self._closed:
                    raise StorageBackendError(f"{self!r} is closed", outcome="not_applied")
                if self._client is None:
                    client = await asyncio.to_thread(importlib.import_module, ".s3_client", __package__)
                    self._client = await client.open_client(self._settings, self._open)
                return self._client
        except ImportError as error:
            raise missing_extra("S3Backend", "s3") from error
        except TimeoutError as error:
            raise StorageBackendError(
                f"{self!r}: no credentials within {_OPENING_TIMEOUT} s", outcome="not_applied"
            ) from error
