"""What the errors of botocore mean: whether a request can have had an effect, and what to do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from botocore import exceptions  # type: ignore[import-untyped]

from .errors import Outcome, StorageBackendError
from .unreached import why_not_trusted

OPERATIONS: Final[Mapping[str, str]] = {
    "GetObject": "s3:GetObject on the objects, and s3:ListBucket on the bucket, without which a missing one is refused",
    "PutObject": "s3:PutObject on the objects",
    "DeleteObject": "s3:DeleteObject on the objects",
    "ListObjectsV2": "s3:ListBucket on the bucket",
}
"""What is sent, and the rights that it needs."""

NOT_SENT: Final = (
    exceptions.BaseEndpointResolverError,
    exceptions.ConfigNotFound,
    exceptions.ConfigParseError,
    exceptions.CredentialRetrievalError,
    exceptions.EndpointProviderError,
    exceptions.InvalidConfigError,
    exceptions.LoginError,
    exceptions.MetadataRetrievalError,
    exceptions.MissingDependencyException,
    exceptions.NoAuthTokenError,
    exceptions.NoCredentialsError,
    exceptions.ParamValidationError,
    exceptions.PartialCredentialsError,
    exceptions.ProfileNotFound,
    exceptions.RefreshWithMFAUnsupportedError,
    exceptions.SSOError,
    exceptions.TokenRetrievalError,
    exceptions.UnknownCredentialError,
    exceptions.ValidationError,
    UnicodeEncodeError,
)
"""Raised before a request is sent. Some quote what a program or a service answered that gives credentials."""

_QUOTING: Final = (
    *NOT_SENT,
    exceptions.HTTPClientError,
    exceptions.InvalidProxiesConfigError,
    exceptions.ProxyConnectionError,
)
"""What may quote a credential, or the URL of a proxy and with it a password."""

_FORBIDDEN: Final = frozenset({"AccessDenied", "AllAccessDisabled"})
_CREDENTIALS: Final = (
    "the store does not accept these credentials: give others, or see where the AWS chain takes them from"
)
_REGION: Final = "the bucket is in another region: set `region` to its own"
_MENDS: Final[Mapping[str, str]] = {
    "AuthorizationHeaderMalformed": _REGION,
    "ExpiredToken": _CREDENTIALS,
    "IllegalLocationConstraintException": _REGION,
    "InvalidAccessKeyId": _CREDENTIALS,
    "InvalidRegionName": _REGION,
    "InvalidToken": _CREDENTIALS,
    "KeyTooLongError": "a key has at most 1,024 bytes with its prefix",
    "NoSuchBucket": "create the bucket, or mend its name",
    "NotImplemented": "the store has no conditional writes, and osqueue cannot work without",
    "PermanentRedirect": _REGION,
    "RequestTimeTooSkewed": "set the clock of this machine",
    "SignatureDoesNotMatch": _CREDENTIALS,
    "TokenRefreshRequired": _CREDENTIALS,
    "Unauthorized": _CREDENTIALS,
}
_HINTS: Final[Mapping[str, str]] = {
    "ConnectTimeoutError": ": check endpoint_url, and that the store runs",
    "EndpointConnectionError": ": check endpoint_url, and that the store runs",
    "InvalidProxiesConfigError": ": check HTTPS_PROXY and HTTP_PROXY",
    "ProxyConnectionError": ": check HTTPS_PROXY and HTTP_PROXY",
}

# Answers below 500 after which nobody can tell: the request was cut short, put off, or met another.
_UNCLEAR_STATUS: Final = frozenset({408, 409, 425, 429})
_UNCLEAR_CODES: Final = frozenset(
    {
        "RequestLimitExceeded",
        "RequestTimeout",
        "SlowDown",
        "Throttling",
        "ThrottlingException",
        "TooManyRequests",
    }
)
_REDIRECTS: Final = frozenset({301, 302, 307, 308})


def code_of(error: exceptions.ClientError) -> str:
    """Return the store's code for what went wrong, such as NoSuchKey."""
    return str(error.response.get("Error", {}).get("Code", ""))


def status_of(error: exceptions.ClientError) -> int:
    """Return the HTTP status of an answer, 0 if it is not known."""
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def failure(what: str, error: Exception, outcome: Outcome) -> StorageBackendError:
    """Return the error for a request that failed with `error`.

    `what`: the request, for a person. `outcome`: of a request that got no clear answer.
    """
    if isinstance(error, exceptions.ClientError) and error.operation_name in OPERATIONS:
        return _answered(what, error, outcome)
    if isinstance(error, exceptions.SSLError):  # that of a handshake: nothing was sent after it
        why = why_not_trusted(error.kwargs["error"], "AWS_CA_BUNDLE")
        return StorageBackendError(f"{what}: not sent: {why}", outcome="not_applied")
    if isinstance(error, (exceptions.ClientError, *NOT_SENT)):
        return StorageBackendError(f"{what}: not sent: {refusal(error)}", outcome="not_applied")
    name = type(error).__name__
    return StorageBackendError(f"{what}: no clear answer ({name}{_HINTS.get(name, '')})", outcome=outcome)


def cause_of(error: Exception) -> Exception | None:
    """Return what an error may be raised from: nothing that may quote a credential."""
    return None if isinstance(error, _QUOTING) else error


def refusal(error: Exception) -> str:
    """Say why there is no client or no signature, without what the error quotes."""
    name = type(error).__name__
    if isinstance(error, exceptions.ClientError):  # of a service that gives credentials, STS for one
        return f"{error.operation_name} gave no credentials ({code_of(error)})"
    if isinstance(error, exceptions.NoCredentialsError):
        return (
            "there are no credentials: give access_key_id and secret_access_key, or a source of the AWS chain, "
            "such as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, or the machine's role"
        )
    # These two name a setting, and quote no value.
    if isinstance(error, exceptions.PartialCredentialsError):
        return f"{_sentence(error)}. Give both of access_key_id and secret_access_key in the same place, or neither"
    if isinstance(error, exceptions.ProfileNotFound):
        return (
            f"{_sentence(error)}. Correct the option profile or AWS_PROFILE, or add the profile to ~/.aws/config "
            "(`aws configure list-profiles` shows what is there)"
        )
    if isinstance(error, UnicodeEncodeError):
        return "the key is no text that can be written as UTF-8"
    return f"the credentials or settings of AWS cannot be used ({name})"


def _sentence(error: Exception) -> str:
    return str(error).rstrip(". ")


def _answered(what: str, error: exceptions.ClientError, outcome: Outcome) -> StorageBackendError:
    status, code = status_of(error), code_of(error)
    clear = status in _REDIRECTS or status == 501 or (400 <= status < 500 and status not in _UNCLEAR_STATUS)
    if not clear or code in _UNCLEAR_CODES:
        return StorageBackendError(f"{what}: no clear answer ({status} {code})", outcome=outcome)
    mend = _REGION if status in _REDIRECTS else _MENDS.get(code, "")
    if code in _FORBIDDEN:
        mend = f"allow {OPERATIONS[error.operation_name]}"
    region = error.response.get("Error", {}).get("Region")
    if mend == _REGION and region:
        mend += f", {region}"
    return StorageBackendError(
        f"{what}: refused ({status} {code})" + (f": {mend}" if mend else ""), outcome="not_applied"
    )
