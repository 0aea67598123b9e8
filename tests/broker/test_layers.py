"""What import-linter cannot see: a name taken from the client's package itself, and not from a module of it."""

from __future__ import annotations

import ast
from pathlib import Path

import osqueue_broker

PROTOCOL = {"errors", "models", "operations", "wire_json", "wire_proto"}


def test_the_broker_takes_only_the_protocol_from_the_client() -> None:
    taken: set[str] = set()
    for path in Path(osqueue_broker.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module == "osqueue_client":
                taken |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("osqueue_client."):
                taken.add((node.module or "").split(".")[1])
            elif isinstance(node, ast.Import):
                assert not any(alias.name.startswith("osqueue_client") for alias in node.names), path
    assert taken
    assert taken <= PROTOCOL
