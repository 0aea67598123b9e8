"""The root of osqueue's error tree, and the errors of storage.

Every error of osqueue is an `OsqueueError`. Its class name is its tag on the wire, and the class also says
which HTTP status and which Connect code it travels as: no transport keeps a table of its own.
"""

from __future__ import annotations

from typing import ClassVar, Literal

Outcome = Literal["not_applied", "unknown"]
"""Whether a change that failed may have happened: surely not, or nobody can tell yet."""


class OsqueueError(Exception):
    """Base of all errors of osqueue.

    Arguments besides the message are keywords with defaults, kept as attributes: an error can be pickled,
    and nothing that it knew is lost.
    """

    http_status: ClassVar[int] = 500
    connect_code: ClassVar[str] = "internal"
    wire_attributes: ClassVar[tuple[str, ...]] = ("outcome",)
    """The attributes that travel beside tag and message, where they are set."""

    def __init__(self, message: str = "", *, outcome: Outcome | None = None) -> None:
        super().__init__(message)
        self.outcome: Outcome | None = outcome

    @property
    def tag(self) -> str:
        """The error's name on the wire."""
        return type(self).__name__

    @property
    def message(self) -> str:
        """What happened and what to do, for a person."""
        return str(self.args[0]) if self.args else ""


class ConfigError(OsqueueError):
    """A setting cannot work; the message has the mend. Raised when the setting is made, not when it is used."""

    http_status = 400
    connect_code = "invalid_argument"


class StorageBackendError(OsqueueError):
    """The store failed, or gave no clear answer.

    `outcome` tells whether the change behind it may have happened.
    """

    http_status = 503
    connect_code = "unavailable"


class CASConflictError(OsqueueError):
    """The object is not at the expected version, so this write surely changed nothing."""

    http_status = 409
    connect_code = "aborted"

    def __init__(self, message: str = "", *, key: str | None = None) -> None:
        super().__init__(message, outcome="not_applied")
        self.key = key
