"""Which web pages may call, over REST, Connect and WebSocket alike."""

from __future__ import annotations

import httpx
import pytest
from broker_front.support import RPC, Front, RecordingService, front_app, serving
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from osqueue_broker.origins import Origins
from osqueue_client.errors import ConfigError

CASES = [
    (None, "http://localhost", True),
    (None, "http://localhost:5173", True),
    (None, "https://127.0.0.1:8443", True),
    (None, "http://[::1]:3000", True),
    (None, "null", False),
    (None, "", False),
    (None, "http://localhost.evil.example", False),
    (None, "http://evil.example/localhost", False),
    (None, "http://localhost@evil.example", False),
    (None, "http://evil.example#@localhost", False),
    (None, "http://127.0.0.10", False),
    (None, "localhost", False),
    (None, "file://localhost", False),
    (["https://app.example.com"], "https://app.example.com", True),
    (["https://app.example.com"], "http://app.example.com", False),
    (["https://app.example.com"], "https://app.example.com:444", False),
    (["https://app.example.com"], "http://localhost:5173", False),
    (["HTTPS://App.Example.com:443"], "https://app.example.com", True),
    (["http://a.example:80", "http://b.example:8080"], "http://a.example", True),
    (["http://a.example:80", "http://b.example:8080"], "http://b.example:8080", True),
    (["*"], "https://anything.example", True),
    (["*"], "null", False),
    ([], "http://localhost", False),
]


@pytest.mark.parametrize(("allowed", "origin", "is_allowed"), CASES)
async def test_every_transport_keeps_the_same_list(
    service: RecordingService, allowed: list[str] | None, origin: str, is_allowed: bool
) -> None:
    expected = origin if is_allowed else None
    async with serving(front_app(service, allow_origins=allowed)) as front:
        async with httpx.AsyncClient(base_url=front.http, trust_env=False) as http:
            for method, path in (
                ("GET", "/healthz"), ("POST", "/v1/jobs"), ("GET", "/nothing"), ("POST", f"{RPC}/GetStats"),
                ("POST", f"{RPC}/Nothing"), ("PUT", "/v1/jobs"),
            ):  # fmt: skip
                headers = {"origin": origin, "content-type": "application/json"}
                answer = await http.request(method, path, headers=headers, content=b"{}")
                assert answer.headers.get("access-control-allow-origin") == expected
                assert "Origin" in answer.headers["vary"]
                if is_allowed:
                    assert "Connect-Protocol-Version" in answer.headers["access-control-expose-headers"]
            for path in ("/v1/jobs", "/v1/jobs/x/complete", f"{RPC}/SubmitJob"):
                answer = await http.options(
                    path, headers={"origin": origin, "access-control-request-method": "POST"}
                )
                assert (answer.status_code, answer.content) == (204, b"")
                assert answer.headers.get("access-control-allow-origin") == expected
                assert answer.headers["vary"] == "Origin"
                if is_allowed:
                    assert answer.headers["access-control-allow-methods"] == "GET, POST, OPTIONS"
                    assert answer.headers["access-control-allow-headers"] == (
                        "Content-Type, Connect-Protocol-Version, Connect-Timeout-Ms"
                    )
        if is_allowed:
            async with connect(front.ws, proxy=None, additional_headers={"Origin": origin}):
                pass
        else:
            with pytest.raises(InvalidStatus) as refused:
                await connect(front.ws, proxy=None, additional_headers={"Origin": origin})
            assert refused.value.response.status_code == 403


async def test_without_an_origin_nothing_is_said_of_them(http: httpx.AsyncClient, front: Front) -> None:
    answer = await http.get("/healthz")
    assert not [name for name in answer.headers if name.startswith("access-control")]
    async with connect(front.ws, proxy=None):
        pass


@pytest.mark.parametrize(
    "origin",
    ["", "null", "app.example.com", "https://", "https://a.example/", "https://a.example/path", "https://u@a.example",
     "https://a.example?x", "https://a b", "https://a.example:port", "https://a.example:99999", "https://*.example"],
)  # fmt: skip
def test_what_is_no_origin_is_refused_when_it_is_set(origin: str) -> None:
    with pytest.raises(ConfigError, match="origin"):
        Origins([origin])
