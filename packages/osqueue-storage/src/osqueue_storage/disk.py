"""The few durable steps that a file backend is made of. Each blocks, and raises `OSError`."""

from __future__ import annotations

import os
import secrets
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

if sys.platform != "win32":  # the package can be imported there, FileBackend refuses to be made
    import fcntl

from .file_paths import LOCK_NAME, TEMP_PREFIX

LOCK_PATIENCE: Final = 2.0
"""Seconds to wait for a lock: less than a broker with default settings waits for a store, so that it learns why."""

_FIRST_LOCK_DELAY: Final = 0.0005
_LAST_LOCK_DELAY: Final = 0.01


@contextmanager
def locked(root: Path, closing: threading.Event) -> Iterator[None]:
    """Hold the lock of a root, in turn with every thread and process. The kernel frees a dead holder's.

    Raises `TimeoutError` if another holds it too long (a process that is stopped or hangs), or at once when
    `closing` is set meanwhile.
    """
    # Opened anew each time: an flock belongs to the open file, so it holds between threads, too.
    path = root / LOCK_NAME
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        _take_lock(fd, path, closing)
        try:
            yield
        finally:  # not left to close: a process forked meanwhile has this descriptor, too
            fcntl.flock(fd, fcntl.LOCK_UN)
    finally:
        os.close(fd)


def _take_lock(fd: int, path: Path, closing: threading.Event) -> None:
    # Asked for again and again: nothing can end the wait of a thread that the kernel has put to sleep for it.
    waited, delay = 0.0, _FIRST_LOCK_DELAY
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if waited >= LOCK_PATIENCE or closing.wait(delay):
                raise TimeoutError(
                    f"for {waited:.1f} s another process has held the lock {path}: is it stopped, or does it hang?"
                ) from None
            waited += delay
            delay = min(2 * delay, _LAST_LOCK_DELAY)


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
        with suppress(OSError):  # mostly there is none any more; one that cannot be deleted is swept later
            os.unlink(path)


def sweep_temporary_files(folder: Path) -> None:
    """Delete what dead writers left. Only under the lock: a live writer holds it while its file exists.

    What may not be deleted (another user's) is left.
    """
    with os.scandir(folder) as entries:
        stale = [entry.path for entry in entries if entry.name.startswith(TEMP_PREFIX)]
    for path in stale:
        with suppress(OSError):
            os.unlink(path)


def changed_at(folder: Path) -> int | None:
    """Return when a name in a folder was last made, renamed or deleted (ns), or None if it is no folder."""
    try:
        return os.stat(folder / ".").st_mtime_ns
    except (FileNotFoundError, NotADirectoryError):
        return None


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
