"""Deliberate defects, each of which the simulator must find: what is not in this table it may not see.

A mutant is one replacement in a copy of the packages. It is killed when one of its first `seeds` seeds shows a
violation.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
PACKAGES: Final = ("osqueue-storage", "osqueue-client", "osqueue-broker", "osqueue-worker")
BROKER: Final = "osqueue-broker/src/osqueue_broker"
CLIENT: Final = "osqueue-client/src/osqueue_client"


@dataclass(frozen=True, slots=True)
class Mutant:
    """One defect: in `file`, `old` stands exactly once and is replaced by `new`."""

    name: str
    file: str
    old: str
    new: str
    seeds: int


MUTANTS: Final = (
    Mutant(
        "acknowledge before the commit",
        f"{BROKER}/commit_loop.py",
        "        superseded_by = await self._write(broker=leader)\n"
        "        has_landed = superseded_by is None or superseded_by.holds_ours\n"
        "        if has_landed:\n"
        "            self._written.requests += requests_done(batch, applied)\n"
        "            self._answer(applied)\n",
        "        self._answer(applied)\n"
        "        superseded_by = await self._write(broker=leader)\n"
        "        has_landed = superseded_by is None or superseded_by.holds_ours\n",
        50,
    ),
    Mutant(
        "retry a conflict blindly",
        f"{BROKER}/document_writer.py",
        "            end = await self._resolve(body, commit, expected_version)\n            if end is None:\n",
        "            found = await self.read()\n"
        "            if found is not None:\n"
        "                return Landed(await self._storage.write(self._key, body, found.version))\n"
        "            end = await self._resolve(body, commit, expected_version)\n            if end is None:\n",
        50,
    ),
    Mutant(
        "go on over a foreign epoch",
        f"{BROKER}/commit_loop.py",
        "        end: Term | StoredObject = found\n",
        "        old = self._term\n"
        "        end: Term | StoredObject = Term(old.state, old.header, found.version, old.sent_at, old.body)\n",
        50,
    ),
    Mutant(
        "depose the one who deposed us",
        f"{BROKER}/commit_loop.py",
        "            if header.broker != self._candidate.address or self._is_succeeded_by(header):\n",
        "            if False:\n",
        50,
    ),
    Mutant(
        "believe that a write without an answer has not landed",
        f"{BROKER}/document_writer.py",
        "        if found.body == body:\n            return Landed(found.version)\n",
        "        if found.body == body:\n            return Superseded(found, False)\n",
        50,
    ),
    Mutant(
        "skip the re-read after a timeout, and give the write up",
        f"{BROKER}/document_writer.py",
        "            return None  # unresolved: the same bytes on the same version once more\n",
        "            return Superseded(found, False)\n",
        200,
    ),
    Mutant(
        "take a superseded write for lost, whatever the terms before tell",
        f"{BROKER}/queue/terms.py",
        "        return any(term.epoch == commit.epoch and term.seq >= commit.seq for term in self.previous_terms)\n",
        "        return False\n",
        300,
    ),
    Mutant(
        "take a superseded write for landed",
        f"{BROKER}/commit_loop.py",
        "        has_landed = superseded_by is None or superseded_by.holds_ours\n",
        "        has_landed = True\n",
        50,
    ),
    Mutant(
        "trust an equal commitId alone",
        f"{BROKER}/document_writer.py",
        "        if found.body == body:\n",
        "        if found.body == body or (stamp := read_header(found.body).stamp) and (\n"
        "            stamp.commit_id == commit.commit_id\n"
        "        ):\n",
        200,
    ),
    Mutant(
        "heartbeat without token check",
        f"{BROKER}/queue/leases.py",
        "    state.heartbeat(_leased(state, request.job_id, request.worker_id, request.lease_token), now)\n",
        "    state.heartbeat(_leased(state, request.job_id, request.worker_id, None), now)\n",
        100,
    ),
    Mutant(
        "complete without token check",
        f"{BROKER}/queue/leases.py",
        "    state.complete(_leased(state, request.job_id, request.worker_id, request.lease_token))\n",
        "    state.complete(_leased(state, request.job_id, request.worker_id, None))\n",
        100,
    ),
    Mutant(
        "keep a token across a foreign claim",
        f"{BROKER}/queue/job.py",
        "    is_its_own = lease.worker_id == known.worker_id and lease.attempts == known.attempts\n",
        "    is_its_own = True\n",
        100,
    ),
    Mutant(
        "drop the old leases at takeover",
        f"{BROKER}/leadership.py",
        "        bury_exhausted(state, now)\n",
        "        for job in [job for job in state.jobs if job.status == 'in_progress']:\n"
        "            state.release(job)\n"
        "        bury_exhausted(state, now)\n",
        50,
    ),
    Mutant(
        "expire leases right after a takeover",
        f"{BROKER}/commit_loop.py",
        "        self._served = 0.0\n        self._longest_step",
        "        self._served = 0.9 * settings.heartbeat_timeout\n        self._longest_step",
        100,
    ),
    Mutant(
        "expire leases right after a pause",
        f"{BROKER}/commit_loop.py",
        "        self._served += min(at - self._seen_at, self._longest_step)\n",
        "        self._served += at - self._seen_at\n",
        100,
    ),
    Mutant(
        "reuse a sequence number",
        f"{BROKER}/queue/terms.py",
        "        stamp = Stamp(self.stamp.epoch, self.stamp.seq + 1, commit_id)\n",
        "        stamp = Stamp(self.stamp.epoch, self.stamp.seq, commit_id)\n",
        50,
    ),
    Mutant(
        "begin a term in the old epoch",
        f"{BROKER}/queue/terms.py",
        "        stamp = Stamp(old.epoch + 1, old.seq + 1, commit_id) if old else Stamp(1, 1, commit_id)\n",
        "        stamp = Stamp(old.epoch, old.seq + 1, commit_id) if old else Stamp(1, 1, commit_id)\n",
        50,
    ),
    Mutant(
        "answer what changes nothing however old the last commit is",
        f"{BROKER}/commit_loop.py",
        "        superseded_by = await self._write(broker=leader)\n        has_landed",
        "        if not applied.has_changed:\n"
        "            self._answer(applied)\n"
        "            applied = type(applied)([], [], [], 0)\n"
        "        superseded_by = await self._write(broker=leader)\n        has_landed",
        200,
    ),
    Mutant(
        "make a deleted document anew",
        f"{BROKER}/document_writer.py",
        "            return None if expected_version is None else Gone()\n",
        "            return Landed(await self._storage.create(self._key, body))\n",
        50,
    ),
    Mutant(
        "forget answers that are still waited for",
        f"{CLIENT}/session.py",
        "number=self.number, lowest=session.lowest,",
        "number=self.number, lowest=self.number,",
        50,
    ),
    Mutant(
        "drop the session of a client that waits",
        f"{BROKER}/queue/sessions.py",
        "KEPT_FOR: Final = 120.0",
        "KEPT_FOR: Final = 2.0",
        100,
    ),
    Mutant(
        "depose a leader that is merely unreachable",
        f"{BROKER}/watching.py",
        "        self.refusals = self.refusals + 1 if reached is Reached.REFUSED else 0\n",
        "        self.refusals = self.refusals + 1 if reached is not Reached.YES else 0\n",
        200,
    ),
    Mutant(
        "depose a leader without waiting",
        f"{BROKER}/watching.py",
        "        return self.silent_for >= self.patience\n",
        "        return self.silent_for >= 0.5 * self.patience\n",
        50,
    ),
    Mutant(
        "forget what was answered to requests with an id",
        f"{BROKER}/queue/once.py",
        "    sessions.remember(session, id.number, _remembered(id.number, answer))\n",
        "",
        50,
    ),
    Mutant(
        "forget the sessions at takeover",
        f"{BROKER}/queue/document.py",
        "            state.sessions.load(session, now.served)\n",
        "            pass\n",
        100,
    ),
    Mutant(
        "run a request that its client no longer waits for",
        f"{BROKER}/queue/once.py",
        "        if id.number < session.lowest:\n",
        "        if False:\n",
        100,
    ),
    Mutant(
        "give each repeat a new number",
        f"{CLIENT}/calls.py",
        "        if tries.place is None:\n",
        "        if True:\n",
        50,
    ),
    Mutant(
        "repeat to a broker that would do it again",
        f"{CLIENT}/calls.py",
        "        if tries.knows_ids and tries.is_change:\n",
        "        if False:\n",
        50,
    ),
    Mutant(
        "count a claim that nobody heard of",
        f"{BROKER}/queue/state.py",
        "        job.attempts -= 1\n        self.release(job)\n",
        "        self.release(job)\n",
        100,
    ),
    Mutant(
        "take back at once a lease that may be asked for again",
        f"{BROKER}/queue/claims.py",
        "UNCONFIRMED_TIMEOUT if request.may_be_repeated else 0.0",
        "0.0",
        100,
    ),
    Mutant(
        "tell of an unclear change that it was not applied",
        f"{BROKER}/inbox.py",
        "waiting.give(_unconfirmed())",
        "waiting.give(_unanswered())",
        100,
    ),
    Mutant(
        "claim the youngest of several types",
        f"{BROKER}/queue/state.py",
        "job.position < oldest.position",
        "job.position > oldest.position",
        50,
    ),
    Mutant(
        "try a job once more than allowed",
        f"{BROKER}/queue/state.py",
        "        return max(limit - job.attempts, 0)\n",
        "        return max(limit + 1 - job.attempts, 0)\n",
        50,
    ),
    Mutant(
        "refer to a segment before its object is there",
        f"{BROKER}/segment_keeper.py",
        "        await self._store.create(plan.name, plan.body)\n",
        "        self._put(Mutation(SEAL, Seal(name=plan.name)))\n"
        "        await self._store.create(plan.name, plan.body)\n",
        50,
    ),
    Mutant(
        "collect a segment at once",
        f"{BROKER}/segment_keeper.py",
        "        at = self._clock.monotonic() + self._retention\n",
        "        at = self._clock.monotonic()\n",
        50,
    ),
    Mutant(
        "collect what a commit drops before it has landed",
        f"{BROKER}/commit_loop.py",
        "        match await self._writer.replace(body, header.stamp, term.version):\n",
        "        self._segments.after_commit(header, len(body))\n"
        "        match await self._writer.replace(body, header.stamp, term.version):\n",
        100,
    ),
    Mutant(
        "collect segments of older terms that are still referred to",
        f"{BROKER}/segment_keeper.py",
        " and name not in referred\n",
        "\n",
        50,
    ),
    Mutant(
        "give a segment the name of another one",
        f"{BROKER}/segment_keeper.py",
        'return f"{self._epoch}-{seq}-{self._clock.new_id()[-12:]}"',
        'return f"1-{seq % 4}-{len(self._state.plans)}"',
        50,
    ),
    Mutant(
        "do not read the segments at a takeover",
        f"{BROKER}/queue/document.py",
        "        for segment in lists.segments:\n",
        "        for segment in lists.segments[1:]:\n",
        50,
    ),
    Mutant(
        "do not write the segments of dead jobs",
        f"{BROKER}/queue/document.py",
        "    if len(state.dead_segments):\n",
        "    if len(state.dead_segments) > 1:\n",
        50,
    ),
    Mutant(
        "forget at a takeover what has left a segment",
        f"{BROKER}/queue/segment.py",
        "bytearray(b64decode(known.gone).ljust(",
        "bytearray(b64decode('').ljust(",
        50,
    ),
    Mutant(
        "do not write what has left a segment",
        f"{BROKER}/queue/segment.py",
        "                del self.types[type]\n        self._text = None\n",
        "                del self.types[type]\n",
        50,
    ),
    Mutant(
        "leave in a new segment what was claimed while it was made",
        f"{BROKER}/queue/sealing.py",
        "            segment.take(place, _type_of(job))\n",
        "            pass\n",
        50,
    ),
    Mutant(
        "claim from the document though an older job stands in a segment",
        f"{BROKER}/queue/state.py",
        "        if not len(self.segments):\n            return job\n",
        "        if job is not None or not len(self.segments):\n            return job\n",
        50,
    ),
    Mutant(
        "take the jobs of the document for younger than those of segments",
        f"{BROKER}/queue/document.py",
        "        if job.position == NOWHERE or job.position in taken:\n",
        "        if True:\n",
        50,
    ),
    Mutant(
        "answer a waiting claim before the commit",
        f"{BROKER}/commit_loop.py",
        "        self._inbox.take_late(claim for claim, _ in applied.late)\n",
        "        self._inbox.take_late(claim for claim, _ in applied.late)\n"
        "        self._inbox.answer_late(applied)\n",
        50,
    ),
    Mutant(
        "strand the job of a waiting claim that was given up",
        f"{BROKER}/inbox.py",
        "            elif waiting is None or not waiting.give(outcome):\n"
        "                self._take_back(mutation.request, outcome)\n",
        "            elif waiting is None or not waiting.give(outcome):\n                pass\n",
        300,
    ),
    Mutant(
        "do not wake waiting claims for a job that is released",
        f"{BROKER}/queue/state.py",
        "        self._ready.add(job)\n        self._offered.add(job.type)\n",
        "        self._ready.add(job)\n        job.attempts or self._offered.add(job.type)\n",
        50,
    ),
    Mutant(
        "give a job to a claim whose wait was given up",
        f"{BROKER}/inbox.py",
        "            self._withdrawn.append(new_id)\n            if held.is_over:",
        "            if not held.is_over:\n"
        "                self._withdrawn.append(new_id)\n"
        "            if held.is_over:",
        300,
    ),
    Mutant(
        "end a wait too soon",
        f"{BROKER}/inbox.py",
        "            waiting.waits_until += wait\n",
        "            waiting.waits_until += 0.5 * wait\n",
        50,
    ),
    Mutant(
        "do a batch of submits again for its repeat",
        f"{BROKER}/queue/once.py",
        "            return submits.submitted(request, job_id, added)\n",
        "            return None\n",
        50,
    ),
    Mutant(
        "tell a repeat that fewer jobs of a batch were added",
        f"{BROKER}/queue/once.py",
        "            return Remembered(number, results[0].job_id, added=added)\n",
        "            return Remembered(number, results[0].job_id, added=(added + 1) // 2)\n",
        50,
    ),
    Mutant(
        "answer a batch that is half done as done",
        f"{BROKER}/queue/leases.py",
        "                result = models.LeasedEntry(error=entry_error(error))\n",
        "                del error\n",
        50,
    ),
    Mutant(
        "remember of a batch that all of it was done",
        f"{BROKER}/queue/once.py",
        "            return Remembered(number, refused=leases.refused(answer))\n",
        "            return Remembered(number, refused=0)\n",
        300,
    ),
    Mutant(
        "complete a batch without token check",
        f"{BROKER}/queue/leases.py",
        "_leased(state, lease.job_id, request.worker_id, lease.lease_token))",
        "_leased(state, lease.job_id, request.worker_id, None))",
        300,
    ),
    Mutant(
        "claim more than was asked for",
        f"{BROKER}/queue/claims.py",
        "    while len(jobs) < (request.limit or 1) and size < ANSWER_BYTES:\n",
        "    while len(jobs) < (request.limit or 1) + 1 and size < ANSWER_BYTES:\n",
        300,
    ),
    Mutant(
        "repair beside a live leader",
        f"{BROKER}/fsck_run.py",
        "        await self._require_nobody_leads(found)\n",
        "",
        300,
    ),
)


def kill(mutant: Mutant, folder: Path) -> tuple[bool, str]:
    """Run a mutant in a copy of the packages made in `folder`; return whether it was killed, and what was printed."""
    copies = _mutated(mutant, folder)
    done = subprocess.run(
        [sys.executable, "-m", "simulation", "--seeds", str(mutant.seeds), "--processes", "1",
         "--stop-at-first", "--show", "1"],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join((*copies, str(ROOT / "tests"))),
            "PYTHONDONTWRITEBYTECODE": "1",
        },
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip
    if done.returncode not in (0, 1):
        raise RuntimeError(f"{mutant.name}: {done.stdout[-2000:]}{done.stderr[-2000:]}")
    return done.returncode == 1, done.stdout


def _mutated(mutant: Mutant, folder: Path) -> list[str]:
    """Copy the packages with the defect in; return the folders for the path."""
    copies = []
    for package in PACKAGES:
        source = ROOT / "packages" / package / "src"
        if not mutant.file.startswith(f"{package}/"):
            copies.append(str(source))
            continue
        copy = folder / package / "src"
        shutil.copytree(source, copy, ignore=shutil.ignore_patterns(".mypy_cache"))
        copies.append(str(copy))
    path = folder / mutant.file
    text = path.read_text()
    if text.count(mutant.old) != 1:
        raise ValueError(
            f"{mutant.name}: its old text stands {text.count(mutant.old)} times in {mutant.file}"
        )
    path.write_text(text.replace(mutant.old, mutant.new))
    return copies
