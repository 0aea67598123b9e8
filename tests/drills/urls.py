"""Storage URLs, each of a queue that is not there yet."""

from __future__ import annotations

import itertools

from storage.servers.azurite import Azurite
from storage.servers.fake_gcs import FakeGCS
from storage.servers.s3_bucket import BUCKET

_prefixes = itertools.count(1)


def s3_url(endpoint_url: str) -> str:
    """Return one on an S3 server at this endpoint."""
    return f"s3://{BUCKET}/{next(_prefixes)}?endpoint_url={endpoint_url}&region=us-east-1"


def gcs_url(server: FakeGCS) -> str:
    """Return one on fake-gcs-server."""
    return f"gs://{server.bucket}/{next(_prefixes)}?anonymous=true&endpoint_url={server.endpoint_url}"


def azure_url(server: Azurite) -> str:
    """Return one on Azurite."""
    return f"az://{server.container}/{next(_prefixes)}?endpoint_url={server.endpoint_url}"
