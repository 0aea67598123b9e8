"""Storage URLs: one line that opens any backend."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from .azure import AzureBackend
from .backend import StorageBackend
from .errors import ConfigError
from .file import FileBackend
from .gcs import GCSBackend
from .memory import MemoryBackend
from .s3 import S3Backend

Parse = Callable[[str], object]
"""Makes an option of its text. Raises `ValueError` that says what it must be."""

_NUMBER: Final = re.compile(r"[0-9.eE+-]+")


@dataclass(frozen=True, slots=True)
class StorageScheme:
    """How the URLs of one scheme look, and what opens them."""

    form: str
    options: Mapping[str, Parse]
    open: Callable[[SplitResult, Mapping[str, Any]], StorageBackend]
    """Takes the URL and its options. Raises `ValueError` with what is wrong, without the value that is wrong."""


def open_storage(url: str) -> StorageBackend:
    """Open the backend that a URL names.

    * `memory:`, with the option `latency` in seconds: `memory:?latency=0.02`
    * `file:PATH`, relative to the current folder or absolute: `file:./data`, `file:/abs`, `file:///abs`;
      a `?`, `#` or `%` in the path is written as `%3F`, `%23` or `%25`. Option: `network=allow`
    * `s3://BUCKET/PREFIX`. Options: `region`, `endpoint_url`, `addressing`, `quoted_if_match`,
      `signed_payload`, `profile`, `min_write_interval`, `timeout`
    * `gs://BUCKET/PREFIX`. Options: `endpoint_url`, `anonymous`, `min_write_interval`, `timeout`
    * `az://CONTAINER/PREFIX`. Options: `account`, `endpoint_url`, `min_write_interval`, `timeout`

    An option is what the backend's argument of that name is, and a prefix `team` means `team/`. Credentials come
    from the environment, never from a URL. Nothing is read or written yet. Raises `ConfigError` that shows the
    right form; what may be secret in the URL (user and password, the values of options) is never in it.
    """
    form = " or ".join(row.form for row in SCHEMES.values())
    try:
        if (
            not url.isprintable() or url != url.strip()
        ):  # urlsplit would drop a line break, or a space at an end
            raise ValueError("it has a character that cannot be printed, or a space at an end")
        parts = _split(url)
        scheme = SCHEMES.get(parts.scheme)
        if scheme is None:
            raise ValueError("it begins with none of " + ", ".join(f"{name}:" for name in SCHEMES))
        form = scheme.form
        if parts.fragment:
            raise ValueError("a # is written as %23")
        return scheme.open(parts, _options(parts.query, scheme.options, hides_names="@" in url))
    except ValueError as error:
        raise ConfigError(
            f"the storage URL {_printable(redacted(url))} is not right: {error}. Write {form}"
        ) from None


def redacted(url: str) -> str:
    """Return a URL as it may be shown: without user and password, values of options, and fragment."""
    if "@" in url:  # nobody can tell how far a password reaches that holds / or ? unescaped
        scheme = re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", url)
        return (scheme.group() if scheme else "") + "***"
    place, question_mark, query = url.partition("#")[0].partition("?")
    options = (f"{name}=***" if equals else "***" for name, equals, _ in
               (option.partition("=") for option in query.split("&")))  # fmt: skip
    return place + question_mark + ("&".join(options) if query else "")


def _printable(text: str) -> str:
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def _split(url: str) -> SplitResult:
    try:
        return urlsplit(url)
    except ValueError:  # its message may repeat the password
        raise ValueError("it cannot be taken apart") from None


def _options(query: str, known: Mapping[str, Parse], *, hides_names: bool) -> dict[str, object]:
    pairs = parse_qsl(query, keep_blank_values=True)
    for name, text in pairs:
        if name not in known:
            # What has no value may be one itself; and after an @ nobody can tell what is a name.
            shown = f"the option {name[:40]!r}" if text and not hides_names else "an option"
            raise ValueError(f"it has {shown}, and takes only {', '.join(known)}")
    if len(dict(pairs)) < len(pairs):
        raise ValueError("it has an option twice")
    options = {}
    for name, text in pairs:
        try:
            options[name] = known[name](text)
        except ValueError as error:
            raise ValueError(f"{name} must be {error}") from None
    return options


def _text(text: str) -> str:
    if not text:
        raise ValueError("more than nothing")
    return text


def _seconds(text: str) -> float:
    try:
        seconds = float(text) if _NUMBER.fullmatch(text) else math.nan  # float() takes 1_0 for 10
    except ValueError:
        seconds = math.nan
    if not (math.isfinite(seconds) and seconds >= 0):
        raise ValueError("0 or more seconds")
    return seconds


def _boolean(text: str) -> bool:
    if text not in ("true", "false"):
        raise ValueError("true or false")
    return text == "true"


def _one_of(*choices: str) -> Parse:
    def parse(text: str) -> str:
        if text not in choices:
            raise ValueError(" or ".join(choices))
        return text

    return parse


def _open_memory(url: SplitResult, options: Mapping[str, Any]) -> StorageBackend:
    if url.netloc or url.path:
        raise ValueError("memory: names no place")
    return MemoryBackend(**options)


def _open_file(url: SplitResult, options: Mapping[str, Any]) -> StorageBackend:
    if url.netloc:
        raise ValueError("what follows file:// must begin with a /; a relative path follows file: at once")
    if not url.path:
        raise ValueError("it has no path")
    return FileBackend(unquote(url.path), allow_network_filesystem="network" in options)


def _bucket(url: SplitResult) -> tuple[str, str]:
    """Return the bucket or container of a URL, and its prefix, which ends with a slash if there is one."""
    if "@" in url.netloc:
        raise ValueError("it holds a user or password: credentials come from the environment")
    if not url.netloc or ":" in url.netloc:
        raise ValueError(
            "what follows // is the name of a bucket or container; a server is given as endpoint_url"
        )
    prefix = unquote(url.path.removeprefix("/"))
    return url.netloc, prefix if not prefix or prefix.endswith("/") else f"{prefix}/"


def _open_s3(url: SplitResult, options: Mapping[str, Any]) -> StorageBackend:
    bucket, prefix = _bucket(url)
    return S3Backend(bucket, prefix=prefix, **options)


def _open_gcs(url: SplitResult, options: Mapping[str, Any]) -> StorageBackend:
    bucket, prefix = _bucket(url)
    return GCSBackend(bucket, prefix=prefix, **options)


def _open_azure(url: SplitResult, options: Mapping[str, Any]) -> StorageBackend:
    container, prefix = _bucket(url)
    return AzureBackend(container, prefix=prefix, **options)


_COMMON: Final[Mapping[str, Parse]] = {
    "endpoint_url": _text,
    "min_write_interval": _seconds,
    "timeout": _seconds,
}

SCHEMES: Final[Mapping[str, StorageScheme]] = {
    "memory": StorageScheme("memory: or memory:?latency=0.02", {"latency": _seconds}, _open_memory),
    "file": StorageScheme("file:./data or file:/var/lib/osqueue", {"network": _one_of("allow")}, _open_file),
    "s3": StorageScheme(
        "s3://bucket/prefix?region=eu-central-1",
        {
            "region": _text,
            "addressing": _one_of("auto", "path", "virtual"),
            "quoted_if_match": _boolean,
            "signed_payload": _boolean,
            "profile": _text,
            **_COMMON,
        },
        _open_s3,
    ),
    "gs": StorageScheme("gs://bucket/prefix", {"anonymous": _boolean, **_COMMON}, _open_gcs),
    "az": StorageScheme("az://container/prefix?account=name", {"account": _text, **_COMMON}, _open_azure),
}
