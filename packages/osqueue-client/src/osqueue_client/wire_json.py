"""Models to JSON and back, with the rules that every JSON text from outside must keep.

A payload is taken as it stands: any valid JSON text in UTF-8, nested at most `MAX_NESTING` deep (so that
every JSON reader in use can take it back, whatever its recursion limit). It is never parsed into numbers and
written again.
"""

from __future__ import annotations

import re
from functools import cache
from itertools import accumulate
from typing import Final, TypeVar

import msgspec
from msgspec import Raw

from .errors import BrokerProtocolError
from .models import Model
from .operations import Operation

M = TypeVar("M", bound=Model)

MAX_NESTING: Final = 200
"""The deepest nesting of arrays and objects in one request (pydantic's JSON reader stops there, too)."""

UNREADABLE: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What msgspec raises for a text that it cannot decode: not JSON or of another shape, not UTF-8, nested too deep."""

_encoder = msgspec.json.Encoder()


@cache
def _decoder(model: type[M]) -> msgspec.json.Decoder[M]:
    return msgspec.json.Decoder(model)


_NO_STRUCTURE = bytes(byte for byte in range(256) if byte not in b'[]{}"')
_SAME_BRACKETS = bytes.maketrans(b"{}", b"[]")
_DEPTH_STEP = {ord("["): 1, ord("]"): -1}
_FLAT: Final = 16
_MISSING = re.compile(r"missing required field `(\w+)`(?: - at `\$\.?(.*)`)?")
_LOCATED = re.compile(r" - at `\$\.?(.*)`")


def encode(model: Model) -> bytes:
    """Return the model as JSON text; payloads are copied as they came."""
    return _encoder.encode(model)


def checked_request(operation: Operation[M, Model], request: M) -> M:
    """Return a request that was built here as a broker would read it.

    Raises the `BrokerProtocolError` that the broker would answer with.
    """
    try:
        body = encode(request)
    except (TypeError, ValueError) as error:
        raise BrokerProtocolError(f"{operation.name}: not JSON: {error}", method=operation.name) from error
    return require_job_id(operation, decode_request(operation, body))


def decode_request(operation: Operation[M, Model], body: bytes) -> M:
    """Return the request that stands in a JSON body.

    Raises `BrokerProtocolError` that names the field. The job's id may still be missing, since over REST it
    stands in the path: `with_job_id` or `require_job_id` has the last word.
    """
    check_text(body, operation.name)
    try:
        request: M = _decoder(operation.request).decode(body)
    except UNREADABLE as error:
        raise _malformed(operation.name, error) from None
    return request


def request_from_fields(
    operation: Operation[M, Model], fields: dict[str, object], *, strict: bool = True
) -> M:
    """Return the request with these fields, named as on the wire; not `strict`, numbers may be strings.

    Raises `BrokerProtocolError` that names the field.
    """
    try:
        return msgspec.convert(fields, operation.request, strict=strict)
    except msgspec.ValidationError as error:
        raise _malformed(operation.name, error) from None


def decode_response(operation: Operation[Model, M], body: bytes) -> M:
    """Return a broker's answer.

    Raises `BrokerProtocolError` if it is not one of this operation; the request may have had its effect then.
    """
    try:
        response: M = _decoder(operation.response).decode(body)
    except UNREADABLE as error:
        raise malformed_answer(operation.name, _plain(error)) from None
    return response


def malformed_answer(method: str, why: str) -> BrokerProtocolError:
    """Return the error for an answer that cannot be read: nobody can tell what the request did."""
    return BrokerProtocolError(f"{method}: the answer is malformed: {why}", method=method, outcome="unknown")


def with_job_id(request: M, job_id: str) -> M:
    """Put the job's id into a request that was just decoded and that nobody else has seen."""
    msgspec.structs.force_setattr(request, "job_id", job_id)
    return request


def require_job_id(operation: Operation[M, Model], request: M) -> M:
    """Return the request. Raises `BrokerProtocolError` if it must name a job and does not."""
    if operation.names_job and not getattr(request, "job_id", None):
        raise BrokerProtocolError(
            f"{operation.name}: field 'jobId' is missing or empty", field="jobId", method=operation.name
        )
    return request


def payload_from_text(text: bytes, method: str) -> Raw:
    """Return a payload from its JSON text. Raises `BrokerProtocolError` if it is not JSON text."""
    try:
        check_text(text, method)
        return msgspec.json.decode(text, type=Raw)
    except (BrokerProtocolError, *UNREADABLE) as error:
        raise BrokerProtocolError(
            f"{method}: field 'payload' is not JSON text: {_plain(error)}", field="payload", method=method
        ) from None


def check_text(text: bytes, method: str) -> None:
    """Raise `BrokerProtocolError` if a JSON text is not UTF-8 or is nested too deep to be read at all."""
    try:
        text.decode()
    except UnicodeDecodeError as error:
        raise BrokerProtocolError(f"{method}: not UTF-8 at byte {error.start}", method=method) from None
    if text.count(b"[") + text.count(b"{") > MAX_NESTING and nesting(text) > MAX_NESTING:
        raise BrokerProtocolError(f"{method}: nested more than {MAX_NESTING} deep", method=method)


def nesting(text: bytes) -> int:
    """Return how deep arrays and objects are nested in a JSON text (in a broken one: at least as deep).

    Not further than one past `MAX_NESTING`. Large payloads come this way, so nothing here looks at single bytes
    unless they are nested uncommonly deep.
    """
    without_escapes = text.replace(b"\\\\", b"").replace(b'\\"', b"")
    pieces = without_escapes.translate(None, _NO_STRUCTURE).split(b'"')
    brackets = b"".join(pieces[::2]).translate(_SAME_BRACKETS)  # every other piece is a string
    levels = 0
    while levels < _FLAT and brackets != (shorter := brackets.replace(b"[]", b"")):
        brackets = shorter  # the innermost level is gone
        levels += 1
    deepest = 0
    for depth in accumulate(_DEPTH_STEP[bracket] for bracket in brackets):
        deepest = max(deepest, depth)
        if levels + deepest > MAX_NESTING:
            break
    return levels + deepest


def _malformed(method: str, error: Exception) -> BrokerProtocolError:
    text = _plain(error)
    if missing := _MISSING.search(text):
        name, parent = missing.groups()
        field = f"{parent}.{name}" if parent else name
        return BrokerProtocolError(f"{method}: field '{field}' is missing", field=field, method=method)
    if located := _LOCATED.search(text):
        field = located.group(1)
        fact = text[: located.start()].replace("Expected", "expected", 1)
        return BrokerProtocolError(f"{method}: field '{field}': {fact}", field=field, method=method)
    return BrokerProtocolError(f"{method}: the request is malformed: {text}", method=method)


def _plain(error: Exception) -> str:
    return f"nested more than {MAX_NESTING} deep" if isinstance(error, RecursionError) else str(error)
