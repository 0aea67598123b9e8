"""Which settings can work together, and what is said of those that cannot."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest

from osqueue_broker import BrokerServer, BrokerSettings
from osqueue_client.errors import ConfigError
from osqueue_storage import MemoryBackend, ThrottledStorageBackend

SLOWEST = [
    # broker_heartbeat_interval, group_commit_interval, the store's slowest_write_interval: the largest counts
    pytest.param(2.0, 0.0, 0.0, 2.0, id="interval"),
    pytest.param(0.5, 2.0, 1.0, 2.0, id="group-commit-interval"),
    pytest.param(0.5, 1.0, 2.0, 2.0, id="slowest-write-interval"),
    pytest.param(2.0, 2.0, 2.0, 2.0, id="all-alike"),
]


class Store(MemoryBackend):
    """A store that takes a write each `interval` seconds, and each `slowest` when a budget is used up."""

    def __init__(self, interval: float, slowest: float) -> None:
        super().__init__()
        self.min_write_interval = interval
        self.slowest_write_interval = slowest


def check(
    interval: float, group_commit: float, slowest: float, *, timeout: float, storage_timeout: float = 0.1
) -> None:
    settings = BrokerSettings(
        broker_heartbeat_interval=interval,
        broker_heartbeat_timeout=timeout,
        group_commit_interval=group_commit,
        storage_timeout=storage_timeout,
    )
    settings.check_against(Store(0.0, slowest))


@pytest.mark.parametrize(("interval", "group_commit", "store_slowest", "largest"), SLOWEST)
def test_a_timeout_of_three_times_the_slowest_is_enough(
    interval: float, group_commit: float, store_slowest: float, largest: float
) -> None:
    check(interval, group_commit, store_slowest, timeout=3 * largest)
    check(interval, group_commit, store_slowest, timeout=3 * largest + 1e-6)


@pytest.mark.parametrize(("interval", "group_commit", "store_slowest", "largest"), SLOWEST)
def test_a_timeout_below_three_times_the_slowest_is_refused(
    interval: float, group_commit: float, store_slowest: float, largest: float
) -> None:
    with pytest.raises(ConfigError, match="must be at least 6 s, 3 ×"):
        check(interval, group_commit, store_slowest, timeout=3 * largest - 1e-6)


def test_the_refusal_has_the_arithmetic() -> None:
    with pytest.raises(ConfigError) as refused:
        check(0.5, 1.0, 2.5, timeout=7.0)
    for part in ("7 s", "7.5 s, 3 ×", "broker_heartbeat_interval (0.5 s)", "two writes (2.5 s)"):
        assert part in refused.value.message


def test_one_unanswered_request_must_not_cost_the_leadership() -> None:
    check(2.0, 0.0, 0.0, timeout=10.0, storage_timeout=7.999)
    with pytest.raises(ConfigError, match=r"storage_timeout \(8 s\)"):
        check(2.0, 0.0, 0.0, timeout=10.0, storage_timeout=8.0)


def test_a_write_that_is_held_back_and_then_not_answered_must_not_cost_it_either() -> None:
    store = ThrottledStorageBackend(MemoryBackend(), writes_per_minute=18)
    BrokerSettings(storage_timeout=3.0).check_against(store)
    with pytest.raises(ConfigError, match="Lower storage_timeout, raise the timeout, or allow more writes"):
        BrokerSettings(storage_timeout=3.4).check_against(store)


def test_a_request_must_be_able_to_wait_for_its_turn_to_write() -> None:
    store = ThrottledStorageBackend(MemoryBackend(), writes_per_minute=20)
    BrokerSettings(request_timeout=3.1).check_against(store)
    with pytest.raises(ConfigError, match="request_timeout is 3 s"):
        BrokerSettings(request_timeout=3.0).check_against(store)


def test_reads_must_be_allowed_as_often_as_a_standby_needs_them() -> None:
    BrokerSettings().check_against(ThrottledStorageBackend(MemoryBackend(), reads_per_minute=20))
    with pytest.raises(ConfigError, match="Allow more reads"):
        BrokerSettings().check_against(ThrottledStorageBackend(MemoryBackend(), reads_per_minute=19))


def test_a_server_is_not_made_with_settings_that_its_store_cannot_keep() -> None:
    with pytest.raises(ConfigError, match="broker_heartbeat_timeout"):
        BrokerServer(storage=Store(0.0, 4.0), port=0)


def test_the_larger_of_both_spacings_counts() -> None:
    store = Store(1.0, 3.0)
    assert BrokerSettings().write_spacing(store) == 1.0
    assert BrokerSettings(group_commit_interval=0.5).write_spacing(store) == 1.0
    assert BrokerSettings(group_commit_interval=1.5).write_spacing(store) == 1.5


POSITIVE = [
    field.name
    for field in fields(BrokerSettings)
    if not isinstance(field.default, bool) and field.name != "group_commit_interval"
]


@pytest.mark.parametrize("name", POSITIVE)
@pytest.mark.parametrize("value", [0, -1, float("nan")])
def test_what_must_be_more_than_nothing_is_refused_by_name(name: str, value: float) -> None:
    settings: dict[str, Any] = {name: value}
    with pytest.raises(ConfigError, match=name):
        BrokerSettings(**settings)


@pytest.mark.parametrize("value", [-0.001, float("nan")])
def test_a_negative_spacing_is_refused_and_none_at_all_is_fine(value: float) -> None:
    with pytest.raises(ConfigError, match="group_commit_interval"):
        BrokerSettings(group_commit_interval=value)
    assert BrokerSettings(group_commit_interval=0.0).write_spacing(MemoryBackend()) == 0.0
