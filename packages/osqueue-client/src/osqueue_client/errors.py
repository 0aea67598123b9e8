"""The errors that cross the wire, and those of the client itself.

The tree's root and the storage errors live in `osqueue_storage`. `error_class` finds a class by its tag.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

from osqueue_storage import (
    CASConflictError,
    ConfigError,
    OsqueueError,
    Outcome,
    StorageBackendError,
)

__all__ = [
    "BrokerLeadershipError",
    "BrokerProtocolError",
    "CASConflictError",
    "ConfigError",
    "DiscoveryError",
    "EngineStateError",
    "JobNotFoundError",
    "LeaseLostError",
    "OsqueueError",
    "Outcome",
    "PayloadValidationError",
    "QueueFullError",
    "RequestTooLargeError",
    "StorageBackendError",
    "TransportConfigError",
    "TransportConnectionError",
    "TransportRequestError",
    "error_class",
    "error_from_wire",
]


class BrokerProtocolError(OsqueueError):
    """A request is malformed. `field` names the field in its wire spelling, `method` the operation.

    With the outcome `"unknown"` it is the answer that is: the request may have had its effect.
    """

    http_status = 400
    connect_code = "invalid_argument"
    wire_attributes = ("field",)

    def __init__(
        self,
        message: str = "",
        *,
        field: str | None = None,
        method: str | None = None,
        outcome: Outcome | None = "not_applied",
    ) -> None:
        super().__init__(message, outcome=outcome)
        self.field = field
        self.method = method


class RequestTooLargeError(OsqueueError):
    """A request is larger than the broker takes. Store the data elsewhere and submit where it is."""

    http_status = 413
    connect_code = "resource_exhausted"


class JobNotFoundError(OsqueueError):
    """There is no such job, or no longer: it was completed, it is dead, or it never was."""

    http_status = 404
    connect_code = "not_found"

    def __init__(self, message: str = "", *, outcome: Outcome | None = "not_applied") -> None:
        super().__init__(message, outcome=outcome)


class LeaseLostError(OsqueueError):
    """The worker does not hold the job's lease, or no longer: what it sent has had no effect."""

    http_status = 409
    connect_code = "failed_precondition"

    def __init__(self, message: str = "", *, outcome: Outcome | None = "not_applied") -> None:
        super().__init__(message, outcome=outcome)


class QueueFullError(OsqueueError):
    """More requests wait for the store than the broker holds. Wait `retry_after` seconds and send it again."""

    http_status = 429
    connect_code = "resource_exhausted"
    wire_attributes = ("outcome", "retryAfter")

    def __init__(
        self, message: str = "", *, outcome: Outcome | None = "not_applied", retry_after: float | None = None
    ) -> None:
        super().__init__(message, outcome=outcome)
        self.retry_after = retry_after


class BrokerLeadershipError(OsqueueError):
    """This broker does not lead the queue, or no longer. `leader` is the leader's `host:port` where known."""

    http_status = 503
    connect_code = "unavailable"
    wire_attributes = ("outcome", "leader")

    def __init__(
        self, message: str = "", *, leader: str | None = None, outcome: Outcome | None = "not_applied"
    ) -> None:
        super().__init__(message, outcome=outcome)
        self.leader = leader


class EngineStateError(OsqueueError):
    """The queue is in a state that must not be: an unreadable document, or a fault of ours."""


class DiscoveryError(OsqueueError):
    """No leader could be found: the store has no queue, or no broker leads it."""

    http_status = 503
    connect_code = "unavailable"


class TransportConfigError(ConfigError):
    """A transport cannot be made from these settings."""


class TransportConnectionError(OsqueueError):
    """The broker could not be reached, or the connection ended before the answer.

    `outcome` is `"not_applied"` where the request was surely not sent, else `"unknown"`.
    """

    http_status = 503
    connect_code = "unavailable"


class TransportRequestError(OsqueueError):
    """The broker refused a request with an error that this client has no class for.

    `method` and `path` are those of the request, `status` is the HTTP status (None over WebSocket), and
    `remote_tag` is the error's name on the other side.
    """

    http_status = 502
    connect_code = "unknown"

    def __init__(
        self,
        message: str = "",
        *,
        method: str | None = None,
        path: str | None = None,
        status: int | None = None,
        remote_tag: str | None = None,
        outcome: Outcome | None = None,
    ) -> None:
        super().__init__(message, outcome=outcome)
        self.method = method
        self.path = path
        self.status = status
        self.remote_tag = remote_tag


class PayloadValidationError(OsqueueError):
    """A payload does not fit its job type's model, or the type is not in the registry. Nothing was sent."""

    http_status = 400
    connect_code = "invalid_argument"

    def __init__(self, message: str = "", *, job_type: str | None = None) -> None:
        super().__init__(message, outcome="not_applied")
        self.job_type = job_type


def _tree(root: type[OsqueueError]) -> Iterator[type[OsqueueError]]:
    yield root
    for child in root.__subclasses__():
        yield from _tree(child)


@cache
def error_class(tag: str) -> type[OsqueueError] | None:
    """Return the error class of this name, or None if this version of osqueue has none."""
    return next((cls for cls in _tree(OsqueueError) if cls.__name__ == tag), None)


_ATTRIBUTES = {"outcome": "outcome", "leader": "leader", "field": "field", "retryAfter": "retry_after"}


def wire_fields(error: OsqueueError) -> dict[str, str | float]:
    """Return `_tag`, `message` and the attributes that the error carries, by their names on the wire."""
    fields: dict[str, str | float] = {"_tag": error.tag, "message": error.message}
    for name in error.wire_attributes:
        value = getattr(error, _ATTRIBUTES[name])
        if value is not None:
            fields[name] = value
    return fields


def error_from_wire(
    fields: dict[str, object],
    *,
    method: str | None = None,
    path: str | None = None,
    status: int | None = None,
) -> OsqueueError:
    """Rebuild the error that a broker answered with; `method`, `path` and `status` are those of the request.

    An unknown tag, and one of the client's own errors, becomes a `TransportRequestError`.
    """
    tag = str(fields.get("_tag", "")) or None
    message = str(fields.get("message", "")) or f"the broker answered {status} without a message"
    cls = error_class(tag) if tag else None
    if cls is None or issubclass(
        cls, TransportRequestError | TransportConnectionError | TransportConfigError
    ):
        return TransportRequestError(
            message,
            method=method,
            path=path,
            status=status,
            remote_tag=tag,
            outcome=_stated_outcome(fields) or outcome_of_status(status),
        )
    error = cls(message)
    for name, attribute in _ATTRIBUTES.items():
        if name in fields and hasattr(error, attribute):
            setattr(error, attribute, fields[name])
    return error


def outcome_of_status(status: int | None) -> Outcome | None:
    """Return what an HTTP status alone tells: a proxy's 502 says nothing of what the broker behind it did."""
    if status is None:
        return None
    return "not_applied" if 400 <= status < 500 else "unknown"


def _stated_outcome(fields: dict[str, object]) -> Outcome | None:
    match fields.get("outcome"):
        case "not_applied":
            return "not_applied"
        case "unknown":
            return "unknown"
    return None
