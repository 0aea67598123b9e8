"""A page of live jobs, also of a broker that knows no pages."""

from __future__ import annotations

import msgspec

from .calls import Calls
from .errors import BrokerProtocolError
from .features import PAGES
from .models import LIST_LIMIT, JobInfo, JobList, ListJobs
from .operations import LIST_JOBS
from .repeats import NotKnown


async def list_page(calls: Calls, request: ListJobs, timeout: float | None) -> JobList:
    """Return a page: of a broker that knows none, all jobs of that type and status. Raises what `Calls.call` does."""
    everything = ListJobs()
    if request == everything:
        return await calls.call(LIST_JOBS, request, timeout)
    try:
        return await calls.call(LIST_JOBS, request, timeout, needs=PAGES)
    except NotKnown:
        if request.cursor is not None:
            raise BrokerProtocolError(
                "listJobs: this broker knows no pages: list all jobs, without a cursor",
                field="cursor",
                method=LIST_JOBS.name,
            ) from None
    found = await calls.call(LIST_JOBS, everything, timeout)
    return msgspec.structs.replace(found, jobs=tuple(job for job in found.jobs if _is_wanted(job, request)))


def require_page(page: object) -> None:
    """Raise `BrokerProtocolError` for a number of jobs in a request that cannot be."""
    if not (isinstance(page, int) and 1 <= page <= LIST_LIMIT):
        raise BrokerProtocolError(
            f"page must be a number from 1 to {LIST_LIMIT:,}, not {page!r}", field="page"
        )


def _is_wanted(job: JobInfo, request: ListJobs) -> bool:
    if request.type is not None and (job.type or "") != request.type:
        return False
    return request.status is None or job.status == request.status
