"""What errors say, the same over every transport, and which of them may come from a broker."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest
from client.support import (
    NAMES,
    TRANSPORTS,
    always,
    answer,
    free_port,
    hang_up,
    listening,
    replying,
    silent,
    submitting,
    transport_to,
)

from osqueue_broker import BrokerServer
from osqueue_client import (
    BrokerLeadershipError,
    BrokerProtocolError,
    ConfigError,
    OsqueueClient,
    OsqueueError,
    QueueFullError,
    SyncOsqueueClient,
    TransportConfigError,
    TransportConnectionError,
    TransportRequestError,
    errors,
)
from osqueue_client.errors import error_from_wire
from osqueue_client.transports import TransportName, open_transport
from osqueue_client.transports.rest import RestTransport
from osqueue_storage import MemoryBackend


async def test_refused_connection_says_where_why_and_what_to_do(transport_name: str) -> None:
    address = f"127.0.0.1:{free_port()}"
    transport = transport_to(transport_name, f"http://bob:hunter2@{address}")
    async with OsqueueClient(transport=transport, timeout=0.4) as client:
        with pytest.raises(TransportConnectionError) as caught:
            await client.submit_job("a", 1)
    assert caught.value.message.startswith(
        f"submitJob: cannot connect to http://{address}: Connection refused; is a broker running there? (tried "
    )


@pytest.mark.parametrize("transport_name", [name for name in TRANSPORTS if name != "ws"])
async def test_lost_answer_says_where(transport_name: str) -> None:
    async with (
        listening(hang_up) as url,
        OsqueueClient(transport=transport_to(transport_name, url), timeout=0.4) as client,
    ):
        with pytest.raises(TransportConnectionError) as caught:
            await client.submit_job("a", 1)
    assert caught.value.message.startswith(f"submitJob: no answer from {url}: ")


async def test_silence_says_where() -> None:
    async with listening(silent) as url, OsqueueClient(url, transport="rest", timeout=0.1) as client:
        with pytest.raises(TransportConnectionError) as caught:
            await client.submit_job("a", 1)
    assert caught.value.message == f"submitJob: no answer from {url} within 0.1 s"


@pytest.mark.parametrize("name", NAMES)
async def test_wrong_path_in_the_url_is_suspected(server: BrokerServer, name: TransportName) -> None:
    async with OsqueueClient(f"http://{server.address}/nope", transport=name, timeout=1) as client:
        with pytest.raises(OsqueueError, match="is the broker's URL right") as caught:
            await client.submit_job("a", 1)
    assert caught.value.outcome == "not_applied"


async def test_missing_job_is_no_wrong_url(client: OsqueueClient) -> None:
    with pytest.raises(OsqueueError) as caught:
        await client.complete_job("no-such", "w1")
    assert "URL" not in caught.value.message


async def test_method_is_the_operation_over_every_transport(transport_name: str) -> None:
    async with (
        replying(always(answer(501, b"no", "text/plain"))) as url,
        submitting(transport_to(transport_name, url)) as submit,
    ):
        with pytest.raises(OsqueueError) as caught:
            await submit()
    if transport_name == "ws":  # there is no connection at all
        assert isinstance(caught.value, TransportConnectionError)
        return
    assert isinstance(caught.value, TransportRequestError)
    is_rest = transport_name == "rest"
    assert (caught.value.method, caught.value.path, caught.value.status) == (
        "submitJob",
        "/v1/jobs" if is_rest else None,
        501 if is_rest else None,
    )


async def test_argument_is_named_as_in_the_program() -> None:
    async with OsqueueClient("http://127.0.0.1:1") as client:
        with pytest.raises(BrokerProtocolError, match=r"'maxAttempts'.*'max_attempts'"):
            await client.submit_job("a", 1, max_attempts=-1)


def test_what_is_missing_and_what_is_too_much_are_told_apart() -> None:
    with pytest.raises(ConfigError, match="neither"):
        OsqueueClient()
    with pytest.raises(ConfigError, match="one of them"):
        OsqueueClient("http://127.0.0.1:1", storage=MemoryBackend())


class Mine(OsqueueError):
    """An error of a program that uses osqueue."""

    def __init__(self, one: str, two: str) -> None:
        super().__init__(one + two)


@pytest.mark.parametrize(
    "tag",
    [
        "Mine",
        "OsqueueError",
        "ConfigError",
        "DiscoveryError",
        "PayloadValidationError",
        "TransportRequestError",
    ],
)
def test_broker_cannot_pick_an_error_of_this_side(tag: str) -> None:
    error = error_from_wire({"_tag": tag, "message": "m"}, method="submitJob", status=400)
    assert isinstance(error, TransportRequestError)
    assert (error.remote_tag, error.message, error.method) == (tag, "m", "submitJob")


def test_attribute_that_cannot_be_one_is_passed_over() -> None:
    fields = {"outcome": "maybe", "leader": {"a": 1}, "retryAfter": "soon", "field": 1, "message": None}
    leadership = error_from_wire({"_tag": "BrokerLeadershipError", **fields}, method="getStats")
    assert isinstance(leadership, BrokerLeadershipError)
    assert (leadership.leader, leadership.outcome) == (None, "unknown")
    assert leadership.message == "getStats: the broker answered BrokerLeadershipError without a message"
    protocol = error_from_wire({"_tag": "BrokerProtocolError", **fields}, method="getStats")
    assert isinstance(protocol, BrokerProtocolError)
    assert (protocol.field, protocol.method, protocol.outcome) == (None, "getStats", "not_applied")
    for retry_after in ("soon", True, -1, float("inf"), float("nan"), None):
        full = error_from_wire({"_tag": "QueueFullError", "retryAfter": retry_after})
        assert isinstance(full, QueueFullError)
        assert full.retry_after is None
    full = error_from_wire({"_tag": "QueueFullError", "retryAfter": 2})
    assert isinstance(full, QueueFullError)
    assert full.retry_after == 2
    odd = error_from_wire({"_tag": 5, "message": ["m"]}, method="getStats", status=418)
    assert odd.message == "getStats: the broker answered 418 without a message"


@pytest.mark.parametrize(
    ("tag", "outcome"),
    [
        ("BrokerLeadershipError", "unknown"),
        ("StorageBackendError", "unknown"),
        ("EngineStateError", "unknown"),
        ("QueueFullError", "not_applied"),
        ("RequestTooLargeError", "not_applied"),
        ("LeaseLostError", "not_applied"),
    ],
)
def test_outcome_that_is_not_stated_follows_from_the_kind_of_refusal(tag: str, outcome: str) -> None:
    assert error_from_wire({"_tag": tag, "message": "m"}).outcome == outcome
    assert error_from_wire({"_tag": tag, "message": "m", "outcome": "unknown"}).outcome == "unknown"
    assert error_from_wire({"_tag": tag, "message": "m", "outcome": "not_applied"}).outcome == "not_applied"


def test_every_name_of_the_module_that_others_use_is_exported() -> None:
    assert {"wire_fields", "error_from_wire"} < set(errors.__all__)
    assert all(hasattr(errors, name) for name in errors.__all__)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("client", [OsqueueClient, SyncOsqueueClient])
def test_file_of_authorities_that_cannot_be_used_is_told_at_once(
    client: type[OsqueueClient] | type[SyncOsqueueClient], name: TransportName, tmp_path: Path
) -> None:
    empty = tmp_path / "empty.pem"
    empty.write_text("nothing")
    for path in (tmp_path / "no-such.pem", empty, str(empty)):
        with pytest.raises(TransportConfigError, match=r"\.pem'"):
            client("https://127.0.0.1:1", transport=name, ca_file=path)
        with pytest.raises(TransportConfigError, match=r"\.pem'"):
            open_transport(name, "https://127.0.0.1:1", ca_file=path)


def test_file_of_authorities_that_would_not_be_used_is_refused() -> None:
    path = ssl.get_default_verify_paths().cafile or pytest.skip("this system has no file of authorities")
    OsqueueClient(["http://a", "https://b"], ca_file=path)
    with pytest.raises(TransportConfigError, match="https"):
        OsqueueClient("http://127.0.0.1:1", ca_file=path)
    with pytest.raises(TransportConfigError, match="https"):
        OsqueueClient(storage=MemoryBackend(), ca_file=path)
    with pytest.raises(TransportConfigError, match="https"):
        OsqueueClient(transport=RestTransport("https://a"), ca_file=path)
    with pytest.raises(TransportConfigError, match="your own"):
        OsqueueClient("https://a", transport=RestTransport, ca_file=path)


def test_plain_http_reads_no_certificates(monkeypatch: pytest.MonkeyPatch) -> None:
    def read(*args: object, **settings: object) -> ssl.SSLContext:
        raise AssertionError("certificates were read")

    monkeypatch.setattr(ssl, "create_default_context", read)
    RestTransport("http://127.0.0.1:1")
    with pytest.raises(AssertionError, match="certificates"):
        RestTransport("https://127.0.0.1:1")
