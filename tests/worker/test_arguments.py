"""What a worker refuses to be made of, and what it says then."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel

from osqueue_client import ConfigError, JobType, OsqueueClient, Registry, SyncOsqueueClient
from osqueue_worker import Worker

URL = "http://127.0.0.1:1"


class Note(BaseModel):
    n: int


class Memo(BaseModel):
    text: str


def knowing(registry: Registry) -> OsqueueClient:
    return OsqueueClient(URL, registry=registry)


NOTE = JobType("note", Note)


def worker(handlers: Any, client: Any = None, **settings: Any) -> Worker:
    return Worker(client=client or OsqueueClient(URL), handlers=handlers, **settings)


@pytest.mark.parametrize(
    ("handlers", "named"),
    [
        ({}, "needs handlers"),
        ([], "needs handlers"),
        (None, "handlers must be a dict"),
        (print, "handlers must be a dict"),
        ("email:send", "handlers must be a dict"),
        ([print], "<built-in function print>"),
        ([("note", print)], r"handled_by\(function\)"),
        ({"note": "no function"}, "must be a function"),
        ({"": print}, "needs a job type"),
        ({NOTE: print}, "must be its name"),
        ([NOTE.handled_by(print), NOTE.handled_by(print)], "two handlers for 'note'"),
    ],
)
async def test_handlers_that_cannot_work_are_refused(handlers: Any, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        worker(handlers)


@pytest.mark.parametrize("settings", [{"concurrency": 0}, {"poll_interval": 0}, {"heartbeat_interval": 0}])
async def test_numbers_that_cannot_work_are_refused(settings: Any) -> None:
    with pytest.raises(ConfigError, match=next(iter(settings))):
        worker({"note": print}, **settings)


async def test_url_in_place_of_a_client_is_refused_without_showing_it() -> None:
    with pytest.raises(ConfigError, match=r"must be an OsqueueClient.*not a str$"):
        worker({"note": print}, "http://user:secret@127.0.0.1:8080")


async def test_synchronous_client_is_refused() -> None:
    with (
        SyncOsqueueClient(URL) as client,
        pytest.raises(ConfigError, match=r"must be an OsqueueClient.*not a SyncOsqueueClient$"),
    ):
        worker({"note": print}, client)


async def test_handler_of_a_type_that_the_registry_lacks_is_refused_with_those_it_has() -> None:
    client = knowing({"note": Note, "memo": Memo})
    with pytest.raises(ConfigError, match=r"'memmo'.* it has memo, note$"):
        worker({"note": print, "memmo": print}, client)


async def test_job_type_with_another_model_than_the_registrys_is_refused() -> None:
    client = knowing({"note": Memo})
    with pytest.raises(ConfigError, match="another model for 'note'"):
        worker([NOTE.handled_by(print)], client)
    worker([NOTE.handled_by(print)], knowing({"note": Note}))
    worker({"note": print}, client)
