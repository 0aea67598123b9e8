"""An open connection to an S3-compatible store: all of aiobotocore that osqueue touches.

Importing this takes a second and needs the extra `s3`: `S3Backend` does so at its first use. Whatever the
libraries raise is turned into osqueue's errors here.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import io
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Final, Protocol

import aiohttp
from aiobotocore.config import AioConfig  # type: ignore[import-untyped]
from aiobotocore.httpsession import AIOHTTPSession  # type: ignore[import-untyped]
from aiobotocore.session import AioSession  # type: ignore[import-untyped]
from aiohttp.abc import AbstractStreamWriter
from botocore.exceptions import ClientError  # type: ignore[import-untyped]

from .backend import StoredObject
from .endpoints import is_loopback
from .errors import CASConflictError, ConfigError, OsqueueError, Outcome, StorageBackendError
from .patience import CONNECT_TIMEOUT, seconds_for
from .s3_credentials import RenewedAhead
from .s3_errors import cause_of, code_of, failure, refusal, status_of
from .s3_settings import S3Settings, provider_of

_CONNECTIONS: Final = 64
_PIECE: Final = 256 * 1024
_HASHED_AT_ONCE: Final = 128 * 1024
"""Bytes of a body that are hashed in less time than it takes to hand them to a thread and back, or so."""

_ETAG: Final = re.compile(r'("?)[!#-)+\--~]+\1')
"""One ETag, with quotes or without: not `*`, which would overwrite whatever there is, and no list of several."""

Answer = Mapping[str, Any]
"""What botocore makes of an answer; taken apart at once, and never handed on."""


class _BotoClient(Protocol):
    """The operations used of aiobotocore's client, which has no types."""

    async def get_object(self, **request: str) -> Answer: ...

    async def put_object(self, **request: str | bytes) -> Answer: ...

    async def delete_object(self, **request: str) -> Answer: ...

    async def list_objects_v2(self, **request: str) -> Answer: ...


async def open_client(settings: S3Settings, stack: AsyncExitStack) -> S3Client:
    """Open a client that `stack` closes. Nothing is sent to the store yet.

    Raises `StorageBackendError` if no credentials can be had, `ConfigError` if the installed aiohttp cannot be
    kept from sending a request twice.
    """
    await _require_one_try()
    headers = provider_of(settings.endpoint_url).headers
    try:
        session = _Session(stack)
        if settings.profile:
            session.set_config_variable("profile", settings.profile)
        client = await stack.enter_async_context(
            session.create_client(
                "s3",
                region_name=settings.region,
                endpoint_url=settings.endpoint_url,
                aws_access_key_id=settings.access_key_id or None,
                aws_secret_access_key=settings.secret_access_key or None,
                aws_session_token=settings.session_token or None,
                config=_config(settings),
            )
        )
    except Exception as error:  # noqa: BLE001 # a session can raise anything that its files and programs can
        # Without its cause: what is raised over files and programs that hold credentials may quote them.
        raise StorageBackendError(
            f"no client for the S3 bucket {settings.bucket!r} at {settings.place}: {refusal(error)}",
            outcome="not_applied",
        ) from None
    client.meta.events.register("before-call.s3", lambda params, **_: params["headers"].update(headers))
    client.meta.events.register("request-created.s3.PutObject", _send_at_once)
    return S3Client(client, settings)


def _send_at_once(request: Any, **_: object) -> None:
    """Send a body without asking first (Expect: 100-continue).

    It costs a round trip, and of a server that takes no notice of it the client would wait for an answer for ever.
    """
    del request.headers["Expect"]  # of these headers, one that is not there may be deleted


def _config(settings: S3Settings) -> AioConfig:
    # None are those of the environment, and of them no other machine's can reach the loopback of this one.
    is_here = settings.endpoint_url is not None and is_loopback(settings.endpoint_url)
    return AioConfig(
        proxies={} if is_here else None,
        http_session_cls=OneTrySession,
        retries={"total_max_attempts": 1, "mode": "standard"},
        connect_timeout=CONNECT_TIMEOUT,
        read_timeout=None,  # the whole request has a limit, in `_request`
        max_pool_connections=_CONNECTIONS,
        # Other stores than Amazon's do not all know the checksums that are sent by default.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        s3={"addressing_style": settings.addressing, "payload_signing_enabled": settings.signed_payload},
        warm_up_loader_caches=True,  # in a thread: it parses megabytes of JSON
    )


class _Session(AioSession):  # type: ignore[misc] # the base class has no types
    """A session whose credentials are renewed while they are used. `stack` ends that."""

    def __init__(self, stack: AsyncExitStack) -> None:
        super().__init__()
        self._stack = stack

    async def get_credentials(self) -> object:
        found = await super().get_credentials()
        if not hasattr(found, "refresh_needed"):
            return found  # None, or such as never end
        renewed = RenewedAhead(found)
        self._stack.push_async_callback(renewed.aclose)
        return renewed


class OneTrySession(AIOHTTPSession):  # type: ignore[misc] # the base class has no types
    """An HTTP session that sends each request once.

    aiohttp sends a PUT again when the connection breaks before the answer. If the first one had its effect,
    the second one fails its condition, and a write that landed is told as a conflict. There is no public
    way to switch that off (github.com/aio-libs/aiohttp/issues/10790). Redirects are not followed here
    either: botocore follows them, with a new signature.
    """

    async def _get_session(self, proxy_url: str | None) -> _OneTry:
        session = await super()._get_session(proxy_url)
        session._retry_connection = False
        return _OneTry(session)


class _OneTry:
    def __init__(self, session: aiohttp.ClientSession) -> None:
        self._session = session

    async def request(self, method: str, *, data: object = None, **options: Any) -> aiohttp.ClientResponse:
        if isinstance(data, io.BytesIO):
            data = _Body(data.getvalue())
        return await self._session.request(method, data=data, allow_redirects=False, **options)


class _Body(aiohttp.Payload):
    """Bytes that are sent piece by piece, so that others may run between, and never copied whole."""

    _value: bytes

    def __init__(self, body: bytes) -> None:
        super().__init__(body)
        self._size = len(body)

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        return self._value.decode(encoding, errors)

    async def write(self, writer: AbstractStreamWriter) -> None:
        body = memoryview(self._value)
        for start in range(0, len(body), _PIECE):
            await writer.write(body[start : start + _PIECE])
            if start + _PIECE < len(body):
                await asyncio.sleep(0)


async def _require_one_try() -> None:
    async with aiohttp.ClientSession() as session:
        if not hasattr(session, "_retry_connection"):
            raise ConfigError(
                f"aiohttp {aiohttp.__version__} cannot be kept from sending a write twice, as osqueue knows "
                "aiohttp: install a newer osqueue-storage, or an older aiohttp"
            )


class S3Client:
    """The operations of `S3Backend` on an open connection. Keys are the backend's: the prefix is added here."""

    def __init__(self, client: _BotoClient, settings: S3Settings) -> None:
        self._client = client
        self._settings = settings

    async def read(self, key: str) -> StoredObject | None:
        async with self._request("read", key) as timer:
            try:
                return await self._get(key, timer)
            except ClientError as error:
                if code_of(error) == "NoSuchKey":
                    return None
                raise

    async def read_if_changed(self, key: str, version: str) -> StoredObject | None:
        condition = {"IfNoneMatch": self._etag(version)} if _ETAG.fullmatch(version) else {}
        async with self._request("read", key) as timer:
            try:
                found = await self._get(key, timer, **condition)
            except ClientError as error:
                if status_of(error) == 304:
                    return None
                raise
        return None if found.version == version else found

    async def write(self, key: str, body: bytes, expected_version: str) -> str:
        if not _ETAG.fullmatch(expected_version):
            raise CASConflictError(f"{key!r} is never at version {expected_version!r}", key=key)
        return await self._put(key, body, IfMatch=self._etag(expected_version))

    async def create(self, key: str, body: bytes) -> str:
        return await self._put(key, body, IfNoneMatch="*")

    async def delete(self, key: str) -> None:
        async with self._request("delete", key):
            try:
                await self._client.delete_object(Bucket=self._settings.bucket, Key=self._full(key))
            except ClientError as error:
                if code_of(error) != "NoSuchKey":
                    raise

    async def keys(self, prefix: str) -> list[str]:
        """Return all keys that begin with `prefix`, in the order of their UTF-8 bytes."""
        keys: list[str] = []
        place = {"Bucket": self._settings.bucket, "Prefix": self._full(prefix)}
        while True:
            async with self._request("list", prefix):
                page = await self._client.list_objects_v2(**place)
                keys += (str(row["Key"])[len(self._settings.prefix) :] for row in page.get("Contents", ()))
            token = page.get("NextContinuationToken")
            if not page.get("IsTruncated") or not token:
                return sorted(keys, key=str.encode)  # directory buckets list in no order
            place["ContinuationToken"] = str(token)

    async def _get(self, key: str, timer: asyncio.Timeout, **condition: str) -> StoredObject:
        answer = await self._client.get_object(Bucket=self._settings.bucket, Key=self._full(key), **condition)
        seconds = seconds_for(int(answer.get("ContentLength", 0)), self._settings.timeout)
        timer.reschedule(asyncio.get_running_loop().time() + seconds)
        async with answer["Body"] as stream:
            body: bytes = await stream.read()
        return StoredObject(body, _version(answer))

    async def _put(self, key: str, body: bytes, **condition: str) -> str:
        async with self._request("write", key, len(body)):
            try:
                answer = await self._client.put_object(
                    Bucket=self._settings.bucket,
                    Key=self._full(key),
                    Body=body,
                    ContentMD5=await _md5(body),
                    **condition,
                )
            except ClientError as error:
                missing = code_of(error) == "NoSuchKey" and "IfMatch" in condition
                if status_of(error) == 412 or missing:
                    fact = "is not at the expected version" if "IfMatch" in condition else "exists already"
                    raise CASConflictError(f"{key!r} {fact}", key=key) from error
                raise
            return _version(answer)

    @asynccontextmanager
    async def _request(self, action: str, key: str, size: int = 0) -> AsyncIterator[asyncio.Timeout]:
        """Bound one request, with a body of `size` bytes, and turn what goes wrong into a StorageBackendError."""
        seconds = seconds_for(size, self._settings.timeout)
        outcome: Outcome = "unknown" if action in ("write", "delete") else "not_applied"
        what = f"{action} of {self._full(key)!r} in the S3 bucket {self._settings.bucket!r} at {self._settings.place}"
        try:
            async with asyncio.timeout(seconds) as timer:
                yield timer
        except OsqueueError:
            raise
        except TimeoutError as error:
            raise StorageBackendError(f"{what}: no answer in time", outcome=outcome) from error
        except Exception as error:  # noqa: BLE001 # nothing foreign leaves the backend
            raise failure(what, error, outcome) from cause_of(error)

    def _full(self, key: str) -> str:
        return self._settings.prefix + key

    def _etag(self, version: str) -> str:
        return version if self._settings.quoted_if_match else version.strip('"')


async def _md5(body: bytes) -> str:
    """Return the hash that lets the store refuse a body that did not arrive whole.

    Not all stores look at the length: a writer that was cancelled or killed in mid-request would leave an
    empty or short object behind.
    """
    if len(body) <= _HASHED_AT_ONCE:
        return _md5_of(body)
    return await asyncio.to_thread(_md5_of, body)


def _md5_of(body: bytes) -> str:
    return base64.b64encode(hashlib.md5(body, usedforsecurity=False).digest()).decode()


def _version(answer: Answer) -> str:
    etag = answer.get("ETag")
    if not etag:
        raise ValueError("the answer has no ETag")
    return str(etag)
