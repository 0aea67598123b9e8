"""The page about the client says what there is, and its example runs."""

from __future__ import annotations

import re
from pathlib import Path
from textwrap import indent
from typing import Any

import msgspec
import pytest
from pydantic import BaseModel

from osqueue_broker import BrokerServer
from osqueue_client import OsqueueClient, models

PAGE = (Path(__file__).parents[2] / "docs/api/client.md").read_text()


class SendEmail(BaseModel):
    """As in `examples/registry.py`."""

    to: str
    body: str


async def test_example_of_many_jobs_runs_with_the_registry_of_the_examples(server: BrokerServer) -> None:
    section = PAGE.partition("### Many at once")[2]
    found = re.search(r"```python\n(.*?)```", section, re.DOTALL)
    assert found is not None
    names: dict[str, Any] = {}
    exec(f"async def example(client):\n{indent(found[1], '    ')}\n    return ids, jobs, errors", names)
    async with OsqueueClient(server.address, registry={"email:send": SendEmail}) as client:
        ids, jobs, errors = await names["example"](client)
    assert [job.id for job in jobs] == ids
    assert errors == [None] * len(ids)
    assert "error.tag" in found[1]  # it looks at them


ANSWERS = (
    models.QueueStats,
    models.CommitStats,
    models.JobList,
    models.JobInfo,
    models.DeadJobList,
    models.DeadJob,
)


@pytest.mark.parametrize("answer", ANSWERS)
def test_all_fields_of_an_answer_are_told(answer: type[models.Model]) -> None:
    row = re.search(rf"^\| `{answer.__name__}` \|(.*)$", PAGE, re.MULTILINE)
    assert row is not None
    told = set(re.findall(r"`(\w+)", row[1]))
    assert {field.name for field in msgspec.structs.fields(answer)} <= told
