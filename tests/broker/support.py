"""Small clients of the wire, written from the protocol and not from the client package."""

from __future__ import annotations

import asyncio
import base64
import functools
import itertools
import json
import selectors
import struct
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from datetime import date
from typing import Any

import httpx
import msgspec
from msgspec import Raw
from websockets.asyncio.client import ClientConnection, connect

from osqueue_broker import BrokerServer, BrokerSettings
from osqueue_broker.commit_loop import CommitLoop
from osqueue_broker.document_writer import DocumentWriter
from osqueue_broker.leadership import Candidate, Term
from osqueue_broker.queue.mutation import Mutation
from osqueue_broker.reaching import Reached
from osqueue_broker.segment_store import SegmentStore
from osqueue_client.operations import AnyOperation
from osqueue_storage import MemoryBackend, StoredObject

KEY = "queue.json"
SERVICE = "/osqueue.v1.QueueService"
PATHS = {
    "submitJob": ("POST", "/v1/jobs"),
    "claimJob": ("POST", "/v1/jobs/claim"),
    "heartbeat": ("POST", "/v1/jobs/{jobId}/heartbeat"),
    "completeJob": ("POST", "/v1/jobs/{jobId}/complete"),
    "failJob": ("POST", "/v1/jobs/{jobId}/fail"),
    "getStats": ("GET", "/v1/stats"),
    "listJobs": ("GET", "/v1/jobs"),
    "listDead": ("GET", "/v1/dead-jobs"),
    "requeueDead": ("POST", "/v1/dead-jobs/{jobId}/requeue"),
    "deleteDead": ("POST", "/v1/dead-jobs/{jobId}/delete"),
    "submitJobs": ("POST", "/v1/batch/submit"),
    "claimJobs": ("POST", "/v1/batch/claim"),
    "completeJobs": ("POST", "/v1/batch/complete"),
    "heartbeatJobs": ("POST", "/v1/batch/heartbeat"),
}
JOB_INFO = {
    1: ("id", "s"), 2: ("status", "s"), 3: ("payload", "b"), 4: ("type", "s"), 5: ("workerId", "s"),
    6: ("createdAt", "i"), 7: ("attempts", "i"), 8: ("maxAttempts", "i"), 9: ("heartbeat", "i"),
}  # fmt: skip
ERROR = {100: ("type", "s"), 101: ("message", "s")}
DEAD = {
    100: ("id", "s"), 101: ("payload", "b"), 102: ("type", "s"), 103: ("createdAt", "i"),
    104: ("attempts", "i"), 105: ("maxAttempts", "i"), 106: ("deadAt", "i"), 107: ("error", ERROR),
}  # fmt: skip
REQUEST_ID = {100: ("session", "s"), 101: ("number", "i"), 102: ("lowest", "i"), 103: ("ageMs", "i")}
LEASED = {1: ("jobId", "s"), 2: ("workerId", "s"), 100: ("leaseToken", "s")}
LEASE = {100: ("jobId", "s"), 101: ("leaseToken", "s")}
CLAIMED = {
    1: ("jobId", "s"), 2: ("payload", "b"), 3: ("type", "s"), 100: ("attempt", "i"), 101: ("leaseToken", "s"),
}  # fmt: skip
NEW_JOB = {100: ("payload", "b"), 101: ("maxAttempts", "i"), 102: ("type", "s")}
ENTRY_ERROR = {
    100: ("_tag", "s"), 101: ("message", "s"), 102: ("field", "s"), 103: ("outcome", "s"), 104: ("retryAfter", "d"),
}  # fmt: skip
LEASED_RESULTS = {100: ("results", [{100: ("error", ENTRY_ERROR)}])}
REF = {100: ("jobId", "s"), 101: ("requestId", REQUEST_ID)}
# The field numbers of the contract, by operation: request and response. A list marks a repeated field.
NUMBERS: dict[str, tuple[dict[int, Any], dict[int, Any]]] = {
    "submitJob": (
        {1: ("payload", "b"), 2: ("maxAttempts", "i"), 3: ("type", "s"), 100: ("requestId", REQUEST_ID)},
        {1: ("jobId", "s")},
    ),
    "claimJob": (
        {1: ("workerId", "s"), 2: ("types", ["s"]), 100: ("requestId", REQUEST_ID), 101: ("wait", "d")},
        CLAIMED,
    ),
    "heartbeat": (LEASED, {}),
    "completeJob": (LEASED | {101: ("requestId", REQUEST_ID)}, {}),
    "failJob": (
        {
            100: ("jobId", "s"), 101: ("workerId", "s"), 102: ("error", ERROR), 103: ("retry", "i"),
            104: ("leaseToken", "s"), 105: ("requestId", REQUEST_ID),
        },
        {},
    ),
    "getStats": (
        {},
        {
            1: ("total", "i"), 2: ("unclaimed", "i"), 3: ("inProgress", "i"), 4: ("brokerAddress", "s"),
            100: ("completedTotal", "i"), 101: ("dead", "i"), 102: ("features", ["s"]), 103: ("segments", "i"),
            104: ("waitingClaims", "i"),
            105: ("commits", {
                100: ("seconds", "d"), 101: ("writes", "i"), 102: ("bytes", "i"), 103: ("requests", "i"),
                104: ("latencyP50", "d"), 105: ("latencyP99", "d"), 106: ("segmentWrites", "i"),
                107: ("segmentBytes", "i"),
            }),
            106: ("lostJobs", "i"),
        },
    ),
    "listJobs": (
        {100: ("limit", "i"), 101: ("cursor", "s"), 102: ("type", "s"), 103: ("status", "s")},
        {
            1: ("jobs", [JOB_INFO]), 2: ("total", "i"), 3: ("unclaimed", "i"), 4: ("inProgress", "i"),
            5: ("completedTotal", "i"), 6: ("brokerAddress", "s"), 100: ("truncated", "i"), 101: ("nextCursor", "s"),
        },
    ),
    "listDead": (
        {100: ("limit", "i"), 101: ("cursor", "s")},
        {100: ("jobs", [DEAD]), 101: ("total", "i"), 102: ("nextCursor", "s")},
    ),
    "requeueDead": (REF, {}),
    "deleteDead": (REF, {}),
    "submitJobs": (
        {100: ("jobs", [NEW_JOB]), 101: ("requestId", REQUEST_ID)},
        {100: ("results", [{100: ("jobId", "s"), 101: ("error", ENTRY_ERROR)}])},
    ),
    "claimJobs": (
        {
            100: ("workerId", "s"), 101: ("types", ["s"]), 102: ("limit", "i"), 103: ("wait", "d"),
            104: ("requestId", REQUEST_ID),
        },
        {100: ("jobs", [CLAIMED])},
    ),
    "completeJobs": (
        {100: ("workerId", "s"), 101: ("jobs", [LEASE]), 102: ("requestId", REQUEST_ID)}, LEASED_RESULTS,
    ),
    "heartbeatJobs": ({100: ("workerId", "s"), 101: ("jobs", [LEASE])}, LEASED_RESULTS),
}  # fmt: skip


class Refused(Exception):
    """An error answer: `status` is the HTTP status (None over WebSocket), `code` that of Connect."""

    def __init__(self, error: dict[str, Any], status: int | None = None, code: str | None = None) -> None:
        super().__init__(f"{status} {code} {error}")
        self.error, self.status, self.code = error, status, code
        self.tag, self.message = error.get("_tag"), error.get("message", "")


def text_of(fields: dict[str, Any]) -> bytes:
    """JSON text of a request whose payloads, if any, are JSON text already."""

    def value_text(name: str, value: Any) -> str:
        if name == "payload":
            return str(value)
        if name == "jobs":
            return "[" + ",".join(text_of(job).decode() for job in value) + "]"
        return json.dumps(value)

    parts = [f"{json.dumps(name)}:{value_text(name, value)}" for name, value in fields.items()]
    return ("{" + ",".join(parts) + "}").encode()


def fields_of(text: bytes) -> dict[str, Any]:
    """The answer in JSON, each `payload` as its JSON text."""
    fields: dict[str, Any] = {}
    for name, raw in msgspec.json.decode(text, type=dict[str, Raw]).items():
        if name == "payload":
            fields[name] = bytes(raw).decode()
        elif name == "jobs":
            fields[name] = [fields_of(bytes(item)) for item in msgspec.json.decode(raw, type=list[Raw])]
        else:
            fields[name] = json.loads(bytes(raw))
    return fields


def varint(n: int) -> bytes:
    n &= 2**64 - 1
    out = bytearray()
    while n > 127:
        out.append(n & 127 | 128)
        n >>= 7
    out.append(n)
    return bytes(out)


def to_proto(fields: dict[str, Any], numbers: dict[int, Any]) -> bytes:
    out = b""
    for number, (name, kind) in numbers.items():
        if fields.get(name) is None:
            continue
        values = fields[name] if isinstance(kind, list) else [fields[name]]
        item = kind[0] if isinstance(kind, list) else kind
        for value in values:
            if item == "i":
                out += varint(number << 3) + varint(int(value))
                continue
            if item == "d":
                out += varint(number << 3 | 1) + struct.pack("<d", value)
                continue
            data = to_proto(value, item) if isinstance(item, dict) else value.encode()
            out += varint(number << 3 | 2) + varint(len(data)) + data
    return out


def from_proto(data: bytes, numbers: dict[int, Any]) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    at = 0

    def read() -> int:
        nonlocal at
        n = shift = 0
        while True:
            byte = data[at]
            at += 1
            n |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return n

    while at < len(data):
        key = read()
        name, kind = numbers[key >> 3]
        item = kind[0] if isinstance(kind, list) else kind
        if key & 7 == 1:
            [fields[name]] = struct.unpack("<d", data[at : at + 8])
            at += 8
            continue
        value: Any = read()
        if key & 7 == 2:
            length, at = value, at + value
            raw = data[at - length : at]
            value = from_proto(raw, item) if isinstance(item, dict) else raw.decode()
        if isinstance(kind, list):
            fields.setdefault(name, []).append(value)
        else:
            fields[name] = value
    return fields


def connect_refusal(response: httpx.Response) -> Refused:
    body = response.json()
    details = body.get("details", [])
    error = {"_tag": response.headers.get("osqueue-error"), "message": body.get("message", "")}
    for detail in details:
        if detail["type"] == "google.protobuf.Struct":
            error["detail"] = base64.b64decode(detail["value"] + "==")
    return Refused(error, response.status_code, body["code"])


class Rest:
    name = "rest"

    def __init__(self, http: httpx.AsyncClient) -> None:
        self.http = http

    async def call(self, method: str, **fields: Any) -> dict[str, Any]:
        verb, path = PATHS[method]
        if "{jobId}" in path:
            path = path.replace("{jobId}", fields.pop("jobId"))
        if verb == "GET":
            answer = await self.http.get(path, params=fields)
        else:
            answer = await self.http.post(path, content=text_of(fields), headers=JSON)
        if answer.status_code == 204:
            assert answer.content == b""
            return {}
        if answer.status_code != 200:
            raise Refused(answer.json(), answer.status_code)
        assert answer.headers["content-type"].startswith("application/json")
        return fields_of(answer.content)


JSON = {"content-type": "application/json"}


class WebSocket:
    name = "ws"

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket
        self.ids = itertools.count(1)

    async def call(self, method: str, **fields: Any) -> dict[str, Any]:
        id = next(self.ids)
        frame = b'{"id":%d,"method":%s,"params":%s}' % (id, json.dumps(method).encode(), text_of(fields))
        await self.socket.send(frame.decode())
        answer = msgspec.json.decode(await asyncio.wait_for(self.socket.recv(), 10), type=dict[str, Raw])
        assert json.loads(bytes(answer["id"])) == id
        if bytes(answer["ok"]) == b"false":
            raise Refused(json.loads(bytes(answer["error"])))
        return fields_of(bytes(answer["result"]))


class ConnectJson:
    name = "connect-json"

    def __init__(self, http: httpx.AsyncClient) -> None:
        self.http = http

    async def call(self, method: str, **fields: Any) -> dict[str, Any]:
        answer = await self.http.post(f"{SERVICE}/{rpc(method)}", json=self._sent(fields), headers=JSON)
        if answer.status_code != 200:
            raise connect_refusal(answer)
        return self._plain(answer.json())

    def _sent(self, fields: dict[str, Any]) -> dict[str, Any]:
        if "payload" in fields:
            return fields | {"payload": base64.b64encode(fields["payload"].encode()).decode()}
        return fields | {"jobs": [self._sent(job) for job in fields["jobs"]]} if "jobs" in fields else fields

    def _plain(self, fields: dict[str, Any]) -> dict[str, Any]:
        for name in ("createdAt", "heartbeat", "deadAt"):
            if name in fields:
                fields[name] = int(fields[name])
        if "payload" in fields:
            fields["payload"] = base64.b64decode(fields["payload"]).decode()
        for job in fields.get("jobs", []):
            self._plain(job)
        for result in fields.get("results", []):
            if "error" in result:  # no message has a field with a name like that
                result["error"]["_tag"] = result["error"].pop("tag")
        return fields


class ConnectProto:
    name = "connect-proto"

    def __init__(self, http: httpx.AsyncClient) -> None:
        self.http = http

    async def call(self, method: str, **fields: Any) -> dict[str, Any]:
        request, response = NUMBERS[method]
        answer = await self.http.post(
            f"{SERVICE}/{rpc(method)}",
            content=to_proto(fields, request),
            headers={"content-type": "application/proto", "connect-protocol-version": "1"},
        )
        if answer.status_code != 200:
            raise connect_refusal(answer)
        assert answer.headers["content-type"] == "application/proto"
        return from_proto(answer.content, response)


def rpc(method: str) -> str:
    return method[0].upper() + method[1:]


WIRES = ("rest", "ws", "connect-json", "connect-proto")


@asynccontextmanager
async def opened(server: BrokerServer, name: str = "rest") -> AsyncIterator[Any]:
    """A client of the server over one of `WIRES`."""
    async with httpx.AsyncClient(base_url=f"http://{server.address}", timeout=20, trust_env=False) as http:
        if name == "ws":
            async with connect(f"ws://{server.address}/v1/ws", proxy=None, max_size=None) as socket:
                yield WebSocket(socket)
        else:
            yield {"rest": Rest, "connect-json": ConnectJson, "connect-proto": ConnectProto}[name](http)


async def until(condition: Any, seconds: float = 5.0) -> None:
    """Wait, bounded, for something that another task brings about."""
    async with asyncio.timeout(seconds):
        while not condition():  # any condition, bounded
            await asyncio.sleep(0.002)


class FaultyStore(MemoryBackend):
    """Loses answers or requests on demand, may hold writes at a gate, and counts all: of the document alone."""

    def __init__(self) -> None:
        super().__init__()
        self.faults: list[str] = []  # of the next writes: "answer" (lost after the effect), "request", ""
        self.create_faults: list[str] = []  # the same of creates
        self.meanwhile: list[Callable[[], object]] = []  # what others do just before the next writes
        self.attempts: list[tuple[bytes, str]] = []
        self.created: list[bytes] = []
        self.sent_at: list[float] = []  # of creates and writes, by the event loop's clock
        self.document_sent_at: list[float] = []  # of the document's alone
        self.gate = asyncio.Event()
        self.gate.set()
        self.in_flight = self.most_in_flight = self.at_gate = self.creates = 0
        self.takes_segments = True

    async def write(self, key: str, body: bytes, expected_version: str) -> str:
        if key != KEY:  # the broker's probe
            return await super().write(key, body, expected_version)
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            self.attempts.append((body, expected_version))
            self.sent_at.append(asyncio.get_running_loop().time())
            self.document_sent_at.append(self.sent_at[-1])
            fault = self.faults.pop(0) if self.faults else ""
            if not self.gate.is_set():
                self.at_gate += 1
                await self.gate.wait()
            if fault == "request":
                raise ConnectionError("the request was lost")
            if self.meanwhile:
                self.meanwhile.pop(0)()
            version = await super().write(key, body, expected_version)
            if fault == "answer":
                raise ConnectionError("the answer was lost")
            return version
        finally:
            self.in_flight -= 1

    async def create(self, key: str, body: bytes) -> str:
        if key.startswith("segments/") and not self.takes_segments:
            raise ConnectionError("no")
        self.creates += key == KEY
        self.created.append(body)
        self.sent_at.append(asyncio.get_running_loop().time())
        fault = self.create_faults.pop(0) if self.create_faults else ""
        if fault == "request":
            raise ConnectionError("the request was lost")
        version = await super().create(key, body)
        if fault == "answer":
            raise ConnectionError("the answer was lost")
        return version

    def now(self) -> dict[str, Any]:
        document: dict[str, Any] = json.loads(self._objects[KEY].body)
        return document

    def put_now(self, document: Any) -> None:
        """What another program does to the object, at this very moment."""
        self._put(KEY, document if isinstance(document, bytes) else json.dumps(document).encode())

    def object(self) -> StoredObject | None:
        return self._objects.get(KEY)


class FakeClock:
    """Time that a test moves, and ids that count."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.wall = 1_700_000_000_000
        self._ids = itertools.count(1)

    def monotonic(self) -> float:
        return self.now

    def wall_ms(self) -> int:
        return self.wall

    def new_id(self) -> str:
        return f"00000000-0000-4000-8000-{next(self._ids):08x}0000"  # with room for those of a batch


class _Jumping(selectors.SelectSelector):
    """Waits for nothing: where a loop would, the clock jumps. A turn of the loop takes a microsecond."""

    def __init__(self, clock: FakeClock) -> None:
        super().__init__()
        self._clock = clock

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        assert timeout is not None, "nothing is left that could ever happen"
        self._clock.now += max(timeout, 1e-6)
        return super().select(0)


class FakeTimeLoop(asyncio.SelectorEventLoop):
    """An event loop that lives in the time of a fake clock: its timers ring as soon as all else is done."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        super().__init__(_Jumping(self.clock))

    def time(self) -> float:
        return self.clock.now


def fake_clock() -> FakeClock:
    """The clock of the running loop, in a test that is `in_fake_time`."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, FakeTimeLoop)
    return loop.clock


class ThrottleClock:
    """The time of the fake loop, for a storage with a budget."""

    def monotonic(self) -> float:
        return fake_clock().now

    def today(self) -> date:
        return date(2030, 1, 1)

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


def in_fake_time(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run an async test in a `FakeTimeLoop`, for at most some hours of its time."""

    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        with asyncio.Runner(loop_factory=FakeTimeLoop) as runner:
            runner.run(asyncio.wait_for(test(*args, **kwargs), 20_000))

    return run


async def nobody_there(address: str) -> Reached:
    """Tries no real address."""
    return Reached.UNCLEAR


def candidate(store: FaultyStore, clock: FakeClock, *, address: str = "us:1", **settings: Any) -> Candidate:
    """A broker that would lead the queue in that store."""
    made = BrokerSettings(**settings)
    writer = DocumentWriter(store, KEY, settings=made, clock=clock)
    return Candidate(writer, address, storage=store, settings=made, clock=clock, connect=nobody_there)


async def begun(runner: Candidate, *, has_bound: bool = False) -> Term:
    """The term that a candidate begins at its turn."""
    while True:
        found = await runner.wait_for_turn(has_just_bound=has_bound)
        term = await runner.begin_term(found)
        if term is not None:
            return term
        has_bound = False


class Leader:
    """A commit loop that runs, without a server around it."""

    address = "us:1"

    def __init__(self, commits: CommitLoop, ended: asyncio.Task[None]) -> None:
        self.commits = commits
        self.ended = ended

    def put(self, operation: AnyOperation, **fields: Any) -> asyncio.Future[Any]:
        """Ask, and return the future of the answer."""
        request = operation.request(**fields)
        return self.commits.put(Mutation(operation, request, fake_clock().new_id()))

    def put_sized(self, operation: AnyOperation, size: int, **fields: Any) -> asyncio.Future[Any]:
        """Ask with a request that counts as so many bytes."""
        return self.commits.put(Mutation(operation, operation.request(**fields), fake_clock().new_id()), size)

    async def ask(self, operation: AnyOperation, **fields: Any) -> Any:
        """Ask, and return the answer."""
        return await self.put(operation, **fields)

    async def stop(self) -> None:
        """Return when the loop has ended; raise what ended it."""
        self.commits.stop()
        await asyncio.wait((self.ended,))
        self.ended.result()


@asynccontextmanager
async def leading(store: FaultyStore, **settings: Any) -> AsyncIterator[Leader]:
    """A commit loop that leads, in fake time. The settings are not checked against each other."""
    made = BrokerSettings(**settings)
    clock = fake_clock()
    writer = DocumentWriter(store, KEY, settings=made, clock=clock)
    runner = Candidate(
        writer, Leader.address, storage=store, settings=made, clock=clock, connect=nobody_there
    )
    term = await begun(runner, has_bound=True)
    fresh_for = made.fresh_for(has_bound=True)
    commits = CommitLoop(
        term, writer=writer, candidate=runner, settings=made, clock=clock,
        segments=SegmentStore(store, made), fresh_for=fresh_for,
    )  # fmt: skip
    ended = asyncio.create_task(commits.run())
    try:
        yield Leader(commits, ended)
    finally:
        ended.cancel()
        await asyncio.wait((ended,))
