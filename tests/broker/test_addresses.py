"""What may be advertised, and what it proves that an address was bound."""

from __future__ import annotations

import socket

import pytest

from osqueue_broker import BrokerServer, MemoryBackend, create_app
from osqueue_broker.addresses import checked_address, checked_port, default_address, is_bound_here
from osqueue_client.errors import BrokerLeadershipError, ConfigError


@pytest.mark.parametrize(
    "address", ["a:1", "broker.internal:8080", "10.0.0.1:65535", "[::1]:80", "host:80/queue"]
)
def test_an_address_that_clients_can_reach(address: str) -> None:
    assert checked_address(address) == address


@pytest.mark.parametrize("address", ["", "foo", "foo:", ":80", "foo:0", "foo:65536", "http://foo:80", "::1:80", "a b:1",
                                     "u@h:1", "h:1?x", "h:80 "])  # fmt: skip
def test_one_that_they_cannot(address: str) -> None:
    with pytest.raises(ConfigError, match="host:port"):
        checked_address(address)
    with pytest.raises(ConfigError):
        BrokerServer(storage=MemoryBackend(), advertise=address)
    with pytest.raises(ConfigError):
        create_app(storage=MemoryBackend(), advertise=address)


def test_a_port_that_cannot_be() -> None:
    for port in (-1, 65536):
        with pytest.raises(ConfigError):
            checked_port(port)
    with pytest.raises(ConfigError):
        BrokerServer(storage=MemoryBackend(), port=99999)


def test_a_wildcard_is_advertised_by_the_name_of_the_machine() -> None:
    assert default_address("0.0.0.0", 80) == f"{socket.gethostname()}:80"
    assert default_address("::", 80) == f"{socket.gethostname()}:80"
    assert default_address("::1", 80) == "[::1]:80"


@pytest.mark.parametrize(
    ("address", "is_ours"),
    [("127.0.0.1:80", True), ("localhost:80", True), ("127.0.0.1:81", False), ("192.0.2.1:80", False),
     ("127.0.0.1:80/queue", False), ("does-not-exist.invalid:80", False)],
)  # fmt: skip
def test_only_an_address_of_this_machine_with_the_bound_port_is_ours_alone(
    address: str, is_ours: bool
) -> None:
    assert is_bound_here(address, 80) is is_ours


async def test_two_brokers_that_share_an_advertised_name_do_not_depose_each_other() -> None:
    store = MemoryBackend()
    async with BrokerServer(storage=store, port=0, advertise="192.0.2.1:80") as first:
        second = BrokerServer(storage=store, port=0, advertise="192.0.2.1:80")
        with pytest.raises(BrokerLeadershipError, match=r"192\.0\.2\.1:80, which is alive"):
            await second.start()
        assert first.address


async def test_a_broker_whose_advertised_address_is_another_port_of_this_machine_does_not_either() -> None:
    store = MemoryBackend()
    async with BrokerServer(storage=store, port=0, advertise="127.0.0.1:80"):
        with pytest.raises(BrokerLeadershipError):
            await BrokerServer(storage=store, port=0, advertise="127.0.0.1:80").start()
