"""What is tried of a store before a broker trusts it with a queue."""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from osqueue_client.errors import ConfigError, StorageBackendError
from osqueue_storage import PROBE_WRITES, StorageBackend, probe

from .settings import BrokerSettings

logger = logging.getLogger("osqueue.broker")

_AGAIN_AFTER: Final = 0.5
_ADVICE: Final = (
    " (a program that may write nothing but the queue document starts with --no-storage-probe,"
    " BrokerSettings.probe_storage)"
)


async def try_store(storage: StorageBackend, settings: BrokerSettings) -> None:
    """See that the store honours conditional writes, asking again while it fails, within `request_timeout`.

    Raises `ConfigError` if it does not, and `StorageBackendError` if it cannot be told.
    """
    spacing = settings.slowest_spacing(storage)
    if spacing:
        logger.info("storage_probe", extra={"takes_at_most": PROBE_WRITES * spacing})
    patience = settings.request_timeout + PROBE_WRITES * spacing
    failure, advice = "no answer", ""
    try:
        async with asyncio.timeout(patience):
            while True:
                try:
                    return await probe(storage)
                except ConfigError:
                    raise
                except Exception as error:  # noqa: BLE001  # whatever a backend raises, only an answer ends this
                    failure = str(error) or type(error).__name__
                    if isinstance(error, StorageBackendError) and error.outcome == "not_applied":
                        advice = _ADVICE
                        break
                logger.warning("storage_probe_unclear", extra={"error": failure})
                await asyncio.sleep(_AGAIN_AFTER)
    except TimeoutError:
        failure = f"no success within {patience:g} s: {failure}"
    raise StorageBackendError(
        f"the store failed what is tried at start, conditional writes of a small object: {failure}{advice}",
        outcome="not_applied",
    )
