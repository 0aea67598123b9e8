"""Why no connection to a store came about, for a person: one wording for all that aiohttp can meet."""

from __future__ import annotations

import aiohttp

from .patience import CONNECT_TIMEOUT


def why_not_reached(error: aiohttp.ClientConnectorError | aiohttp.ServerTimeoutError) -> str:
    """Say why there is no connection, and what to check. Nothing of the URL, or of a proxy's, is in it."""
    if isinstance(error, aiohttp.ClientProxyConnectionError):
        return f"the proxy is not reached ({_reason(error)}): check HTTPS_PROXY and HTTP_PROXY"
    return f"{_reason(error)}: check endpoint_url, and that the store runs"


def why_not_trusted(error: aiohttp.ClientSSLError, authority_variable: str) -> str:
    """Say why a TLS handshake failed. `authority_variable`: names a file of authorities to trust."""
    reason = error.strerror or type(error).__name__
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return (
            f"no TLS connection that can be trusted ({reason}). For a certificate authority of your own set "
            f"{authority_variable}"
        )
    return f"no TLS connection ({reason}). If plain http is spoken there, write http:// in endpoint_url"


def _reason(error: aiohttp.ClientConnectorError | aiohttp.ServerTimeoutError) -> str:
    if isinstance(error, aiohttp.ServerTimeoutError):
        return f"no connection within {CONNECT_TIMEOUT:g} s"
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return "the host has no address"
    if isinstance(error.os_error, ConnectionRefusedError):
        return "connection refused"
    return f"no connection ({error.os_error.strerror or type(error.os_error).__name__})"
