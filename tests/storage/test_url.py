"""A storage URL opens its backend, or tells what it should look like, and never repeats a secret."""

from __future__ import annotations

from pathlib import Path

import pytest

from osqueue_storage import ConfigError, FileBackend, MemoryBackend, open_storage
from osqueue_storage.url import redacted


@pytest.mark.parametrize(
    ("url", "latency"), [("memory:", 0.0), ("memory:?latency=0.02", 0.02), ("MEMORY:?latency=0", 0.0)]
)
def test_memory_url_opens_a_memory_backend(url: str, latency: float) -> None:
    store = open_storage(url)
    assert isinstance(store, MemoryBackend)
    assert repr(store) == f"MemoryBackend(latency={latency})"


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("file:./data", "./data"),
        ("file:data", "data"),
        ("file:/var/lib/q", "/var/lib/q"),
        ("file:///var/lib/q", "/var/lib/q"),
        ("file:/a%20b/%23", "/a b/#"),
        ("file:/a@b", "/a@b"),
    ],
)
def test_file_url_opens_a_file_backend(url: str, path: str) -> None:
    store = open_storage(url)
    assert isinstance(store, FileBackend)
    assert repr(store) == f"FileBackend({str(Path(path).absolute())!r})"


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("", "begins with none of memory:, file:"),
        ("./data", "begins with none of"),
        ("redis://localhost", "begins with none of"),
        ("memory:?delay=1", "an option other than latency"),
        ("memory:?latency=1&latency=2", "an option twice"),
        ("memory:?latency=fast", "latency must be 0 or more seconds"),
        ("memory:?latency=", "latency must be 0 or more seconds"),
        ("memory:?latency=-1", "latency must be 0 or more seconds"),
        ("memory:?latency=nan", "latency must be 0 or more seconds"),
        ("memory://here", "names no place"),
        ("memory:here", "names no place"),
        ("file:", "has no path"),
        ("file:?x=1", "takes no options"),
        ("file:./data?x=1", "takes no options"),
        ("file:./data#1", "a # is written as %23"),
        ("file://data", "a relative path follows file: at once"),
        ("file://[data", "cannot be taken apart"),
    ],
)
def test_bad_url_is_refused_with_the_right_forms(url: str, reason: str) -> None:
    with pytest.raises(ConfigError) as caught:
        open_storage(url)
    assert reason in caught.value.message
    assert "memory: or memory:?latency=0.02 or file:./data or file:/var/lib/osqueue" in caught.value.message


@pytest.mark.parametrize(
    "url",
    [
        "redis://user:SECRET@host",
        "user:SECRET@host",
        "redis://SECRET:x@host",
        "redis://user:a/b?SECRET#c@host",
        "redis://user:SECRET@ho[st",
        "redis://user:SECRET@host\N{FULLWIDTH SOLIDUS}x",  # urllib's own message repeats this one
        "redis://host?token=SECRET",
        "redis://host?SECRET",
        "redis://host?a=1&SECRET",
        "redis://host?token=x@SECRET",
        "redis://host#SECRET",
        "memory:?latency=SECRET",
        "memory:?token=SECRET",
        "file:./data?token=SECRET",
        "file:./data#SECRET",
        "file://user:SECRET@host/data",
    ],
)
def test_error_never_repeats_what_may_be_secret(url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        open_storage(url)
    assert "SECRET" not in caught.value.message
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


def test_redacted_url_keeps_what_helps() -> None:
    assert redacted("redis://host/db?token=x&y") == "redis://host/db?token=***&***"
    assert redacted("s3://key:secret@bucket/prefix") == "s3://***"
    assert redacted("key:secret@bucket") == "***"
    assert redacted("file:./data") == "file:./data"
