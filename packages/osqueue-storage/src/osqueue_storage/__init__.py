from .errors import *
from .errors import CASConflictError, ConfigError, OsqueueError, StorageBackendError, Outcome
