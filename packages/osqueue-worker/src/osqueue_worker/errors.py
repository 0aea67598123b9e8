"""Errors of the worker, and what it makes of those of the client."""

from typing import Final

from osqueue_client import (
    BrokerProtocolError,
    ConfigError,
    OsqueueError,
    RequestTooLargeError,
    TransportRequestError,
)

_MAY_PASS: Final = frozenset({408, 425, 429})
"""HTTP statuses of 400 to 499 that do not speak of the request itself."""

_NOT_IMPLEMENTED: Final = 501


class WorkerExecutionError(OsqueueError):
    """The worker itself failed, not a job of it: it has stopped, and the cause says why."""


def is_for_good(error: OsqueueError) -> bool:
    """Whether the error stays whatever the broker does: a setting of this program is wrong.

    Such as a client that was closed, or Connect in a fork of a process that has used it. An address that a broker
    or the store named wrongly is no setting: that is a `DiscoveryError`, and another may be named next.
    """
    return isinstance(error, ConfigError)


def is_refusal(error: OsqueueError) -> bool:
    """Whether the broker read the request and will not take it, however often it is sent.

    An answer that nobody can read, a proxy's 502, a full queue, a broker that does not lead: all these may pass.
    """
    match error:
        case TransportRequestError(status=int(status)):
            return status == _NOT_IMPLEMENTED or (400 <= status < 500 and status not in _MAY_PASS)
        case TransportRequestError(remote_tag="resource_exhausted"):  # over Connect, what REST calls 429
            return False
        case TransportRequestError() | BrokerProtocolError():
            return error.outcome == "not_applied"
        case RequestTooLargeError():
            return True
    return is_for_good(error)
