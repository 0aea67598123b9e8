"""The S3 backend on Ceph RGW: only where it is installed, and OSQUEUE_TEST_CEPH says that it is wanted.

apt-get install --no-install-recommends radosgw ceph-mon ceph-osd ceph-common
OSQUEUE_TEST_CEPH=1 python -m pytest tests/storage/test_ceph.py
"""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Final

import pytest
from storage.servers.ceph import Ceph, ceph, missing_programs
from storage.servers.s3_bucket import BUCKET, make_bucket

from osqueue_storage import CASConflictError, S3Backend, StorageBackend, StorageBackendError, probe
from osqueue_storage.contract import CONTRACT, PROCESS_CONTRACT, Check, Factory

RACES: Final = frozenset(
    {
        "one_of_many_writes_on_a_version_wins",
        "no_update_is_lost",
        "no_update_is_lost_between_processes",
    }
)
"""Checks in which nobody may meet anything but success and conflict. Ceph answers the losers of a race with the
status 500, which leaves a write's outcome unknown: the tests below race, and resolve that as the broker does."""

CHECKS: Final = [check for check in (*CONTRACT, *PROCESS_CONTRACT) if check.__name__ not in RACES]


def _reason_to_skip() -> str:
    if not os.environ.get("OSQUEUE_TEST_CEPH"):
        return "OSQUEUE_TEST_CEPH is not set"
    missing = missing_programs()
    return f"not installed: {', '.join(missing)}" if missing else ""


pytestmark = [
    pytest.mark.skipif(bool(_reason_to_skip()), reason=_reason_to_skip()),
    pytest.mark.timeout(180),  # the first test starts the server
]


@pytest.fixture(scope="session")
def server() -> Iterator[Ceph]:
    with tempfile.TemporaryDirectory(prefix="osqueue-ceph-") as folder, ceph(Path(folder) / "c") as server:
        make_bucket(server, BUCKET)
        yield server


@pytest.fixture
def factory(server: Ceph) -> Factory:
    return partial(
        S3Backend,
        BUCKET,
        endpoint_url=server.endpoint_url,
        access_key_id=server.access_key_id,
        secret_access_key=server.secret_access_key,
        quoted_if_match=False,
        timeout=30.0,
    )


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
async def test_backend_keeps_the_contract(factory: Factory, check: Check) -> None:
    await check(factory)


async def test_probe_trusts_it(factory: Factory) -> None:
    async with factory() as store:
        await probe(store)


async def test_at_most_one_of_many_writes_on_a_version_lands(factory: Factory) -> None:
    ends = {"won": 0, "conflicted": 0, "unknown": 0}

    async def write(store: StorageBackend, body: bytes, version: str) -> bytes | None:
        try:
            await store.write("barrier", body, version)
        except CASConflictError:
            ends["conflicted"] += 1
        except StorageBackendError as error:
            ends[error.outcome or ""] += 1  # not_applied would be no key
        else:
            ends["won"] += 1
            return body
        return None

    async with factory() as store, factory() as other:
        version = await store.create("barrier", b"start")
        for turn in range(20):
            bodies = [b"turn %d, writer %d" % (turn, number) for number in range(16)]
            writes = [write((store, other)[i % 2], body, version) for i, body in enumerate(bodies)]
            winners = [body for body in await asyncio.gather(*writes) if body]
            found = await store.read("barrier")
            assert found is not None
            assert found.body in bodies
            assert winners in ([], [found.body])
            version = found.version
    print(ends)


async def test_no_update_is_lost_where_unknown_outcomes_are_looked_up(factory: Factory) -> None:
    # Each write adds a line of its own, so that the object tells which of them have landed.
    unknown = 0

    async def add(store: StorageBackend, line: bytes) -> None:
        nonlocal unknown
        while True:
            found = await store.read("lines")
            assert found is not None
            if line in found.body.splitlines():
                return  # it had landed
            try:
                await store.write("lines", found.body + line + b"\n", found.version)
            except CASConflictError:
                continue
            except StorageBackendError:
                unknown += 1
                continue
            return

    async def add_some(store: StorageBackend, writer: int) -> None:
        for number in range(10):
            await add(store, b"%d-%d" % (writer, number))

    async with factory() as store, factory() as other:
        await store.create("lines", b"")
        async with asyncio.timeout(150), asyncio.TaskGroup() as group:
            for writer in range(8):
                group.create_task(add_some((store, other)[writer % 2], writer))
        found = await store.read("lines")
        assert found is not None
        lines = found.body.splitlines()
        assert sorted(lines) == sorted(b"%d-%d" % (w, n) for w in range(8) for n in range(10))
    print(f"{len(lines)} landed, {unknown} answers left the outcome unknown")
