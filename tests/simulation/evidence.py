"""What the checks of one run look at: its documents, what became of each job, and its requests."""

from __future__ import annotations

from collections import defaultdict

from osqueue_client import models as m

from .documents import Change, JobText, Lease, changes_between, read_documents
from .entries import Singles
from .history import Delivery, History

MOMENT = 1e-3
"""Seconds that do not count: turns of the loop, rounding."""


class Evidence:
    """Documents, changes, and requests by what they were about; and the violations that were found."""

    def __init__(self, history: History) -> None:
        self.history = history
        self.violations: list[str] = []
        self._why = ""
        self.documents = read_documents(history.landings, history.segments)
        self.times = [document.landing.at for document in self.documents]
        self.changes: list[Change] = []
        self.of_job: dict[str, list[Change]] = defaultdict(list)
        self.in_commit: dict[int, list[Change]] = defaultdict(list)
        for old, new in zip(self.documents, self.documents[1:], strict=False):
            for change in changes_between(old, new):
                self.changes.append(change)
                self.of_job[change.job_id].append(change)
                self.in_commit[new.index].append(change)
        singles = Singles(history)
        self.calls = singles.calls
        self.deliveries = singles.deliveries
        self.arrived: dict[tuple[str, str], list[Delivery]] = defaultdict(list)
        """Deliveries by operation and job id; claims by worker id."""
        for delivery in self.deliveries:
            request = delivery.request
            if isinstance(request, m.LeasedJob | m.DeadJobRef):
                self.arrived[delivery.operation, request.job_id].append(delivery)
            elif isinstance(request, m.ClaimJob):
                self.arrived[delivery.operation, request.worker_id].append(delivery)
        self._used: set[tuple[int, int]] = set()
        """Deliveries, and calls with an id, that have had their one effect."""

    def violation(self, index: int | None, text: str) -> None:
        at = "" if index is None else f"#{index - 1} at {self.times[index]:.4f}: "
        self.violations.append(at + text)

    def limit(self, job: JobText) -> int:
        return self.history.max_attempts if job.max_attempts is None else max(job.max_attempts, 1)

    def key_of(self, delivery: Delivery) -> tuple[int, int]:
        has_id = getattr(delivery.request, "request_id", None) is not None
        return (delivery.call.number, delivery.call.entry) if has_id else (-1 - id(delivery), 0)


def holds(request: m.LeasedJob, lease: Lease) -> bool:
    """Whether a request proves this lease: by its token where it sends one, else by the worker's id."""
    if request.lease_token is not None:
        return request.lease_token == lease.token
    return request.worker_id == lease.worker_id


def matches(job: JobText, types: tuple[str, ...]) -> bool:
    return not types or job.type in types
