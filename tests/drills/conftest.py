"""The stores that the drills run on, in a folder and on the real servers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from drills.quickstart import copy_examples
from drills.stores import FolderBehindLink, KilledSeaweedFS, StoppableStore, killed_seaweedfs
from drills.urls import azure_url, gcs_url, s3_url
from storage.servers.azurite import Azurite
from storage.servers.fake_gcs import FakeGCS
from storage.servers.seaweedfs import ACCESS_KEY_ID, SECRET_ACCESS_KEY, SeaweedFS


@pytest.fixture
def examples(tmp_path: Path) -> Path:
    """The examples in a temporary folder, with a broker that only this machine can reach."""
    return copy_examples(tmp_path)


@pytest.fixture
def seaweedfs_url(seaweedfs_server: SeaweedFS, credentials: pytest.MonkeyPatch) -> str:
    credentials.setenv("AWS_ACCESS_KEY_ID", seaweedfs_server.access_key_id)
    credentials.setenv("AWS_SECRET_ACCESS_KEY", seaweedfs_server.secret_access_key)
    return s3_url(seaweedfs_server.endpoint_url)


@pytest.fixture
def fake_gcs_url(fake_gcs_server: FakeGCS, credentials: pytest.MonkeyPatch) -> str:
    return gcs_url(fake_gcs_server)


@pytest.fixture
def azurite_url(azurite_server: Azurite, credentials: pytest.MonkeyPatch) -> str:
    credentials.setenv("AZURE_STORAGE_ACCOUNT", azurite_server.account)
    credentials.setenv("AZURE_STORAGE_KEY", azurite_server.account_key)
    return azure_url(azurite_server)


@pytest.fixture
def file_url(tmp_path: Path) -> str:
    return f"file:{tmp_path / 'store'}"


@pytest.fixture
def storage_url(request: pytest.FixtureRequest) -> str:
    """The URL of a queue that is not there yet, on the store that a test's parameter names."""
    url: str = request.getfixturevalue(f"{request.param}_url")
    return url


@pytest.fixture
def seaweedfs_stoppable(credentials: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[KilledSeaweedFS]:
    with killed_seaweedfs(tmp_path) as store:
        credentials.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY_ID)
        credentials.setenv("AWS_SECRET_ACCESS_KEY", SECRET_ACCESS_KEY)
        yield store


@pytest.fixture
def file_stoppable(tmp_path: Path) -> FolderBehindLink:
    return FolderBehindLink(tmp_path)


@pytest.fixture
def stoppable_store(request: pytest.FixtureRequest) -> StoppableStore:
    """A store that a test stops and starts, the one that its parameter names."""
    store: StoppableStore = request.getfixturevalue(f"{request.param}_stoppable")
    return store
