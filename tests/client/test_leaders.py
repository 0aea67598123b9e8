"""Which broker a client asks: what makes it look again, what it knows of the new one, and what it repeats."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable

import pytest
from client.support import NAMES, STATS, Scripted, answer, listening, replying, silent

from osqueue_client import (
    BrokerLeadershipError,
    ConfigError,
    DiscoveryError,
    OsqueueClient,
    OsqueueError,
    QueueStats,
    StorageBackendError,
    TransportConnectionError,
)
from osqueue_client.models import JobSubmitted, Model
from osqueue_client.operations import GET_STATS, AnyOperation
from osqueue_client.transports import TransportName
from osqueue_storage import MemoryBackend, StoredObject


def stats(*features: str) -> QueueStats:
    return QueueStats(total=0, unclaimed=0, in_progress=0, features=features)


class Brokers:
    """Brokers by their URL, each what it does with an operation; notes which were connected to."""

    def __init__(self, **brokers: Callable[[AnyOperation], Model | OsqueueError]) -> None:
        self.opened: list[str] = []
        self.asked: list[tuple[str, str]] = []
        self.transports: list[Scripted] = []
        self._brokers = brokers

    def connect(self, url: str) -> Scripted:
        name = url.removeprefix("http://").rpartition("@")[2]

        async def answer(operation: AnyOperation) -> Model:
            self.asked.append((name, operation.name))
            answer = self._brokers[name](operation)
            if isinstance(answer, OsqueueError):
                raise answer
            return answer

        self.opened.append(name)
        self.transports.append(Scripted(answer))
        return self.transports[-1]


async def test_old_broker_that_does_not_state_the_outcome_is_asked_once() -> None:
    asked = 0
    refusal = json.dumps({"_tag": "BrokerLeadershipError", "message": "lost it during a commit"}).encode()

    async def reply(n: int) -> bytes:
        nonlocal asked
        asked = n
        return answer(503, refusal, "application/json") if n > 1 else answer(200, STATS, "application/json")

    async with replying(reply) as url, OsqueueClient(url, transport="rest", timeout=5) as client:
        with pytest.raises(BrokerLeadershipError) as caught:
            await client.submit_job("a", 1)
    assert caught.value.outcome == "unknown"
    assert asked == 2


async def test_leader_that_fell_silent_is_not_asked_for_ever() -> None:
    is_paused = asyncio.Event()

    async def first(operation: AnyOperation) -> Model:
        if is_paused.is_set():
            await asyncio.get_running_loop().create_future()
        return stats("first")

    async def second(operation: AnyOperation) -> Model:
        return stats("second")

    async with OsqueueClient(
        ["http://first", "http://second"],
        transport=lambda url: Scripted(first if url == "http://first" else second),
        timeout=0.3,
    ) as client:
        await client.get_stats()
        is_paused.set()
        with pytest.raises(TransportConnectionError) as caught:
            await client.get_stats()
        assert caught.value.outcome == "unknown"
        assert (await client.get_stats()).features == ("second",)


async def test_broker_named_with_an_unknown_outcome_is_asked_next() -> None:
    def deposed(operation: AnyOperation) -> Model | OsqueueError:
        if operation is GET_STATS:
            return stats()
        return BrokerLeadershipError("deposed", leader="b", outcome="unknown")

    brokers = Brokers(a=deposed, b=lambda _: stats())
    async with OsqueueClient("http://a", transport=brokers.connect) as client:
        with pytest.raises(BrokerLeadershipError):
            await client.submit_job("a", 1)
        assert brokers.asked == [("a", "getStats"), ("a", "submitJob")]
        await client.get_stats()
    assert brokers.asked[2:] == [("b", "getStats")]


async def test_features_are_those_of_the_broker_that_is_asked() -> None:
    is_deposed = False

    def old(operation: AnyOperation) -> Model | OsqueueError:
        if is_deposed:
            return BrokerLeadershipError("no", leader="new", outcome="not_applied")
        return stats("fail", "wait")

    def new(operation: AnyOperation) -> Model:
        return stats("fail") if operation is GET_STATS else JobSubmitted(job_id="j")

    brokers = Brokers(old=old, new=new)
    async with OsqueueClient("http://old", transport=brokers.connect) as client:
        assert client.features == set()
        await client.connect()
        assert client.features == {"fail", "wait"}
        is_deposed = True
        await client.submit_job("a", 1)
        assert client.features == {"fail"}
    assert brokers.asked[-2:] == [("new", "getStats"), ("new", "submitJob")]


async def test_what_was_lost_before_the_request_was_sent_had_no_effect() -> None:
    down = False

    def broker(operation: AnyOperation) -> Model | OsqueueError:
        if down:
            return TransportConnectionError("lost", outcome="unknown")
        return stats()

    brokers = Brokers(a=broker)
    async with OsqueueClient("http://a", transport=brokers.connect, timeout=0.04) as client:
        await client.connect()
        down = True
        with pytest.raises(TransportConnectionError) as caught:
            await client.submit_job("a", 1)
        assert caught.value.outcome == "unknown"  # it was sent
        with pytest.raises(TransportConnectionError) as caught:
            await client.submit_job("a", 1)
        assert caught.value.outcome == "not_applied"  # only the new broker's stats were asked for
    operations = [operation for _, operation in brokers.asked]
    assert operations[:3] == ["getStats", "submitJob", "getStats"]
    assert set(operations[2:]) == {"getStats"}


async def test_closing_the_old_connection_takes_no_time_of_the_call() -> None:
    may_close = asyncio.Event()

    class Slow(Scripted):
        async def aclose(self) -> None:
            await may_close.wait()
            await super().aclose()

    async def refuse(operation: AnyOperation) -> Model:
        raise BrokerLeadershipError("no", leader="b", outcome="not_applied")

    async def serve(operation: AnyOperation) -> Model:
        return stats() if operation is GET_STATS else JobSubmitted(job_id="j")

    slow = Slow(refuse)
    async with OsqueueClient(
        "http://a", transport=lambda url: slow if url == "http://a" else Scripted(serve), timeout=2
    ) as client:
        assert await client.submit_job("a", 1) == "j"
        assert not slow.is_closed
        may_close.set()
    assert slow.is_closed  # the client has waited for it at the end


class Failing(MemoryBackend):
    """A store that does not answer."""

    async def read(self, key: str) -> StoredObject | None:
        raise StorageBackendError("the store is down")


class Silent(MemoryBackend):
    """A store that takes too long."""

    async def read(self, key: str) -> StoredObject | None:
        never: asyncio.Future[StoredObject | None] = asyncio.get_running_loop().create_future()
        return await never


@pytest.mark.parametrize(
    ("document", "why"),
    [
        (b'{"broker":null}', "no broker leads"),
        (b'{"broker":"http://x y"}', "http://x y"),
        (b"not json", "queue document"),
        (b'{"broker":"\xff"}', "queue document"),
        (b'{"jobs":' + b"[" * 100_000, "queue document"),
    ],
)
async def test_where_the_store_names_no_broker_nothing_was_sent(document: bytes, why: str) -> None:
    storage = MemoryBackend()
    await storage.create("queue.json", document)
    async with OsqueueClient(storage=storage, timeout=0.2) as client:
        with pytest.raises(DiscoveryError, match=why) as caught:
            await client.submit_job("a", 1)
    assert caught.value.outcome == "not_applied"


async def test_where_the_store_does_not_answer_nothing_was_sent() -> None:
    async with OsqueueClient(storage=Failing(), timeout=0.2) as client:
        with pytest.raises(DiscoveryError, match="the store is down") as caught:
            await client.submit_job("a", 1)
    assert caught.value.outcome == "not_applied"
    async with OsqueueClient(storage=Silent(), timeout=0.05) as client:
        with pytest.raises(TransportConnectionError, match="no broker was found") as late:
            await client.submit_job("a", 1)
    assert late.value.outcome == "not_applied"


async def test_leader_whose_address_is_none_is_told_and_the_known_one_asked_again() -> None:
    answers: list[Model | OsqueueError] = [
        BrokerLeadershipError("no", leader="http://x y", outcome="not_applied"),
        stats(),
    ]
    brokers = Brokers(a=lambda _: answers.pop(0))
    async with OsqueueClient("http://a", transport=brokers.connect, timeout=0.01) as client:
        with pytest.raises(BrokerLeadershipError) as caught:
            await client.get_stats()
        assert caught.value.leader == "http://x y"
        with pytest.raises(DiscoveryError, match="http://x y") as told:
            await client.get_stats()
        assert told.value.outcome == "not_applied"
        await client.get_stats()
    assert brokers.opened == ["a", "a"]


async def test_each_broker_of_a_list_has_its_reason() -> None:
    brokers = Brokers(
        a=lambda _: BrokerLeadershipError("b may lead", outcome="not_applied"),
        b=lambda _: TransportConnectionError("refused", outcome="not_applied"),
    )
    async with OsqueueClient(
        ["http://bob:hunter2@a", "http://b"], transport=brokers.connect, timeout=0.2
    ) as client:
        with pytest.raises(DiscoveryError, match=r"http://a \(b may lead\), http://b \(refused\)") as caught:
            await client.submit_job("a", 1)
    assert caught.value.outcome == "not_applied"
    assert "hunter2" not in caught.value.message


@pytest.mark.parametrize("leader", ["http://127.0.0.1:1", "a b:1", "a:x"])
async def test_address_that_the_store_names_wrongly_is_not_asked(leader: str) -> None:
    storage = MemoryBackend()
    await storage.create("queue.json", json.dumps({"broker": leader}).encode())
    brokers = Brokers()
    async with OsqueueClient(storage=storage, transport=brokers.connect, timeout=0.2) as client:
        with pytest.raises(DiscoveryError, match="host:port") as caught:
            await client.submit_job("a", 1)
    assert caught.value.outcome == "not_applied"
    assert brokers.opened == []


@pytest.mark.parametrize("timeout", [0, -1, float("nan")])
async def test_time_limit_of_one_call_is_checked_as_that_of_all(timeout: float) -> None:
    async with OsqueueClient("http://127.0.0.1:1") as client:
        with pytest.raises(ConfigError, match="timeout") as caught:
            await client.submit_job("a", 1, timeout=timeout)
    assert caught.value.outcome == "not_applied"
    with pytest.raises(ConfigError, match="timeout"):
        OsqueueClient("http://127.0.0.1:1", timeout=timeout)


@pytest.mark.parametrize("name", NAMES)
async def test_calls_under_way_end_when_the_client_is_closed(name: TransportName) -> None:
    is_asked = asyncio.Event()

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        is_asked.set()
        await silent(reader, writer)

    async with listening(listen) as url, asyncio.timeout(10):
        client = OsqueueClient(url, transport=name, timeout=60)
        async with asyncio.TaskGroup() as group:
            call = group.create_task(refusal(client))
            await is_asked.wait()
            await client.aclose()
    assert "closed" in call.result().message
    assert call.result().outcome == "unknown"


async def refusal(client: OsqueueClient) -> TransportConnectionError:
    with pytest.raises(TransportConnectionError) as caught:
        await client.heartbeat("j", "w")
    return caught.value


async def test_transport_that_was_opened_while_the_client_closed_is_given_back() -> None:
    closing: list[asyncio.Task[None]] = []

    async def answer(operation: AnyOperation) -> Model:
        closing.append(asyncio.create_task(client.aclose()))
        await asyncio.sleep(0)  # the client is closed now, and the answer there all the same
        return stats()

    opened = [Scripted(answer), Scripted(answer)]
    unused = iter(opened)
    client = OsqueueClient(["http://a", "http://b"], transport=lambda url: next(unused))
    with pytest.raises((ConfigError, TransportConnectionError)) as caught:
        await client.submit_job("a", 1)
    assert caught.value.outcome == "not_applied"
    await asyncio.gather(*closing)
    assert [transport.is_closed for transport in opened] == [True, True]


def test_client_belongs_to_one_event_loop() -> None:
    brokers = Brokers(a=lambda _: stats())
    client = OsqueueClient("http://a", transport=brokers.connect)
    asyncio.run(awaited(client.get_stats))
    for call in (client.get_stats, client.reconnect, client.aclose):
        with pytest.raises(ConfigError, match="event loop") as caught:
            asyncio.run(awaited(call))
        assert caught.value.outcome == "not_applied"


async def awaited(call: Callable[[], Awaitable[object]]) -> None:
    await call()
