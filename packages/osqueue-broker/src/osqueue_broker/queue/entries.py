"""How one entry of a batch is refused."""

from __future__ import annotations

from osqueue_client.errors import OsqueueError
from osqueue_client.models import EntryError


def entry_error(error: OsqueueError) -> EntryError:
    """Return an error as the answer to one entry: it had no effect."""
    return EntryError(
        tag=error.tag,
        message=error.message,
        field=getattr(error, "field", None),
        outcome="not_applied",
        retry_after=getattr(error, "retry_after", None),
    )
