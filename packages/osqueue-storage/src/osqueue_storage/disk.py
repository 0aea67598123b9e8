"""The few durable steps that a file backend is made of. Each blocks, and raises `OSError`."""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

if sys.platform != "win32":  # the package can be imported there, FileBackend refuses to be made
    import fcntl

from .file_paths import LOCK_NAME, TEMP_PREFIX


@contextmanager
def locked(root: Path) -> Iterator[None]:
    """Hold the lock of a root, in turn with every thread and process. The kernel frees a dead holder's."""
    # Opened anew each time: an flock belongs to the open file, so it holds between threads, too.
    fd = os.open(root / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        try:
            yield
        finally:  # not left to close: a process forked meanwhile has this descriptor, too
            fcntl.flock(fd, fcntl.LOCK_UN)
    finally:
        os.close(fd)


@contextmanager
def temporary_file(folder: Path, body: bytes) -> Iterator[tuple[Path, int]]:
    """Write and sync a new file; give its path and descriptor, and take back what was not renamed."""
    path = folder / f"{TEMP_PREFIX}{os.getpid()}.{secrets.token_hex(6)}"
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        rest = memoryview(body)
        while rest:
            rest = rest[os.write(fd, rest) :]
        sync(fd)
        yield path, fd
    finally:
        os.close(fd)
        path.unlink(missing_ok=True)


def sweep_temporary_files(folder: Path) -> None:
    """Delete what dead writers left. Only under the lock: a live writer holds it while its file exists."""
    with os.scandir(folder) as entries:
        stale = [entry.path for entry in entries if entry.name.startswith(TEMP_PREFIX)]
    for path in stale:
        os.unlink(path)


def content(path: Path) -> bytes | None:
    """Return a file's content at one moment, or None if there is no such file."""
    # One open file is one inode: a rename meanwhile cannot tear what is read.
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def make_folder(folder: Path) -> None:
    """Make a folder and its parents, each durable in its own parent.

    An existing folder's parent is synced, too: whoever made it may have died before that.
    """
    existed = folder.is_dir()
    if not existed:
        make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
    try:
        sync_folder(folder.parent)
    except PermissionError:
        if not existed:  # else it was made for us in a place that is not ours
            raise


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable: what was made, renamed and deleted there."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        sync(fd)
    finally:
        os.close(fd)


def sync(fd: int) -> None:
    """Make a file's content durable."""
    if sys.platform == "darwin":
        try:
            fcntl.fcntl(fd, fcntl.F_FULLFSYNC)  # fsync there leaves the data in the drive's cache
            return
        except OSError:  # not every file system has it; then fsync is the most that there is
            pass
    os.fsync(fd)
