"""A container of Azure Blob Storage, by its REST API: an object is a block blob, replaced under its ETag."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self
from urllib.parse import quote, unquote
from xml.etree import ElementTree

from .azure_auth import Request, Signer, TokenCredential, chosen_signer
from .backend import StoredObject
from .endpoints import checked_endpoint, checked_prefix, is_loopback
from .environment import variable
from .errors import CASConflictError, ConfigError, Outcome, StorageBackendError
from .extras import FirstUse, is_installed, missing_extra
from .patience import DEFAULT_TIMEOUT, checked_interval, checked_timeout
from .proxies import proxy_for

if TYPE_CHECKING:
    from .azure_http import Answer, AzureConnection

_CONTAINER: Final = re.compile(r"(?=.{3,63}$)[a-z0-9]+(-[a-z0-9]+)*|\$root|\$web")
_ACCOUNT: Final = re.compile(r"[a-z0-9]{3,24}")
_ETAG: Final = re.compile(r'"[!#-)+\--~]+"')
"""One ETag: no list of several, and not `*`, which means whatever there is (for Azurite in quotes, too)."""

_LOST_NAME: Final = re.compile(r"\.(/|$)|\\|/$")
"""What does not reach Azure as it was sent, or is another name there: parts that end in a dot, a backslash, a slash
at the end (learn.microsoft.com/rest/api/storageservices/naming-and-referencing-containers--blobs--and-metadata).
"""

_REFUSALS: Final = frozenset({400, 401, 403, 404, 405, 411, 412, 413})
"""Statuses by which Azure says that it did nothing, and never will."""

_ADVICE: Final[Mapping[str, str]] = {
    "400": "Check endpoint_url: where the host's name does not begin with the account, as Azurite's, it ends in"
    " /ACCOUNT",
    "401": "Check the credentials and the clock of this machine",
    "403": "Check account_key or sas_token, and the clock of this machine; an identity of Entra ID needs the role"
    " Storage Blob Data Contributor",
    "ContainerNotFound": "Create the container, or correct its name",
    "LeaseIdMissing": "Somebody holds a lease on the blob: break it",
}
"""What to do, by error code or status."""

_PAGE: Final = 1000


class AzureBackend:
    """Objects of one existing container of Azure Blob Storage.

    * `account`: the storage account; else AZURE_STORAGE_ACCOUNT.
    * `prefix` is put before each key as it is: `"queues/"`, for example.
    * `endpoint_url`: where the account is, if not at `https://ACCOUNT.blob.core.windows.net`. For Azurite:
      `http://127.0.0.1:10000/devstoreaccount1`.
    * At most one of `account_key`, `sas_token` and `credential` (of `azure.identity.aio`; the caller closes it).
      Without any, AZURE_STORAGE_KEY or AZURE_STORAGE_SAS_TOKEN, unless AZURE_STORAGE_ACCOUNT is another account;
      and without these the `DefaultAzureCredential` of azure-identity, when it is first needed (environment,
      workload identity, managed identity, Azure CLI).
    * `timeout`: seconds that a request may take, plus one for each MiB of a body; and also seconds to wait for an
      access token.

    A version is the blob's ETag. A proxy of the environment (HTTPS_PROXY, NO_PROXY) is used. A key is at most
    1024 characters with the prefix. One whose blob Azure does not tell from another's is refused: with a part that
    ends in a dot, with a backslash, or with a slash at its end.

    Raises `ConfigError` if an argument cannot be right, or the extra `azure` is not installed.
    """

    max_object_bytes: int | None = 5000 * 1024**2
    """What one Put Blob takes (learn.microsoft.com/rest/api/storageservices/put-blob)."""

    def __init__(
        self,
        container: str,
        *,
        account: str | None = None,
        endpoint_url: str | None = None,
        prefix: str = "",
        account_key: str | None = None,
        sas_token: str | None = None,
        credential: TokenCredential | None = None,
        min_write_interval: float = 0.0,
        timeout: float = DEFAULT_TIMEOUT,
    ) -> None:
        if not _CONTAINER.fullmatch(container):
            raise ConfigError(
                f"{container!r} is no name of a container: it has 3 to 63 of a-z, 0-9 and hyphens"
            )
        checked_interval(min_write_interval)
        account = account or variable("AZURE_STORAGE_ACCOUNT")
        if account is None:
            raise ConfigError(
                f"the storage account is missing: az://{container}?account=NAME in a URL, account in Python, or"
                " AZURE_STORAGE_ACCOUNT in the environment"
            )
        if not _ACCOUNT.fullmatch(account):
            raise ConfigError(
                f"account must be a storage account's name, 3 to 24 of a-z and 0-9, not {account!r}"
            )
        self.min_write_interval = min_write_interval
        self.slowest_write_interval: float = min_write_interval
        self._container = container
        self._prefix = checked_prefix(prefix)
        self._endpoint_url = checked_endpoint(
            endpoint_url or f"https://{account}.blob.core.windows.net",
            example="https://ACCOUNT.blob.core.windows.net, or for Azurite like"
            " http://127.0.0.1:10000/devstoreaccount1",
        )
        self.is_remote = not is_loopback(self._endpoint_url)
        proxy = proxy_for(self._endpoint_url)
        timeout = checked_timeout(timeout)
        signer = chosen_signer(account, account_key, sas_token, credential, self._endpoint_url, timeout)
        if not is_installed("aiohttp"):
            raise missing_extra("AzureBackend", "azure")
        self._connection = FirstUse(
            repr(self), lambda: _connection(self._endpoint_url, proxy, signer, timeout)
        )

    def __repr__(self) -> str:
        return (
            f"AzureBackend({self._container!r}, prefix={self._prefix!r}, endpoint_url={self._endpoint_url!r})"
        )

    async def read(self, key: str) -> StoredObject | None:
        """See `StorageBackend.read`. Raises `StorageBackendError` if there is no whole answer."""
        doing = self._doing("read", key)
        answer = await self._get(key, {}, doing)
        return None if _is_missing_blob(answer) else _stored(answer, doing)

    async def read_if_changed(self, key: str, version: str) -> StoredObject | None:
        """See `ConditionalReader.read_if_changed`. Raises `StorageBackendError` if there is no whole answer."""
        doing = self._doing("read", key)
        condition = {"if-none-match": version} if _ETAG.fullmatch(version) else {}
        answer = await self._get(key, condition, doing)
        return None if answer.status == 304 and condition else _stored(answer, doing)

    async def write(self, key: str, body: bytes, expected_version: str) -> str:
        """See `StorageBackend.write`.

        Raises `StorageBackendError`, with the outcome "unknown" if there is no clear answer.
        """
        conflict = f"{key!r} is not at version {expected_version}"
        if not _ETAG.fullmatch(expected_version):
            raise CASConflictError(conflict, key=key)
        return await self._put(key, body, {"if-match": expected_version}, conflict)

    async def create(self, key: str, body: bytes) -> str:
        """See `StorageBackend.create`.

        Raises `StorageBackendError`, with the outcome "unknown" if there is no clear answer.
        """
        return await self._put(key, body, {"if-none-match": "*"}, f"{key!r} exists already")

    async def delete(self, key: str) -> None:
        """See `StorageBackend.delete`. Snapshots of the blob are deleted with it.

        Raises `StorageBackendError`, with the outcome "unknown" if there is no clear answer.
        """
        doing = self._doing("delete", key)
        headers = {"x-ms-delete-snapshots": "include"}
        request = Request("DELETE", self._path(key, doing), {}, headers, b"")
        answer = await (await self._connection.get()).send(request, doing=doing, outcome="unknown")
        if answer.status != 202 and not _is_missing_blob(answer):
            raise _failure(answer, doing, "unknown")

    async def list(self, prefix: str) -> AsyncIterator[str]:
        """See `StorageBackend.list`. Raises `StorageBackendError` if there is no whole answer."""
        doing = self._doing("list", prefix)
        names: list[str] = []
        query = {
            "restype": "container",
            "comp": "list",
            "prefix": self._prefix + prefix,
            "maxresults": str(_PAGE),
        }
        marker: str | None = ""
        while marker is not None:
            more = {"marker": marker} if marker else {}
            request = Request("GET", f"/{self._container}", query | more, {}, b"")
            answer = await (await self._connection.get()).send(request, doing=doing, outcome="not_applied")
            page, marker = _listed(answer, doing)
            names += page
        for name in sorted(names, key=str.encode):
            yield name.removeprefix(self._prefix)

    async def aclose(self) -> None:
        """Close the connections: the outcome of a write under way is unknown then."""
        await self._connection.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.aclose()

    async def _get(self, key: str, condition: Mapping[str, str], doing: str) -> Answer:
        request = Request("GET", self._path(key, doing), {}, condition, b"")
        return await (await self._connection.get()).send(request, doing=doing, outcome="not_applied")

    async def _put(self, key: str, body: bytes, condition: Mapping[str, str], conflict: str) -> str:
        doing = self._doing("write", key)
        kind = {"x-ms-blob-type": "BlockBlob", "content-type": "application/octet-stream"}
        request = Request("PUT", self._path(key, doing), {}, {**kind, **condition}, body)
        answer = await (await self._connection.get()).send(request, doing=doing, outcome="unknown")
        if answer.status == 201 and answer.etag:
            return answer.etag
        if _is_unmet(answer, condition):
            raise CASConflictError(conflict, key=key)
        raise _failure(answer, doing, "unknown")

    def _path(self, key: str, doing: str) -> str:
        name = self._prefix + key
        if not key or _LOST_NAME.search(name):
            raise StorageBackendError(
                f"{doing}: Azure keeps no blob of that name apart", outcome="not_applied"
            )
        try:
            return f"/{self._container}/{quote(name, safe='/')}"
        except UnicodeEncodeError as error:
            raise StorageBackendError(
                f"{doing}: the key cannot be written in UTF-8", outcome="not_applied"
            ) from error

    def _doing(self, action: str, key: str) -> str:
        return f"cannot {action} {key[:80]!r} in {self!r}"


def _connection(endpoint_url: str, proxy: str | None, signer: Signer, timeout: float) -> AzureConnection:
    from .azure_http import AzureConnection

    return AzureConnection(endpoint_url, proxy, signer, timeout)


def _is_missing_blob(answer: Answer) -> bool:
    return answer.status == 404 and answer.code == "BlobNotFound"


def _is_unmet(answer: Answer, condition: Mapping[str, str]) -> bool:
    """Tell whether the write was refused for its condition (and not, say, for a lease, which is a 412 too)."""
    if answer.status == 412 and answer.code == "ConditionNotMet":  # without a code it is not Azure's
        return True
    if "if-match" in condition:
        return _is_missing_blob(answer)
    return answer.status == 409 and answer.code == "BlobAlreadyExists"


def _stored(answer: Answer, doing: str) -> StoredObject:
    if answer.status == 200 and answer.etag:
        return StoredObject(answer.body, answer.etag)
    raise _failure(answer, doing, "not_applied")


def _listed(answer: Answer, doing: str) -> tuple[list[str], str | None]:
    """Return the names of one page, and the marker of the next."""
    if answer.status != 200:
        raise _failure(answer, doing, "not_applied")
    try:
        root = ElementTree.fromstring(answer.body)
    except ElementTree.ParseError as error:
        raise StorageBackendError(f"{doing}: the answer is no listing", outcome="not_applied") from error
    return [_name(element) for element in root.iter("Name")], root.findtext("NextMarker") or None


def _name(element: ElementTree.Element) -> str:
    name = element.text or ""
    return unquote(name) if element.get("Encoded") == "true" else name  # what XML cannot hold


def _failure(answer: Answer, doing: str, outcome: Outcome) -> StorageBackendError:
    """Return the error for an answer that is neither success nor conflict.

    Only what Azure refuses by one of its codes was surely not applied: a proxy on the way knows nothing.
    """
    if answer.status in _REFUSALS and answer.code:
        outcome = "not_applied"
    told = f"{doing}: status {answer.status} {answer.code}".rstrip()
    status = (
        "" if answer.status == 400 and answer.code else str(answer.status)
    )  # with a code it reached Azure
    advice = _ADVICE.get(answer.code) or _ADVICE.get(status)
    return StorageBackendError(f"{told}. {advice}" if advice else told, outcome=outcome)
