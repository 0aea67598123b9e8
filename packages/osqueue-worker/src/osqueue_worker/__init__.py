"""The worker of osqueue: runs handlers for the jobs of a queue."""

from osqueue_client import Job, JobHandler, JobType, OsqueueClient

from .errors import WorkerExecutionError
from .worker import Worker

__all__ = ["Job", "JobHandler", "JobType", "OsqueueClient", "Worker", "WorkerExecutionError"]
