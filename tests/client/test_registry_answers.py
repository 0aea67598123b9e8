"""Payloads in listed jobs: their text is at hand, and no repr shows it."""

from __future__ import annotations

import msgspec
import pytest
from msgspec import UNSET

from osqueue_client import DeadJob, JobError, JobInfo, JobList

JOB = JobInfo(id="1", status="unclaimed", created_at=1, attempts=0, max_attempts=3, heartbeat=0)
DEAD = DeadJob(
    id="2", created_at=1, attempts=3, max_attempts=3, dead_at=2, error=JobError(type="E", message="m")
)


@pytest.mark.parametrize("job", [JOB, DEAD])
def test_payload_json_is_the_text_that_was_submitted(job: JobInfo | DeadJob) -> None:
    assert msgspec.structs.replace(job, payload=msgspec.Raw(b'{"n": 1.10}')).payload_json == b'{"n": 1.10}'
    assert msgspec.structs.replace(job, payload=UNSET).payload_json is None
    read = msgspec.json.decode(msgspec.json.encode(job)[:-1] + b',"payload":[1.10]}', type=type(job))
    assert read.payload_json == b"[1.10]"


@pytest.mark.parametrize("job", [JOB, DEAD])
def test_repr_tells_only_how_long_a_payload_is(job: JobInfo | DeadJob) -> None:
    secret = msgspec.structs.replace(job, payload=msgspec.Raw(b'"hunter2"'))
    assert "payload=<9 bytes of JSON>" in repr(secret)
    assert "hunter2" not in repr(secret)
    assert f"id='{job.id}'" in repr(secret)


def test_repr_of_a_list_shows_its_jobs() -> None:
    jobs = JobList(jobs=(JOB,), total=1, unclaimed=1, in_progress=0)
    assert repr(JOB) in repr(jobs)
