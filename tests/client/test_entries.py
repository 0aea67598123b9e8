"""What is given for many jobs: its shapes, and that an error names the entry that is wrong before anything is sent."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from client.support import OLD, Watched, transport_to

from osqueue_broker import BrokerServer
from osqueue_client import (
    BatchError,
    BrokerProtocolError,
    JobType,
    OsqueueClient,
    OsqueueError,
    PayloadValidationError,
    RequestTooLargeError,
)


@pytest.fixture
async def watched(server: BrokerServer) -> Watched:
    return Watched(transport_to("rest", f"http://{server.address}"))


@pytest.fixture
async def client(watched: Watched) -> AsyncIterator[OsqueueClient]:
    async with OsqueueClient(transport=watched, registry={"n": int}) as client:
        yield client


def nested(levels: int) -> object:
    value: object = 1
    for _ in range(levels):
        value = [value]
    return value


NO_NEW_JOB: list[tuple[Any, type[OsqueueError], str]] = [
    (("n", 1), BrokerProtocolError, r"^jobs\[0\]: give \(type, payload\), or .*, not a value of str$"),
    (
        [("n", 1), {"type": "n", "payload": 1}],
        BrokerProtocolError,
        r"^jobs\[1\]: give .*, not a value of dict",
    ),
    ([("n", 1), ("n",)], BrokerProtocolError, r"^jobs\[1\]: give .*, not a tuple of 1 \(str\)$"),
    ([("n", 1, 2, 3)], BrokerProtocolError, r"^jobs\[0\]: give \(type, payload\)"),
    ([("n", 1), "ab"], BrokerProtocolError, r"^jobs\[1\]: give \(type, payload\)"),
    ([({"to": "a"}, "n")], BrokerProtocolError, r"^jobs\[0\]: the type must be a name, a JobType or None"),
    (JobType("n", int), BrokerProtocolError, "^jobs: give a list, not a value of JobType$"),
    ([("n", 1), ("n", 1, -1)], BrokerProtocolError, r"^jobs\[1\]: max_attempts: .*>= 0"),
    ([("n", 1, "3")], BrokerProtocolError, r"^jobs\[0\]: max_attempts: "),
    (
        [("n", n) for n in range(17)] + [("n", "x")],
        PayloadValidationError,
        r"^jobs\[17\]: the payload of 'n' ",
    ),
    ([("n", 1), ("m", 1)], PayloadValidationError, r"^jobs\[1\]: there is no job type 'm'"),
    ([(None, 1), (None, nested(198))], BrokerProtocolError, r"^jobs\[1\]: .*nested more than 197 deep"),
]


@pytest.mark.parametrize(("jobs", "kind", "text"), NO_NEW_JOB)
async def test_what_is_no_job_is_named_before_anything_is_sent(
    client: OsqueueClient, watched: Watched, jobs: Any, kind: type[OsqueueError], text: str
) -> None:
    with pytest.raises(kind, match=text) as caught:
        await client.submit_jobs(jobs)
    assert caught.value.outcome == "not_applied"
    assert watched.asked == []


async def test_type_that_is_no_text_is_named_before_anything_is_sent(watched: Watched) -> None:
    async with OsqueueClient(transport=watched) as client:
        with pytest.raises(BrokerProtocolError, match=r"^jobs\[1\]: the type is not a text"):
            await client.submit_jobs([("n", 1), ("\ud800", 1)])
    assert watched.asked == []


NO_LEASE: list[tuple[Any, str]] = [
    (["01a2"], r"^jobs\[0\]: give the Job, or \(job.id, job.lease_token\), not a value of str$"),
    ("01a2", r"^jobs\[0\]: give the Job"),
    ([("a", None), ("b",)], r"^jobs\[1\]: give the Job, .* not a tuple of 1 \(str\)$"),
    ([("a", 1)], r"^jobs\[0\]: give the Job, .* not a tuple of 2 \(str, int\)$"),
    ([("", None)], r"^jobs\[0\]: give the Job"),
    ([("a", "b", "c")], r"^jobs\[0\]: give the Job"),
    (5, "^jobs: give a list, not a value of int$"),
]


@pytest.mark.parametrize("name", ["complete_jobs", "heartbeat_jobs"])
@pytest.mark.parametrize(("jobs", "text"), NO_LEASE)
async def test_what_is_no_lease_is_refused_before_anything_is_sent(
    client: OsqueueClient, watched: Watched, name: str, jobs: Any, text: str
) -> None:
    with pytest.raises(BrokerProtocolError, match=text):
        await getattr(client, name)(jobs, "w")
    assert watched.asked == []


async def test_attempts_may_be_set_for_one_job(client: OsqueueClient) -> None:
    await client.submit_jobs([("n", 1), ("n", 2, 7), ("n", 3, None), (None, nested(197), 1)], max_attempts=5)
    assert [job.max_attempts async for job in client.iter_jobs()] == [5, 7, 5, 1]


@pytest.mark.parametrize("lacks", [(), OLD])
async def test_job_that_is_too_large_is_named(
    server: BrokerServer, transport_name: str, lacks: tuple[str, ...]
) -> None:
    watched = Watched(transport_to(transport_name, f"http://{server.address}"), *lacks)
    async with OsqueueClient(transport=watched) as client:
        with pytest.raises(RequestTooLargeError, match=r"^jobs\[0\]: ") as alone:
            await client.submit_jobs([(None, "x" * 2_000_000)])
        assert alone.value.outcome == "not_applied"
        with pytest.raises(BatchError, match=r"RequestTooLargeError: jobs\[1\]: ") as caught:
            await client.submit_jobs([(None, 1), (None, "x" * 2_000_000)])
    first, second = caught.value.results
    assert isinstance(first, str)
    assert isinstance(second, RequestTooLargeError)


@pytest.mark.parametrize("page", [0, 1001, None])
async def test_page_that_cannot_be_is_named_before_anything_is_sent(
    client: OsqueueClient, watched: Watched, page: Any
) -> None:
    with pytest.raises(BrokerProtocolError, match=r"^page must be a number from 1 to 1,000") as caught:
        await anext(client.iter_jobs(page=page))
    assert caught.value.field == "page"
    assert watched.asked == []
