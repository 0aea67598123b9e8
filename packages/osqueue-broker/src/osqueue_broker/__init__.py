"""The broker of osqueue: a job queue whose only infrastructure is an object store."""

from osqueue_storage import FileBackend, MemoryBackend, StorageBackend, ThrottledStorageBackend, open_storage

from .mounted import MountedBroker, create_app
from .server import BrokerServer
from .settings import BrokerSettings

__all__ = [
    "BrokerServer",
    "BrokerSettings",
    "FileBackend",
    "MemoryBackend",
    "MountedBroker",
    "StorageBackend",
    "ThrottledStorageBackend",
    "create_app",
    "open_storage",
]
