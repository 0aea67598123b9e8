"""The three programs of the quickstart, and what they print."""

from __future__ import annotations

import re
from pathlib import Path

from drills.programs import ended

EXAMPLES = Path(__file__).parents[2] / "examples"
WORK = ["Generating pdf report rpt-1", 'Sending email to user@example.com: "Hello!"']
_UUID = r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"


def copy_examples(folder: Path) -> Path:
    """Copy the examples, with a broker that only this machine can reach."""
    for example in EXAMPLES.glob("*.py"):
        (folder / example.name).write_text(example.read_text().replace('"0.0.0.0"', '"127.0.0.1"'))
    return folder


async def produce(examples: Path, url: str) -> list[str]:
    """Run the producer; return the ids that it printed."""
    status, out, err = await ended("producer.py", url, cwd=examples)
    assert status == 0, err
    found = [
        re.fullmatch(rf"Submitted (email:send|report:generate) job ({_UUID})", line)
        for line in out.splitlines()
    ]
    assert [match and match[1] for match in found] == ["email:send", "report:generate"]
    return [match[2] for match in found if match]
