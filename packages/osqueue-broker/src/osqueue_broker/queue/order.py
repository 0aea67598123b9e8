"""The field `order` of a job's text: its place among all jobs, written only while some of them stand in segments.

Somebody else may have a field of that name. It is kept: in front of all others, where it is found at once; and put
aside under another name for as long as ours is written.
"""

from __future__ import annotations

from typing import Final

import msgspec
from msgspec import Raw

HIGHEST: Final = 2**62
"""What is more than that is no place: there will never be so many jobs."""

_FOREIGN: Final = b'{"order":'
_ASIDE: Final = b'{"foreignOrder":'
_ASIDE_NAME: Final = b'"foreignOrder"'

_encoder = msgspec.json.Encoder()
_fields_decoder = msgspec.json.Decoder(dict[str, Raw])


def with_place(text: bytes, place: int) -> bytes:
    """Return a job's text with its place."""
    if text.startswith(_FOREIGN):
        text = _ASIDE + text[len(_FOREIGN) :]
    return b'%b,"order":%d}' % (text[:-1], place)


def ends_with_place(text: bytes, place: int) -> bool:
    """Whether the last field of a text says this place, as `with_place` writes it."""
    return text.endswith(b',"order":%d}' % place)


def without_place(text: bytes, place: int) -> bytes:
    """Return a text as it was before `with_place`, also if others have written it since."""
    suffix = b',"order":%d}' % place
    if text.endswith(suffix) and not text.startswith(_ASIDE):  # as a rule
        return text[: -len(suffix)] + b"}"
    fields = _fields_decoder.decode(text)
    del fields["order"]
    return _encoder.encode(_put_back(fields))


def with_nothing_aside(text: bytes) -> bytes:
    """Return a text whose place somebody has taken out as it was before `with_place`."""
    return _encoder.encode(_put_back(_fields_decoder.decode(text))) if _ASIDE_NAME in text else text


def foreign_first(text: bytes) -> bytes:
    """Return a text with somebody else's `order` where `with_place` finds it."""
    fields = _fields_decoder.decode(text)
    return _encoder.encode({"order": fields.pop("order"), **fields})


def _put_back(fields: dict[str, Raw]) -> dict[str, Raw]:
    foreign = fields.pop("foreignOrder", None)
    return fields if foreign is None else {"order": foreign, **fields}
