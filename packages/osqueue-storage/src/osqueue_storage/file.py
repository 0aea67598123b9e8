"""A store in a folder of the local disk, shared by any number of processes of one machine."""

from __future__ import annotations

import errno
import hashlib
import os
import sys
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Final, Self
from urllib.parse import quote

from .backend import StoredObject
from .disk import changed_at, content, locked, make_folder, sweep_temporary_files, sync_folder, temporary_file
from .disk_threads import DiskThreads
from .errors import CASConflictError, ConfigError, Outcome, StorageBackendError
from .file_paths import key_of, path_of
from .mounts import network_mount_of

_PLATFORMS: Final = ("linux", "darwin")

_NOT_ALLOWED: Final = (
    "give the user that runs this process the right to write in that folder, or name another one"
)
_A_FILE: Final = "a part of that path is a file: name another folder"
_NO_SPACE: Final = "free some space, or name a folder on another disk"
_ADVICE: Final[Mapping[int, str]] = {
    errno.EACCES: _NOT_ALLOWED,
    errno.EPERM: _NOT_ALLOWED,
    errno.EROFS: "mount that file system for writing, or name a folder on another one",
    errno.ENOSPC: _NO_SPACE,
    errno.EDQUOT: _NO_SPACE,
    errno.EFBIG: "the file would be larger than this process, or the file system, may make one",
    errno.ENOTDIR: _A_FILE,
    errno.EEXIST: _A_FILE,
    errno.ENOENT: "no folder can be made there, or it was deleted meanwhile: name another one",
}

_NOTHING_DONE: Final = frozenset(_ADVICE) | {errno.EISDIR}
"""With these a rename or a delete was refused before it began; after any other error nobody can tell."""


class FileBackend:
    """Objects are files below `root`; the folder is made when it is first written to.

    A write is a temporary file, fsynced and renamed over the object, and then the folder is fsynced: after a
    crash at any point there is the old content or the new one. Writers of all processes take turns by an
    `flock` on one file of the root that is never deleted; the kernel frees it when its holder dies. Readers
    take no lock. A version is the SHA-256 of the content. The folder must only be written to through this class.

    A write whose caller gives up is not interrupted: it lands or not, and `aclose` waits for it. A write that
    cannot have the lock within 2 s fails. An instance may be used on both sides of a fork, and by one event loop
    after another.

    The folder must be on a local file system: over NFS, SMB and their like the lock may not hold between
    machines, and two brokers may both believe that they lead. One on a network file system is refused (Linux
    only; on macOS it is not noticed) unless `allow_network_filesystem` says that one machine alone uses it.

    Raises `ConfigError` for that, on other systems than Linux and macOS, for an empty path, and for `/`.
    """

    min_write_interval: float = 0.0
    slowest_write_interval: float = 0.0
    max_object_bytes: int | None = None

    def __init__(self, root: str | os.PathLike[str], *, allow_network_filesystem: bool = False) -> None:
        if sys.platform not in _PLATFORMS:
            raise ConfigError(
                f"FileBackend runs on Linux and macOS, not on {sys.platform}: use an object store"
            )
        if not os.fspath(root) or "\0" in os.fspath(root):
            raise ConfigError("FileBackend needs a folder, for example FileBackend('./data')")
        self._root = Path(root).absolute()
        if os.path.realpath(self._root) == os.sep:
            raise ConfigError(
                "the root folder / is not for a queue: name a folder below it, for example /var/lib/osqueue"
            )
        if not allow_network_filesystem:
            _refuse_network(self._root)
        self._threads = DiskThreads(repr(self))
        # Of the thread for changes alone:
        self._root_is_ready = False
        self._left_at: dict[Path, int | None] = {}
        self._last_written: _WrittenFile | None = None

    def __repr__(self) -> str:
        return f"FileBackend({str(self._root)!r})"

    async def read(self, key: str) -> StoredObject | None:
        """See `StorageBackend.read`. Raises `StorageBackendError` if the disk fails."""
        return await self._threads.read(lambda: self._read(key))

    async def write(self, key: str, body: bytes, expected_version: str) -> str:
        """See `StorageBackend.write`. Raises `StorageBackendError` if the disk fails."""
        return await self._threads.change(lambda: self._replace(key, body, expected_version))

    async def create(self, key: str, body: bytes) -> str:
        """See `StorageBackend.create`. Raises `StorageBackendError` if the disk fails."""
        return await self._threads.change(lambda: self._replace(key, body, None))

    async def delete(self, key: str) -> None:
        """See `StorageBackend.delete`. Raises `StorageBackendError` if the disk fails."""
        await self._threads.change(lambda: self._delete(key))

    async def list(self, prefix: str) -> AsyncIterator[str]:
        """See `StorageBackend.list`. Raises `StorageBackendError` if the disk fails."""
        for key in await self._threads.read(lambda: self._keys(prefix)):
            yield key

    async def aclose(self) -> None:
        """Wait for what still runs, also for writes whose callers have given up, but not for the lock."""
        await self._threads.aclose()
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
            with locked(self._root, self._threads.closing):
                self._require_version(key, path, expected_version)
                self._prepare(path.parent)
                with temporary_file(path.parent, body) as (temporary, fd):
                    written = _WrittenFile(path, os.dup(fd), version)
                    outcome = "unknown"
                    try:
                        os.rename(temporary, path)
                    except OSError as error:
                        if error.errno in _NOTHING_DONE:
                            outcome = "not_applied"
                        raise
                    sync_folder(path.parent)
                    self._last_written = written
                self._left_at[path.parent] = changed_at(path.parent)
        except OSError as error:
            raise _failure("write", path, error, outcome) from error
        return version

    def _delete(self, key: str) -> None:
        path = self._path(key)
        outcome: Outcome = "not_applied"
        try:
            if not path.parent.is_dir():
                return
            with locked(self._root, self._threads.closing):
                outcome = "unknown"
                try:
                    path.unlink(missing_ok=True)
                except OSError as error:
                    if error.errno in _NOTHING_DONE:
                        outcome = "not_applied"
                    raise
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
        """Make the folder durable before the first write to it, and sweep what dead writers left in it.

        It is looked through only when it is not as the last write of this instance left it.
        """
        found_at, left_at = changed_at(folder), self._left_at.pop(folder, None)
        if found_at is not None and found_at == left_at:
            return
        if folder != self._root and (found_at is None or left_at is None):
            make_folder(folder)
        sweep_temporary_files(folder)

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


def _hash(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


def _failure(action: str, path: Path, error: OSError, outcome: Outcome) -> StorageBackendError:
    what = f"cannot {action} {path}: {error.strerror or error}"
    advice = _ADVICE.get(error.errno or 0)
    if advice and (action != "read" or advice == _A_FILE):  # the rest is about writing
        what += f" ({advice})"
    return StorageBackendError(what, outcome=outcome)


def _refuse_network(root: Path) -> None:
    if mount := network_mount_of(root):
        raise ConfigError(
            f"{root} is on a network file system ({mount.type} at {mount.point}), where the lock of one machine may "
            "not hold on another, and jobs could be lost: name a folder on a local disk, or use an object store. "
            f"If one machine alone uses it: the URL file:{quote(str(root))}?network=allow, or "
            f"FileBackend({str(root)!r}, allow_network_filesystem=True)"
        )
