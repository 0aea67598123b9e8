"""Ceph RGW as an S3 server: a monitor, one OSD and the gateway, from the Debian packages.

`apt-get install --no-install-recommends radosgw ceph-mon ceph-osd ceph-common`. The monitor and the OSD want no
manager, no systemd and no keys here: everything listens on the loopback, and authentication within the cluster
is off.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from storage.servers.process import free_ports, running

PROGRAMS = ("ceph", "ceph-mon", "ceph-osd", "monmaptool", "radosgw", "radosgw-admin")

_BLOCK_BYTES = 8 * 1024**3  # a sparse file: what is not used takes no room
_SECONDS = 30.0

_CONF = """\
[global]
fsid = {fsid}
mon_host = [v2:127.0.0.1:{mon_port}]
public_addr = 127.0.0.1
ms_bind_ipv6 = false
auth_cluster_required = none
auth_service_required = none
auth_client_required = none
ms_mon_client_mode = crc
run_dir = {folder}
admin_socket =
log_file = {folder}/$name.log
mon_data = {folder}/mon
osd_data = {folder}/osd
osd_objectstore = bluestore
bluestore_block_size = {block_bytes}
bluestore_block_wal_create = false
osd_memory_target = 1073741824
osd_crush_chooseleaf_type = 0
osd_pool_default_size = 1
osd_pool_default_min_size = 1
osd_pool_default_pg_num = 8
osd_pool_default_pg_autoscale_mode = off
mon_allow_pool_size_one = true
mon_data_avail_crit = 1
osd_max_object_name_len = 256
osd_max_object_namespace_len = 64
rgw_data = {folder}/rgw
rgw_frontends = beast endpoint=127.0.0.1:{rgw_port}
rgw_rados_pool_pg_num_min = 8
"""


@dataclass(frozen=True, slots=True)
class Ceph:
    """A running gateway: what a client connects with. It compares ETags with their quotes: leave those out."""

    endpoint_url: str
    access_key_id: str = "ceph-for-tests"
    secret_access_key: str = "not-a-secret-of-anybody"


def missing_programs() -> list[str]:
    """Return the programs that are not installed."""
    return [program for program in PROGRAMS if shutil.which(program) is None]


@contextlib.contextmanager
def ceph(folder: Path) -> Iterator[Ceph]:
    """Run a cluster of one OSD that keeps its objects below `folder`; there are no buckets in it yet.

    Not for more than one start on a folder. Takes some 15 seconds.
    """
    for name in ("mon", "osd", "rgw"):
        (folder / name).mkdir(parents=True)
    mon_port, rgw_port = free_ports(2)
    fsid, osd = str(uuid.uuid4()), str(uuid.uuid4())
    conf = folder / "ceph.conf"
    conf.write_text(
        _CONF.format(fsid=fsid, folder=folder, mon_port=mon_port, rgw_port=rgw_port, block_bytes=_BLOCK_BYTES)
    )
    options = ["-c", str(conf)]
    server = Ceph(f"http://127.0.0.1:{rgw_port}")
    monmap = str(folder / "monmap")
    _run("monmaptool", "--create", "--fsid", fsid, "--addv", "a", f"[v2:127.0.0.1:{mon_port}]", monmap)
    _run("ceph-mon", *options, "--mkfs", "-i", "a", "--monmap", monmap)
    with contextlib.ExitStack() as stack:
        mon = ["ceph-mon", *options, "-f", "-i", "a"]
        stack.enter_context(running(mon, port=mon_port, log=folder / "mon.out", seconds=_SECONDS))
        number = _run("ceph", *options, "osd", "new", osd).strip()
        _run("ceph-osd", *options, "--mkfs", "-i", number, "--osd-uuid", osd)
        # Nothing needs to wait for the OSD: what asks for an object waits until it is there.
        command = ["ceph-osd", *options, "-f", "-i", number]
        stack.enter_context(running(command, port=mon_port, log=folder / "osd.out", seconds=_SECONDS))
        _run("radosgw-admin", *options, "user", "create", "--uid=tests", "--display-name=tests",
             f"--access-key={server.access_key_id}", f"--secret-key={server.secret_access_key}")  # fmt: skip
        gateway = ["radosgw", *options, "-f", "-n", "client.rgw"]
        stack.enter_context(running(gateway, port=rgw_port, log=folder / "rgw.out", seconds=_SECONDS))
        yield server


def _run(*command: str) -> str:
    """Run a program to its end and return what it printed. Raises `RuntimeError` if it fails."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{command[0]} ended with {done.returncode}: {done.stderr[-2000:]}")
    return done.stdout
