"""The broker of osqueue: a job queue whose only infrastructure is an object store."""

from osqueue_storage import FileBackend, MemoryBackend, StorageBackend, open_storage

from .server import BrokerServer, MountedBroker, create_app
from .settings import BrokerSettings

__all__ = [
    "BrokerServer",
    "BrokerSettings",
    "FileBackend",
    "MemoryBackend",
    "MountedBroker",
    "StorageBackend",
    "create_app",
    "open_storage",
]
