"""Submits two jobs."""

import argparse
import asyncio
import sys

from registry import GenerateReport, SendEmail, registry

from osqueue_client import OsqueueClient, OsqueueError


async def main(broker_url: str) -> None:
    async with OsqueueClient(broker_url, registry=registry) as client:
        job_id = await client.submit_job("email:send", SendEmail(to="user@example.com", body="Hello!"))
        print(f"Submitted email:send job {job_id}")
        job_id = await client.submit_job("report:generate", GenerateReport(report_id="rpt-1"))
        print(f"Submitted report:generate job {job_id}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("broker_url", nargs="?", default="http://127.0.0.1:8080", help="default: %(default)s")
    try:
        asyncio.run(main(parser.parse_args().broker_url))
    except OsqueueError as error:
        sys.exit(f"{error.tag}: {error.message}")
