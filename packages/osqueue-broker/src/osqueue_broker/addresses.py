"""`host:port` as others are told it, and as it is bound."""

from __future__ import annotations

import ipaddress
import re
import socket
from typing import Final

from osqueue_client.errors import ConfigError

_ADDRESS: Final = re.compile(
    r"(?P<host>\[[0-9A-Fa-f:.]+\]|[^\s:/@?#\[\]]+):(?P<port>[0-9]{1,5})(?P<path>/[^\s?#]*)?"
)


def checked_port(port: int) -> int:
    """Return a port to listen on; 0 means any free one. Raises `ConfigError` if it is none."""
    if not 0 <= port <= 65535:
        raise ConfigError(f"port must be from 0 (any free one) to 65535, not {port}")
    return port


def checked_address(address: str) -> str:
    """Return an address to advertise: `host:port`, and a path where the broker is mounted below one.

    Raises `ConfigError` if clients could not reach anything there.
    """
    match = _ADDRESS.fullmatch(address)
    if match is None or not 1 <= int(match["port"]) <= 65535:
        raise ConfigError(
            f"advertise must be the host:port at which others reach this broker, as in broker.internal:8080, "
            f"not {address!r}"
        )
    return address


def join(host: str, port: int) -> str:
    """Return `host:port`, an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def default_address(host: str, port: int) -> str:
    """Return what to advertise for a bound address: itself, or this machine's name for a wildcard."""
    is_wildcard = ipaddress.ip_address(host.partition("%")[0]).is_unspecified
    return join(socket.gethostname() if is_wildcard else host, port)


def is_loopback(address: str) -> bool:
    """Whether only this machine reaches what is advertised: `host:port`, with or without a path."""
    match = _ADDRESS.fullmatch(address)
    return match is not None and is_loopback_host(match["host"].strip("[]"))


def is_loopback_host(host: str) -> bool:
    """Whether a host is this machine, for this machine alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def host_and_port(address: str) -> tuple[str, int] | None:
    """Return where to connect to for an address that a document has; None if that is not clear."""
    match = _ADDRESS.fullmatch(address)
    return None if match is None else (match["host"].strip("[]"), int(match["port"]))


def is_bound_here(address: str, port: int) -> bool:
    """Whether only a program on this machine can be listening at `address`, which has the port that we bound.

    A service's or a load balancer's name has an address that is not this machine's: others may stand behind it.
    It may ask a name server, which blocks.
    """
    match = _ADDRESS.fullmatch(address)
    if match is None or int(match["port"]) != port or match["path"]:
        return False
    try:
        found = socket.getaddrinfo(match["host"].strip("[]"), None, type=socket.SOCK_STREAM)
    except OSError:
        return False
    return all(_is_of_this_machine(family, place[0]) for family, _, _, _, place in found)


def _is_of_this_machine(family: int, host: object) -> bool:
    with socket.socket(family, socket.SOCK_STREAM) as sock:
        try:
            sock.bind((host, 0))
        except OSError:
            return False
    return True
