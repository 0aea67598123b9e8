"""Whether a broker is ready to serve, as `/readyz` tells it to load balancers."""

from __future__ import annotations

from typing import Literal, TypeAlias

from msgspec import Struct

ReadinessStatus: TypeAlias = Literal["ready", "stale", "stopping", "standby", "starting", "stopped"]
"""`ready`: it leads, and its last commit is fresh. `stale`: it leads, but nothing has landed in the store for so
long that somebody else may have taken over. `stopping`: it hands over. `standby`: another broker leads, or is
watched. `starting`, `stopped`: it does not run yet, or no longer."""


class Readiness(Struct, frozen=True, omit_defaults=True):
    """The answer of `/readyz`. `leader` is the address of the broker that leads, where that is another one."""

    status: ReadinessStatus
    leader: str | None = None

    @property
    def is_ready(self) -> bool:
        """Whether requests should be sent to this broker."""
        return self.status == "ready"
