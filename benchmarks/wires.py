"""Requests as bytes and answers as far as needed, over each transport: made without an HTTP library.

A wire of a batch of 1 uses the calls for one job, a larger one those for many. Its requests are made once, save
those that name jobs.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence

JOB_TYPE = b"email:send"


class Rest:
    """Requests and answers over REST."""

    handshake = b""

    def __init__(self, worker: str, payload: str, *, batch: int = 1, wait: float = 0.0) -> None:
        self._worker = worker.encode()
        self._payload = payload.encode()
        self._is_single = batch == 1
        self._batch = batch
        self._wait = wait
        self.submit = self._submit()
        self.claim = self._claim()

    def complete(self, job_ids: Sequence[bytes]) -> bytes:
        """Return the request that completes jobs."""
        if self._is_single:
            return self._post(f"/v1/jobs/{job_ids[0].decode()}/complete", b'{"workerId":"%s"}' % self._worker)
        return self._post("/v1/batch/complete", self._leases(job_ids))

    def answer(self, data: bytes) -> tuple[bool, bytes] | None:
        """Return whether an answer is good, and its body; None while it is not all there."""
        head, found, body = data.partition(b"\r\n\r\n")
        if not found:
            return None
        if b"transfer-encoding: chunked" in head:
            _, _, chunk = body.partition(b"\r\n")
            return (head.startswith(b"HTTP/1.1 20"), chunk) if body.endswith(b"0\r\n\r\n") else None
        length = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
        if length and len(body) < int(length[1]):
            return None
        return head.startswith(b"HTTP/1.1 20"), body

    def job_ids(self, body: bytes) -> list[bytes]:
        """Return the ids of the jobs in the answer to a claim."""
        if self._is_single:
            at = body.find(b'"jobId":"')
            return [] if at < 0 else [body[at + 9 : at + 45]]
        return re.findall(rb'"jobId":"([^"]+)"', body)

    def refusals(self, body: bytes) -> int:
        """Return how many entries of a submit or a complete of many were refused."""
        return 0 if self._is_single else body.count(b'"error":')

    def _submit(self) -> bytes:
        if self._is_single:
            return self._post("/v1/jobs", self._job())
        return self._post("/v1/batch/submit", self._jobs())

    def _claim(self) -> bytes:
        return self._post("/v1/jobs/claim" if self._is_single else "/v1/batch/claim", self._asking())

    def _job(self) -> bytes:
        return b'{"type":"%s","payload":%s}' % (JOB_TYPE, self._payload)

    def _jobs(self) -> bytes:
        return b'{"jobs":[%s]}' % b",".join([self._job()] * self._batch)

    def _asking(self) -> bytes:
        limit = b"" if self._is_single else b',"limit":%d' % self._batch
        wait = b',"wait":%g' % self._wait if self._wait else b""
        return b'{"workerId":"%s"%s%s}' % (self._worker, limit, wait)

    def _leases(self, job_ids: Sequence[bytes]) -> bytes:
        leases = b",".join([b'{"jobId":"%s"}' % job_id for job_id in job_ids])
        return b'{"workerId":"%s","jobs":[%s]}' % (self._worker, leases)

    def _post(self, path: str, body: bytes, kind: str = "application/json") -> bytes:
        head = (
            f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: {kind}\r\ncontent-length: {len(body)}\r\n\r\n"
        )
        return head.encode() + body


class Connect(Rest):
    """Requests and answers over Connect with protobuf bodies."""

    def complete(self, job_ids: Sequence[bytes]) -> bytes:
        """Return the request that completes jobs."""
        if self._is_single:
            return self._rpc("CompleteJob", _field(1, job_ids[0]) + _field(2, self._worker))
        leases = b"".join([_field(101, _field(100, job_id)) for job_id in job_ids])
        return self._rpc("CompleteJobs", _field(100, self._worker) + leases)

    def job_ids(self, body: bytes) -> list[bytes]:
        """Return the ids of the jobs in the answer to a claim: each job's first field, 36 bytes."""
        if self._is_single:
            return [body[2:38]] if body.startswith(b"\x0a\x24") else []
        return re.findall(rb"\x0a\x24([0-9a-f-]{36})", body)

    def refusals(self, body: bytes) -> int:
        """Return how many entries of a submit or a complete of many were refused."""
        return 0 if self._is_single else body.count(_key(101, 2))

    def _submit(self) -> bytes:
        if self._is_single:
            return self._rpc("SubmitJob", _field(1, self._payload) + _field(3, JOB_TYPE))
        job = _field(100, _field(100, self._payload) + _field(102, JOB_TYPE))
        return self._rpc("SubmitJobs", job * self._batch)

    def _claim(self) -> bytes:
        if self._is_single:
            return self._rpc("ClaimJob", _field(1, self._worker) + self._waiting(101))
        limit = _key(102, 0) + _varint(self._batch)
        return self._rpc("ClaimJobs", _field(100, self._worker) + limit + self._waiting(103))

    def _waiting(self, number: int) -> bytes:
        return _key(number, 1) + struct.pack("<d", self._wait) if self._wait else b""

    def _rpc(self, name: str, body: bytes) -> bytes:
        return self._post(f"/osqueue.v1.QueueService/{name}", body, "application/proto")


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes((*out, value))


def _key(number: int, wire_type: int) -> bytes:
    return _varint(number << 3 | wire_type)


def _field(number: int, value: bytes) -> bytes:
    return _key(number, 2) + _varint(len(value)) + value


class WebSocket(Rest):
    """Requests and answers in WebSocket frames, masked with zeros."""

    handshake = (
        b"GET /v1/ws HTTP/1.1\r\nhost: x\r\nupgrade: websocket\r\nconnection: Upgrade\r\n"
        b"sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )

    def complete(self, job_ids: Sequence[bytes]) -> bytes:
        """Return the request that completes jobs."""
        if self._is_single:
            return self._frame(b"completeJob", b'{"jobId":"%s","workerId":"%s"}' % (job_ids[0], self._worker))
        return self._frame(b"completeJobs", self._leases(job_ids))

    def answer(self, data: bytes) -> tuple[bool, bytes] | None:
        """Return whether an answer is good, and its body; None while it is not all there."""
        if data.startswith(b"HTTP/"):
            return (data.startswith(b"HTTP/1.1 101"), b"") if data.endswith(b"\r\n\r\n") else None
        if len(data) < 10 and (len(data) < 4 or data[1] == 127):
            return None
        start, size = 2, data[1]
        if size == 126:
            start, size = 4, struct.unpack_from("!H", data, 2)[0]
        elif size == 127:
            start, size = 10, struct.unpack_from("!Q", data, 2)[0]
        if len(data) < start + size:
            return None
        return b'"ok":true' in data, data[start:]

    def _submit(self) -> bytes:
        if self._is_single:
            return self._frame(b"submitJob", self._job())
        return self._frame(b"submitJobs", self._jobs())

    def _claim(self) -> bytes:
        return self._frame(b"claimJob" if self._is_single else b"claimJobs", self._asking())

    def _frame(self, method: bytes, params: bytes) -> bytes:
        body = b'{"id":1,"method":"%s","params":%s}' % (method, params)
        if len(body) < 126:
            size = bytes((0x80 | len(body),))
        elif len(body) < 65_536:
            size = struct.pack("!BH", 0xFE, len(body))
        else:
            size = struct.pack("!BQ", 0xFF, len(body))
        return b"\x81" + size + bytes(4) + body


TRANSPORTS = {"rest": Rest, "ws": WebSocket, "connect": Connect}
