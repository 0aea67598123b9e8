"""`osqueue-broker fsck`: its options, its report, its exit status."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Final

import msgspec

from osqueue_client.errors import OsqueueError
from osqueue_storage import open_storage

from .clock import SystemClock
from .fsck import UNMENDABLE, Finding, Mend, counted
from .fsck_run import Fsck, Report

ALL_WELL: Final = 0
SOMETHING_WRONG: Final = 1
NOT_CHECKED: Final = 2

_NOTHING: Final[Mapping[str, str]] = MappingProxyType({})

_MANY: Final[Mapping[str, str]] = {
    "summaryWrong": "segments of which the document says what is not so",
    "goneWrong": "segments of which the document says wrongly which jobs are gone",
    "segmentEmpty": "segments without a job left",
    "segmentTwice": "segments that stand several times in the document",
    "duplicateId": "jobs that stand twice",
    "orderTwice": "jobs with the order of another",
    "segmentMissing": "segments that are not in the store",
    "segmentDamaged": "segments that cannot be read",
    "documentOld": "segments that were made after the document",
}
"""What there is several times, by the kind of the findings."""

_ADVICE: Final[Mapping[Mend, str]] = {
    Mend.REPAIR: "--repair mends it",
    Mend.DROP_MISSING: "restore the objects segments/NAME.json, as from a backup or the versions that the bucket "
    "keeps; --repair --drop-missing gives these jobs up",
    Mend.HAND: "a person edits queue.json, with all brokers stopped",
}
_ADVICE_OLD: Final = (
    "the document is an older copy. Stop the brokers and restore the newer queue.json; until then fsck mends and "
    "deletes nothing"
)


def main(argv: Sequence[str], environment: Mapping[str, str] = _NOTHING) -> int:
    """Check a queue, and mend it where that is asked for; return the exit status.

    `environment`: the variables that name the queue, and the brokers' timeout, where the options do not.
    """
    parser = _parser(environment)
    options = parser.parse_args(argv)
    if (options.drop_missing or options.delete_garbage) and not options.repair:
        parser.error("--drop-missing and --delete-garbage need --repair")
    if not options.storage:
        parser.error(
            "which queue? Give its URL, or set OSQUEUE_STORAGE. A broker without either keeps it in file:./.osqueue"
        )
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
        for line in _lines(report, is_repair=options.repair):
            _tell(line)
    return ALL_WELL if report.is_well else SOMETHING_WRONG


def _tell(line: str) -> None:
    sys.stdout.write(f"{line}\n")


def _tell_of_watch(leader: str, seconds: float) -> None:
    sys.stderr.write(f"watching the document for {seconds:g} s: the broker {leader} may lead\n")
    sys.stderr.flush()


async def _run(options: argparse.Namespace) -> Report:
    async with open_storage(options.storage) as storage:
        fsck = Fsck(storage, SystemClock(), heartbeat_timeout=options.broker_heartbeat_timeout)
        if not options.repair:
            return await fsck.check()
        return await fsck.repair(
            drop_missing=options.drop_missing,
            delete_garbage=options.delete_garbage,
            on_watch=_tell_of_watch,
        )


def _parser(environment: Mapping[str, str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="osqueue-broker fsck",
        description="Check the document and the segments of a queue. Without --repair it only reads, and a broker may "
        "lead meanwhile.",
        epilog="Exit status: 0 all is well, 1 something is wrong, 2 it could not be checked or repaired.",
    )
    parser.add_argument(
        "storage", metavar="URL", nargs="?", default=environment.get("OSQUEUE_STORAGE", "").strip(),
        help="where the queue lives (default: OSQUEUE_STORAGE)",
    )  # fmt: skip
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
        "--broker-heartbeat-timeout", type=float, metavar="N",
        default=environment.get("OSQUEUE_BROKER_HEARTBEAT_TIMEOUT", "").strip() or None,
        help="with --repair: seconds without a sign of life after which a leader counts as dead (default: "
        "OSQUEUE_BROKER_HEARTBEAT_TIMEOUT, else 10)",
    )  # fmt: skip
    return parser


def _fields(report: Report) -> dict[str, object]:
    return {
        "isWell": report.is_well, "epoch": report.epoch, "seq": report.seq, "leader": report.leader,
        "hasMoved": report.has_moved, "counts": report.counts, "findings": report.findings,
        "mended": report.mended, "droppedJobs": report.dropped_jobs, "garbage": report.garbage,
        "deleted": report.deleted,
    }  # fmt: skip


def _lines(report: Report, *, is_repair: bool) -> Iterator[str]:
    counts = report.counts
    led = f"led by {report.leader}" if report.leader else "nobody leads"
    if report.leader and not report.has_moved:
        led += ", unless it has died"
    yield f"document: {counts.bytes:,} bytes, epoch {report.epoch}, commit {report.seq:,}, {led}"
    if report.has_moved:
        yield "  it moved while it was checked, as it does under a leader"
    segments, dead_segments = counted(counts.segments, "segment"), counted(counts.dead_segments, "segment")
    yield f"jobs: {counts.jobs_in_document:,} in it, {counts.jobs_in_segments:,} in {segments}"
    yield f"dead: {counts.dead_in_document:,} in it, {counts.dead_in_segments:,} in {dead_segments}"
    yield from _garbage(report)
    mended, wrong = _groups(report.mended), _groups(report.findings)
    for group in mended:
        yield _mended(group)
    if report.deleted:
        yield f"deleted: {counted(len(report.deleted), 'object')}, {_some(report.deleted)}"
    for group in wrong:
        yield f"WRONG: {group[0].text if len(group) == 1 else f'{_many(group)}: {_advice(group)}'}"
    if any(len(group) > 1 for group in (*mended, *wrong)):
        yield "--json tells them one by one"
    yield _verdict(report, is_repair=is_repair)
    if report.dropped_jobs:
        yield f"given up: {counted(report.dropped_jobs, 'job')}"


def _garbage(report: Report) -> Iterator[str]:
    garbage = report.garbage
    unreferred = [*garbage.old, *garbage.recent]
    if any(finding.kind in UNMENDABLE for finding in report.findings):
        what_then = "fsck keeps them, as the newer document may refer to them"
    elif report.leader:
        what_then = (
            "the leader deletes what has been out of use for an hour (segment_retention); if no broker runs, "
            "--repair --delete-garbage does"
        )
    else:
        what_then = "--repair --delete-garbage removes them"
    if unreferred:
        yield f"garbage: {counted(len(unreferred), 'object')}, {_some(unreferred)}; {what_then}"
    if garbage.probes:
        probes = f"{counted(len(garbage.probes), 'object')}, {_some(garbage.probes)}"
        yield f"left by starts that were killed: {probes}; --repair --delete-garbage removes them, if no broker runs"
    if garbage.unknown:
        yield f"none of ours: {counted(len(garbage.unknown), 'object')}, {_some(garbage.unknown)}"


def _groups(findings: Sequence[Finding]) -> list[list[Finding]]:
    """Return what is alike together, in the order in which it was found."""
    groups: dict[tuple[str, Mend], list[Finding]] = {}
    for finding in findings:
        groups.setdefault((finding.kind, finding.mend), []).append(finding)
    return list(groups.values())


def _mended(group: Sequence[Finding]) -> str:
    is_dropped = group[0].mend is Mend.DROP_MISSING
    label = "DROPPED" if is_dropped else "MENDED"
    if len(group) == 1:
        return f"{label}: {group[0].text}"
    return f"{label}: {_many(group)}{': gone for good' if is_dropped else ''}"


def _many(group: Sequence[Finding]) -> str:
    jobs = sum(finding.jobs or 0 for finding in group)
    of = f"{counted(jobs, 'job')} of " if group[0].mend is Mend.DROP_MISSING else ""
    names = [finding.job_id or finding.segment or "" for finding in group]
    return f"{of}{len(group):,} {_MANY.get(group[0].kind, group[0].kind)}, {_some(names)}"


def _advice(group: Sequence[Finding]) -> str:
    return _ADVICE_OLD if group[0].kind == "documentOld" else _ADVICE[group[0].mend]


def _verdict(report: Report, *, is_repair: bool) -> str:
    if report.findings:
        return f"{len(report.findings):,} wrong, {len(report.mendable):,} of them --repair can mend"
    if report.dropped_jobs:
        return "what is left is well"
    if is_repair and not report.mended and not report.deleted:
        return "all is well, there was nothing to mend"
    return "all is well"


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
