"""Models to protobuf messages and back: the only reader of the generated code.

Nothing here knows a message by name. A message's class is found through the service's descriptor by the
operation's RPC, a field by its name, which is the same in the model and in the message.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, Final, TypeVar, get_args

import msgspec
from msgspec import UNSET, Raw
from protobuf import (
    DescField,
    DescFieldValueList,
    DescFieldValueMessage,
    DescFieldValueScalar,
    DescMessage,
    Message,
    ScalarType,
)

from ._generated.osqueue.v1 import queue_pb
from .models import Model
from .operations import AnyOperation, Operation
from .wire_json import malformed_answer, payload_from_text, request_from_fields

AnyMessage = Message[Any]
M = TypeVar("M", bound=Model)

_INT32_MAX: Final = 2**31 - 1
_EXPLICIT: Final = 1  # FeatureSet.FieldPresence.EXPLICIT of descriptor.proto
_METHODS: Final = {method.name: method for method in queue_pb.desc().services[0].methods}


@dataclass(frozen=True, slots=True)
class Messages:
    """The message classes of one operation."""

    request: type[AnyMessage]
    response: type[AnyMessage]


@cache
def messages_of(operation: AnyOperation) -> Messages:
    """Return the operation's message classes."""
    method = _METHODS[operation.rpc]
    return Messages(_class_of(method.input), _class_of(method.output))


def request_to_message(operation: AnyOperation, request: Model) -> AnyMessage:
    """Return the request as its protobuf message."""
    return _to_message(request, messages_of(operation).request)


def response_to_message(operation: AnyOperation, response: Model) -> AnyMessage:
    """Return the response as its protobuf message; counts beyond int32 are answered as the largest int32."""
    return _to_message(response, messages_of(operation).response)


def request_from_message(operation: Operation[M, Model], message: AnyMessage) -> M:
    """Return the request that a message holds. Raises `BrokerProtocolError` that names the field."""
    return request_from_fields(operation, _from_message(message, operation.request, operation.name))


def response_from_message(operation: Operation[Model, M], message: AnyMessage) -> M:
    """Return the response that a message holds. Raises `BrokerProtocolError` if it does not fit the model."""
    fields = _from_message(message, operation.response)
    try:
        return msgspec.convert(fields, operation.response)
    except msgspec.ValidationError as error:
        raise malformed_answer(operation.name, str(error)) from None


@dataclass(frozen=True, slots=True)
class _Field:
    """How one field goes from a model to a message and back. `model` and `message` are set when it nests."""

    name: str
    wire_name: str
    has_presence: bool
    is_repeated: bool
    is_required: bool
    scalar: ScalarType | None
    model: type[Model] | None
    message: type[AnyMessage] | None


def _fields_of(model: type[Model], message: type[AnyMessage]) -> tuple[_Field, ...]:
    return tuple(
        _field(field, desc)
        for field in msgspec.structs.fields(model)
        for desc in message.desc().fields
        if desc.name == field.name
    )


def _field(field: msgspec.structs.FieldInfo, desc: DescField) -> _Field:
    match desc.value:
        case DescFieldValueList(element=element):
            item: object = element
        case DescFieldValueScalar(scalar=scalar):
            item = scalar
        case DescFieldValueMessage(message=nested):
            item = nested
        case other:
            raise TypeError(f"{desc.name}: no model has a field like {other}")
    return _Field(
        name=field.name,
        wire_name=field.encode_name,
        has_presence=desc.presence == _EXPLICIT,
        is_repeated=isinstance(desc.value, DescFieldValueList),
        is_required=field.required,
        scalar=item if isinstance(item, ScalarType) else None,
        model=_model_in(field.type) if isinstance(item, DescMessage) else None,
        message=_class_of(item) if isinstance(item, DescMessage) else None,
    )


def _model_in(annotation: object) -> type[Model] | None:
    """Return the model that stands somewhere in an annotation."""
    if isinstance(annotation, type) and issubclass(annotation, Model):
        return annotation
    found = (model for arg in get_args(annotation) if (model := _model_in(arg)) is not None)
    return next(found, None)


def _class_of(desc: DescMessage) -> type[AnyMessage]:
    cls: type[AnyMessage] = getattr(queue_pb, desc.name)
    return cls


def _to_message(model: Model, message: type[AnyMessage]) -> AnyMessage:
    return _writer(type(model), message)(model)  # type: ignore[arg-type]  # a class hashes; its metaclass hides it


@cache
def _writer(model: type[Model], message: type[AnyMessage]) -> Callable[[Model], AnyMessage]:
    """Return what makes a message of a model: it runs for each entry of a batch."""
    fields = [(field.name, _value_writer(field)) for field in _fields_of(model, message)]

    def write(instance: Model) -> AnyMessage:
        values = {}
        for name, convert in fields:
            value = getattr(instance, name)
            if value is not None and value is not UNSET:
                values[name] = value if convert is None else convert(value)
        return message(**values)

    return write


def _value_writer(field: _Field) -> Callable[[Any], object] | None:
    """Return what makes a message's value of a model's; None if it is the same."""
    if field.message is not None and field.model is not None:
        write = _writer(field.model, field.message)  # type: ignore[arg-type]  # a class hashes; its metaclass hides it
        return (lambda items: [write(item) for item in items]) if field.is_repeated else write
    if field.is_repeated:
        return list
    if field.scalar == ScalarType.INT32:
        return lambda number: min(number, _INT32_MAX)
    return bytes if field.scalar == ScalarType.BYTES else None


def _from_message(message: AnyMessage, model: type[Model], method: str | None = None) -> dict[str, object]:
    """Return the fields of a message, named as in JSON. Those of a request to `method` have their payloads checked."""
    return _reader(model, type(message), method)(message)  # type: ignore[arg-type]  # a class hashes; its metaclass hides it


@cache
def _reader(
    model: type[Model], message: type[AnyMessage], method: str | None
) -> Callable[[AnyMessage], dict[str, object]]:
    """Return what reads a message: it runs for each entry of a batch."""
    fields = [
        (field.name, field.wire_name, _default_reader(field, method), _value_reader(field, method))
        for field in _fields_of(model, message)
    ]

    def read(instance: AnyMessage) -> dict[str, object]:
        values: dict[str, object] = {}
        for name, wire_name, is_there, convert in fields:
            value = getattr(instance, name)
            if value or is_there(instance):  # to ask is slow; what is not the default is there
                values[wire_name] = value if convert is None else convert(value)
        return values

    return read


def _default_reader(field: _Field, method: str | None) -> Callable[[AnyMessage], bool]:
    """Return what tells whether a field is to be read though its value is the default one."""
    if method is not None and field.name == "payload":
        return lambda _: True  # a payload over Connect is always JSON text: no bytes at all are not one
    if field.has_presence:
        return lambda message: message.has_field(field.name)
    return lambda _: field.is_required


def _value_reader(field: _Field, method: str | None) -> Callable[[Any], object] | None:
    """Return what makes a model's value of a message's; None if it is the same."""
    if field.message is not None and field.model is not None:
        read = _reader(field.model, field.message, method)  # type: ignore[arg-type]  # a class hashes; its metaclass hides it
        return (lambda items: [read(item) for item in items]) if field.is_repeated else read
    if method is not None and field.name == "payload":
        return lambda value: payload_from_text(bytes(value), method)
    return Raw if field.scalar == ScalarType.BYTES else None
