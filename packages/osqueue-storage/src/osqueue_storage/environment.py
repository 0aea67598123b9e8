"""Where the platforms' credentials are: the variables that their own tools read, too."""

from __future__ import annotations

import os


def variable(name: str) -> str | None:
    """Return a variable of the environment, or None if it is not set or empty."""
    return os.environ.get(name) or None  # noqa: TID251  # its one home
