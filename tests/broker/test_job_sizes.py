"""What waits in the document is counted with the errors that it holds."""

from __future__ import annotations

import json
import random

import pytest
from broker.deep_queue import DeepQueue

from osqueue_broker.queue.job import UNCLAIMED
from osqueue_client import models, operations
from osqueue_client.models import JobError


def fail(queue: DeepQueue, claimed: models.ClaimedJob, message: str) -> None:
    queue.ask(
        operations.FAIL_JOB, job_id=claimed.job_id, worker_id="w", lease_token=claimed.lease_token,
        error=JobError(type="E", message=message),
    )  # fmt: skip


def counted(queue: DeepQueue) -> int:
    return sum(job.text_bytes for job in queue.state.jobs if job.status == UNCLAIMED)


def test_jobs_that_failed_with_long_messages_are_moved_to_segments_as_any_that_fill_the_document() -> None:
    queue = DeepQueue(threshold=60_000)
    for number in range(100):
        queue.submit(number)
    assert not queue.seal()
    for claimed in queue.ask(operations.CLAIM_JOBS, worker_id="w", limit=100).jobs:
        fail(queue, claimed, "é" * 4000)
    waiting = sum(len(json.dumps(job, ensure_ascii=False).encode()) for job in queue.document["jobs"])
    assert waiting > 800_000
    assert queue.state.waiting_bytes == pytest.approx(waiting, rel=0.1)
    while queue.seal():
        pass
    assert len(queue.body) < 100_000
    assert max(segment.bytes for segment in queue.state.segments) < waiting / 3


@pytest.mark.parametrize("seed", range(5))
def test_what_waits_is_counted_right_whatever_becomes_of_it(seed: int) -> None:
    print(f"seed {seed}")
    chance = random.Random(seed)
    queue = DeepQueue(threshold=chance.choice([20_000, 1_000_000]), max_attempts=3)
    running: list[models.ClaimedJob] = []
    for number in range(400):
        what = chance.random()
        if what < 0.35:
            queue.submit(number)
        elif what < 0.65 and (claimed := queue.claim()).job_id is not None:
            running.append(claimed)
        elif what < 0.9 and running:
            fail(queue, running.pop(chance.randrange(len(running))), "m" * chance.choice([3, 300, 9000]))
        elif what < 0.93 and running:
            queue.complete(running.pop())
        elif what < 0.95:
            queue.seal()
        elif what < 0.96:
            queue.take_over()
        assert queue.state.waiting_bytes == counted(queue)


def test_a_waiting_job_without_attempts_left_takes_what_was_counted_for_it_with_it() -> None:
    queue = DeepQueue(max_attempts=3)
    queue.submit(1)
    fail(queue, queue.claim(), "m" * 500)
    queue.state.rules = type(queue.rules)(max_attempts=1)
    assert queue.state.waiting_bytes == counted(queue) > 500
    assert queue.claim().job_id is None
    assert queue.state.dead_count == 1
    assert queue.state.waiting_bytes == 0
