"""A bucket on an S3 server of the tests."""

from __future__ import annotations

import asyncio
from typing import Final, Protocol

from aiobotocore.session import AioSession  # type: ignore[import-untyped]  # it has no types

BUCKET: Final = "bucket-for-tests"


class S3Server(Protocol):
    """What SeaweedFS and ministack have in common."""

    @property
    def endpoint_url(self) -> str: ...

    @property
    def access_key_id(self) -> str: ...

    @property
    def secret_access_key(self) -> str: ...


def make_bucket(server: S3Server, bucket: str) -> None:
    """Make a bucket; it must not be there yet. Not for use inside an event loop."""
    asyncio.run(_make_bucket(server, bucket))


async def _make_bucket(server: S3Server, bucket: str) -> None:
    async with AioSession().create_client(
        "s3",
        region_name="us-east-1",
        endpoint_url=server.endpoint_url,
        aws_access_key_id=server.access_key_id,
        aws_secret_access_key=server.secret_access_key,
    ) as client:
        await client.create_bucket(Bucket=bucket)
