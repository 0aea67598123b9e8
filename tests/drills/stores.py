"""Stores that are stopped and started again with what they hold."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Protocol

from drills.urls import s3_url
from storage.servers.process import free_ports
from storage.servers.s3_bucket import BUCKET, make_bucket
from storage.servers.seaweedfs import SeaweedFS, seaweedfs


class StoppableStore(Protocol):
    """A store of which no request is answered well from `stop` to `start`."""

    @property
    def url(self) -> str:
        """The storage URL of a queue in it."""
        ...

    async def stop(self) -> None: ...

    async def start(self) -> None: ...


class FolderBehindLink:
    """A folder whose disk is taken out, and put back, at one moment each, also in the midst of a write."""

    def __init__(self, folder: Path) -> None:
        self._link = folder / "store"
        self._disk = folder / "disk"
        self._disk.mkdir()
        self._no_folder = folder / "no-folder"
        self._no_folder.touch()
        self.url = f"file:{self._link}"
        self._point_to(self._disk)

    async def stop(self) -> None:
        self._point_to(self._no_folder)

    async def start(self) -> None:
        self._point_to(self._disk)

    def _point_to(self, target: Path) -> None:
        link = self._link.with_name("new-link")
        link.symlink_to(target)
        os.replace(link, self._link)


class KilledSeaweedFS:
    """SeaweedFS, killed with all its processes, and started on the same folder and port."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        (self._port,) = free_ports(1)
        self._running = ExitStack()
        make_bucket(self._start(), BUCKET)
        self.url = s3_url(f"http://127.0.0.1:{self._port}")

    async def stop(self) -> None:
        await asyncio.to_thread(self.close)

    async def start(self) -> None:
        await asyncio.to_thread(self._start)

    def close(self) -> None:
        self._running.close()

    def _start(self) -> SeaweedFS:
        return self._running.enter_context(seaweedfs(self._folder, port=self._port))


@contextmanager
def killed_seaweedfs(folder: Path) -> Iterator[KilledSeaweedFS]:
    """Run a server that can be stopped. Not for use inside an event loop, but what it gives is."""
    store = KilledSeaweedFS(folder)
    try:
        yield store
    finally:
        store.close()
