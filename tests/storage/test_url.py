"""A storage URL opens its backend, or tells what it should look like, and never repeats a secret."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from osqueue_storage import ConfigError, FileBackend, MemoryBackend, S3Backend, open_storage
from osqueue_storage.url import SCHEMES, redacted


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
        ("memory:?delay=1", "the option 'delay', and takes only latency"),
        ("memory:?latency=1&latency=2", "an option twice"),
        ("memory:?latency=fast", "latency must be 0 or more seconds"),
        ("memory:?latency=", "latency must be 0 or more seconds"),
        ("memory:?latency=-1", "latency must be 0 or more seconds"),
        ("memory:?latency=nan", "latency must be 0 or more seconds"),
        ("memory:?latency=1_0", "latency must be 0 or more seconds"),
        ("memory:?latency=+1", "latency must be 0 or more seconds"),  # a + in a query is a space
        ("memory:?latency=١", "latency must be 0 or more seconds"),
        ("file:./da\nta", "a character that cannot be printed"),
        ("file:./da\tta", "a character that cannot be printed"),
        ("file:./da\0ta", "a character that cannot be printed"),
        ("file:./da\N{RIGHT-TO-LEFT OVERRIDE}ta", "a character that cannot be printed"),
        (" file:./data", "a space at an end"),
        ("file:./data ", "a space at an end"),
        ("memory://here", "names no place"),
        ("memory:here", "names no place"),
        ("file:", "has no path"),
        ("file:?x=1", "the option 'x', and takes only network"),
        ("file:./data?x=1", "the option 'x', and takes only network"),
        ("file:./data?network=maybe", "network must be allow"),
        ("file:./data#1", "a # is written as %23"),
        ("file://data", "a relative path follows file: at once"),
        ("file://[data", "cannot be taken apart"),
        ("s3:bucket", "the name of a bucket or container"),
        ("s3:///prefix", "the name of a bucket or container"),
        ("s3://host:9000/bucket", "a server is given as endpoint_url"),
        ("s3://key:x@bucket", "credentials come from the environment"),
        ("s3://bucket?region=r&access_key_id=x", "the option 'access_key_id', and takes only region, "),
        ("s3://bucket?region=", "region must be more than nothing"),
        ("s3://bucket?addressing=both", "addressing must be auto or path or virtual"),
        ("s3://bucket?quoted_if_match=1", "quoted_if_match must be true or false"),
        ("s3://bucket?timeout=-1", "timeout must be 0 or more seconds"),
        ("gs://", "the name of a bucket or container"),
        ("gs://bucket?anonymous=yes", "anonymous must be true or false"),
        ("az://container?account_key=x", "the option 'account_key', and takes only account, "),
    ],
)
def test_bad_url_is_refused_with_the_right_forms(url: str, reason: str) -> None:
    with pytest.raises(ConfigError) as caught:
        open_storage(url)
    assert reason in caught.value.message
    forms = [row.form for row in SCHEMES.values()]
    of_scheme = [row.form for name, row in SCHEMES.items() if url.startswith(f"{name}:")]
    assert any(caught.value.message.endswith(f". Write {form}") for form in (" or ".join(forms), *of_scheme))
    assert caught.value.message.isprintable()


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
        "memory:?SECRET",
        "memory:?user:SECRET=x@host",
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


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("s3://jobs", "S3Backend('jobs', prefix='', endpoint_url=None)"),
        ("s3://jobs/", "S3Backend('jobs', prefix='', endpoint_url=None)"),
        ("s3://jobs/team", "S3Backend('jobs', prefix='team/', endpoint_url=None)"),
        ("s3://jobs/a%20b/c/", "S3Backend('jobs', prefix='a b/c/', endpoint_url=None)"),
        (
            "s3://jobs?endpoint_url=http://127.0.0.1:9000&region=us-east-1",
            "S3Backend('jobs', prefix='', endpoint_url='http://127.0.0.1:9000')",
        ),
        (
            "gs://jobs/team",
            "GCSBackend('jobs', prefix='team/', endpoint_url='https://storage.googleapis.com')",
        ),
        (
            "gs://jobs?endpoint_url=http://127.0.0.1:4443&anonymous=true",
            "GCSBackend('jobs', prefix='', endpoint_url='http://127.0.0.1:4443')",
        ),
        (
            "az://jobs/team?account=acct",
            "AzureBackend('jobs', prefix='team/', endpoint_url='https://acct.blob.core.windows.net')",
        ),
    ],
)
async def test_url_opens_the_backend_of_its_scheme(url: str, shown: str) -> None:
    async with open_storage(url) as storage:
        assert repr(storage) == shown


@pytest.mark.parametrize("place", ["s3://jobs", "gs://jobs", "az://jobs"])
@pytest.mark.parametrize("prefix", ["..", "../x", "a/../b", "%2E%2E/x", ".", "a/./b"])
def test_prefix_that_would_leave_the_bucket_is_refused(place: str, prefix: str) -> None:
    with pytest.raises(ConfigError, match=r"prefix must have no part \. or \.\."):
        open_storage(f"{place}/{prefix}?{'account=acct' if place.startswith('az') else ''}")


def test_dots_within_a_part_of_a_prefix_are_no_such_part() -> None:
    assert "prefix='v1..2/.team/...'" in repr(S3Backend("jobs", prefix="v1..2/.team/..."))


async def test_options_are_the_arguments_of_the_backend() -> None:
    url = (
        "s3://jobs?region=eu-west-1&addressing=virtual&quoted_if_match=false&signed_payload=true&profile=me"
        "&min_write_interval=2&timeout=7"
    )
    async with open_storage(url) as storage:
        assert isinstance(storage, S3Backend)
        assert storage.min_write_interval == 2
        settings = storage._settings
    assert (settings.region, settings.addressing, settings.quoted_if_match) == ("eu-west-1", "virtual", False)
    assert (settings.signed_payload, settings.profile, settings.timeout) == (True, "me", 7)
    async with open_storage(
        "gs://jobs?anonymous=true&endpoint_url=http://localhost:1&min_write_interval=0"
    ) as gcs:
        assert gcs.min_write_interval == 0


def test_a_network_file_system_may_be_allowed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    allowed: list[bool] = []

    class Seen(FileBackend):
        def __init__(self, root: str, *, allow_network_filesystem: bool = False) -> None:
            allowed.append(allow_network_filesystem)

    monkeypatch.setattr("osqueue_storage.url.FileBackend", Seen)
    open_storage(f"file:{tmp_path}?network=allow")
    open_storage(f"file:{tmp_path}")
    assert allowed == [True, False]


WITHOUT = """
import sys
sys.modules[sys.argv[1]] = None  # as if it were not installed
from osqueue_storage import ConfigError, open_storage
try:
    open_storage(sys.argv[2])
except ConfigError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("url", "library", "extra"),
    [
        ("s3://jobs", "aiobotocore", "s3"),
        ("gs://jobs", "aiohttp", "gcs"),
        ("gs://jobs", "google.auth", "gcs"),
        ("az://jobs?account=acct", "aiohttp", "azure"),
    ],
)
def test_a_missing_client_library_is_told_with_its_extra(url: str, library: str, extra: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", WITHOUT, library, url], capture_output=True, text=True, timeout=30, check=True
    )
    assert f"pip install 'osqueue-storage[{extra}]'" in ended.stdout


def test_importing_the_package_loads_no_client_library() -> None:
    code = (
        "import sys, osqueue_storage;"
        "print([name for name in ('aiobotocore', 'aiohttp', 'google.auth', 'azure') if name in sys.modules])"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True
    )
    assert ended.stdout.strip() == "[]"


@pytest.mark.parametrize("url", ["s3://jobs", "gs://jobs", "az://jobs?account=acct"])
def test_library_of_a_store_is_not_imported_before_it_is_needed(url: str) -> None:
    # It takes up to half a second, in which the event loop of the program would stand still.
    code = (
        f"import sys; from osqueue_storage import open_storage; open_storage({url!r})\n"
        "assert not {'aiohttp', 'aiobotocore', 'botocore', 'google.auth', 'azure.identity'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30)
