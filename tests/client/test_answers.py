"""Answers that no broker of ours gives: what the client raises, and what it says about the outcome."""

from __future__ import annotations

import asyncio
import gc
import json
import traceback
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
from client.support import (
    NAMES,
    STATS,
    Scripted,
    always,
    answer,
    free_port,
    replying,
    submitting,
    transport_to,
    until,
)
from websockets.asyncio.server import ServerConnection, serve

from osqueue_client import (
    BrokerLeadershipError,
    BrokerProtocolError,
    ConfigError,
    OsqueueClient,
    OsqueueError,
    RequestTooLargeError,
    SyncOsqueueClient,
    TransportConfigError,
    TransportConnectionError,
    TransportRequestError,
)
from osqueue_client.models import Model
from osqueue_client.operations import AnyOperation
from osqueue_client.transports import TransportName, checked_url


def success(transport: str) -> str:
    return "application/proto" if transport == "connect-proto" else "application/json"


@pytest.fixture(params=["rest", "connect-proto", "connect-json"])
def http_name(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


async def refusal(name: str, text: bytes) -> OsqueueError:
    """What a transport raises when a submit is answered with `text`."""
    async with replying(always(text)) as url, submitting(transport_to(name, url)) as submit:
        with pytest.raises(OsqueueError) as caught:
            await submit()
    return caught.value


async def test_success_that_cannot_be_read_is_of_unknown_outcome(http_name: str) -> None:
    kind = success(http_name)
    for text in (
        answer(200, b"<html>", "text/html"),
        answer(200, b"\xff\xff{", kind),
        answer(200, b"not gzip", kind, "content-encoding: gzip"),
    ):
        assert (await refusal(http_name, text)).outcome == "unknown"


TOO_DEEP = b'{"jobId":' + b"[" * 100_000 + b"]" * 100_000 + b"}"


@pytest.mark.parametrize("body", [b'{"jobId":"\xff"}', TOO_DEEP], ids=["not UTF-8", "too deep"])
async def test_answer_that_is_not_utf8_or_too_deep_is_malformed(transport_name: str, body: bytes) -> None:
    async with (
        answered(transport_name, body) as url,
        submitting(transport_to(transport_name, url)) as submit,
    ):
        with pytest.raises(OsqueueError) as caught:
            await submit()
    assert caught.value.outcome == "unknown"
    if (transport_name, body) == ("ws", TOO_DEEP):  # it cannot be told whose answer that is
        assert isinstance(caught.value, TransportConnectionError)
    else:
        assert isinstance(caught.value, BrokerProtocolError)
        assert caught.value.message.startswith("submitJob: the answer is malformed: ")


@asynccontextmanager
async def answered(transport: str, result: bytes) -> AsyncIterator[str]:
    """A server that answers everything with this result."""
    if transport != "ws":
        async with replying(always(answer(200, result, success(transport)))) as url:
            yield url
        return

    def reply(asked: dict[str, object]) -> bytes:
        return b'{"id":%d,"ok":true,"result":%b}' % (int(str(asked["id"])), result)

    async with websocket(reply) as (url, _):
        yield url


@pytest.mark.parametrize(
    "body",
    [
        b'{"_tag":"\xff","code":"unavailable","message":"\xff"}',
        b'{"code":"unavailable","message":' + b"[" * 100_000,
        b'{"code":"unavailable","details":[{"type":"google.protobuf.Struct","value":"/////w"}]}',
    ],
    ids=["not UTF-8", "too deep", "no Struct"],
)
async def test_refusal_that_is_not_utf8_or_too_deep_says_no_more_than_its_status(
    http_name: str, body: bytes
) -> None:
    for status, outcome in ((503, "unknown"), (400, "not_applied")):
        error = await refusal(http_name, answer(status, body, "application/json"))
        if http_name == "rest":
            assert isinstance(error, TransportRequestError)
            assert (error.status, error.outcome) == (status, outcome)
        else:  # Connect has a code in place of the status
            assert isinstance(error, TransportRequestError | BrokerProtocolError)
            assert error.outcome in ("unknown", outcome)


@pytest.mark.parametrize("error", [b'{"message":"\xff"}', b'{"message":%b' % (b"[" * 100_000)])
async def test_refusal_over_websocket_that_cannot_be_read_is_of_unknown_outcome(error: bytes) -> None:
    def reply(asked: dict[str, object]) -> bytes:
        return b'{"id":%d,"ok":false,"error":%b}' % (int(str(asked["id"])), error)

    async with websocket(reply) as (url, _), submitting(transport_to("ws", url)) as submit:
        for _ in range(2):
            with pytest.raises(TransportConnectionError, match="no answer") as caught:
                await submit()
            assert caught.value.outcome == "unknown"


async def test_error_of_a_proxy_says_no_more_than_its_status(http_name: str) -> None:
    for status, outcome in ((502, "unknown"), (504, "unknown"), (404, "not_applied"), (302, "unknown")):
        error = await refusal(http_name, answer(status, b"nginx", "text/plain", "location: /x"))
        assert isinstance(error, TransportRequestError)
        assert (status, error.outcome) == (status, outcome)
        assert error.method == "submitJob"


async def test_error_of_a_newer_broker_keeps_its_outcome() -> None:
    body = json.dumps({"_tag": "NewError", "message": "m", "outcome": "not_applied"}).encode()
    error = await refusal("rest", answer(503, body, "application/json"))
    assert isinstance(error, TransportRequestError)
    assert (error.remote_tag, error.status, error.outcome) == ("NewError", 503, "not_applied")
    assert error.method == "submitJob"


async def test_error_details_of_others_are_passed_over() -> None:
    cases: list[list[dict[str, str]]] = [[{"type": "google.rpc.ErrorInfo", "value": "CgNhYmM"}], [{}]]
    for details in cases:
        body = json.dumps({"code": "unavailable", "message": "m", "details": details}).encode()
        error = await refusal("connect-proto", answer(503, body, "application/json"))
        assert isinstance(error, TransportRequestError)
        assert (error.remote_tag, error.outcome) == ("unavailable", "unknown")


@asynccontextmanager
async def websocket(
    reply: Callable[[dict[str, object]], str | bytes],
) -> AsyncIterator[tuple[str, list[object]]]:
    """A WebSocket server; yields its URL and its open connections."""
    connections: list[object] = []

    async def served(connection: ServerConnection) -> None:
        connections.append(connection)
        async for text in connection:
            await connection.send(reply(json.loads(text)))
        connections.remove(connection)

    async with serve(served, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{next(iter(server.sockets)).getsockname()[1]}", connections


@pytest.mark.parametrize("text", ["hello", "[1]", '{"id":"x","ok":true}', "[" * 100_000])
async def test_what_is_no_answer_ends_its_connection(text: str) -> None:
    async with (
        websocket(lambda _: text) as (url, connections),
        submitting(transport_to("ws", url)) as submit,
    ):
        for _ in range(3):
            with pytest.raises(TransportConnectionError) as caught:
                await submit()
            assert caught.value.outcome == "unknown"
        await until(lambda: not connections)
    gc.collect()


async def test_malformed_result_is_of_unknown_outcome() -> None:
    async with (
        websocket(lambda asked: json.dumps({"id": asked["id"], "ok": True, "result": {"jobId": 5}})) as (
            url,
            _,
        ),
        submitting(transport_to("ws", url)) as submit,
    ):
        with pytest.raises(BrokerProtocolError, match="answer is malformed") as caught:
            await submit()
        assert caught.value.outcome == "unknown"


async def test_error_without_an_id_is_for_the_only_one_or_for_nobody_surely() -> None:
    fields = {"id": None, "ok": False, "error": {"_tag": "RequestTooLargeError", "message": "large"}}
    seen = 0

    def reply(asked: dict[str, object]) -> str:
        nonlocal seen
        seen += 1
        return json.dumps(fields if seen in (1, 3) else {"id": -1})

    async with (
        websocket(reply) as (url, _),
        submitting(transport_to("ws", url)) as submit,
    ):
        with pytest.raises(RequestTooLargeError):
            await submit()
        results = await asyncio.gather(submit(), submit(), return_exceptions=True)
    for result in results:
        assert isinstance(result, TransportConnectionError)
        assert result.outcome == "unknown"
        assert "large" in result.message


async def test_silent_broker_leaves_time_for_the_next_one() -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    first = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        async with (
            replying(always(answer(200, STATS, "application/json"))) as second,
            OsqueueClient([first, second], transport="rest", timeout=3) as client,
        ):
            assert (await client.get_stats()).total == 0
    finally:
        server.close()


async def test_one_that_is_no_broker_is_passed_over() -> None:
    async with (
        replying(always(answer(404, b"nginx", "text/plain"))) as first,
        replying(always(answer(200, STATS, "application/json"))) as second,
        OsqueueClient([first, second], transport="rest", timeout=5) as client,
    ):
        assert (await client.get_stats()).total == 0


async def test_answer_under_way_survives_that_another_call_was_sent_elsewhere() -> None:
    is_asked, may_answer = asyncio.Event(), asyncio.Event()
    refused = json.dumps(
        {"_tag": "BrokerLeadershipError", "message": "no", "outcome": "not_applied"}
    ).encode()

    async def reply(n: int) -> bytes:
        if n == 1:
            return answer(200, STATS, "application/json")
        if n > 2:
            return answer(503, refused, "application/json")
        is_asked.set()
        await may_answer.wait()
        return answer(200, b'{"jobId":"slow"}', "application/json")

    async with replying(reply) as url, OsqueueClient(url, transport="rest", timeout=5) as client:
        async with asyncio.TaskGroup() as group:
            slow = group.create_task(client.submit_job("a", 1))
            await is_asked.wait()
            with pytest.raises(BrokerLeadershipError):
                await client.submit_job("a", 2, timeout=0.1)
            may_answer.set()
        assert slow.result() == "slow"


async def test_leader_named_by_an_https_broker_is_asked_over_https() -> None:
    opened: list[str] = []

    async def refuse(operation: AnyOperation) -> Model:
        raise BrokerLeadershipError("no", leader="10.0.0.9:8080")

    def make(url: str) -> Scripted:
        opened.append(url)
        return Scripted(refuse)

    async with OsqueueClient("https://queue.example.com", transport=make, timeout=0.01) as client:
        with pytest.raises(BrokerLeadershipError):
            await client.get_stats()
    assert opened == ["https://queue.example.com", "https://10.0.0.9:8080"]


@pytest.mark.parametrize("name", NAMES)
async def test_no_call_after_the_end(name: TransportName) -> None:
    client = OsqueueClient(f"http://127.0.0.1:{free_port()}", transport=name, timeout=0.3)
    with pytest.raises(TransportConnectionError):
        await client.get_stats()
    await client.aclose()
    await client.aclose()
    with pytest.raises(ConfigError, match="closed"):
        await client.get_stats()


@pytest.mark.parametrize("name", NAMES)
async def test_password_in_the_url_is_shown_in_no_error(name: TransportName) -> None:
    async with OsqueueClient(
        f"http://bob:hunter2@127.0.0.1:{free_port()}", transport=name, timeout=0.3
    ) as client:
        with pytest.raises(TransportConnectionError) as caught:
            await client.get_stats()
    assert caught.value.outcome == "not_applied"
    assert "hunter2" not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize(
    "url", ["nonsense", "queue.example.com", "bob:hunter2@a", "localhost:", "http:/a:1", "[::1]"]
)
def test_url_without_a_scheme_needs_a_port(url: str) -> None:
    for client in (OsqueueClient, SyncOsqueueClient):
        with pytest.raises(
            TransportConfigError, match=r"http://127\.0\.0\.1:8080.* or 127\.0\.0\.1:8080"
        ) as caught:
            client(url)
        assert "hunter2" not in caught.value.message


@pytest.mark.parametrize(
    "url", ["localhost:8080", "[::1]:8080", "bob:hunter2@a:80", "http://nonsense", "a:80/queue/"]
)
def test_url_with_a_scheme_or_a_port_is_taken(url: str) -> None:
    assert checked_url(url) == (url if "://" in url else f"http://{url}").rstrip("/")


@pytest.mark.parametrize("url", ["http://bob:hunter2@a b", "http://\x00:1", "http://a..b:1", "http://a\n:1"])
def test_url_that_cannot_be_one_is_refused_at_once_and_not_shown(url: str) -> None:
    with pytest.raises(TransportConfigError) as caught:
        OsqueueClient(url)
    assert "hunter2" not in caught.value.message


async def test_scheme_may_be_in_capitals() -> None:
    with pytest.raises(TransportConnectionError) as caught:
        await OsqueueClient(f"HTTP://127.0.0.1:{free_port()}", transport="ws", timeout=0.3).get_stats()
    assert caught.value.outcome == "not_applied"


@pytest.mark.parametrize("name", NAMES)
async def test_request_that_cannot_be_one_is_refused_before_it_is_sent(name: TransportName) -> None:
    async with OsqueueClient(f"http://127.0.0.1:{free_port()}", transport=name, timeout=5) as client:
        for field, call in (
            ("maxAttempts", client.submit_job("a", 1, max_attempts=2**31)),
            ("maxAttempts", client.submit_job("a", 1, max_attempts="3")),  # type: ignore[call-overload]
            ("workerId", client.claim_job("")),
            ("jobId", client.complete_job("", "w")),
            (None, client.claim_job("\ud800")),
        ):
            with pytest.raises(BrokerProtocolError) as caught:
                await call
            assert (caught.value.field, caught.value.outcome) == (field, "not_applied")


@pytest.mark.parametrize("name", NAMES)
async def test_proxy_of_the_environment_is_not_used(
    name: TransportName, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy = free_port()
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{proxy}")
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{proxy}")
    asked = asyncio.Event()

    async def reply(n: int) -> bytes:
        asked.set()
        return answer(404, b"", "text/plain")

    async with replying(reply) as url, OsqueueClient(url, transport=name, timeout=1) as client:
        with pytest.raises(OsqueueError):
            await client.get_stats()
        assert asked.is_set()
