"""Errors carry their tag, message and attributes, and keep them through a pickle."""

from __future__ import annotations

import pickle

import pytest

from osqueue_storage import CASConflictError, ConfigError, OsqueueError, StorageBackendError
from osqueue_storage.contract import ContractViolation

ERRORS = [
    OsqueueError("it failed"),
    OsqueueError(),
    ConfigError("latency is wrong"),
    StorageBackendError("disk full", outcome="not_applied"),
    StorageBackendError("timed out", outcome="unknown"),
    CASConflictError("'queue.json' is not at version 3", key="queue.json"),
    ContractViolation("two writers won"),
]


@pytest.mark.parametrize("error", ERRORS, ids=repr)
def test_pickled_error_is_the_same_error(error: OsqueueError) -> None:
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert copy.args == error.args
    assert vars(copy) == vars(error)
    assert (copy.tag, copy.message, copy.outcome) == (error.tag, error.message, error.outcome)


def test_tag_is_the_name_of_the_class() -> None:
    assert [error.tag for error in ERRORS[2:6]] == [
        "ConfigError", "StorageBackendError", "StorageBackendError", "CASConflictError",
    ]  # fmt: skip


def test_message_is_the_text_for_a_person() -> None:
    assert StorageBackendError("disk full").message == str(StorageBackendError("disk full")) == "disk full"
    assert OsqueueError().message == ""


def test_conflict_is_surely_not_applied() -> None:
    assert CASConflictError("no", key="k").outcome == "not_applied"


def test_every_error_is_an_osqueue_error_with_a_status_and_a_code() -> None:
    for error in ERRORS:
        assert isinstance(error, OsqueueError)
        assert 400 <= error.http_status < 600
        assert error.connect_code
