"""The OpenAPI document: valid, complete, and true of what the broker answers."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from broker_front.support import RecordingService, front_app, serving
from openapi_spec_validator import validate
from starlette.applications import Starlette
from starlette.routing import Mount

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
    for status in ("400", "408", "429", "431", "500", "503", *(() if operation.is_read else ("413", "415"))):
        content = entry["responses"][status]["content"]["application/json"]
        assert content["schema"] == {"$ref": "#/components/schemas/Error"}
        assert content["example"]["_tag"]
    assert operation.names_job == any(p["name"] == "jobId" for p in entry.get("parameters", []))
    assert operation.is_read == ("requestBody" not in entry)
    if operation.names_job:
        assert "jobId" not in document["components"]["schemas"][operation.request.__name__]["properties"]


async def test_every_page_has_its_row(document: dict[str, Any], http: httpx.AsyncClient) -> None:
    for path, statuses in (
        ("/healthz", {"200", "408", "431"}),
        ("/state", {"200", "408", "429", "431", "500", "503"}),
        ("/readyz", {"200", "408", "431", "503"}),
        ("/v1/throttle-stats", {"200", "408", "431"}),
    ):
        entry = document["paths"][path]["get"]
        assert entry["operationId"]
        assert entry["responses"].keys() == statuses
        assert (await http.get(path)).status_code == 200


async def test_the_server_is_where_the_application_is_mounted(service: RecordingService) -> None:
    app = Starlette(routes=[Mount("/deep/queue", app=front_app(service)), Mount("/", app=front_app(service))])
    async with serving(app) as front, httpx.AsyncClient(base_url=front.http, trust_env=False) as http:
        for path, url in (("/openapi.json", "/"), ("/deep/queue/openapi.json", "/deep/queue")):
            document = (await http.get(path)).json()
            validate(document)
            assert document["servers"] == [{"url": url}]


async def test_errors_and_examples_are_those_that_are_answered(
    document: dict[str, Any], http: httpx.AsyncClient
) -> None:
    schemas = document["components"]["schemas"]
    answer = (await http.post("/v1/jobs/claim", json={})).json()
    assert answer.keys() <= schemas["Error"]["properties"].keys()
    entry = document["paths"]["/v1/jobs"]["post"]
    example = entry["requestBody"]["content"]["application/json"]["example"]
    assert (await http.post("/v1/jobs", json=example)).status_code == 200


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)
async def test_every_example_of_a_request_is_taken(
    document: dict[str, Any], http: httpx.AsyncClient, operation: AnyOperation
) -> None:
    entry = document["paths"][operation.path][operation.http_method.lower()]
    path = operation.path.replace("{jobId}", "id-1")
    if operation.is_read:
        assert (await http.get(path)).status_code == 200
        return
    example = entry["requestBody"]["content"]["application/json"]["example"]
    assert example or operation.permission == "manage"
    answer = await http.post(path, json=example)
    assert answer.status_code == operation.success_status, answer.text


async def test_batches_waits_and_pages_are_described(document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]
    assert schemas["SubmitJobs"]["properties"]["jobs"]["maxItems"] == 1000
    assert schemas["LeasedChanges"]["properties"]["jobs"]["minItems"] == 1
    wait = schemas["ClaimJob"]["properties"]["wait"]["anyOf"][0]
    assert (wait["minimum"], wait["maximum"]) == (0, 60)
    claim = document["paths"]["/v1/batch/claim"]["post"]
    example = claim["responses"]["200"]["content"]["application/json"]["example"]
    assert example["jobs"][0].keys() == {"jobId", "payload", "type", "attempt", "leaseToken"}
    names = [each["name"] for each in document["paths"]["/v1/jobs"]["get"]["parameters"]]
    assert names == ["limit", "cursor", "type", "status"]
