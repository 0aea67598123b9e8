"""Payloads to JSON text and back.

What a worker will read must be what was given. A payload that JSON text cannot carry is refused: NaN, a secret that
is written as asterisks, the fields of a subclass that its model does not have, two keys that are one in JSON. A field
that its model declares with `exclude=True` is left out, as it says, and is read as its default.

Each function raises `ValueError` (pydantic's errors are of that kind), or `RecursionError`.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections import Counter, deque
from collections.abc import Iterator
from functools import cache
from typing import Any, Final

import pydantic
import pydantic_core

_ATOMS: Final = frozenset({str, int, bool, type(None), bytes})
_SEQUENCES: Final = (list, tuple, deque)
_SETS: Final = (set, frozenset)
_SECRETS: Final = (pydantic.SecretStr, pydantic.SecretBytes, pydantic.Secret)

_NO_DIGITS: Final = bytes(byte for byte in range(256) if byte not in b"0123456789")
_LARGE_NUMBER: Final = re.compile(rb"[eE]\+?\d{3}|\d{200}")


def typed_json(model: Any, payload: object) -> bytes:
    """Return the JSON text of an instance of the model, or of plain data that the model validates."""
    adapter = _adapter(model)
    value = adapter.validate_python(payload)
    # round_trip leaves out what is computed from the rest, and writes a field of JSON text as the text it is.
    unusual = _unusual_in(adapter.dump_python(value, round_trip=True, warnings=False))
    text = adapter.dump_json(value, by_alias=True, round_trip=True, warnings=False)
    _refuse_hidden_secrets(unusual, text)
    # As the worker will read it: an instance may have been changed since it was made (pydantic does not look
    # again), or be written under other names than it is read by, or be of a subclass (pydantic writes the fields
    # of the declared class).
    read = adapter.validate_json(text)
    if lost := _lost_field(value, read):
        raise ValueError(f"its field {lost} is one of a subclass, which the model does not have")
    again = adapter.dump_json(read, by_alias=True, round_trip=True, warnings=False)
    if text != again and _in_any_order(text) != _in_any_order(again):
        raise ValueError("it is read back as another value than it was written from")
    return text


def untyped_json(payload: object) -> bytes:
    """Return the JSON text of anything that pydantic can write."""
    plain = pydantic_core.to_jsonable_python(payload, by_alias=True, inf_nan_mode="constants")
    _unusual_in(plain)
    text = pydantic_core.to_json(plain)
    if lost := _unwritten_field(payload, plain):
        raise ValueError(
            f"its field {lost} is one of a subclass, which the model that holds it does not write"
        )
    if _unusual_in(payload):
        _refuse_hidden_secrets(_unusual_in(_adapter(Any).dump_python(payload, warnings=False)), text)
    read_untyped(text)  # as the worker will read it
    return text


def read_typed(model: Any, text: bytes) -> object:
    """Return the value of the model that a JSON text holds."""
    adapter = _adapter(model)
    value: object = adapter.validate_json(text)
    if _may_be_infinite(text):
        _unusual_in(adapter.dump_python(value, round_trip=True, warnings=False))
    return value


def read_untyped(text: bytes) -> object:
    """Return the plain data that a JSON text holds."""
    value: object = pydantic_core.from_json(text, allow_inf_nan=False)
    if _may_be_infinite(text):
        _unusual_in(value)
    return value


def _may_be_infinite(text: bytes) -> bool:
    """Whether a JSON text may have a number beyond the floats, or what pydantic takes for one: few others do."""
    # To count the digits takes a tenth of the time of the search.
    if len(text.translate(None, _NO_DIGITS)) >= 3 and _LARGE_NUMBER.search(text):
        return True
    return b"NaN" in text or b"Infinity" in text


def _adapter(model: Any) -> pydantic.TypeAdapter[Any]:
    try:
        return _cached_adapter(model)
    except TypeError:
        return pydantic.TypeAdapter(model)  # a model that has no hash, such as Annotated with a list


@cache
def _cached_adapter(model: Any) -> pydantic.TypeAdapter[Any]:
    return pydantic.TypeAdapter(model)


def _unusual_in(value: object) -> list[object]:
    """Return what is neither a container nor plain, at any depth.

    Raises `ValueError` for NaN and infinity, which pydantic writes as null without a word (and it reads 1e400 as
    infinity), and for a dict of which two keys are the same in JSON, as 1 and "1".
    """
    unusual = []
    rest = [value]
    while rest:
        item = rest.pop()
        if type(item) in _ATOMS:
            continue
        if isinstance(item, float):
            if not math.isfinite(item):
                raise ValueError(f"{item} is not a JSON number")
        elif isinstance(item, dict):
            _refuse_equal_names(item)
            rest.extend(item.values())
        elif isinstance(item, _SEQUENCES + _SETS):
            rest.extend(item)
        else:
            unusual.append(item)
    return unusual


def _refuse_equal_names(item: dict[Any, object]) -> None:
    if all(type(key) is str for key in item):
        return
    names = Counter(map(_name_of, item))
    if len(names) < len(item):
        [(name, _)] = names.most_common(1)
        raise ValueError(f"more than one key of a dict is written as {name!r}")


def _name_of(key: object) -> str:
    """Return a dict's key as JSON has it."""
    return key if type(key) is str else next(iter(pydantic_core.to_jsonable_python({key: None})))


def _refuse_hidden_secrets(unusual: list[object], text: bytes) -> None:
    # A secret is written as asterisks, unless its field has a serializer that writes the value.
    for item in unusual:
        if isinstance(item, _SECRETS) and str(item) and pydantic_core.to_json(str(item)) in text:
            raise ValueError(
                "it holds a secret, which is written as asterisks; give its field a serializer that writes the "
                "value, or submit a reference to it"
            )


def _lost_field(given: object, read: object) -> str | None:
    """Return the first field, at any depth, that an object was given with and that the one read has not."""
    for name, item, other in _pairs(given, read):
        if other is _MISSING:
            return str(name)
        if type(item) not in _ATOMS and (lost := _lost_field(item, other)):
            return f"{name}.{lost}"
    return None


_MISSING: Final = object()


def _pairs(given: Any, read: Any) -> Iterator[tuple[object, object, object]]:
    names, others = _fields_written_of(given), _fields_written_of(read)
    if names is not None and others is not None:
        for name in names:
            if (item := getattr(given, name, _MISSING)) is not _MISSING:
                yield name, item, getattr(read, name, _MISSING)
        for name, item in (getattr(given, "model_extra", None) or {}).items():
            yield name, item, getattr(read, name, _MISSING)
    elif isinstance(given, dict) and isinstance(read, dict):
        for key, item in given.items():
            if key in read:
                yield key, item, read[key]
    elif isinstance(given, _SEQUENCES) and isinstance(read, _SEQUENCES):
        for index, (item, other) in enumerate(zip(given, read, strict=False)):
            yield index, item, other


def _unwritten_field(given: Any, plain: object) -> str | None:
    """Return the first field, at any depth, that was left out of an object as its class is not the declared one.

    Then exactly what a base of its class declares was written. Whatever else differs is a serializer's decision.
    """
    if isinstance(given, pydantic.RootModel):
        return _unwritten_field(given.root, plain)
    names = _fields_written_of(given)
    if names is not None and isinstance(plain, dict):
        keys = {name: _key_written(type(given), name) for name in names}
        keys |= {name: name for name in getattr(given, "model_extra", None) or {}}
        lost = next((name for name, key in keys.items() if key not in plain), None)
        if lost and any(_writes_just(base, set(plain)) for base in type(given).__mro__[1:]):
            return lost
        pairs = [(name, getattr(given, name, None), plain.get(key)) for name, key in keys.items()]
    elif isinstance(given, dict) and isinstance(plain, dict):
        pairs = [(str(key), item, plain.get(_name_of(key))) for key, item in given.items()]
    elif isinstance(given, _SEQUENCES + _SETS) and isinstance(plain, list):
        pairs = [(str(index), *pair) for index, pair in enumerate(zip(given, plain, strict=False))]
    else:
        return None
    for name, item, other in pairs:
        if type(item) not in _ATOMS and (deeper := _unwritten_field(item, other)):
            return f"{name}.{deeper}"
    return None


def _writes_just(cls: type[Any], keys: set[str]) -> bool:
    names = _fields_written(cls)  # type: ignore[arg-type]  # a class hashes; its metaclass hides it
    if names is None:
        return False
    fields = {_key_written(cls, name) for name in names}
    computed = getattr(cls, "__pydantic_decorators__", None)
    more = computed.computed_fields if computed else {}
    return fields <= keys <= fields | {made.info.alias or name for name, made in more.items()}


def _key_written(cls: type[Any], name: str) -> str:
    info = getattr(cls, "__pydantic_fields__", {}).get(name)
    return (info and info.serialization_alias) or name


def _fields_written_of(value: object) -> tuple[str, ...] | None:
    return _fields_written(type(value))  # type: ignore[arg-type]  # a class hashes; its metaclass hides it


@cache
def _fields_written(cls: type[Any]) -> tuple[str, ...] | None:
    """Return the names of a model's or a dataclass's fields, save those left out; None for any other class."""
    if issubclass(cls, pydantic.BaseModel):
        return tuple(name for name, info in cls.model_fields.items() if not _may_be_left_out(info))
    if dataclasses.is_dataclass(cls):
        return tuple(field.name for field in dataclasses.fields(cls))
    return None


def _may_be_left_out(info: pydantic.fields.FieldInfo) -> bool:
    return bool(info.exclude) or getattr(info, "exclude_if", None) is not None


def _in_any_order(text: bytes) -> object:
    """Return what a JSON text holds, with its lists sorted: those made of sets come in any order."""

    def sort(value: object) -> object:
        match value:
            case dict():
                return {name: sort(item) for name, item in value.items()}
            case list():
                return sorted(map(sort, value), key=repr)
        return value

    return sort(pydantic_core.from_json(text))
