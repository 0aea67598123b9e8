"""How an S3-compatible store is reached, and what is known of the providers by the names of their hosts."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal
from urllib.parse import urlsplit

from .endpoints import checked_prefix
from .errors import ConfigError
from .patience import checked_timeout

Addressing = Literal["auto", "path", "virtual"]

GIB: Final = 1024**3

_AMAZON_BUCKET: Final = re.compile(r"(?!.*\.\.|\d+(\.\d+){3}$)[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
"""docs.aws.amazon.com/AmazonS3/latest/userguide/bucketnamingrules.html, for general purpose buckets."""

_ANY_BUCKET: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{2,254}")
"""What other stores allow at the most: Ceph with rgw_relaxed_s3_bucket_names
(docs.ceph.com/en/latest/radosgw/s3/bucketops), MinIO for buckets of old; and Amazon before 2018, by path only."""

_ARN: Final = re.compile(r"arn:[A-Za-z0-9:/._-]+")
"""Of an access point, which stands in a bucket's place."""


@dataclass(frozen=True, slots=True)
class Provider:
    """What differs between the stores that speak S3, where nobody says otherwise."""

    domains: tuple[str, ...] = ()
    region: str | None = None
    addressing: Addressing = "auto"
    min_write_interval: float = 0.0
    max_object_bytes: int = 5 * GIB
    """The most that one PUT takes; on Amazon: docs.aws.amazon.com/AmazonS3/latest/userguide/upload-objects.html."""
    headers: Mapping[str, str] = field(default_factory=dict)
    """Sent, and signed, with each request."""


AMAZON: Final = Provider()
OTHER: Final = Provider(addressing="path")
KNOWN: Final = (
    # Cloudflare R2. One write a second to one key, 5 MiB less than 5 GiB in one upload:
    # developers.cloudflare.com/r2/platform/limits; the region: developers.cloudflare.com/r2/api/s3/api.
    Provider(
        domains=("r2.cloudflarestorage.com",),
        region="auto",
        addressing="path",
        min_write_interval=1.0,
        max_object_bytes=5 * GIB - 5 * 1024**2,
    ),
    # Tigris. A global bucket is consistent across regions only on request:
    # tigrisdata.com/docs/objects/consistency; the region: tigrisdata.com/docs/concepts/regions;
    # buckets made since February 2025 have no path addressing: tigrisdata.com/blog/virtual-hosted-urls.
    Provider(
        domains=("t3.storage.dev", "fly.storage.tigris.dev"),
        region="auto",
        addressing="virtual",
        headers={"X-Tigris-Consistent": "true"},
    ),
)


def provider_of(endpoint_url: str | None) -> Provider:
    """Return what is known of the store behind an endpoint; without one it is Amazon S3."""
    if endpoint_url is None:
        return AMAZON
    host = urlsplit(endpoint_url).hostname or ""
    for provider in KNOWN:
        if any(host == domain or host.endswith(f".{domain}") for domain in provider.domains):
            return provider
    return OTHER


@dataclass(frozen=True, slots=True)
class S3Settings:
    """Checked when built, save the endpoint, which was needed before: raises `ConfigError`.

    Its repr shows no credential.
    """

    bucket: str
    prefix: str
    region: str | None
    endpoint_url: str | None
    addressing: Addressing
    quoted_if_match: bool
    signed_payload: bool
    timeout: float
    profile: str | None
    access_key_id: str | None = field(repr=False)
    secret_access_key: str | None = field(repr=False)
    session_token: str | None = field(repr=False)

    def __post_init__(self) -> None:
        self._check_bucket()
        checked_prefix(self.prefix)
        if self.region is not None and not re.fullmatch(r"[A-Za-z0-9-]+", self.region):
            raise ConfigError(f"region must be a name like eu-central-1, not {self.region!r}")
        if self.addressing not in ("auto", "path", "virtual"):
            raise ConfigError(f"addressing must be auto, path or virtual, not {self.addressing!r}")
        checked_timeout(self.timeout)
        self._check_credentials()

    @property
    def place(self) -> str:
        """The store as it is named in errors."""
        return self.endpoint_url or "Amazon S3"

    def _check_bucket(self) -> None:
        if self.endpoint_url is None and self.addressing != "path":
            if not _AMAZON_BUCKET.fullmatch(self.bucket) and not _ARN.fullmatch(self.bucket):
                raise ConfigError(
                    "a bucket of Amazon S3 is named by 3 to 63 of a-z, 0-9, dots and dashes, with a letter or digit "
                    f"at both ends, not {self.bucket!r}; one of before 2018 needs addressing=path"
                )
        elif not _ANY_BUCKET.fullmatch(self.bucket) and not _ARN.fullmatch(self.bucket):
            raise ConfigError(
                "an S3 bucket is named by 3 to 255 letters, digits, dots, dashes and underscores, a letter or digit "
                f"first, not {self.bucket!r}; what follows a / is the prefix"
            )

    def _check_credentials(self) -> None:
        if bool(self.access_key_id) != bool(self.secret_access_key):
            raise ConfigError("access_key_id and secret_access_key are given both or neither")
        if self.session_token and not self.access_key_id:
            raise ConfigError("a session_token needs access_key_id and secret_access_key beside it")
        if self.profile and self.access_key_id:
            raise ConfigError("give either a profile or an access_key_id, not both")
        given = (self.access_key_id, self.secret_access_key, self.session_token)
        if any(re.search(r"\s", value) for value in given if value):
            raise ConfigError("a credential holds a space or line break: it was not copied right")
