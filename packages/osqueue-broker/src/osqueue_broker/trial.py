"""What is tried of a store before a broker trusts it with a queue."""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from osqueue_client.errors import ConfigError, StorageBackendError
from osqueue_storage import StorageBackend
from osqueue_storage.probing import PROBE_READS, PROBE_WRITES, probe

from .settings import SEGMENTS_PREFIX, BrokerSettings

logger = logging.getLogger("osqueue.broker")

_AGAIN_AFTER: Final = 0.5
_ADVICE: Final = (
    ". A deep queue needs the rights to create, replace, read, list and delete objects below segments/: docs/stores has"
    " them for each store. A broker without them starts with --no-storage-probe (BrokerSettings.probe_storage), and"
    " each of its commits writes the whole queue"
)


async def try_store(storage: StorageBackend, settings: BrokerSettings) -> None:
    """See that the store honours conditional writes, and that this broker may do all that it must below `segments/`.

    While the store fails it is asked again, within `request_timeout`. Raises `ConfigError` if it does not honour them,
    and `StorageBackendError` if something is not allowed, or it cannot be told.
    """
    spacing = settings.slowest_spacing(storage)
    if spacing:
        logger.info("storage_probe", extra={"takes_at_most": PROBE_WRITES * spacing})
    patience = (
        settings.request_timeout + PROBE_WRITES * spacing + PROBE_READS * settings.slowest_read(storage)
    )
    failure, advice = "no answer", ""
    try:
        async with asyncio.timeout(patience):
            while True:
                try:
                    return await probe(storage, below=SEGMENTS_PREFIX)
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
        f"the store failed what is tried at start, on a small object below {SEGMENTS_PREFIX}: {failure}{advice}",
        outcome="not_applied",
    )
