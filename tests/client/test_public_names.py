"""What each package exports is a decision: a change of it must change this list."""

from __future__ import annotations

import importlib

import pytest

EXPORTS = {
    "osqueue_storage": """AzureBackend CASConflictError ConditionalReader ConfigError FileBackend GCSBackend
        MemoryBackend OsqueueError Outcome PROBE_PREFIX PROBE_WRITES Remote S3Backend StorageBackend StorageBackendError
        StoredObject ThrottleStats Throttled ThrottledStorageBackend is_remote open_storage probe""",
    "osqueue_client": """BatchError BrokerLeadershipError BrokerProtocolError CASConflictError ConfigError
        DeadJob DeadJobList DiscoveryError EngineStateError Job JobError JobHandler JobInfo JobList
        JobNotFoundError JobType LeaseLostError OsqueueClient OsqueueError PayloadValidationError QueueFullError
        QueueStats Registry RequestExpiredError RequestTooLargeError StorageBackendError SyncOsqueueClient
        Transport TransportConfigError TransportConnectionError TransportRequestError""",
    "osqueue_broker": """BrokerServer BrokerSettings FileBackend MemoryBackend MountedBroker StorageBackend
        ThrottledStorageBackend create_app open_storage""",
    "osqueue_worker": "Job JobHandler JobType OsqueueClient Worker WorkerExecutionError",
}


@pytest.mark.parametrize("name", EXPORTS)
def test_package_exports_exactly_these_names(name: str) -> None:
    package = importlib.import_module(name)
    assert sorted(package.__all__) == sorted(EXPORTS[name].split())
    assert all(hasattr(package, exported) for exported in package.__all__)
