"""Broker, producer and worker in one process, on a temporary folder; ends when both jobs are done."""

import asyncio
import sys
import tempfile

from registry import GenerateReport, SendEmail, registry
from worker import generate_report, send_email

from osqueue_broker import BrokerServer, FileBackend
from osqueue_client import Job, OsqueueClient
from osqueue_worker import Worker


async def main() -> None:
    done: asyncio.Queue[str] = asyncio.Queue()

    def on_job_completed(job: Job) -> None:
        done.put_nowait(job.id)

    with tempfile.TemporaryDirectory() as folder:
        async with (
            FileBackend(folder) as storage,
            BrokerServer(storage=storage, port=0) as server,
            OsqueueClient(f"http://{server.address}", registry=registry) as client,
        ):
            print(f"Broker listening on {server.address}")
            job_id = await client.submit_job("email:send", SendEmail(to="user@example.com", body="Hello!"))
            print(f"Submitted email:send job {job_id}")
            job_id = await client.submit_job("report:generate", GenerateReport(report_id="rpt-1"))
            print(f"Submitted report:generate job {job_id}")
            worker = Worker(
                client=client,
                handlers={"email:send": send_email, "report:generate": generate_report},
                on_job_completed=on_job_completed,
            )
            print("Worker started, polling for jobs...")
            async with worker, asyncio.timeout(30):
                await done.get()
                await done.get()
            stats = await client.get_stats()
            print(f"Done: {stats.completed_total} jobs completed, {stats.total} left")


if __name__ == "__main__":
    try:
        asyncio.run(main())
    except KeyboardInterrupt:
        sys.exit(130)
