"""Every backend keeps the contract, and the suite notices backends that do not."""

from __future__ import annotations

import asyncio
import hashlib
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path

import pytest
from storage.broken_files import FilesInPlace, FilesThatLag, UnlockedFiles
from storage.conftest import Keep
from storage.servers.fake_gcs import FakeGCS
from storage.servers.process import free_ports
from storage.stub import StubFaultInjector, StubStore

from osqueue_storage import (
    CASConflictError,
    FileBackend,
    MemoryBackend,
    S3Backend,
    StorageBackendError,
    StoredObject,
)
from osqueue_storage.contract import (
    CONTRACT,
    PROCESS_CONTRACT,
    Check,
    ContractViolation,
    Factory,
    Races,
    verify_backend,
    verify_faults,
)
from osqueue_storage.contract import __main__ as command_line


def memory(tmp_path: Path) -> Factory:
    store = MemoryBackend()
    return lambda: store


def slow_memory(tmp_path: Path) -> Factory:
    store = MemoryBackend(latency=0.002)
    return lambda: store


def file(tmp_path: Path) -> Factory:
    return lambda: FileBackend(tmp_path / "store")


@pytest.mark.parametrize("check", CONTRACT, ids=lambda check: check.__name__)
@pytest.mark.parametrize("make", [memory, slow_memory, file])
async def test_backend_keeps_the_contract(
    make: Callable[[Path], Factory], check: Check, tmp_path: Path, keep: Keep
) -> None:
    await keep(check, make(tmp_path))


@pytest.mark.parametrize("make", [memory, file])
async def test_suite_can_be_run_again_on_the_same_store(
    make: Callable[[Path], Factory], tmp_path: Path
) -> None:
    factory = make(tmp_path)
    for _ in range(2):
        report = await verify_backend(factory)
        assert report.passed == tuple(check.__name__ for check in CONTRACT)


class TellsChanges(MemoryBackend):
    """Keeps the contract, `ConditionalReader` included."""

    async def read_if_changed(self, key: str, version: str) -> StoredObject | None:
        found = await self.read(key)
        if found is None:
            raise StorageBackendError(f"no object {key!r}")
        return None if found.version == version else found


async def test_backend_with_conditional_reads_keeps_the_contract() -> None:
    store = TellsChanges()
    await verify_backend(lambda: store)


class IgnoresVersion(MemoryBackend):
    async def write(self, key: str, body: bytes, expected_version: str) -> str:
        found = await self.read(key)
        return await super().write(key, body, found.version if found else expected_version)


class WriteCreatesWhatIsMissing(MemoryBackend):
    async def write(self, key: str, body: bytes, expected_version: str) -> str:
        if await self.read(key) is None:
            return await self.create(key, body)
        return await super().write(key, body, expected_version)


class TakesAnyVersion(MemoryBackend):
    """Sends the version as it is to a store whose word for any version is a star."""

    async def write(self, key: str, body: bytes, expected_version: str) -> str:
        found = await self.read(key)
        return await super().write(
            key, body, found.version if found and expected_version == "*" else expected_version
        )


class CreateOverwrites(MemoryBackend):
    async def create(self, key: str, body: bytes) -> str:
        await self.delete(key)
        return await super().create(key, body)


class AppliesWhatItRefuses(MemoryBackend):
    async def write(self, key: str, body: bytes, expected_version: str) -> str:
        try:
            return await super().write(key, body, expected_version)
        except CASConflictError:
            found = await self.read(key)
            if found is not None:
                await super().write(key, body, found.version)
            raise


class ResendsAndReportsConflict(MemoryBackend):
    """As a client library does that sends a conditional write again after its answer got lost."""

    async def write(self, key: str, body: bytes, expected_version: str) -> str:
        await super().write(key, body, expected_version)
        return await super().write(key, body, expected_version)


class ChecksThenPuts(MemoryBackend):
    """Looks at the version and writes later: right for one writer, a lost update for two."""

    async def write(self, key: str, body: bytes, expected_version: str) -> str:
        found = await self.read(key)
        if found is None or found.version != expected_version:
            raise CASConflictError(key=key)
        await asyncio.sleep(0)
        return self._put(key, body)


class ChecksThenCreates(MemoryBackend):
    async def create(self, key: str, body: bytes) -> str:
        if key in self._objects:
            raise CASConflictError(key=key)
        await asyncio.sleep(0)
        return self._put(key, body)


class TearsReads(MemoryBackend):
    """Reads a large body in two halves, with a pause between."""

    async def read(self, key: str) -> StoredObject | None:
        first = await super().read(key)
        await asyncio.sleep(0)
        second = await super().read(key)
        if first is None or second is None:
            return None
        half = len(first.body) // 2
        return StoredObject(first.body[:half] + second.body[half:], first.version)


class ReadsVersionSeparately(MemoryBackend):
    """Asks for the body, and then for the version: whole bodies, but the version may be a later one's."""

    async def read(self, key: str) -> StoredObject | None:
        first = await super().read(key)
        await asyncio.sleep(0)
        second = await super().read(key)
        return StoredObject(first.body, second.version) if first and second else None


class ReadsStale(MemoryBackend):
    """Gives a cached state, as a store without read-after-write consistency does."""

    def __init__(self) -> None:
        super().__init__()
        self._cache: dict[str, StoredObject | None] = {}

    async def read(self, key: str) -> StoredObject | None:
        return self._cache.setdefault(key, await super().read(key))


class VersionsAreLengths(MemoryBackend):
    """Two states of one object share a version."""

    def _put(self, key: str, body: bytes) -> str:
        self._objects[key] = StoredObject(body, str(len(body)))
        return str(len(body))


class WritesHalfWhenCancelled(MemoryBackend):
    async def write(self, key: str, body: bytes, expected_version: str) -> str:
        try:
            await asyncio.sleep(0)
        except asyncio.CancelledError:
            if key in self._objects:
                self._put(key, body[: len(body) // 2])
            raise
        return await super().write(key, body, expected_version)


class HangsAfterCancellation(MemoryBackend):
    def __init__(self) -> None:
        super().__init__()
        self._lock = asyncio.Lock()

    async def write(self, key: str, body: bytes, expected_version: str) -> str:
        await self._lock.acquire()
        await asyncio.sleep(0)  # a cancellation here keeps the lock for good
        self._lock.release()
        return await super().write(key, body, expected_version)


class CutsLargeBodies(MemoryBackend):
    def _put(self, key: str, body: bytes) -> str:
        return super()._put(key, body[: 1 << 22])


class FoldsKeys(MemoryBackend):
    def _put(self, key: str, body: bytes) -> str:
        return super()._put(key.replace("//", "/"), body)


class ListsEverything(MemoryBackend):
    async def list(self, prefix: str) -> AsyncIterator[str]:
        async for key in super().list(""):
            yield key


class ListsInOrderOfCreation(MemoryBackend):
    async def list(self, prefix: str) -> AsyncIterator[str]:
        for key in self._objects:
            if key.startswith(prefix):
                yield key


class ForgetsToTellChanges(TellsChanges):
    async def read_if_changed(self, key: str, version: str) -> StoredObject | None:
        return None


class ClosesOnce(MemoryBackend):
    closed = False

    async def aclose(self) -> None:
        if self.closed:
            raise StorageBackendError("closed already")
        self.closed = True


BROKEN = {
    IgnoresVersion: "stale_write_conflicts",
    WriteCreatesWhatIsMissing: "write_without_object_conflicts",
    TakesAnyVersion: "write_at_a_version_that_was_never_given_conflicts",
    CreateOverwrites: "create_over_existing_conflicts",
    AppliesWhatItRefuses: "stale_write_conflicts",
    ResendsAndReportsConflict: "write_at_the_right_version_lands",
    ChecksThenPuts: "one_of_many_writes_on_a_version_wins",
    ChecksThenCreates: "one_of_many_creates_wins",
    TearsReads: "reads_are_never_torn",
    ReadsVersionSeparately: "reads_are_never_torn",
    ReadsStale: "created_object_is_read_back",
    VersionsAreLengths: "write_at_the_right_version_lands",
    WritesHalfWhenCancelled: "cancelled_write_leaves_old_or_new",
    CutsLargeBodies: "created_object_is_read_back",
    FoldsKeys: "odd_keys_are_kept_apart",
    ListsEverything: "listing_keeps_to_its_prefix",
    ListsInOrderOfCreation: "listing_keeps_to_its_prefix",
    ForgetsToTellChanges: "unchanged_object_is_not_read_again",
}


@pytest.mark.parametrize(
    ("broken", "check_name"), BROKEN.items(), ids=lambda value: getattr(value, "__name__", value)
)
async def test_suite_catches_a_broken_backend(broken: type[MemoryBackend], check_name: str) -> None:
    store = broken()
    check = next(check for check in CONTRACT if check.__name__ == check_name)
    with pytest.raises(ContractViolation):
        await check(lambda: store)


class RefusesDots(MemoryBackend):
    """Keeps the contract: a key may be refused."""

    async def create(self, key: str, body: bytes) -> str:
        if key.endswith("."):
            raise StorageBackendError("no such key here", outcome="not_applied")
        return await super().create(key, body)


class RefusesDotsUnclearly(MemoryBackend):
    """Does not: nobody knows what became of the create."""

    async def create(self, key: str, body: bytes) -> str:
        if key.endswith("."):
            raise StorageBackendError("something went wrong", outcome="unknown")
        return await super().create(key, body)


async def test_a_key_may_be_refused_but_only_clearly() -> None:
    check = next(check for check in CONTRACT if check.__name__ == "odd_keys_are_kept_apart")
    store, unclear = RefusesDots(), RefusesDotsUnclearly()
    await check(lambda: store)
    with pytest.raises(StorageBackendError, match="something went wrong"):
        await check(lambda: unclear)


async def test_keys_that_are_declared_as_merged_are_not_tried() -> None:
    store = FoldsKeys()
    report = await verify_backend(lambda: store, merged=("//",))
    assert report.merged == ("//",)
    with pytest.raises(ContractViolation, match="odd_keys_are_kept_apart"):
        await verify_backend(lambda: store)


class TakesWritesApart(TellsChanges):
    """Takes a write of an object each 30 ms, and of those that come sooner it says nothing clear."""

    min_write_interval = slowest_write_interval = 0.03

    def __init__(self) -> None:
        super().__init__()
        self._written: dict[str, float] = {}

    async def create(self, key: str, body: bytes) -> str:
        self._see_that_it_is_time(key)
        return await super().create(key, body)

    async def write(self, key: str, body: bytes, expected_version: str) -> str:
        self._see_that_it_is_time(key)
        return await super().write(key, body, expected_version)

    async def delete(self, key: str) -> None:
        self._see_that_it_is_time(key)
        await super().delete(key)

    def _see_that_it_is_time(self, key: str) -> None:
        now = asyncio.get_running_loop().time()
        if now < self._written.get(key, 0.0) + self.min_write_interval:
            raise StorageBackendError("429 Too Many Requests", outcome="unknown")
        self._written[key] = now


async def test_writes_to_a_store_that_takes_them_apart_are_apart_save_in_a_race() -> None:
    store = TakesWritesApart()
    report = await verify_backend(lambda: store)
    assert report.passed == tuple(check.__name__ for check in CONTRACT)
    assert report.races["one_of_many_creates_wins"] == Races(1, 0, 31)
    assert report.races["one_of_many_writes_on_a_version_wins"] == Races(4, 0, 60)
    assert report.races["no_update_is_lost"].wins == 16


class LosesAnswers(MemoryBackend):
    """Says of each third write nothing clear, whether it landed or not."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = 0

    async def write(self, key: str, body: bytes, expected_version: str) -> str:
        self.asked += 1
        is_lost = self.asked % 3 == 1
        try:
            version = await super().write(key, body, expected_version)
        except CASConflictError as error:
            if is_lost:
                raise StorageBackendError("500", outcome="unknown") from error
            raise
        if is_lost:
            raise StorageBackendError("500", outcome="unknown")
        return version


class LosesAnswersAndUpdates(LosesAnswers):
    async def write(self, key: str, body: bytes, expected_version: str) -> str:
        found = await self.read(key)
        if found is None or found.version != expected_version:
            raise CASConflictError(key=key)
        await asyncio.sleep(0)
        self.asked += 1
        version = self._put(key, body)
        if self.asked % 3 == 1:
            raise StorageBackendError("500", outcome="unknown")
        return version


class AppliesNothing(MemoryBackend):
    """Says nothing clear of any write, and applies none of them."""

    async def write(self, key: str, body: bytes, expected_version: str) -> str:
        raise StorageBackendError("500", outcome="unknown")


@pytest.mark.parametrize("name", ["no_update_is_lost", "one_of_many_writes_on_a_version_wins"])
async def test_unknown_outcomes_of_a_race_are_resolved_by_reading(name: str) -> None:
    check = next(check for check in CONTRACT if check.__name__ == name)
    store = LosesAnswers()
    races = await check(lambda: store)
    assert races is not None
    assert races.wins == (80 if name == "no_update_is_lost" else 4)
    assert races.unknown > 0


async def test_lost_update_is_caught_where_answers_are_lost_as_well() -> None:
    check = next(check for check in CONTRACT if check.__name__ == "no_update_is_lost")
    store = LosesAnswersAndUpdates()
    with pytest.raises(ContractViolation, match="80 writes succeeded, but the object has"):
        await check(lambda: store)


async def test_race_that_nobody_wins_is_a_violation() -> None:
    check = next(check for check in CONTRACT if check.__name__ == "one_of_many_writes_on_a_version_wins")
    store = AppliesNothing()
    with pytest.raises(ContractViolation, match="0 of 16 writes at once succeeded"):
        await check(lambda: store)


async def test_lost_update_is_caught_by_the_counter_alone() -> None:
    store = ChecksThenPuts()
    check = next(check for check in CONTRACT if check.__name__ == "no_update_is_lost")
    with pytest.raises(ContractViolation, match="80 writes succeeded, but the object has"):
        await check(lambda: store)


async def test_report_of_a_violation_names_the_check() -> None:
    store = CreateOverwrites()
    with pytest.raises(
        ContractViolation, match=r"^create_over_existing_conflicts: a create over an existing"
    ):
        await verify_backend(lambda: store)


async def test_check_that_hangs_is_a_violation() -> None:
    store = HangsAfterCancellation()
    with pytest.raises(ContractViolation, match=r"^cancelled_write_.*: it did not end within 0\.5 s"):
        await verify_backend(lambda: store, check_timeout=0.5)


async def test_error_of_a_second_close_passes_through() -> None:
    with pytest.raises(StorageBackendError, match="closed already"):
        await next(check for check in CONTRACT if check.__name__ == "closing_twice_is_safe")(ClosesOnce)


async def test_content_hash_is_the_version_of_a_file(tmp_path: Path) -> None:
    async with FileBackend(tmp_path) as store:
        assert await store.create("queue.json", b"{}") == hashlib.sha256(b"{}").hexdigest()


@pytest.mark.parametrize("check", PROCESS_CONTRACT, ids=lambda check: check.__name__)
async def test_files_keep_the_contract_between_processes(check: Check, tmp_path: Path, keep: Keep) -> None:
    await keep(check, partial(FileBackend, tmp_path))


@pytest.mark.parametrize(
    ("broken", "check_name"),
    [
        (UnlockedFiles, "no_update_is_lost_between_processes"),
        (FilesInPlace, "killed_writer_leaves_the_last_body_or_the_next"),
        (FilesThatLag, "killed_writer_leaves_the_last_body_or_the_next"),
    ],
)
async def test_suite_catches_what_breaks_between_processes(
    broken: type[FileBackend], check_name: str, tmp_path: Path
) -> None:
    check = next(check for check in PROCESS_CONTRACT if check.__name__ == check_name)
    with pytest.raises(ContractViolation):
        await _five_times(check, partial(broken, tmp_path))  # a race, or the moment of a kill, may miss once


async def _five_times(check: Check, factory: Factory) -> None:
    for _ in range(5):
        await check(factory)


async def test_report_counts_wins_and_losses(tmp_path: Path) -> None:
    report = await verify_backend(partial(FileBackend, tmp_path))
    assert report.skipped == ()
    assert report.passed == tuple(check.__name__ for check in (*CONTRACT, *PROCESS_CONTRACT))
    assert report.races["one_of_many_creates_wins"] == Races(1, 31)
    assert report.races["no_update_is_lost"].wins == 80
    assert report.races["no_update_is_lost_between_processes"].wins == 90
    assert re.search(
        r"^passed   one_of_many_creates_wins +1 won, 31 conflicted, 0 unknown$", str(report), re.MULTILINE
    )


async def test_checks_between_processes_are_skipped_for_a_factory_that_cannot_be_sent_there() -> None:
    store = MemoryBackend()
    report = await verify_backend(lambda: store)
    assert report.skipped == tuple(check.__name__ for check in PROCESS_CONTRACT)
    assert str(report).endswith("the factory cannot be pickled")


@pytest.mark.parametrize(
    ("url", "status", "told"),
    [
        ("memory:", 0, "passed   no_update_is_lost "),
        ("file:{folder}", 0, "passed   killed_writer_leaves_the_last_body_or_the_next"),
        ("nonsense:", 2, "ConfigError: the storage URL nonsense: is not right"),
        (
            "gs://jobs?anonymous=true&endpoint_url=http://127.0.0.1:{dead}",
            2,
            "StorageBackendError: list of ",
        ),
        ("--help", 0, "--merged PART"),
        ("", 2, "usage: python -m osqueue_storage.contract"),
        ("memory: --merged //", 0, "declared keys with '//' are not kept apart"),
    ],
)
def test_the_contract_on_the_command_line(url: str, status: int, told: str, tmp_path: Path) -> None:
    (dead,) = free_ports(1)
    arguments = url.format(folder=tmp_path / "store", dead=dead).split()
    command = [sys.executable, "-m", "osqueue_storage.contract", *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ended.returncode == status
    assert told in ended.stdout + ended.stderr


def test_missing_bucket_ends_the_command_with_2(
    fake_gcs_server: FakeGCS, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    url = f"gs://no-such-bucket?anonymous=true&endpoint_url={fake_gcs_server.endpoint_url}"
    monkeypatch.setattr(sys, "argv", ["contract", url])
    assert command_line.main() == 2
    assert "Create the bucket" in capsys.readouterr().err


def test_store_that_breaks_the_contract_ends_the_command_with_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Overwrites(MemoryBackend):
        async def create(self, key: str, body: bytes) -> str:
            await self.delete(key)
            return await super().create(key, body)

    monkeypatch.setattr(command_line, "open_storage", lambda url: Overwrites())
    monkeypatch.setattr(sys, "argv", ["contract", "memory:"])
    assert command_line.main() == 1
    assert capsys.readouterr().err.startswith("ContractViolation: ")


class ResendsWrites(S3Backend):
    """Sends a write again when it fails, as a client library may: its first try is then called a conflict."""

    async def write(self, key: str, body: bytes, expected_version: str) -> str:
        try:
            return await super().write(key, body, expected_version)
        except StorageBackendError:
            return await super().write(key, body, expected_version)


class CallsFailuresConflicts(S3Backend):
    """Takes whatever goes wrong for a conflict."""

    async def create(self, key: str, body: bytes) -> str:
        try:
            return await super().create(key, body)
        except StorageBackendError as error:
            raise CASConflictError(str(error), key=key) from error


class SwallowsFailures(S3Backend):
    """Says that a write landed whatever the store says."""

    async def write(self, key: str, body: bytes, expected_version: str) -> str:
        try:
            return await super().write(key, body, expected_version)
        except StorageBackendError:
            return "version"


class ForeignErrors(S3Backend):
    """Lets an exception of another library out."""

    async def write(self, key: str, body: bytes, expected_version: str) -> str:
        try:
            return await super().write(key, body, expected_version)
        except StorageBackendError as error:
            raise OSError("of somebody else") from error


@pytest.mark.parametrize(
    ("backend", "violation"),
    [
        (S3Backend, None),
        (ResendsWrites, "called a conflict|sent 2 times|called a success"),
        (CallsFailuresConflicts, "called a conflict"),
        (SwallowsFailures, "called a success"),
        (ForeignErrors, "OSError instead of StorageBackendError"),
    ],
)
async def test_fault_suite_passes_a_good_backend_and_catches_the_others(
    backend: type[S3Backend], violation: str | None
) -> None:
    async with StubStore("s3") as stub:
        factory = partial(
            backend, stub.bucket, endpoint_url=stub.endpoint_url, region="us-east-1", timeout=0.5,
            access_key_id="k", secret_access_key="s",
        )  # fmt: skip
        if violation is None:
            await verify_faults(factory, StubFaultInjector(stub))
            return
        with pytest.raises(ContractViolation, match=violation):
            await verify_faults(factory, StubFaultInjector(stub))
