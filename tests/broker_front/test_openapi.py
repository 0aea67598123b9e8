"""The OpenAPI document: valid, complete, and true of what the broker answers."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from openapi_spec_validator import validate

from osqueue_client.operations import OPERATIONS, AnyOperation


@pytest.fixture
async def document(http: httpx.AsyncClient) -> dict[str, Any]:
    found: dict[str, Any] = (await http.get("/openapi.json")).json()
    return found


async def test_it_is_valid(document: dict[str, Any]) -> None:
    assert document["openapi"].startswith("3.1")
    validate(document)


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)
async def test_every_operation_has_its_row(document: dict[str, Any], operation: AnyOperation) -> None:
    entry = document["paths"][operation.path][operation.http_method.lower()]
    assert entry["operationId"] == operation.name
    assert entry["summary"] == operation.summary
    assert str(operation.success_status) in entry["responses"]
    for status in ("400", "429", "500", "503"):
        content = entry["responses"][status]["content"]["application/json"]
        assert content["schema"] == {"$ref": "#/components/schemas/Error"}
        assert content["example"]["_tag"]
    assert operation.names_job == any(p["name"] == "jobId" for p in entry.get("parameters", []))
    assert operation.is_read == ("requestBody" not in entry)
    if operation.names_job:
        assert "jobId" not in document["components"]["schemas"][operation.request.__name__]["properties"]


async def test_errors_and_examples_are_those_that_are_answered(
    document: dict[str, Any], http: httpx.AsyncClient
) -> None:
    schemas = document["components"]["schemas"]
    answer = (await http.post("/v1/jobs/claim", json={})).json()
    assert answer.keys() <= schemas["Error"]["properties"].keys()
    entry = document["paths"]["/v1/jobs"]["post"]
    example = entry["requestBody"]["content"]["application/json"]["example"]
    assert (await http.post("/v1/jobs", json=example)).status_code == 200
