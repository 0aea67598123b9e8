"""What a client may rely on, the same over every transport."""

from __future__ import annotations

import asyncio

import pytest
from client.support import TRANSPORTS, transport_to
from pydantic import BaseModel

from osqueue_broker import BrokerServer
from osqueue_client import (
    BrokerProtocolError,
    JobError,
    JobNotFoundError,
    JobType,
    LeaseLostError,
    OsqueueClient,
    PayloadValidationError,
    RequestTooLargeError,
)


class SendEmail(BaseModel):
    to: str
    body: str = ""


async def test_job_goes_from_submit_to_completion(client: OsqueueClient) -> None:
    job_id = await client.submit_job("email:send", {"to": "a@example.com"}, max_attempts=5)

    job = await client.claim_job("w1")
    assert job is not None
    assert (job.id, job.type, job.attempt) == (job_id, "email:send", 1)
    assert job.payload == {"to": "a@example.com"}
    [listed] = (await client.list_jobs()).jobs
    assert (listed.id, listed.worker_id, listed.attempts, listed.max_attempts) == (job_id, "w1", 1, 5)
    assert listed.created_at > 0
    assert listed.heartbeat > 0
    await client.heartbeat(job_id, "w1")
    await client.complete_job(job_id, "w1")

    stats = await client.get_stats()
    assert (stats.total, stats.unclaimed, stats.in_progress, stats.completed_total) == (0, 0, 0, 1)


async def test_claim_of_an_empty_queue_is_none(client: OsqueueClient) -> None:
    assert await client.claim_job("w1") is None


async def test_claims_come_in_order_and_only_of_the_types_asked_for(client: OsqueueClient) -> None:
    ids = [await client.submit_job(name, n) for n, name in enumerate(("a", "b", None, "a"))]

    claimed = [await client.claim_job("w1", types) for types in (["b"], ["a"], [""], ["b"], None, None)]

    assert [job and job.id for job in claimed] == [ids[1], ids[0], None, None, ids[2], ids[3]]
    assert claimed[4] is not None
    assert claimed[4].type is None


async def test_stats_name_the_broker_and_its_features(client: OsqueueClient, server: BrokerServer) -> None:
    await client.submit_job("a", 1)
    await client.submit_job("a", 2)
    await client.claim_job("w1")
    await client.connect()

    stats = await client.get_stats()

    assert (stats.total, stats.unclaimed, stats.in_progress, stats.dead) == (2, 1, 1, 0)
    assert stats.broker_address == server.address
    assert client.features == set(stats.features) >= {"fail", "dead"}


@pytest.mark.parametrize(
    "payload", [None, True, 0, -1, 1.5, "", "héé\u0000\U0001f600", [], {}, [1, {"a": None}], {"": [[]]}]
)
async def test_every_json_value_comes_back(client: OsqueueClient, payload: object) -> None:
    await client.submit_job("any", payload)

    job = await client.claim_job("w1")

    assert job is not None
    assert job.payload == payload
    assert type(job.payload) is type(payload)


@pytest.mark.parametrize("number", [2**53 + 1, -(2**63), 2**64, 10**100 + 7])
async def test_integer_of_any_size_comes_back_digit_for_digit(client: OsqueueClient, number: int) -> None:
    await client.submit_job("big", {"n": number})

    [listed] = (await client.list_jobs()).jobs
    job = await client.claim_job("w1")

    assert job is not None
    assert job.payload_json == b'{"n":%d}' % number == listed.payload_json
    assert job.payload == {"n": number}


async def test_failed_job_is_claimable_again_and_then_dead(client: OsqueueClient) -> None:
    job_id = await client.submit_job("flaky", {"n": 1}, max_attempts=2)

    for attempt in (1, 2):
        job = await client.claim_job("w1")
        assert job is not None
        assert (job.id, job.attempt) == (job_id, attempt)
        await client.fail_job(job_id, "w1", ValueError(f"no {attempt}"))

    assert await client.claim_job("w1") is None
    dead = await client.list_dead()
    assert dead.total == 1
    assert dead.next_cursor is None
    [kept] = dead.jobs
    assert (kept.id, kept.type, kept.attempts, kept.max_attempts) == (job_id, "flaky", 2, 2)
    assert kept.error == JobError(type="ValueError", message="no 2")
    assert kept.payload_json == b'{"n":1}'
    assert 0 < kept.created_at <= kept.dead_at
    assert (await client.get_stats()).dead == 1


async def test_failure_without_retry_is_dead_at_once(client: OsqueueClient) -> None:
    job_id = await client.submit_job("a", 1)
    await client.claim_job("w1")

    await client.fail_job(job_id, "w1", JobError(type="Bad", message="never"), retry=False)

    assert [job.id for job in (await client.list_dead()).jobs] == [job_id]


async def test_dead_jobs_are_paged_requeued_and_deleted(client: OsqueueClient) -> None:
    ids = []
    for n in range(5):
        ids.append(await client.submit_job("a", n))
        await client.claim_job("w1")
        await client.fail_job(ids[n], "w1", ValueError("no"), retry=False)

    pages, cursor = [], None
    while True:
        page = await client.list_dead(limit=2, cursor=cursor)
        assert page.total == 5
        pages.append([job.id for job in page.jobs])
        cursor = page.next_cursor
        if cursor is None:
            break
    assert pages == [ids[:2], ids[2:4], ids[4:]]

    await client.requeue_dead(ids[3])
    await client.delete_dead(ids[0])

    assert [job.id for job in (await client.list_dead()).jobs] == [ids[1], ids[2], ids[4]]
    job = await client.claim_job("w2")
    assert job is not None
    assert (job.id, job.attempt, job.payload) == (ids[3], 1, 3)
    for gone in (ids[0], ids[3]):
        with pytest.raises(JobNotFoundError):
            await client.requeue_dead(gone)
        with pytest.raises(JobNotFoundError):
            await client.delete_dead(gone)


async def test_unknown_job_is_an_error_of_its_own(client: OsqueueClient) -> None:
    for call in (
        client.heartbeat("no-such", "w1"),
        client.complete_job("no-such", "w1"),
        client.fail_job("no-such", "w1", ValueError()),
    ):
        with pytest.raises(JobNotFoundError, match="no-such"):
            await call


@pytest.mark.parametrize(
    ("transport_name", "job_id"),
    [
        (transport_name, job_id)
        for transport_name in TRANSPORTS
        for job_id in ("a/b", "a b?c#d%2F", "é")
        if (transport_name, job_id) != ("rest", "a/b")  # over REST the id is a part of the path
    ],
)
async def test_job_id_of_any_characters_arrives(client: OsqueueClient, job_id: str) -> None:
    with pytest.raises(JobNotFoundError) as caught:
        await client.complete_job(job_id, "w1")
    assert job_id in caught.value.message


async def test_foreign_lease_is_an_error_of_its_own(client: OsqueueClient) -> None:
    job_id = await client.submit_job("a", 1)
    await client.claim_job("w1")

    for call in (
        client.heartbeat(job_id, "w2"),
        client.complete_job(job_id, "w2"),
        client.fail_job(job_id, "w2", ValueError()),
    ):
        with pytest.raises(LeaseLostError):
            await call
    await client.complete_job(job_id, "w1")


async def test_malformed_request_names_the_field(client: OsqueueClient) -> None:
    with pytest.raises(BrokerProtocolError) as caught:
        await client.claim_job("")
    assert caught.value.field == "workerId"
    assert "workerId" in caught.value.message
    with pytest.raises(BrokerProtocolError) as caught:
        await client.list_dead(limit=0)
    assert caught.value.field == "limit"
    with pytest.raises(BrokerProtocolError) as caught:
        await client.submit_job("a", 1, max_attempts=-1)
    assert caught.value.field == "maxAttempts"


# Over REST the id is a part of the path: an empty one is another path.
@pytest.mark.parametrize("transport_name", [name for name in TRANSPORTS if name != "rest"])
async def test_empty_job_id_is_named(client: OsqueueClient) -> None:
    with pytest.raises(BrokerProtocolError) as caught:
        await client.complete_job("", "w1")
    assert caught.value.field == "jobId"


async def test_request_that_is_too_large_is_refused_and_the_client_goes_on(client: OsqueueClient) -> None:
    with pytest.raises(RequestTooLargeError):
        await client.submit_job("a", "x" * 2_000_000)
    await client.submit_job("a", "x")
    assert (await client.get_stats()).total == 1


async def test_payload_is_validated_before_anything_is_sent(
    server: BrokerServer, transport_name: str
) -> None:
    transport = transport_to(transport_name, f"http://{server.address}")
    async with OsqueueClient(transport=transport, registry={"email:send": SendEmail}) as client:
        for name, payload in (
            ("email:send", {"to": 1}),
            ("email:send", {}),
            ("email:send", "text"),
            ("email:sent", {"to": "a"}),
        ):
            with pytest.raises(PayloadValidationError) as caught:
                await client.submit_job(name, payload)
            assert caught.value.job_type == name
            assert caught.value.outcome == "not_applied"
        with pytest.raises(PayloadValidationError):
            await client.submit_job(JobType("email:send", SendEmail), {"body": 1})  # type: ignore[misc]
        assert (await client.get_stats()).total == 0

        await client.submit_job("email:send", SendEmail(to="a"))
        await client.submit_job("email:send", {"to": "b"})
        await client.submit_job(JobType("email:send", SendEmail), SendEmail(to="c"))
        jobs = [await client.claim_job("w") for _ in range(3)]
    assert [job and job.payload for job in jobs] == [SendEmail(to=name) for name in "abc"]


@pytest.mark.parametrize(
    "payload", [float("nan"), [float("inf")], {"a": -float("inf")}, object(), {1, object()}]
)
async def test_what_is_not_json_is_not_sent(client: OsqueueClient, payload: object) -> None:
    with pytest.raises(PayloadValidationError):
        await client.submit_job("any", payload)
    with pytest.raises(PayloadValidationError):
        await client.submit_job(None, payload)
    assert (await client.get_stats()).total == 0


async def test_payload_that_does_not_fit_is_found_when_it_is_read(
    server: BrokerServer, transport_name: str
) -> None:
    url = f"http://{server.address}"
    async with (
        OsqueueClient(transport=transport_to(transport_name, url)) as loose,
        OsqueueClient(
            transport=transport_to(transport_name, url), registry={"email:send": SendEmail}
        ) as strict,
    ):
        await loose.submit_job("email:send", {"to": ["secret"]})
        job = await strict.claim_job("w1")
        assert job is not None
        with pytest.raises(PayloadValidationError) as caught:
            _ = job.payload
    assert "to" in caught.value.message
    assert "secret" not in caught.value.message


async def test_many_calls_at_once_on_one_client(client: OsqueueClient) -> None:
    async with asyncio.TaskGroup() as group:
        submits = [group.create_task(client.submit_job("a", n)) for n in range(100)]
    ids = {task.result() for task in submits}
    assert len(ids) == 100
    async with asyncio.TaskGroup() as group:
        claims = [group.create_task(client.claim_job(f"w{n}")) for n in range(100)]
    assert {job.id for task in claims if (job := task.result())} == ids
