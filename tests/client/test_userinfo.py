"""The user and the password in a broker's URL: sent in the same header by every transport, and shown nowhere."""

from __future__ import annotations

import asyncio
from base64 import b64decode

import pytest
from client.support import TRANSPORTS, answer, listening, submitting, transport_to

from osqueue_client import OsqueueError


@pytest.mark.parametrize("name", TRANSPORTS)
@pytest.mark.parametrize(
    ("userinfo", "told"),
    [
        ("TOKEN", b"TOKEN:"),
        ("TOKEN:", b"TOKEN:"),
        ("me:s%3Acr%40t", b"me:s:cr@t"),
        ("me:a:b", b"me:a:b"),
        (":secret", b":secret"),
        ("k%C3%A4the:%E2%82%AC", "käthe:€".encode()),
        ("käthe:€", "käthe:€".encode()),
        ("%FF:%00", b"\xff:\x00"),
    ],
    ids=["token", "token:", "escaped", "two colons", "password alone", "utf-8", "not ascii", "bytes"],
)
async def test_user_in_the_url_is_told_in_the_header_of_basic_authentication(
    name: str, userinfo: str, told: bytes
) -> None:
    heads: list[bytes] = []

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(answer(401, b"{}", "application/json", "connection: close"))
        writer.close()

    async with listening(refuse) as url:
        url = url.replace("//", f"//{userinfo}@")
        async with submitting(transport_to(name, url)) as submit:
            with pytest.raises(OsqueueError) as caught:
                await submit()
    assert userinfo not in str(caught.value)
    headers = [line for line in heads[0].split(b"\r\n") if line.lower().startswith(b"authorization:")]
    assert len(headers) == 1
    kind, _, token = headers[0].partition(b":")[2].strip().partition(b" ")
    assert (kind, b64decode(token, validate=True)) == (b"Basic", told)


@pytest.mark.parametrize("name", TRANSPORTS)
async def test_no_user_is_told_where_the_url_has_none(name: str) -> None:
    heads: list[bytes] = []

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(answer(401, b"{}", "application/json", "connection: close"))
        writer.close()

    async with listening(refuse) as url, submitting(transport_to(name, url)) as submit:
        with pytest.raises(OsqueueError):
            await submit()
    assert b"authorization" not in heads[0].lower()
