"""What `StubStore` understands and answers, dialect by dialect: as much as the backends' clients use."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from email.message import EmailMessage
from email.parser import BytesHeaderParser
from email.utils import formatdate
from http import HTTPStatus
from itertools import count
from typing import Final, Literal, Protocol
from urllib.parse import quote, unquote
from xml.sax.saxutils import escape

Operation = Literal["write", "read", "delete", "list", "other"]
"""What a request is for; "other" are those on the bucket itself."""

BUCKET: Final = "stub-bucket"
AZURE_ACCOUNT: Final = "devstoreaccount1"


@dataclass(frozen=True, slots=True)
class Request:
    """One HTTP request: the path as it was sent, header names in lower case."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class Answer:
    """One HTTP answer, without the headers that every answer has."""

    status: int
    body: bytes = b""
    headers: tuple[tuple[str, str], ...] = ()

    def with_headers(self, *headers: tuple[str, str]) -> Answer:
        """Return this answer with more headers."""
        return replace(self, headers=(*self.headers, *headers))


@dataclass(frozen=True, slots=True)
class StubObject:
    """An object's body, and its ETag with the quotes or its generation. `metadata`: as GCS is sent it."""

    body: bytes
    version: str
    modified: str
    metadata: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Call:
    """A request that has been understood. `effect` does what it asks for and returns the right answer."""

    operation: Operation
    key: str
    effect: Callable[[], Answer]


class Versions:
    """Numbers for the states of objects."""

    def __init__(self) -> None:
        self._numbers = count(1_700_000_000_000_001)

    def next(self) -> int:
        """Return a number that was never returned before."""
        return next(self._numbers)


class Dialect(Protocol):
    """How one provider's requests and answers look."""

    base_path: str

    def call(self, request: Request) -> Call:
        """Understand a request."""
        ...

    def failure(self, status: int, code: str | None = None) -> Answer:
        """Return the provider's answer for a failure."""
        ...


class _Dialect:
    base_path = ""

    def __init__(self, objects: dict[str, StubObject], versions: Versions, page_size: int) -> None:
        self._objects = objects
        self._versions = versions
        self._page_size = page_size

    def _put(
        self, key: str, body: bytes, version: str, metadata: Mapping[str, object] | None = None
    ) -> StubObject:
        self._objects[key] = stored = StubObject(body, version, formatdate(usegmt=True), metadata or {})
        return stored

    def _page(self, prefix: str, after: str, limit: str | None) -> tuple[list[str], str | None]:
        """Return the keys of one page, and the token for the next."""
        size = min(self._page_size, int(limit or self._page_size))
        keys = sorted(
            (key for key in self._objects if key.startswith(prefix) and key > after), key=str.encode
        )
        page = keys[:size]
        return page, (base64.urlsafe_b64encode(page[-1].encode()).decode() if keys[size:] else None)


def _after(token: str | None) -> str:
    return base64.urlsafe_b64decode(token).decode() if token else ""


def _matches(expected: str, found: StubObject) -> bool:
    """Tell whether an If-Match is met: `*` is by any object, a list by one of its ETags."""
    etags = {etag.strip().strip('"') for etag in expected.split(",")}
    return expected.strip() == "*" or found.version.strip('"') in etags


class S3Dialect(_Dialect):
    """The S3 REST API, path-style."""

    _CODES: Final = {
        304: "NotModified", 400: "InvalidRequest", 401: "ExpiredToken", 403: "AccessDenied", 404: "NoSuchKey",
        409: "ConditionalRequestConflict", 412: "PreconditionFailed", 429: "TooManyRequests",
        500: "InternalError", 503: "SlowDown",
    }  # fmt: skip

    def call(self, request: Request) -> Call:
        """Understand a request."""
        bucket, _, key = unquote(request.path).removeprefix("/").partition("/")
        operation: Operation = "other"
        effect = self._other
        match request.method:
            case "PUT" if key:
                operation, effect = "write", lambda: self._write(key, request)
            case "GET" | "HEAD" if key:
                operation, effect = "read", lambda: self._read(key, request.headers)
            case "DELETE" if key:
                operation, effect = "delete", lambda: self._delete(key)
            case "GET" if request.query.get("list-type") == "2":
                operation, effect = "list", lambda: self._list(request.query)
        if bucket != BUCKET:
            effect = lambda: self.failure(404, "NoSuchBucket")  # noqa: E731
        return Call(operation, key, effect)

    def failure(self, status: int, code: str | None = None) -> Answer:
        """Return the provider's answer for a failure."""
        code = code or self._CODES.get(status, "InternalError")
        body = f"<?xml version='1.0' encoding='UTF-8'?>\n<Error><Code>{code}</Code><Message>{code}</Message></Error>"
        return Answer(status, body.encode(), (("Content-Type", "application/xml"),))

    def _write(self, key: str, request: Request) -> Answer:
        found = self._objects.get(key)
        expected = request.headers.get("if-match")
        if request.headers.get("if-none-match") == "*" and found:
            return self.failure(412)
        if expected:  # of an empty one servers take no notice
            if found is None:
                return self.failure(404)
            if not _matches(expected, found):
                return self.failure(412)
        etag = f'"{hashlib.md5(request.body, usedforsecurity=False).hexdigest()}"'
        return Answer(200, headers=(("ETag", self._put(key, request.body, etag).version),))

    def _read(self, key: str, headers: Mapping[str, str]) -> Answer:
        found = self._objects.get(key)
        if found is None:
            return self.failure(404)
        about = (("ETag", found.version), ("Last-Modified", found.modified))
        if headers.get("if-none-match", "-").strip('"') == found.version.strip('"'):
            return Answer(304, headers=about)
        return Answer(200, found.body, about)

    def _delete(self, key: str) -> Answer:
        self._objects.pop(key, None)
        return Answer(204)

    def _list(self, query: Mapping[str, str]) -> Answer:
        keys, token = self._page(
            query.get("prefix", ""), _after(query.get("continuation-token")), query.get("max-keys")
        )
        show = quote if query.get("encoding-type") == "url" else escape
        rows = "".join(
            f"<Contents><Key>{show(key)}</Key><Size>{len(self._objects[key].body)}</Size>"
            f"<ETag>{escape(self._objects[key].version)}</ETag>"
            "<LastModified>2026-01-01T00:00:00.000Z</LastModified></Contents>"
            for key in keys
        )
        encoding = "<EncodingType>url</EncodingType>" if show is quote else ""
        following = f"<NextContinuationToken>{token}</NextContinuationToken>" if token else ""
        body = (
            "<?xml version='1.0' encoding='UTF-8'?>\n"
            "<ListBucketResult xmlns='http://s3.amazonaws.com/doc/2006-03-01/'>"
            f"<Name>{BUCKET}</Name><KeyCount>{len(keys)}</KeyCount>{encoding}"
            f"<IsTruncated>{str(token is not None).lower()}</IsTruncated>{following}{rows}</ListBucketResult>"
        )
        return Answer(200, body.encode(), (("Content-Type", "application/xml"),))

    def _other(self) -> Answer:
        return Answer(200)


class GCSDialect(_Dialect):
    """The JSON API of Google Cloud Storage; uploads are multipart."""

    _REASONS: Final = {
        304: "notModified", 400: "invalid", 401: "authError", 403: "forbidden", 404: "notFound",
        408: "requestTimeout", 409: "conflict", 412: "conditionNotMet", 429: "rateLimitExceeded",
        500: "backendError", 503: "backendError",
    }  # fmt: skip

    def call(self, request: Request) -> Call:
        """Understand a request."""
        path = request.path.removeprefix("/upload").removeprefix("/download").removeprefix("/storage/v1/b/")
        bucket, _, rest = path.partition("/")
        key = unquote(rest.removeprefix("o/")) if rest.startswith("o/") else ""
        operation: Operation = "other"
        effect = self._other
        match request.method:
            case "POST" if rest == "o" and request.query.get("uploadType") == "multipart":
                metadata, body = self._parts(request)
                key = str(metadata.get("name") or request.query["name"])
                operation, effect = "write", lambda: self._write(key, body, request.query, metadata)
            case "GET" if key:
                operation, effect = "read", lambda: self._read(key, request.query)
            case "DELETE" if key:
                operation, effect = "delete", lambda: self._delete(key)
            case "GET" if rest == "o":
                operation, effect = "list", lambda: self._list(request.query)
        if unquote(bucket) != BUCKET:
            effect = lambda: self.failure(404, message="The specified bucket does not exist.")  # noqa: E731
        return Call(operation, key, effect)

    def failure(self, status: int, code: str | None = None, message: str = "stub") -> Answer:
        """Return the provider's answer for a failure."""
        reason = code or self._REASONS.get(status, "backendError")
        error = {"message": message, "domain": "global", "reason": reason}
        return self._json({"error": {"code": status, "message": message, "errors": [error]}}, status)

    def _parts(self, request: Request) -> tuple[Mapping[str, object], bytes]:
        message = EmailMessage()
        message["Content-Type"] = request.headers["content-type"]
        delimiter = b"--" + (message.get_boundary() or "").encode()
        first, second = request.body.partition(delimiter + b"\r\n")[2].split(b"\r\n" + delimiter, 1)
        about, _, metadata = first.partition(b"\r\n\r\n")
        assert BytesHeaderParser().parsebytes(about).get_content_type() == "application/json"
        body = second.partition(b"\r\n\r\n")[2]
        end = body.rindex(b"\r\n" + delimiter + b"--")
        return json.loads(metadata), body[:end]

    def _write(
        self, key: str, body: bytes, query: Mapping[str, str], metadata: Mapping[str, object]
    ) -> Answer:
        found = self._objects.get(key)
        if query.get("ifGenerationMatch", "-") not in ("-", found.version if found else "0"):
            return self.failure(412)
        stored = self._put(key, body, str(self._versions.next()), metadata)
        return self._json(self._row(key, stored))

    def _read(self, key: str, query: Mapping[str, str]) -> Answer:
        found = self._objects.get(key)
        if found is None:
            return self._missing(key)
        if query.get("ifGenerationNotMatch") == found.version:
            return Answer(304)
        if query.get("alt") != "media":
            return self._json(self._row(key, found))
        md5 = base64.b64encode(hashlib.md5(found.body, usedforsecurity=False).digest()).decode()
        about = (
            ("x-goog-generation", found.version),
            ("x-goog-hash", f"md5={md5}"),
            ("x-goog-stored-content-length", str(len(found.body))),
        )
        return Answer(200, found.body, about)

    def _delete(self, key: str) -> Answer:
        return Answer(204) if self._objects.pop(key, None) else self._missing(key)

    def _missing(self, key: str) -> Answer:
        return self.failure(404, message=f"No such object: {BUCKET}/{key}")

    def _list(self, query: Mapping[str, str]) -> Answer:
        keys, token = self._page(
            query.get("prefix", ""), _after(query.get("pageToken")), query.get("maxResults")
        )
        rows = [self._row(key, self._objects[key]) for key in keys]
        listing: dict[str, object] = {"kind": "storage#objects", "items": rows}
        return self._json(listing | ({"nextPageToken": token} if token else {}))

    def _other(self) -> Answer:
        return self._json({"kind": "storage#bucket", "name": BUCKET})

    def _row(self, key: str, stored: StubObject) -> Mapping[str, object]:
        return {
            "kind": "storage#object", "name": key, "bucket": BUCKET, "generation": stored.version,
            "metageneration": "1", "size": str(len(stored.body)),
        }  # fmt: skip

    def _json(self, value: object, status: int = 200) -> Answer:
        return Answer(
            status, json.dumps(value).encode(), (("Content-Type", "application/json; charset=UTF-8"),)
        )


class AzureDialect(_Dialect):
    """Azure Blob Storage, addressed as an emulator is: the account is the first part of the path."""

    base_path = f"/{AZURE_ACCOUNT}"

    _CODES: Final = {
        304: "ConditionNotMet", 400: "InvalidInput", 401: "NoAuthenticationInformation",
        403: "AuthorizationFailure", 404: "BlobNotFound", 409: "BlobAlreadyExists", 412: "ConditionNotMet",
        416: "InvalidRange", 429: "TooManyRequests", 500: "InternalError", 503: "ServerBusy",
    }  # fmt: skip

    def call(self, request: Request) -> Call:
        """Understand a request."""
        container, _, key = unquote(request.path).removeprefix(f"{self.base_path}/").partition("/")
        operation: Operation = "other"
        effect = self._other
        match request.method:
            case "PUT" if key and request.headers.get("x-ms-blob-type") == "BlockBlob":
                operation, effect = "write", lambda: self._write(key, request)
            case "GET" | "HEAD" if key:
                operation, effect = "read", lambda: self._read(key, request.headers)
            case "DELETE" if key:
                operation, effect = "delete", lambda: self._delete(key)
            case "GET" if request.query.get("comp") == "list":
                operation, effect = "list", lambda: self._list(request.query)
            case "POST" if request.query.get("comp") == "batch":
                keys = self._batch(request)
                key = keys[0]
                operation, effect = "delete", lambda: self._delete_batch(keys)
        if container != BUCKET:
            effect = lambda: self.failure(404, "ContainerNotFound")  # noqa: E731
        return Call(operation, key, effect)

    def failure(self, status: int, code: str | None = None) -> Answer:
        """Return the provider's answer for a failure."""
        code = code or self._CODES.get(status, "InternalError")
        body = f"<?xml version='1.0' encoding='utf-8'?><Error><Code>{code}</Code><Message>{code}</Message></Error>"
        return Answer(status, body.encode(), (("Content-Type", "application/xml"), ("x-ms-error-code", code)))

    def _write(self, key: str, request: Request) -> Answer:
        found = self._objects.get(key)
        if request.headers.get("if-none-match") == "*" and found:
            return self.failure(409)
        expected = request.headers.get("if-match")
        if expected and (found is None or not _matches(expected, found)):
            return self.failure(412)
        stored = self._put(key, request.body, f'"0x{self._versions.next():X}"')
        return Answer(201, headers=(*self._about(stored), ("x-ms-request-server-encrypted", "true")))

    def _read(self, key: str, headers: Mapping[str, str]) -> Answer:
        found = self._objects.get(key)
        if found is None:
            return self.failure(404)
        if headers.get("if-none-match", "-").strip('"') == found.version.strip('"'):
            return self.failure(304)
        about = (*self._about(found), ("x-ms-blob-type", "BlockBlob"))
        wanted = headers.get("x-ms-range") or headers.get("range")
        if wanted is None:
            return Answer(200, found.body, about)
        first, last = (int(end or len(found.body) - 1) for end in wanted.removeprefix("bytes=").split("-"))
        part = found.body[first : last + 1]
        if not part:
            return self.failure(416)
        place = f"bytes {first}-{first + len(part) - 1}/{len(found.body)}"
        return Answer(206, part, (*about, ("Content-Range", place)))

    def _delete(self, key: str) -> Answer:
        return Answer(202) if self._objects.pop(key, None) else self.failure(404)

    def _batch(self, request: Request) -> list[str]:
        """Return the keys that a batch of deletes, the only one there is, names in its request lines."""
        lines = request.body.decode().split("\r\n")
        paths = [line.split(" ")[1] for line in lines if line.startswith("DELETE ")]
        return [unquote(path).removeprefix(f"{self.base_path}/{BUCKET}/") for path in paths]

    def _delete_batch(self, keys: list[str]) -> Answer:
        lines: list[str] = []
        for number, key in enumerate(keys):
            answer = self._delete(key)
            lines += [
                "--batchresponse", "Content-Type: application/http", f"Content-ID: {number}", "",
                f"HTTP/1.1 {answer.status} {HTTPStatus(answer.status).phrase}",
                *(f"{name}: {value}" for name, value in answer.headers),
                f"Content-Length: {len(answer.body)}", "", answer.body.decode(),
            ]  # fmt: skip
        body = "\r\n".join((*lines, "--batchresponse--", ""))
        return Answer(202, body.encode(), (("Content-Type", "multipart/mixed; boundary=batchresponse"),))

    def _list(self, query: Mapping[str, str]) -> Answer:
        keys, token = self._page(
            query.get("prefix", ""), _after(query.get("marker")), query.get("maxresults")
        )
        rows = "".join(
            f"<Blob><Name>{escape(key)}</Name><Properties>"
            f"<Last-Modified>{stored.modified}</Last-Modified><Etag>{stored.version.strip(chr(34))}</Etag>"
            f"<Content-Length>{len(stored.body)}</Content-Length>"
            "<Content-Type>application/octet-stream</Content-Type><BlobType>BlockBlob</BlobType>"
            "</Properties></Blob>"
            for key, stored in ((key, self._objects[key]) for key in keys)
        )
        body = (
            f"<?xml version='1.0' encoding='utf-8'?><EnumerationResults ContainerName='{BUCKET}'>"
            f"<Blobs>{rows}</Blobs><NextMarker>{token or ''}</NextMarker></EnumerationResults>"
        )
        return Answer(200, body.encode(), (("Content-Type", "application/xml"),))

    def _other(self) -> Answer:
        return Answer(200)

    def _about(self, stored: StubObject) -> tuple[tuple[str, str], ...]:
        return (("ETag", stored.version), ("Last-Modified", stored.modified), ("x-ms-version", "2021-12-02"))


DIALECTS: Final[Mapping[str, Callable[[dict[str, StubObject], Versions, int], Dialect]]] = {
    "s3": S3Dialect, "gcs": GCSDialect, "azure": AzureDialect,
}  # fmt: skip
