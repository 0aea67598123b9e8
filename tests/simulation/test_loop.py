"""What the simulated processes can and cannot do: the ground on which all else stands."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from simulation.loop import Node, SimLoop
from simulation.store import KEY, SimStore, StoreView
from simulation.world import Rates, World

from osqueue_storage import CASConflictError, StorageBackendError


@pytest.fixture
def loop() -> Iterator[SimLoop]:
    made = SimLoop()
    yield made
    made.close()


@pytest.fixture
def world() -> Iterator[World]:
    made = World(1)
    yield made
    made.loop.close()


def process(loop: SimLoop, *, offset: float = 0.0, rate: float = 1.0) -> Node:
    return Node(loop, "n", offset=offset, rate=rate)


async def step(seen: list[str]) -> None:
    try:
        for number in range(3):
            seen.append(str(number))
            await asyncio.sleep(1)
    finally:
        seen.append("finally")


def test_a_killed_process_runs_nothing_more_not_even_its_finally(loop: SimLoop) -> None:
    seen: list[str] = []
    node = process(loop)
    task = node.spawn(step(seen), "step")
    loop.after(1.5, node.kill)
    loop.run_until_complete(_wait(100))
    assert seen == ["0", "1"]
    assert not task.done()


def test_a_paused_process_goes_on_where_it_stood_and_finds_that_time_has_passed(loop: SimLoop) -> None:
    seen: list[str] = []
    node = process(loop)
    node.spawn(step(seen), "step")
    loop.after(0.5, node.pause)
    loop.after(50, node.resume)
    loop.run_until_complete(_wait(49))
    assert seen == ["0"]
    loop.run_until_complete(_wait(10))
    assert seen == ["0", "1", "2", "finally"]
    [(began, ended)] = node.pauses
    assert began == pytest.approx(0.5, abs=0.01)
    assert ended == pytest.approx(50, abs=0.01)


def test_each_process_has_a_clock_of_its_own(loop: SimLoop) -> None:
    times: list[float] = []
    node = process(loop, offset=1000, rate=1.01)

    async def look() -> None:
        times.append(asyncio.get_running_loop().time())
        await asyncio.sleep(101)
        times.append(asyncio.get_running_loop().time())

    node.spawn(look(), "look")
    loop.run_until_complete(_wait(99))
    assert len(times) == 1  # 101 of its seconds are 100 true ones
    loop.run_until_complete(_wait(2))
    assert times == [pytest.approx(1000, abs=0.01), pytest.approx(1101, abs=0.01)]


@pytest.mark.parametrize(
    ("rates", "error", "lands"),
    [
        (Rates(), None, True),
        (Rates(lost_request=1.0), TimeoutError, False),
        (Rates(lost_answer=1.0), TimeoutError, True),
        (Rates(late=1.0), StorageBackendError, True),
        (Rates(doubled=1.0), CASConflictError, True),
        (Rates(refused=1.0), StorageBackendError, False),
    ],
)
def test_a_store_answers_and_acts_as_its_faults_say(
    world: World, rates: Rates, error: type[Exception] | None, lands: bool
) -> None:
    store = store_of(world)
    world.store_rates = rates
    world.store_rates.unclear = 0.0
    found: list[Exception | None] = []

    async def write() -> None:
        try:
            async with asyncio.timeout(30):
                await StoreView(store, "n").create(KEY, b"{}")
        except Exception as caught:  # noqa: BLE001  # looked at below
            found.append(caught)
        else:
            found.append(None)

    world.new_node("n").spawn(write(), "write")
    world.loop.run_until_complete(_wait(60))
    [caught] = found
    if error is None:
        assert caught is None
    elif error is TimeoutError:  # or that the connection broke
        assert isinstance(caught, TimeoutError | StorageBackendError)
    else:
        assert isinstance(caught, error)
    assert len(world.history.landings) == lands


def test_a_write_lands_though_its_sender_was_killed_meanwhile(world: World) -> None:
    store = store_of(world)
    node = world.new_node("n")
    node.spawn(_write(store), "write")
    world.loop.after(0.001, node.kill)
    world.loop.run_until_complete(_wait(1))
    assert [landing.writer for landing in world.history.landings] == ["n"]


async def _write(store: SimStore) -> None:
    await StoreView(store, "n").create(KEY, b"{}")


def store_of(world: World) -> SimStore:
    return SimStore(world, has_content_versions=False, min_write_interval=0, max_object_bytes=None)


async def _wait(seconds: float) -> None:
    await asyncio.sleep(seconds)
