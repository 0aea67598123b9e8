"""A large body does not hold the event loop: others get their turns, and long work is done in a thread.

Nothing is timed: turns are counted, and threads are looked at.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, cast, get_args

import pytest
from aiohttp.abc import AbstractStreamWriter
from storage.stub import DialectName, StubStore

from osqueue_storage import AzureBackend, GCSBackend, S3Backend, StorageBackend, http_once, s3_client

pytestmark = pytest.mark.usefixtures("credentials")

BODY = bytes(range(256)) * (80 << 10)  # 20 MiB
PIECES = len(BODY) // http_once.PIECE


@pytest.fixture(params=get_args(DialectName))
async def store(request: pytest.FixtureRequest) -> AsyncIterator[StorageBackend]:
    async with StubStore(request.param) as stub, _on(stub) as store:
        await store.read("warm")  # the client's library is imported in a thread, too
        yield store


def _on(stub: StubStore) -> StorageBackend:
    match stub.dialect:
        case "s3":
            return S3Backend(
                stub.bucket, endpoint_url=stub.endpoint_url, access_key_id="a", secret_access_key="b"
            )
        case "gcs":
            return GCSBackend(stub.bucket, endpoint_url=stub.endpoint_url, anonymous=True)
        case _:
            return AzureBackend(
                stub.bucket, account="devstoreaccount1", account_key="YQ==", endpoint_url=stub.endpoint_url
            )


async def turns_during(call: Awaitable[object]) -> int:
    """Return how often another task had its turn."""
    turns, is_done = 0, False

    async def take_turns() -> None:
        nonlocal turns
        while not is_done:
            turns += 1
            await asyncio.sleep(0)

    async with asyncio.timeout(30), asyncio.TaskGroup() as group:
        group.create_task(take_turns())
        await call
        is_done = True
    return turns


async def test_others_get_many_turns_while_a_large_body_is_written_and_read(store: StorageBackend) -> None:
    assert await turns_during(store.create("key", BODY)) >= PIECES
    assert await turns_during(store.read("key")) >= 20


async def test_pieces_of_a_body_leave_turns_on_a_link_that_takes_all_at_once() -> None:
    async def take(pieces: AsyncIterator[memoryview]) -> None:
        async for _ in pieces:
            pass

    assert await turns_during(take(http_once.pieces(b"head", BODY, b"tail"))) >= PIECES


async def test_body_for_s3_leaves_turns_on_a_link_that_takes_all_at_once() -> None:
    class Link:
        def __init__(self) -> None:
            self.taken = 0

        async def write(self, piece: memoryview) -> None:
            self.taken += len(piece)

    link = Link()
    writing = s3_client._Body(BODY).write(cast(AbstractStreamWriter, link))
    assert await turns_during(writing) >= PIECES - 1
    assert link.taken == len(BODY)


async def test_hash_of_a_large_body_is_taken_in_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[int] = []
    md5_of = s3_client._md5_of

    def seen(body: bytes) -> str:
        threads.append(threading.get_ident())
        return md5_of(body)

    monkeypatch.setattr(s3_client, "_md5_of", seen)
    async with StubStore("s3") as stub, _on(stub) as store:
        await store.create("key", BODY)
    assert len(threads) == 1
    assert threads[0] != threading.get_ident()


async def test_large_body_is_put_together_in_a_thread(
    store: StorageBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_threads: list[str] = []
    to_thread = asyncio.to_thread

    async def seen(call: Callable[..., Any], *arguments: Any) -> Any:
        in_threads.append(call.__name__)
        return await to_thread(call, *arguments)

    await store.create("key", BODY)
    monkeypatch.setattr(asyncio, "to_thread", seen)
    found = await store.read("key")
    assert found is not None
    assert found.body == BODY
    if not isinstance(store, S3Backend):  # there it is aiohttp that puts a body together
        assert in_threads == ["join"]
