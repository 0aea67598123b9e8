"""The `osqueue-broker` command, and the one place of the broker that reads the environment."""

from __future__ import annotations

import argparse
import asyncio
import ipaddress
import json
import logging
import os
import sys
from collections.abc import Sequence
from typing import Final

import uvloop

from osqueue_client.errors import OsqueueError
from osqueue_storage import open_storage

from .server import BrokerServer

_DEFAULT_STORAGE: Final = "file:./.osqueue"
_LOG_LEVELS: Final = ("debug", "info", "warning", "error")
_LOG_FIELDS: Final = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a broker until SIGINT or SIGTERM; return the exit status."""
    parser = _parser()
    options = parser.parse_args(argv)
    if options.log_level not in _LOG_LEVELS:  # argparse does not check what comes from the environment
        parser.error(f"OSQUEUE_LOG_LEVEL must be one of {', '.join(_LOG_LEVELS)}")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonLines())
    logging.basicConfig(level=options.log_level.upper(), handlers=[handler], force=True)
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    if not _is_loopback(options.host):
        print(
            f"warning: listening on {options.host} without authentication: whoever reaches this port may submit, "
            "claim and read jobs",
            file=sys.stderr,
            flush=True,
        )
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_serve(options))
    except OSError as error:
        print(
            f"osqueue-broker: cannot listen on {options.host}:{options.port}: {error.strerror or error}",
            file=sys.stderr,
        )
        return 1
    except OsqueueError as error:
        print(f"osqueue-broker: {error.tag}: {error.message}", file=sys.stderr)
        return 1
    return 0


async def _serve(options: argparse.Namespace) -> None:
    async with open_storage(options.storage) as storage:
        server = BrokerServer(
            storage=storage,
            host=options.host,
            port=options.port,
            advertise=options.advertise,
            allow_origins=options.allow_origin,
        )
        await server.run(on_started=lambda: print(f"Broker listening on {server.address}", flush=True))


def _parser() -> argparse.ArgumentParser:
    environment = os.environ  # noqa: TID251  # its one home
    parser = argparse.ArgumentParser(
        prog="osqueue-broker",
        description="Lead a job queue that lives in an object store, over REST, WebSocket and Connect.",
        epilog="Each option is also an environment variable: OSQUEUE_STORAGE, OSQUEUE_HOST, OSQUEUE_PORT, "
        "OSQUEUE_ADVERTISE, OSQUEUE_ALLOW_ORIGIN (a comma between several), OSQUEUE_LOG_LEVEL.",
    )
    parser.add_argument("--storage", metavar="URL", default=environment.get("OSQUEUE_STORAGE", _DEFAULT_STORAGE),
                        help="where the queue lives (default: %(default)s)")  # fmt: skip
    parser.add_argument("--host", default=environment.get("OSQUEUE_HOST", "127.0.0.1"),
                        help="address to listen on (default: %(default)s)")  # fmt: skip
    parser.add_argument("--port", type=int, default=environment.get("OSQUEUE_PORT", "8080"),
                        help="port to listen on, 0 for any free one (default: %(default)s)")  # fmt: skip
    parser.add_argument("--advertise", metavar="HOST:PORT", default=environment.get("OSQUEUE_ADVERTISE"),
                        help="address at which others reach this broker (default: what it listens on)")  # fmt: skip
    origins = environment.get("OSQUEUE_ALLOW_ORIGIN")
    parser.add_argument("--allow-origin", metavar="ORIGIN", action="append",
                        default=origins.split(",") if origins else None,
                        help="web origin that may call, repeatable, * for any (default: this machine's)")  # fmt: skip
    parser.add_argument("--log-level", default=environment.get("OSQUEUE_LOG_LEVEL", "info"),
                        choices=_LOG_LEVELS,
                        help="least severe log line to write (default: %(default)s)")  # fmt: skip
    return parser


class _JsonLines(logging.Formatter):
    """One JSON object a line: time, level, logger, event, and the event's own fields."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage(),
        }
        line |= {name: value for name, value in record.__dict__.items() if name not in _LOG_FIELDS}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
