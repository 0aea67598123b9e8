"""The S3 backend: on real servers, and on a stub that fails on command."""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import datetime
import hashlib
import importlib.util
import logging
import subprocess
import sys
import traceback
from collections.abc import AsyncIterator, Awaitable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiobotocore.credentials import AioRefreshableCredentials  # type: ignore[import-untyped]
from aiobotocore.session import AioSession  # type: ignore[import-untyped]
from storage.conftest import Keep
from storage.servers.ministack import Ministack, ministack
from storage.servers.process import free_ports
from storage.servers.s3_bucket import BUCKET, S3Server, make_bucket
from storage.servers.seaweedfs import SeaweedFS
from storage.stub import Fault, StubFaultInjector, StubStore
from storage.stub_dialects import Operation

from osqueue_storage import (
    CASConflictError,
    ConditionalReader,
    ConfigError,
    StorageBackend,
    StorageBackendError,
    StoredObject,
    probe,
    s3_client,
    s3_settings,
)
from osqueue_storage.contract import (
    CONTRACT,
    FAULT_CONTRACT,
    PROCESS_CONTRACT,
    Check,
    ContractViolation,
    FaultCheck,
    WriteFault,
)
from osqueue_storage.contract.checks import odd_keys_are_kept_apart
from osqueue_storage.s3 import S3Backend
from osqueue_storage.s3_settings import provider_of

pytestmark = pytest.mark.usefixtures("credentials")

SECRET = "kept-from-every-text-1/+="
PASSWORD = "s3cr3t-of-a-proxy"
TOKEN = "token-kept-from-every-text"

MERGED = {"seaweedfs": ("//",)}
"""What a server takes for something else in a key: SeaweedFS keeps objects as files in folders. It refuses the parts
. and .., as it may, but of the key a//b it makes a/b."""


@pytest.fixture(scope="session")
def ministack_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ministack]:
    with ministack(tmp_path_factory.mktemp("ministack")) as server:
        make_bucket(server, BUCKET)
        yield server


@pytest.fixture(params=["seaweedfs", "ministack"])
def server(request: pytest.FixtureRequest) -> S3Server:
    server: S3Server = request.getfixturevalue(f"{request.param}_server")
    return server


@pytest.fixture
async def stub() -> AsyncIterator[StubStore]:
    async with StubStore("s3") as stub:
        yield stub


def on(server: S3Server, bucket: str = BUCKET, **options: Any) -> S3Backend:
    return S3Backend(
        bucket,
        endpoint_url=server.endpoint_url,
        access_key_id=server.access_key_id,
        secret_access_key=server.secret_access_key,
        **({"timeout": 30.0} | options),  # SeaweedFS lets the losers of a race wait for seconds
    )


def on_stub(stub: StubStore, **options: Any) -> S3Backend:
    credentials = {"access_key_id": "AKIDEXAMPLE", "secret_access_key": SECRET, "session_token": TOKEN}
    return S3Backend(stub.bucket, endpoint_url=stub.endpoint_url, **(credentials | options))


# On real servers.


@pytest.mark.parametrize("check", CONTRACT, ids=lambda check: check.__name__)
async def test_backend_keeps_the_contract(
    server: S3Server, check: Check, request: pytest.FixtureRequest, keep: Keep
) -> None:
    merged = MERGED.get(request.node.callspec.params["server"], ())
    if merged and check is odd_keys_are_kept_apart:
        with pytest.raises(ContractViolation, match="list gave "):
            await check(lambda: on(server))
        check = partial(odd_keys_are_kept_apart, merged=merged)
    await keep(check, lambda: on(server))


@pytest.mark.parametrize("check", CONTRACT, ids=lambda check: check.__name__)
async def test_backend_keeps_the_contract_on_the_stub(stub: StubStore, check: Check, keep: Keep) -> None:
    await keep(check, lambda: on_stub(stub))


@pytest.mark.parametrize("check", PROCESS_CONTRACT, ids=lambda check: check.__name__)
async def test_backend_keeps_the_contract_between_processes(
    server: S3Server, check: Check, keep: Keep
) -> None:
    factory = partial(  # the server itself cannot be sent to another process
        S3Backend,
        BUCKET,
        endpoint_url=server.endpoint_url,
        access_key_id=server.access_key_id,
        secret_access_key=server.secret_access_key,
        timeout=30.0,
    )
    await keep(check, factory)


async def test_probe_passes_on_a_server(server: S3Server) -> None:
    async with on(server, prefix="probed/") as backend:
        await probe(backend)
        assert [key async for key in backend.list("")] == []


@pytest.mark.parametrize("fault", WriteFault)
@pytest.mark.parametrize("check", FAULT_CONTRACT, ids=lambda check: check.__name__)
async def test_failed_writes_are_told_as_they_are(
    stub: StubStore, check: FaultCheck, fault: WriteFault
) -> None:
    timeout = 1.0 if fault in (WriteFault.SILENT_BEFORE, WriteFault.SILENT_AFTER) else 20.0
    await check(lambda: on_stub(stub, timeout=timeout), StubFaultInjector(stub), fault)


async def test_keys_that_every_server_keeps_apart(server: S3Server) -> None:
    keys = (
        "odd/a",
        "odd/a/b",
        "odd/A",
        "odd/%41",
        "odd/a%2Fb",
        "odd/ä ö",
        "odd/键",
        "odd/a b?c#d",
        "odd/a+b&c=d;e:f",
    )
    async with on(server) as store:
        for key in keys:
            await store.create(key, key.encode())
        for key in keys:
            found = await store.read(key)
            assert found is not None
            assert found.body == key.encode()
        assert [key async for key in store.list("odd/")] == sorted(keys, key=str.encode)


async def test_prefix_stands_before_each_key(server: S3Server) -> None:
    async with on(server, prefix="team-a/") as store, on(server) as whole:
        version = await store.create("queue", b"1")
        assert await whole.read("team-a/queue") == StoredObject(b"1", version)
        assert await whole.read("queue") is None
        await whole.create("team-b/queue", b"2")
        assert [key async for key in store.list("")] == ["queue"]
        await store.delete("queue")
        assert await whole.read("team-a/queue") is None


async def test_missing_bucket_is_named_with_its_mend(ministack_server: S3Server) -> None:
    async with on(ministack_server, "no-such-bucket") as store:
        for call in (
            store.read("key"),
            store.create("key", b"1"),
            store.write("key", b"1", '"0"'),
            store.delete("key"),
        ):
            with pytest.raises(
                StorageBackendError, match=r"'no-such-bucket'.*NoSuchBucket.*create the bucket"
            ) as caught:
                await call
            assert caught.value.outcome == "not_applied"
        with pytest.raises(StorageBackendError, match="create the bucket"):
            _ = [key async for key in store.list("")]


@pytest.mark.parametrize(
    "wrong",
    [{"access_key_id": "AKIDUNKNOWN"}, {"secret_access_key": SECRET}],
    ids=lambda wrong: next(iter(wrong)),
)
async def test_wrong_credentials_are_refused_with_a_mend(
    seaweedfs_server: SeaweedFS, wrong: dict[str, Any]
) -> None:
    async with on(dataclasses.replace(seaweedfs_server, **wrong)) as store:
        with pytest.raises(StorageBackendError, match=r"refused \(403 .*give others") as caught:
            await store.create("never-there", b"1")
        assert caught.value.outcome == "not_applied"
        assert SECRET not in told(caught.value)


async def test_signed_bodies_are_taken_too(server: S3Server) -> None:
    async with on(server, signed_payload=True) as store:
        await store.create("signed", b"body")
        assert await store.create("signed-large", bytes(3_000_000))


async def test_large_write_cut_off_at_any_point_leaves_old_or_new(
    server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Both servers store what has arrived of a body, none of it in the worst case, unless they have its hash.
    monkeypatch.setattr(s3_client, "_HASHED_AT_ONCE", 1 << 30)
    async with on(server) as store:
        bodies = {b"start"}
        await store.create("cut-off", b"start")
        for turns in range(1, 40):
            found = await store.read("cut-off")
            assert found is not None
            assert found.body in bodies
            body = b"%d" % turns * (1 << 20)
            bodies.add(body)
            async with asyncio.TaskGroup() as group:
                # one that was cut off may have landed since, and then this one conflicts
                write = group.create_task(ended(store.write("cut-off", body, found.version)))
                for _ in range(turns):
                    await asyncio.sleep(0)
                write.cancel()


# Outcomes.

LOST_ANSWERS = {
    "connection dropped": Fault.drop(applied=True),
    "500": Fault.answer(500, applied=True),
    "503": Fault.answer(503, applied=True),
    "no answer": Fault.hang(applied=True),
}


@pytest.mark.parametrize("action", ["write", "create"])
@pytest.mark.parametrize("fault", LOST_ANSWERS.values(), ids=LOST_ANSWERS)
async def test_write_with_a_lost_answer_is_unknown_and_sent_once(
    stub: StubStore, fault: Fault, action: str
) -> None:
    async with on_stub(stub, timeout=1.0) as store:
        version = await store.create("key", b"old") if action == "write" else ""
        sent = stub.count("write")
        stub.faults.append(fault)
        with pytest.raises(StorageBackendError) as caught:
            await (store.write("key", b"new", version) if action == "write" else store.create("key", b"new"))
        assert caught.value.outcome == "unknown"
        assert stub.count("write") == sent + 1
        assert stub.objects["key"].body == b"new"


@pytest.mark.parametrize("mode", ["legacy", "standard", "adaptive"])
async def test_retries_set_for_the_machine_are_not_taken_over(
    stub: StubStore, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "5")
    monkeypatch.setenv("AWS_RETRY_MODE", mode)
    async with on_stub(stub) as store:
        stub.faults.append(Fault.answer(503, applied=True))
        with pytest.raises(StorageBackendError):
            await store.create("key", b"new")
        assert stub.count("write") == 1


ANSWERS = [
    (400, "InvalidRequest", "not_applied", "refused"),
    (400, "ExpiredToken", "not_applied", "does not accept these credentials"),
    (400, "AuthorizationHeaderMalformed", "not_applied", "set `region`"),
    (400, "KeyTooLongError", "not_applied", "1,024 bytes"),
    (400, "BadDigest", "not_applied", "refused"),
    (400, "RequestTimeout", "unknown", "no clear answer"),
    (403, "AccessDenied", "not_applied", "allow s3:(PutObject|DeleteObject) on the objects"),
    (403, "SignatureDoesNotMatch", "not_applied", "does not accept these credentials"),
    (403, "RequestTimeTooSkewed", "not_applied", "set the clock"),
    (404, "NoSuchBucket", "not_applied", "create the bucket"),
    (404, "NotFound", "not_applied", "refused"),
    (408, "RequestTimeout", "unknown", "no clear answer"),
    (409, "ConditionalRequestConflict", "unknown", "no clear answer"),
    (409, "OperationAborted", "unknown", "no clear answer"),
    (429, "TooManyRequests", "unknown", "no clear answer"),
    (500, "InternalError", "unknown", "no clear answer"),
    (501, "NotImplemented", "not_applied", "no conditional writes"),
    (503, "SlowDown", "unknown", "no clear answer"),
]  # fmt: skip


@pytest.mark.parametrize(("status", "code", "outcome", "words"), ANSWERS)
async def test_answer_to_a_write_is_understood(
    stub: StubStore, status: int, code: str, outcome: str, words: str
) -> None:
    async with on_stub(stub) as store:
        version = await store.create("key", b"old")
        for action in ("write", "create", "delete"):
            fault = Fault.answer(status, code=code, on="delete" if action == "delete" else "write")
            stub.faults.append(fault)
            match action:
                case "write":
                    call: Awaitable[object] = store.write("key", b"new", version)
                case "create":
                    call = store.create("key", b"new")
                case _:
                    call = store.delete("key")
            with pytest.raises(StorageBackendError, match=f"(write|delete) of 'key'.*{words}") as caught:
                await call
            assert caught.value.outcome == outcome
            assert stub.endpoint_url in caught.value.message
            assert len(stub.faults) == 0


@pytest.mark.parametrize(
    ("operation", "words"),
    [
        ("write", "cannot create objects below 'segments/': .*: allow s3:PutObject on the objects"),
        ("read", "cannot read objects below 'segments/': .*: allow s3:GetObject on the objects"),
        ("list", "cannot list objects below 'segments/': .*: allow s3:ListBucket on the bucket"),
        ("delete", "cannot delete objects below 'segments/': .*: allow s3:DeleteObject on the objects"),
    ],
)
async def test_the_probe_names_the_action_that_a_policy_does_not_allow(
    stub: StubStore, operation: Operation, words: str
) -> None:
    stub.faults.append(Fault.answer(403, code="AccessDenied", on=operation))
    async with on_stub(stub, prefix="team/") as store:
        with pytest.raises(StorageBackendError, match=words):
            await probe(store, below="segments/")
    assert stub.objects == {}


async def test_conflicts_are_told_by_412_and_by_a_missing_object(stub: StubStore) -> None:
    async with on_stub(stub, prefix="p/") as store:
        await store.create("key", b"old")
        stub.faults += [Fault.answer(412), Fault.answer(412), Fault.answer(404, code="NoSuchKey")]
        for call in (
            store.create("key", b"new"),
            store.write("key", b"new", '"0"'),
            store.write("key", b"new", '"0"'),
        ):
            with pytest.raises(CASConflictError) as caught:
                await call
            assert caught.value.key == "key"
        assert stub.faults == []


@pytest.mark.parametrize("quoted", [True, False])
@pytest.mark.parametrize(
    "version", ["*", "", '"*"', '"', '""', '"a", "b"', '"a","b"', "a,b", 'W/"a"', '"a\r\nx: y"', "ä"]
)
async def test_version_that_is_not_one_etag_matches_nothing(
    stub: StubStore, version: str, quoted: bool
) -> None:
    async with on_stub(stub, quoted_if_match=quoted) as store:
        real = await store.create("key", b"old")
        with pytest.raises(CASConflictError, match="never at version") as caught:
            await store.write("key", b"new", version)
        assert caught.value.key == "key"
        assert stub.count("write") == 1
        assert await store.read_if_changed("key", version) == StoredObject(b"old", real)


async def test_etag_without_quotes_is_one_too(stub: StubStore) -> None:
    async with on_stub(stub) as store:
        version = await store.create("key", b"old")
        await store.write("key", b"new", version.strip('"'))
    assert stub.objects["key"].body == b"new"


async def test_create_is_no_conflict_where_the_store_misses_something(stub: StubStore) -> None:
    stub.faults.append(Fault.answer(404, code="NoSuchKey"))
    async with on_stub(stub) as store:
        with pytest.raises(StorageBackendError, match="404 NoSuchKey"):
            await store.create("key", b"new")


async def test_delete_of_what_a_store_calls_missing_is_done(stub: StubStore) -> None:
    stub.faults.append(Fault.answer(404, code="NoSuchKey", on="delete"))
    async with on_stub(stub) as store:
        await store.delete("key")
    assert stub.count("delete") == 1


async def test_reads_fail_with_an_error_of_osqueue(stub: StubStore) -> None:
    faults = [
        Fault.torn(),
        Fault.drop(applied=False, on="read"),
        Fault.answer(403, on="read"),
        Fault.answer(404, code="NoSuchBucket", on="read"),
        Fault.answer(404, code="Whatever", on="read"),
        Fault.answer(503, on="read"),
    ]
    async with on_stub(stub) as store:
        version = await store.create("key", bytes(100_000))
        for fault in faults:
            stub.faults.append(fault)
            with pytest.raises(StorageBackendError, match="read of 'key'"):
                await store.read("key")
            stub.faults.append(fault)
            with pytest.raises(StorageBackendError, match="read of 'key'"):
                await store.read_if_changed("key", '"other"')
        assert await store.read_if_changed("key", version) is None
        await store.delete("key")
        with pytest.raises(StorageBackendError, match="404 NoSuchKey"):
            await store.read_if_changed("key", version)


async def test_error_inside_a_good_answer_is_unknown(stub: StubStore) -> None:
    async with on_stub(stub) as store:
        stub.faults.append(Fault.answer(200, code="InternalError", applied=True))
        with pytest.raises(StorageBackendError, match="no clear answer") as caught:
            await store.create("key", b"1")
        assert caught.value.outcome == "unknown"


async def test_answer_without_etag_is_unknown(stub: StubStore) -> None:
    client = s3_client.S3Client(OddClient(), on_stub(stub)._settings)
    with pytest.raises(StorageBackendError, match="no clear answer") as caught:
        await client.create("key", b"1")
    assert caught.value.outcome == "unknown"


async def test_redirect_is_not_followed_with_the_same_signature(stub: StubStore) -> None:
    other = f"{stub.endpoint_url}/{stub.bucket}/elsewhere"
    stub.faults.append(Fault.answer(307, code="TemporaryRedirect", headers=(("Location", other),)))
    async with on_stub(stub) as store:
        with pytest.raises(StorageBackendError, match=r"refused \(307.*set `region`") as caught:
            await store.create("key", b"1")
        assert caught.value.outcome == "not_applied"
        assert stub.objects == {}
        assert stub.count("write") == 1


async def test_bucket_in_another_region_is_found(stub: StubStore) -> None:
    place = (("x-amz-bucket-region", "eu-west-1"),)
    stub.faults.append(Fault.answer(301, code="PermanentRedirect", headers=place))
    async with on_stub(stub, region="eu-central-1") as store:
        await store.create("key", b"1")
        scopes = [seen.headers["authorization"].split("/")[2] for seen in stub.requests]
        assert scopes == ["eu-central-1", "eu-west-1"]


async def test_dead_endpoint_gives_no_clear_answer() -> None:
    (port,) = free_ports(1)
    async with S3Backend(
        BUCKET, endpoint_url=f"http://127.0.0.1:{port}", access_key_id="a", secret_access_key="b"
    ) as store:
        with pytest.raises(
            StorageBackendError, match=f"{port}: no clear answer .*check endpoint_url"
        ) as caught:
            await store.write("key", b"1", '"0"')
        assert caught.value.outcome == "unknown"
        with pytest.raises(StorageBackendError):
            await store.read("key")


async def test_key_that_is_no_text_is_refused(stub: StubStore) -> None:
    async with on_stub(stub) as store:
        with pytest.raises(StorageBackendError, match="UTF-8") as caught:
            await store.create("\ud800", b"1")
        assert caught.value.outcome == "not_applied"
        with pytest.raises(StorageBackendError) as caught:
            await store.create("", b"1")
        assert caught.value.outcome == "not_applied"


# Time.


async def test_request_without_an_answer_ends_in_time(stub: StubStore) -> None:
    async with on_stub(stub, timeout=0.3) as store:
        await store.create("key", b"1")
        for fault, call, outcome in (
            (Fault.hang(applied=False), store.create("other", b"1"), "unknown"),
            (Fault.hang(applied=False, on="delete"), store.delete("key"), "unknown"),
            (Fault.hang(applied=False, on="read"), store.read("key"), "not_applied"),
        ):
            stub.faults.append(fault)
            async with asyncio.timeout(10):
                with pytest.raises(StorageBackendError, match="no answer in time") as caught:
                    await call
            assert caught.value.outcome == outcome


async def test_large_body_has_more_time(stub: StubStore) -> None:
    async with on_stub(stub, timeout=0.3) as store:
        stub.faults.append(Fault.slow(0.6))
        with pytest.raises(StorageBackendError, match="no answer in time"):
            await store.create("small", b"1")
        stub.faults.append(Fault.slow(0.6))
        await store.create("large", bytes(2 << 20))


async def test_large_body_that_is_read_has_more_time(stub: StubStore) -> None:
    client = s3_client.S3Client(OddClient(delay=0.6), on_stub(stub, timeout=0.3)._settings)
    found = await client.read("key")
    assert found == StoredObject(bytes(2 << 20), '"1"')


class OddClient:
    """Answers as no server of the tests does: bodies come late, keys in no order, and a write has no ETag."""

    def __init__(self, *, delay: float = 0.0) -> None:
        self._delay = delay

    async def get_object(self, **request: str) -> dict[str, object]:
        return {"ContentLength": 2 << 20, "ETag": '"1"', "Body": self}

    async def read(self) -> bytes:
        await asyncio.sleep(self._delay)
        return bytes(2 << 20)

    async def __aenter__(self) -> OddClient:
        return self

    async def __aexit__(self, *error: object) -> None:
        pass

    async def list_objects_v2(self, **request: str) -> dict[str, object]:
        return {"Contents": [{"Key": key} for key in ("b", "é", "a", "B")]}

    async def put_object(self, **request: str | bytes) -> dict[str, object]:
        return {}

    async def delete_object(self, **request: str) -> dict[str, object]:
        return {}


async def test_listing_is_in_order_even_if_the_store_lists_in_none(stub: StubStore) -> None:
    client = s3_client.S3Client(OddClient(), on_stub(stub)._settings)
    assert await client.keys("") == ["B", "a", "b", "é"]


# What is sent.


async def test_listing_goes_on_over_pages() -> None:
    async with StubStore("s3", page_size=2) as stub, on_stub(stub, prefix="p/") as store:
        for key in ("c", "a", "é", "b", "d"):
            await store.create(key, b"")
        assert [key async for key in store.list("")] == ["a", "b", "c", "d", "é"]
        assert stub.count("list") == 3


async def test_body_is_sent_with_its_hash_and_at_once(stub: StubStore) -> None:
    async with on_stub(stub) as store:
        for key, size in (("empty", 0), ("small", 200_000), ("large", 2 << 20)):
            body = bytes(size)
            await store.create(key, body)
            headers = stub.requests[-1].headers
            assert (
                base64.b64decode(headers["content-md5"]) == hashlib.md5(body, usedforsecurity=False).digest()
            )
            assert "content-md5" in headers["authorization"]
            assert "expect" not in headers  # a server that takes no notice of it would be waited for
            assert headers["x-amz-content-sha256"] == "UNSIGNED-PAYLOAD"
            assert not any(name.startswith("x-amz-checksum") for name in headers)


async def test_signed_body_is_hashed(stub: StubStore) -> None:
    async with on_stub(stub, signed_payload=True) as store:
        await store.create("key", b"body")
    assert stub.requests[-1].headers["x-amz-content-sha256"] == hashlib.sha256(b"body").hexdigest()


@pytest.mark.parametrize("quoted", [True, False])
async def test_quotes_of_the_etag_are_sent_or_not(stub: StubStore, quoted: bool) -> None:
    async with on_stub(stub, quoted_if_match=quoted) as store:
        version = await store.create("key", b"1")
        assert version == f'"{hashlib.md5(b"1", usedforsecurity=False).hexdigest()}"'
        await store.write("key", b"2", version)
        assert stub.requests[-1].headers["if-match"] == (version if quoted else version.strip('"'))
        await store.read_if_changed("key", version)
        assert stub.requests[-1].headers["if-none-match"] == (version if quoted else version.strip('"'))


async def test_unchanged_object_is_known_by_its_version_if_the_store_sends_it_again(stub: StubStore) -> None:
    client = s3_client.S3Client(OddClient(), on_stub(stub)._settings)
    assert await client.read_if_changed("key", '"1"') is None


async def test_headers_of_a_provider_are_sent_and_signed(
    stub: StubStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    tigris = provider_of("https://t3.storage.dev")
    here = dataclasses.replace(tigris, domains=("127.0.0.1",))
    monkeypatch.setattr(s3_settings, "KNOWN", (here,))
    async with on_stub(stub, addressing="path") as store:
        version = await store.create("key", b"1")
        await store.write("key", b"2", version)
        await store.read("key")
    assert len(stub.requests) == 3
    for seen in stub.requests:
        assert seen.headers["x-tigris-consistent"] == "true"
        assert "x-tigris-consistent" in seen.headers["authorization"]


@pytest.mark.parametrize(
    ("endpoint_url", "region", "addressing", "interval", "largest"),
    [
        (None, None, "auto", 0.0, 5 << 30),
        ("http://127.0.0.1:9000", None, "path", 0.0, 5 << 30),
        ("https://id.r2.cloudflarestorage.com", "auto", "path", 1.0, (5 << 30) - (5 << 20)),
        ("https://id.eu.r2.cloudflarestorage.com", "auto", "path", 1.0, (5 << 30) - (5 << 20)),
        ("https://t3.storage.dev", "auto", "virtual", 0.0, 5 << 30),
        ("https://evil-r2.cloudflarestorage.com", None, "path", 0.0, 5 << 30),
    ],
)  # fmt: skip
def test_providers_are_known_by_their_hosts(
    endpoint_url: str | None, region: str | None, addressing: str, interval: float, largest: int
) -> None:
    store = S3Backend(BUCKET, endpoint_url=endpoint_url)
    assert (store._settings.region, store._settings.addressing) == (region, addressing)
    assert (store.min_write_interval, store.max_object_bytes) == (interval, largest)
    given = S3Backend(
        BUCKET, endpoint_url=endpoint_url, region="eu-1", addressing="virtual", min_write_interval=0.5
    )
    assert (given._settings.region, given._settings.addressing) == ("eu-1", "virtual")
    assert given.min_write_interval == 0.5


# One client, from first use to close.


async def test_tasks_that_begin_at_once_share_one_client(
    stub: StubStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = counting_openings(monkeypatch)
    async with on_stub(stub) as store:
        await asyncio.gather(*(store.read("key") for _ in range(8)))
        await store.read("key")
    assert len(opened) == 1


async def test_first_use_that_is_cancelled_does_not_spoil_the_next(stub: StubStore) -> None:
    async with on_stub(stub) as store:
        for turns in range(6):
            async with asyncio.TaskGroup() as group:
                first = group.create_task(store.read("key"))
                second = group.create_task(store.read("key"))
                for _ in range(turns):
                    await asyncio.sleep(0)
                first.cancel()
            assert second.result() is None


async def test_client_is_used_again_after_a_cancelled_write(
    stub: StubStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = counting_openings(monkeypatch)
    async with on_stub(stub) as store:
        version = await store.create("key", b"old")
        stub.faults.append(Fault.hang(applied=True))
        async with asyncio.TaskGroup() as group:
            write = group.create_task(store.write("key", b"new", version))
            await stub.hanging.wait()
            write.cancel()
        assert write.cancelled()
        found = await store.read("key")
        assert found is not None
        assert found.body == b"new"
        await store.write("key", b"newer", found.version)
        assert stub.count("write") == 3
    assert len(opened) == 1


async def test_nothing_is_used_after_the_close(stub: StubStore) -> None:
    unused, used = on_stub(stub), on_stub(stub)
    await used.read("key")
    for store in (unused, used):
        await store.aclose()
        await store.aclose()
        with pytest.raises(StorageBackendError, match="is closed") as caught:
            await store.create("key", b"1")
        assert caught.value.outcome == "not_applied"
    assert stub.objects == {}


async def test_close_ends_a_write_that_still_runs(stub: StubStore) -> None:
    store = on_stub(stub)
    stub.faults.append(Fault.hang(applied=True))
    async with asyncio.timeout(5), asyncio.TaskGroup() as group:
        write = group.create_task(ended(store.create("key", b"1")))
        await stub.hanging.wait()
        await store.aclose()
    error = write.result()
    assert isinstance(error, StorageBackendError)
    assert error.outcome == "unknown"


async def ended(call: Awaitable[object]) -> Exception | None:
    try:
        await call
    except (StorageBackendError, CASConflictError) as error:
        return error
    return None


def test_backend_is_made_without_an_event_loop() -> None:
    store: StorageBackend = S3Backend(BUCKET)
    assert isinstance(store, ConditionalReader)


def counting_openings(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    opened: list[object] = []
    open_client = s3_client.open_client

    async def counted(*arguments: Any) -> s3_client.S3Client:
        client = await open_client(*arguments)
        opened.append(client)
        return client

    monkeypatch.setattr(s3_client, "open_client", counted)
    return opened


# Credentials.


async def test_credentials_come_from_the_environment(
    stub: StubStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "FROMENV")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    async with S3Backend(stub.bucket, endpoint_url=stub.endpoint_url) as store:
        await store.read("key")
    assert "Credential=FROMENV/" in stub.requests[0].headers["authorization"]


async def test_credentials_come_from_a_profile(stub: StubStore, tmp_path: Path) -> None:
    (tmp_path / "credentials").write_text(
        f"[work]\naws_access_key_id=FROMPROFILE\naws_secret_access_key={SECRET}\n"
    )
    async with S3Backend(stub.bucket, endpoint_url=stub.endpoint_url, profile="work") as store:
        await store.read("key")
    assert "Credential=FROMPROFILE/" in stub.requests[0].headers["authorization"]
    async with S3Backend(stub.bucket, endpoint_url=stub.endpoint_url, profile="none") as store:
        with pytest.raises(
            StorageBackendError, match=r"profile \(none\) could not be found\. Correct the option"
        ):
            await store.read("key")


async def test_half_of_the_credentials_is_told_with_a_mend(
    stub: StubStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "A")
    async with S3Backend(stub.bucket, endpoint_url=stub.endpoint_url) as store:
        with pytest.raises(
            StorageBackendError, match=r"missing: AWS_SECRET_ACCESS_KEY\. Give both of "
        ) as caught:
            await store.read("key")
    assert caught.value.outcome == "not_applied"


async def test_missing_credentials_are_told_with_a_mend(stub: StubStore) -> None:
    async with S3Backend(stub.bucket, endpoint_url=stub.endpoint_url) as store:
        with pytest.raises(
            StorageBackendError, match="there are no credentials: give access_key_id"
        ) as caught:
            await store.create("key", b"1")
        assert caught.value.outcome == "not_applied"
    assert stub.requests == []


@pytest.mark.parametrize(
    "credentials",
    [
        f"[default]\naws_access_key_id = A\nthe secret is {SECRET}\n",
        f"aws_secret_access_key = {SECRET}\n",
        f"[default]\ncredential_process = echo {SECRET}\n",
        f"[default]\ncredential_process = sh -c 'echo {SECRET} >&2; exit 1'\n",
    ],
)  # fmt: skip
async def test_credentials_that_cannot_be_read_are_not_repeated(
    stub: StubStore, tmp_path: Path, credentials: str, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "credentials").write_text(credentials)
    caplog.set_level(logging.DEBUG, logger="osqueue_storage")
    async with S3Backend(stub.bucket, endpoint_url=stub.endpoint_url) as store:
        with pytest.raises(StorageBackendError) as caught:
            await store.create("key", b"1")
    assert caught.value.outcome == "not_applied"
    assert SECRET not in told(caught.value)
    assert stub.requests == []


async def test_credentials_that_cannot_be_renewed_are_not_repeated(stub: StubStore, tmp_path: Path) -> None:
    expired = (
        '{"Version": 1, "AccessKeyId": "A", "SecretAccessKey": "B", "Expiration": "2020-01-01T00:00:00Z"}'
    )
    script = tmp_path / "give-credentials"
    script.write_text(
        f"if [ -e {tmp_path}/again ]; then echo {SECRET} >&2; exit 1; fi\n"
        f"touch {tmp_path}/again; echo '{expired}'\n"
    )
    (tmp_path / "credentials").write_text(f"[default]\ncredential_process = sh {script}\n")
    async with S3Backend(stub.bucket, endpoint_url=stub.endpoint_url) as store:
        with pytest.raises(StorageBackendError, match="not sent: the credentials") as caught:
            await store.create("key", b"1")
    assert caught.value.outcome == "not_applied"
    assert SECRET not in told(caught.value)
    assert stub.requests == []


async def test_no_error_shows_a_credential(stub: StubStore) -> None:
    faults = [
        *LOST_ANSWERS.values(),
        *(Fault.answer(status) for status in (400, 401, 403, 404, 409, 412, 429, 501)),
    ]
    async with on_stub(stub, timeout=0.5) as store:
        for fault in faults:
            stub.objects.clear()
            stub.faults.append(fault)
            with pytest.raises((StorageBackendError, CASConflictError)) as caught:
                await store.create("key", b"1")
            for secret in (SECRET, TOKEN, "AKIDEXAMPLE"):
                assert secret not in told(caught.value)
        for shown in (repr(store), repr(store._settings), repr(vars(store))):
            for secret in (SECRET, TOKEN, "AKIDEXAMPLE"):
                assert secret not in shown
    assert repr(store) == f"S3Backend({stub.bucket!r}, prefix='', endpoint_url={stub.endpoint_url!r})"


def told(error: BaseException) -> str:
    return "\n".join([repr(error), str(vars(error)), *traceback.format_exception(error)])


async def test_password_of_a_proxy_is_in_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    (port,) = free_ports(1)
    proxies = (f"user:{PASSWORD}@127.0.0.1:{port}", f"http://user:{PASSWORD}@127.0.0.1:{port}",
               f"socks5://user:{PASSWORD}@127.0.0.1:{port}", f"http://user:{PASSWORD}@[bad:1",
               f"http://user:{PASSWORD}@host:99999", f"http://user:{PASSWORD} @127.0.0.1:{port}")  # fmt: skip
    for proxy in proxies:
        monkeypatch.setenv("http_proxy", proxy)
        async with S3Backend(
            BUCKET, endpoint_url="http://store.invalid", access_key_id="a", secret_access_key="b", region="r"
        ) as store:
            with pytest.raises(StorageBackendError) as caught:
                await store.create("key", b"1")
            assert caught.value.outcome == "unknown"
            assert PASSWORD not in told(caught.value)


async def test_store_on_this_machine_is_reached_without_a_proxy(
    stub: StubStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    (port,) = free_ports(1)
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{port}")
    async with on_stub(stub) as store:
        await store.create("key", b"1")
    assert stub.count("write") == 1


class Role:
    """Temporary credentials, and the service that gives them: silent while `may_answer` is not set."""

    def __init__(self) -> None:
        self.may_answer = asyncio.Event()
        self.asked = asyncio.Event()
        self.times = 0
        self.failure: Exception | None = None
        self.credentials = AioRefreshableCredentials(
            "first", "s", "t", self._in(3600), self._answer, "assume-role"
        )

    def set_seconds_left(self, seconds: float) -> None:
        self.credentials._expiry_time = self._in(seconds)

    def _in(self, seconds: float) -> datetime.datetime:
        return datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=seconds)

    async def _answer(self) -> dict[str, str]:
        self.times += 1
        self.asked.set()
        await self.may_answer.wait()
        if self.failure:
            raise self.failure
        return {
            "access_key": "second",
            "secret_key": "s",
            "token": "t",
            "expiry_time": self._in(3600).isoformat(),
        }


@pytest.fixture
def role(monkeypatch: pytest.MonkeyPatch) -> Role:
    role = Role()

    async def given(session: AioSession) -> object:
        return role.credentials

    monkeypatch.setattr(AioSession, "get_credentials", given)
    return role


def signers(stub: StubStore) -> list[str]:
    return [seen.headers["authorization"].partition("Credential=")[2].split("/")[0] for seen in stub.requests]


async def test_credentials_are_renewed_while_they_are_used(stub: StubStore, role: Role) -> None:
    async with S3Backend(stub.bucket, endpoint_url=stub.endpoint_url, region="r") as store:
        await store.read("key")
        role.set_seconds_left(840)
        for _ in range(3):
            async with asyncio.timeout(5):
                await store.read("key")
        assert signers(stub) == ["first"] * 4
        assert role.times == 1
        role.may_answer.set()
        while signers(stub)[-1] == "first":
            await store.read("key")
        assert role.times == 1


async def test_credentials_that_end_are_waited_for_whoever_gives_up(stub: StubStore, role: Role) -> None:
    async with S3Backend(stub.bucket, endpoint_url=stub.endpoint_url, region="r") as store:
        await store.read("key")
        role.set_seconds_left(30)
        async with asyncio.timeout(20), asyncio.TaskGroup() as group:
            first, second = (group.create_task(store.read("key")) for _ in range(2))
            await role.asked.wait()
            first.cancel()
            await asyncio.wait((first,))
            role.may_answer.set()
            assert await second is None
        assert first.cancelled()
        assert signers(stub) == ["first", "second"]
        assert role.times == 1


async def test_failed_renewal_counts_only_when_the_credentials_end(stub: StubStore, role: Role) -> None:
    role.failure = OSError("a-secret")
    role.may_answer.set()
    async with S3Backend(stub.bucket, endpoint_url=stub.endpoint_url, region="r") as store:
        await store.read("key")
        role.set_seconds_left(300)
        await store.read("key")
        await store.read("key")
        role.set_seconds_left(30)
        with pytest.raises(StorageBackendError):
            await store.read("key")
    assert signers(stub) == ["first"] * 3


async def test_close_ends_a_renewal_and_who_waits_for_it(stub: StubStore, role: Role) -> None:
    store = S3Backend(stub.bucket, endpoint_url=stub.endpoint_url, region="r")
    await store.read("key")
    role.set_seconds_left(30)
    async with asyncio.timeout(20), asyncio.TaskGroup() as group:
        write = group.create_task(ended(store.create("key", b"1")))
        await role.asked.wait()
        await store.aclose()
    error = write.result()
    assert isinstance(error, StorageBackendError)
    assert error.outcome == "not_applied"
    assert stub.count("write") == 0


# Before the first use.


@pytest.mark.parametrize(
    "arguments",
    [
        {"bucket": ""},
        {"bucket": "a/b"},
        {"bucket": "a/b", "endpoint_url": "http://host"},
        {"bucket": "..", "endpoint_url": "http://host"},
        {"bucket": ".jobs", "endpoint_url": "http://host"},
        {"bucket": "jo", "endpoint_url": "http://host"},
        {"bucket": "a" * 256, "endpoint_url": "http://host"},
        {"bucket": "Jobs"},
        {"bucket": "jobs_x"},
        {"bucket": "jo"},
        {"bucket": "a" * 64},
        {"bucket": "jobs-"},
        {"bucket": "jobs\n"},
        {"bucket": "jobs..x"},
        {"bucket": "192.168.5.4"},
        {"prefix": "team/../"},
        {"prefix": "\ud800"},
        {"region": "eu west"},
        {"endpoint_url": "127.0.0.1:9000"},
        {"endpoint_url": "ftp://host"},
        {"endpoint_url": f"https://user:{SECRET}@host"},
        {"endpoint_url": f"https://host/?key={SECRET}"},
        {"endpoint_url": f"https://host:{SECRET}"},
        {"addressing": "host"},
        {"timeout": 0},
        {"min_write_interval": -1},
        {"min_write_interval": float("nan")},
        {"access_key_id": "A"},
        {"secret_access_key": SECRET},
        {"session_token": SECRET},
        {"profile": "work", "access_key_id": "A", "secret_access_key": SECRET},
        {"access_key_id": "A", "secret_access_key": f"{SECRET}\n"},
    ],
    ids=str,
)  # fmt: skip
def test_argument_that_cannot_be_right_is_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        S3Backend(**({"bucket": BUCKET} | arguments))
    assert SECRET not in told(caught.value)


@pytest.mark.parametrize(
    "arguments",
    [
        {"bucket": "abc"},
        {"bucket": "my.jobs-2.example"},
        {"bucket": "1.2.3"},
        {"bucket": "a" * 63},
        {"bucket": "arn:aws:s3:eu-central-1:123456789012:accesspoint/jobs"},
        {"bucket": "Jobs_of_2010", "addressing": "path"},
        {"bucket": "Jobs_x", "endpoint_url": "http://host"},
        {"bucket": "a" * 255, "endpoint_url": "http://host"},
    ],
    ids=str,
)
def test_bucket_may_have_any_name_that_its_store_allows(arguments: dict[str, Any]) -> None:
    assert repr(S3Backend(**arguments)).startswith(f"S3Backend('{arguments['bucket']}'")


def test_missing_library_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"osqueue-storage\[s3\]"):
        S3Backend(BUCKET)


def test_backend_is_imported_and_made_without_the_heavy_libraries() -> None:
    program = (
        "import sys; from osqueue_storage.s3 import S3Backend; S3Backend('bucket')\n"
        "assert not {'aiohttp', 'botocore', 'aiobotocore.session'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=30)


async def test_aiohttp_that_cannot_be_kept_from_sending_again_is_refused(
    stub: StubStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(session: object) -> object:
        raise AttributeError

    renamed = property(missing, lambda session, value: None)
    monkeypatch.setattr(aiohttp.ClientSession, "_retry_connection", renamed, raising=False)
    async with on_stub(stub) as store:
        with pytest.raises(ConfigError, match="sending a write twice"):
            await store.create("key", b"1")
    assert stub.requests == []
