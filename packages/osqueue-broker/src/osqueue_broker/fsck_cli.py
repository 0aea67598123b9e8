"""`osqueue-broker fsck`: its options, its report, its exit status."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Iterator, Sequence
from typing import Final

import msgspec

from osqueue_client.errors import OsqueueError
from osqueue_storage import open_storage

from .clock import SystemClock
from .fsck import Finding, Mend
from .fsck_run import Fsck, Report

ALL_WELL: Final = 0
SOMETHING_WRONG: Final = 1
NOT_CHECKED: Final = 2

_SHOWN: Final = 50
"""Findings that the text tells; `--json` has them all."""


def main(argv: Sequence[str]) -> int:
    """Check a queue, and mend it where that is asked for; return the exit status."""
    parser = _parser()
    options = parser.parse_args(argv)
    if (options.drop_missing or options.delete_garbage) and not options.repair:
        parser.error("--drop-missing and --delete-garbage need --repair")
    try:
        report = asyncio.run(_run(options))
    except OsqueueError as error:
        if options.json:
            _tell(msgspec.json.encode({"error": {"_tag": error.tag, "message": error.message}}).decode())
        else:
            sys.stderr.write(f"osqueue-broker fsck: {error.tag}: {error.message}\n")
        return NOT_CHECKED
    except OSError as error:
        sys.stderr.write(f"osqueue-broker fsck: {error.strerror or error}\n")
        return NOT_CHECKED
    if options.json:
        _tell(msgspec.json.encode(_fields(report)).decode())
    else:
        for line in _lines(report):
            _tell(line)
    return ALL_WELL if report.is_well else SOMETHING_WRONG


def _tell(line: str) -> None:
    sys.stdout.write(f"{line}\n")


async def _run(options: argparse.Namespace) -> Report:
    async with open_storage(options.storage) as storage:
        fsck = Fsck(storage, SystemClock(), heartbeat_timeout=options.broker_heartbeat_timeout)
        if not options.repair:
            return await fsck.check()
        return await fsck.repair(drop_missing=options.drop_missing, delete_garbage=options.delete_garbage)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="osqueue-broker fsck",
        description="Check the document and the segments of a queue. Without --repair it only reads, and a broker may "
        "lead meanwhile.",
        epilog="Exit status: 0 all is well, 1 something is wrong, 2 it could not be checked or repaired.",
    )
    parser.add_argument("storage", metavar="URL", help="where the queue lives")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    parser.add_argument(
        "--repair", action="store_true", help="mend what can be mended without loss; no broker may lead"
    )
    parser.add_argument(
        "--drop-missing",
        action="store_true",
        help="with --repair: give up the jobs of segments that are missing or damaged",
    )
    parser.add_argument(
        "--delete-garbage",
        action="store_true",
        help="with --repair: delete the objects that nothing refers to",
    )
    parser.add_argument(
        "--broker-heartbeat-timeout", type=float, default=None, metavar="N",
        help="with --repair: seconds without a sign of life after which a leader counts as dead (default: 10)",
    )  # fmt: skip
    return parser


def _fields(report: Report) -> dict[str, object]:
    return {
        "isWell": report.is_well, "epoch": report.epoch, "seq": report.seq, "leader": report.leader,
        "hasMoved": report.has_moved, "counts": report.counts, "findings": report.findings,
        "mended": report.mended, "garbage": report.garbage, "deleted": report.deleted,
    }  # fmt: skip


def _lines(report: Report) -> Iterator[str]:
    counts = report.counts
    led = f"led by {report.leader}" if report.leader else "nobody leads"
    yield f"document: {counts.bytes:,} bytes, epoch {report.epoch}, commit {report.seq:,}, {led}"
    if report.has_moved:
        yield "  it moved while it was checked, as it does under a leader"
    yield f"jobs: {counts.jobs_in_document:,} in it, {counts.jobs_in_segments:,} in {counts.segments:,} segments"
    yield f"dead: {counts.dead_in_document:,} in it, {counts.dead_in_segments:,} in {counts.dead_segments:,} segments"
    garbage = report.garbage
    if garbage.old and not report.deleted:
        yield f"garbage: {len(garbage.old):,} objects of older epochs, {_some(garbage.old)}"
    if garbage.recent and not report.deleted:
        yield f"on its way, perhaps: {len(garbage.recent):,} objects of this epoch, {_some(garbage.recent)}"
    if garbage.probes and not report.deleted:
        yield f"left by starts that were killed: {len(garbage.probes):,} objects, {_some(garbage.probes)}"
    if garbage.unknown:
        yield f"none of ours: {len(garbage.unknown):,} objects, {_some(garbage.unknown)}"
    for finding in report.mended[:_SHOWN]:
        yield f"MENDED: {finding.text}"
    if report.deleted:
        yield f"deleted: {len(report.deleted):,} objects, {_some(report.deleted)}"
    for finding in report.findings[:_SHOWN]:
        yield f"WRONG: {finding.text}"
    if len(report.findings) > _SHOWN:
        yield f"… and {len(report.findings) - _SHOWN:,} more (--json has all)"
    yield _verdict(report.findings)


def _verdict(findings: list[Finding]) -> str:
    if not findings:
        return "all is well"
    mendable = sum(finding.mend is Mend.REPAIR for finding in findings)
    return f"{len(findings):,} wrong, {mendable:,} of them --repair can mend"


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
