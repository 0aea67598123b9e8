"""The OpenAPI document, made from the table of operations, the models and the error classes."""

from __future__ import annotations

from typing import Any, Final, TypeAlias

import msgspec
from msgspec import Raw

from osqueue_client.errors import (
    BrokerLeadershipError,
    BrokerProtocolError,
    EngineStateError,
    JobNotFoundError,
    LeaseLostError,
    OsqueueError,
    QueueFullError,
    RequestTooLargeError,
    wire_fields,
)
from osqueue_client.models import Model
from osqueue_client.operations import OPERATIONS, AnyOperation

Node: TypeAlias = dict[str, Any]
"""A part of a JSON document."""

_ERROR_FIELDS: Final[Node] = {
    "_tag": {"type": "string", "description": "The kind of error."},
    "message": {"type": "string", "description": "What was wrong, and what to do."},
    "field": {"type": "string", "description": "The field that was wrong."},
    "leader": {"type": "string", "description": "The address of the broker that leads."},
    "outcome": {"enum": ["not_applied", "unknown"], "description": "Whether the change may have happened."},
    "retryAfter": {"type": "number", "description": "Seconds to wait before the request is sent again."},
}
_ANY_REQUEST: Final = (
    BrokerProtocolError("claimJob: field 'workerId' is missing", field="workerId"),
    QueueFullError("10,000 requests wait for the store", retry_after=1.0),
    EngineStateError("the broker failed at this request; its log says why", outcome="unknown"),
    BrokerLeadershipError("another broker leads this queue", leader="10.0.0.7:8080"),
)
_WITH_BODY: Final = (
    RequestTooLargeError("the request is larger than 1,048,576 bytes", outcome="not_applied"),
)
_OF_A_JOB: Final = (JobNotFoundError("there is no such job"),)
_OF_A_LEASE: Final = (LeaseLostError("the worker does not hold the lease of this job"),)

_JOB_ID: Final = "6f1b7c52-0f7e-4a53-9d5c-6d3a3c1c0f5e"
_EXAMPLES: Final[Node] = {
    "jobId": _JOB_ID,
    "payload": {"to": "user@example.com", "subject": "Hello!"},
    "type": "email:send",
    "types": ["email:send"],
    "workerId": "worker-1",
    "maxAttempts": 3,
    "attempt": 1,
    "error": {"type": "SMTPError", "message": "mailbox full"},
    "retry": True,
    "total": 2,
    "unclaimed": 1,
    "inProgress": 1,
    "completedTotal": 40,
    "brokerAddress": "10.0.0.7:8080",
}
"""A value for each field by its name on the wire, whichever model it stands in."""


def openapi_document() -> Node:
    """Return the OpenAPI 3.1 document of the REST interface."""
    models = [model for operation in OPERATIONS for model in (operation.request, operation.response)]
    _, schemas = msgspec.json.schema_components(
        models, schema_hook=_any_json, ref_template="#/components/schemas/{name}"
    )
    paths: Node = {}
    for operation in OPERATIONS:
        paths.setdefault(operation.path, {})[operation.http_method.lower()] = _operation(operation, schemas)
        if operation.names_job:
            schemas[operation.request.__name__]["properties"].pop("jobId", None)  # it stands in the path
    schemas["Error"] = {"type": "object", "required": ["_tag", "message"], "properties": _ERROR_FIELDS}
    return {
        "openapi": "3.1.0",
        "info": {"title": "osqueue", "version": "1", "description": "A job queue in an object store."},
        "paths": paths,
        "components": {"schemas": schemas},
    }


def _operation(operation: AnyOperation, schemas: Node) -> Node:
    errors = [*_ANY_REQUEST]
    entry: Node = {"operationId": operation.name, "summary": operation.summary}
    if operation.names_job:
        errors += _OF_A_JOB
        errors += _OF_A_LEASE if operation.permission == "work" else ()
        entry["parameters"] = [_parameter("jobId", "path", {"type": "string"})]
    if operation.is_read:
        fields = schemas[operation.request.__name__]["properties"]
        entry["parameters"] = [_parameter(name, "query", schema) for name, schema in fields.items()]
    else:
        errors += _WITH_BODY
        entry["requestBody"] = {
            "required": operation.request.__struct_fields__ != ("job_id",),
            "content": _content(operation.request, without="jobId" if operation.names_job else ""),
        }
    entry["responses"] = {str(operation.success_status): _success(operation)} | {
        str(error.http_status): _error(error) for error in sorted(errors, key=lambda error: error.http_status)
    }
    return entry


def _success(operation: AnyOperation) -> Node:
    if operation.success_status == 204:
        return {"description": "Done."}
    return {"description": "The answer.", "content": _content(operation.response)}


def _error(error: OsqueueError) -> Node:
    schema = {"$ref": "#/components/schemas/Error"}
    return {
        "description": (type(error).__doc__ or "").partition("\n")[0],
        "content": {"application/json": {"schema": schema, "example": wire_fields(error)}},
    }


def _content(model: type[Model], *, without: str = "") -> Node:
    names = [field.encode_name for field in msgspec.structs.fields(model)]
    example = {name: _EXAMPLES[name] for name in names if name in _EXAMPLES and name != without}
    schema = {"$ref": f"#/components/schemas/{model.__name__}"}
    is_whole = all(
        field.encode_name in _EXAMPLES or not field.required for field in msgspec.structs.fields(model)
    )
    return {"application/json": {"schema": schema} | ({"example": example} if is_whole else {})}


def _parameter(name: str, place: str, schema: Node) -> Node:
    return {"name": name, "in": place, "required": place == "path", "schema": schema}


def _any_json(type: type) -> Node:
    if type is Raw:
        return {}
    raise NotImplementedError(type)
