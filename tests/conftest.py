"""What tests of several folders share: an environment without credentials, servers that are started once, and figures

that are told again at the end of a run.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from storage.servers.azurite import Azurite, NotInstallable, azurite
from storage.servers.fake_gcs import FakeGCS, fake_gcs
from storage.servers.s3_bucket import BUCKET, make_bucket
from storage.servers.seaweedfs import SeaweedFS, seaweedfs

SHOWN = "figures"


@pytest.fixture
def tell(
    record_property: Callable[[str, object], None], request: pytest.FixtureRequest
) -> Callable[[str], None]:
    """Print a line of figures, and again in the summary of the run, whatever the process that runs the test."""

    def note(line: str) -> None:
        case = getattr(request.node, "callspec", None)
        line = f"{case.id}: {line}" if case else line
        print(line)
        record_property(SHOWN, line)

    return note


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the lines of figures, those of tests that failed, too."""
    lines = [
        str(value)
        for outcome in ("passed", "failed")
        for report in terminalreporter.getreports(outcome)
        if report.when == "call"
        for name, value in report.user_properties
        if name == SHOWN
    ]
    if lines:
        terminalreporter.section(SHOWN)
        for line in lines:
            terminalreporter.write_line(line)


@pytest.fixture
def credentials(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """An environment, for this test and its programs, with no credentials of this machine; a test sets its own."""
    for name in os.environ:
        if name.startswith(("AWS_", "AZURE_", "GOOGLE_", "IDENTITY_", "MSI_", "OSQUEUE_")) or (
            name.lower().endswith("_proxy")
        ):
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    return monkeypatch


@pytest.fixture(scope="session")
def seaweedfs_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SeaweedFS]:
    """SeaweedFS, with the bucket `BUCKET`."""
    with seaweedfs(tmp_path_factory.mktemp("seaweedfs")) as server:
        make_bucket(server, BUCKET)
        yield server


@pytest.fixture(scope="session")
def fake_gcs_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeGCS]:
    """fake-gcs-server, with a bucket."""
    with fake_gcs(tmp_path_factory.mktemp("fake-gcs")) as server:
        yield server


@pytest.fixture(scope="session")
def azurite_server(
    tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config
) -> Iterator[Azurite]:
    """Azurite, with a container. Where it cannot be installed, its tests are skipped; but not in CI."""
    folder = tmp_path_factory.mktemp("azurite")
    kept = getattr(pytestconfig, "cache", None)  # not there with -p no:cacheprovider
    try:
        with azurite(folder, kept.mkdir("azurite") if kept else folder) as server:
            yield server
    except NotInstallable as error:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(str(error))
