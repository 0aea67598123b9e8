"""The job types that producer and worker share."""

from pydantic import BaseModel

from osqueue_client import Registry


class SendEmail(BaseModel):
    to: str
    body: str


class GenerateReport(BaseModel):
    report_id: str
    format: str = "pdf"


registry: Registry = {"email:send": SendEmail, "report:generate": GenerateReport}
