"""The table of operations: every transport, the broker, OpenAPI and the tests are loops over it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Generic, Literal, TypeAlias, TypeVar

from . import models
from .models import Model

Req_co = TypeVar("Req_co", bound=Model, covariant=True)
Res_co = TypeVar("Res_co", bound=Model, covariant=True)

Permission = Literal["produce", "work", "read", "manage"]

SERVICE_NAME: Final = "osqueue.v1.QueueService"
"""The Connect service; an operation's RPC is at `/<service>/<rpc>`."""


@dataclass(frozen=True, slots=True, eq=False)
class Operation(Generic[Req_co, Res_co]):
    """One thing that a client can ask of a broker.

    `name` is the WebSocket method. `path` may hold `{jobId}`, which stands for the request's `job_id`.
    """

    name: str
    request: type[Req_co]
    response: type[Res_co]
    http_method: Literal["GET", "POST"]
    path: str
    success_status: Literal[200, 204]
    permission: Permission
    summary: str

    @property
    def rpc(self) -> str:
        """The Connect method."""
        return self.name[0].upper() + self.name[1:]

    @property
    def is_read(self) -> bool:
        """Whether it changes nothing, so that it may be sent as a GET."""
        return self.http_method == "GET"

    @property
    def may_be_repeated(self) -> bool:
        """Whether it changes the queue, and takes a `request_id`, with which it may be sent again."""
        return "request_id" in self.request.__struct_fields__

    @property
    def names_job(self) -> bool:
        """Whether the request must name a job."""
        return "{jobId}" in self.path


# Hot operations first: routes are tried in this order.
SUBMIT_JOB: Final = Operation(
    "submitJob", models.SubmitJob, models.JobSubmitted,
    "POST", "/v1/jobs", 200, "produce", "Add a job to the end of the queue.",
)  # fmt: skip
CLAIM_JOB: Final = Operation(
    "claimJob", models.ClaimJob, models.ClaimedJob,
    "POST", "/v1/jobs/claim", 200, "work", "Lease the oldest claimable job to a worker.",
)  # fmt: skip
COMPLETE_JOB: Final = Operation(
    "completeJob", models.LeasedChange, models.Empty,
    "POST", "/v1/jobs/{jobId}/complete", 204, "work", "End a job as done.",
)  # fmt: skip
HEARTBEAT: Final = Operation(
    "heartbeat", models.LeasedJob, models.Empty,
    "POST", "/v1/jobs/{jobId}/heartbeat", 204, "work", "Keep a lease for another lease timeout.",
)  # fmt: skip
FAIL_JOB: Final = Operation(
    "failJob", models.FailJob, models.Empty,
    "POST", "/v1/jobs/{jobId}/fail", 204, "work",
    "End an attempt as failed: the job is claimable again, or dead.",
)  # fmt: skip
SUBMIT_JOBS: Final = Operation(
    "submitJobs", models.SubmitJobs, models.JobsSubmitted,
    "POST", "/v1/batch/submit", 200, "produce", "Add many jobs to the end of the queue, in order.",
)  # fmt: skip
CLAIM_JOBS: Final = Operation(
    "claimJobs", models.ClaimJobs, models.ClaimedJobs,
    "POST", "/v1/batch/claim", 200, "work", "Lease the oldest claimable jobs to a worker, up to a limit.",
)  # fmt: skip
COMPLETE_JOBS: Final = Operation(
    "completeJobs", models.LeasedChanges, models.LeasedResults,
    "POST", "/v1/batch/complete", 200, "work", "End many jobs of one worker as done.",
)  # fmt: skip
HEARTBEAT_JOBS: Final = Operation(
    "heartbeatJobs", models.LeasedJobs, models.LeasedResults,
    "POST", "/v1/batch/heartbeat", 200, "work", "Keep many leases of one worker for another lease timeout.",
)  # fmt: skip
GET_STATS: Final = Operation(
    "getStats", models.Empty, models.QueueStats,
    "GET", "/v1/stats", 200, "read", "Count the queue's jobs.",
)  # fmt: skip
LIST_JOBS: Final = Operation(
    "listJobs", models.ListJobs, models.JobList,
    "GET", "/v1/jobs", 200, "read", "List live jobs in the order of claims, a page at a time.",
)  # fmt: skip
LIST_DEAD: Final = Operation(
    "listDead", models.ListDead, models.DeadJobList,
    "GET", "/v1/dead-jobs", 200, "read", "List dead jobs, oldest first, a page at a time.",
)  # fmt: skip
REQUEUE_DEAD: Final = Operation(
    "requeueDead", models.DeadJobRef, models.Empty,
    "POST", "/v1/dead-jobs/{jobId}/requeue", 204, "manage",
    "Put a dead job back at the end of the queue, its attempts at 0.",
)  # fmt: skip
DELETE_DEAD: Final = Operation(
    "deleteDead", models.DeadJobRef, models.Empty,
    "POST", "/v1/dead-jobs/{jobId}/delete", 204, "manage", "Delete a dead job for good.",
)  # fmt: skip

AnyOperation: TypeAlias = Operation[Model, Model]

OPERATIONS: Final[tuple[AnyOperation, ...]] = (
    SUBMIT_JOB, CLAIM_JOB, COMPLETE_JOB, HEARTBEAT, FAIL_JOB,
    SUBMIT_JOBS, CLAIM_JOBS, COMPLETE_JOBS, HEARTBEAT_JOBS,
    GET_STATS, LIST_JOBS, LIST_DEAD, REQUEUE_DEAD, DELETE_DEAD,
)  # fmt: skip
