"""No answer: what the client raises then, and what it says about the outcome."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from typing import Any, cast

import pytest
from client.support import NAMES, TRANSPORTS, free_port, hang_up, listening, silent, submitting, transport_to

from osqueue_broker import BrokerServer
from osqueue_client import (
    BrokerLeadershipError,
    ConfigError,
    DiscoveryError,
    OsqueueClient,
    TransportConfigError,
    TransportConnectionError,
)
from osqueue_client.transports import TransportName
from osqueue_storage import MemoryBackend, StorageBackend


async def test_silence_ends_in_a_timeout_of_unknown_outcome(transport_name: str) -> None:
    async with (
        listening(silent) as url,
        OsqueueClient(transport=transport_to(transport_name, url), timeout=0.2) as client,
    ):
        with pytest.raises(TransportConnectionError, match=r"within 0\.2") as caught:
            await client.heartbeat("j", "w")
        assert caught.value.outcome == "unknown"
        with pytest.raises(TransportConnectionError, match=r"within 0\.1"):
            await client.heartbeat("j", "w", timeout=0.1)
        with pytest.raises(TransportConnectionError) as caught:
            await client.submit_job("a", 1)
        assert caught.value.outcome == "not_applied"  # it was asked what it knows, no more


async def test_refused_connection_has_no_effect(transport_name: str) -> None:
    transport = transport_to(transport_name, f"http://127.0.0.1:{free_port()}")
    async with OsqueueClient(transport=transport, timeout=0.5) as client:
        with pytest.raises(TransportConnectionError) as caught:
            await client.submit_job("a", 1)
    assert caught.value.outcome == "not_applied"


# Over WebSocket the handshake fails: nothing was sent.
@pytest.mark.parametrize("transport_name", [name for name in TRANSPORTS if name != "ws"])
async def test_connection_that_ends_before_the_answer_is_of_unknown_outcome(transport_name: str) -> None:
    async with (
        listening(hang_up) as url,
        submitting(transport_to(transport_name, url)) as submit,
    ):
        with pytest.raises(TransportConnectionError) as caught:
            await submit()
    assert caught.value.outcome == "unknown"


async def test_cancellation_passes_through(transport_name: str) -> None:
    is_asked = asyncio.Event()

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        is_asked.set()
        await silent(reader, writer)

    async with listening(listen) as url, OsqueueClient(transport=transport_to(transport_name, url)) as client:
        call = asyncio.create_task(client.submit_job("a", 1))
        await asyncio.wait_for(is_asked.wait(), 10)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await client.submit_job("a", 1)


async def test_client_goes_on_after_a_cancelled_call(client: OsqueueClient) -> None:
    await client.connect()
    for _ in range(20):
        call = asyncio.create_task(client.submit_job("a", 1))
        await asyncio.sleep(0)
        call.cancel()
        await asyncio.wait((call,))
    await client.submit_job("b", 2)
    job = await client.claim_job("w1", ["b"])
    assert job is not None
    assert job.payload == 2


async def test_broker_killed_in_the_middle_of_a_call(transport_name: str) -> None:
    code = (
        "import asyncio\n"
        "from osqueue_broker import BrokerServer, MemoryBackend\n"
        "class Slow(MemoryBackend):\n"
        "    async def write(self, *args):\n"
        "        if b'slow' in args[1]:\n"
        "            print('writing', flush=True)\n"
        "            await asyncio.sleep(60)\n"
        "        return await super().write(*args)\n"
        "async def main():\n"
        "    async with BrokerServer(storage=Slow(), port=0) as server:\n"
        "        print(server.address, flush=True)\n"
        "        await server.wait()\n"
        "asyncio.run(main())\n"
    )
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", code, stdout=asyncio.subprocess.PIPE)
    try:
        assert process.stdout is not None
        address = (await asyncio.wait_for(process.stdout.readline(), 20)).decode().strip()
        async with OsqueueClient(transport=transport_to(transport_name, f"http://{address}")) as client:
            await client.submit_job("a", "fast")
            call = asyncio.create_task(client.submit_job("a", "slow", timeout=3))
            assert await asyncio.wait_for(process.stdout.readline(), 20) == b"writing\n"
            os.kill(process.pid, signal.SIGKILL)
            with pytest.raises(TransportConnectionError) as caught:
                await asyncio.wait_for(call, 10)
            assert caught.value.outcome == "unknown"
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


@pytest.mark.parametrize("name", NAMES)
async def test_client_survives_a_broker_restart(name: TransportName) -> None:
    storage, port = MemoryBackend(), free_port()
    async with OsqueueClient(f"http://127.0.0.1:{port}", transport=name, timeout=10) as client:
        async with BrokerServer(storage=storage, port=port):
            first = await client.submit_job("a", 1)
        async with BrokerServer(storage=storage, port=port):
            await client.reconnect()
            second = await client.submit_job("a", 2)
            assert [job.id for job in (await client.list_jobs()).jobs] == [first, second]


@pytest.mark.parametrize("name", NAMES)
async def test_leader_is_found_through_the_store(name: TransportName) -> None:
    storage = MemoryBackend()
    async with OsqueueClient(storage=storage, transport=name, timeout=10) as client:
        with pytest.raises(DiscoveryError):
            await client.get_stats(timeout=0.2)
        async with BrokerServer(storage=storage, port=0) as first:
            await client.submit_job("a", 1)
            assert (await client.get_stats()).broker_address == first.address
        async with BrokerServer(storage=storage, port=0) as second:
            # The old one has gone: the store is asked again.
            assert (await client.get_stats()).broker_address == second.address
            assert (await client.get_stats()).total == 1
        with pytest.raises((DiscoveryError, TransportConnectionError, BrokerLeadershipError)):
            await client.get_stats(timeout=0.5)


async def test_store_that_holds_something_else_is_told() -> None:
    storage = MemoryBackend()
    await storage.create("queue.json", b"not json")
    async with OsqueueClient(storage=storage, timeout=0.2) as client:
        with pytest.raises(DiscoveryError, match="queue document"):
            await client.get_stats()


@pytest.mark.parametrize("name", NAMES)
async def test_first_of_several_urls_that_answers_is_used(server: BrokerServer, name: TransportName) -> None:
    urls = [f"http://127.0.0.1:{free_port()}", f"http://{server.address}"]
    async with OsqueueClient(urls, transport=name, timeout=10) as client:
        assert (await client.get_stats()).broker_address == server.address
    async with OsqueueClient(urls[:1] * 2, transport=name, timeout=0.5) as client:
        with pytest.raises(DiscoveryError):
            await client.get_stats()


@pytest.mark.parametrize("url", ["", "ftp://a", "http://", "http://a:0", "http://a:x", "http://a?b=c"])
async def test_url_that_cannot_be_one_is_a_config_error(url: str) -> None:
    with pytest.raises(ConfigError):
        await OsqueueClient(url).get_stats()


async def test_transport_name_that_is_none_is_a_config_error() -> None:
    with pytest.raises(TransportConfigError, match="grpc"):
        await OsqueueClient("http://127.0.0.1:1", transport=cast("TransportName", "grpc")).get_stats()


def test_client_needs_a_url_or_a_store() -> None:
    with pytest.raises(ConfigError):
        OsqueueClient()
    storage: StorageBackend = MemoryBackend()
    with pytest.raises(ConfigError):
        OsqueueClient("http://127.0.0.1:1", storage=storage)
    with pytest.raises(ConfigError, match="timeout"):
        OsqueueClient("http://127.0.0.1:1", timeout=0)


async def test_close_twice(client: OsqueueClient) -> None:
    await client.connect()
    await client.aclose()
    await client.aclose()


class Refusing:
    """A transport that connects to nobody, and after whose first call the event loop stands still for a while."""

    def __init__(self, standstill: float) -> None:
        self._standstill = standstill

    async def call(self, operation: object, request: object, /) -> Any:
        asyncio.get_running_loop().call_later(0.001, time.sleep, self._standstill)
        self._standstill = 0.0
        raise TransportConnectionError("cannot connect", outcome="not_applied")

    async def aclose(self) -> None:
        """There is nothing to give back."""


async def test_an_event_loop_that_stands_still_between_two_tries_does_not_hide_what_failed() -> None:
    async with OsqueueClient(transport=Refusing(0.8), timeout=0.4) as client:
        with pytest.raises(TransportConnectionError, match="cannot connect") as caught:
            await client.get_stats()
    assert caught.value.outcome == "not_applied"
