"""Standing by: when a broker takes over, when it must not, and that it can lead again. In fake time, save the last."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from broker.support import KEY, FaultyStore, fake_clock, in_fake_time, leading, nobody_there, until

from osqueue_broker import BrokerSettings
from osqueue_broker.broker import Broker
from osqueue_broker.reaching import Connect, Reached, connect
from osqueue_broker.service import QueueService
from osqueue_client import operations
from osqueue_client.errors import BrokerLeadershipError, EngineStateError, OsqueueError, StorageBackendError
from osqueue_client.operations import AnyOperation
from osqueue_storage import MemoryBackend, StoredObject

US = "us:1"
OTHER = "other:1"
ELSEWHERE = "198.51.100.7:8080"
TIMEOUT, INTERVAL, POLL = 10.0, 3.0, 0.5
"""The defaults, and the time from one look at the leader to the next."""
SOONER = 0.4 * TIMEOUT
EPS = 0.01


class Link(MemoryBackend):
    """One broker's way to a store that several share; it may be cut."""

    def __init__(self, store: FaultyStore) -> None:
        super().__init__()
        self.store = store
        self.is_cut = False
        self.latency = 0.0
        self.reads = 0

    def _check(self) -> None:
        if self.is_cut:
            raise ConnectionError("cut off")

    async def read(self, key: str) -> StoredObject | None:
        self.reads += 1
        await asyncio.sleep(self.latency)
        self._check()
        return await self.store.read(key)

    async def write(self, key: str, body: bytes, expected_version: str) -> str:
        self._check()
        return await self.store.write(key, body, expected_version)

    async def create(self, key: str, body: bytes) -> str:
        self._check()
        return await self.store.create(key, body)


class Peer:
    """A broker without a port, its service, and the task of its life."""

    def __init__(self, broker: Broker, service: QueueService, link: Link, life: asyncio.Task[None]) -> None:
        self.broker, self.service, self.link, self.life = broker, service, link, life

    @property
    def leads(self) -> bool:
        return self.broker.leads.is_set()

    async def ask(self, operation: AnyOperation, **fields: Any) -> Any:
        return await self.service.call(operation, operation.request(**fields))

    async def refusal(self, operation: AnyOperation = operations.GET_STATS) -> OsqueueError:
        with pytest.raises(OsqueueError) as refused:
            await self.ask(operation)
        return refused.value

    async def led_after(self, seconds: float = 1000) -> float:
        """Wait until it leads; return how long that took."""
        began_at = fake_clock().now
        async with asyncio.timeout(seconds):
            await self.broker.leads.wait()
        return fake_clock().now - began_at

    async def stop(self) -> None:
        self.broker.stop()
        await self.life

    async def kill(self) -> None:
        self.life.cancel()
        await asyncio.wait((self.life,))


@asynccontextmanager
async def living(
    store: FaultyStore,
    address: str = US,
    *,
    standby: bool = True,
    has_bound: bool = True,
    connect: Connect = nobody_there,
    **settings: Any,
) -> AsyncIterator[Peer]:
    link = Link(store)
    made = BrokerSettings(probe_storage=False, **settings)
    service = QueueService(link, address, fake_clock())
    broker = Broker(
        service, link, address, settings=made, clock=fake_clock(), has_bound=has_bound, standby=standby,
        connect=connect,
    )  # fmt: skip
    peer = Peer(broker, service, link, asyncio.create_task(broker.run()))
    try:
        yield peer
    finally:
        await peer.kill()


def stored(broker: str = ELSEWHERE, **fields: Any) -> FaultyStore:
    store = FaultyStore()
    store.put_now({"broker": broker, "jobs": [], **fields})
    return store


def moved(store: FaultyStore, **fields: Any) -> None:
    """What a living leader does to the document."""
    store.put_now(store.now() | {"brokerHeartbeat": store.now().get("brokerHeartbeat", 0) + 1} | fields)


async def beating(store: FaultyStore, times: int) -> None:
    for _ in range(times):
        moved(store)
        await asyncio.sleep(INTERVAL)


class Port:
    """What a leader's port answers; `then` is what comes one by one, the last for good."""

    def __init__(self, *then: Reached) -> None:
        self.then = list(then)
        self.asked: list[str] = []

    async def __call__(self, address: str) -> Reached:
        self.asked.append(address)
        return self.then.pop(0) if len(self.then) > 1 else self.then[0]


YES, REFUSED, UNCLEAR = Reached.YES, Reached.REFUSED, Reached.UNCLEAR


# When it may take over


@in_fake_time
async def test_a_standby_takes_over_when_the_document_has_not_moved_for_the_timeout() -> None:
    async with living(stored()) as us:
        assert TIMEOUT <= await us.led_after() <= TIMEOUT + EPS


@in_fake_time
async def test_each_movement_begins_the_wait_anew() -> None:
    store = stored()
    async with living(store) as us:
        await beating(store, 20)
        assert not us.leads
        # the last movement was an interval ago, and was seen a look later at most
        assert TIMEOUT - INTERVAL <= await us.led_after() <= TIMEOUT - INTERVAL + POLL + EPS


@in_fake_time
async def test_a_hand_over_is_taken_up_within_one_look() -> None:
    store = FaultyStore()
    async with living(store, OTHER) as first:
        await first.led_after()
        async with living(store) as us:
            await asyncio.sleep(20)
            await first.stop()
            assert await us.led_after() <= POLL + EPS
    assert (store.now()["broker"], store.now()["epoch"]) == (US, 2)


@in_fake_time
async def test_a_standby_says_who_leads_and_does_nothing() -> None:
    store = FaultyStore()
    async with living(store, OTHER) as first, living(store) as us:
        await first.led_after()
        await asyncio.sleep(1)
        refusal = await us.refusal()
        assert isinstance(refusal, BrokerLeadershipError)
        assert (refusal.leader, refusal.outcome) == (OTHER, "not_applied")
        assert (us.service.readiness().status, us.service.readiness().leader) == ("standby", OTHER)
        moved(store, broker=ELSEWHERE)
        await asyncio.sleep(2 * POLL)
        assert us.service.readiness().leader == ELSEWHERE


@in_fake_time
async def test_of_two_standbys_one_takes_over_and_the_other_stands_by() -> None:
    store = stored()
    async with living(store) as one, living(store, OTHER) as two:
        await until(lambda: one.leads or two.leads, 100)
        await asyncio.sleep(60)
        assert one.leads != two.leads
        winner, loser = (one, two) if one.leads else (two, one)
        refusal = await loser.refusal()
        assert isinstance(refusal, BrokerLeadershipError)
        assert refusal.leader == winner.broker.address == store.now()["broker"]
        assert store.now()["epoch"] == 1


# When refused connections shorten the wait


@in_fake_time
async def test_three_refusals_by_a_port_that_was_reached_shorten_the_wait() -> None:
    store, port = stored(), Port(YES)
    async with living(store, connect=port) as us:
        await beating(store, 3)
        moved(store)
        port.then = [REFUSED]
        assert SOONER <= await us.led_after() <= SOONER + POLL + EPS
    assert set(port.asked) == {ELSEWHERE}


@in_fake_time
async def test_a_try_to_connect_has_its_time_also_when_the_rest_of_the_wait_is_short() -> None:
    class Slow(Port):
        async def __call__(self, address: str) -> Reached:
            await asyncio.sleep(0.3 * POLL)
            return await super().__call__(address)

    store, port = stored(), Slow(YES)
    async with living(store, connect=port) as us:
        await beating(store, 3)
        moved(store)
        port.then = [REFUSED]
        # At the seventh look three were refused, and 0.01 s of the 4 are left: the fourth try takes longer than that.
        us.link.latency = 0.07
        assert await us.led_after() <= SOONER + 2 * POLL


@pytest.mark.parametrize(
    "then",
    [
        pytest.param([REFUSED], id="never-reached"),
        pytest.param([YES, UNCLEAR], id="no-answer"),
        pytest.param([YES], id="it-is-there"),
        pytest.param([YES, *[REFUSED, REFUSED, UNCLEAR] * 20], id="not-in-a-row"),
        pytest.param([YES, *[REFUSED, REFUSED, YES] * 20], id="reached-again"),
        pytest.param([UNCLEAR, REFUSED], id="refused-after-no-answer"),
    ],
)
@in_fake_time
async def test_nothing_less_shortens_it(then: list[Reached]) -> None:
    async with living(stored(), connect=Port(*then)) as us:
        assert await us.led_after() >= TIMEOUT


@in_fake_time
async def test_a_connection_that_hangs_is_no_refusal_and_delays_no_look() -> None:
    async def hang(address: str) -> Reached:
        await asyncio.Event().wait()
        raise AssertionError

    store = stored()
    async with living(store, connect=hang) as us:
        assert TIMEOUT <= await us.led_after() <= TIMEOUT + EPS
        assert us.link.reads >= TIMEOUT / POLL


@in_fake_time
async def test_a_leader_that_is_alive_is_not_deposed_however_often_its_port_refuses() -> None:
    store = stored()
    async with living(store, connect=Port(YES, REFUSED)) as us:
        await beating(store, 100)
        assert not us.leads


@pytest.mark.parametrize("change", [{"broker": OTHER}, {"epoch": 8, "seq": 9, "commitId": "c"}])
@in_fake_time
async def test_that_another_leader_or_an_earlier_term_was_reached_does_not_count(
    change: dict[str, Any],
) -> None:
    store, port = stored(epoch=7, seq=8, commitId="b"), Port(YES, YES, REFUSED)
    async with living(store, connect=port) as us:
        await asyncio.sleep(3.1)  # reached, and asked once more
        assert port.asked
        port.then = [REFUSED]
        moved(store, **change)
        assert await us.led_after() >= TIMEOUT


@in_fake_time
async def test_a_leader_at_our_own_address_is_not_connected_to_and_warned_about() -> None:
    port = Port(YES, REFUSED)
    told: list[str] = []
    logger = logging.getLogger("osqueue.broker.leadership")
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: told.append(record.getMessage())  # type: ignore[method-assign]
    logger.addHandler(handler)
    async with living(stored(US), has_bound=False, connect=port) as us:
        assert await us.led_after() >= TIMEOUT
    logger.removeHandler(handler)
    assert port.asked == []
    assert [text for text in told if f"same address as this broker ({US})" in text]


async def test_a_real_port_is_reached_or_refuses_and_a_name_that_is_none_says_nothing() -> None:
    server = await asyncio.start_server(lambda reader, writer: writer.close(), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server:
        assert await connect(f"127.0.0.1:{port}") is YES
        assert await connect(f"localhost:{port}/queue") is YES
    assert await connect(f"127.0.0.1:{port}") is REFUSED
    assert await connect(f"localhost:{port}") is REFUSED
    assert await connect("does-not-exist.invalid:80") is UNCLEAR
    assert await connect("no address") is UNCLEAR


async def test_a_name_refuses_only_if_all_of_its_addresses_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        closed = server.getsockname()
    refuses = (socket.AF_INET, socket.SOCK_STREAM, 0, "", closed)
    fails = (socket.AF_UNIX, socket.SOCK_STREAM, 0, "", str(tmp_path / "nothing"))

    async def getaddrinfo(*args: object, **options: object) -> list[object]:
        return found

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo)
    found: list[object] = [refuses, refuses]
    assert await connect("broker:1") is REFUSED
    found = [refuses, fails]
    assert await connect("broker:1") is UNCLEAR
    found = []
    assert await connect("broker:1") is UNCLEAR


# The store


@in_fake_time
async def test_a_standby_outlives_hours_without_a_store() -> None:
    store = stored()
    async with living(store) as us:
        await asyncio.sleep(1)
        us.link.is_cut = True
        await asyncio.sleep(4 * 3600)
        assert not us.life.done()
        us.link.is_cut = False
        assert await us.led_after() <= TIMEOUT + INTERVAL


@in_fake_time
async def test_who_is_no_standby_gives_up_when_the_store_fails_while_it_watches() -> None:
    async with living(stored(), standby=False, request_timeout=2.0) as us:
        await asyncio.sleep(1)
        us.link.is_cut = True
        async with asyncio.timeout(4):
            with pytest.raises(StorageBackendError, match="no good answer"):
                await us.life


@in_fake_time
async def test_a_standby_that_takes_over_names_the_dead_leader_no_more() -> None:
    store = stored()
    async with living(store) as us:
        await asyncio.sleep(1)
        assert us.service.readiness().leader == ELSEWHERE
        store.gate.clear()
        await until_at_gate(store)
        assert us.service.readiness().leader is None
        store.gate.set()
        await us.led_after(1)


async def until_at_gate(store: FaultyStore) -> None:
    async with asyncio.timeout(TIMEOUT + 1):
        while not store.at_gate:  # a takeover is on its way
            await asyncio.sleep(0.1)


@in_fake_time
async def test_a_standby_whose_store_is_down_at_first_goes_on_too() -> None:
    store = FaultyStore()
    async with living(store) as us:
        us.link.is_cut = True
        await asyncio.sleep(3600)
        us.link.is_cut = False
        await us.led_after(10)


@in_fake_time
async def test_a_store_that_was_down_for_all_does_not_cost_the_leader_its_lead() -> None:
    store = FaultyStore()
    async with living(store, OTHER) as first, living(store) as us:
        await first.led_after()
        await asyncio.sleep(5)
        for _ in range(20):
            first.link.is_cut = us.link.is_cut = True
            await asyncio.sleep(600)
            first.link.is_cut = us.link.is_cut = False
            await asyncio.sleep(20)
        assert (first.leads, us.leads, store.now()["epoch"]) == (True, False, 1)


@in_fake_time
async def test_a_document_deleted_while_a_standby_watches_is_not_made_anew() -> None:
    store = stored()
    async with living(store) as us:
        await asyncio.sleep(1)
        await store.delete(KEY)
        await asyncio.wait((us.life,), timeout=100)
        with pytest.raises(EngineStateError, match="deleted"):
            us.life.result()
        assert isinstance(await us.refusal(), EngineStateError)
        assert us.service.readiness().status == "stopped"
    assert store.object() is None


@in_fake_time
async def test_nothing_is_fetched_while_nothing_moves_where_the_store_can_tell() -> None:
    class Telling(Link):
        asked = 0

        async def read_if_changed(self, key: str, version: str) -> StoredObject | None:
            self.asked += 1
            found = await self.store.read(key)
            assert found is not None
            return None if found.version == version else found

    store = stored()
    link = Telling(store)
    service = QueueService(link, US, fake_clock())
    settings = BrokerSettings(probe_storage=False)
    broker = Broker(
        service,
        link,
        US,
        settings=settings,
        clock=fake_clock(),
        has_bound=True,
        standby=True,
        connect=nobody_there,
    )
    life = asyncio.create_task(broker.run())
    await asyncio.sleep(TIMEOUT - 0.1)
    assert (link.reads, link.asked) == (1, 19)
    life.cancel()
    await asyncio.wait((life,))


@in_fake_time
async def test_a_document_that_takes_long_to_fetch_is_fetched_less_often() -> None:
    store = stored()
    store._latency = 0.3  # 0.15 s to the effect, and as long back
    async with living(store) as us:
        for _ in range(300):
            moved(store)
            await asyncio.sleep(0.1)
        assert 15 <= us.link.reads <= 30 / (0.3 + 4 * 0.3) + 2
        assert not us.leads


# Being deposed, and leading again


@in_fake_time
async def test_a_leader_cut_off_is_deposed_says_so_stands_by_and_leads_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    store = FaultyStore()
    async with living(store, OTHER) as first, living(store) as us:
        await first.led_after()
        await first.ask(operations.SUBMIT_JOB)
        first.link.is_cut = True
        await asyncio.sleep(5)
        waiting = asyncio.create_task(first.refusal(operations.SUBMIT_JOB))
        await us.led_after(20)
        await us.ask(operations.SUBMIT_JOB)
        written = len(store.attempts)
        first.link.is_cut = False
        for refusal in (await waiting, await first.refusal()):
            assert isinstance(refusal, BrokerLeadershipError)
            assert refusal.leader == US
        assert not first.leads
        lost = [record for record in caplog.records if record.getMessage() == "leadership_lost"]
        assert [(record.__dict__["leader"], record.__dict__["epoch"]) for record in lost] == [(US, 2)]
        assert len(store.now()["jobs"]) == 2
        assert all(b'"epoch":2' in body for body, _ in store.attempts[written:] if OTHER.encode() not in body)
        await us.stop()
        await first.led_after(POLL + EPS)
        await first.ask(operations.SUBMIT_JOB)
    assert (store.now()["broker"], store.now()["epoch"], len(store.now()["jobs"])) == (OTHER, 3, 3)


@in_fake_time
async def test_what_waits_in_a_deposed_leader_is_refused_with_the_new_leader_and_never_committed() -> None:
    store = FaultyStore()
    async with living(store, OTHER) as first:
        await first.led_after()
        store.put_now(store.now() | {"broker": ELSEWHERE, "epoch": 2, "seq": 5, "commitId": "theirs"})
        theirs = store.object()
        store._latency = 0.5
        with pytest.raises(BrokerLeadershipError) as refused:
            await first.ask(operations.SUBMIT_JOB)
        assert (refused.value.leader, refused.value.outcome) == (ELSEWHERE, "not_applied")
        refusal = await first.refusal()  # at once, before the document was read again
        assert isinstance(refusal, BrokerLeadershipError)
        assert refusal.leader == ELSEWHERE
        await asyncio.sleep(TIMEOUT - 1)
        assert store.object() is theirs


@in_fake_time
async def test_without_standby_a_deposed_broker_ends_with_the_error() -> None:
    store = FaultyStore()
    async with living(store, OTHER, standby=False) as first:
        await first.led_after()
        moved(store, broker=ELSEWHERE)
        await asyncio.wait((first.life,), timeout=100)
        with pytest.raises(BrokerLeadershipError, match=ELSEWHERE):
            first.life.result()
        refusal = await first.refusal()
        assert isinstance(refusal, BrokerLeadershipError)
        assert refusal.leader == ELSEWHERE


@in_fake_time
async def test_a_later_term_ends_ours_also_under_our_own_address() -> None:
    store = FaultyStore()
    async with living(store) as us:
        await us.led_after()
        store.put_now(store.now() | {"epoch": 2, "seq": 5, "commitId": "theirs"})
        await until(lambda: not us.leads, 10)
        await beating(store, 10)
        assert not us.leads
        assert store.now()["epoch"] == 2


@in_fake_time
async def test_a_document_deleted_after_the_leader_was_deposed_is_not_made_anew() -> None:
    store = FaultyStore()
    async with living(store) as us:
        await us.led_after()
        moved(store, broker=ELSEWHERE)
        real = store.read

        async def read(key: str) -> StoredObject | None:
            found = await real(key)
            if found is not None:
                await store.delete(KEY)  # right after it has learnt that it was deposed
            return found

        store.read = read  # type: ignore[method-assign]  # for what another does at once
        await asyncio.wait((us.life,), timeout=100)
        with pytest.raises(EngineStateError, match="deleted"):
            us.life.result()
    assert store.object() is None


# What a leader answers without a commit


@in_fake_time
async def test_nobody_else_leads_while_a_leader_that_is_cut_off_still_answers() -> None:
    store = FaultyStore()
    async with living(store, OTHER) as first, living(store) as us:
        await first.led_after()
        sent_at = store.sent_at[-1]
        await asyncio.sleep(INTERVAL / 2)
        first.link.is_cut = True
        answered_at = ready_at = 0.0
        while not us.leads:
            asked = asyncio.create_task(first.ask(operations.GET_STATS))
            await asyncio.sleep(0.05)
            if asked.done():
                answered_at = fake_clock().now - 0.05
            asked.cancel()
            if first.service.readiness().is_ready:
                ready_at = fake_clock().now
        assert sent_at < answered_at <= ready_at
        assert TIMEOUT - INTERVAL - 0.1 <= ready_at - sent_at < TIMEOUT - INTERVAL
        assert TIMEOUT <= fake_clock().now - sent_at <= TIMEOUT + POLL + EPS
        assert first.service.readiness().status == "stale"


@in_fake_time
async def test_a_leader_that_is_stopping_answers_nothing_without_a_commit() -> None:
    store = FaultyStore()
    async with leading(store) as leader:
        written = len(store.attempts)
        await leader.ask(operations.GET_STATS)
        assert len(store.attempts) == written
        leader.commits.drain()
        store.gate.clear()
        asked = leader.put(operations.GET_STATS)
        await until(lambda: store.at_gate == 1)
        assert not asked.done()
        assert leader.commits.readiness().status == "stopping"
        store.gate.set()
        await asked


@pytest.mark.parametrize(("has_bound", "fresh_for"), [(True, TIMEOUT - INTERVAL), (False, 0.95 * SOONER)])
@in_fake_time
async def test_a_port_that_others_may_close_makes_a_leader_fresh_for_less_time(
    has_bound: bool, fresh_for: float
) -> None:
    store = FaultyStore()
    async with living(store, has_bound=has_bound) as us:
        await us.led_after()
        sent_at = store.sent_at[-1]
        us.link.is_cut = True
        await asyncio.sleep(sent_at + fresh_for - EPS - fake_clock().now)
        assert us.service.readiness().status == "ready"
        await asyncio.sleep(2 * EPS)
        assert us.service.readiness().status == "stale"


@in_fake_time
async def test_a_broker_told_to_stop_while_it_takes_over_hands_over_what_it_took() -> None:
    store = stored(None)  # type: ignore[arg-type]  # nobody leads
    store.gate.clear()
    async with living(store) as us:
        await until(lambda: store.at_gate == 1)
        us.broker.stop()
        store.gate.set()
        await us.life
    assert (store.now()["broker"], store.now()["epoch"]) == (None, 1)


@in_fake_time
async def test_a_life_whose_end_is_cancelled_once_more_leaves_no_task_behind() -> None:
    store = FaultyStore()
    service = QueueService(store, US, fake_clock())
    settings = BrokerSettings(probe_storage=False)
    broker = Broker(service, store, US, settings=settings, clock=fake_clock(), has_bound=True)

    async def hold() -> None:
        async with broker.running():
            await asyncio.Event().wait()

    holding = asyncio.create_task(hold())
    await broker.leads.wait()
    store.gate.clear()  # the hand-over gets no answer
    for _ in range(2):
        holding.cancel()
        await asyncio.sleep(0.01)
    await asyncio.wait((holding,))
    await asyncio.sleep(0.01)
    assert [task.get_name() for task in asyncio.all_tasks() if "life" in task.get_name()] == []


@in_fake_time
async def test_a_standby_told_to_stop_ends_at_once_and_writes_nothing() -> None:
    store = stored()
    async with living(store) as us:
        await asyncio.sleep(1)
        us.link.is_cut = True
        await asyncio.sleep(1)
        await us.stop()
    assert store.attempts == []


# Real processes


@asynccontextmanager
async def broker_process(
    folder: Path, *arguments: str
) -> AsyncIterator[tuple[str, asyncio.subprocess.Process]]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "osqueue_broker", "--port", "0", "--storage", f"file:{folder}", "--log-level", "error",
        *arguments, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    try:
        async with asyncio.timeout(20):
            line = (await process.stdout.readline()).decode()
        yield line.removeprefix("Broker listening on ").strip(), process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def ready_within(http: httpx.AsyncClient, seconds: float) -> float:
    began_at = time.monotonic()
    async with asyncio.timeout(seconds):
        while (await http.get("/readyz")).status_code != 200:
            await asyncio.sleep(0.01)  # another process; bounded
    return time.monotonic() - began_at


@pytest.mark.parametrize(("number", "bound"), [(signal.SIGTERM, 3.0), (signal.SIGKILL, 9.0)])
async def test_a_standby_serves_soon_after_the_leader_has_ended(
    number: signal.Signals, bound: float, tmp_path: Path
) -> None:
    async with (
        broker_process(tmp_path) as (leader, process),
        broker_process(tmp_path, "--standby") as (standby, _),
        httpx.AsyncClient(base_url=f"http://{leader}", trust_env=False) as before,
        httpx.AsyncClient(base_url=f"http://{standby}", trust_env=False) as after,
    ):
        assert (await before.post("/v1/jobs", json={"payload": 1})).status_code == 200
        refused = await after.post("/v1/jobs", json={"payload": 2})
        assert (refused.status_code, refused.json().get("leader")) == (503, leader)
        async with asyncio.timeout(5):  # it has seen the leader
            while (await after.get("/readyz")).json() != {"status": "standby", "leader": leader}:
                await asyncio.sleep(0.01)
        await asyncio.sleep(0.6)  # a look goes by, and the connection that it makes
        process.send_signal(number)
        print(f"{number.name}: {await ready_within(after, bound):.2f} s")
        assert (await after.post("/v1/jobs", json={"payload": 2})).status_code == 200
        assert [job["payload"] for job in (await after.get("/state")).json()["jobs"]] == [1, 2]
