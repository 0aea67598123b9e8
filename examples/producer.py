"""Submits two jobs."""

import asyncio

from registry import GenerateReport, SendEmail, registry

from osqueue_client import OsqueueClient


async def main() -> None:
    async with OsqueueClient("http://127.0.0.1:8080", registry=registry) as client:
        job_id = await client.submit_job("email:send", SendEmail(to="user@example.com", body="Hello!"))
        print(f"Submitted email:send job {job_id}")
        job_id = await client.submit_job("report:generate", GenerateReport(report_id="rpt-1"))
        print(f"Submitted report:generate job {job_id}")


if __name__ == "__main__":
    asyncio.run(main())
