"""The stores that the drills run on: a folder, and the real servers, each started once."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from drills.quickstart import copy_examples
from storage.servers.azurite import Azurite, NotInstallable, azurite
from storage.servers.fake_gcs import FakeGCS, fake_gcs
from storage.servers.s3_bucket import make_bucket
from storage.servers.seaweedfs import SeaweedFS, seaweedfs

BUCKET = "osqueue-drills"

_prefixes = itertools.count(1)


@pytest.fixture
def examples(tmp_path: Path) -> Path:
    """The examples in a temporary folder, with a broker that only this machine can reach."""
    return copy_examples(tmp_path)


@pytest.fixture
def credentials(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """An environment, for this test and its programs, with no credentials of this machine."""
    for name in os.environ:
        if name.startswith(("AWS_", "AZURE_", "GOOGLE_", "OSQUEUE_")) or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "no-config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "no-credentials"))
    return monkeypatch


@pytest.fixture(scope="session")
def seaweedfs_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SeaweedFS]:
    with seaweedfs(tmp_path_factory.mktemp("seaweedfs")) as server:
        make_bucket(server, BUCKET)
        yield server


@pytest.fixture(scope="session")
def fake_gcs_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeGCS]:
    with fake_gcs(tmp_path_factory.mktemp("fake-gcs")) as server:
        yield server


@pytest.fixture(scope="session")
def azurite_server(
    tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config
) -> Iterator[Azurite]:
    folder = tmp_path_factory.mktemp("azurite")
    kept = getattr(pytestconfig, "cache", None)  # not there with -p no:cacheprovider
    try:
        with azurite(folder, kept.mkdir("azurite") if kept else folder) as server:
            yield server
    except NotInstallable as error:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(str(error))


@pytest.fixture
def seaweedfs_url(seaweedfs_server: SeaweedFS, credentials: pytest.MonkeyPatch) -> str:
    credentials.setenv("AWS_ACCESS_KEY_ID", seaweedfs_server.access_key_id)
    credentials.setenv("AWS_SECRET_ACCESS_KEY", seaweedfs_server.secret_access_key)
    return s3_url(seaweedfs_server.endpoint_url)


@pytest.fixture
def fake_gcs_url(fake_gcs_server: FakeGCS, credentials: pytest.MonkeyPatch) -> str:
    where = f"{fake_gcs_server.bucket}/{next(_prefixes)}"
    return f"gs://{where}?anonymous=true&endpoint_url={fake_gcs_server.endpoint_url}"


@pytest.fixture
def azurite_url(azurite_server: Azurite, credentials: pytest.MonkeyPatch) -> str:
    credentials.setenv("AZURE_STORAGE_ACCOUNT", azurite_server.account)
    credentials.setenv("AZURE_STORAGE_KEY", azurite_server.account_key)
    where = f"{azurite_server.container}/{next(_prefixes)}"
    return f"az://{where}?endpoint_url={azurite_server.endpoint_url}"


@pytest.fixture
def file_url(tmp_path: Path) -> str:
    return f"file:{tmp_path / 'store'}"


@pytest.fixture
def storage_url(request: pytest.FixtureRequest) -> str:
    """The URL of a queue that is not there yet, on the store that a test's parameter names."""
    url: str = request.getfixturevalue(f"{request.param}_url")
    return url


def s3_url(endpoint_url: str) -> str:
    """Return the URL of a queue that is not there yet, on an S3 server at this endpoint."""
    return f"s3://{BUCKET}/{next(_prefixes)}?endpoint_url={endpoint_url}&region=us-east-1"
