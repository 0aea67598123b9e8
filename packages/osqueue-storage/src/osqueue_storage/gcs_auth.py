"""Access tokens of Google Cloud, as headers of a request.

`google.auth` finds and refreshes credentials by blocking calls: they run in a thread. It is imported only
here, and this module only by `GCSBackend`: it comes with the extra `gcs`.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Final

import google.auth
from google.auth.credentials import Credentials, TokenState, with_scopes_if_required
from google.auth.transport.requests import Request

from .environment import variable
from .errors import StorageBackendError

_SCOPES: Final = ("https://www.googleapis.com/auth/devstorage.read_write",)
_ONE_REQUEST: Final = 5.0
"""Seconds that one request for a token may take; `google.auth` makes several if need be."""


class Tokens:
    """The tokens of one credentials object; without one, of the application default credentials.

    `google.auth` calls a token stale some minutes before it expires: it is then refreshed while it is still
    used, so that a slow token server does not hold up the requests.
    """

    def __init__(self, credentials: Credentials | None) -> None:
        self._credentials = credentials
        self._are_given = credentials is not None
        self._refused = ""
        self._refresh: Future[Exception | None] | None = None
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="osqueue-gcs-token")

    async def headers(self, timeout: float) -> dict[str, str]:
        """Return the headers that authenticate a request.

        `timeout`: seconds to wait for a token, if there is none. Raises `StorageBackendError` if there is none
        then, or the credentials do not give one.
        """
        headers, state = self._current()
        if self._refresh is not None and self._refresh.done():
            self._refresh = None
        if state is not TokenState.FRESH and self._refresh is None:
            self._refresh = self._executor.submit(self._get_new)
        if state is TokenState.INVALID and self._refresh is not None:
            await self._wait_for(self._refresh, timeout)
            headers, _ = self._current()
        return headers

    def refuse(self, headers: dict[str, str]) -> None:
        """Never again use the token in these headers."""
        self._refused = headers.get("authorization", "")

    def close(self) -> None:
        """Refresh no more. A refresh that runs ends by itself."""
        self._executor.shutdown(wait=False)

    def _current(self) -> tuple[dict[str, str], TokenState]:
        headers: dict[str, str] = {}
        if self._credentials is None or self._credentials.token is None:
            return headers, TokenState.INVALID
        state = self._credentials.token_state
        # also says which project pays, if the credentials name one
        self._credentials.apply(headers)  # type: ignore[no-untyped-call]  # google.auth has no annotations
        return headers, TokenState.INVALID if headers.get("authorization") == self._refused else state

    async def _wait_for(self, refresh: Future[Exception | None], timeout: float) -> None:
        try:
            async with asyncio.timeout(timeout):
                # shielded: a refresh that has not begun yet would be cancelled, for the others as well
                error = await asyncio.shield(asyncio.wrap_future(refresh))
        except TimeoutError as late:
            raise StorageBackendError(
                f"the Google credentials gave no access token within {timeout:g} s", outcome="not_applied"
            ) from late
        if error is not None:
            # Its other arguments and its cause may hold what a token server answered: they are not shown.
            reason = str(error.args[0]) if error.args else type(error).__name__
            raise StorageBackendError(
                f"the Google credentials gave no access token: {reason[:300].rstrip('. ')}. {self._advice()}",
                outcome="not_applied",
            )

    def _advice(self) -> str:
        if self._are_given:
            return "Check the credentials that GCSBackend was given"
        if variable("GOOGLE_APPLICATION_CREDENTIALS"):
            return "Check the file that GOOGLE_APPLICATION_CREDENTIALS names, and what it is about"
        return (
            "Set GOOGLE_APPLICATION_CREDENTIALS, or run `gcloud auth application-default login`, or give GCSBackend "
            "credentials of google.auth"
        )

    def _get_new(self) -> Exception | None:
        """Get a token: blocks, in the thread. An error is returned: there may be nobody to raise it for."""
        try:
            if self._credentials is None:
                self._credentials, _ = google.auth.default(scopes=_SCOPES)
            else:
                self._credentials = with_scopes_if_required(  # type: ignore[no-untyped-call]  # as above
                    self._credentials, _SCOPES
                )
            self._credentials.refresh(partial(Request(), timeout=_ONE_REQUEST))
        except Exception as error:  # noqa: BLE001  # the credentials may be of a class of somebody's own
            return error
        return None
