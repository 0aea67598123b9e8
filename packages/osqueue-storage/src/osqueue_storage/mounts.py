"""On which kind of file system a folder is, as Linux tells in /proc/self/mountinfo."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

MOUNTINFO: Final = Path("/proc/self/mountinfo")

NETWORK_FILE_SYSTEMS: Final = frozenset(
    {
        "9p", "afs", "beegfs", "ceph", "cifs", "coda", "davfs", "glusterfs", "gpfs", "lustre", "ncpfs", "nfs",
        "nfs4", "orangefs", "pvfs2", "smb3", "smbfs",
        # Served by a program, which Linux names behind "fuse." or, for type "fuse", as the source.
        "blobfuse", "blobfuse2", "ceph-fuse", "curlftpfs", "gcsfuse", "goofys", "juicefs", "mfs", "mount-s3",
        "mountpoint-s3", "rclone", "s3fs", "s3ql", "seaweedfs", "sshfs",
    }
)  # fmt: skip
"""Types of which a lock taken on one machine may not hold on another, or what was synced may not be durable.

Not among them are gfs2 and ocfs2, whose locks hold in the whole cluster, and virtiofs, a folder of the host in its
virtual machine (each folder that Docker Desktop mounts is one): one kernel serves all who use it there, so that they
do take turns.
"""

_ESCAPED: Final = re.compile(r"\\([0-7]{3})")
_FUSE: Final = ("fuse", "fuseblk")


@dataclass(frozen=True, slots=True)
class Mount:
    """A mounted file system: where, of which type, and from what."""

    point: PurePosixPath
    type: str
    source: str

    @property
    def is_network(self) -> bool:
        """Whether it is one of `NETWORK_FILE_SYSTEMS`."""
        name = self.source if self.type in _FUSE else self.type.removeprefix("fuse.")
        return name in NETWORK_FILE_SYSTEMS


def network_mount_of(folder: Path) -> Mount | None:
    """Return the network file system that a folder is on, or will be on once it is made.

    None for a local one, and where nobody can tell: on other systems than Linux, or without /proc.
    """
    try:
        table = os.fsdecode(MOUNTINFO.read_bytes())
    except OSError:
        return None
    mount = mount_of(PurePosixPath(os.path.realpath(folder)), table)
    return mount if mount is not None and mount.is_network else None


def mount_of(path: PurePosixPath, mountinfo: str) -> Mount | None:
    """Return the mount that a path without symbolic links is on, from the text of a mountinfo file."""
    found: Mount | None = None
    for mount in _mounts(mountinfo):
        # Of two at one point the later one hides the earlier.
        if path.is_relative_to(mount.point) and (
            found is None or len(mount.point.parts) >= len(found.point.parts)
        ):
            found = mount
    return found


def _mounts(mountinfo: str) -> Iterator[Mount]:
    """Yield the mounts in their order; a line that is none is skipped. The format: proc_pid_mountinfo(5)."""
    for line in mountinfo.split("\n"):
        before, separator, after = line.partition(" - ")
        fields, kind = before.split(" "), after.split(" ")
        if separator and len(fields) >= 5 and len(kind) >= 2:
            yield Mount(PurePosixPath(_plain(fields[4])), _plain(kind[0]), _plain(kind[1]))


def _plain(field: str) -> str:
    return _ESCAPED.sub(lambda match: chr(int(match.group(1), 8)), field)
