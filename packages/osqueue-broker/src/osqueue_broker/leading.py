"""Leading the queue from the takeover to the hand-over, for a broker with a port of its own and a mounted one."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Final

from osqueue_client.errors import ConfigError, StorageBackendError
from osqueue_storage import PROBE_WRITES, StorageBackend, probe

from .app import BrokerApp
from .clock import Clock
from .commit_loop import CommitLoop
from .document_writer import DocumentWriter
from .leadership import Candidate
from .service import QueueService
from .settings import DOCUMENT_KEY, BrokerSettings

logger = logging.getLogger("osqueue.broker")

_PROBE_AGAIN_AFTER: Final = 0.5


@dataclass(frozen=True, slots=True)
class Leadership:
    """The commit loop of a leading broker, what serves from it, and the task that ends with it."""

    commits: CommitLoop
    service: QueueService
    ended: asyncio.Task[None]
    settings: BrokerSettings

    async def drain(self, app: BrokerApp) -> None:
        """Have an application answer what it has read, for a third of `stop_timeout` at most."""
        try:
            async with asyncio.timeout(self.settings.stop_timeout / 3):
                await app.drain()
        except TimeoutError:
            logger.warning("drain_timed_out")  # a peer does not read what it asked for: it will be cut off

    @contextlib.contextmanager
    def losing_patience(self) -> Iterator[None]:
        """While requests under way are waited for, answer in time what the store does not confirm."""
        delay = 0.8 * self.settings.stop_timeout / 3
        impatience = asyncio.get_running_loop().call_later(delay, self.commits.give_up)
        try:
            yield
        finally:
            impatience.cancel()


@contextlib.asynccontextmanager
async def leading(
    storage: StorageBackend, address: str, settings: BrokerSettings, clock: Clock, *, has_bound: bool
) -> AsyncIterator[Leadership]:
    """Lead the queue at `address` while the context is open.

    Raises at its end what ended the term before that, and `StorageBackendError` if the hand-over is not confirmed.
    """
    if settings.probe_storage:
        await _probe(storage, settings)
    writer = DocumentWriter(storage, DOCUMENT_KEY, settings=settings, clock=clock)
    candidate = Candidate(writer, address, storage=storage, settings=settings, clock=clock)
    term = await candidate.run(has_bound=has_bound)
    commits = CommitLoop(term, writer=writer, candidate=candidate, settings=settings, clock=clock)
    ended = asyncio.get_running_loop().create_task(commits.run(), name="osqueue-commits")  # owned here
    try:
        yield Leadership(commits, QueueService(commits, storage, address, clock), ended, settings)
    finally:
        commits.stop()
        await asyncio.wait((ended,), timeout=settings.stop_timeout / 3 + settings.slowest_spacing(storage))
        has_handed_over = ended.done()
        if not has_handed_over:
            logger.error("hand_over_timed_out", extra={"address": address})
            ended.cancel()
            await asyncio.wait((ended,))
        failure = None if ended.cancelled() else ended.exception()
    if failure is not None:
        raise failure
    if not has_handed_over:
        raise StorageBackendError(
            "stopped, but the leadership was not handed over, as the store does not answer: another broker may lead "
            f"after {settings.broker_heartbeat_timeout:g} s. Nothing that was acknowledged is lost",
            outcome="unknown",
        )


async def _probe(storage: StorageBackend, settings: BrokerSettings) -> None:
    """See that the store honours conditional writes, asking again while it fails, within `request_timeout`.

    Raises `ConfigError` if it does not, and `StorageBackendError` if it cannot be told.
    """
    patience = settings.request_timeout + PROBE_WRITES * settings.slowest_spacing(storage)
    failure = "no answer"
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
                        break
                logger.warning("storage_probe_unclear", extra={"error": failure})
                await asyncio.sleep(_PROBE_AGAIN_AFTER)
    except TimeoutError:
        failure = f"no success within {patience:g} s: {failure}"
    raise StorageBackendError(
        f"the store failed what is tried at start, conditional writes of a small object: {failure}. If this program "
        "may write nothing but the queue document, start it with --no-storage-probe (BrokerSettings.probe_storage)",
        outcome="not_applied",
    )
