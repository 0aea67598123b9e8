"""How this process's memory is handed out, where that decides what a commit costs."""

from __future__ import annotations

from typing import Final

_BLOCK: Final = 32 * 1024 * 1024 - 64 * 1024


def keep_freed_bodies() -> None:
    """Have the C library keep the memory of a large body for the next one.

    glibc gives blocks above a threshold back to the system when they are freed, and the next one has to be
    faulted in anew, page by page: for a body of 15 MB that takes longer than its bytes do. The threshold rises to
    the largest block that was ever freed, up to 32 MiB (mallopt(3), M_MMAP_THRESHOLD). This one is never
    touched, so it costs no memory; with another C library it does nothing.
    """
    bytes(_BLOCK)
