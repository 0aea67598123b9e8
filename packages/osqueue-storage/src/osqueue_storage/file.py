"""A store in a folder of the local disk, shared by any number of processes of one machine."""

from __future__ import annotations

import asyncio
import hashlib
import os
import sys
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Final, Self, TypeVar

from .backend import StoredObject
from .disk import content, locked, make_folder, sweep_temporary_files, sync_folder, temporary_file
from .errors import CASConflictError, ConfigError, Outcome, StorageBackendError
from .file_paths import key_of, path_of

R = TypeVar("R")

_PLATFORMS: Final = ("linux", "darwin")
_READERS: Final = 4


class FileBackend:
    """Objects are files below `root`; the folder is made when it is first written to.

    A write is a temporary file, fsynced and renamed over the object, and then the folder is fsynced: after a
    crash at any point there is the old content or the new one. Writers of all processes take turns by an
    `flock` on one file of the root that is never deleted; the kernel frees it when its holder dies. Readers
    take no lock. A version is the SHA-256 of the content. The folder must be on a local file system (over NFS
    or SMB the lock does not hold between machines) and only be written to through this class.

    A write whose caller gives up is not interrupted: it lands or not, and `aclose` waits for it.

    Raises `ConfigError` on other systems than Linux and macOS, and for an empty path.
    """

    min_write_interval: float = 0.0
    max_object_bytes: int | None = None

    def __init__(self, root: str | os.PathLike[str]) -> None:
        if sys.platform not in _PLATFORMS:
            raise ConfigError(
                f"FileBackend runs on Linux and macOS, not on {sys.platform}: use an object store"
            )
        if not os.fspath(root) or "\0" in os.fspath(root):
            raise ConfigError("FileBackend needs a folder, for example FileBackend('./data')")
        self._root = Path(root).absolute()
        self._root_is_ready = False
        self._swept: set[Path] = set()
        self._last_written: _WrittenFile | None = None
        # Changes take turns anyway, by the lock. With a thread of their own they cannot hold up the readers,
        # and what they remember (the three fields above) needs no lock of its own.
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="osqueue-file-writer")
        self._readers = ThreadPoolExecutor(_READERS, thread_name_prefix="osqueue-file-reader")

    def __repr__(self) -> str:
        return f"FileBackend({str(self._root)!r})"

    async def read(self, key: str) -> StoredObject | None:
        """See `StorageBackend.read`. Raises `StorageBackendError` if the disk fails."""
        return await _in_thread(self._readers, lambda: self._read(key))

    async def write(self, key: str, body: bytes, expected_version: str) -> str:
        """See `StorageBackend.write`. Raises `StorageBackendError` if the disk fails."""
        return await _in_thread(self._writer, lambda: self._replace(key, body, expected_version))

    async def create(self, key: str, body: bytes) -> str:
        """See `StorageBackend.create`. Raises `StorageBackendError` if the disk fails."""
        return await _in_thread(self._writer, lambda: self._replace(key, body, None))

    async def delete(self, key: str) -> None:
        """See `StorageBackend.delete`. Raises `StorageBackendError` if the disk fails."""
        await _in_thread(self._writer, lambda: self._delete(key))

    async def list(self, prefix: str) -> AsyncIterator[str]:
        """See `StorageBackend.list`. Raises `StorageBackendError` if the disk fails."""
        for key in await _in_thread(self._readers, lambda: self._keys(prefix)):
            yield key

    async def aclose(self) -> None:
        """Wait for what still runs, also for writes whose callers have given up."""
        for executor in (self._writer, self._readers):
            await asyncio.to_thread(executor.shutdown)
        self._last_written = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.aclose()

    # What follows blocks, and runs in a thread.

    def _read(self, key: str) -> StoredObject | None:
        path = self._path(key)
        try:
            body = content(path)
            if body is None:
                return None
            # Its writer may not have come to that yet: what has been read must not vanish in a crash.
            sync_folder(path.parent)
        except OSError as error:
            raise _failure("read", path, error, "not_applied") from error
        return StoredObject(body, _hash(body))

    def _replace(self, key: str, body: bytes, expected_version: str | None) -> str:
        path = self._path(key)
        version = _hash(body)
        outcome: Outcome = "not_applied"
        try:
            self._prepare_root()
            with locked(self._root):
                self._require_version(key, path, expected_version)
                self._prepare(path.parent)
                with temporary_file(path.parent, body) as (temporary, fd):
                    written = _WrittenFile(path, os.dup(fd), version)
                    outcome = "unknown"
                    os.rename(temporary, path)
                    sync_folder(path.parent)
                    self._last_written = written
        except OSError as error:
            raise _failure("write", path, error, outcome) from error
        return version

    def _delete(self, key: str) -> None:
        path = self._path(key)
        outcome: Outcome = "not_applied"
        try:
            if not path.parent.is_dir():
                return
            with locked(self._root):
                outcome = "unknown"
                path.unlink(missing_ok=True)
                sync_folder(path.parent)
        except OSError as error:
            raise _failure("delete", path, error, outcome) from error

    def _keys(self, prefix: str) -> tuple[str, ...]:
        def refuse(error: OSError) -> None:
            if not isinstance(error, FileNotFoundError):
                raise error

        try:
            paths = [
                Path(folder, name)
                for folder, _, names in os.walk(self._root, onerror=refuse)
                for name in names
            ]
        except OSError as error:
            raise _failure("list", self._root, error, "not_applied") from error
        keys = (key_of(self._root, path) for path in paths)
        found = (key for key in keys if key is not None and key.startswith(prefix))
        return tuple(sorted(found, key=str.encode))

    def _path(self, key: str) -> Path:
        try:
            return path_of(self._root, key)
        except ValueError as error:
            raise StorageBackendError(
                f"no file can be named for the key {key[:80]!r}: {error}", outcome="not_applied"
            ) from error

    def _prepare_root(self) -> None:
        if not self._root_is_ready or not self._root.is_dir():
            make_folder(self._root)
            self._root_is_ready = True

    def _prepare(self, folder: Path) -> None:
        """Before the first write of this instance to a folder: make it, and sweep what dead writers left."""
        if folder in self._swept and folder.is_dir():
            return
        if folder != self._root:
            make_folder(folder)
        sweep_temporary_files(folder)
        self._swept.add(folder)

    def _require_version(self, key: str, path: Path, expected_version: str | None) -> None:
        found = self._version_at(path)
        if found != expected_version:
            fact = "exists already" if expected_version is None else f"is not at version {expected_version}"
            raise CASConflictError(f"{key!r} {fact}", key=key)

    def _version_at(self, path: Path) -> str | None:
        if self._last_written is not None and self._last_written.is_still_at(path):
            return self._last_written.version
        body = content(path)
        return None if body is None else _hash(body)


class _WrittenFile:
    """The file last written, held open, so that its version need not be computed again from its content.

    While it is held open no other file can have its inode number. Whoever replaced the object since has
    put another file at the path, with another number: a path with this number is this very file.
    """

    def __init__(self, path: Path, fd: int, version: str) -> None:
        self.version = version
        self._path = path
        self._fd = fd
        self._identity = _identity(os.fstat(fd))

    def __del__(self) -> None:
        os.close(self._fd)

    def is_still_at(self, path: Path) -> bool:
        if path != self._path:
            return False
        try:
            return _identity(os.stat(path)) == self._identity
        except FileNotFoundError:
            return False


def _identity(status: os.stat_result) -> tuple[int, ...]:
    # Size and time add nothing between backends, but notice an editor that writes into the file in place.
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


async def _in_thread(executor: ThreadPoolExecutor, work: Callable[[], R]) -> R:
    return await asyncio.get_running_loop().run_in_executor(executor, work)


def _hash(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


def _failure(action: str, path: Path, error: OSError, outcome: Outcome) -> StorageBackendError:
    return StorageBackendError(f"cannot {action} {path}: {error.strerror or error}", outcome=outcome)
