"""Each change that a commit made has a request that asked for it and could do it, or a lease that was over."""

from __future__ import annotations

from collections import defaultdict

from osqueue_client import models as m

from .documents import IN_PROGRESS, UNCLAIMED, Change, JobText, Lease, lease_of
from .evidence import MOMENT, Evidence, holds, matches
from .history import Delivery

UNCONFIRMED_TIMEOUT = 10.0
"""Seconds for which a lease that nobody heard of is kept for a repeat of the claim."""


class Causes(Evidence):
    """Finds for each change what caused it. Each request is the cause of one change at most."""

    def check_change(self, change: Change) -> None:
        new = self.documents[change.index]
        job = change.job_id[:8]
        is_takeover = new.text.epoch != self.documents[change.index - 1].text.epoch
        if is_takeover and not self._is_burial_of_exhausted(change):
            self.violation(change.index, f"{job}: {change.kind} in the first commit of a term")
            return
        match change.kind:
            case "unlawful":
                self.violation(change.index, f"{job}: {told(change.before)} became {told(change.after)}")
            case "claim":
                self._check_fifo(change)
            case "complete":
                if not self._find_ending("completeJob", change):
                    self.violation(change.index, f"{job} is gone, and no holder of its lease completed it")
            case "end" | "bury":
                if (
                    not self._find_ending("failJob", change)
                    and not is_takeover
                    and not self._may_expire(change)
                ):
                    self.violation(change.index, f"{job}: its lease has ended, {self._why}")
                self._check_counted(change)
            case "take back":
                self._check_take_back(change)
            case "requeue":
                if not self._find_dead("requeueDead", change):
                    self.violation(change.index, f"{job} was requeued, and nobody asked for it")
            case "delete":
                if not self._find_dead("deleteDead", change):
                    self.violation(change.index, f"{job} was deleted, and nobody asked for it")
            case "submit":
                pass  # _check_submits

    def _is_burial_of_exhausted(self, change: Change) -> bool:
        before = change.before
        return (
            change.kind == "bury"
            and before is not None
            and before.status == UNCLAIMED
            and before.attempts >= self.limit(before)
        )

    def _find_ending(self, operation: str, change: Change) -> bool:
        """Find a request of the lease's holder that was under way; it has had its effect now."""
        assert change.lease is not None or change.kind == "bury"
        for delivery in self.arrived[operation, change.job_id]:
            request = delivery.request
            assert isinstance(request, m.LeasedJob)
            if change.lease is not None and holds(request, change.lease) and self._may_do(delivery, change):
                if isinstance(request, m.FailJob) and change.kind == "end" and request.retry is False:
                    continue
                return self._use(delivery)
        return False

    def _find_dead(self, operation: str, change: Change) -> bool:
        return any(
            self._use(delivery)
            for delivery in self.arrived[operation, change.job_id]
            if self._may_do(delivery, change)
        )

    def _may_do(self, delivery: Delivery, change: Change) -> bool:
        """Whether a request can have had this effect: it was there before, and was told nothing else."""
        landing = self.documents[change.index].landing
        assert delivery.arrived_at is not None
        if delivery.arrived_at > landing.sent_at or self.key_of(delivery) in self._used:
            return False
        if delivery.answered_at is not None and delivery.error is None:
            return delivery.answered_at >= landing.at
        if delivery.error is not None and delivery.error.outcome != "unknown":
            return False
        return delivery.call.was_doubled or delivery.call.outcome != "not_applied"

    def _use(self, delivery: Delivery) -> bool:
        self._used.add(self.key_of(delivery))
        return True

    def _may_expire(self, change: Change) -> bool:
        """Whether a lease had been without a sign of life for long enough, by the time that its leader served."""
        if change.lease is None:
            self._why = "though it had none"
            return False
        history = self.history
        landing = self.documents[change.index].landing
        since = self._renewed_at(change)
        needed = history.heartbeat_timeout * (1 - 2 * history.clock_error)
        for began, ended in history.pauses.get(landing.writer, ()):
            if began >= since and ended <= landing.sent_at:
                needed += max(ended - began - history.longest_step, 0)
        self._why = (
            f"nobody reported it, and it was renewed {landing.sent_at - since:.3f} s before; "
            f"a lease holds {needed:.3f} s"
        )
        return landing.sent_at - since >= needed - MOMENT

    def _renewed_at(self, change: Change) -> float:
        """When a lease was given or last renewed, as far as can be known from outside: not later than truly."""
        assert change.lease is not None
        index = change.index - 1
        renewed_at = 0.0
        while index > 0 and lease_of(self.documents[index].live.get(change.job_id)) == change.lease:
            document = self.documents[index]
            before = lease_of(self.documents[index - 1].live.get(change.job_id))
            is_takeover = document.text.epoch != self.documents[index - 1].text.epoch
            if before != change.lease or is_takeover:
                renewed_at = document.landing.sent_at
                break
            index -= 1
        for delivery in self.arrived["heartbeat", change.job_id]:
            if (
                delivery.answered_at is not None
                and delivery.error is None
                and delivery.arrived_at is not None
                and delivery.answered_at <= self.times[change.index]
                and isinstance(delivery.request, m.LeasedJob)
                and holds(delivery.request, change.lease)
            ):
                renewed_at = max(renewed_at, delivery.arrived_at)
        for delivery in self.arrived["claimJob", change.lease.worker_id]:
            answer = delivery.answer
            if (
                isinstance(answer, m.ClaimedJob)
                and answer.job_id == change.job_id
                and answer.lease_token == change.lease.token
                and delivery.arrived_at is not None
                and delivery.answered_at is not None
                and delivery.answered_at <= self.times[change.index]
            ):
                renewed_at = max(renewed_at, delivery.arrived_at)
        return renewed_at

    def _check_counted(self, change: Change) -> None:
        """An attempt does not count of which the broker knows that nobody ever heard."""
        if change.lease is None or change.lease.token is None:
            return
        begun = [each for each in self.of_job[change.job_id] if each.lease == change.lease]
        epochs = {self.documents[each.index].text.epoch for each in (begun[0], change)}
        if begun[0].kind != "claim" or len(epochs) > 1:
            return
        told = [
            delivery
            for delivery in self.arrived["claimJob", change.lease.worker_id]
            if isinstance(delivery.answer, m.ClaimedJob)
            and delivery.answer.lease_token == change.lease.token
            and delivery.answer.job_id == change.job_id
        ]
        others = ("heartbeat", "failJob", "completeJob")
        used = [
            each
            for operation in others
            for each in self.arrived[operation, change.job_id]
            if isinstance(each.request, m.LeasedJob) and holds(each.request, change.lease)
        ]
        if not told and not used:
            self.violation(change.index, f"{change.job_id[:8]}: an attempt counts of which nobody was told")

    def _check_take_back(self, change: Change) -> None:
        """A claim does not count only if its answer has reached nobody, and nobody has used the lease."""
        assert change.lease is not None
        landing = self.documents[change.index].landing
        job = change.job_id[:8]
        leased_at = next(
            self.documents[each.index].landing.sent_at
            for each in self.of_job[change.job_id]
            if each.lease == change.lease
        )
        told: list[Delivery] = []
        for delivery in self.arrived["claimJob", change.lease.worker_id]:
            answer = delivery.answer
            if (
                isinstance(answer, m.ClaimedJob)
                and answer.job_id == change.job_id
                and answer.lease_token == change.lease.token
                and delivery.answered_at is not None
                and delivery.answered_at <= landing.sent_at
            ):
                told.append(delivery)
        lost = [delivery.undelivered_at for delivery in told if delivery.undelivered_at is not None]
        if not told:  # its caller had been answered with an error before it landed, or is none any more
            told = [
                delivery
                for delivery in self.arrived["claimJob", change.lease.worker_id]
                if delivery.arrived_at is not None
                and delivery.arrived_at <= landing.sent_at
                and (_given_up_at(delivery) or 0.0) >= leased_at - MOMENT
            ]
            told = sorted(told, key=lambda delivery: _given_up_at(delivery) or 0.0)[:1]  # any of them
            lost = [given for delivery in told if (given := _given_up_at(delivery)) is not None]
        if not lost or len(lost) < len(told):
            self.violation(change.index, f"{job}: a claim was taken back whose answer was delivered")
            return
        has_id = any(getattr(delivery.request, "request_id", None) for delivery in told)
        part = 1 - 2 * self.history.clock_error
        earliest = max(lost)
        if has_id:  # kept for a repeat, but not longer than it would have been kept otherwise
            expires_at = self._renewed_at(change) + self.history.heartbeat_timeout * part
            earliest = min(earliest + UNCONFIRMED_TIMEOUT * part, expires_at)
        if landing.sent_at < earliest - MOMENT:
            self.violation(
                change.index,
                f"{job}: a claim was taken back {landing.sent_at - max(lost):.3f} s after it",
            )

    def check_claims(self) -> None:
        """Each lease was asked for, each is given to one claim, and no token is ever used for two claims."""
        holders: dict[tuple[str, Lease], int] = {}
        unclear: dict[str, list[Delivery]] = defaultdict(list)
        for delivery in self.deliveries:
            if delivery.operation != "claimJob" or not isinstance(delivery.request, m.ClaimJob):
                continue
            answer = delivery.answer
            if isinstance(answer, m.ClaimedJob):
                if answer.job_id:
                    worker_id = delivery.request.worker_id
                    lease = Lease(worker_id, answer.attempt or 0, answer.lease_token)
                    call = holders.setdefault((answer.job_id, lease), delivery.call.number)
                    if call != delivery.call.number:
                        self.violations.append(
                            f"calls {call} and {delivery.call.number} were both given {answer.job_id[:8]}, {lease}"
                        )
            elif delivery.error is None or delivery.error.outcome == "unknown":
                unclear[delivery.request.worker_id].append(delivery)
        tokens: dict[str, tuple[int, str]] = {}
        for change in self.changes:
            if change.kind != "claim" or self.documents[change.index].landing.is_foreign:
                continue
            assert change.lease is not None
            if change.lease.token is not None:
                claim = change.index, change.lease.worker_id
                if tokens.setdefault(change.lease.token, claim) != claim:
                    self.violation(change.index, f"the token {change.lease.token} is used for two claims")
            if (change.job_id, change.lease) in holders:
                continue
            landing = self.documents[change.index].landing
            waiting = unclear[change.lease.worker_id]
            who = next(
                (
                    each
                    for each in waiting
                    if each.arrived_at is not None and each.arrived_at <= landing.sent_at
                ),
                None,
            )
            if who is None:
                self.violation(
                    change.index, f"{change.job_id[:8]} was leased to {change.lease.worker_id} unasked"
                )
            else:
                waiting.remove(who)

    def _check_fifo(self, change: Change) -> None:
        """No older job was claimable all the while that this one was given away."""
        assert change.lease is not None
        assert change.after is not None
        types = self.history.worker_types.get(change.lease.worker_id)
        if types is None:
            return
        if not matches(change.after, types):
            self.violation(
                change.index, f"{change.job_id[:8]} of type {change.after.type} was given to {types}"
            )
        old, new = self.documents[change.index - 1], self.documents[change.index]
        for job_id, job in new.live.items():
            if job_id == change.job_id:
                return
            before = old.live.get(job_id)
            if (
                job.status == UNCLAIMED
                and before is not None
                and before.status == UNCLAIMED
                and matches(job, types)
            ):
                self.violation(
                    change.index, f"{change.job_id[:8]} was claimed before {job_id[:8]}, which is older"
                )
                return


def _given_up_at(delivery: Delivery) -> float | None:
    """When a broker ceased to have a claim's caller, not knowing whether there would be a lease."""
    if delivery.hung_up_at is not None:
        return delivery.hung_up_at
    is_unclear = delivery.error is not None and delivery.error.outcome == "unknown"
    return delivery.answered_at if is_unclear else None


def told(job: JobText | None) -> str:
    if job is None:
        return "nothing"
    if job.status == IN_PROGRESS:
        return f"{job.id[:8]} run by {job.worker_id} in attempt {job.attempts}"
    return f"{job.id[:8]} {job.status} after {job.attempts} attempts"
