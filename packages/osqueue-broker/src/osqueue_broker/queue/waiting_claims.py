"""The claims that found no job and wait for one, in the order in which they came."""

from __future__ import annotations

from typing import TypeVar

from osqueue_client import models

from .mutation import Mutation

K = TypeVar("K")


class WaitingClaims:
    """Each method is O(number of types that a claim names). A claim is known by the `new_id` of its mutation."""

    def __init__(self) -> None:
        self._claims: dict[str, tuple[int, Mutation]] = {}
        self._for_any: dict[str, int] = {}
        self._by_type: dict[str, dict[str, int]] = {}
        self._by_request: dict[tuple[str, int], dict[str, int]] = {}
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
        if (request := _request_of(claim)) is not None:
            self._by_request.setdefault(request, {})[claim.new_id] = self._count

    def remove(self, new_id: str) -> None:
        """Let a claim wait no more, if it does."""
        found = self._claims.pop(new_id, None)
        if found is None:
            return
        self._for_any.pop(new_id, None)
        for type in _types_of(found[1]):
            _drop(self._by_type, type, new_id)
        if (request := _request_of(found[1])) is not None:
            _drop(self._by_request, request, new_id)

    def first_for(self, type: str) -> Mutation | None:
        """Return the claim that has waited longest for a job of this type (`""`: an untyped one)."""
        first: tuple[int, str] | None = None
        for claims in (self._for_any, self._by_type.get(type) if type else None):
            if claims:
                new_id, number = next(iter(claims.items()))
                if first is None or number < first[0]:
                    first = number, new_id
        return None if first is None else self._claims[first[1]][1]

    def other_repeats_of(self, claim: Mutation) -> list[Mutation]:
        """Return the other claims that have the same request id, oldest first."""
        request = _request_of(claim)
        repeats = () if request is None else self._by_request.get(request, ())
        return [self._claims[new_id][1] for new_id in repeats if new_id != claim.new_id]


def _drop(index: dict[K, dict[str, int]], key: K, new_id: str) -> None:
    claims = index.get(key)
    if claims is not None:  # else the claim names a type twice
        claims.pop(new_id, None)
        if not claims:
            del index[key]


def _request_of(claim: Mutation) -> tuple[str, int] | None:
    id: models.RequestId | None = getattr(claim.request, "request_id", None)
    return None if id is None else (id.session, id.number)


def _types_of(claim: Mutation) -> tuple[str, ...]:
    request = claim.request
    assert isinstance(request, models.ClaimJob | models.ClaimJobs)
    return request.types or ()
