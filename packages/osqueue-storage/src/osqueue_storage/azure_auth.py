"""How a request proves to Azure who sends it: by the account's key, a shared access signature, or a token."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import hmac
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, Protocol

from .endpoints import keeps_secrets
from .environment import variable
from .errors import ConfigError, StorageBackendError
from .extras import is_installed, missing_extra

SCOPE: Final = "https://storage.azure.com/.default"

_REFRESH_BEFORE: Final = 300.0
"""Seconds before its end at which a token is replaced: clocks differ, and a request takes time."""

_SIGNED_HEADERS: Final = ("content-encoding", "content-language", "content-length", "content-md5", "content-type",
                          "date", "if-modified-since", "if-match", "if-none-match", "if-unmodified-since",
                          "range")  # fmt: skip


class AccessToken(Protocol):
    """A bearer token, and when it ends, in seconds since 1970."""

    @property
    def token(self) -> str: ...
    @property
    def expires_on(self) -> int: ...


class TokenCredential(Protocol):
    """What an instance of a class of `azure.identity.aio` can do."""

    async def get_token(self, *scopes: str) -> AccessToken:
        """Return a token for these scopes."""
        ...

    async def close(self) -> None:
        """Give back what the credential holds."""
        ...


@dataclass(frozen=True, slots=True)
class Request:
    """What is sent, unsigned.

    The path is percent-encoded and begins with a slash; values of the query are not; header names are in lower
    case.
    """

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes


class Signer(Protocol):
    """One way to sign requests."""

    secret_query: str
    """What is put behind the query of each request, percent-encoded."""

    async def headers(self, request: Request) -> Mapping[str, str]:
        """Return the headers to send in addition. Raises `StorageBackendError` if there are none to be had."""
        ...

    def forget(self) -> None:
        """Hear that the last headers were not accepted."""
        ...

    async def aclose(self) -> None:
        """Give back what the signer holds. Safe to call twice."""
        ...


class _Unchanging:
    def forget(self) -> None:
        """Nothing to forget: there is but one key."""

    async def aclose(self) -> None:
        """Nothing to give back."""


class AccountKey(_Unchanging):
    """Shared Key authorization (learn.microsoft.com/rest/api/storageservices/authorize-with-shared-key)."""

    secret_query = ""

    def __init__(self, account: str, key: str) -> None:
        self._account = account
        try:
            self._key = base64.b64decode(key, validate=True)
        except (binascii.Error, ValueError):
            raise ConfigError("account_key is not base64: copy it whole, with the = at its end") from None

    async def headers(self, request: Request) -> Mapping[str, str]:
        """See `Signer.headers`."""
        signature = hmac.digest(self._key, self._text(request).encode(), hashlib.sha256)
        return {"authorization": f"SharedKey {self._account}:{base64.b64encode(signature).decode()}"}

    def _text(self, request: Request) -> str:
        headers = {**request.headers, "content-length": str(len(request.body) or "")}
        lines = [request.method, *(headers.get(name, "") for name in _SIGNED_HEADERS)]
        lines += [f"{name}:{value}" for name, value in sorted(headers.items()) if name.startswith("x-ms-")]
        lines += [f"/{self._account}{request.path}"]
        lines += [f"{name}:{value}" for name, value in sorted(request.query.items())]
        return "\n".join(lines)


class SharedAccessSignature(_Unchanging):
    """A SAS token: it travels in the query."""

    def __init__(self, token: str) -> None:
        self.secret_query = token.strip().removeprefix("?")
        if "sig=" not in self.secret_query or any(char in self.secret_query for char in " \r\n#"):
            raise ConfigError("sas_token is not one: it looks like sv=…&sp=…&sig=…, percent-encoded")

    async def headers(self, request: Request) -> Mapping[str, str]:
        """See `Signer.headers`."""
        return {}


class Tokens:
    """Bearer tokens of a credential.

    A token is replaced some minutes before it ends, while it is still used: a slow or silent token service does not
    hold up the requests as long as there is a good one. The credential is made at first use.

    `owned`: whether it was made for this alone, and is closed with it. `timeout`: seconds that it may take to give a
    token.
    """

    secret_query = ""

    def __init__(self, make: Callable[[], TokenCredential], *, owned: bool, timeout: float) -> None:
        self._make = make
        self._owned = owned
        self._timeout = timeout
        self._credential: TokenCredential | None = None
        self._token: AccessToken | None = None
        self._fetching: asyncio.Task[Exception | None] | None = None

    async def headers(self, request: Request) -> Mapping[str, str]:
        """See `Signer.headers`."""
        if _seconds_left(self._token) < _REFRESH_BEFORE and (self._fetching is None or self._fetching.done()):
            # of many tasks one asks, and the others find its token; `aclose` ends it
            self._fetching = asyncio.get_running_loop().create_task(self._fetch(), name="osqueue-azure-token")
        if _seconds_left(self._token) <= 0 and self._fetching is not None:
            await self._wait_for(self._fetching)
        if self._token is None:
            raise StorageBackendError(
                "no access token for Azure Storage: it was refused", outcome="not_applied"
            )
        return {"authorization": f"Bearer {self._token.token}"}

    def forget(self) -> None:
        """See `Signer.forget`."""
        self._token = None

    async def aclose(self) -> None:
        """See `Signer.aclose`."""
        if self._fetching is not None:
            self._fetching.cancel()
            await asyncio.wait((self._fetching,))
        credential, self._credential = self._credential, None
        if credential is not None and self._owned:
            await credential.close()

    async def _wait_for(self, fetching: asyncio.Task[Exception | None]) -> None:
        # not awaited itself: a caller that gives up would end it for the others as well
        await asyncio.wait((fetching,))
        if fetching.cancelled():
            raise StorageBackendError(
                "no access token for Azure Storage: the backend was closed", outcome="not_applied"
            )
        if error := fetching.result():
            reason = str(error).partition("\n")[0].rstrip(".") or type(error).__name__
            raise StorageBackendError(
                f"no access token for Azure Storage: {reason}. Pass account_key, sas_token or credential, set "
                "AZURE_STORAGE_KEY or AZURE_STORAGE_SAS_TOKEN, or sign in with `az login`",
                outcome="not_applied",
            ) from error

    async def _fetch(self) -> Exception | None:
        """Get a token. An error is returned: there may be nobody to raise it for."""
        try:
            async with asyncio.timeout(self._timeout):
                if self._credential is None:
                    self._credential = await asyncio.to_thread(self._make)  # it may import a large library
                self._token = await self._credential.get_token(SCOPE)
        except Exception as error:  # noqa: BLE001  # whatever a credential raises: users may bring their own
            return error
        return None


def chosen_signer(
    account: str,
    account_key: str | None,
    sas_token: str | None,
    credential: TokenCredential | None,
    endpoint_url: str,
    timeout: float,
) -> Signer:
    """Return what signs the requests: what is given, else what the environment has, else the platform's credentials.

    `timeout`: seconds to wait for a token. Raises `ConfigError` if too much is given, or it cannot work.
    """
    given = sum(1 for value in (account_key, sas_token, credential) if value)
    if given > 1:
        raise ConfigError("AzureBackend takes one of account_key, sas_token and credential, not several")
    if not given and variable("AZURE_STORAGE_ACCOUNT") in (
        None,
        account,
    ):  # else they belong to another account
        account_key = variable("AZURE_STORAGE_KEY")
        sas_token = None if account_key else variable("AZURE_STORAGE_SAS_TOKEN")
    if account_key:
        return AccountKey(account, account_key)
    if not keeps_secrets(endpoint_url):
        raise ConfigError("a token is not sent over http: give an https endpoint_url, or an account_key")
    if sas_token:
        return SharedAccessSignature(sas_token)
    if credential:
        return Tokens(lambda: credential, owned=False, timeout=timeout)
    if not is_installed("azure.identity"):
        raise missing_extra("AzureBackend without account_key and sas_token", "azure")
    return Tokens(_default_credential, owned=True, timeout=timeout)


def _default_credential() -> TokenCredential:
    from azure.identity.aio import DefaultAzureCredential

    return DefaultAzureCredential()


def _seconds_left(token: AccessToken | None) -> float:
    return 0.0 if token is None else token.expires_on - datetime.now(UTC).timestamp()
