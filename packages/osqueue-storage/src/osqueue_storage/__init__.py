"""Compare-and-set object storage: the one primitive that osqueue rests on."""

from .azure import AzureBackend
from .backend import ConditionalReader, Remote, StorageBackend, StoredObject, is_remote
from .errors import CASConflictError, ConfigError, OsqueueError, Outcome, StorageBackendError
from .file import FileBackend
from .gcs import GCSBackend
from .memory import MemoryBackend
from .probing import PROBE_PREFIX, PROBE_WRITES, probe
from .s3 import S3Backend
from .throttled import Throttled, ThrottledStorageBackend, ThrottleStats
from .url import open_storage

__all__ = [
    "PROBE_PREFIX",
    "PROBE_WRITES",
    "AzureBackend",
    "CASConflictError",
    "ConditionalReader",
    "ConfigError",
    "FileBackend",
    "GCSBackend",
    "MemoryBackend",
    "OsqueueError",
    "Outcome",
    "Remote",
    "S3Backend",
    "StorageBackend",
    "StorageBackendError",
    "StoredObject",
    "ThrottleStats",
    "Throttled",
    "ThrottledStorageBackend",
    "is_remote",
    "open_storage",
    "probe",
]
