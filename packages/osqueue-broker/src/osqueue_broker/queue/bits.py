"""Sets of places as bits, the first place's bit the lowest; in the document as base64 of their bytes, lowest first."""

from __future__ import annotations

from base64 import b64decode, b64encode


def text_of_bits(bits: int) -> str:
    """Return the bits as text; that of none is empty."""
    return b64encode(bits.to_bytes((bits.bit_length() + 7) // 8, "little")).decode()


def bits_in_text(text: str) -> int:
    """Return the bits that such a text stands for. Raises `ValueError` if it is none."""
    return int.from_bytes(b64decode(text), "little")
