"""The end of a blocking client while other threads call it."""

from __future__ import annotations

import os
import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from osqueue_client import ConfigError, SyncOsqueueClient, TransportConnectionError
from osqueue_client.transports import TransportName


@pytest.mark.parametrize("name", ["rest", "ws", "connect"])
def test_close_ends_the_calls_of_other_threads(name: TransportName) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent, ThreadPoolExecutor(1) as pool:
        client = SyncOsqueueClient(f"http://127.0.0.1:{silent.getsockname()[1]}", transport=name, timeout=50)
        call = pool.submit(client.heartbeat, "j", "w")
        connection, _ = silent.accept()
        with connection:
            connection.recv(1)
            client.close()
            with pytest.raises(TransportConnectionError, match="closed") as caught:
                call.result(timeout=10)
        assert caught.value.outcome == "unknown"
        with pytest.raises(ConfigError, match="closed"):
            client.get_stats()


def test_close_and_calls_at_once_end_all() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{probe.getsockname()[1]}"
    for _ in range(20):
        client = SyncOsqueueClient(url, timeout=50)
        start = threading.Barrier(5)

        def call(client: SyncOsqueueClient = client, start: threading.Barrier = start) -> None:
            start.wait(10)
            with pytest.raises((ConfigError, TransportConnectionError)):
                client.get_stats()

        with ThreadPoolExecutor(4) as pool:
            calls = [pool.submit(call) for _ in range(4)]
            start.wait(10)
            client.close()
            for done in calls:
                done.result(timeout=10)


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_close_in_the_child_of_a_fork_leaves_the_parent_alone() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with SyncOsqueueClient(url, timeout=0.2) as client:
            child = os.fork()
            if child == 0:
                client.close()
                os._exit(0)
            assert os.waitpid(child, 0)[1] == 0
            with pytest.raises(TransportConnectionError, match=r"0\.2 s"):
                client.get_stats()
