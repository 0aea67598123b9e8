"""https: the broker behind a proxy that ends TLS, and a certificate authority that only the user trusts."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
import trustme
from client.support import TRANSPORTS, transport_to

from osqueue_broker import BrokerServer
from osqueue_client import OsqueueClient, TransportConnectionError

LARGE = "x" * 300_000


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def trusted(authority: trustme.CA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user who trusts the authority."""
    path = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(path))
    monkeypatch.setenv("SSL_CERT_FILE", str(path))


async def pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()


@asynccontextmanager
async def tls_proxy(authority: trustme.CA, name: str, server: BrokerServer) -> AsyncIterator[str]:
    """A proxy with a certificate for `name` that ends TLS in front of a broker; yields its `host:port`."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(name).configure_cert(context)
    connections: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        connections.add(task)
        host, port = server.address.rsplit(":", 1)
        with suppress(asyncio.CancelledError):
            back_reader, back_writer = await asyncio.open_connection(host, int(port))
            await asyncio.gather(pipe(reader, back_writer), pipe(back_reader, writer))
        writer.transport.abort()
        back_writer.transport.abort()

    async with await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context) as listener:
        host, port = listener.sockets[0].getsockname()
        yield f"{host}:{port}"
        listener.close()
        for task in connections:
            task.cancel()
        await asyncio.gather(*connections, return_exceptions=True)


@pytest.mark.usefixtures("trusted")
@pytest.mark.parametrize("name", TRANSPORTS)
async def test_every_transport_works_over_https(
    server: BrokerServer, authority: trustme.CA, name: str
) -> None:
    async with (
        tls_proxy(authority, "127.0.0.1", server) as address,
        OsqueueClient(transport=transport_to(name, f"https://{address}"), timeout=10) as client,
    ):
        ids = await asyncio.gather(*(client.submit_job("t", {"n": n, "text": LARGE}) for n in range(5)))
        jobs = [await client.claim_job("w") for _ in ids]
        assert sorted(job.id for job in jobs if job is not None) == sorted(ids)
        payloads = [job.payload for job in jobs if job is not None]
        assert all({"n": n, "text": LARGE} in payloads for n in range(5))
        for id in ids:
            await client.complete_job(id, "w")
        stats = await client.get_stats()
        assert (stats.total, stats.completed_total) == (0, 5)


@pytest.mark.parametrize("name", TRANSPORTS)
async def test_an_authority_that_the_user_does_not_trust_is_refused_before_anything_is_sent(
    server: BrokerServer, authority: trustme.CA, name: str
) -> None:
    async with (
        tls_proxy(authority, "127.0.0.1", server) as address,
        OsqueueClient(transport=transport_to(name, f"https://{address}"), timeout=1) as client,
    ):
        with pytest.raises(TransportConnectionError, match=r"(?i)certificate") as refused:
            await client.submit_job("t", 1)
        assert refused.value.outcome == "not_applied"


@pytest.mark.usefixtures("trusted")
@pytest.mark.parametrize("name", TRANSPORTS)
async def test_a_certificate_for_another_host_is_refused(
    server: BrokerServer, authority: trustme.CA, name: str
) -> None:
    async with (
        tls_proxy(authority, "queue.example.com", server) as address,
        OsqueueClient(transport=transport_to(name, f"https://{address}"), timeout=1) as client,
    ):
        with pytest.raises(TransportConnectionError, match=r"(?i)certificate") as refused:
            await client.submit_job("t", 1)
        assert refused.value.outcome == "not_applied"
