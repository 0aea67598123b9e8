"""A store in a folder of the local disk, shared by any number of processes of one machine."""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import os
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Final, ParamSpec, Self, TypeVar

from .backend import StoredObject
from .errors import CASConflictError, ConfigError, Outcome, StorageBackendError
from .file_paths import LOCK_NAME, TEMP_PREFIX, key_of, path_of

P = ParamSpec("P")
R = TypeVar("R")

_PLATFORMS: Final = ("linux", "darwin")
_THREADS: Final = 4


class FileBackend:
    """Objects are files below `root`; the folder is made when it is first written to.

    A write is a temporary file, fsynced and renamed over the object, and then the folder is fsynced: after a
    crash at any point there is the old content or the new one. Writers of all processes take turns by an
    `flock` on one file that is never deleted; the kernel frees it when its holder dies. Readers take no lock.
    A version is the SHA-256 of the content. The folder must be on a local file system: over NFS or SMB the
    lock does not hold between machines.

    Raises `ConfigError` on other systems than Linux and macOS.
    """

    min_write_interval: float = 0.0
    max_object_bytes: int | None = None

    def __init__(self, root: str | os.PathLike[str]) -> None:
        if sys.platform not in _PLATFORMS:
            raise ConfigError(
                f"FileBackend runs on Linux and macOS, not on {sys.platform}: use an object store"
            )
        if not os.fspath(root):
            raise ConfigError("FileBackend needs a folder, for example FileBackend('./data')")
        self._root = Path(root).absolute()
        self._temp_numbers = count()
        self._executor = ThreadPoolExecutor(_THREADS, thread_name_prefix="osqueue-file")

    def __repr__(self) -> str:
        return f"FileBackend({str(self._root)!r})"

    async def read(self, key: str) -> StoredObject | None:
        """See `StorageBackend.read`."""
        return await self._in_thread(self._read, key)

    async def write(self, key: str, body: bytes, expected_version: str) -> str:
        """See `StorageBackend.write`."""
        return await self._in_thread(self._replace, key, body, expected_version)

    async def create(self, key: str, body: bytes) -> str:
        """See `StorageBackend.create`."""
        return await self._in_thread(self._replace, key, body, None)

    async def delete(self, key: str) -> None:
        """See `StorageBackend.delete`."""
        await self._in_thread(self._delete, key)

    async def list(self, prefix: str) -> AsyncIterator[str]:
        """See `StorageBackend.list`."""
        for key in await self._in_thread(self._keys, prefix):
            yield key

    async def aclose(self) -> None:
        """Wait for what still runs, also for writes whose callers have given up."""
        await asyncio.get_running_loop().run_in_executor(None, self._executor.shutdown)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.aclose()

    async def _in_thread(self, work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._executor, lambda: work(*args, **kwargs))

    # In a thread

    def _read(self, key: str) -> StoredObject | None:
        path = self._path(key)
        with _translated(path, "read", "not_applied"):
            body = _content(path)
        return None if body is None else StoredObject(body, _version(body))

    def _replace(self, key: str, body: bytes, expected_version: str | None) -> str:
        path = self._path(key)
        version = _version(body)
        with _translated(path, "write", "not_applied"):
            _make_folder(path.parent)
            with self._lock():
                self._require(key, path, expected_version)
                temp = self._write_temp(path.parent, body)
                os.rename(temp, path)
                with _translated(path, "sync", "unknown"):
                    _sync_folder(path.parent)
        return version

    def _delete(self, key: str) -> None:
        path = self._path(key)
        with _translated(path, "delete", "unknown"):
            if not path.exists():
                return
            with self._lock():
                path.unlink(missing_ok=True)
                _sync_folder(path.parent)

    def _keys(self, prefix: str) -> Sequence[str]:
        with _translated(self._root, "list", "not_applied"):
            keys = [key_of(self._root, path) for path in self._root.rglob("*") if path.is_file()]
        return sorted((key for key in keys if key is not None and key.startswith(prefix)), key=str.encode)

    def _path(self, key: str) -> Path:
        try:
            return path_of(self._root, key)
        except ValueError as error:
            raise StorageBackendError(f"no file can be named for the key {key[:80]!r}: {error}",
                                      outcome="not_applied") from error  # fmt: skip

    def _require(self, key: str, path: Path, expected_version: str | None) -> None:
        body = _content(path)
        found = None if body is None else _version(body)
        if found != expected_version:
            fact = "exists already" if expected_version is None else f"is not at version {expected_version}"
            raise CASConflictError(f"{key!r} {fact}", key=key)

    def _write_temp(self, folder: Path, body: bytes) -> Path:
        """Write and fsync a temporary file. Only called under the lock: what else lies there is of the dead."""
        for stale in folder.glob(TEMP_PREFIX + "*"):
            stale.unlink(missing_ok=True)
        temp = folder / f"{TEMP_PREFIX}{os.getpid()}.{next(self._temp_numbers)}"
        fd = os.open(temp, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        try:
            with open(fd, "wb", closefd=False) as file:
                file.write(body)
            _sync(fd)
        except BaseException:
            temp.unlink(missing_ok=True)
            raise
        finally:
            os.close(fd)
        return temp

    @contextmanager
    def _lock(self) -> Iterator[None]:
        # Opened anew each time: an flock belongs to the open file, so it holds between threads, too.
        fd = os.open(self._root / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)


def _content(path: Path) -> bytes | None:
    # One open file is one inode: a rename meanwhile cannot tear what is read.
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def _version(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


def _make_folder(folder: Path) -> None:
    """Make a folder and its parents, each durable in its own parent."""
    if folder.is_dir():
        return
    _make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    _sync_folder(folder.parent)


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _sync(fd)
    finally:
        os.close(fd)


def _sync(fd: int) -> None:
    if sys.platform == "darwin":  # fsync there leaves the data in the drive's cache
        fcntl.fcntl(fd, fcntl.F_FULLFSYNC)
    else:
        os.fsync(fd)


@contextmanager
def _translated(path: Path, action: str, outcome: Outcome) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageBackendError(f"cannot {action} {path}: {error.strerror}", outcome=outcome) from error
