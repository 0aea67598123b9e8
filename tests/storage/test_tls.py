"""Stores behind TLS: a certificate authority of one's own is trusted as the pages on the stores say, and no other."""

from __future__ import annotations

import asyncio
import os
import ssl
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, get_args

import pytest
import trustme
from storage.stub import DialectName, StubStore

pytestmark = pytest.mark.usefixtures("credentials")

PROGRAM: Final = """
import asyncio, sys
from osqueue_storage import StorageBackendError, open_storage

async def main():
    async with open_storage(sys.argv[1]) as store:
        try:
            version = await store.create("key", bytes(2_000_000))
            found = await store.read("key")
            print("read", len(found.body), found.version == version)
        except StorageBackendError as error:
            print(error.outcome, error.message)

asyncio.run(main())
"""

URLS: Final[dict[DialectName, str]] = {
    "s3": "s3://stub-bucket?region=us-east-1&endpoint_url={}",
    "gcs": "gs://stub-bucket?anonymous=true&endpoint_url={}",
    "azure": "az://stub-bucket?account=devstoreaccount1&endpoint_url={}",
}
BUNDLE: Final[dict[DialectName, str]] = {
    "s3": "AWS_CA_BUNDLE", "gcs": "SSL_CERT_FILE", "azure": "SSL_CERT_FILE",
}  # fmt: skip
"""The variable that each store's page names."""

KEYS: Final = {
    "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AZURE_STORAGE_KEY": "c2VjcmV0LWtleQ==",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Site:
    """A store behind TLS, and the file with the authority that signed its certificate."""

    stub: StubStore
    authority: Path


@pytest.fixture(params=get_args(DialectName))
async def site(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Site]:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(tls)
    async with StubStore(request.param, tls=tls) as stub:
        yield Site(stub, tmp_path / "ca.pem")


async def told_by_a_program(site: Site, environment: dict[str, str]) -> str:
    """Write and read from a program of its own: what is trusted is settled when a library is imported."""
    return await told_of(URLS[site.stub.dialect].format(site.stub.endpoint_url), environment)


async def told_of(url: str, environment: dict[str, str]) -> str:
    async with asyncio.timeout(30):
        program = await asyncio.create_subprocess_exec(
            sys.executable, "-c", PROGRAM, url, env=os.environ | KEYS | environment,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        out, _ = await program.communicate()
    return out.decode().strip()


async def test_authority_of_ones_own_is_trusted_by_the_variable_that_the_docs_name(site: Site) -> None:
    variable = BUNDLE[site.stub.dialect]
    assert await told_by_a_program(site, {variable: str(site.authority)}) == "read 2000000 True"


async def test_unknown_authority_is_refused_before_anything_is_sent(site: Site) -> None:
    told = await told_by_a_program(site, {})
    assert told.startswith("not_applied ")
    assert "no TLS connection that can be trusted" in told
    assert "CERTIFICATE_VERIFY_FAILED" in told
    assert f"set {BUNDLE[site.stub.dialect]}" in told
    assert site.stub.requests == []


@pytest.mark.parametrize("dialect", get_args(DialectName))
async def test_https_to_a_store_that_speaks_http_is_told_as_that(dialect: DialectName) -> None:
    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")  # what most servers make of a TLS handshake
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(refuse, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        told = await told_of(URLS[dialect].format(f"https://127.0.0.1:{port}"), {})
    assert told.startswith("not_applied ")
    assert "write http:// in endpoint_url" in told
    assert "certificate" not in told
