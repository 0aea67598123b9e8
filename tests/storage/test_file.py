"""What is FileBackend's own, beyond the contract: paths, temporary files, disk errors, threads."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from osqueue_storage import (
    CASConflictError,
    ConfigError,
    FileBackend,
    StorageBackend,
    StorageBackendError,
    disk,
)
from osqueue_storage.file_paths import LOCK_NAME, TEMP_PREFIX

ODD_KEYS = (
    "queue.json", "queue.json/a", "a", "A", "a/b", "a/b/c", "..", "../up", "../../up", ".", "./a", "a/..",
    "a/../../../up", "/", "//", "/etc/osqueue", "a/", "a//", "a//b", "a%2Fb", "%", "%%", "a%", "a%/b",
    "%2E", "%2E%2E", "\N{GREEK SMALL LETTER ALPHA}", "e\N{COMBINING ACUTE ACCENT}",
    "\N{LATIN SMALL LETTER E WITH ACUTE}", "\N{PILE OF POO}", "a b", "a\nb", "\0", "\x7f", "~", "~root", "*",
    "C:\\x", "con", LOCK_NAME, TEMP_PREFIX + "1", "a/" + LOCK_NAME, "x" * 250, "/".join("y" * 50 for _ in range(20)),
)  # fmt: skip


def files_below(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def keys_as_files(folder: Path) -> list[str]:
    return [name for name in files_below(folder) if Path(name).name != LOCK_NAME]


@contextmanager
def failing(monkeypatch: pytest.MonkeyPatch, name: str, after: int, code: int) -> Iterator[None]:
    """Let the `os` function of this name fail with an errno, after so many calls that succeed."""
    real: Callable[..., object] = getattr(os, name)
    left = [after]

    def fail(*args: object, **kwargs: object) -> object:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(code, os.strerror(code))
        return real(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(os, name, fail)
        yield


async def test_queue_document_is_stored_at_its_own_name(tmp_path: Path) -> None:
    async with FileBackend(tmp_path / "a" / "b") as store:
        await store.create("queue.json", b"{}")
        await store.create("team/queue.json", b"[]")
    assert (tmp_path / "a" / "b" / "queue.json").read_bytes() == b"{}"
    assert (tmp_path / "a" / "b" / "team%" / "queue.json").read_bytes() == b"[]"


async def test_nothing_is_made_before_the_first_write(tmp_path: Path) -> None:
    async with FileBackend(tmp_path / "data") as store:
        assert await store.read("queue.json") is None
        assert [key async for key in store.list("")] == []
        await store.delete("queue.json")
    assert os.listdir(tmp_path) == []


async def test_odd_keys_stay_apart_and_below_the_root(tmp_path: Path) -> None:
    root = tmp_path / "deep" / "root"
    async with FileBackend(root) as store:
        for key in ODD_KEYS:
            await store.create(key, key.encode())
        for key in ODD_KEYS:
            found = await store.read(key)
            assert found is not None
            assert found.body == key.encode()
        assert [key async for key in store.list("")] == sorted(ODD_KEYS, key=str.encode)
    everything = [name for name in files_below(tmp_path) if Path(name).name != LOCK_NAME]
    assert len(everything) == len(ODD_KEYS)
    assert all(name.startswith("deep/root/") for name in everything)
    # A disk that ignores case keeps them apart, too.
    assert len({name.lower() for name in everything}) == len(ODD_KEYS)


@pytest.mark.parametrize("key", ["", "x" * 251, "a/" + "é" * 42, "\udc80"], ids=ascii)
async def test_key_that_no_file_can_have_is_refused(key: str, tmp_path: Path) -> None:
    async with FileBackend(tmp_path) as store:
        for call in (store.read(key), store.create(key, b""), store.write(key, b"", "v"), store.delete(key)):
            with pytest.raises(StorageBackendError, match="no file can be named for the key") as caught:
                await call
            assert caught.value.outcome == "not_applied"
    assert files_below(tmp_path) == []


async def test_files_of_others_are_not_listed(tmp_path: Path) -> None:
    async with FileBackend(tmp_path) as store:
        await store.create("queue.json", b"")
        for name in (".DS_Store", "README", "50%zz", "%61", "%c3%a4", "%FF", "a%2fb", "%25%"):
            (tmp_path / name).write_bytes(b"")
        (tmp_path / "backup").mkdir()
        (tmp_path / "backup" / "queue.json").write_bytes(b"")
        assert [key async for key in store.list("")] == ["queue.json"]


async def test_stale_temporary_file_is_swept_by_the_first_write(tmp_path: Path) -> None:
    async with FileBackend(tmp_path) as store:
        await store.create("a/queue.json", b"old")
    for folder in (tmp_path, tmp_path / "a%"):
        (folder / f"{TEMP_PREFIX}1.dead").write_bytes(b"half")
    async with FileBackend(tmp_path) as store:
        await store.create("queue.json", b"new")
        await store.create("a/other.json", b"new")
        assert [key async for key in store.list("")] == ["a/other.json", "a/queue.json", "queue.json"]
    assert keys_as_files(tmp_path) == ["a%/other.json", "a%/queue.json", "queue.json"]


async def test_temporary_file_of_a_writer_that_dies_later_is_swept_by_the_next_write(tmp_path: Path) -> None:
    async with FileBackend(tmp_path) as store:
        version = await store.create("queue.json", b"1")
        (tmp_path / f"{TEMP_PREFIX}1.dead").write_bytes(b"half")
        os.utime(tmp_path)  # where the clock of files is coarse, the two may have come in one tick
        await store.write("queue.json", b"2", version)
    assert keys_as_files(tmp_path) == ["queue.json"]


async def test_folder_is_not_looked_through_when_nobody_else_changed_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with FileBackend(tmp_path) as store:
        version = await store.create("queue.json", b"1")
        monkeypatch.setattr(os, "scandir", None)
        await store.write("queue.json", b"2", version)


async def test_temporary_file_that_may_not_be_deleted_holds_up_no_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stale = tmp_path / f"{TEMP_PREFIX}1.of-another-user"
    stale.write_bytes(b"half")
    async with FileBackend(tmp_path) as store:
        with failing(monkeypatch, "unlink", 0, errno.EPERM):
            await store.create("queue.json", b"1")
    assert keys_as_files(tmp_path) == [stale.name, "queue.json"]


async def test_temporary_file_of_a_live_writer_is_not_swept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reached, go_on = threading.Event(), threading.Event()
    real_rename = os.rename

    def rename_when_allowed(source: str, target: str) -> None:
        reached.set()
        assert go_on.wait(20)
        real_rename(source, target)

    async with FileBackend(tmp_path) as slow, FileBackend(tmp_path) as other:
        version = await slow.create("queue.json", b"1")
        with monkeypatch.context() as patch:
            patch.setattr(os, "rename", rename_when_allowed)
            writing = asyncio.ensure_future(slow.write("queue.json", b"2", version))
            assert await asyncio.to_thread(reached.wait, 20)
            competing = asyncio.ensure_future(other.write("queue.json", b"3", version))
            waiting_for_lock = asyncio.ensure_future(other.create("other.json", b""))
            await asyncio.sleep(0)
            # Readers are held up neither by the lock nor by what waits for it.
            found = await other.read("queue.json")
            assert found is not None
            assert found.body == b"1"
            assert any(TEMP_PREFIX in name for name in files_below(tmp_path))
            assert not competing.done()
            go_on.set()
            second = await writing
            with pytest.raises(CASConflictError):
                await competing
            await waiting_for_lock
        found = await other.read("queue.json")
        assert found is not None
        assert (found.body, found.version) == (b"2", second)
    assert keys_as_files(tmp_path) == ["other.json", "queue.json"]


async def test_cancelled_write_still_lands_before_close_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reached, go_on = threading.Event(), threading.Event()
    real_rename = os.rename

    def rename_when_allowed(source: str, target: str) -> None:
        reached.set()
        assert go_on.wait(20)
        real_rename(source, target)

    monkeypatch.setattr(os, "rename", rename_when_allowed)
    store = FileBackend(tmp_path)
    writing = asyncio.ensure_future(store.create("queue.json", b"1"))
    queued = asyncio.ensure_future(store.create("never.json", b"1"))
    assert await asyncio.to_thread(reached.wait, 20)
    for call in (writing, queued):
        call.cancel()
    await asyncio.wait([writing, queued])
    closing = asyncio.ensure_future(store.aclose())
    await asyncio.wait([closing], timeout=0.2)
    assert not closing.done()
    go_on.set()
    await closing
    assert keys_as_files(tmp_path) == ["queue.json"]


@pytest.mark.parametrize(
    ("function", "after", "code"),
    [
        ("write", 0, errno.ENOSPC),
        ("fsync", 0, errno.EIO),
        ("open", 0, errno.EACCES),
        ("open", 1, errno.EROFS),
        ("scandir", 0, errno.EIO),
    ],
)
async def test_disk_error_before_the_rename_is_not_applied(
    function: str, after: int, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "store"
    async with FileBackend(root) as other:
        version = await other.create("queue.json", b"old")
    async with FileBackend(root) as store:
        with (
            failing(monkeypatch, function, after, code),
            pytest.raises(StorageBackendError) as caught,
        ):
            await store.write("queue.json", b"new", version)
        assert caught.value.outcome == "not_applied"
        assert isinstance(caught.value.__cause__, OSError)
        assert caught.value.__cause__.errno == code
        assert str(root / "queue.json") in caught.value.message
        assert os.strerror(code) in caught.value.message
        found = await store.read("queue.json")
        assert found is not None
        assert found.body == b"old"
        await store.write("queue.json", b"new", version)
    assert keys_as_files(root) == ["queue.json"]


async def test_error_from_the_rename_on_leaves_the_outcome_unknown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with FileBackend(tmp_path) as store:
        first = await store.create("queue.json", b"1")
        with failing(monkeypatch, "rename", 0, errno.EIO), pytest.raises(StorageBackendError) as caught:
            await store.write("queue.json", b"2", first)
        assert caught.value.outcome == "unknown"
        assert keys_as_files(tmp_path) == ["queue.json"]

        # The second fsync of a write is the one of the folder: the content has changed, but may not stay.
        with failing(monkeypatch, "fsync", 1, errno.EIO):
            with pytest.raises(StorageBackendError) as caught:
                await store.write("queue.json", b"2", first)
            assert caught.value.outcome == "unknown"
            with pytest.raises(StorageBackendError):  # not read as long as it may not stay
                await store.read("queue.json")
        found = await store.read("queue.json")
        assert found is not None
        assert found.body == b"2"
        await store.write("queue.json", b"3", found.version)


async def test_delete_that_fails_tells_its_outcome(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with FileBackend(tmp_path) as store:
        await store.create("queue.json", b"1")
        with failing(monkeypatch, "open", 0, errno.EACCES), pytest.raises(StorageBackendError) as caught:
            await store.delete("queue.json")
        assert caught.value.outcome == "not_applied"
        with failing(monkeypatch, "fsync", 0, errno.EIO), pytest.raises(StorageBackendError) as caught:
            await store.delete("queue.json")
        assert caught.value.outcome == "unknown"


@pytest.mark.parametrize("code", [errno.EACCES, errno.EPERM, errno.EROFS])
async def test_delete_that_is_refused_is_not_applied(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with FileBackend(tmp_path) as store:
        await store.create("queue.json", b"1")
        with failing(monkeypatch, "unlink", 0, code), pytest.raises(StorageBackendError) as caught:
            await store.delete("queue.json")
        assert caught.value.outcome == "not_applied"
        assert await store.read("queue.json")


async def test_root_that_is_a_file_is_told_for_each_operation(tmp_path: Path) -> None:
    root = tmp_path / "file"
    root.write_bytes(b"")
    async with FileBackend(root) as store:
        for call in (store.read("k"), store.create("k", b""), store.write("k", b"", "v")):
            with pytest.raises(
                StorageBackendError, match=f"{root}.*: (Not a directory|File exists)"
            ) as caught:
                await call
            assert caught.value.outcome == "not_applied"
            assert "(a part of that path is a file: name another folder)" in caught.value.message
        with pytest.raises(StorageBackendError, match="cannot list"):
            [key async for key in store.list("")]


async def test_write_after_a_foreign_change_is_a_conflict(tmp_path: Path) -> None:
    async with FileBackend(tmp_path) as store, FileBackend(tmp_path) as other:
        first = await store.create("queue.json", b"1")
        second = await other.write("queue.json", b"2", first)
        with pytest.raises(CASConflictError):
            await store.write("queue.json", b"3", first)
        third = await store.write("queue.json", b"3", second)
        (tmp_path / "queue.json").write_bytes(b"by hand")  # in place: not allowed, but noticed
        with pytest.raises(CASConflictError):
            await store.write("queue.json", b"4", third)
        await store.delete("queue.json")
        with pytest.raises(CASConflictError):
            await store.write("queue.json", b"4", third)


async def test_unchanged_object_is_not_read_before_a_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with FileBackend(tmp_path) as store:
        version = await store.create("queue.json", b"1")
        monkeypatch.setattr("osqueue_storage.file.content", None)
        await store.write("queue.json", b"2", version)


async def test_lock_is_free_again_though_a_forked_child_holds_its_descriptor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[int] = []
    real_flock = fcntl.flock

    def flock(fd: int, operation: int) -> None:
        kept.append(os.dup(fd))  # what a fork at this moment would keep
        real_flock(fd, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    try:
        async with asyncio.timeout(20), FileBackend(tmp_path) as store:
            version = await store.create("queue.json", b"1")
            await store.write("queue.json", b"2", version)
    finally:
        for fd in kept:
            os.close(fd)


async def test_folders_are_synced_into_their_parents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    real_fsync = os.fsync

    def fsync(fd: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{fd}"))
        real_fsync(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    root = tmp_path / "new" / "root"
    async with FileBackend(root) as store:
        await store.create("a/b/queue.json", b"1")
    assert {str(tmp_path), str(root.parent), str(root), str(root / "a%"), str(root / "a%" / "b%")} <= set(
        synced
    )
    synced.clear()
    async with FileBackend(root) as store:  # whoever made them may have died before that
        await store.create("a/b/other.json", b"1")
    assert str(root / "a%") in synced


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize(
    ("function", "after"),
    [("mkdir", 0), ("open", 1), ("open", 2), ("write", 0), ("write", 1), ("fsync", 2), ("rename", 0)],
)
async def test_full_disk_changes_nothing_and_says_what_to_do(
    function: str, after: int, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_write = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: real_write(fd, data[:3]))  # a disk that fills up midway
    async with FileBackend(tmp_path) as store:
        await store.create("queue.json", b"old")
    async with FileBackend(tmp_path) as store:
        with failing(monkeypatch, function, after, code), pytest.raises(StorageBackendError) as caught:
            await store.create("team/queue.json", b"new body")
        assert caught.value.outcome == "not_applied"
        assert "(free some space, or name a folder on another disk)" in caught.value.message
        assert keys_as_files(tmp_path) == ["queue.json"]
        await store.create("team/queue.json", b"new body")
    assert keys_as_files(tmp_path) == ["queue.json", "team%/queue.json"]


@pytest.mark.parametrize(
    ("code", "advice"),
    [
        (errno.EACCES, "give the user that runs this process the right to write"),
        (errno.EPERM, "give the user that runs this process the right to write"),
        (errno.EROFS, "mount that file system for writing"),
        (errno.ENOTDIR, "a part of that path is a file"),
        (errno.ENOSPC, "free some space"),
        (errno.ENOENT, "no folder can be made there"),
    ],
)
@pytest.mark.parametrize(("function", "after"), [("open", 0), ("open", 1), ("rename", 0)])
async def test_refusal_that_stays_is_not_applied_and_says_what_to_do(
    function: str, after: int, code: int, advice: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with FileBackend(tmp_path) as store:
        version = await store.create("queue.json", b"old")
        with failing(monkeypatch, function, after, code), pytest.raises(StorageBackendError) as caught:
            await store.write("queue.json", b"new", version)
        assert caught.value.outcome == "not_applied"
        assert f"{os.strerror(code)} ({advice}" in caught.value.message
        found = await store.read("queue.json")
        assert found is not None
        assert found.body == b"old"
    assert keys_as_files(tmp_path) == ["queue.json"]


async def test_error_is_told_though_its_temporary_file_cannot_be_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with FileBackend(tmp_path) as store:
        version = await store.create("queue.json", b"old")
        with (
            failing(monkeypatch, "write", 0, errno.ENOSPC),
            failing(monkeypatch, "unlink", 0, errno.EROFS),
            pytest.raises(StorageBackendError, match="No space left") as caught,
        ):
            await store.write("queue.json", b"new", version)
        assert caught.value.outcome == "not_applied"
        await store.write("queue.json", b"new", version)  # sweeps what is left
    assert keys_as_files(tmp_path) == ["queue.json"]


@contextmanager
def as_an_ordinary_user() -> Iterator[None]:
    """Root may write everywhere."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)


async def test_folder_without_the_right_to_write_is_told_and_can_be_read() -> None:
    # Not below tmp_path, which only its owner may enter.
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        async with FileBackend(root) as store:
            version = await store.create("queue.json", b"old")
        for path, mode in ((root / "queue.json", 0o444), (root / LOCK_NAME, 0o444), (root, 0o555)):
            path.chmod(mode)
        try:
            with as_an_ordinary_user():
                async with FileBackend(root) as store:
                    found = await store.read("queue.json")
                    assert found is not None
                    assert found.body == b"old"
                    for call in (
                        store.write("queue.json", b"new", version),
                        store.create("other.json", b"new"),
                        store.delete("queue.json"),
                    ):
                        with pytest.raises(StorageBackendError, match="the right to write") as caught:
                            await call
                        assert caught.value.outcome == "not_applied"
                async with FileBackend(root / "new") as store:
                    with pytest.raises(StorageBackendError, match="the right to write"):
                        await store.create("queue.json", b"new")
        finally:
            os.chmod(root, 0o755)
        assert sorted(os.listdir(root)) == [LOCK_NAME, "queue.json"]


@contextmanager
def lock_held_by_another(root: Path) -> Iterator[None]:
    fd = os.open(root / LOCK_NAME, os.O_RDWR)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


async def test_lock_that_is_never_given_back_ends_in_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk, "LOCK_PATIENCE", 0.05)
    async with asyncio.timeout(20), FileBackend(tmp_path) as store:
        version = await store.create("queue.json", b"1")
        with lock_held_by_another(tmp_path):
            for call in (store.write("queue.json", b"2", version), store.delete("queue.json")):
                with pytest.raises(
                    StorageBackendError, match=f"held the lock {tmp_path / LOCK_NAME}"
                ) as caught:
                    await call
                assert caught.value.outcome == "not_applied"
            assert await store.read("queue.json")
        await store.write("queue.json", b"2", version)


async def test_close_does_not_wait_for_the_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "LOCK_PATIENCE", 1000.0)
    waits = threading.Event()
    real_flock = fcntl.flock

    def flock(fd: int, operation: int) -> None:
        try:
            real_flock(fd, operation)
        except BlockingIOError:
            waits.set()
            raise

    store = FileBackend(tmp_path)
    version = await store.create("queue.json", b"1")
    with lock_held_by_another(tmp_path):
        monkeypatch.setattr(fcntl, "flock", flock)
        writing = asyncio.ensure_future(store.write("queue.json", b"2", version))
        assert await asyncio.to_thread(waits.wait, 20)
        async with asyncio.timeout(20):
            await store.aclose()
            with pytest.raises(StorageBackendError, match="held the lock") as caught:
                await writing
    assert caught.value.outcome == "not_applied"


async def test_closed_backend_says_so(tmp_path: Path) -> None:
    store = FileBackend(tmp_path)
    version = await store.create("queue.json", b"1")
    await store.aclose()
    await store.aclose()
    calls = (
        store.read("queue.json"),
        store.create("other.json", b""),
        store.write("queue.json", b"2", version),
        store.delete("queue.json"),
    )
    for call in calls:
        with pytest.raises(StorageBackendError, match="is closed") as caught:
            await call
        assert caught.value.outcome == "not_applied"
    with pytest.raises(StorageBackendError, match="is closed"):
        [key async for key in store.list("")]
    assert keys_as_files(tmp_path) == ["queue.json"]


def test_one_event_loop_after_another_may_use_it(tmp_path: Path) -> None:
    store = FileBackend(tmp_path)
    version = asyncio.run(store.create("queue.json", b"1"))
    asyncio.run(store.write("queue.json", b"2", version))
    asyncio.run(store.aclose())


def test_it_spaces_no_writes_and_limits_no_body() -> None:
    store: StorageBackend = FileBackend("data")
    assert (store.min_write_interval, store.slowest_write_interval, store.max_object_bytes) == (0, 0, None)


@pytest.mark.parametrize("platform", ["win32", "cygwin", "emscripten", "freebsd14"])
def test_other_platforms_are_refused(platform: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", platform)
    with pytest.raises(ConfigError, match=f"Linux and macOS, not on {platform}"):
        FileBackend("data")


@pytest.mark.parametrize("root", ["", "a\0b"])
def test_root_that_no_folder_can_have_is_refused(root: str) -> None:
    with pytest.raises(ConfigError, match="needs a folder"):
        FileBackend(root)


@pytest.mark.parametrize("root", ["/", "//", "/..", "link"])
def test_root_folder_of_the_machine_is_refused(
    root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to("/")
    with pytest.raises(ConfigError, match="name a folder below it, for example /var/lib/osqueue"):
        FileBackend(root)


async def test_descriptors_are_given_back(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        async with FileBackend(tmp_path) as store:
            found = await store.read("queue.json")
            if found is None:
                await store.create("queue.json", b"1")
            else:
                await store.write("queue.json", found.body + b"1", found.version)
    assert len(os.listdir("/proc/self/fd")) <= before
