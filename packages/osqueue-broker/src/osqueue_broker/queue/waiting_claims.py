"""The claims that found no job and wait for one, in the order in which they came."""

from __future__ import annotations

from osqueue_client import models

from .mutation import Mutation


class WaitingClaims:
    """Each method is O(number of types that a claim names). A claim is known by the `new_id` of its mutation."""

    def __init__(self) -> None:
        self._claims: dict[str, tuple[int, Mutation]] = {}
        self._for_any: dict[str, int] = {}
        self._by_type: dict[str, dict[str, int]] = {}
        self._count = 0

    def __len__(self) -> int:
        return len(self._claims)

    def add(self, claim: Mutation) -> None:
        """Have a claim wait behind all others."""
        self._count += 1
        self._claims[claim.new_id] = self._count, claim
        types = _types_of(claim)
        if not types:
            self._for_any[claim.new_id] = self._count
        for type in types:
            self._by_type.setdefault(type, {})[claim.new_id] = self._count

    def remove(self, new_id: str) -> None:
        """Let a claim wait no more, if it does."""
        found = self._claims.pop(new_id, None)
        if found is None:
            return
        self._for_any.pop(new_id, None)
        for type in _types_of(found[1]):
            claims = self._by_type.get(type)
            if claims is not None:
                claims.pop(new_id, None)
                if not claims:
                    del self._by_type[type]

    def first_for(self, type: str) -> Mutation | None:
        """Return the claim that has waited longest for a job of this type (`""`: an untyped one)."""
        first: tuple[int, str] | None = None
        for claims in (self._for_any, self._by_type.get(type) if type else None):
            if claims:
                new_id, number = next(iter(claims.items()))
                if first is None or number < first[0]:
                    first = number, new_id
        return None if first is None else self._claims[first[1]][1]


def _types_of(claim: Mutation) -> tuple[str, ...]:
    request = claim.request
    assert isinstance(request, models.ClaimJob | models.ClaimJobs)
    return request.types or ()
