"""One WebSocket for many calls: how it is opened, lost, and closed."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable

import pytest
from client.support import STATS, always, answer, listening, replying, silent, submitting
from websockets.asyncio.server import ServerConnection, serve
from websockets.protocol import State

from osqueue_client import OsqueueClient, TransportConnectionError
from osqueue_client.models import Empty
from osqueue_client.operations import GET_STATS
from osqueue_client.transports.websocket import WebSocketTransport


async def failure(call: Awaitable[object]) -> TransportConnectionError:
    with pytest.raises(TransportConnectionError) as caught:
        await call
    return caught.value


async def test_those_who_wait_for_a_connection_share_one_attempt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("osqueue_client.transports.websocket.CONNECT_TIMEOUT", 0.2)
    attempts = 0

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal attempts
        attempts += 1
        await silent(reader, writer)

    async with listening(accept) as url, submitting(WebSocketTransport(url)) as submit:
        async with asyncio.TaskGroup() as group:
            calls = [group.create_task(failure(submit())) for _ in range(6)]
        assert attempts == 1
        await failure(submit())  # and a failure is not kept for those who come later
        assert attempts == 2
    assert {call.result().outcome for call in calls} == {"not_applied"}
    assert len({id(call.result()) for call in calls}) == len(calls)


async def test_caller_that_gives_up_takes_the_attempt_from_nobody() -> None:
    is_asked, may_go_on = asyncio.Event(), asyncio.Event()

    async def hold(connection: ServerConnection, request: object) -> None:
        is_asked.set()
        await may_go_on.wait()

    async def served(connection: ServerConnection) -> None:
        asked = json.loads(await connection.recv())
        await connection.send(json.dumps({"id": asked["id"], "ok": True, "result": json.loads(STATS)}))
        await connection.wait_closed()

    async with serve(served, "127.0.0.1", 0, process_request=hold) as server:
        port = next(iter(server.sockets)).getsockname()[1]
        async with OsqueueClient(f"127.0.0.1:{port}", transport="ws", timeout=10) as client:
            async with asyncio.TaskGroup() as group:
                first = group.create_task(client.get_stats())
                second = group.create_task(client.get_stats())
                await is_asked.wait()
                first.cancel()
                await asyncio.wait((first,))
                may_go_on.set()
            assert first.cancelled()
            assert second.result().total == 0


async def test_redirect_is_not_followed() -> None:
    asked: list[str] = []

    async def elsewhere(n: int) -> bytes:
        asked.append("elsewhere")
        return answer(404, b"", "text/plain")

    async with replying(elsewhere) as other:
        for location in (other, "nonsense:///x", "/x"):
            redirect = answer(302, b"", "text/plain", f"location: {location}")
            async with (
                replying(always(redirect)) as url,
                submitting(WebSocketTransport(url)) as submit,
            ):
                error = await failure(submit())
            assert "302" in error.message
            assert error.outcome == "not_applied"
    assert asked == []


async def test_each_caller_of_a_lost_connection_has_an_error_of_its_own() -> None:
    async def served(connection: ServerConnection) -> None:
        for _ in range(5):
            await connection.recv()
        await connection.close(1011)

    async with serve(served, "127.0.0.1", 0) as server:
        port = next(iter(server.sockets)).getsockname()[1]
        async with (
            submitting(WebSocketTransport(f"http://127.0.0.1:{port}")) as submit,
            asyncio.TaskGroup() as group,
        ):
            calls = [group.create_task(failure(submit())) for _ in range(5)]
    errors = [call.result() for call in calls]
    assert len({id(error) for error in errors}) == 5
    assert [error.message.partition(":")[0] for error in errors] == ["submitJob"] * 5
    assert {error.outcome for error in errors} == {"unknown"}


class Closing:
    """A server that answers one request and, when it is told to, closes with 1012."""

    def __init__(self) -> None:
        self.requests = 0
        self.connections = 0
        self.must_close = asyncio.Event()

    async def serve(self, connection: ServerConnection) -> None:
        self.connections += 1
        is_first = self.connections == 1
        async for text in connection:
            self.requests += 1
            id = json.loads(text)["id"]
            await connection.send(json.dumps({"id": id, "ok": True, "result": json.loads(STATS)}))
            if is_first:
                await self.must_close.wait()
                await connection.close(1012)


async def test_what_is_asked_while_the_broker_closes_is_sent_over_a_new_connection() -> None:
    closing = Closing()
    async with serve(closing.serve, "127.0.0.1", 0) as server, asyncio.timeout(10):
        transport = WebSocketTransport(f"http://127.0.0.1:{next(iter(server.sockets)).getsockname()[1]}")
        await transport.call(GET_STATS, Empty())
        session = transport._session
        assert session is not None
        closing.must_close.set()
        while session.connection.state is State.OPEN:
            await asyncio.sleep(0)
        # The close was received, and nobody else has run since.
        assert (await transport.call(GET_STATS, Empty())).total == 0
        current = transport._session
        assert current is not None
        await transport.aclose()
        assert session._reader.done()  # nothing of either connection is left
        assert current._reader.done()
    assert (closing.connections, closing.requests) == (2, 2)


async def test_broker_that_closes_at_once_has_done_nothing_and_lets_others_run() -> None:
    async def served(connection: ServerConnection) -> None:
        await connection.close(1012)

    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            ticks += 1
            await asyncio.sleep(0)

    async with serve(served, "127.0.0.1", 0) as server, asyncio.timeout(10):
        transport = WebSocketTransport(f"http://127.0.0.1:{next(iter(server.sockets)).getsockname()[1]}")
        ticking = asyncio.create_task(tick())
        refused = 0
        for _ in range(20):  # without a pause
            before = ticks
            error = await failure(transport.call(GET_STATS, Empty()))
            assert ticks > before
            refused += error.outcome == "not_applied"
        ticking.cancel()
        await transport.aclose()
    assert refused


async def test_closed_while_it_connects() -> None:
    is_asked = asyncio.Event()
    is_gone = asyncio.Event()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        is_asked.set()
        await silent(reader, writer)
        is_gone.set()

    async with listening(accept) as url, asyncio.timeout(10):
        transport = WebSocketTransport(url)
        async with asyncio.TaskGroup() as group:
            call = group.create_task(failure(transport.call(GET_STATS, Empty())))
            await is_asked.wait()
            await transport.aclose()
        assert call.result().outcome == "not_applied"
        assert "closed" in call.result().message
        await is_gone.wait()  # nothing stays open
        assert "closed" in (await failure(transport.call(GET_STATS, Empty()))).message
