"""Runs the jobs until Ctrl-C."""

import argparse
import asyncio
import sys

from registry import GenerateReport, SendEmail, registry

from osqueue_client import OsqueueClient, OsqueueError
from osqueue_worker import Worker


async def send_email(payload: SendEmail) -> None:
    print(f'Sending email to {payload.to}: "{payload.body}"', flush=True)


async def generate_report(payload: GenerateReport) -> None:
    print(f"Generating {payload.format} report {payload.report_id}", flush=True)


async def main(broker_url: str) -> None:
    async with OsqueueClient(broker_url, registry=registry) as client:
        worker = Worker(
            client=client,
            handlers={"email:send": send_email, "report:generate": generate_report},
            concurrency=5,
        )
        print("Worker started, polling for jobs...", flush=True)
        await worker.run()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("broker_url", nargs="?", default="http://127.0.0.1:8080", help="default: %(default)s")
    try:
        asyncio.run(main(parser.parse_args().broker_url))
    except OsqueueError as error:
        sys.exit(f"{error.tag}: {error.message}")
