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
from storage.conftest import Keep
from storage.servers.ceph import Ceph, ceph, missing_programs
from storage.servers.s3_bucket import BUCKET, make_bucket

from osqueue_storage import CASConflictError, S3Backend, StorageBackend, StorageBackendError, probe
from osqueue_storage.contract import CONTRACT, PROCESS_CONTRACT, Check, Factory

CHECKS: Final = [*CONTRACT, *PROCESS_CONTRACT]


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
async def test_backend_keeps_the_contract(factory: Factory, check: Check, keep: Keep) -> None:
    await keep(
        check, factory
    )  # the losers of a race get the status 500: their outcome is unknown, and looked up


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
