"""A broker of another make: it knows no terms, rewrites the document, and keeps the fields it does not know."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from osqueue_storage import CASConflictError

from .loop import Node
from .store import KEY, StoreView
from .world import World


class ForeignBroker:
    """It writes what it wants to write on whatever document it finds, again after each conflict.

    Its own workers claim and complete; at times it names itself the leader, and falls silent at some moment.
    """

    def __init__(
        self, world: World, node: Node, view: StoreView, address: str, workers: tuple[str, ...]
    ) -> None:
        self._world = world
        self._node = node
        self._view = view
        self._address = address
        self._workers = workers

    async def run(self, until: float, pause: float) -> None:
        """Meddle until that moment."""
        world = self._world
        while world.loop.now < until:
            await asyncio.sleep(world.between(0, 2 * pause))
            leads = world.chance(0.4)
            for _ in range(world.random.choice((1, 1, 2, 5)) if leads else 1):
                await self._rewrite(leads)
                await asyncio.sleep(world.between(0.01, 1.5))
            if leads and world.chance(0.5):
                await self._rewrite(False, steps_down=True)

    async def _rewrite(self, leads: bool, *, steps_down: bool = False) -> None:
        for _ in range(5):
            try:
                async with asyncio.timeout(2):
                    found = await self._view.read(KEY)
                    if found is None:
                        return
                    document = json.loads(found.body)
                    done = self._change(document, leads, steps_down)
                    body = json.dumps(document, separators=(",", ":")).encode()
                    if not done:
                        return
                    self._world.trace(self._node.name, f"writes: {', '.join(done)}")
                    await self._view.write(KEY, body, found.version)
                    return
            except CASConflictError:
                continue  # on what is there now, as such brokers do
            except Exception:  # noqa: BLE001  # whatever the store did: another time
                return

    def _change(self, document: dict[str, Any], leads: bool, steps_down: bool) -> list[str]:
        world = self._world
        now = int(1_700_000_000_000 + 1000 * world.loop.now)
        done: list[str] = []
        if leads:
            document["broker"], document["brokerHeartbeat"] = self._address, now
            done.append("leads")
        if steps_down and document.get("broker") == self._address:
            document["broker"] = None
            done.append("steps down")
        document.setdefault("xForeign", 1)
        jobs = document["jobs"]
        for job in list(jobs):
            if not world.chance(0.25):
                continue
            limit = job.get("maxAttempts", world.history.max_attempts)
            if job["status"] == "in_progress":
                match world.random.randrange(4):
                    case 0:
                        self._release(job)
                        done.append(f"expires {job['id'][:8]}")
                        if job["attempts"] < limit and world.chance(0.7):
                            # To the same worker, perhaps: then only its attempt tells the leases apart.
                            self._claim(job, now)
                            done.append(f"claims {job['id'][:8]} again")
                    case 1:
                        jobs.remove(job)
                        document["completedTotal"] = document.get("completedTotal", 0) + 1
                        done.append(f"completes {job['id'][:8]}")
            elif job["status"] == "unclaimed" and job["attempts"] < limit:
                self._claim(job, now)
                done.append(f"claims {job['id'][:8]}")
        return done

    def _claim(self, job: dict[str, Any], now: int) -> None:
        worker = self._world.random.choice(self._workers)
        job |= {"status": "in_progress", "workerId": worker, "heartbeat": now}
        job["attempts"] += 1

    def _release(self, job: dict[str, Any]) -> None:
        job["status"] = "unclaimed"
        job.pop("workerId", None)
        job.pop("heartbeat", None)
