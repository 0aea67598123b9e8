"""Dead jobs are put back, or deleted for good."""

from __future__ import annotations

from osqueue_client import models
from osqueue_client.errors import JobNotFoundError

from .dead import DeadJob
from .mutation import DONE, Mutation
from .rules import Now
from .state import QueueState


def requeue_dead(state: QueueState, mutation: Mutation, now: Now) -> models.Model:
    """Put a dead job back at the end of the queue."""
    state.requeue(_dead(state, mutation.request))
    return DONE


def delete_dead(state: QueueState, mutation: Mutation, now: Now) -> models.Model:
    """Delete a dead job for good."""
    state.delete_dead(_dead(state, mutation.request))
    return DONE


def _dead(state: QueueState, request: models.Model) -> DeadJob:
    assert isinstance(request, models.DeadJobRef)
    dead = state.find_dead(request.job_id)
    if dead is None:
        raise JobNotFoundError(f"no dead job {request.job_id}")
    return dead
