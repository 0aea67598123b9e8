"""What a broker may add to the old protocol, by the names in its stats."""

from __future__ import annotations

from typing import Final

REQUEST_IDS: Final = "requestIds"
"""It does a request with an id once."""

BATCH: Final = "batch"
"""It takes many jobs in one request."""

WAIT: Final = "wait"
"""A claim may wait there for a job."""

PAGES: Final = "pages"
"""It lists jobs by pages, types and statuses."""
