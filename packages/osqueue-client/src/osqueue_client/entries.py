"""What a caller gives for many jobs, checked before anything is sent: each error names the entry that is wrong."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final, TypeAlias, TypeVar

import msgspec
from msgspec import Raw

from .errors import BrokerProtocolError, PayloadValidationError
from .job import Job
from .models import Attempts, Lease, NewJob
from .registry import JobType, PayloadSchemas
from .wire_json import MAX_NESTING, nesting

E = TypeVar("E")

_Type: TypeAlias = str | JobType[Any] | None

NewJobs: TypeAlias = Iterable[tuple[_Type, object] | tuple[_Type, object, int | None]]
"""Pairs of a type and a payload, as `OsqueueClient.submit_job` takes them; the third of a triple is `max_attempts`."""

Leases: TypeAlias = Iterable[Job | tuple[str, str | None]]
"""Claimed jobs, or pairs of a job's id and its lease token, which may be None."""

_NEW_JOB: Final = "give (type, payload), or (type, payload, max_attempts)"
_LEASE: Final = "give the Job, or (job.id, job.lease_token)"

_AROUND: Final = 3
"""Levels of a request around the payload of one of its jobs."""


def as_list(jobs: Iterable[E]) -> list[E]:
    """Return all entries. Raises `BrokerProtocolError` for what has none, such as a single `Job`."""
    if not isinstance(jobs, Iterable):
        raise BrokerProtocolError(f"jobs: give a list, not {_named(jobs)}", field="jobs")
    return list(jobs)


def new_jobs(jobs: NewJobs, schemas: PayloadSchemas, max_attempts: int | None) -> list[NewJob]:
    """Return the jobs to be added; `max_attempts` is that of the pairs.

    Raises `BrokerProtocolError`, and `PayloadValidationError`.
    """
    return [_new_job(place, job, schemas, max_attempts) for place, job in enumerate(as_list(jobs))]


def leases(jobs: Leases) -> list[Lease]:
    """Return the leases that are meant. Raises `BrokerProtocolError`."""
    return [_lease(place, job) for place, job in enumerate(as_list(jobs))]


def _new_job(place: int, job: object, schemas: PayloadSchemas, max_attempts: int | None) -> NewJob:
    own: object = None
    match job:
        case (type, payload):
            pass
        case (type, payload, own):
            pass
        case _:
            raise _refused(place, f"{_NEW_JOB}, not {_named(job)}")
    if not isinstance(type, str | JobType | None):
        raise _refused(place, f"the type must be a name, a JobType or None, not {_named(type)}: {_NEW_JOB}")
    try:
        attempts = msgspec.convert(max_attempts if own is None else own, Attempts | None)
    except msgspec.ValidationError as error:
        raise _refused(place, f"max_attempts: {error}") from None
    try:
        text = schemas.to_json(type, payload)
    except PayloadValidationError as error:
        error.args = (f"jobs[{place}]: {error.message}",)
        raise
    name = type.name if isinstance(type, JobType) else type
    if name is not None and not _is_text(name):
        raise _refused(place, "the type is not a text that UTF-8 can carry")
    deepest = MAX_NESTING - _AROUND
    if text.count(b"[") + text.count(b"{") > deepest and nesting(text) > deepest:
        raise _refused(place, f"the payload is nested more than {deepest} deep")
    return NewJob(payload=Raw(text), type=name, max_attempts=attempts)


def _lease(place: int, job: object) -> Lease:
    match job:
        case Job(id=id, lease_token=token):
            return Lease(job_id=id, lease_token=token)
        case (str(id), str() | None as token) if id and _is_text(id) and (token is None or _is_text(token)):
            return Lease(job_id=id, lease_token=token)
    raise _refused(place, f"{_LEASE}, not {_named(job)}")


def _refused(place: int, why: str) -> BrokerProtocolError:
    return BrokerProtocolError(f"jobs[{place}]: {why}", field=f"jobs[{place}]")


def _named(value: object) -> str:
    """Return what a value is, without what it holds, which may belong in no log."""
    if isinstance(value, tuple | list):
        kinds = ", ".join(type(item).__name__ for item in value[:5])
        return f"a {type(value).__name__} of {len(value)} ({kinds}{', …' if len(value) > 5 else ''})"
    return f"a value of {type(value).__name__}"


def _is_text(text: str) -> bool:
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
