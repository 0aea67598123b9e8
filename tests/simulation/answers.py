"""Each answer is true: its effect has landed meanwhile, or, without an effect, it fits a document that stood then."""

from __future__ import annotations

from bisect import bisect_right
from typing import TypeVar

from osqueue_client import models as m
from osqueue_client.errors import JobNotFoundError, LeaseLostError

from .documents import UNCLAIMED, Document, Lease, lease_of
from .evidence import MOMENT, Evidence, holds, matches
from .history import Delivery

T = TypeVar("T")


class Answers(Evidence):
    """Compares what brokers answered with what stood in the documents between arrival and answer."""

    def _window(self, delivery: Delivery) -> tuple[int, int]:
        """Return the first and the last document that stood while a broker had a request.

        A broker that knows no terms may write, and name itself the leader, without waiting for anything. What it and
        others after it have written, our broker cannot know before its own next commit: that is no fault.
        """
        assert delivery.arrived_at is not None
        assert delivery.answered_at is not None
        low = bisect_right(self.times, delivery.arrived_at) - 1
        high = bisect_right(self.times, delivery.answered_at) - 1
        own = high
        while own > 0 and self.documents[own].landing.writer != delivery.broker:
            own -= 1
        if own < high and self.documents[own + 1].landing.is_foreign:
            low = min(low, own)
        return low, high

    def check_answer(self, delivery: Delivery) -> None:
        low, high = self._window(delivery)
        what = f"{delivery.broker} answered call {delivery.call.number} ({delivery.operation})"
        if delivery.error is not None:
            if isinstance(delivery.error, LeaseLostError | JobNotFoundError):
                self._check_loss(delivery, low, high, what)
            return
        standing = self.documents[low : high + 1]
        if not any(document.leader == delivery.broker for document in standing):
            self.violation(high, f"{what} while {standing[-1].leader} led")
        answer, request = delivery.answer, delivery.request
        match answer:
            case m.JobSubmitted():
                self._check_effect(delivery, low, high, what, ("submit",), answer.job_id)
            case m.ClaimedJob() if answer.job_id:
                self._check_claimed(delivery, answer, high, what)
            case m.ClaimedJob():
                self._check_wait(delivery, what)
                self._check_nothing_claimable(request, low, high, what)
            case m.QueueStats() | m.JobList() | m.DeadJobList():
                self._check_read(request, answer, low, high, what)
            case _:
                job_id = getattr(request, "job_id", "")
                match delivery.operation:
                    case "heartbeat":
                        self._check_heartbeat(request, low, high, what)
                    case "completeJob":
                        self._check_effect(delivery, low, high, what, ("complete",), job_id)
                    case "failJob":
                        self._check_effect(delivery, low, high, what, ("end", "bury"), job_id)
                    case "requeueDead":
                        self._check_effect(delivery, low, high, what, ("requeue",), job_id)
                    case "deleteDead":
                        self._check_effect(delivery, low, high, what, ("delete",), job_id)

    def _first_arrival(self, delivery: Delivery) -> int:
        """Return the document that stood when the request, or an earlier try of it, arrived first."""
        times = [
            other.arrived_at
            for other in delivery.call.deliveries
            if other.operation == delivery.operation and other.arrived_at is not None
        ]
        return bisect_right(self.times, min(times)) - 1

    def _check_effect(
        self, delivery: Delivery, low: int, high: int, what: str, kinds: tuple[str, ...], job_id: str
    ) -> None:
        """What was acknowledged has landed, since the request came and before the answer went."""
        has_id = getattr(delivery.request, "request_id", None) is not None
        first = min(self._first_arrival(delivery), low) if has_id else low
        request = delivery.request
        for change in self.of_job[job_id]:
            if change.kind not in kinds or not first < change.index <= high:
                continue
            if self.documents[change.index].landing.is_foreign:
                continue
            if isinstance(request, m.LeasedJob) and (
                change.lease is None or not holds(request, change.lease)
            ):
                continue
            user = self.key_of(delivery)
            if change.users and user not in change.users:
                continue
            change.users.append(user)
            return
        self.violation(high, f"{what} for {job_id[:8]}, but no commit in that time did it")

    def _check_claimed(self, delivery: Delivery, answer: m.ClaimedJob, high: int, what: str) -> None:
        assert answer.job_id
        assert isinstance(delivery.request, m.ClaimJob)
        lease = Lease(delivery.request.worker_id, answer.attempt or 0, answer.lease_token)
        first = self._first_arrival(delivery)
        given = [
            change
            for change in self.of_job[answer.job_id]
            if change.kind == "claim" and change.lease == lease and first < change.index <= high
        ]
        if not given:
            self.violation(high, f"{what} with {answer.job_id[:8]}, but no commit in that time leased it so")
            return
        job = given[0].after
        assert job is not None
        if isinstance(answer.payload, type(job.payload)) and bytes(answer.payload) != bytes(job.payload):
            self.violation(high, f"{what} with another payload")

    def _check_nothing_claimable(self, request: m.Model, low: int, high: int, what: str) -> None:
        assert isinstance(request, m.ClaimJob)
        types = request.types or ()
        always: set[str] | None = None
        for document in self.documents[low : high + 1]:
            now = {job.id for job in document.text.jobs if job.status == UNCLAIMED and matches(job, types)}
            always = now if always is None else always & now
            if not always:
                return
        self.violation(high, f"{what} with nothing, but {min(always or ['?'])[:8]} was claimable")

    def _check_wait(self, delivery: Delivery, what: str) -> None:
        """A claim that waits is not told that there is nothing before its time is over."""
        request = delivery.request
        assert isinstance(request, m.ClaimJob)
        assert delivery.arrived_at is not None
        assert delivery.answered_at is not None
        waited = delivery.answered_at - delivery.arrived_at
        if waited < (request.wait or 0.0) * (1 - 2 * self.history.clock_error) - MOMENT:
            self.violations.append(f"{what} with nothing after {waited:.3f} s of {request.wait} s")

    def check_waiting(self) -> None:
        """A claim that waits is given a job by the very commit that makes one claimable."""
        for delivery in self.deliveries:
            request = delivery.request
            if not isinstance(request, m.ClaimJob) or not request.wait or delivery.arrived_at is None:
                continue
            ends = (delivery.answered_at, delivery.hung_up_at, delivery.arrived_at + 0.97 * request.wait)
            end = min(end for end in ends if end is not None)
            first = bisect_right(self.times, delivery.arrived_at) + self.history.taken_within
            for index in range(first, len(self.documents)):
                old, new = self.documents[index - 1], self.documents[index]
                if new.landing.at >= end or new.landing.writer != delivery.broker:
                    break
                if self.documents[index - self.history.taken_within].text.epoch != new.text.epoch:
                    continue  # it may have been taken with the commit before only
                if old.text.segments or new.text.segments:
                    continue  # what stands in a segment may have to be read first
                for job_id, job in new.live.items():
                    before = old.live.get(job_id)
                    is_left = job.status == UNCLAIMED and before is not None and before.status == UNCLAIMED
                    if is_left and matches(job, request.types or ()):
                        self.violation(
                            index,
                            f"{job_id[:8]} was left, though call {delivery.call.number} waited at "
                            f"{delivery.broker} for one",
                        )
                        return

    def _check_heartbeat(self, request: m.Model, low: int, high: int, what: str) -> None:
        assert isinstance(request, m.LeasedJob)
        for document in self.documents[low : high + 1]:
            lease = lease_of(document.live.get(request.job_id))
            if lease is not None and holds(request, lease):
                return
        self.violation(high, f"{what} though the worker held no lease of {request.job_id[:8]}")

    def _check_loss(self, delivery: Delivery, low: int, high: int, what: str) -> None:
        """Who is told that a lease or a job is lost has lost it."""
        request = delivery.request
        job_id = getattr(request, "job_id", "")
        for document in self.documents[low : high + 1]:
            if isinstance(request, m.DeadJobRef):
                if job_id not in document.dead:
                    return
            elif isinstance(request, m.LeasedJob):
                lease = lease_of(document.live.get(job_id))
                if lease is None or not holds(request, lease):
                    return
        if any(low < change.index <= high for change in self.of_job[job_id]):
            return  # within one commit
        self.violation(high, f"{what} with {type(delivery.error).__name__}, but that is not so")

    def _check_read(self, request: m.Model, answer: m.Model, low: int, high: int, what: str) -> None:
        """What is read stood there, or stood for a moment within a commit: after ends of leases, before all else."""
        for index in range(low, high + 1):
            document = self.documents[index]
            if _is_true_of(request, answer, document):
                return
            if index > low and self._is_true_within(request, answer, index):
                return
        self.violation(high, f"{what} with what never stood there: {answer}")

    def _is_true_within(self, request: m.Model, answer: m.Model, index: int) -> bool:
        before, changes = self.documents[index - 1], self.in_commit[index]
        gone = {change.job_id for change in changes if change.kind in ("complete", "bury")}
        buried = sum(change.kind == "bury" for change in changes)
        match answer:
            case m.QueueStats():
                return (answer.total, answer.dead, answer.completed_total) == (
                    len(before.live) - len(gone),
                    len(before.dead) + buried,
                    self.documents[index].text.completed_total,
                )
            case m.JobList():
                listed = [job.id for job in answer.jobs]
                stood = [job for job in before.live if job not in gone]
                return _is_page(request, answer, listed, stood) or bool(
                    getattr(request, "type", None) or getattr(request, "status", None)
                )
            case m.DeadJobList():
                return answer.total == len(before.dead) + buried
        return False


def _is_true_of(request: m.Model, answer: m.Model, document: Document) -> bool:
    match answer:
        case m.QueueStats():
            return (answer.total, answer.unclaimed, answer.dead, answer.completed_total) == (
                len(document.live),
                document.unclaimed,
                len(document.dead),
                document.text.completed_total,
            )
        case m.JobList():
            listed = [(job.id, job.status, job.attempts) for job in answer.jobs]
            type, status = getattr(request, "type", None), getattr(request, "status", None)
            stood = [
                (job.id, job.status, job.attempts)
                for job in document.text.jobs
                if type in (None, job.type or "") and status in (None, job.status)
            ]
            return _is_page(request, answer, listed, stood)
        case m.DeadJobList():
            ids = [job.id for job in document.text.dead_jobs[: len(answer.jobs)]]
            return answer.total == len(document.dead) and [job.id for job in answer.jobs] == ids
    return False


def _is_page(request: m.Model, answer: m.JobList, listed: list[T], stood: list[T]) -> bool:
    """Whether a page is what it should be of all that stood there: all, the beginning, or what follows a cursor."""
    if not getattr(request, "cursor", None):
        return listed == (stood[: len(listed)] if answer.truncated else stood)
    if not listed:
        return True  # all behind the cursor may have gone
    begin = stood.index(listed[0]) if listed[0] in stood else 0
    return listed == (stood[begin : begin + len(listed)] if answer.truncated else stood[begin:])
