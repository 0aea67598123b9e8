"""The OpenAPI document, made from the tables of operations and pages, the models and the error classes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any, Final, TypeAlias, get_args, get_origin

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
    wire_fields,
)
from osqueue_client.models import Model
from osqueue_client.operations import OPERATIONS, AnyOperation

from .transport import HeadTooLarge, TooSlow, UnknownMedia, too_large

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
    TooSlow("the request has not arrived in full within 30 s"),
    HeadTooLarge("the request line and the headers are larger than 65,536 bytes"),
)
_ANY_LEADER: Final = (
    EngineStateError("the broker failed at this request; its log says why", outcome="unknown"),
    BrokerLeadershipError("another broker leads this queue", leader="10.0.0.7:8080"),
)
_ANY_QUEUED: Final = (QueueFullError("10,000 requests wait for the store", retry_after=1.0),)
_ANY_OPERATION: Final = (
    *_ANY_REQUEST,
    *_ANY_LEADER,
    *_ANY_QUEUED,
    BrokerProtocolError("claimJob: field 'workerId' is missing", field="workerId"),
)
_WITH_BODY: Final = (
    too_large(1024 * 1024),
    UnknownMedia("claimJob: the content-type must be application/json, not text/plain"),
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
    "limit": 10,
    "wait": 30,
    "attempt": 1,
    "leaseToken": "f3b0a6de-6a39-4a5f-9a1b-1f1de4c2b7aa",
    "error": {"type": "SMTPError", "message": "mailbox full"},
    "retry": True,
    "total": 2,
    "unclaimed": 1,
    "inProgress": 1,
    "completedTotal": 40,
    "brokerAddress": "10.0.0.7:8080",
}
"""A value for each field by its name on the wire, whichever model it stands in."""


@dataclass(frozen=True, slots=True)
class Page:
    """A path that is not an operation: JSON for a GET."""

    name: str
    path: str
    summary: str
    example: Node
    errors: tuple[OsqueueError, ...]
    unready: Node | None = None
    """An example of the answer with the status 503, where that is none of the errors."""


READINESS: Final = Page(
    "readiness",
    "/readyz",
    "Say whether this broker leads the queue, and may answer by itself.",
    {"status": "ready"},
    _ANY_REQUEST,
    unready={"status": "standby", "leader": "10.0.0.7:8080"},
)
PAGES: Final = (
    Page("health", "/healthz", "Say that the process serves.", {"status": "ok"}, _ANY_REQUEST),
    Page(
        "state",
        "/state",
        "Return the queue document as last committed.",
        {"broker": "10.0.0.7:8080", "brokerHeartbeat": 1767225600000, "jobs": [], "completedTotal": 40},
        (*_ANY_REQUEST, *_ANY_LEADER, *_ANY_QUEUED),
    ),
    Page(
        "throttleStats",
        "/v1/throttle-stats",
        "Count what a throttled storage has let wait.",
        {"throttling": False},
        _ANY_REQUEST,
    ),
)


def openapi_document() -> Node:
    """Return the OpenAPI 3.1 document of the REST interface, all but `servers`."""
    models = [model for operation in OPERATIONS for model in (operation.request, operation.response)]
    _, schemas = msgspec.json.schema_components(
        models, schema_hook=_any_json, ref_template="#/components/schemas/{name}"
    )
    paths: Node = {}
    for operation in OPERATIONS:
        paths.setdefault(operation.path, {})[operation.http_method.lower()] = _operation(operation, schemas)
        if operation.names_job:
            schemas[operation.request.__name__]["properties"].pop("jobId", None)  # it stands in the path
    paths |= {page.path: {"get": _page(page)} for page in (*PAGES, READINESS)}
    schemas["Error"] = {"type": "object", "required": ["_tag", "message"], "properties": _ERROR_FIELDS}
    return {
        "openapi": "3.1.0",
        "info": {"title": "osqueue", "version": "1", "description": "A job queue in an object store."},
        "paths": paths,
        "components": {"schemas": schemas},
    }


def _operation(operation: AnyOperation, schemas: Node) -> Node:
    errors = [*_ANY_OPERATION]
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
    entry["responses"] = {str(operation.success_status): _success(operation)} | _errors(errors)
    return entry


def _page(page: Page) -> Node:
    responses = {"200": _page_answer("The answer.", page.example)} | _errors(page.errors)
    if page.unready is not None:
        responses["503"] = _page_answer("Send no requests here now; the status says why.", page.unready)
    return {"operationId": page.name, "summary": page.summary, "responses": responses}


def _page_answer(description: str, example: Node) -> Node:
    content = {"application/json": {"schema": {"type": "object"}, "example": example}}
    return {"description": description, "content": content}


def _success(operation: AnyOperation) -> Node:
    if operation.success_status == 204:
        return {"description": "Done."}
    return {"description": "The answer.", "content": _content(operation.response)}


def _errors(errors: Iterable[OsqueueError]) -> Node:
    return {
        str(error.http_status): _error(error) for error in sorted(errors, key=lambda error: error.http_status)
    }


def _error(error: OsqueueError) -> Node:
    schema = {"$ref": "#/components/schemas/Error"}
    return {
        "description": (type(error).__doc__ or "").partition("\n")[0],
        "content": {"application/json": {"schema": schema, "example": wire_fields(error)}},
    }


def _content(model: type[Model], *, without: str = "") -> Node:
    schema = {"$ref": f"#/components/schemas/{model.__name__}"}
    example = _example(model)
    if example is not None:
        example.pop(without, None)
    return {"application/json": {"schema": schema} | ({} if example is None else {"example": example})}


def _example(model: type[Model]) -> Node | None:
    """Return an example of a model; None where there is none of a field that must be there."""
    example: Node = {}
    for field in msgspec.structs.fields(model):
        name = field.encode_name
        entry = _entry_in(field.type)
        if entry is not None and (of_entry := _example(entry)) is not None:
            of_entry.pop("error", None)  # an entry that was not refused
            example[name] = [of_entry]
        elif entry is None and name in _EXAMPLES:
            example[name] = _EXAMPLES[name]
        elif field.required:
            return None
    return example


def _entry_in(annotation: object) -> type[Model] | None:
    """Return the model of which a field holds many."""
    if get_origin(annotation) is Annotated:
        return _entry_in(get_args(annotation)[0])
    first = next(iter(get_args(annotation)), None) if get_origin(annotation) is tuple else None
    return first if isinstance(first, type) and issubclass(first, Model) else None


def _parameter(name: str, place: str, schema: Node) -> Node:
    return {"name": name, "in": place, "required": place == "path", "schema": schema}


def _any_json(type: type) -> Node:
    if type is Raw:
        return {}
    raise NotImplementedError(type)
