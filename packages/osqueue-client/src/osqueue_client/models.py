"""What is asked and answered: one frozen model per request and response, the same for every transport.

Names are snake_case in Python and camelCase on the wire. A field that is absent on the wire is None, save a
payload: `null` is a payload, so an absent one is `UNSET`. Payloads are kept as the JSON text that was sent
(`msgspec.Raw`), so that numbers come back digit for digit.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal, TypeAlias

from msgspec import UNSET, Meta, Raw, Struct, UnsetType, field

Payload: TypeAlias = Raw | UnsetType
Name = Annotated[str, Meta(min_length=1)]
Attempts = Annotated[int, Meta(ge=0, le=2**31 - 1)]

BATCH_LIMIT: Final = 1000
"""Entries of one request."""

LONGEST_WAIT: Final = 60.0
"""Seconds for which a claim may wait for a job."""

Wait = Annotated[float, Meta(ge=0, le=LONGEST_WAIT)]


class Model(Struct, frozen=True, rename="camel", omit_defaults=True):
    """Base of all requests and responses. Unknown fields are ignored, absent ones take their default.

    A repr tells only how long a payload is: it may hold what belongs in no log.
    """

    def __repr__(self) -> str:
        fields = ", ".join(f"{name}={_shown(getattr(self, name))}" for name in self.__struct_fields__)
        return f"{type(self).__name__}({fields})"


def _none() -> tuple[()]:
    return ()  # a default from a factory of our own is not left out by omit_defaults


def _shown(value: object) -> str:
    return f"<{len(bytes(value))} bytes of JSON>" if isinstance(value, Raw) else repr(value)


def _json_of(payload: Payload) -> bytes | None:
    return None if isinstance(payload, UnsetType) else bytes(payload)


class Empty(Model, frozen=True, kw_only=True):
    """A request or a response without fields."""


Number = Annotated[int, Meta(ge=1, le=2**53)]


class RequestId(Model, frozen=True, kw_only=True):
    """Which request of a client's session this is, so that it may be sent again and is done only once.

    `lowest` is the lowest number that the session still waits for: of those below it nothing need be remembered.
    `age_ms` is the time since the request was sent first: 0 then.
    """

    session: Annotated[str, Meta(min_length=1, max_length=64)]
    number: Number
    lowest: Number
    age_ms: Annotated[int, Meta(ge=0, le=2**53)] = 0


class Change(Model, frozen=True, kw_only=True):
    """Base of the requests that may change the queue. With a `request_id` they may be repeated."""

    request_id: RequestId | None = None


class NewJob(Model, frozen=True, kw_only=True):
    """A job to be added. `max_attempts` 0 means one attempt; absent, the broker's default."""

    payload: Payload = UNSET
    type: str | None = None
    max_attempts: Attempts | None = None


class SubmitJob(NewJob, frozen=True, kw_only=True):
    """Add a job. With a `request_id` it may be repeated, as any `Change`."""

    request_id: RequestId | None = None


class JobSubmitted(Model, frozen=True, kw_only=True):
    """The job is durable in the store under this id."""

    job_id: str


class SubmitJobs(Change, frozen=True, kw_only=True):
    """Add up to `BATCH_LIMIT` jobs, in this order. What there is no room for is refused, and all that follows it."""

    jobs: Annotated[tuple[NewJob, ...], Meta(min_length=1, max_length=BATCH_LIMIT)]


class EntryError(Model, frozen=True, kw_only=True):
    """Why an entry of a batch was refused: the fields of an error as a whole request is answered with."""

    tag: str = field(name="_tag")
    message: str
    field: str | None = None
    outcome: str | None = None
    retry_after: float | None = None


class SubmittedEntry(Model, frozen=True, kw_only=True):
    """The answer to one job of a batch: the id under which it is durable in the store, or why it was refused."""

    job_id: str | None = None
    error: EntryError | None = None


class JobsSubmitted(Model, frozen=True, kw_only=True):
    """The answers to a batch of jobs, in the order of the request."""

    results: tuple[SubmittedEntry, ...] = field(default_factory=_none)


class ClaimJob(Change, frozen=True, kw_only=True):
    """Ask for a job. Without `types` any job will do; with them, never one without a type.

    If there is none, the answer waits up to `wait` seconds for one.
    """

    worker_id: Name
    types: tuple[str, ...] | None = None
    wait: Wait | None = None


class ClaimedJob(Model, frozen=True, kw_only=True):
    """A leased job, or no fields at all when nothing was claimable. `attempt` is 1 for the first.

    `lease_token` names this very lease: sent along, it proves more than the worker's id does.
    """

    job_id: str | None = None
    payload: Payload = UNSET
    type: str | None = None
    attempt: int | None = None
    lease_token: str | None = None


class ClaimJobs(Change, frozen=True, kw_only=True):
    """Ask for up to `limit` jobs (1 without it) at once, as `ClaimJob` does for one.

    If there is none, the answer waits up to `wait` seconds for the first that come.
    """

    worker_id: Name
    types: tuple[str, ...] | None = None
    limit: Annotated[int, Meta(ge=1, le=BATCH_LIMIT)] | None = None
    wait: Wait | None = None


class ClaimedJobs(Model, frozen=True, kw_only=True):
    """The jobs that were leased, oldest first; none when nothing was claimable."""

    jobs: tuple[ClaimedJob, ...] = field(default_factory=_none)


class LeasedJob(Model, frozen=True, kw_only=True):
    """Name a job and its lease: by the token that the claim answered, else by the worker that holds it.

    Over REST the job's id stands in the path.
    """

    job_id: str = ""
    worker_id: Name
    lease_token: str | None = None


class LeasedChange(LeasedJob, frozen=True, kw_only=True):
    """End the attempt at a leased job. With a `request_id` it may be repeated, as any `Change`."""

    request_id: RequestId | None = None


class Lease(Model, frozen=True, kw_only=True):
    """Name a job of a batch, and its lease as `LeasedJob` does."""

    job_id: Name
    lease_token: str | None = None


class LeasedJobs(Model, frozen=True, kw_only=True):
    """Name up to `BATCH_LIMIT` jobs that one worker holds."""

    worker_id: Name
    jobs: Annotated[tuple[Lease, ...], Meta(min_length=1, max_length=BATCH_LIMIT)]


class LeasedChanges(LeasedJobs, frozen=True, kw_only=True):
    """End the attempts at some leased jobs. With a `request_id` it may be repeated, as any `Change`."""

    request_id: RequestId | None = None


class LeasedEntry(Model, frozen=True, kw_only=True):
    """The answer to one lease of a batch: nothing when it was done, or why it was refused."""

    error: EntryError | None = None


class LeasedResults(Model, frozen=True, kw_only=True):
    """The answers to a batch of leases, in the order of the request."""

    results: tuple[LeasedEntry, ...] = field(default_factory=_none)


class JobError(Model, frozen=True, kw_only=True):
    """Why an attempt failed: the error's type and its message."""

    type: str
    message: str


class FailJob(LeasedChange, frozen=True, kw_only=True):
    """Report a failed attempt. With `retry` (or without the field) the job may be claimed again."""

    error: JobError
    retry: bool | None = None


class CommitStats(Model, frozen=True, kw_only=True):
    """What the leader has written since its term began; times are seconds. The p50 and p99 are of the last 1,000."""

    seconds: float
    """How long the term has lasted."""
    writes: int
    """Commits, signs of life included."""
    bytes: int
    """Bytes of all of them."""
    requests: int
    """Requests that were committed in them, each entry of a batch counted."""
    latency_p50: float
    latency_p99: float
    """From the sending of a write to its landing."""
    segment_writes: int = 0
    """Objects of segments that were made."""
    segment_bytes: int = 0
    """Bytes of all of them, as they were before they were compressed."""


class QueueStats(Model, frozen=True, kw_only=True):
    """Counts of the queue as last committed. `features` names what this broker adds to the old protocol."""

    total: int
    unclaimed: int
    in_progress: int
    # A default_factory is not left out by omit_defaults: our broker always answers these, an old one need not.
    completed_total: int = field(default_factory=int)
    broker_address: str = ""
    dead: int | None = None
    features: tuple[str, ...] = ()
    segments: int | None = None
    """Objects that hold the waiting and the dead jobs which do not stand in the document."""
    lost_jobs: int | None = None
    """Jobs of these that cannot be had, as their object is missing or damaged: the broker's log says which."""
    waiting_claims: int | None = None
    commits: CommitStats | None = None


JobStatus = Literal["unclaimed", "in_progress"]

LIST_LIMIT: Final = 1000
"""Jobs on a page at most."""


class ListJobs(Model, frozen=True, kw_only=True):
    """Ask for live jobs in the order of claims: those of a type (`""`: untyped), those of a status, or all.

    `limit` is the most that one answer holds; `cursor` is the `next_cursor` of the page before.
    """

    limit: Annotated[int, Meta(ge=1, le=LIST_LIMIT)] | None = None
    cursor: str | None = None
    type: str | None = None
    status: JobStatus | None = None


class JobInfo(Model, frozen=True, kw_only=True):
    """A live job as it is listed. `max_attempts` and `heartbeat` (ms since the epoch) are 0 when unset."""

    id: str
    status: str
    payload: Payload = UNSET
    type: str | None = None
    worker_id: str | None = None
    created_at: int
    attempts: int
    max_attempts: int
    heartbeat: int

    @property
    def payload_json(self) -> bytes | None:
        """The payload's JSON text as it was submitted, None when the job has none."""
        return _json_of(self.payload)


class JobList(Model, frozen=True, kw_only=True):
    """Live jobs in the order of claims, with the counts of the whole queue.

    `truncated` when there are more of them: ask for those with `next_cursor`.
    """

    jobs: tuple[JobInfo, ...]
    total: int
    unclaimed: int
    in_progress: int
    completed_total: int = field(default_factory=int)
    broker_address: str = ""
    truncated: bool | None = None
    next_cursor: str | None = None


class ListDead(Model, frozen=True, kw_only=True):
    """Ask for a page of dead jobs, oldest first; `cursor` is the `next_cursor` of the page before."""

    limit: Annotated[int, Meta(ge=1, le=1000)] | None = None
    cursor: str | None = None


class DeadJob(Model, frozen=True, kw_only=True):
    """A job that failed for good, kept with its payload and last error; times are ms since the epoch."""

    id: str
    payload: Payload = UNSET
    type: str | None = None
    created_at: int
    attempts: int
    max_attempts: int
    dead_at: int
    error: JobError

    @property
    def payload_json(self) -> bytes | None:
        """The payload's JSON text as it was submitted, None when the job has none."""
        return _json_of(self.payload)


class DeadJobList(Model, frozen=True, kw_only=True):
    """A page of dead jobs and how many there are in all; no `next_cursor` on the last page."""

    jobs: tuple[DeadJob, ...]
    total: int
    next_cursor: str | None = None


class DeadJobRef(Change, frozen=True, kw_only=True):
    """Name a dead job. Over REST its id stands in the path."""

    job_id: str = ""
