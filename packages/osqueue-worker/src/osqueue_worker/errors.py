"""Errors of the worker."""

from osqueue_client import OsqueueError


class WorkerExecutionError(OsqueueError):
    """The worker itself failed, not a job of it: it has stopped, and the cause says why."""
