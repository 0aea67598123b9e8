"""Whether a recorded run kept the promises.

Why this shows that the history is linearizable. The commits of all brokers are in one order: that of the landings
of the document, each of which replaced the one before. That order is the order of the linearization: a change takes
its effect when the commit with it lands. So it is enough to see that

1. each commit does lawful things to jobs, and each thing has a request that asked for it, was under way, and could
   do it in the state before (the holder of the lease, say). Each request (by id, or by arrival if it has none) has
   at most one effect;
2. each acknowledged request has its effect in a commit that landed between the request's beginning and its
   acknowledgement, so that the order of commits respects the order of requests that do not overlap;
3. each answer that has no effect is true of a document that stood at some moment between the request's arrival and
   its answer (or of a moment within a commit that landed then): it takes its place there.

Each change touches one job, and jobs are independent of each other, save for three things that are looked at in the
whole document: which job a claim gets (FIFO), counts, and lists. Linearizability is a local property (Herlihy and
Wing): what holds for each job, placed in one common order, holds for all of them together.
"""

from __future__ import annotations

import math
from collections import defaultdict

from osqueue_client import models as m
from osqueue_client.errors import (
    BrokerLeadershipError,
    DiscoveryError,
    OsqueueError,
    RequestExpiredError,
    StorageBackendError,
    TransportConnectionError,
)

from .answers import Answers
from .causes import Causes, told
from .documents import Change, Document, JobText
from .evidence import MOMENT
from .history import Call, History

_RECOVERY = 30.0
"""Seconds after the last fault in which everything must be available again."""

UNAVAILABLE = (BrokerLeadershipError, DiscoveryError, StorageBackendError, TransportConnectionError)
"""What a call ends in that found no broker in time, or no answer."""


def check(history: History) -> list[str]:
    """Return what was not as promised, in words; nothing if all was."""
    return Checker(history).run()


class Checker(Causes, Answers):
    """All checks of one run."""

    def run(self) -> list[str]:
        """Do all checks."""
        self.violations += map(str, self.history.extra.get("faults", ()))
        self._check_headers()
        for old, new in zip(self.documents, self.documents[1:], strict=False):
            self._check_document(old, new)
        for change in self.changes:
            if not self.documents[change.index].landing.is_foreign:
                self.check_change(change)
        self._check_submits()
        for delivery in self.deliveries:
            if delivery.answered_at is not None:
                self.check_answer(delivery)
        self.check_claims()
        self.check_waiting()
        self._check_segments()
        self._check_callers()
        self._check_end()
        return self.violations

    def _check_headers(self) -> None:
        """Terms and numbers strictly grow, and no older term's commit lands after a newer one's."""
        writers: dict[int, str] = {}
        commit_ids: set[str] = set()
        for old, new in zip(self.documents, self.documents[1:], strict=False):
            before, after = old.text, new.text
            if new.landing.is_foreign:
                if (after.epoch, after.seq, after.commit_id) != (before.epoch, before.seq, before.commit_id):
                    self.violation(new.index, "the simulated foreign broker changed the stamp")
                continue
            if after.seq != before.seq + 1:
                self.violation(new.index, f"seq {after.seq} after {before.seq}")
            if after.epoch not in (before.epoch, before.epoch + 1):
                self.violation(new.index, f"epoch {after.epoch} after {before.epoch}")
            writer = writers.setdefault(after.epoch, new.landing.writer)
            if writer != new.landing.writer:
                self.violation(
                    new.index, f"epoch {after.epoch} of {writer} was written by {new.landing.writer}"
                )
            if after.commit_id in commit_ids:
                self.violation(new.index, f"the commit id {after.commit_id} is used twice")
            commit_ids.add(after.commit_id)
            if after.epoch == before.epoch:
                if old.landing.is_foreign:
                    self.violation(new.index, "a term went on over what a broker without terms had written")
            elif before.epoch:
                last = after.previous_terms[-1] if after.previous_terms else None
                if last is None or (last.epoch, last.seq) != (before.epoch, before.seq):
                    self.violation(new.index, "previousTerms does not tell of the term that was replaced")
            if after.epoch != before.epoch and before.broker:
                self._check_deposition(old, new)

    def _check_deposition(self, old: Document, new: Document) -> None:
        """Nobody deposes a leader that gives signs of life, however badly it can be reached."""
        leader = old.text.broker
        if leader == new.text.broker or leader is None:
            return  # after a restart, or over what a broker without terms had written
        silent_since, taken_at = old.landing.at, new.landing.sent_at
        history = self.history
        # One that never had a port here (a broker without terms) was never reached, so its refusals do not count.
        ports = history.ports.get(leader)
        was_open = ports is None or any(
            opened <= silent_since and closed >= taken_at for opened, closed in ports
        )
        patience = history.broker_timeout if was_open else history.refused_timeout
        if taken_at - silent_since < patience * (1 - history.clock_error) - MOMENT:
            self.violation(
                new.index,
                f"{new.landing.writer} deposed {leader}, which was silent for {taken_at - silent_since:.3f} s only",
            )

    def _check_document(self, old: Document, new: Document) -> None:
        """Totals, the order of the list, and what may never change in a job."""
        if new.landing.is_foreign:
            return
        completed = sum(
            change.kind == "complete" for change in self.in_commit[new.index]
        )  # a broker without terms counts for itself
        if new.text.completed_total != old.text.completed_total + completed:
            self.violation(
                new.index,
                f"completedTotal {old.text.completed_total} -> {new.text.completed_total}, "
                f"but {completed} jobs were completed",
            )
        if set(new.live) & set(new.dead):
            self.violation(new.index, "a job is live and dead")
        if len(new.live) != len(new.text.jobs) or len(new.dead) != len(new.text.dead_jobs):
            self.violation(new.index, "a job is there twice")
        requeued = {change.job_id for change in self.in_commit[new.index] if change.kind == "requeue"}
        kept = [job_id for job_id in old.live if job_id in new.live and job_id not in requeued]
        if kept != list(new.live)[: len(kept)]:
            self.violation(new.index, "the order of the jobs has changed")
        for job_id, job in new.live.items():
            before = old.live.get(job_id)
            if before is not None and not is_same_job(before, job):
                self.violation(new.index, f"{job_id[:8]}: payload, type or limit has changed")
            if job.attempts > self.limit(job):
                self.violation(new.index, f"{job_id[:8]} is in attempt {job.attempts}")

    def _check_segments(self) -> None:
        """What a document refers to is there, from its landing to that of the first one that does not."""
        history = self.history
        dropped_at: dict[str, float] = {}
        names: list[str] = []
        for document in self.documents:
            for name in document.landing.missing:
                self.violation(document.index, f"segment {name} is referred to, and is not in the store")
            old, names = (
                names,
                [each.name for each in (*document.text.segments, *document.text.dead_segments)],
            )
            if len(set(names)) != len(names):
                self.violation(document.index, "a segment is referred to twice")
            dropped_at |= dict.fromkeys(set(old) - set(names), document.landing.at)
            for name in set(names) & dropped_at.keys():
                self.violation(document.index, f"segment {name} is referred to again")
                del dropped_at[name]
        self.violations += [f"the name of segment {name} is used again" for name in history.reused]
        for deletion in history.deletions:
            what = f"{deletion.at:.4f}: {deletion.by} deleted segment {deletion.name}"
            if deletion.is_referred_to:
                self.violations.append(f"{what}, which the document refers to")
            if deletion.by == "fsck":
                continue  # it begins a term first: nobody else's commit can land any more
            kept = deletion.at - dropped_at.get(deletion.name, -math.inf)
            if kept < history.retention * (1 - 2 * history.clock_error) - MOMENT:
                self.violations.append(f"{what}, {kept:.3f} s after it was dropped")

    def _check_submits(self) -> None:
        """Each job was asked for, once; no acknowledged one is missing."""
        by_mark: dict[int, list[Change]] = defaultdict(list)
        for change in self.changes:
            if change.kind == "submit":
                assert change.after is not None
                by_mark[change.after.mark].append(change)
        for call in self.calls:
            if call.mark is None:
                continue
            jobs = by_mark.pop(call.mark, [])
            what = f"call {call.number} (submit {call.mark})"
            if len(jobs) > 1:
                self.violation(jobs[1].index, f"{what} made {len(jobs)} jobs")
            if jobs and call.outcome == "not_applied" and not call.was_doubled:
                self.violation(
                    jobs[0].index, f"{what} made a job, but its caller was told that nothing happened"
                )
            if jobs and self.documents[jobs[0].index].landing.sent_at < call.began_at:
                self.violation(jobs[0].index, f"{what} had its effect before it began")
            if call.outcome == "done":
                assert isinstance(call.answer, m.JobSubmitted)
                if not jobs or jobs[0].job_id != call.answer.job_id:
                    self.violations.append(
                        f"{what} was acknowledged as {call.answer.job_id}: there is no such job"
                    )
                elif not self._is_between(call, jobs[0]):
                    self.violation(jobs[0].index, f"{what} was acknowledged before its commit")
            request = call.request
            assert isinstance(request, m.SubmitJob)
            for change in jobs:
                assert change.after is not None
                if (change.after.type, change.after.max_attempts) != (request.type, request.max_attempts):
                    self.violation(change.index, f"{what} became another job")
        for mark, jobs in by_mark.items():
            self.violation(jobs[0].index, f"nobody submitted job {mark}")

    def _is_between(self, call: Call, change: Change) -> bool:
        assert call.ended_at is not None
        return call.began_at <= self.times[change.index] <= call.ended_at

    def _check_callers(self) -> None:
        """No caller who still waits is told that it is too late, and none meets an error that is not ours."""
        for call in self.history.calls:
            if call.error is not None and not isinstance(call.error, OsqueueError):
                self.violations.append(f"call {call.number} ({call.operation}) raised {call.error!r}")
            if (
                isinstance(call.error, UNAVAILABLE)
                and not call.node.startswith("o")  # an old client asks each broker once
                and self.history.calm_at + _RECOVERY < call.began_at
                and call.ended_at is not None
                and call.ended_at < self.history.ended_at
            ):
                what = f"call {call.number} ({call.operation}) of {call.node}"
                self.violations.append(f"{what} failed long after the last fault: {call.error}")
            if isinstance(call.error, RequestExpiredError):
                self.violations.append(f"call {call.number} ({call.operation}) was told that it is too late")

    def _check_end(self) -> None:
        """After the calm, all work is done and a broker leads."""
        if not self.history.must_be_empty:
            return
        # What comes after it, in which the document is deleted, shows no more than that nobody makes it anew.
        last = [each for each in self.documents if self.times[each.index] <= self.history.ended_at][-1]
        if last.live:
            jobs = ", ".join(told(job) for job in last.text.jobs[:3])
            self.violation(last.index, f"{len(last.live)} jobs are left at the end: {jobs}")
        if not last.text.broker or last.text.broker in self.history.foreign:
            self.violation(last.index, f"{last.text.broker or 'nobody'} leads at the end")


def is_same_job(before: JobText, after: JobText) -> bool:
    return (
        before.type == after.type
        and before.max_attempts == after.max_attempts
        and before.created_at == after.created_at
        and bytes(before.payload) == bytes(after.payload)
    )
