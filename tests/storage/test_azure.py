"""Azure Blob Storage: the contract on Azurite, and what goes wrong on the stub."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
import time
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlencode

import pytest
from storage.conftest import Keep
from storage.servers.azurite import Azurite, signature
from storage.servers.process import free_ports
from storage.stub import Fault, StubFaultInjector, StubStore

from osqueue_storage import CASConflictError, ConfigError, StorageBackendError, StoredObject, azure, probe
from osqueue_storage.azure import AzureBackend
from osqueue_storage.contract import (
    CONTRACT,
    FAULT_CONTRACT,
    PROCESS_CONTRACT,
    Check,
    FaultCheck,
    WriteFault,
)

# The first test that needs Azurite installs it, if it is not there.
pytestmark = [pytest.mark.usefixtures("credentials"), pytest.mark.timeout(360)]

MIB = 1024 * 1024
ACCOUNT = "devstoreaccount1"
KEY = "c2VjcmV0LWtleQ=="
SAS = "sv=2023-11-03&sp=rwdl&sig=SECRETSIG%3D"
ETAG = '"0x1"'

Call = Callable[[AzureBackend], Awaitable[object]]

CHANGES: dict[str, Call] = {
    "write": lambda backend: backend.write("key", b"new", ETAG),
    "create": lambda backend: backend.create("key", b"new"),
    "delete": lambda backend: backend.delete("key"),
}
READS: dict[str, Call] = {
    "read": lambda backend: backend.read("key"),
    "read_if_changed": lambda backend: backend.read_if_changed("key", ETAG),
    "list": lambda backend: _listed(backend, ""),
}


@pytest.fixture
def server(azurite_server: Azurite) -> Azurite:
    return azurite_server


@pytest.fixture
async def stub() -> AsyncIterator[StubStore]:
    async with asyncio.timeout(30), StubStore("azure", page_size=2) as stub:
        yield stub


@pytest.fixture
async def backend(stub: StubStore) -> AsyncIterator[AzureBackend]:
    async with _backend(stub) as backend:
        yield backend


def _unavailable(reason: str) -> None:
    """Skip; but fail where everything is to be tested."""
    (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)


def _on(server: Azurite, **options: Any) -> Callable[[], AzureBackend]:
    options = {"account_key": server.account_key, "container": server.container, **options}
    return partial(AzureBackend, account=server.account, endpoint_url=server.endpoint_url, **options)


def _backend(stub: StubStore, **options: Any) -> AzureBackend:
    if not {"credential", "sas_token"} & options.keys():
        options = {"account_key": KEY, **options}
    options = {"timeout": 5.0, "container": stub.bucket, **options}
    return AzureBackend(account=ACCOUNT, endpoint_url=stub.endpoint_url, **options)


def _operation(change: str) -> Literal["write", "delete"]:
    return "delete" if change == "delete" else "write"


async def _listed(backend: AzureBackend, prefix: str) -> list[str]:
    return [key async for key in backend.list(prefix)]


@asynccontextmanager
async def _answering(answer: bytes) -> AsyncIterator[tuple[str, list[bytes]]]:
    """Give every request the same answer; yield the server's URL and the heads of the requests."""
    heads: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(answer)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", heads


# The contract


@pytest.mark.parametrize("prefix", ["", "a prefix/ü"])
@pytest.mark.parametrize("check", CONTRACT, ids=lambda check: check.__name__)
async def test_backend_keeps_the_contract_on_azurite(
    server: Azurite, check: Check, prefix: str, keep: Keep
) -> None:
    await keep(check, _on(server, prefix=prefix))


@pytest.mark.parametrize("check", PROCESS_CONTRACT, ids=lambda check: check.__name__)
async def test_backend_keeps_the_contract_between_processes(
    server: Azurite, check: Check, keep: Keep
) -> None:
    await keep(check, _on(server))


@pytest.mark.parametrize("check", CONTRACT, ids=lambda check: check.__name__)
async def test_backend_keeps_the_contract_on_the_stub(stub: StubStore, check: Check, keep: Keep) -> None:
    await keep(check, lambda: _backend(stub))


@pytest.mark.parametrize(
    "fault", [fault for fault in WriteFault if fault is not WriteFault.CONFLICTING_OPERATION]
)
@pytest.mark.parametrize("check", FAULT_CONTRACT, ids=lambda check: check.__name__)
async def test_failed_writes_are_told_as_they_are(
    stub: StubStore, check: FaultCheck, fault: WriteFault
) -> None:
    await check(lambda: _backend(stub, timeout=0.3), StubFaultInjector(stub), fault)


async def test_probe_passes_on_azurite(server: Azurite) -> None:
    async with _on(server)() as backend:
        await probe(backend)


async def test_odd_keys_are_kept_apart_or_refused(server: Azurite) -> None:
    kept = ["odd/a", "odd/a/b", "odd/%41", "odd/A", "odd/a%2Fb", "odd/a%2fb", "odd/ä ö", "odd/键", "odd/a b?c#d",
            "odd//x", "odd/.hidden", "odd/..hidden/x", "odd/a+b&c=d;e~f'(g)*!$,:@[h]"]  # fmt: skip
    async with _on(server)() as backend:
        for key in kept:
            await backend.create(key, key.encode())
        for key in kept:
            assert (await backend.read(key) or StoredObject(b"", "")).body == key.encode()
        assert await _listed(backend, "odd/") == sorted(kept, key=str.encode)
        for key in ("odd/.", "odd/..", "odd/../up", "odd/x./y", "odd/x.", "odd/x/", "odd\\x", "", "\ud800"):
            for call in (backend.read(key), backend.create(key, b""), backend.delete(key)):
                with pytest.raises(StorageBackendError) as caught:
                    await call
                assert caught.value.outcome == "not_applied"


# Answers and what they mean


@pytest.mark.parametrize("status", [400, 401, 403, 405, 411, 412, 413])
@pytest.mark.parametrize("change", CHANGES)
async def test_refused_change_was_not_applied(
    stub: StubStore, backend: AzureBackend, change: str, status: int
) -> None:
    stub.faults.append(Fault.answer(status, code="LeaseIdMissing", on=_operation(change)))
    with pytest.raises(StorageBackendError, match=f"status {status} LeaseIdMissing.*break it") as caught:
        await CHANGES[change](backend)
    assert caught.value.outcome == "not_applied"


@pytest.mark.parametrize("status", [307, 408, 409, 418, 429, 500, 502, 503, 504])
@pytest.mark.parametrize("change", CHANGES)
async def test_unclear_answer_to_a_change_is_unknown(
    stub: StubStore, backend: AzureBackend, change: str, status: int
) -> None:
    elsewhere = (("Location", f"{stub.endpoint_url}/elsewhere"),)
    stub.faults.append(
        Fault.answer(status, code="ContainerBeingDeleted", on=_operation(change), headers=elsewhere)
    )
    with pytest.raises(StorageBackendError, match=f"status {status}") as caught:
        await CHANGES[change](backend)
    assert caught.value.outcome == "unknown"
    assert len(stub.requests) == 1


@pytest.mark.parametrize(
    "status",
    [b"400 Bad Request", b"403 Forbidden", b"404 Not Found", b"409 Conflict", b"412 Precondition Failed"],
)
@pytest.mark.parametrize("change", CHANGES)
async def test_refusal_that_is_not_of_azure_is_unknown(change: str, status: bytes) -> None:
    async with (
        _answering(b"HTTP/1.1 %s\r\nContent-Length: 0\r\n\r\n" % status) as (url, heads),
        AzureBackend("container", account=ACCOUNT, account_key=KEY, endpoint_url=url) as backend,
    ):
        with pytest.raises(StorageBackendError) as caught:
            await CHANGES[change](backend)
        assert caught.value.outcome == "unknown"
        assert len(heads) == 1


@pytest.mark.parametrize("fault", [Fault.drop, Fault.garbage, Fault.hang])
@pytest.mark.parametrize("change", CHANGES)
async def test_change_without_an_answer_is_unknown_and_sent_once(
    stub: StubStore, change: str, fault: Callable[..., Fault]
) -> None:
    async with _backend(stub, timeout=0.3) as backend:
        stored = await backend.create("other", b"")  # the connection is one that was used before
        assert stored
        sent = len(stub.requests)
        stub.faults.append(fault(applied=True, on=_operation(change)))
        with pytest.raises(StorageBackendError, match=r"^cannot ") as caught:
            await CHANGES[change](backend)
        assert caught.value.outcome == "unknown"
        assert len(stub.requests) == sent + 1


@pytest.mark.parametrize("read", READS)
@pytest.mark.parametrize(
    "fault", [Fault.answer(500, on="read"), Fault.drop(applied=True, on="read"), Fault.torn(on="read"),
              Fault.hang(applied=True, on="read"), Fault.garbage(applied=True, on="read"),
              Fault.answer(404, code="ContainerNotFound", on="read")],
    ids=["500", "drop", "torn", "hang", "garbage", "404"],
)  # fmt: skip
async def test_failed_read_is_an_error_and_not_a_missing_object(
    stub: StubStore, read: str, fault: Fault
) -> None:
    async with _backend(stub, timeout=0.3) as backend:
        await backend.create("key", b"x" * 1000)
        stub.faults.append(replace(fault, on="list" if read == "list" else "read"))
        with pytest.raises(StorageBackendError, match=r"^cannot ") as caught:
            await READS[read](backend)
        assert caught.value.outcome == "not_applied"
        assert len(stub.requests) == 2


async def test_create_over_existing_is_a_conflict_and_names_the_key(server: Azurite) -> None:
    async with _on(server)() as backend:
        version = await backend.create("conflicts", b"old")
        with pytest.raises(CASConflictError, match="'conflicts' exists already") as caught:
            await backend.create("conflicts", b"new")
        assert caught.value.key == "conflicts"
        assert await backend.read("conflicts") == StoredObject(b"old", version)


@pytest.mark.parametrize("answer", [(412, "ConditionNotMet"), (404, "BlobNotFound")])
async def test_write_that_finds_no_such_version_is_a_conflict(
    stub: StubStore, backend: AzureBackend, answer: tuple[int, str]
) -> None:
    stub.faults.append(Fault.answer(answer[0], code=answer[1]))
    with pytest.raises(CASConflictError, match=r"'key' is not at version \"0x1\"") as caught:
        await backend.write("key", b"", ETAG)
    assert caught.value.outcome == "not_applied"


@pytest.mark.parametrize("version", ["*", '"*"', '"a","b"', "", "0x1", '"*", "0x1"', '"a"\r\nx: y', "ä"])
async def test_version_that_azure_never_gave_matches_nothing(
    stub: StubStore, backend: AzureBackend, version: str
) -> None:
    real = await backend.create("key", b"old")
    with pytest.raises(CASConflictError):
        await backend.write("key", b"new", version)
    assert stub.count("write") == 1
    assert await backend.read_if_changed("key", version) == StoredObject(b"old", real)


async def test_missing_object_cannot_be_read_for_changes(server: Azurite) -> None:
    async with _on(server)() as backend:
        with pytest.raises(StorageBackendError, match="cannot read 'none'"):
            await backend.read_if_changed("none", ETAG)


@pytest.mark.parametrize("call", [*CHANGES, *READS])
async def test_missing_container_is_refused_with_advice(server: Azurite, call: str) -> None:
    async with _on(server, container="no-such-container")() as backend:
        with pytest.raises(
            StorageBackendError, match=r"status 404 ContainerNotFound\. Create the container"
        ) as caught:
            await (CHANGES | READS)[call](backend)
        assert caught.value.outcome == "not_applied"


@pytest.mark.parametrize("call", [*CHANGES, *READS])
async def test_wrong_key_is_refused_with_advice(server: Azurite, call: str) -> None:
    async with _on(server, account_key=KEY)() as backend:
        with pytest.raises(StorageBackendError, match=r"status 403 .*Check account_key") as caught:
            await (CHANGES | READS)[call](backend)
        assert caught.value.outcome == "not_applied"
        assert KEY not in "".join(traceback.format_exception(caught.value))


async def test_endpoint_without_the_account_is_told(server: Azurite) -> None:
    without = server.endpoint_url.removesuffix(f"/{ACCOUNT}")
    async with _on(replace(server, endpoint_url=without))() as backend:
        with pytest.raises(
            StorageBackendError, match=r"status 400\. Check endpoint_url: .* ends in /ACCOUNT$"
        ):
            await backend.read("key")


async def test_400_of_azure_itself_says_nothing_of_the_endpoint(
    stub: StubStore, backend: AzureBackend
) -> None:
    stub.faults.append(Fault.answer(400, code="InvalidHeaderValue", on="read"))
    with pytest.raises(StorageBackendError, match=r"status 400 InvalidHeaderValue$"):
        await backend.read("key")


@pytest.mark.parametrize("call", [*CHANGES, *READS])
async def test_dead_endpoint_is_an_error(call: str) -> None:
    (port,) = free_ports(1)
    url = f"http://127.0.0.1:{port}"
    async with AzureBackend("container", account=ACCOUNT, account_key=KEY, endpoint_url=url) as backend:
        with pytest.raises(
            StorageBackendError, match=f"cannot .*{port}.*: connection refused: check endpoint_url"
        ) as caught:
            await (CHANGES | READS)[call](backend)
        assert caught.value.outcome == ("unknown" if call in CHANGES else "not_applied")


# Listing


async def test_listing_goes_through_all_pages(stub: StubStore, backend: AzureBackend) -> None:
    keys = [f"l/{number}" for number in range(7)]
    for key in keys:
        await backend.create(key, b"")
    assert await _listed(backend, "l/") == keys
    assert stub.count("list") == 4


async def test_listed_names_that_xml_cannot_hold_are_decoded() -> None:
    xml = (
        b'<?xml version="1.0"?><EnumerationResults><Blobs><Blob><Name Encoded="true">p/%01%25</Name></Blob>'
        b"<Blob><Name>p/%25</Name></Blob></Blobs><NextMarker/></EnumerationResults>"
    )
    async with (
        _answering(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(xml), xml)) as (url, _),
        AzureBackend("container", account=ACCOUNT, account_key=KEY, endpoint_url=url, prefix="p/") as backend,
    ):
        assert await _listed(backend, "") == ["\x01%", "%25"]


async def test_listing_that_is_not_xml_is_an_error() -> None:
    async with (
        _answering(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nlogin") as (url, _),
        AzureBackend("container", account=ACCOUNT, account_key=KEY, endpoint_url=url) as backend,
    ):
        with pytest.raises(StorageBackendError, match="the answer is no listing"):
            await _listed(backend, "")


# Time


async def test_time_limit_grows_with_the_body_that_is_written(stub: StubStore) -> None:
    async with _backend(stub, timeout=0.2) as backend:
        stub.faults.append(Fault.slow(0.6))
        await backend.create("large", bytes(2 * MIB))
        stub.faults.append(Fault.hang(applied=False))
        with pytest.raises(StorageBackendError, match=r"no answer within 0\.2 s"):
            await backend.create("small", b"")


async def test_time_limit_grows_with_the_body_that_is_read(stub: StubStore) -> None:
    async with _backend(stub, timeout=0.2) as backend:
        await backend.create("large", bytes(2 * MIB))
        stub.faults.append(Fault.pause(0.6))
        found = await backend.read("large")
        assert found is not None
        assert found.body == bytes(2 * MIB)


async def test_write_cancelled_on_its_way_leaves_the_backend_usable(stub: StubStore) -> None:
    async with _backend(stub) as backend:
        stub.faults.append(Fault.hang(applied=True))
        async with asyncio.TaskGroup() as group:
            writing = group.create_task(backend.create("key", b"1"))
            await stub.hanging.wait()
            writing.cancel()
        assert writing.cancelled()
        found = await backend.read("key")
        assert found is not None
        await backend.write("key", b"2", found.version)
        assert stub.objects["key"].body == b"2"


# Opening and closing


async def test_many_calls_at_once_share_the_connections(stub: StubStore) -> None:
    async with _backend(stub) as backend:
        await backend.read("key")  # the first call waits for the import of the library
        await asyncio.gather(*(backend.read(f"key{number}") for number in range(20)))
        opened = stub.connections
        await asyncio.gather(*(backend.read(f"key{number}") for number in range(20)))
        assert stub.connections == opened


async def test_closed_backend_refuses_and_may_be_closed_again(stub: StubStore) -> None:
    backend = _backend(stub)
    await backend.create("key", b"")
    await backend.aclose()
    await backend.aclose()
    for call in (CHANGES | READS).values():
        with pytest.raises(StorageBackendError, match="closed") as caught:
            await call(backend)
        assert caught.value.outcome == "not_applied"
    assert len(stub.requests) == 1


async def test_closing_under_a_write_leaves_its_outcome_unknown(stub: StubStore) -> None:
    backend = _backend(stub)
    stub.faults.append(Fault.hang(applied=False))
    writing = asyncio.ensure_future(backend.create("key", b""))
    await stub.hanging.wait()
    await backend.aclose()
    with pytest.raises(StorageBackendError) as caught:
        await writing
    assert caught.value.outcome == "unknown"


def test_backend_is_made_without_an_event_loop() -> None:
    backend = AzureBackend("container", account=ACCOUNT, account_key=KEY, prefix="p/")
    assert repr(backend) == (
        f"AzureBackend('container', prefix='p/', endpoint_url='https://{ACCOUNT}.blob.core.windows.net')"
    )
    assert (backend.min_write_interval, backend.slowest_write_interval) == (0.0, 0.0)
    assert backend.max_object_bytes == 5_242_880_000
    asyncio.run(backend.aclose())


def test_module_is_imported_without_its_extra() -> None:
    code = (
        "import sys; sys.modules['aiohttp'] = None; sys.modules['azure'] = None\n"
        "from osqueue_storage import ConfigError\nfrom osqueue_storage.azure import AzureBackend\n"
        "for key in ('aaaa', None):\n"
        "    try: AzureBackend('container', account='account', account_key=key)\n"
        "    except ConfigError as error: print(error.message)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30
    )
    first, second = done.stdout.splitlines()
    assert first == "AzureBackend needs more than is installed: pip install 'osqueue-storage[azure]'"
    assert second.startswith("AzureBackend without account_key and sas_token needs more than is installed")


# Arguments


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"container": "Upper"}, "no name of a container"),
        ({"container": "a"}, "no name of a container"),
        ({"container": "two--hyphens"}, "no name of a container"),
        ({"container": "name\n"}, "no name of a container"),
        ({"account": None}, r"the storage account is missing: az://container\?account=NAME"),
        ({"prefix": "a/../"}, "prefix must have no part"),
        ({"account": "with.dots"}, "account must be"),
        ({"account_key": "SECRET not base64"}, "account_key is not base64"),
        ({"account_key": None, "sas_token": "SECRET"}, "sas_token is not one"),
        ({"account_key": None, "sas_token": "?sv=1&sig=SECRET\r\nx: y"}, "sas_token is not one"),
        ({"sas_token": SAS}, "takes one of"),
        ({"endpoint_url": "https://user:SECRET@host"}, "endpoint_url must look like"),
        ({"endpoint_url": "https://host/?sig=SECRET"}, "endpoint_url must look like"),
        ({"endpoint_url": "https://host:SECRET/"}, "endpoint_url must look like"),
        ({"endpoint_url": "ftp://host"}, "endpoint_url must look like"),
        ({"endpoint_url": "host"}, "endpoint_url must look like"),
        ({"account_key": None, "sas_token": SAS, "endpoint_url": "http://example.com"}, "not sent over http"),
        ({"account_key": None, "endpoint_url": "http://192.0.2.1"}, "not sent over http"),
        ({"timeout": 0.0}, "timeout must be"),
        ({"min_write_interval": -1.0}, "min_write_interval must be"),
        ({"min_write_interval": float("nan")}, "min_write_interval must be"),
    ],
)
def test_argument_that_cannot_be_right_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        AzureBackend(**({"container": "container", "account": ACCOUNT, "account_key": KEY} | options))
    assert "SECRET" not in "".join(traceback.format_exception(caught.value))


# Credentials


@dataclass
class Token:
    token: str
    expires_on: int


@dataclass
class FakeCredential:
    """Gives tokens that last for `seconds`, numbered; with `failure`, it raises that instead."""

    seconds: float = 3600
    failure: Exception | None = None
    asked: int = 0
    closed: bool = False
    scopes: set[tuple[str, ...]] = field(default_factory=set)
    answering: asyncio.Event | None = None

    async def get_token(self, *scopes: str) -> Token:
        self.asked += 1
        self.scopes.add(scopes)
        await (self.answering.wait() if self.answering else asyncio.sleep(0))
        if self.failure:
            raise self.failure
        return Token(f"token{self.asked}", int(time.time() + self.seconds))

    async def close(self) -> None:
        self.closed = True


def _authorizations(stub: StubStore) -> list[str]:
    return [seen.headers.get("authorization", "") for seen in stub.requests]


async def test_one_token_serves_many_requests_and_the_credential_stays_open(stub: StubStore) -> None:
    credential = FakeCredential()
    async with _backend(stub, credential=credential) as backend:
        await asyncio.gather(*(backend.read("key") for _ in range(8)))
        await backend.read("key")
    assert _authorizations(stub) == ["Bearer token1"] * 9
    assert credential.scopes == {("https://storage.azure.com/.default",)}
    assert not credential.closed


async def test_token_is_replaced_before_it_ends_while_it_is_still_used(stub: StubStore) -> None:
    credential = FakeCredential(seconds=200)
    async with _backend(stub, credential=credential) as backend:
        await backend.read("key")
        credential.answering = asyncio.Event()
        for _ in range(3):
            async with asyncio.timeout(5):
                await backend.read("key")
        assert _authorizations(stub) == ["Bearer token1"] * 4
        assert credential.asked == 2
        credential.answering.set()
        while _authorizations(stub)[-1] == "Bearer token1":
            await backend.read("key")
    assert _authorizations(stub)[-1] == "Bearer token2"


async def test_request_that_gives_up_does_not_end_the_renewal_of_a_token(stub: StubStore) -> None:
    credential = FakeCredential(answering=asyncio.Event())
    async with _backend(stub, credential=credential) as backend:
        for _ in range(3):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.02):
                    await backend.read("key")
        assert credential.answering is not None
        credential.answering.set()
        await backend.read("key")
    assert credential.asked == 1


async def test_token_that_is_still_good_is_used_while_there_is_no_other(stub: StubStore) -> None:
    credential = FakeCredential(seconds=200)
    async with _backend(stub, credential=credential) as backend:
        await backend.read("key")
        credential.failure = OSError("no network")
        await backend.read("key")
        await backend.read("key")
    assert _authorizations(stub) == ["Bearer token1"] * 3
    assert credential.asked >= 2


@pytest.mark.parametrize("seconds", [200, -1])
async def test_backend_that_is_closed_while_it_gets_a_token_sends_nothing(
    stub: StubStore, seconds: int
) -> None:
    credential = FakeCredential(seconds=seconds)
    backend = _backend(stub, credential=credential)
    await backend.read("key")
    credential.answering = asyncio.Event()
    if seconds > 0:
        await backend.read("key")
    else:
        writing = asyncio.ensure_future(backend.create("key", b""))
        while credential.asked < 2:
            await asyncio.sleep(0)
    await backend.aclose()
    if seconds < 0:
        with pytest.raises(StorageBackendError, match="closed") as caught:
            await writing
        assert caught.value.outcome == "not_applied"
    assert stub.count("write") == 0
    assert len(asyncio.all_tasks()) == 1 + len(stub._serving)


async def test_token_that_was_not_accepted_is_not_used_again(stub: StubStore) -> None:
    async with _backend(stub, credential=FakeCredential()) as backend:
        stub.faults.append(Fault.answer(401, on="read"))
        with pytest.raises(StorageBackendError, match=r"status 401 .*Check the credentials"):
            await backend.read("key")
        await backend.read("key")
    assert _authorizations(stub) == ["Bearer token1", "Bearer token2"]


@pytest.mark.parametrize("failure", [ValueError("not signed in\nsecond line"), OSError("not signed in")])
async def test_no_token_means_that_nothing_was_sent(stub: StubStore, failure: Exception) -> None:
    async with _backend(stub, credential=FakeCredential(failure=failure)) as backend:
        with pytest.raises(StorageBackendError, match=r"no access token .*: not signed in\. Pass ") as caught:
            await backend.create("key", b"")
    assert caught.value.outcome == "not_applied"
    assert stub.requests == []


async def test_token_is_not_waited_for_longer_than_a_request(stub: StubStore) -> None:
    async with _backend(stub, credential=FakeCredential(answering=asyncio.Event()), timeout=0.1) as backend:
        with pytest.raises(StorageBackendError, match=r"no access token .*TimeoutError") as caught:
            await backend.create("key", b"")
    assert caught.value.outcome == "not_applied"


async def test_task_that_gives_up_waiting_for_a_token_does_not_hold_up_others(stub: StubStore) -> None:
    credential = FakeCredential(answering=asyncio.Event())
    async with _backend(stub, credential=credential) as backend, asyncio.TaskGroup() as group:
        first, second = (group.create_task(backend.read("key")) for _ in range(2))
        while not credential.asked:
            await asyncio.sleep(0)
        first.cancel()
        assert credential.answering is not None
        credential.answering.set()
        assert await second is None


async def test_credentials_of_the_platform_are_used_without_any_argument(
    stub: StubStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    try:
        import azure.identity  # noqa: F401
    except ImportError:
        _unavailable("azure-identity is not installed")
    token = {
        "access_token": "FROMPLATFORM",
        "expires_on": str(int(time.time()) + 3600),
        "token_type": "Bearer",
    }
    body = json.dumps(token | {"resource": "https://storage.azure.com"}).encode()
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
    async with _answering(head + body) as (
        url,
        heads,
    ):  # as Azure's App Service has it for managed identities
        monkeypatch.setenv("IDENTITY_ENDPOINT", f"{url}/msi/token")
        monkeypatch.setenv("IDENTITY_HEADER", "header")
        monkeypatch.setenv("AZURE_TOKEN_CREDENTIALS", "prod")
        async with AzureBackend(stub.bucket, account=ACCOUNT, endpoint_url=stub.endpoint_url) as backend:
            await backend.read("key")
            await backend.read("key")
    assert _authorizations(stub) == ["Bearer FROMPLATFORM"] * 2
    assert len(heads) == 1


async def test_key_of_the_environment_is_used_for_its_account(
    stub: StubStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT", ACCOUNT)
    monkeypatch.setenv("AZURE_STORAGE_KEY", KEY)
    monkeypatch.setenv("AZURE_STORAGE_SAS_TOKEN", SAS)
    for account in (None, ACCOUNT):
        async with AzureBackend(stub.bucket, account=account, endpoint_url=stub.endpoint_url) as backend:
            await backend.read("key")
    assert all(header.startswith(f"SharedKey {ACCOUNT}:") for header in _authorizations(stub))
    with pytest.raises(ConfigError, match="a token is not sent over http"):  # the key is for another account
        AzureBackend("container", account="another", endpoint_url="http://192.0.2.1")


async def test_sas_token_of_the_environment_is_used(stub: StubStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_STORAGE_SAS_TOKEN", f"?{SAS}")
    async with AzureBackend(stub.bucket, account=ACCOUNT, endpoint_url=stub.endpoint_url) as backend:
        await backend.read("key")
        await _listed(backend, "")
    for seen in stub.requests:
        assert (seen.query["sv"], seen.query["sig"]) == ("2023-11-03", "SECRETSIG=")
        assert "authorization" not in seen.headers


async def test_azurite_takes_a_sas_token(server: Azurite) -> None:
    fields = {"sp": "rcwdl", "se": "2099-01-01T00:00:00Z", "sv": "2023-11-03", "sr": "c"}
    lines = [fields["sp"], "", fields["se"], f"/blob/{server.account}/{server.container}", "", "", "",
             fields["sv"], fields["sr"], *[""] * 7]  # fmt: skip
    token = urlencode(fields | {"sig": signature("\n".join(lines))})
    async with _on(server, account_key=None, sas_token=token)() as backend:
        version = await backend.create("sas/ä b", b"1")
        await backend.write("sas/ä b", b"2", version)
        assert await _listed(backend, "sas/") == ["sas/ä b"]
        await backend.delete("sas/ä b")


@pytest.mark.parametrize(
    "fault", [Fault.drop(applied=False), Fault.garbage(applied=False), Fault.hang(applied=False),
              Fault.answer(403)],
    ids=["drop", "garbage", "hang", "403"],
)  # fmt: skip
async def test_sas_token_is_in_no_error(stub: StubStore, fault: Fault) -> None:
    async with _backend(stub, sas_token=SAS, timeout=0.3) as backend:
        stub.faults.append(fault)
        with pytest.raises(StorageBackendError) as caught:
            await backend.create("key", b"")
        assert "SECRETSIG" not in "".join(traceback.format_exception(caught.value)) + repr(backend)


async def test_token_is_in_no_error(stub: StubStore) -> None:
    async with _backend(stub, credential=FakeCredential()) as backend:
        stub.faults.append(Fault.garbage(applied=False))
        with pytest.raises(StorageBackendError) as caught:
            await backend.create("key", b"")
        shown = "".join(traceback.format_exception(caught.value))
        assert "token1" not in shown + repr(caught.value.__cause__)


async def test_proxy_of_the_environment_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = b'HTTP/1.1 200 OK\r\nETag: "0x1"\r\nContent-Length: 1\r\n\r\nx'
    async with _answering(answer) as (proxy, heads):
        monkeypatch.setenv("http_proxy", proxy)
        async with AzureBackend(
            "container", account=ACCOUNT, account_key=KEY, endpoint_url="http://store.invalid"
        ) as backend:
            assert await backend.read("key") == StoredObject(b"x", ETAG)
    assert heads[0].startswith(b"GET http://store.invalid/container/key HTTP/1.1\r\n")


async def test_emulator_on_this_machine_is_reached_without_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    async with _answering(b"") as (proxy, heads):
        monkeypatch.setenv("http_proxy", proxy)  # it would read the SAS token
        (port,) = free_ports(1)
        async with AzureBackend(
            "container", account=ACCOUNT, sas_token=SAS, endpoint_url=f"http://127.0.0.1:{port}"
        ) as backend:
            with pytest.raises(StorageBackendError):
                await backend.read("key")
    assert heads == []


async def test_password_of_a_proxy_is_in_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", "me:SECRET@proxy:3128")
    with pytest.raises(ConfigError, match=r"must look like http://host:3128$") as refused:
        AzureBackend("container", account=ACCOUNT, account_key=KEY)
    assert "SECRET" not in "".join(traceback.format_exception(refused.value))
    (port,) = free_ports(1)
    for host in ("127.0.0.1", "exa%20mple", "a\\b"):
        # also one that the check lets pass, should there be any
        monkeypatch.setattr(azure, "proxy_for", lambda url, host=host: f"http://me:SECRET@{host}:{port}")
        async with AzureBackend("container", account=ACCOUNT, account_key=KEY) as backend:
            with pytest.raises(StorageBackendError) as caught:
                await backend.read("key")
        assert "SECRET" not in "".join(traceback.format_exception(caught.value))


# The server for the tests


def test_lock_file_names_no_registry_and_pins_what_package_json_names() -> None:
    folder = Path(__file__).parent / "azurite"
    lock = (folder / "package-lock.json").read_text()
    assert "resolved" not in lock
    (pinned,) = re.findall(r'"azurite": "([^"]+)"', (folder / "package.json").read_text())
    assert re.fullmatch(r"[0-9.]+", pinned)
    assert f'"node_modules/azurite": {{\n      "version": "{pinned}"' in lock
