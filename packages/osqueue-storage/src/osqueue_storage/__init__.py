"""Compare-and-set object storage: the one primitive that osqueue rests on."""

from .backend import ConditionalReader, StorageBackend, StoredObject
from .errors import CASConflictError, ConfigError, OsqueueError, Outcome, StorageBackendError
from .file import FileBackend
from .memory import MemoryBackend
from .url import open_storage

__all__ = [
    "CASConflictError",
    "ConditionalReader",
    "ConfigError",
    "FileBackend",
    "MemoryBackend",
    "OsqueueError",
    "Outcome",
    "StorageBackend",
    "StorageBackendError",
    "StoredObject",
    "open_storage",
]
