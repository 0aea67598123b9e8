"""Which certificate authorities an https connection trusts."""

from __future__ import annotations

import os
import ssl
from typing import TypeAlias

from ..errors import TransportConfigError

CaFile: TypeAlias = str | os.PathLike[str]


def context_of(ca_file: CaFile) -> ssl.SSLContext:
    """Return a context that trusts the authorities in a PEM file, and no others.

    Raises `TransportConfigError` if the file cannot be read or holds none.
    """
    try:
        return ssl.create_default_context(cafile=ca_file)
    except OSError as error:  # an SSLError is one, too
        why = error.strerror or error
        raise TransportConfigError(f"ca_file={os.fspath(ca_file)!r} cannot be used: {why}") from error
