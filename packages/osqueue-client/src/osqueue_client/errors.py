"""The errors that cross the wire, and those of the client itself.

The tree's root and the storage errors live in `osqueue_storage`. `wire_fields` and `error_from_wire` are how an
error crosses.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

from osqueue_storage import (
    CASConflictError,
    ConfigError,
    OsqueueError,
    Outcome,
    StorageBackendError,
)

__all__ = [
    "BatchError",
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
    "RequestExpiredError",
    "RequestTooLargeError",
    "StorageBackendError",
    "TransportConfigError",
    "TransportConnectionError",
    "TransportRequestError",
    "error_from_wire",
    "wire_fields",
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


class RequestExpiredError(OsqueueError):
    """A repeated request came too late to get its first answer, so it was not done now; it may have been before.

    It was sent first more than 60 s ago, or its client had said that it waited for it no more.
    """

    http_status = 410
    connect_code = "aborted"

    def __init__(self, message: str = "", *, outcome: Outcome | None = "unknown") -> None:
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
    """No leader could be found: the store has no queue, or no broker leads it. Nothing was sent."""

    http_status = 503
    connect_code = "unavailable"

    def __init__(self, message: str = "", *, outcome: Outcome | None = "not_applied") -> None:
        super().__init__(message, outcome=outcome)


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

    `method` is the operation's name ("submitJob"), `remote_tag` the error's name on the other side. `path` and
    `status` are those of the HTTP request over REST, and None over the other transports.
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


class BatchError(OsqueueError):
    """Some entries of a batch were not done. `results` has for each, in order, its answer or its own error."""

    http_status = 502
    connect_code = "unknown"

    def __init__(self, message: str = "", *, results: Sequence[str | OsqueueError] = ()) -> None:
        super().__init__(message)
        self.results = list(results)


_FROM_BROKER: Final[dict[str, type[OsqueueError]]] = {
    cls.__name__: cls
    for cls in (
        BrokerLeadershipError,
        BrokerProtocolError,
        CASConflictError,
        EngineStateError,
        JobNotFoundError,
        LeaseLostError,
        QueueFullError,
        RequestExpiredError,
        RequestTooLargeError,
        StorageBackendError,
    )
}
"""What a broker may answer with, by tag. The others are raised on this side only and speak of this program."""

_ATTRIBUTES: Final = {"outcome": "outcome", "leader": "leader", "field": "field", "retryAfter": "retry_after"}


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
    """Rebuild the error that a broker answered the operation `method` with; `path` and `status` are REST's.

    A tag that no broker of this version sends becomes a `TransportRequestError`. An attribute that cannot be one
    is passed over. A broker that cannot serve and does not state the outcome (an old one) leaves it open.
    """
    tag, message, outcome = _text(fields, "_tag"), _text(fields, "message"), _stated_outcome(fields)
    cls = _FROM_BROKER.get(tag or "")
    if cls is None:
        return TransportRequestError(
            message or f"{method}: the broker answered {tag or status} without a message",
            method=method,
            path=path,
            status=status,
            remote_tag=tag,
            outcome=outcome or outcome_of_status(status),
        )
    error = cls(message or f"{method}: the broker answered {tag} without a message")
    error.outcome = outcome or outcome_of_status(cls.http_status)
    if isinstance(error, BrokerProtocolError):
        error.field, error.method = _text(fields, "field"), method
    if isinstance(error, BrokerLeadershipError):
        error.leader = _text(fields, "leader")
    if isinstance(error, QueueFullError):
        error.retry_after = _seconds(fields, "retryAfter")
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


def _text(fields: dict[str, object], name: str) -> str | None:
    value = fields.get(name)
    return value if isinstance(value, str) and value else None


def _seconds(fields: dict[str, object], name: str) -> float | None:
    match fields.get(name):
        case bool():
            return None
        case int() | float() as seconds if 0 <= seconds < math.inf:
            return float(seconds)
    return None
