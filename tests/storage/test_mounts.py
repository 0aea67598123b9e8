"""Which mount a folder is on, from samples of /proc/self/mountinfo, and network file systems refused."""

from __future__ import annotations

import os
import re
from pathlib import Path, PurePosixPath

import pytest

from osqueue_storage import ConfigError, FileBackend, mounts, open_storage
from osqueue_storage.mounts import Mount, mount_of, network_mount_of

SERVER = r"""
22 27 0:21 / /proc rw,nosuid shared:13 - proc proc rw
27 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw,errors=remount-ro
35 27 0:31 / /home rw,relatime shared:20 master:3 - nfs4 files:/home rw,vers=4.2,local_lock=none
36 35 8:2 /scratch /home/ann/scratch rw,relatime - xfs /dev/sda2 rw
37 27 0:40 / /mnt/with\040space\134and\011tab rw - cifs //files/share rw
38 27 0:41 / /mnt/bucket rw,nosuid - fuse.s3fs s3fs rw
39 27 0:42 / /mnt/mount-s3 rw,nosuid - fuse mountpoint-s3 rw
40 27 0:43 / /mnt/disk rw,nosuid - fuseblk /dev/sdb1 rw
41 27 0:44 / /mnt/crypt rw,nosuid - fuse.gocryptfs /home/x rw
42 27 0:45 / /mnt/host rw - virtiofs host rw
43 27 0:46 / /data rw - autofs /etc/auto.data rw
44 43 0:47 / /data rw - nfs files:/data rw
45 27 0:48 / /hidden rw - nfs files:/hidden rw
46 45 8:3 / /hidden rw - ext4 /dev/sda3 rw
47 27 0:49 / /mnt/\303\251t\303\251 rw - 9p drive rw
"""

CONTAINER = """\
700 650 0:50 / / rw,relatime master:1 - overlay overlay rw,lowerdir=/a:/b,upperdir=/c,workdir=/d
701 700 8:1 /var/lib/volumes/queue /data rw,relatime - ext4 /dev/sda1 rw
"""


@pytest.mark.parametrize(
    ("path", "point", "kind", "is_network"),
    [
        ("/", "/", "ext4", False),
        ("/var/lib/osqueue", "/", "ext4", False),
        ("/homestead", "/", "ext4", False),
        ("/home", "/home", "nfs4", True),
        ("/home/ann/queue", "/home", "nfs4", True),
        ("/home/ann/scratch/queue", "/home/ann/scratch", "xfs", False),
        ("/mnt/with space\\and\ttab/queue", "/mnt/with space\\and\ttab", "cifs", True),
        ("/mnt/bucket/x", "/mnt/bucket", "fuse.s3fs", True),
        ("/mnt/mount-s3/x", "/mnt/mount-s3", "fuse", True),
        ("/mnt/disk/x", "/mnt/disk", "fuseblk", False),
        ("/mnt/crypt/x", "/mnt/crypt", "fuse.gocryptfs", False),
        ("/mnt/host/x", "/mnt/host", "virtiofs", False),
        ("/data/x", "/data", "nfs", True),
        ("/hidden/x", "/hidden", "ext4", False),
    ],
)
def test_folder_is_on_the_innermost_and_latest_mount(
    path: str, point: str, kind: str, is_network: bool
) -> None:
    mount = mount_of(PurePosixPath(path), SERVER)
    assert mount is not None
    assert (str(mount.point), mount.type, mount.is_network) == (point, kind, is_network)


def test_bind_mount_in_a_container_is_found() -> None:
    assert mount_of(PurePosixPath("/data/q"), CONTAINER) == Mount(PurePosixPath("/data"), "ext4", "/dev/sda1")
    assert mount_of(PurePosixPath("/app"), CONTAINER) == Mount(PurePosixPath("/"), "overlay", "overlay")


@pytest.mark.parametrize(
    "table", ["", "\n", "nonsense\n", "1 2 3 - ext4 x\n", "1 2 0:1 / / rw - \n", "1 2 0:1 / / rw ext4 x"]
)
def test_what_is_no_mount_is_skipped(table: str) -> None:
    assert mount_of(PurePosixPath("/data"), table) is None


def mounted(monkeypatch: pytest.MonkeyPatch, table: Path, point: Path, kind: str) -> None:
    escaped = str(point).replace("\\", r"\134").replace(" ", r"\040")
    table.write_text(
        f"1 0 8:1 / / rw - ext4 /dev/sda1 rw\n2 1 0:9 / {escaped} rw - {kind} files:/export rw\n"
    )
    monkeypatch.setattr(mounts, "MOUNTINFO", table)


def test_folder_on_a_network_file_system_is_refused_unless_it_is_allowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    share = Path(os.path.realpath(tmp_path)) / "a share"
    share.mkdir()
    (tmp_path / "link").symlink_to(share)
    mounted(monkeypatch, tmp_path / "mountinfo", share, "nfs4")
    for root in (share, share / "not" / "made" / "yet", tmp_path / "link" / "queue"):
        with pytest.raises(ConfigError) as caught:
            FileBackend(root)
        assert f"{root} is on a network file system (nfs4 at {share})" in caught.value.message
        assert f"FileBackend({str(root)!r}, allow_network_filesystem=True)" in caught.value.message
        url = re.findall(r"the URL (file:\S+\?network=allow)", caught.value.message)
        assert repr(open_storage(*url)) == f"FileBackend({str(root)!r})"
    assert os.listdir(share) == []
    FileBackend(tmp_path / "local")
    FileBackend(share, allow_network_filesystem=True)


def test_where_nobody_can_tell_nothing_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mounts, "MOUNTINFO", tmp_path / "missing")
    assert network_mount_of(tmp_path) is None
    FileBackend(tmp_path)
