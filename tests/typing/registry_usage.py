"""Never run: what a type checker must accept of a registry, and what it must refuse (each `ignore` is needed)."""

from __future__ import annotations

from pydantic import BaseModel

from osqueue_client import JobType, OsqueueClient, Registry, SyncOsqueueClient
from osqueue_worker import Worker


class SendEmail(BaseModel):
    to: str


class GenerateReport(BaseModel):
    report_id: str


registry: Registry = {"email:send": SendEmail, "report:generate": GenerateReport}
EMAIL = JobType("email:send", SendEmail)


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


async def refused(client: OsqueueClient, sync: SyncOsqueueClient) -> None:
    await client.submit_job(EMAIL, GenerateReport(report_id="1"))  # type: ignore[misc]
    sync.submit_job(EMAIL, GenerateReport(report_id="1"))  # type: ignore[misc]
    EMAIL.handled_by(generate_report)  # type: ignore[arg-type]
    await client.submit_job("email:send", SendEmail(to="a"), max_attempts="3")  # type: ignore[call-overload]
    OsqueueClient("http://127.0.0.1:8080", transport="grpc")  # type: ignore[arg-type]
