"""Several processes on one file store: no update is lost, and a kill leaves the old content or the new."""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
from asyncio.subprocess import Process
from pathlib import Path

import pytest
from storage.file_writer import KEY, body_of, number_of

from osqueue_storage import CASConflictError, FileBackend
from osqueue_storage.file_paths import TEMP_PREFIX

WRITER = Path(__file__).with_name("file_writer.py")
FOREVER = 1_000_000


async def start_writer(root: Path, wins: int, size: int, *die_at: int) -> Process:
    arguments = [str(WRITER), str(root), *map(str, (wins, size, *die_at))]
    return await asyncio.create_subprocess_exec(sys.executable, *arguments, stdout=subprocess.PIPE)


async def acknowledged_by(writer: Process) -> list[int]:
    """The numbers that a writer had acknowledged, and not yet been asked for, when it ended."""
    assert writer.stdout is not None
    numbers = [int(line) for line in (await writer.stdout.read()).splitlines() if line]
    await writer.wait()
    return numbers


async def prepared(root: Path, size: int) -> None:
    async with FileBackend(root) as store:
        await store.create(KEY, body_of(0, size))


async def stored_number(root: Path) -> int:
    async with FileBackend(root) as store:
        found = await store.read(KEY)
    assert found is not None
    return number_of(found.body)


async def is_writable(root: Path, size: int) -> None:
    """One more write lands, however others race for it, and sweeps what the dead left."""
    async with FileBackend(root) as store:
        for _ in range(1000):
            found = await store.read(KEY)
            assert found is not None
            try:
                await store.write(KEY, body_of(number_of(found.body) + 1, size), found.version)
                return
            except CASConflictError:
                continue
    raise AssertionError("no write lands any more")


def temporary_files(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir() if ".tmp." in path.name)


async def test_processes_lose_no_update(tmp_path: Path) -> None:
    writers, wins = 4, 60
    await prepared(tmp_path, 4096)
    started = [await start_writer(tmp_path, wins, 4096) for _ in range(writers)]
    numbers = [number for writer in started for number in await acknowledged_by(writer)]
    assert sorted(numbers) == list(range(1, writers * wins + 1))
    assert await stored_number(tmp_path) == writers * wins
    assert temporary_files(tmp_path) == []


@pytest.mark.parametrize("die_at", range(21))
async def test_writer_that_dies_at_a_disk_operation_leaves_old_or_new(die_at: int, tmp_path: Path) -> None:
    size = 20_000
    await prepared(tmp_path, size)
    # A read and a write make 19 operations: each of them is the last one once.
    writer = await start_writer(tmp_path, FOREVER, size, die_at)
    numbers = await acknowledged_by(writer)
    assert writer.returncode == -9
    assert await stored_number(tmp_path) - numbers[-1] in (0, 1)
    await is_writable(tmp_path, size)
    assert temporary_files(tmp_path) == []


@pytest.mark.parametrize("die_at", range(24))
async def test_writer_that_dies_in_its_first_write_leaves_old_or_new(die_at: int, tmp_path: Path) -> None:
    size = 20_000
    await prepared(tmp_path, size)
    (tmp_path / f"{TEMP_PREFIX}1.dead").write_bytes(b"half")  # so that it also sweeps
    # Its first read and write make 22 operations.
    writer = await start_writer(tmp_path, FOREVER, size, die_at, 0)
    numbers = await acknowledged_by(writer)
    assert writer.returncode == -9
    assert await stored_number(tmp_path) - len(numbers) in (0, 1)
    await is_writable(tmp_path, size)
    assert temporary_files(tmp_path) == []


async def test_killed_writers_lose_nothing_acknowledged_and_hold_up_nobody(tmp_path: Path) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    size = 200_000
    await prepared(tmp_path, size)
    rounds, landed_without_answer = 10, 0
    for _ in range(rounds):
        before = await stored_number(tmp_path)
        victims = [await start_writer(tmp_path, FOREVER, size) for _ in range(2)]
        acknowledged: list[int] = []
        for victim in victims:
            assert victim.stdout is not None
            for _ in range(chance.randint(1, 8)):
                acknowledged.append(int(await victim.stdout.readline()))
        for victim in victims:
            victim.kill()
        for victim in victims:
            acknowledged += await acknowledged_by(victim)
        stored = await stored_number(tmp_path)
        assert len(set(acknowledged)) == len(acknowledged), "two writers were told that one number is theirs"
        assert stored >= max(acknowledged), "an acknowledged write is gone"
        missing = set(range(before + 1, stored + 1)) - set(acknowledged)
        assert len(missing) <= len(victims), "more landed without an answer than were killed"
        landed_without_answer += len(missing)
        await is_writable(tmp_path, size)
        assert temporary_files(tmp_path) == []
    print(f"{landed_without_answer} of {2 * rounds} kills left a write that was not acknowledged")


FORKED = """
import asyncio, os, sys
from osqueue_storage import FileBackend

async def change(store, name):
    found = await store.read("queue.json")
    await store.write("queue.json", found.body + name, found.version)
    await store.create(name.decode(), b"")

store = FileBackend(sys.argv[1])
asyncio.run(store.create("queue.json", b""))
asyncio.run(change(store, b"p"))
child = os.fork()
if child:
    assert os.waitpid(child, 0)[1] == 0
asyncio.run(change(store, b"q" if child else b"c"))
asyncio.run(store.aclose())
"""

FULL = """
import asyncio, resource, sys
from osqueue_storage import FileBackend, StorageBackendError

async def main():
    async with FileBackend(sys.argv[1]) as store:
        version = await store.create("queue.json", b"old")
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
        try:
            await store.write("queue.json", b"x" * 20_000, version)
        except StorageBackendError as error:
            print(error.outcome, error.message)
        await store.write("queue.json", b"x" * 10_000, version)

asyncio.run(main())
"""


async def run_script(script: str, root: Path) -> str:
    async with asyncio.timeout(30):
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", script, str(root), stdout=subprocess.PIPE
        )
        try:
            output, _ = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
    assert process.returncode == 0
    return output.decode()


async def test_backend_made_before_a_fork_serves_parent_and_child(tmp_path: Path) -> None:
    await run_script(FORKED, tmp_path)
    async with FileBackend(tmp_path) as store:
        found = await store.read("queue.json")
        assert found is not None
        assert found.body == b"pcq"
        assert [key async for key in store.list("")] == ["c", "p", "q", "queue.json"]


async def test_file_that_may_not_grow_is_told_and_keeps_the_old_content(tmp_path: Path) -> None:
    told = await run_script(FULL, tmp_path)
    assert told.startswith(f"not_applied cannot write {tmp_path / 'queue.json'}: File too large (")
    assert (tmp_path / "queue.json").read_bytes() == b"x" * 10_000
    assert temporary_files(tmp_path) == []


async def test_reader_in_another_process_never_sees_a_torn_body(tmp_path: Path) -> None:
    size = 1_000_000
    await prepared(tmp_path, size)
    writer = await start_writer(tmp_path, 40, size)
    end = asyncio.ensure_future(writer.wait())
    seen = set()
    async with FileBackend(tmp_path) as store:
        while not end.done():
            found = await store.read(KEY)
            assert found is not None
            seen.add(number_of(found.body))
    assert await acknowledged_by(writer) == list(range(1, 41))
    assert len(seen) > 1
