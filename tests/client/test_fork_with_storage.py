"""A forked child of a program whose client finds the leader through a folder: it asks as its parent does."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

from osqueue_broker import BrokerServer, FileBackend

FORKS = """
import os, sys
from osqueue_client import SyncOsqueueClient
from osqueue_storage import FileBackend

client = SyncOsqueueClient(storage=FileBackend(sys.argv[1]), timeout=20)
client.submit_job("parent", 1)
child = os.fork()
client.submit_job("parent" if child else "child", 2)
if child:
    assert os.waitpid(child, 0)[1] == 0
client.close()
"""


async def test_client_that_finds_the_leader_through_a_folder_works_after_a_fork(tmp_path: Path) -> None:
    async with asyncio.timeout(50), BrokerServer(storage=FileBackend(tmp_path), port=0):
        program = await asyncio.create_subprocess_exec(
            sys.executable, "-W", "ignore", "-c", FORKS, str(tmp_path), stderr=subprocess.PIPE
        )
        try:
            _, errors = await program.communicate()
        finally:
            if program.returncode is None:
                program.kill()
        assert program.returncode == 0, errors.decode()
        async with FileBackend(tmp_path) as store:
            found = await store.read("queue.json")
        assert found is not None
        assert (found.body.count(b'"parent"'), found.body.count(b'"child"')) == (2, 1)
