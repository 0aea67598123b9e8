"""Models and protobuf messages have the same fields: one that only one of them has would be lost without a word."""

from __future__ import annotations

from typing import Any, get_args

import msgspec
import pytest

from osqueue_client import wire_proto
from osqueue_client.models import Model
from osqueue_client.operations import OPERATIONS, AnyOperation

SIDES = ("request", "response")


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)
def test_model_and_message_have_the_same_fields(operation: AnyOperation, side: str) -> None:
    message = getattr(wire_proto.messages_of(operation), side)
    compare(getattr(operation, side), message.desc())


def compare(model: type[Model], desc: Any) -> None:
    fields = {field.name: field for field in msgspec.structs.fields(model)}
    assert fields.keys() == {field.name for field in desc.fields}
    for field in desc.fields:
        nested = getattr(field.value, "message", None) or getattr(field.value, "element", None)
        models = [
            part for part in (fields[field.name].type, *get_args(fields[field.name].type)) if is_model(part)
        ]
        if models:
            compare(models[0], nested)


def is_model(annotation: object) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, Model)
