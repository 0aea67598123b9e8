"""Credentials of AWS that end, renewed without a request that waits for it."""

from __future__ import annotations

import asyncio
from typing import Final, Protocol

from .errors import StorageBackendError

_LAST_SECONDS: Final = 60
"""Seconds before their end from which on credentials are not used: clocks differ, and a request takes time."""


class _Refreshable(Protocol):
    """What is used of botocore's refreshable credentials, which have no types."""

    async def get_frozen_credentials(self) -> object:
        """Return them as they are now; renewed before, if they end within some minutes."""
        ...

    def refresh_needed(self, refresh_in: int | None = None) -> bool:
        """Tell whether they end within so many seconds; None: within those minutes."""
        ...


class RenewedAhead:
    """Takes the place of credentials that are renewed by the request that finds them near their end.

    That request waits for the service that gives them, and where its caller gives up sooner, so does the next one:
    a silent service would hold up all requests, though the credentials are good for minutes to come.
    """

    def __init__(self, credentials: _Refreshable) -> None:
        self._credentials = credentials
        self._frozen: object | None = None
        self._renewing: asyncio.Task[Exception | None] | None = None

    async def get_frozen_credentials(self) -> object:
        """Return credentials to sign with. Raises what the service's client raises, if there are none."""
        if self._frozen is not None and not self._credentials.refresh_needed():
            return self._frozen
        if self._renewing is None or self._renewing.done():  # `aclose` ends it
            self._renewing = asyncio.get_running_loop().create_task(
                self._renew(), name="osqueue-s3-credentials"
            )
        if self._frozen is None or self._credentials.refresh_needed(_LAST_SECONDS):
            # not awaited itself: a caller that gives up would end it for the others as well
            await asyncio.wait((self._renewing,))
            if self._renewing.cancelled():
                raise StorageBackendError("the backend is closed", outcome="not_applied")
            if error := self._renewing.result():
                raise error
        return self._frozen

    def __getattr__(self, name: str) -> object:
        return getattr(self._credentials, name)

    async def aclose(self) -> None:
        """Renew no more."""
        if self._renewing is not None:
            self._renewing.cancel()
            await asyncio.wait((self._renewing,))

    async def _renew(self) -> Exception | None:
        """Renew them. An error is returned: where the old ones are still good, there is nobody to raise it for."""
        try:
            self._frozen = await self._credentials.get_frozen_credentials()
        except Exception as error:  # noqa: BLE001  # whatever a program or service that gives credentials brings about
            return error
        return None
