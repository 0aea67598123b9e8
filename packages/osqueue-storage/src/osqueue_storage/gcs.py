"""A bucket of Google Cloud Storage, by its JSON API."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self
from urllib.parse import quote

from .backend import StoredObject
from .endpoints import checked_endpoint, checked_prefix, is_loopback, keeps_secrets
from .errors import CASConflictError, ConfigError, Outcome, StorageBackendError
from .extras import FirstUse, is_installed, missing_extra
from .patience import DEFAULT_TIMEOUT, checked_interval, checked_timeout
from .proxies import proxy_for

if TYPE_CHECKING:
    from google.auth.credentials import Credentials

    from .gcs_http import GCSConnection
    from .http_once import Response

_ENDPOINT: Final = "https://storage.googleapis.com"
_BUCKET: Final = re.compile(r"[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]")
_GENERATION: Final = re.compile(r"[1-9][0-9]{0,19}")
_NONE_YET: Final = "0"
"""The generation of an object that does not exist."""

_REFUSALS: Final = frozenset({400, 401, 403, 404, 405, 411, 413})
"""Statuses by which the server says that it did nothing, and never will."""

_TOO_FAST: Final = frozenset({"rateLimitExceeded", "userRateLimitExceeded"})
"""Reasons of a 403 or 429 that pass by themselves (cloud.google.com/storage/docs/json_api/v1/status-codes)."""

_ADVICE: Final = {
    401: "The next request takes a new access token",
    403: "Grant the role roles/storage.objectUser on the bucket",
    404: "Create the bucket, or correct its name or endpoint_url",
    405: "Check endpoint_url: it must speak the JSON API of Google Cloud Storage",
    429: "GCS takes about one write a second to one object",
}


class GCSBackend:
    """Objects of one bucket of Google Cloud Storage.

    * `prefix` is put before each key as it is: `"queues/"`, for example.
    * `endpoint_url`: another place that speaks the JSON API, as an emulator does.
    * `credentials`: of `google.auth`; None takes the application default credentials when they are first
      needed (GOOGLE_APPLICATION_CREDENTIALS, `gcloud auth application-default login`, the metadata server of
      a machine or pod in Google Cloud, workload identity federation).
    * `anonymous`: send no credentials, as emulators want it.
    * `timeout`: seconds that a request may take, plus one for each MiB of a body; and also seconds to wait for
      an access token, if there is none.
    * `min_write_interval`: GCS takes about one update a second to one object
      (https://cloud.google.com/storage/quotas).

    A version is the object's generation. No request is ever sent twice. A proxy of the environment
    (HTTPS_PROXY, NO_PROXY) is used. The credentials need the role roles/storage.objectUser on the bucket: with
    less, GCS refuses the read of a missing object instead of calling it missing.
    A key is at most 1024 bytes of UTF-8 with the prefix, without line breaks; the bucket refuses others.

    Raises `ConfigError` if an argument cannot be right, or the extra `gcs` is not installed.
    """

    max_object_bytes: int | None = 5 * 1024**4
    """Of an object, and so of the one multipart request that writes it: no smaller limit is documented."""

    def __init__(
        self,
        bucket: str,
        *,
        prefix: str = "",
        endpoint_url: str = _ENDPOINT,
        credentials: Credentials | None = None,
        anonymous: bool = False,
        timeout: float = DEFAULT_TIMEOUT,
        min_write_interval: float = 1.0,
    ) -> None:
        if not _BUCKET.fullmatch(bucket):
            raise ConfigError(f"{bucket!r} is no name of a bucket: give the name alone, as in my-bucket")
        checked_interval(min_write_interval)
        if anonymous and credentials is not None:
            raise ConfigError("GCSBackend takes credentials or anonymous=True, not both")
        self.min_write_interval: float = min_write_interval
        self.slowest_write_interval: float = min_write_interval
        self._endpoint_url = checked_endpoint(endpoint_url, example=_ENDPOINT)
        self.is_remote = not is_loopback(self._endpoint_url)
        if not (anonymous or keeps_secrets(self._endpoint_url)):
            raise ConfigError("an access token must not travel over http: use https, or anonymous=True")
        self._bucket = bucket
        self._prefix = checked_prefix(prefix)
        proxy, timeout = proxy_for(self._endpoint_url), checked_timeout(timeout)
        if not is_installed("aiohttp") or not (anonymous or is_installed("google.auth", "requests")):
            raise missing_extra("GCSBackend", "gcs")
        self._connection = FirstUse(
            repr(self), lambda: _connection(self._endpoint_url, proxy, credentials, anonymous, timeout)
        )

    def __repr__(self) -> str:
        return f"GCSBackend({self._bucket!r}, prefix={self._prefix!r}, endpoint_url={self._endpoint_url!r})"

    async def read(self, key: str) -> StoredObject | None:
        """See `StorageBackend.read`. Raises `StorageBackendError` if there is no whole answer."""
        doing = self._doing("read", key)
        answer = await self._get(key, "alt=media", doing)
        if answer.status != 404:
            return _stored(answer, doing)
        if _says_no_such_object(answer):
            return None
        # That was no JSON, and something on the way can send a 404 as well. What is asked now is answered in JSON.
        if _says_no_such_object(await self._get(key, "fields=generation", doing)):
            return None
        raise _failure(answer, doing, "not_applied")

    async def read_if_changed(self, key: str, version: str) -> StoredObject | None:
        """See `ConditionalReader.read_if_changed`. Raises `StorageBackendError` if there is no whole answer."""
        if not _GENERATION.fullmatch(version):
            version = _NONE_YET  # nothing can be at that version
        doing = self._doing("read", key)
        answer = await self._get(key, f"alt=media&ifGenerationNotMatch={version}", doing)
        if answer.status == 304:
            return None
        found = _stored(answer, doing)
        return None if found.version == version else found  # an emulator may not know the condition

    async def write(self, key: str, body: bytes, expected_version: str) -> str:
        """See `StorageBackend.write`.

        Raises `StorageBackendError`, with the outcome "unknown" if there is no clear answer.
        """
        if not _GENERATION.fullmatch(expected_version):  # 0 would create
            raise CASConflictError(f"{key!r} is never at version {expected_version}", key=key)
        return await self._upload(
            key, body, expected_version, f"{key!r} is not at version {expected_version}"
        )

    async def create(self, key: str, body: bytes) -> str:
        """See `StorageBackend.create`.

        Raises `StorageBackendError`, with the outcome "unknown" if there is no clear answer.
        """
        return await self._upload(key, body, _NONE_YET, f"{key!r} exists already")

    async def delete(self, key: str) -> None:
        """See `StorageBackend.delete`.

        Raises `StorageBackendError`, with the outcome "unknown" if there is no clear answer.
        """
        doing = self._doing("delete", key)
        answer = await (await self._connection.get()).request(
            "DELETE", self._object(key, doing), doing=doing, outcome="unknown"
        )
        if answer.status not in (200, 204) and not _says_no_such_object(answer):
            raise _failure(answer, doing, "unknown")

    async def list(self, prefix: str) -> AsyncIterator[str]:
        """See `StorageBackend.list`. Raises `StorageBackendError` if there is no whole answer."""
        doing = self._doing("list", prefix)
        query = f"prefix={_encoded(self._prefix + prefix, doing)}&fields=kind,items(name),nextPageToken"
        page_token = ""
        while True:
            page = f"&pageToken={quote(page_token, safe='')}" if page_token else ""
            answer = await (await self._connection.get()).request(
                "GET", f"/storage/v1/b/{self._bucket}/o?{query}{page}", doing=doing, outcome="not_applied"
            )
            if answer.status != 200:
                raise _failure(answer, doing, "not_applied")
            names, page_token = _listing(answer, doing)
            for name in names:
                if key := name.removeprefix(self._prefix):  # "" is the mark of a folder, made by a console
                    yield key
            if not page_token:
                return

    async def aclose(self) -> None:
        """Close the connections."""
        await self._connection.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.aclose()

    async def _get(self, key: str, query: str, doing: str) -> Response:
        return await (await self._connection.get()).request(
            "GET", f"{self._object(key, doing)}?{query}", doing=doing, outcome="not_applied"
        )

    async def _upload(self, key: str, body: bytes, generation: str, conflict: str) -> str:
        from .gcs_http import Upload

        doing = self._doing("write", key)
        self._object(key, doing)
        # no-store: of a bucket that everybody may read, caches would keep objects for an hour
        about = {"name": self._prefix + key, "cacheControl": "no-store"}
        answer = await (await self._connection.get()).request(
            "POST",
            f"/upload/storage/v1/b/{self._bucket}/o?uploadType=multipart&ifGenerationMatch={generation}"
            "&fields=generation",
            doing=doing,
            outcome="unknown",
            upload=Upload(json.dumps(about).encode(), body),
        )
        if answer.status == 412 and _error_of(answer) is not None:
            raise CASConflictError(conflict, key=key)
        if answer.status != 200:
            raise _failure(answer, doing, "unknown")
        return _new_generation(answer, doing)

    def _object(self, key: str, doing: str) -> str:
        name = self._prefix + key
        if not key or name in (".", ".."):  # in a path they would name the bucket, and that can be deleted
            raise StorageBackendError(f"{doing}: it cannot be a name", outcome="not_applied")
        return f"/storage/v1/b/{self._bucket}/o/{_encoded(name, doing)}"

    def _doing(self, what: str, key: str) -> str:
        return f"{what} of {self._prefix + key!r} in the bucket {self._bucket} at {self._endpoint_url}"


def _connection(
    endpoint_url: str, proxy: str | None, credentials: Credentials | None, anonymous: bool, timeout: float
) -> GCSConnection:
    try:
        from .gcs_http import GCSConnection

        if anonymous:
            return GCSConnection(endpoint_url, proxy, None, timeout)
        from .gcs_auth import Tokens
    except ImportError as error:
        raise missing_extra("GCSBackend", "gcs") from error
    return GCSConnection(endpoint_url, proxy, Tokens(credentials), timeout)


def _encoded(text: str, doing: str) -> str:
    try:
        return quote(text, safe="")
    except UnicodeEncodeError as error:
        raise StorageBackendError(f"{doing}: it is not Unicode text", outcome="not_applied") from error


@dataclass(frozen=True, slots=True)
class _APIError:
    message: str
    reason: str


def _error_of(answer: Response) -> _APIError | None:
    """Return the error that the JSON API reports; None if the answer is something else, such as a proxy's page."""
    try:
        error = json.loads(answer.body)["error"]
        first = error["errors"][0]
        if int(error["code"]) == answer.status and first["domain"] and first["reason"]:
            return _APIError(str(error["message"]), str(first["reason"]))
    except (ValueError, KeyError, IndexError, TypeError):
        pass
    return None


def _says_no_such_object(answer: Response) -> bool:
    """Whether the API itself says that the object is missing: not its bucket, and not a proxy that is lost."""
    if answer.status != 404:
        return False
    if answer.body.startswith(b"No such object: "):  # the answer to a read is no JSON
        return True
    error = _error_of(answer)
    return error is not None and "bucket does not exist" not in error.message


def _stored(answer: Response, doing: str) -> StoredObject:
    if answer.status != 200:
        raise _failure(answer, doing, "not_applied")
    generation = answer.headers.get("x-goog-generation", "")
    length = answer.headers.get("x-goog-stored-content-length")
    if not _GENERATION.fullmatch(generation):
        raise StorageBackendError(
            f"{doing}: the answer says no generation, as Google Cloud Storage does: check endpoint_url",
            outcome="not_applied",
        )
    if length is not None and length != str(len(answer.body)):
        raise StorageBackendError(
            f"{doing}: {len(answer.body)} of {length} bytes arrived", outcome="not_applied"
        )
    return StoredObject(answer.body, generation)


def _new_generation(answer: Response, doing: str) -> str:
    try:
        generation = json.loads(answer.body)["generation"]
        if _GENERATION.fullmatch(generation):
            return str(generation)
    except (ValueError, KeyError, TypeError):
        pass
    raise StorageBackendError(f"{doing}: the answer says no generation", outcome="unknown")


def _listing(answer: Response, doing: str) -> tuple[list[str], str]:
    """Return the names on one page of a listing, and the token for the next page or "" """
    try:
        page = json.loads(answer.body)
        if page["kind"] != "storage#objects":
            raise ValueError("another kind of answer")
        return [str(item["name"]) for item in page.get("items", ())], str(page.get("nextPageToken") or "")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise StorageBackendError(f"{doing}: the answer is no listing", outcome="not_applied") from error


def _failure(answer: Response, doing: str, unclear: Outcome) -> StorageBackendError:
    """Return the error for an answer that is not the one hoped for."""
    error = _error_of(answer)
    told = error.message if error else " ".join(answer.body[:2000].decode(errors="replace").split())
    is_too_fast = error is not None and error.reason in _TOO_FAST
    parts = (
        f"{doing}: status {answer.status}",
        told[:300].rstrip(". "),
        _ADVICE.get(429 if is_too_fast else answer.status),
    )
    # What is no error of the JSON API comes from something on the way, which knows nothing of the object.
    is_clear = answer.status in _REFUSALS and error is not None and not is_too_fast
    return StorageBackendError(
        ". ".join(part for part in parts if part), outcome="not_applied" if is_clear else unclear
    )
