"""The stub store does what its users take for granted: conditions, faults, listings, in each dialect."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Final
from urllib.parse import quote

import aiohttp
import pytest
from storage.stub import DialectName, Fault, StubFaultInjector, StubStore
from yarl import URL

from osqueue_storage.contract import WriteFault

KEY: Final = "a/ä b%41//c"


@dataclass(frozen=True, slots=True)
class Reply:
    status: int
    body: bytes
    headers: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Client:
    """Plain requests in the stub's dialect."""

    stub: StubStore
    session: aiohttp.ClientSession

    async def write(self, key: str, body: bytes, expected: str | None = None) -> Reply:
        """Create the object, or with `expected` replace it at that version."""
        if self.stub.dialect == "gcs":
            upload = (
                b'--cut\r\nContent-Type: application/json\r\n\r\n{"name": "%s"}\r\n'
                b"--cut\r\nContent-Type: x/y\r\n\r\n%s\r\n--cut--" % (key.encode(), body)
            )
            path = f"/upload/storage/v1/b/{self.stub.bucket}/o?uploadType=multipart"
            path += f"&ifGenerationMatch={expected or 0}"
            return await self._send("POST", path, upload, {"Content-Type": "multipart/related; boundary=cut"})
        headers = {"x-ms-blob-type": "BlockBlob"} if self.stub.dialect == "azure" else {}
        headers |= {"If-None-Match": "*"} if expected is None else {"If-Match": expected}
        return await self._send("PUT", self._path(key), body, headers)

    async def read(self, key: str, unless: str | None = None) -> Reply:
        if self.stub.dialect == "gcs":
            condition = f"&ifGenerationNotMatch={unless}" if unless else ""
            return await self._send("GET", f"{self._path(key)}?alt=media{condition}")
        return await self._send("GET", self._path(key), headers={"If-None-Match": unless} if unless else {})

    async def delete(self, key: str) -> Reply:
        return await self._send("DELETE", self._path(key))

    async def list(self, prefix: str, more: str = "") -> Reply:
        path = {
            "s3": f"/{self.stub.bucket}?list-type=2&prefix=",
            "gcs": f"/storage/v1/b/{self.stub.bucket}/o?prefix=",
            "azure": f"/{self.stub.bucket}?restype=container&comp=list&prefix=",
        }[self.stub.dialect]
        return await self._send("GET", path + quote(prefix, safe="") + more)

    def version(self, key: str) -> str:
        return self.stub.objects[key].version

    def _path(self, key: str) -> str:
        if self.stub.dialect == "gcs":
            return f"/storage/v1/b/{self.stub.bucket}/o/{quote(key, safe='')}"
        return f"/{self.stub.bucket}/{quote(key)}"

    async def _send(
        self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> Reply:
        url = URL(self.stub.endpoint_url + path, encoded=True)
        async with self.session.request(method, url, data=body, headers=headers) as response:
            return Reply(response.status, await response.read(), response.headers)


@pytest.fixture(params=["s3", "gcs", "azure"])
def dialect(request: pytest.FixtureRequest) -> DialectName:
    name: DialectName = request.param
    return name


@pytest.fixture
async def client(dialect: DialectName) -> AsyncIterator[Client]:
    async with (
        asyncio.timeout(20),
        StubStore(dialect, page_size=2) as stub,
        aiohttp.ClientSession() as session,
    ):
        session._retry_connection = False  # of GET and PUT, when a connection breaks
        yield Client(stub, session)


async def test_writes_keep_their_conditions(client: Client, dialect: DialectName) -> None:
    assert (await client.write(KEY, b"1")).status == (201 if dialect == "azure" else 200)
    first = client.version(KEY)
    assert (await client.write(KEY, b"2")).status == (409 if dialect == "azure" else 412)
    assert (await client.write(KEY, b"2", first)).status == (201 if dialect == "azure" else 200)
    assert (await client.write(KEY, b"3", first)).status == 412
    assert client.stub.objects[KEY].body == b"2"
    assert client.version(KEY) != first
    assert (await client.write("missing", b"1", first)).status == (404 if dialect == "s3" else 412)
    assert list(client.stub.objects) == [KEY]


async def test_reads_give_body_and_version(client: Client, dialect: DialectName) -> None:
    await client.write(KEY, b"body")
    reply = await client.read(KEY)
    assert (reply.status, reply.body) == (200, b"body")
    assert reply.headers["x-goog-generation" if dialect == "gcs" else "ETag"] == client.version(KEY)
    assert (await client.read(KEY, unless=client.version(KEY))).status == 304
    assert (await client.read(KEY, unless='"1"')).status == 200
    assert (await client.read("missing")).status == 404


async def test_deleted_object_is_gone(client: Client, dialect: DialectName) -> None:
    await client.write(KEY, b"body")
    assert (await client.delete(KEY)).status == (202 if dialect == "azure" else 204)
    assert client.stub.objects == {}
    assert (await client.delete(KEY)).status == (204 if dialect == "s3" else 404)


async def test_listing_comes_in_pages(client: Client, dialect: DialectName) -> None:
    for key in ("p/c", "p/a", "p/b", "q"):
        await client.write(key, b"")
    reply = await client.list("p/")
    assert [key in reply.body.decode() for key in ("p/a", "p/b", "p/c")] == [True, True, False]
    token = "cC9i"  # the last key, as the stub encodes it
    assert token in reply.body.decode()
    name = {"s3": "continuation-token", "gcs": "pageToken", "azure": "marker"}[dialect]
    reply = await client.list("p/", f"&{name}={token}")
    assert [key in reply.body.decode() for key in ("p/a", "p/b", "p/c", "q")] == [False, False, True, False]


async def test_requests_are_recorded_with_key_and_operation(client: Client) -> None:
    await client.write(KEY, b"body")
    await client.read(KEY)
    await client.list("")
    await client.delete(KEY)
    seen = [(request.operation, request.key) for request in client.stub.requests]
    assert seen == [("write", KEY), ("read", KEY), ("list", ""), ("delete", KEY)]
    assert client.stub.count("write") == 1


async def test_other_bucket_is_missing(client: Client) -> None:
    await client.write("key", b"body")
    path = "/storage/v1/b/nobody/o/key?alt=media" if client.stub.dialect == "gcs" else "/nobody/key"
    assert (await client._send("GET", path)).status == 404


@pytest.mark.parametrize("applied", [False, True])
async def test_fault_answers_with_or_without_the_effect(client: Client, applied: bool) -> None:
    client.stub.faults.append(Fault.answer(503, applied=applied, headers=(("Retry-After", "1"),)))
    reply = await client.write(KEY, b"body")
    assert (reply.status, reply.headers["Retry-After"]) == (503, "1")
    assert (KEY in client.stub.objects) is applied
    assert (await client.write("next", b"body")).status in (200, 201)


@pytest.mark.parametrize("applied", [False, True])
async def test_fault_drops_the_connection_with_or_without_the_effect(client: Client, applied: bool) -> None:
    client.stub.faults.append(Fault.drop(applied=applied))
    with pytest.raises(aiohttp.ServerDisconnectedError):
        await client.write(KEY, b"body")
    assert (KEY in client.stub.objects) is applied
    assert client.stub.count("write") == 1


@pytest.mark.parametrize("applied", [False, True])
async def test_fault_hangs_until_it_is_released(client: Client, applied: bool) -> None:
    client.stub.faults.append(Fault.hang(applied=applied))
    async with asyncio.TaskGroup() as group:
        write = group.create_task(client.write(KEY, b"body"))
        await client.stub.hanging.wait()
        assert (KEY in client.stub.objects) is applied
        assert not write.done()
        client.stub.release()
    assert write.result().status in (200, 201)
    assert KEY in client.stub.objects


async def test_request_that_hangs_ends_with_the_stub(dialect: DialectName) -> None:
    async def write(client: Client) -> None:
        with pytest.raises(aiohttp.ServerDisconnectedError):
            await client.write(KEY, b"body")

    stub = StubStore(dialect)
    stub.faults.append(Fault.hang(applied=False))
    async with asyncio.timeout(10), aiohttp.ClientSession() as session, asyncio.TaskGroup() as group:
        session._retry_connection = False
        async with stub:
            group.create_task(write(Client(stub, session)))
            await stub.hanging.wait()
    assert stub.objects == {}


async def test_torn_read_promises_the_whole_body(client: Client) -> None:
    await client.write(KEY, b"body")
    client.stub.faults.append(Fault.torn())
    with pytest.raises(aiohttp.ClientPayloadError):
        await client.read(KEY)
    assert (await client.read(KEY)).body == b"body"


async def test_cut_read_promises_half_of_the_body(client: Client) -> None:
    await client.write(KEY, b"body")
    client.stub.faults.append(Fault.cut())
    assert (await client.read(KEY)).body == b"bo"


async def test_garbage_is_no_answer(client: Client) -> None:
    client.stub.faults.append(Fault.garbage(applied=True))
    with pytest.raises(aiohttp.ClientResponseError):
        await client.write(KEY, b"body")
    assert KEY in client.stub.objects


async def test_slow_answer_comes_after_the_effect(client: Client) -> None:
    client.stub.faults.append(Fault.slow(0.05))
    loop = asyncio.get_running_loop()
    start = loop.time()
    assert (await client.write(KEY, b"body")).status in (200, 201)
    assert loop.time() - start >= 0.05


async def test_fault_waits_for_the_request_that_it_fits(client: Client) -> None:
    client.stub.faults += [
        Fault.answer(500, matches=lambda seen: seen.key == "second"),
        Fault.answer(403, on="read"),
    ]
    assert (await client.write("first", b"")).status in (200, 201)
    assert (await client.write("second", b"")).status == 500
    assert (await client.read("first")).status == 403
    assert client.stub.faults == []


async def test_injector_brings_about_each_fault_that_it_names(client: Client, dialect: DialectName) -> None:
    async def status_of_write() -> int | None:
        with contextlib.suppress(aiohttp.ServerDisconnectedError):
            return (await client.write(KEY, b"body")).status
        return None

    injector = StubFaultInjector(client.stub)
    assert (WriteFault.CONFLICTING_OPERATION in injector.faults) is (dialect == "s3")
    for fault in injector.faults:
        client.stub.objects.clear()
        injector.fail_next_write(fault)
        if fault in (WriteFault.SILENT_BEFORE, WriteFault.SILENT_AFTER):
            client.stub.hanging.clear()
            async with asyncio.TaskGroup() as group:
                write = group.create_task(status_of_write())
                await client.stub.hanging.wait()
                write.cancel()
        else:
            assert await status_of_write() in (None, 409, 429, 500, 503)
        assert (KEY in client.stub.objects) is fault.is_applied
    assert injector.writes() == len(injector.faults)
