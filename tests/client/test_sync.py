"""The blocking client: threads, fork, a running loop, its end, and that it lacks nothing."""

from __future__ import annotations

import inspect
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from client.support import free_port, obey_ctrl_c

from osqueue_client import (
    BrokerProtocolError,
    ConfigError,
    JobNotFoundError,
    OsqueueClient,
    SyncOsqueueClient,
    TransportConnectionError,
)
from osqueue_client.transports import Transport, TransportName
from osqueue_client.transports.connect import ConnectTransport

BROKER = """
import asyncio
from osqueue_broker import BrokerServer, MemoryBackend
async def main():
    async with BrokerServer(storage=MemoryBackend(), port=0) as server:
        print(server.address, flush=True)
        await server.wait()
asyncio.run(main())
"""


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with subprocess.Popen([sys.executable, "-c", BROKER], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield f"http://{process.stdout.readline().strip()}"
        process.kill()


def test_same_methods_with_the_same_parameters() -> None:
    def methods(cls: type) -> dict[str, list[tuple[str, object, object]]]:
        return {
            name: [(p.name, p.kind, p.default) for p in inspect.signature(method).parameters.values()]
            for name, method in vars(cls).items()
            if inspect.isfunction(method) and not name.startswith("_")
        }

    ours, theirs = methods(SyncOsqueueClient), methods(OsqueueClient)
    assert ours.pop("close") == theirs.pop("aclose")
    assert ours == theirs


@pytest.mark.parametrize("name", ["rest", "ws", "connect"])
def test_job_goes_from_submit_to_completion(url: str, name: TransportName) -> None:
    with SyncOsqueueClient(url, transport=name, timeout=10) as client:
        client.connect()
        assert "fail" in client.features
        job_id = client.submit_job(name, {"n": 1})
        job = client.claim_job("w1", [name])
        assert job is not None
        assert (job.id, job.payload) == (job_id, {"n": 1})
        client.heartbeat(job_id, "w1")
        assert job_id in [listed.id for listed in client.list_jobs().jobs]
        client.fail_job(job_id, "w1", ValueError("no"), retry=False)
        assert [dead.id for dead in client.list_dead().jobs] == [job_id]
        client.requeue_dead(job_id)
        client.claim_job("w1", [name])
        client.reconnect()
        client.complete_job(job_id, "w1")
        with pytest.raises(JobNotFoundError):
            client.delete_dead(job_id)
        assert client.get_stats().total == 0


def test_many_jobs_go_in_one_call_and_are_listed_by_pages(url: str) -> None:
    with SyncOsqueueClient(url, timeout=10) as client:
        ids = client.submit_jobs([("many", n) for n in range(5)], max_attempts=1)
        assert [job.id for job in client.iter_jobs(type="many", page=2)] == ids
        assert client.list_jobs(type="many", limit=1).truncated
        jobs = client.claim_jobs("w1", "many", limit=10, wait=5)
        assert [job.id for job in jobs] == ids
        assert client.heartbeat_jobs(jobs, "w1") == [None] * 5
        assert client.complete_jobs(jobs, "w1") == [None] * 5
        assert client.claim_job("w1", "many", wait=0.05) is None


def test_jobs_may_come_from_the_same_client(url: str) -> None:
    def here() -> None:
        # Anywhere else the client's next call would wait for itself.
        assert threading.current_thread() is threading.main_thread()

    def copies() -> Iterator[tuple[str, object]]:
        here()
        for job in client.iter_jobs(type="original"):
            yield "copy", job.id

    def leases() -> Iterator[tuple[str, None]]:
        here()
        for job in client.iter_jobs(type="copy", page=1):
            yield job.id, None

    with SyncOsqueueClient(url, timeout=10) as client:
        client.submit_jobs([("original", n) for n in range(2)])
        client.submit_jobs(copies())
        assert len(client.claim_jobs("w1", "copy", limit=5)) == 2
        assert client.heartbeat_jobs(leases(), "w1") == [None] * 2
        assert client.complete_jobs(leases(), "w1") == [None] * 2


def test_arguments_that_cannot_be_are_named_as_they_were_given(url: str) -> None:
    with SyncOsqueueClient(url, timeout=10) as client:
        with pytest.raises(BrokerProtocolError, match=r"^page must be"):
            next(client.iter_jobs(page=0))
        for call in (client.submit_jobs, lambda jobs: client.complete_jobs(jobs, "w1")):
            with pytest.raises(BrokerProtocolError, match=r"^jobs: give a list, not a value of int"):
                call(5)  # type: ignore[arg-type]


def test_many_threads_share_one_client(url: str) -> None:
    with SyncOsqueueClient(url, timeout=20) as client, ThreadPoolExecutor(16) as pool:
        ids = set(pool.map(lambda n: client.submit_job("threads", n), range(100)))
        jobs = list(pool.map(lambda n: client.claim_job(f"w{n}", ["threads"]), range(100)))
        assert {job.id for job in jobs if job} == ids
        for n, job in enumerate(jobs):
            assert job is not None
            client.complete_job(job.id, f"w{n}")


async def test_inside_a_running_loop(url: str) -> None:
    with SyncOsqueueClient(url, timeout=10) as client:
        assert client.get_stats().broker_address


def test_close_twice_and_no_call_after_it(url: str) -> None:
    client = SyncOsqueueClient(url)
    before = threading.active_count()
    client.get_stats()
    client.close()
    client.close()
    assert threading.active_count() < before
    with pytest.raises(ConfigError, match="closed"):
        client.get_stats()


def test_refusal_reaches_the_caller() -> None:
    client = SyncOsqueueClient(f"http://127.0.0.1:{free_port()}", timeout=5)
    with pytest.raises(TransportConnectionError) as caught:
        client.submit_job("a", 1)
    client.close()
    assert caught.value.outcome == "not_applied"


def test_settings_that_cannot_be_leave_no_thread_behind() -> None:
    before = threading.active_count()
    with pytest.raises(ConfigError):
        SyncOsqueueClient()
    assert threading.active_count() == before


FORK = """
import os, sys
from osqueue_client import SyncOsqueueClient
client = SyncOsqueueClient(sys.argv[1], transport=sys.argv[2], timeout=10)
client.submit_job("fork", "parent")
pid = os.fork()
if pid == 0:
    client.submit_job("fork", "child")
    client.close()
    os._exit(0)
assert os.waitpid(pid, 0)[1] == 0
client.submit_job("fork", "parent again")
client.close()
print("done")
"""


FORK_WITH_CONNECT = """
import os, sys
from osqueue_client import SyncOsqueueClient, TransportConfigError
client = SyncOsqueueClient(sys.argv[1], transport="connect", timeout=10)
client.submit_job("fork-connect", "parent")
pid = os.fork()
if pid == 0:
    try:
        client.submit_job("fork-connect", "child")
    except TransportConfigError:
        os._exit(0)
    os._exit(1)
assert os.waitpid(pid, 0)[1] == 0
client.close()
"""


def test_connect_says_that_it_does_not_live_through_a_fork(url: str) -> None:
    subprocess.run([sys.executable, "-W", "ignore", "-c", FORK_WITH_CONNECT, url], check=True, timeout=30)


@pytest.mark.parametrize("name", ["rest", "ws"])
def test_child_of_a_fork_opens_connections_of_its_own(url: str, name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORK, url, name], capture_output=True, text=True, timeout=30
    )
    assert (done.stdout, done.stderr, done.returncode) == ("done\n", "", 0)
    with SyncOsqueueClient(url, timeout=10) as client:
        payloads = []
        while job := client.claim_job("w", ["fork"]):
            payloads.append(job.payload)
            client.complete_job(job.id, "w")
    assert payloads == ["parent", "child", "parent again"]


NEW_IN_A_FORK = """
import os, sys
from osqueue_client import OsqueueError, SyncOsqueueClient, TransportConfigError
client = SyncOsqueueClient(sys.argv[1], transport="connect", timeout=60)
if sys.argv[2] == "used":
    client.get_stats()
pid = os.fork()
if pid == 0:
    for client in (client, SyncOsqueueClient(sys.argv[1], transport="connect", timeout=60)):
        try:
            client.get_stats()
            print("answered", flush=True)
        except TransportConfigError as error:
            print("fork" in error.message, flush=True)
        except OsqueueError as error:
            print(error.tag, flush=True)
    os._exit(0)
assert os.waitpid(pid, 0)[1] == 0
"""


@pytest.mark.parametrize(("parent", "child"), [("used", "True\nTrue\n"), ("unused", "answered\nanswered\n")])
def test_connect_is_refused_at_once_in_a_fork_of_what_has_used_it(url: str, parent: str, child: str) -> None:
    command = [sys.executable, "-W", "ignore", "-c", NEW_IN_A_FORK, url, parent]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert (done.stdout, done.stderr, done.returncode) == (child, "", 0)


THREADS_IN_A_FORK = """
import os, sys, threading
from osqueue_client import SyncOsqueueClient, TransportConnectionError
client = SyncOsqueueClient(sys.argv[1], timeout=0.2)
def call(start):
    start.wait(10)
    try:
        client.get_stats()
    except TransportConnectionError:
        pass
call(threading.Barrier(1))
for _ in range(30):
    pid = os.fork()
    if pid == 0:
        sys.setswitchinterval(1e-6)
        start = threading.Barrier(16)
        threads = [threading.Thread(target=call, args=(start,), daemon=True) for _ in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10)
        loops = [thread.name for thread in threading.enumerate()].count("osqueue-client")
        os._exit(0 if loops == 1 and not any(thread.is_alive() for thread in threads) else 1)
    assert os.waitpid(pid, 0)[1] == 0
"""


def test_threads_of_a_fork_share_the_one_client() -> None:
    command = [sys.executable, "-W", "ignore", "-c", THREADS_IN_A_FORK, f"127.0.0.1:{free_port()}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=50)
    assert (done.stderr, done.returncode) == ("", 0)


def test_transport_of_the_programs_own_is_made_where_it_is_used(url: str) -> None:
    made: list[threading.Thread] = []

    def make(url: str) -> Transport:
        made.append(threading.current_thread())
        return ConnectTransport(url, codec="json")

    with SyncOsqueueClient(url, transport=make, timeout=10) as client:
        assert client.get_stats().broker_address
    assert [thread.name for thread in made] == ["osqueue-client"]


INTERRUPTED = """
import sys
from osqueue_client import SyncOsqueueClient
client = SyncOsqueueClient(sys.argv[1], timeout=60)
try:
    client.get_stats()
except KeyboardInterrupt:
    print("interrupted", flush=True)
sys.stdin.read()
"""


def test_ctrl_c_cancels_a_call() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        subprocess.Popen(
            [sys.executable, "-c", INTERRUPTED, f"127.0.0.1:{silent.getsockname()[1]}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            preexec_fn=obey_ctrl_c,
        ) as process,
    ):
        try:
            silent.settimeout(20)
            connection, _ = silent.accept()
            with connection:
                connection.settimeout(10)
                request = connection.recv(4096)
                os.kill(process.pid, signal.SIGINT)
                assert process.stdout is not None
                assert process.stdout.readline() == "interrupted\n"
                while request:
                    request = connection.recv(4096)  # until the call lets go of its connection
            process.communicate(timeout=10)
            assert process.returncode == 0
        finally:
            process.kill()


def test_program_that_never_closes_ends(url: str) -> None:
    code = "import sys; from osqueue_client import *; c = SyncOsqueueClient(sys.argv[1]); c.get_stats()"
    done = subprocess.run([sys.executable, "-c", code, url], capture_output=True, text=True, timeout=10)
    assert (done.returncode, done.stderr) == (0, "")
