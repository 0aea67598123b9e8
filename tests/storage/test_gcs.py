"""Google Cloud Storage: the contract on fake-gcs-server, and what goes wrong on the stub."""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
import threading
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from google.auth.credentials import Credentials
from google.auth.exceptions import DefaultCredentialsError, RefreshError
from storage.conftest import Keep
from storage.servers.fake_gcs import FakeGCS
from storage.servers.process import free_ports
from storage.stub import Fault, StubFaultInjector, StubStore
from storage.stub_dialects import Operation

from osqueue_storage import CASConflictError, ConfigError, StorageBackendError, StoredObject, gcs, probe
from osqueue_storage.contract import (
    CONTRACT,
    FAULT_CONTRACT,
    PROCESS_CONTRACT,
    Check,
    FaultCheck,
    WriteFault,
)
from osqueue_storage.gcs import GCSBackend

MIB = 1024 * 1024

Change = Callable[[GCSBackend], Awaitable[object]]

CHANGES: dict[str, Change] = {
    "write": lambda backend: backend.write("key", b"new", "1"),
    "create": lambda backend: backend.create("key", b"new"),
    "delete": lambda backend: backend.delete("key"),
}
READS: dict[str, Change] = {
    "read": lambda backend: backend.read("key"),
    "read_if_changed": lambda backend: backend.read_if_changed("key", "1"),
    "list": lambda backend: _listed(backend, ""),
}


@pytest.fixture
def server(fake_gcs_server: FakeGCS) -> FakeGCS:
    return fake_gcs_server


@pytest.fixture
async def stub() -> AsyncIterator[StubStore]:
    async with asyncio.timeout(50), StubStore("gcs", page_size=2) as stub:
        yield stub


@pytest.fixture
async def backend(stub: StubStore) -> AsyncIterator[GCSBackend]:
    async with _backend(stub) as backend:
        yield backend


def _backend(stub: StubStore, **options: Any) -> GCSBackend:
    options = {"anonymous": "credentials" not in options, "timeout": 20.0, "min_write_interval": 0, **options}
    return GCSBackend(stub.bucket, endpoint_url=stub.endpoint_url, **options)


def _on(server: FakeGCS, **options: Any) -> Callable[[], GCSBackend]:
    options = {"anonymous": True, "min_write_interval": 0, **options}  # the server takes writes at any rate
    return partial(GCSBackend, server.bucket, endpoint_url=server.endpoint_url, **options)


async def _listed(backend: GCSBackend, prefix: str) -> list[str]:
    return [key async for key in backend.list(prefix)]


# The contract


@pytest.mark.parametrize("prefix", ["", "a prefix/ü"])
@pytest.mark.parametrize("check", CONTRACT, ids=lambda check: check.__name__)
async def test_backend_keeps_the_contract_on_a_server(
    server: FakeGCS, check: Check, prefix: str, keep: Keep
) -> None:
    await keep(check, _on(server, prefix=prefix))


@pytest.mark.parametrize("check", PROCESS_CONTRACT, ids=lambda check: check.__name__)
async def test_backend_keeps_the_contract_between_processes(
    server: FakeGCS, check: Check, keep: Keep
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
    timeout = 1.0 if fault in (WriteFault.SILENT_BEFORE, WriteFault.SILENT_AFTER) else 20.0
    await check(lambda: _backend(stub, timeout=timeout), StubFaultInjector(stub), fault)


async def test_probe_passes_on_a_server(server: FakeGCS) -> None:
    async with GCSBackend(
        server.bucket, endpoint_url=server.endpoint_url, anonymous=True, min_write_interval=0
    ) as backend:
        await probe(backend)


# Answers and what they mean


@pytest.mark.parametrize(
    ("change", "status"),
    [(change, status) for change in CHANGES for status in (400, 401, 403, 404, 405, 411, 413)
     if (change, status) != ("delete", 404)],  # to delete what is missing is no failure
)  # fmt: skip
async def test_refused_change_was_not_applied(
    stub: StubStore, backend: GCSBackend, change: str, status: int
) -> None:
    stub.faults.append(Fault.answer(status, on="delete" if change == "delete" else "write"))
    with pytest.raises(StorageBackendError, match=f"status {status}") as caught:
        await CHANGES[change](backend)
    assert caught.value.outcome == "not_applied"


@pytest.mark.parametrize("status", [307, 408, 409, 418, 429, 500, 502, 503, 504])
@pytest.mark.parametrize("change", CHANGES)
async def test_unclear_answer_to_a_change_is_unknown(
    stub: StubStore, backend: GCSBackend, change: str, status: int
) -> None:
    elsewhere = (("Location", f"{stub.endpoint_url}/elsewhere"),)
    stub.faults.append(
        Fault.answer(status, on="delete" if change == "delete" else "write", headers=elsewhere)
    )
    with pytest.raises(StorageBackendError, match=f"status {status}") as caught:
        await CHANGES[change](backend)
    assert caught.value.outcome == "unknown"
    assert len(stub.requests) == 1


@pytest.mark.parametrize("fault", [Fault.drop, Fault.garbage, Fault.hang])
@pytest.mark.parametrize("change", CHANGES)
async def test_change_without_an_answer_is_unknown_and_sent_once(
    stub: StubStore, change: str, fault: Callable[..., Fault]
) -> None:
    stub.faults.append(fault(applied=True, on="delete" if change == "delete" else "write"))
    async with _backend(stub, timeout=1.0 if fault == Fault.hang else 20.0) as backend:
        await backend.read("key")  # the change goes over a connection that has been used before
        with pytest.raises(StorageBackendError) as caught:
            await CHANGES[change](backend)
    assert caught.value.outcome == "unknown"
    assert len(stub.requests) == 2


@pytest.mark.parametrize("status", [307, 401, 403, 412, 429, 500, 503])
@pytest.mark.parametrize("read", READS)
async def test_failed_read_changed_nothing(
    stub: StubStore, backend: GCSBackend, read: str, status: int
) -> None:
    stub.faults.append(Fault.answer(status, on="list" if read == "list" else "read"))
    with pytest.raises(StorageBackendError, match=f"status {status}") as caught:
        await READS[read](backend)
    assert caught.value.outcome == "not_applied"
    assert len(stub.requests) == 1


@pytest.mark.parametrize("call", [*CHANGES, *READS])
async def test_missing_bucket_is_an_error_that_names_it(stub: StubStore, call: str) -> None:
    async with GCSBackend("nobodys", endpoint_url=stub.endpoint_url, anonymous=True) as backend:
        with pytest.raises(StorageBackendError, match=r"bucket nobodys .*bucket does not exist") as caught:
            await {**CHANGES, **READS}[call](backend)
    assert caught.value.outcome == "not_applied"


async def test_write_to_a_bucket_that_a_server_does_not_have_is_refused(server: FakeGCS) -> None:
    async with GCSBackend("nobodys", endpoint_url=server.endpoint_url, anonymous=True) as backend:
        with pytest.raises(StorageBackendError, match=r"in the bucket nobodys at http.*status 404") as caught:
            await backend.create("key", b"")
    assert caught.value.outcome == "not_applied"


async def test_error_says_what_the_store_said_and_what_to_do(stub: StubStore, backend: GCSBackend) -> None:
    stub.faults.append(Fault.answer(403))
    with pytest.raises(StorageBackendError) as caught:
        await backend.create("a key", b"")
    assert caught.value.message == (
        f"write of 'a key' in the bucket {stub.bucket} at {stub.endpoint_url}: status 403. stub. "
        "Grant the role roles/storage.objectUser on the bucket"
    )


@pytest.mark.parametrize("reason", ["rateLimitExceeded", "userRateLimitExceeded"])
@pytest.mark.parametrize("change", CHANGES)
async def test_limit_that_is_told_as_forbidden_is_no_matter_of_roles(
    stub: StubStore, backend: GCSBackend, change: str, reason: str
) -> None:
    stub.faults.append(Fault.answer(403, code=reason, on="delete" if change == "delete" else "write"))
    with pytest.raises(StorageBackendError, match=r"status 403\..*about one write a second") as caught:
        await CHANGES[change](backend)
    assert caught.value.outcome == "unknown"
    assert "role" not in caught.value.message


PAGES = {
    "of a proxy": (b"text/html", b"<html>default backend - 404</html>"),
    "of a framework": (b"text/plain", b"Not Found\n"),
    "of another API": (b"application/json", b'{"detail": "Not Found"}'),
    "about another status": (
        b"application/json",
        b'{"error": {"code": 500, "message": "x", "errors": [{"domain": "global", "reason": "notFound"}]}}',
    ),
    "with nothing": (b"text/plain", b""),
}


@pytest.mark.parametrize(("kind", "page"), PAGES.values(), ids=PAGES)
@pytest.mark.parametrize("call", [*CHANGES, *READS])
async def test_404_that_is_not_of_the_api_says_nothing_of_the_object(
    call: str, kind: bytes, page: bytes
) -> None:
    answer = (
        b"HTTP/1.1 404 Not Found\r\nConnection: close\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n%s"
        % (
            kind,
            len(page),
            page,
        )
    )
    async with (
        _answering(answer) as (url, _),
        GCSBackend("bucket", endpoint_url=url, anonymous=True) as backend,
    ):
        with pytest.raises(StorageBackendError, match="status 404") as caught:
            await {**CHANGES, **READS}[call](backend)
    assert caught.value.outcome == ("unknown" if call in CHANGES else "not_applied")


async def test_412_that_is_not_of_the_api_is_no_conflict() -> None:
    async with (
        _answering(b"HTTP/1.1 412 Precondition Failed\r\nContent-Length: 0\r\n\r\n") as (url, _),
        GCSBackend("bucket", endpoint_url=url, anonymous=True) as backend,
    ):
        with pytest.raises(StorageBackendError, match="status 412") as caught:
            await backend.write("key", b"", "1")
    assert caught.value.outcome == "unknown"


async def test_missing_object_of_a_server_that_says_little_is_asked_for_again(server: FakeGCS) -> None:
    # fake-gcs-server answers a read with "Not Found", as many a proxy does, and only its JSON tells more.
    async with _on(server)() as backend:
        assert await backend.read("never there") is None
        await backend.delete("never there")


@contextlib.asynccontextmanager
async def _answering(answer: bytes) -> AsyncIterator[tuple[str, list[bytes]]]:
    """Give every request the same answer; yield the server's URL and the heads of the requests."""
    heads: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(answer)
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as listening:
        yield f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}", heads


@pytest.mark.parametrize("fault", [Fault.torn, Fault.cut, partial(Fault.answer, 200)])
@pytest.mark.parametrize("read", READS)
async def test_read_that_arrives_in_part_is_an_error(
    stub: StubStore, backend: GCSBackend, read: str, fault: Callable[..., Fault]
) -> None:
    stub.faults.append(fault(on="list" if read == "list" else "read"))
    await backend.create("key", bytes(100_000))
    with pytest.raises(StorageBackendError):
        await READS[read](backend)


async def test_write_whose_answer_says_no_version_is_unknown(stub: StubStore, backend: GCSBackend) -> None:
    stub.faults.append(Fault.answer(200, applied=True))
    with pytest.raises(StorageBackendError, match="says no generation") as caught:
        await backend.create("key", b"")
    assert caught.value.outcome == "unknown"


async def test_cancelled_write_passes_the_cancellation_on(stub: StubStore, backend: GCSBackend) -> None:
    stub.faults.append(Fault.hang(applied=True))
    async with asyncio.TaskGroup() as group:
        write = group.create_task(backend.create("key", b"body"))
        await stub.hanging.wait()
        write.cancel()
    assert write.cancelled()
    assert await backend.read("key") == StoredObject(b"body", stub.objects["key"].version)


@pytest.mark.parametrize("call", [*CHANGES, *READS])
async def test_request_ends_when_its_time_is_over(stub: StubStore, call: str) -> None:
    operations: dict[str, Operation] = {
        "delete": "delete", "write": "write", "create": "write", "list": "list",
    }  # fmt: skip
    stub.faults.append(Fault.hang(applied=False, on=operations.get(call, "read")))
    async with _backend(stub, timeout=0.05) as backend:
        with pytest.raises(StorageBackendError, match=r"no answer within 0\.05"):
            await {**CHANGES, **READS}[call](backend)


async def test_large_body_gets_more_time(stub: StubStore) -> None:
    stub.faults += [Fault.slow(0.7), Fault.pause(0.7), Fault.slow(0.7)]
    async with _backend(stub, timeout=0.5) as backend:
        await backend.create("key", bytes(4 * MIB))
        assert await backend.read("key") is not None
        with pytest.raises(StorageBackendError, match="no answer"):
            await backend.create("small", b"")


# What is sent


async def test_unchanged_object_is_not_moved(stub: StubStore, backend: GCSBackend) -> None:
    version = await backend.create("key", b"body")
    assert await backend.read_if_changed("key", version) is None
    assert stub.requests[-1].query == {"alt": "media", "ifGenerationNotMatch": version}
    with pytest.raises(StorageBackendError, match="status 404"):
        await backend.read_if_changed("missing", version)


@pytest.mark.parametrize("version", ["0", "", "-1", "abc", "1 ", "1&x=y", "²"])
async def test_version_that_no_object_can_have_is_a_conflict(
    stub: StubStore, backend: GCSBackend, version: str
) -> None:
    with pytest.raises(CASConflictError):
        await backend.write("key", b"", version)
    assert stub.objects == {}
    await backend.create("key", b"body")
    found = await backend.read_if_changed("key", version)
    assert found is not None
    assert found.body == b"body"


@pytest.mark.parametrize("key", ["", ".", "..", "\ud800"])
@pytest.mark.parametrize("call", ["read", "create", "delete"])
async def test_key_that_cannot_be_a_name_is_not_sent(
    stub: StubStore, backend: GCSBackend, call: str, key: str
) -> None:
    calls: dict[str, Callable[[str], Awaitable[object]]] = {
        "read": backend.read, "delete": backend.delete, "create": partial(backend.create, body=b""),
    }  # fmt: skip
    with pytest.raises(StorageBackendError) as caught:
        await calls[call](key)
    assert caught.value.outcome == "not_applied"
    assert stub.requests == []


async def test_body_is_kept_byte_for_byte(stub: StubStore, backend: GCSBackend) -> None:
    for body in (b"", b"\r\n--", b"\r\n", bytes(range(256)) * 20_000):
        await backend.delete("key")
        await backend.create("key", body)
        assert stub.objects["key"].body == body
        assert "transfer-encoding" not in stub.requests[-1].headers


async def test_objects_are_not_kept_by_caches(stub: StubStore, backend: GCSBackend) -> None:
    await backend.create("key", b"")
    assert stub.objects["key"].metadata == {"name": "key", "cacheControl": "no-store"}


async def test_list_goes_through_all_pages_below_the_prefix(stub: StubStore) -> None:
    async with _backend(stub, prefix="a/") as one, _backend(stub, prefix="b") as other:
        for key in ("3", "1", "ü", "2", "+&"):
            await one.create(key, b"")
        await other.create("1", b"")
        async with _backend(stub) as all_keys:
            await all_keys.create("a/", b"")  # the mark of a folder
        assert await _listed(one, "") == ["+&", "1", "2", "3", "ü"]
        assert await _listed(one, "+&") == ["+&"]
        assert await _listed(other, "") == ["1"]


async def test_one_connection_serves_one_request_after_the_other(
    stub: StubStore, backend: GCSBackend
) -> None:
    version = await backend.create("key", b"1")
    await backend.write("key", b"2" * MIB, version)
    await backend.read("key")
    await backend.read("missing")
    await backend.delete("key")
    assert stub.connections == 1


async def test_closed_backend_sends_nothing(stub: StubStore) -> None:
    backend = _backend(stub)
    await backend.aclose()
    with pytest.raises(StorageBackendError, match="closed"):
        await backend.read("key")
    assert stub.requests == []


async def test_backend_that_is_closed_while_its_library_is_imported_sends_nothing(
    stub: StubStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    making, may_end = threading.Event(), threading.Event()
    make = gcs._connection

    def slowly(*arguments: Any) -> Any:
        making.set()
        assert may_end.wait(20)
        return make(*arguments)

    monkeypatch.setattr(gcs, "_connection", slowly)
    backend = _backend(stub)
    async with asyncio.TaskGroup() as group:
        calls = [group.create_task(_error_of(backend.create("key", b""))) for _ in range(2)]
        assert await asyncio.to_thread(making.wait, 20)
        closing = group.create_task(backend.aclose())
        await asyncio.sleep(0)
        may_end.set()
    assert closing.done()
    assert {error.outcome for call in calls if (error := call.result())} == {"not_applied"}
    assert stub.connections == 0


async def _error_of(call: Awaitable[object]) -> StorageBackendError | None:
    try:
        await call
    except StorageBackendError as error:
        return error
    return None


async def test_backend_that_is_closed_while_it_waits_for_a_token_sends_nothing(stub: StubStore) -> None:
    credentials = FakeCredentials()
    credentials.may_refresh.clear()
    backend = _backend(stub, credentials=credentials)
    try:
        writing = asyncio.ensure_future(backend.create("key", b""))
        assert await asyncio.to_thread(credentials.asked.wait, 20)
        await backend.aclose()
    finally:
        credentials.may_refresh.set()
    with pytest.raises(StorageBackendError, match="closed") as caught:
        await writing
    assert caught.value.outcome == "not_applied"
    assert stub.connections == 0


# Credentials


class FakeCredentials(Credentials):
    """Give the tokens token-1, token-2 and so on; each lasts for `lifetime` seconds."""

    def __init__(self, lifetime: float = 3600) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # google-auth has types for a part only
        self._quota_project_id = "who-pays"
        self._lifetime = lifetime
        self.refreshed = 0
        self.threads: set[int] = set()
        self.may_refresh = threading.Event()
        self.may_refresh.set()
        self.asked, self.given = threading.Event(), threading.Event()
        self.error: RefreshError | None = None

    def refresh(self, request: object) -> None:
        self.threads.add(threading.get_ident())
        self.asked.set()
        assert self.may_refresh.wait(20)
        if self.error:
            raise self.error
        self.refreshed += 1
        self.token = f"token-{self.refreshed}"
        self.expiry = datetime.now(UTC).replace(tzinfo=None) + timedelta(seconds=self._lifetime)
        self.given.set()


def _tokens(stub: StubStore) -> list[str]:
    return [request.headers.get("authorization", "") for request in stub.requests]


async def test_token_is_got_once_and_in_a_thread(stub: StubStore) -> None:
    credentials = FakeCredentials()
    credentials.may_refresh.clear()
    async with _backend(stub, credentials=credentials) as backend:
        async with asyncio.TaskGroup() as group:
            for _ in range(8):
                group.create_task(backend.read("key"))
            assert await asyncio.to_thread(credentials.asked.wait, 20)
            credentials.may_refresh.set()
        await backend.create("key", b"")
    assert credentials.refreshed == 1
    assert _tokens(stub) == ["Bearer token-1"] * 9
    assert {request.headers["x-goog-user-project"] for request in stub.requests} == {"who-pays"}
    assert credentials.threads.isdisjoint({threading.get_ident()})


async def test_token_is_refreshed_ahead_of_its_end_while_it_is_still_used(stub: StubStore) -> None:
    credentials = FakeCredentials(lifetime=60)  # google.auth calls it stale at once
    async with _backend(stub, credentials=credentials) as backend:
        await backend.read("key")
        credentials.may_refresh.clear()
        credentials.given.clear()
        await backend.read("key")
        await backend.read("key")
        credentials.may_refresh.set()
        assert await asyncio.to_thread(credentials.given.wait, 20)
        await backend.read("key")
    assert _tokens(stub)[:3] == ["Bearer token-1"] * 3
    assert _tokens(stub)[3] != "Bearer token-1"


async def test_expired_token_is_not_sent(stub: StubStore) -> None:
    async with _backend(stub, credentials=FakeCredentials(lifetime=-1)) as backend:
        await backend.read("key")
        await backend.read("key")
    assert _tokens(stub) == ["Bearer token-1", "Bearer token-2"]


async def test_refused_token_is_replaced_at_the_next_request(stub: StubStore) -> None:
    async with _backend(stub, credentials=FakeCredentials()) as backend:
        stub.faults.append(Fault.answer(401))
        with pytest.raises(StorageBackendError, match="takes a new access token") as caught:
            await backend.create("key", b"")
        assert caught.value.outcome == "not_applied"
        await backend.create("key", b"")
        await backend.read("key")
    assert _tokens(stub) == ["Bearer token-1", "Bearer token-2", "Bearer token-2"]


async def test_failed_refresh_sends_nothing_and_may_succeed_later(stub: StubStore) -> None:
    credentials = FakeCredentials()
    credentials.error = RefreshError("invalid_grant: revoked", {"id_token": "a-secret"})  # type: ignore[no-untyped-call]  # as above
    async with _backend(stub, credentials=credentials) as backend:
        with pytest.raises(
            StorageBackendError, match=r"no access token: invalid_grant: revoked\. Check the credentials that"
        ) as caught:
            await backend.create("key", b"")
        assert caught.value.outcome == "not_applied"
        assert "a-secret" not in "".join(traceback.format_exception(caught.value))
        assert stub.requests == []
        credentials.error = None
        await backend.create("key", b"")


async def test_refresh_that_takes_too_long_does_not_hold_up_for_ever(stub: StubStore) -> None:
    credentials = FakeCredentials()
    credentials.may_refresh.clear()
    try:
        async with _backend(stub, credentials=credentials, timeout=0.05) as backend:
            with pytest.raises(StorageBackendError, match=r"no access token within 0\.05 s") as caught:
                await backend.create("key", b"")
        assert caught.value.outcome == "not_applied"
    finally:
        credentials.may_refresh.set()
    assert stub.requests == []


async def test_cancelled_caller_leaves_the_refresh_to_the_others(stub: StubStore) -> None:
    credentials = FakeCredentials()
    credentials.may_refresh.clear()
    async with _backend(stub, credentials=credentials) as backend, asyncio.TaskGroup() as group:
        first, second = (group.create_task(backend.read("key")) for _ in range(2))
        assert await asyncio.to_thread(credentials.asked.wait, 20)
        first.cancel()
        await asyncio.wait((first,))
        credentials.may_refresh.set()
        await second
    assert first.cancelled()
    assert _tokens(stub) == ["Bearer token-1"]


@pytest.mark.parametrize(
    "fault",
    [Fault.answer(401), Fault.answer(500), Fault.drop(applied=True), Fault.garbage(applied=True),
     Fault.hang(applied=True)],
    ids=lambda fault: f"{fault.kind}{fault.status or ''}",
)  # fmt: skip
async def test_token_is_in_no_error(stub: StubStore, fault: Fault) -> None:
    stub.faults.append(fault)
    async with _backend(stub, credentials=FakeCredentials(), timeout=1.0) as backend:
        with pytest.raises(StorageBackendError) as caught:
            await backend.create("key", b"")
        assert "token-1" not in repr(backend)
    assert _tokens(stub) == ["Bearer token-1"]
    error: BaseException | None = caught.value
    assert "token-1" not in "".join(traceback.format_exception(error))
    while error is not None:
        assert "token-1" not in repr(error)
        error = error.__cause__ or error.__context__


async def test_application_default_credentials_are_found(
    stub: StubStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with asyncio.timeout(20), _token_server() as (token_uri, asked):
        file = tmp_path / "service-account.json"
        file.write_text(json.dumps(_service_account(token_uri)))
        monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(file))
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        async with _backend(stub, anonymous=False) as backend:
            await backend.create("key", b"")
    assert _tokens(stub) == ["Bearer a-token"]
    assert len(asked) == 1


@pytest.mark.parametrize("content", [None, "no JSON", "{}"])
async def test_credentials_file_that_cannot_be_used_is_what_to_check(
    stub: StubStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str | None
) -> None:
    file = tmp_path / "key.json"
    if content is not None:
        file.write_text(content)
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(file))
    async with _backend(stub, anonymous=False) as backend:
        with pytest.raises(
            StorageBackendError, match=r"(?s)key\.json.*Check the file that GOOGLE_APPLICATION_CREDENTIALS"
        ) as caught:
            await backend.read("key")
    assert ".. " not in caught.value.message
    assert "Set GOOGLE_APPLICATION_CREDENTIALS" not in caught.value.message


async def test_missing_credentials_say_what_to_do(
    stub: StubStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nothing_found(scopes: object) -> None:
        raise DefaultCredentialsError("There are none.")  # type: ignore[no-untyped-call]  # as above

    monkeypatch.delenv("GOOGLE_APPLICATION_CREDENTIALS", raising=False)
    monkeypatch.setattr("google.auth.default", nothing_found)
    async with _backend(stub, anonymous=False) as backend:
        with pytest.raises(StorageBackendError, match=r"are none\. Set GOOGLE_APPLICATION_CREDENTIALS"):
            await backend.read("key")


# The way there


async def test_proxy_of_the_environment_is_used(stub: StubStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", stub.endpoint_url)
    monkeypatch.setenv("no_proxy", "not-this-one.invalid")
    async with GCSBackend(stub.bucket, endpoint_url="http://storage.invalid", anonymous=True) as backend:
        await backend.create("key", b"")
    assert stub.requests[0].headers["host"] == "storage.invalid"
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    async with _backend(stub) as backend:
        assert await backend.read("key") is not None


@pytest.mark.parametrize("call", [*CHANGES, *READS])
async def test_dead_endpoint_says_what_to_check(call: str) -> None:
    (port,) = free_ports(1)
    async with GCSBackend("bucket", endpoint_url=f"http://127.0.0.1:{port}", anonymous=True) as backend:
        with pytest.raises(
            StorageBackendError,
            match=f"{port}: connection refused: check endpoint_url, and that the store runs$",
        ) as caught:
            await (CHANGES | READS)[call](backend)
        assert caught.value.outcome == ("unknown" if call in CHANGES else "not_applied")


async def test_missing_bucket_is_told_in_whole_sentences(server: FakeGCS) -> None:
    async with GCSBackend("no-such-bucket", endpoint_url=server.endpoint_url, anonymous=True) as backend:
        with pytest.raises(StorageBackendError, match=r"[a-zA-Z]\. Create the bucket, or correct its name"):
            await backend.create("key", b"")


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "127.0.0.2", "[::1]"])
async def test_emulator_on_this_machine_is_reached_without_a_proxy(
    stub: StubStore, monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    monkeypatch.setenv("http_proxy", stub.endpoint_url)  # it would read the token
    (port,) = free_ports(1)
    async with GCSBackend(
        "bucket", endpoint_url=f"http://{host}:{port}", credentials=FakeCredentials()
    ) as backend:
        with pytest.raises(StorageBackendError):
            await backend.read("key")
    assert stub.connections == 0


@pytest.mark.parametrize(
    "proxy",
    ["me:secret@proxy:3128", "socks5://me:secret@proxy:1", "http://me:secret@[bad:1", "http://me:secret@host:99999",
     "http://me:secret@host:0", "http://me:secret word@host:1", "http://me:secret@a..b:1", "http://", "http://host#secret"],
)  # fmt: skip
def test_proxy_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch, proxy: str) -> None:
    monkeypatch.setenv("https_proxy", proxy)
    with pytest.raises(ConfigError, match=r"https_proxy .*must look like http://host:3128$") as caught:
        GCSBackend("bucket")
    assert "secret" not in "".join(traceback.format_exception(caught.value))


async def test_password_of_a_proxy_is_in_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    (port,) = free_ports(1)
    for host in ("127.0.0.1", "exa%20mple", "a\\b"):
        # also one that the check lets pass, should there be any
        monkeypatch.setattr(gcs, "proxy_for", lambda url, host=host: f"http://me:secret@{host}:{port}")
        async with GCSBackend("bucket", endpoint_url="http://storage.invalid", anonymous=True) as backend:
            with pytest.raises(StorageBackendError) as caught:
                await backend.read("key")
        assert "secret" not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize("credentials", [None, FakeCredentials()], ids=["anonymous", "credentials"])
async def test_password_file_of_the_user_is_left_alone(
    stub: StubStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, credentials: FakeCredentials | None
) -> None:
    (tmp_path / "netrc").write_text("default login me password secret\n")
    (tmp_path / "netrc").chmod(0o600)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    async with _backend(stub, **({"credentials": credentials} if credentials else {})) as backend:
        await backend.read("key")
    assert not _tokens(stub)[0].startswith("Basic")


# Settings


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bucket": "gs://bucket"}, "no name of a bucket"),
        ({"bucket": "a/b"}, "no name of a bucket"),
        ({"bucket": ""}, "no name of a bucket"),
        ({"prefix": "\ud800"}, "prefix must be"),
        ({"endpoint_url": "storage.googleapis.com"}, "must look like https://"),
        ({"endpoint_url": "ftp://storage.googleapis.com"}, "must look like https://"),
        ({"endpoint_url": "https://me:secret@host"}, "must look like https://"),
        ({"endpoint_url": "https://host?a=b"}, "must look like https://"),
        ({"endpoint_url": "https://host:0"}, "must look like https://"),
        ({"endpoint_url": "https://a\\b"}, "must look like https://"),
        ({"endpoint_url": "https://a..b"}, "must look like https://"),
        ({"endpoint_url": "https://[host"}, "must look like https://"),
        ({"endpoint_url": "https://a host"}, "must look like https://"),
        ({"endpoint_url": "https://host:port"}, "must look like https://"),
        ({"endpoint_url": "http://storage.example.com"}, "must not travel over http"),
        ({"anonymous": True, "credentials": FakeCredentials()}, "not both"),
        ({"timeout": 0}, "timeout must be"),
        ({"min_write_interval": -1}, "min_write_interval must be"),
        ({"min_write_interval": float("nan")}, "min_write_interval must be"),
    ],
)
def test_setting_that_cannot_work_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        GCSBackend(**{"bucket": "bucket", **options})
    assert "secret" not in str(caught.value)


def test_backend_shows_its_place_and_what_the_store_can_do() -> None:
    backend = GCSBackend("my-bucket", prefix="queues/")
    place = "endpoint_url='https://storage.googleapis.com'"
    assert repr(backend) == f"GCSBackend('my-bucket', prefix='queues/', {place})"
    assert backend.min_write_interval == backend.slowest_write_interval == 1.0
    assert GCSBackend("my-bucket", min_write_interval=0.25).slowest_write_interval == 0.25
    assert backend.max_object_bytes == 5 * 1024**4


@pytest.mark.parametrize("library", ["aiohttp", "google.auth", "requests"])
def test_missing_library_says_what_to_install(monkeypatch: pytest.MonkeyPatch, library: str) -> None:
    for module in ("osqueue_storage.gcs_http", "osqueue_storage.gcs_auth"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ConfigError, match=r"pip install 'osqueue-storage\[gcs\]'"):
        GCSBackend("bucket")


def test_import_of_the_module_is_light() -> None:
    code = "import sys, osqueue_storage.gcs; assert not {'aiohttp', 'google', 'requests'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30)


# A token server, as the file of a service account names one


def _service_account(token_uri: str) -> dict[str, str]:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import rsa

    key = rsa.generate_private_key(public_exponent=65537, key_size=2048).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return {
        "type": "service_account", "client_email": "queue@example.iam.gserviceaccount.com",
        "private_key": key.decode(), "private_key_id": "1", "project_id": "example", "token_uri": token_uri,
    }  # fmt: skip


@contextlib.asynccontextmanager
async def _token_server() -> AsyncIterator[tuple[str, list[bytes]]]:
    """It runs in the event loop: whoever blocks the loop while asking for a token waits for ever."""
    asked: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
        asked.append(await reader.readexactly(int(length.partition(b":")[2])))
        body = b'{"access_token": "a-token", "expires_in": 3600, "token_type": "Bearer"}'
        writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        writer.close()
        await writer.wait_closed()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/token", asked
