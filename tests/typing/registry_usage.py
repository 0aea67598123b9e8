"""Never run: what a type checker must accept of a registry, and what it must refuse (each `ignore` is needed)."""

from __future__ import annotations

from collections.abc import AsyncIterator

from pydantic import BaseModel

from osqueue_client import DeadJob, Job, JobInfo, JobType, OsqueueClient, Registry, SyncOsqueueClient
from osqueue_storage import FileBackend, MemoryBackend, StorageBackend, StoredObject
from osqueue_worker import Worker


class SendEmail(BaseModel):
    to: str


class GenerateReport(BaseModel):
    report_id: str


registry: Registry = {"email:send": SendEmail, "report:generate": GenerateReport}
EMAIL = JobType("email:send", SendEmail)
REPORT = JobType("report:generate", GenerateReport)


async def send_email(payload: SendEmail) -> None: ...


def send_email_blocking(payload: SendEmail) -> None: ...


async def generate_report(payload: GenerateReport) -> None: ...


async def by_name(client: OsqueueClient, sync: SyncOsqueueClient) -> None:
    OsqueueClient("http://127.0.0.1:8080", registry=registry)
    OsqueueClient(
        "http://127.0.0.1:8080", registry={"email:send": SendEmail, "report:generate": GenerateReport}
    )
    await client.submit_job("email:send", SendEmail(to="a"))
    await client.submit_job("email:send", {"to": "a"})
    sync.submit_job("email:send", SendEmail(to="a"))
    Worker(client=client, handlers={"email:send": send_email, "report:generate": generate_report})


async def by_job_type(client: OsqueueClient, sync: SyncOsqueueClient) -> None:
    job_id: str = await client.submit_job(EMAIL, SendEmail(to=str(EMAIL.name)), max_attempts=3)
    sync.submit_job(EMAIL, SendEmail(to=job_id))
    Worker(client=client, handlers=[EMAIL.handled_by(send_email), EMAIL.handled_by(send_email_blocking)])
    handlers = [EMAIL.handled_by(send_email), REPORT.handled_by(generate_report)]
    Worker(client=client, handlers=handlers)


def as_a_model(job: Job) -> SendEmail:
    email: SendEmail = job.payload_as(SendEmail)
    numbers: list[int] = job.payload_as(list[int])
    plain: object = job.payload_as(None)
    print(numbers, plain)
    return email


def as_text(listed: JobInfo, dead: DeadJob) -> tuple[bytes | None, bytes | None]:
    return listed.payload_json, dead.payload_json


class Backend:
    """A backend of a user's own, which computes what it states."""

    @property
    def min_write_interval(self) -> float:
        return 1.0

    @property
    def slowest_write_interval(self) -> float:
        return 2.0

    @property
    def max_object_bytes(self) -> int | None:
        return None

    async def read(self, key: str) -> StoredObject | None: ...

    async def write(self, key: str, body: bytes, expected_version: str) -> str:
        return ""

    async def create(self, key: str, body: bytes) -> str:
        return ""

    async def delete(self, key: str) -> None: ...

    async def list(self, prefix: str) -> AsyncIterator[str]:
        yield prefix

    async def aclose(self) -> None: ...

    async def __aenter__(self) -> Backend:
        return self

    async def __aexit__(self, *_: object) -> None: ...


stores: list[StorageBackend] = [Backend(), MemoryBackend(), FileBackend("data")]


async def many(client: OsqueueClient, sync: SyncOsqueueClient) -> None:
    ids: list[str] = await client.submit_jobs([(EMAIL, SendEmail(to="a")), ("report", {"id": 1}), (None, 2)])
    jobs: list[Job] = await client.claim_jobs("w", limit=10, wait=30)
    errors = await client.complete_jobs(jobs, "w")
    errors += await client.heartbeat_jobs([(ids[0], None)], "w")
    for job in sync.iter_jobs(status="unclaimed"):
        sync.complete_jobs([(job.id, "token")], "w")
    async for listed in client.iter_jobs(type=""):
        print(listed.id)


def refused_of_a_job(job: Job) -> GenerateReport:
    return job.payload_as(SendEmail)  # type: ignore[return-value]


async def refused(client: OsqueueClient, sync: SyncOsqueueClient) -> None:
    await client.submit_job(EMAIL, GenerateReport(report_id="1"))  # type: ignore[misc]
    sync.submit_job(EMAIL, GenerateReport(report_id="1"))  # type: ignore[misc]
    EMAIL.handled_by(generate_report)  # type: ignore[arg-type]
    stores[0].min_write_interval = 3.0  # type: ignore[misc]
    await client.submit_job("email:send", SendEmail(to="a"), max_attempts="3")  # type: ignore[call-overload]
    await client.claim_jobs("w")  # type: ignore[call-arg]
    await client.list_jobs(status="dead")  # type: ignore[arg-type]
    OsqueueClient("http://127.0.0.1:8080", transport="grpc")  # type: ignore[arg-type]
