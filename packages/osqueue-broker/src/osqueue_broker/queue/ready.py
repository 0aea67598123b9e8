"""The claimable jobs of one kind, oldest first."""

from __future__ import annotations

from collections.abc import Mapping
from heapq import heapify, heappop, heappush

from .job import UNCLAIMED, Job


class Ready:
    """A heap of positions from which nothing is ever searched: what is no longer claimable is skipped.

    A job is in the heap of all jobs and in that of its type, so each claim leaves an outdated position in the
    other one. When these outnumber the claimable jobs, the heap is made anew: amortised O(log n) a job.
    """

    __slots__ = ("_by_position", "_heap", "claimable")

    def __init__(self, by_position: Mapping[int, Job]) -> None:
        self._by_position = by_position
        self._heap: list[int] = []
        self.claimable = 0

    def add(self, job: Job) -> None:
        """Take in a job that has just become claimable."""
        heappush(self._heap, job.position)
        self.claimable += 1

    def drop(self) -> None:
        """Say that one of the jobs is no longer claimable."""
        self.claimable -= 1
        if len(self._heap) > 2 * self.claimable + 64:
            self._heap = [position for position in set(self._heap) if self._is_claimable(position)]
            heapify(self._heap)

    def first(self) -> Job | None:
        """Return the oldest claimable job, leaving it where it is."""
        heap = self._heap
        while heap:
            if self._is_claimable(heap[0]):
                return self._by_position[heap[0]]
            heappop(heap)
        return None

    def _is_claimable(self, position: int) -> bool:
        job = self._by_position.get(position)
        return job is not None and job.status == UNCLAIMED
