"""The `osqueue-broker` command, and the one place of the broker that reads the environment."""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from typing import Final, NoReturn

import uvloop

from osqueue_client.errors import ConfigError, OsqueueError
from osqueue_storage import StorageBackend, ThrottledStorageBackend, open_storage

from . import fsck_cli
from .addresses import checked_port, is_loopback_host
from .allocator import keep_freed_bodies
from .server import BrokerServer
from .settings import BrokerSettings

logger = logging.getLogger("osqueue.broker")

_FSCK: Final = "fsck"
"""The subcommand."""

_DEFAULTS: Final = BrokerSettings()
_DEFAULT_STORAGE: Final = "file:./.osqueue"
_SETTINGS: Final[Mapping[str, tuple[Callable[[str], object], str]]] = {
    "heartbeat_timeout": (
        float,
        "seconds without a heartbeat of its worker after which a job's lease expires",
    ),
    "max_attempts": (int, "attempts of a job that sets no number of its own"),
    "broker_heartbeat_interval": (float, "seconds from one sign of life of the leader to the next"),
    "broker_heartbeat_timeout": (float, "seconds without one after which another broker may lead"),
    "request_timeout": (float, "seconds for which a request waits for the store"),
    "group_commit_interval": (float, "least seconds from one write to the next"),
    "segment_threshold": (
        int,
        "bytes of the document beyond which the middle of the queue is kept below segments/",
    ),
    "segment_retention": (float, "seconds for which an object there is kept after nothing refers to it"),
}
"""The options that are settings of the same names."""

_CHATTY: Final = ("uvicorn", "aiobotocore", "botocore", "azure", "google")
"""Loggers whose lines tell an operator nothing, and may be many."""

_LOG_LEVELS: Final = ("debug", "info", "warning", "error")
_BOOLEANS: Final = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
_LOG_FIELDS: Final = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a broker until SIGINT or SIGTERM, or `fsck` if that comes first; return the exit status."""
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] == [_FSCK]:
        return fsck_cli.main(argv[1:], os.environ)  # noqa: TID251  # its one home
    parser = _parser(os.environ)  # noqa: TID251  # its one home
    options, others = parser.parse_known_args(argv)
    if others:
        _refuse(parser, others)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonLines())
    logging.basicConfig(level=options.log_level.upper(), handlers=[handler], force=True)
    for name in _CHATTY:
        logging.getLogger(name).setLevel(logging.WARNING)
    if not is_loopback_host(options.host):
        logger.warning(
            "listening on %s without authentication: whoever reaches this port may submit, claim and read jobs",
            options.host,
        )
    try:
        keep_freed_bodies()
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_serve(options))
    except OSError as error:
        print(f"osqueue-broker: {error.strerror or error}", file=sys.stderr)
        return 1
    except OsqueueError as error:
        print(f"osqueue-broker: {error.tag}: {error.message}", file=sys.stderr)
        return 1
    return 0


def _refuse(parser: argparse.ArgumentParser, others: Sequence[str]) -> NoReturn:
    """End the program because of arguments that are none, and say what may have been meant."""
    if _FSCK in others:
        parser.error(f"{_FSCK} comes first: `{parser.prog} {_FSCK} URL`")
    given = " ".join(others)
    if others[0].startswith("-"):
        parser.error(f"unrecognized arguments: {given}")
    parser.error(
        f"{given!r} is no option: `{parser.prog} --storage URL` runs a broker, "
        f"`{parser.prog} {_FSCK} URL` checks a queue"
    )


async def _serve(options: argparse.Namespace) -> None:
    async with _storage(options) as storage:
        server = BrokerServer(
            storage=storage,
            host=options.host,
            port=options.port,
            advertise=options.advertise,
            allow_origins=options.allow_origin,
            settings=_settings(options),
            standby=options.standby,
            http2=options.http2,
        )
        await server.run(on_started=lambda: print(f"Broker listening on {server.address}", flush=True))


def _settings(options: argparse.Namespace) -> BrokerSettings:
    given = {name: getattr(options, name) for name in _SETTINGS}
    return BrokerSettings(probe_storage=options.storage_probe, **given)


def _storage(options: argparse.Namespace) -> StorageBackend:
    storage = open_storage(options.storage)
    limits = {
        "reads_per_minute": options.reads_per_minute,
        "writes_per_minute": options.writes_per_minute,
        "writes_per_day": options.writes_per_day,
    }
    return storage if set(limits.values()) == {None} else ThrottledStorageBackend(storage, **limits)


def _parser(environment: Mapping[str, str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="osqueue-broker",
        usage=f"%(prog)s [--storage URL] [--port PORT] [option ...]\n       %(prog)s {_FSCK} URL [option ...]",
        description="Lead a job queue that lives in an object store, over REST, WebSocket and Connect.",
        epilog="Each option is also an environment variable: OSQUEUE_PORT for --port, OSQUEUE_ALLOW_ORIGIN for "
        "--allow-origin (a comma between several), OSQUEUE_STORAGE_PROBE=false for --no-storage-probe. "
        "What stands on the command line counts. `osqueue-broker fsck --help`: check and repair a queue.",
    )
    add = _Options(parser, environment)
    parser.add_argument(
        "--version", action=_Version, nargs=0, default=argparse.SUPPRESS, help="print the version and exit"
    )
    add("--storage", str, _DEFAULT_STORAGE, "where the queue lives (default: %(default)s)", metavar="URL")
    add("--host", str, "127.0.0.1", "address to listen on (default: %(default)s)")
    add("--port", _port, 8080, "port to listen on, 0 for any free one (default: %(default)s)")
    add("--advertise", str, None, "address at which others reach this broker (default: what it listens on)",
        metavar="HOST:PORT")  # fmt: skip
    add("--allow-origin", str, None, "web origin that may call, repeatable, * for any (default: this machine's)",
        metavar="ORIGIN", repeatable=True)  # fmt: skip
    add(
        "--reads-per-minute",
        float,
        None,
        "most reads of the store in a minute (default: no limit)",
        metavar="N",
    )
    add(
        "--writes-per-minute",
        float,
        None,
        "most writes to the store in a minute (default: no limit)",
        metavar="N",
    )
    add("--writes-per-day", int, None, "writes free of the limit per minute, each day by UTC (default: none)",
        metavar="N")  # fmt: skip
    add(
        "--storage-probe",
        _boolean,
        True,
        "try at start whether the store honours conditional writes (default: yes)",
    )
    add(
        "--standby",
        _boolean,
        False,
        "wait while another broker leads, and take over when it ends (default: no)",
    )
    add(
        "--http2",
        _boolean,
        False,
        "serve HTTP/2 and gRPC on the same port, too; experimental (default: no)",
    )
    for name, (parse, help) in _SETTINGS.items():
        default = getattr(_DEFAULTS, name)
        add(
            f"--{name.replace('_', '-')}",
            parse,
            default,
            f"{help} (default: %(default){'d' if parse is int else 'g'})",
            metavar="N",
        )
    add("--log-level", str.lower, "info", "least severe log line to write (default: %(default)s)",
        choices=_LOG_LEVELS)  # fmt: skip
    add.check()
    return parser


class _Version(argparse.Action):
    """Prints the version of the installed package."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: object,
        option_string: str | None = None,
    ) -> None:
        print(parser.prog, version("osqueue-broker"))
        parser.exit()


class _Options:
    """Adds options to a parser, each with its environment variable, which is checked as the option is."""

    def __init__(self, parser: argparse.ArgumentParser, environment: Mapping[str, str]) -> None:
        self._parser = parser
        self._environment = environment
        self._errors: list[str] = []

    def __call__(
        self,
        name: str,
        parse: Callable[[str], object],
        default: object,
        help: str,
        *,
        metavar: str | None = None,
        choices: Sequence[str] | None = None,
        repeatable: bool = False,
    ) -> None:
        variable = "OSQUEUE" + name.removeprefix("-").replace("-", "_").upper()
        if given := self._environment.get(variable, "").strip():
            texts = [text.strip() for text in given.split(",")] if repeatable else [given]
            values = [self._parsed(variable, parse, text, choices) for text in texts if text]
            default = values if repeatable else values[0]
        if parse is _boolean:
            self._parser.add_argument(name, action=argparse.BooleanOptionalAction, default=default, help=help)
        elif repeatable:
            self._parser.add_argument(
                name, type=parse, action=_Replacing, default=default, help=help, metavar=metavar
            )
        else:
            self._parser.add_argument(
                name, type=parse, default=default, help=help, metavar=metavar, choices=choices
            )

    def check(self) -> None:
        """End the program if variables are wrong, and tell which: all of them at once."""
        if self._errors:
            self._parser.error("; ".join(self._errors))

    def _parsed(
        self, variable: str, parse: Callable[[str], object], text: str, choices: Sequence[str] | None
    ) -> object:
        try:
            value = parse(text)
        except argparse.ArgumentTypeError as error:
            self._errors.append(f"{variable}: {error}")
            return None
        except ValueError:
            self._errors.append(f"{variable}: {text!r} is not {'an integer' if parse is int else 'a number'}")
            return None
        if choices is not None and value not in choices:
            self._errors.append(f"{variable} must be one of {', '.join(choices)}")
        return value


class _Replacing(argparse.Action):
    """Collects the values of a repeatable option; the first one puts the default away."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: object,
        option_string: str | None = None,
    ) -> None:
        given = getattr(namespace, self.dest)
        setattr(namespace, self.dest, [values] if given is self.default else [*given, values])


def _port(text: str) -> int:
    try:
        return checked_port(int(text))
    except (ValueError, ConfigError):
        raise argparse.ArgumentTypeError(f"{text!r} is not a port from 0 to 65535") from None


def _boolean(text: str) -> bool:
    try:
        return _BOOLEANS[text.lower()]
    except KeyError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false") from None


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
