"""The OpenAPI document, made from the table of operations and the models."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Raw

from osqueue_client.models import Model
from osqueue_client.operations import OPERATIONS, AnyOperation

_ERRORS = {
    "400": "The request is malformed; `field` names what is wrong.",
    "404": "There is no such job.",
    "409": "The worker does not hold the job's lease.",
    "413": "The request is too large.",
    "429": "Too many requests wait for the store; try again after `retryAfter` seconds.",
    "503": "This broker does not lead, or the store is unavailable.",
}


def openapi_document() -> dict[str, Any]:
    """Return the OpenAPI 3.1 document of the REST interface."""
    models = [model for op in OPERATIONS for model in (op.request, op.response)]
    _, components = msgspec.json.schema_components(
        models, schema_hook=_any_json, ref_template="#/components/schemas/{name}"
    )
    components["Error"] = {
        "type": "object",
        "required": ["_tag", "message"],
        "properties": {
            "_tag": {"type": "string"},
            "message": {"type": "string"},
            "field": {"type": "string"},
            "leader": {"type": "string"},
            "outcome": {"enum": ["not_applied", "unknown"]},
            "retryAfter": {"type": "number"},
        },
    }
    paths: dict[str, dict[str, Any]] = {}
    for operation in OPERATIONS:
        paths.setdefault(operation.path, {})[operation.http_method.lower()] = _operation(operation)
    return {
        "openapi": "3.1.0",
        "info": {"title": "osqueue", "version": "1", "description": "A job queue in an object store."},
        "paths": paths,
        "components": {"schemas": components},
    }


def _operation(operation: AnyOperation) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "operationId": operation.name,
        "summary": operation.summary,
        "responses": {
            str(operation.success_status): _success(operation),
            **{status: _error(text) for status, text in _ERRORS.items()},
        },
    }
    if operation.names_job:
        entry["parameters"] = [_parameter("jobId", "path", {"type": "string"})]
    if operation.is_read:
        fields = msgspec.json.schema(operation.request)["$defs"][operation.request.__name__]["properties"]
        entry["parameters"] = [_parameter(name, "query", schema) for name, schema in fields.items()]
    else:
        entry["requestBody"] = {
            "required": operation.permission != "manage",
            "content": _json(operation.request),
        }
    return entry


def _success(operation: AnyOperation) -> dict[str, Any]:
    if operation.success_status == 204:
        return {"description": "Done."}
    return {"description": "The answer.", "content": _json(operation.response)}


def _error(text: str) -> dict[str, Any]:
    return {
        "description": text,
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
    }


def _parameter(name: str, place: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "in": place, "required": place == "path", "schema": schema}


def _json(model: type[Model]) -> dict[str, Any]:
    return {"application/json": {"schema": {"$ref": f"#/components/schemas/{model.__name__}"}}}


def _any_json(type: type) -> dict[str, Any]:
    if type is Raw:
        return {}
    raise NotImplementedError(type)
