"""Where the frames of an HTTP/2 connection begin and end, to tell a peer that is slow to send one. No I/O, no clock."""

from __future__ import annotations

from typing import Final

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
"""What a client of HTTP/2 sends first. RFC 9113, 3.4."""

HEAD_SIZE: Final = 9
"""Bytes before each frame's payload: length (3), type, flags, stream (4). RFC 9113, 4.1."""

_HEADERS: Final = 0x1
_CONTINUATION: Final = 0x9
_END_HEADERS: Final = 0x4


class FrameBoundaries:
    """Follows the bytes of a peer, and tells whether a frame is on its way.

    A block of headers counts as one frame, however many it comes in: no other may come in between. What frames
    say, and whether they may, is the parser's business.
    """

    __slots__ = ("_head", "_is_amid_headers", "_missing")

    def __init__(self, preface_size: int) -> None:
        self._head = b""
        self._missing = preface_size
        self._is_amid_headers = False

    @property
    def is_amid(self) -> bool:
        """Whether some of a frame has come, but not all."""
        return self._missing > 0 or bool(self._head) or self._is_amid_headers

    def feed(self, data: bytes) -> bool:
        """Follow what has come; return whether a frame began with it."""
        has_begun = False
        at, size = 0, len(data)
        while at < size:
            if self._missing:
                skipped = min(self._missing, size - at)
                self._missing -= skipped
                at += skipped
                continue
            if not self._head and not self._is_amid_headers:
                has_begun = True
            taken = data[at : at + HEAD_SIZE - len(self._head)]
            at += len(taken)
            self._head += taken
            if len(self._head) == HEAD_SIZE:
                self._read_head()
        return has_begun

    def _read_head(self) -> None:
        head, self._head = self._head, b""
        self._missing = int.from_bytes(head[:3], "big")
        if head[3] in (_HEADERS, _CONTINUATION):
            self._is_amid_headers = not head[4] & _END_HEADERS
