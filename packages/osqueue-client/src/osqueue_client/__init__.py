"""The client of osqueue, a job queue whose only infrastructure is an object store."""

from .client import OsqueueClient
from .errors import (
    BatchError,
    BrokerLeadershipError,
    BrokerProtocolError,
    CASConflictError,
    ConfigError,
    DiscoveryError,
    EngineStateError,
    JobNotFoundError,
    LeaseLostError,
    OsqueueError,
    PayloadValidationError,
    QueueFullError,
    RequestExpiredError,
    RequestTooLargeError,
    StorageBackendError,
    TransportConfigError,
    TransportConnectionError,
    TransportRequestError,
)
from .job import Job
from .models import DeadJob, DeadJobList, JobError, JobInfo, JobList, QueueStats
from .registry import JobHandler, JobType, Registry
from .sync import SyncOsqueueClient
from .transports import Transport

__all__ = [
    "BatchError",
    "BrokerLeadershipError",
    "BrokerProtocolError",
    "CASConflictError",
    "ConfigError",
    "DeadJob",
    "DeadJobList",
    "DiscoveryError",
    "EngineStateError",
    "Job",
    "JobError",
    "JobHandler",
    "JobInfo",
    "JobList",
    "JobNotFoundError",
    "JobType",
    "LeaseLostError",
    "OsqueueClient",
    "OsqueueError",
    "PayloadValidationError",
    "QueueFullError",
    "QueueStats",
    "Registry",
    "RequestExpiredError",
    "RequestTooLargeError",
    "StorageBackendError",
    "SyncOsqueueClient",
    "Transport",
    "TransportConfigError",
    "TransportConnectionError",
    "TransportRequestError",
]
