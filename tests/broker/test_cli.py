"""The `osqueue-broker` command: its options, their environment variables, and how it fails."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from osqueue_broker import BrokerSettings
from osqueue_broker.cli import _parser, _settings, main

COMMAND = [sys.executable, "-m", "osqueue_broker"]


def options(*arguments: str, **environment: str) -> dict[str, object]:
    return vars(_parser(environment).parse_args(arguments))


def test_without_options_it_serves_a_file_in_the_current_folder_to_this_machine() -> None:
    assert options() == {
        "storage": "file:./.osqueue", "host": "127.0.0.1", "port": 8080, "advertise": None, "allow_origin": None,
        "reads_per_minute": None, "writes_per_minute": None, "writes_per_day": None, "storage_probe": True,
        "standby": False, "http2": False, "log_level": "info", "heartbeat_timeout": 30.0, "max_attempts": 3,
        "broker_heartbeat_interval": 3.0, "broker_heartbeat_timeout": 10.0, "group_commit_interval": 0.0,
        "request_timeout": 10.0, "segment_threshold": 1_048_576, "segment_retention": 3600.0,
    }  # fmt: skip


def test_each_option_has_its_environment_variable() -> None:
    given = options(
        OSQUEUE_STORAGE="memory:", OSQUEUE_HOST="::1", OSQUEUE_PORT="0", OSQUEUE_ADVERTISE="a:1",
        OSQUEUE_ALLOW_ORIGIN="https://a.example, https://b.example", OSQUEUE_READS_PER_MINUTE="600",
        OSQUEUE_WRITES_PER_MINUTE="60", OSQUEUE_WRITES_PER_DAY="5000", OSQUEUE_STORAGE_PROBE="no",
        OSQUEUE_STANDBY="yes", OSQUEUE_HTTP2="yes", OSQUEUE_LOG_LEVEL="WARNING", OSQUEUE_HEARTBEAT_TIMEOUT="60",
        OSQUEUE_MAX_ATTEMPTS="5", OSQUEUE_BROKER_HEARTBEAT_INTERVAL="6", OSQUEUE_BROKER_HEARTBEAT_TIMEOUT="20",
        OSQUEUE_GROUP_COMMIT_INTERVAL="0.5", OSQUEUE_REQUEST_TIMEOUT="30", OSQUEUE_SEGMENT_THRESHOLD="65536",
        OSQUEUE_SEGMENT_RETENTION="60",
    )  # fmt: skip
    assert given == {
        "storage": "memory:", "host": "::1", "port": 0, "advertise": "a:1",
        "allow_origin": ["https://a.example", "https://b.example"], "reads_per_minute": 600.0,
        "writes_per_minute": 60.0, "writes_per_day": 5000, "storage_probe": False, "standby": True, "http2": True,
        "log_level": "warning", "heartbeat_timeout": 60.0, "max_attempts": 5, "broker_heartbeat_interval": 6.0,
        "broker_heartbeat_timeout": 20.0, "group_commit_interval": 0.5,
        "request_timeout": 30.0, "segment_threshold": 65_536, "segment_retention": 60.0,
    }  # fmt: skip
    assert set(given) == set(options())


def test_the_command_line_counts_more_than_the_environment() -> None:
    given = options(
        "--port", "1", "--allow-origin", "https://c.example", "--allow-origin", "https://d.example", "--storage-probe",
        OSQUEUE_PORT="2", OSQUEUE_ALLOW_ORIGIN="https://a.example", OSQUEUE_STORAGE_PROBE="0",
    )  # fmt: skip
    assert (given["port"], given["storage_probe"]) == (1, True)
    assert given["allow_origin"] == ["https://c.example", "https://d.example"]


def test_an_empty_variable_is_one_that_is_not_set() -> None:
    assert options(OSQUEUE_PORT="", OSQUEUE_STORAGE=" ", OSQUEUE_ALLOW_ORIGIN="") == options()


@pytest.mark.parametrize(
    ("variable", "value"),
    [("PORT", "abc"), ("PORT", "65536"), ("STORAGE_PROBE", "maybe"), ("LOG_LEVEL", "loud"),
     ("WRITES_PER_MINUTE", "many"), ("MAX_ATTEMPTS", "2.5"), ("SEGMENT_THRESHOLD", "1.5")],
)  # fmt: skip
def test_a_wrong_variable_is_named(variable: str, value: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        options(**{f"OSQUEUE_{variable}": value})
    assert ended.value.code == 2
    told = capsys.readouterr().err
    assert f"OSQUEUE_{variable}" in told
    assert "convert" not in told  # Python's own words


def test_the_settings_are_those_of_the_options() -> None:
    given = ["--segment-threshold", "65536", "--segment-retention", "60", "--request-timeout", "20"]
    settings = _settings(_parser({}).parse_args(given))
    assert settings == BrokerSettings(segment_threshold=65_536, segment_retention=60.0, request_timeout=20.0)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["fsk", "file:./deep"],
         "'fsk file:./deep' is no option: `osqueue-broker --storage URL` runs a broker, "
         "`osqueue-broker fsck URL` checks a queue"),
        (["file:./deep"],
         "'file:./deep' is no option: `osqueue-broker --storage URL` runs a broker, "
         "`osqueue-broker fsck URL` checks a queue"),
        (["--storage", "memory:", "fsck"], "fsck comes first: `osqueue-broker fsck URL`"),
        (["--repair", "fsck", "file:./deep"], "fsck comes first: `osqueue-broker fsck URL`"),
        (["--bogus", "x"], "unrecognized arguments: --bogus x"),
    ],
)  # fmt: skip
def test_arguments_that_are_none_end_with_what_was_meant(
    arguments: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    told = capsys.readouterr()
    *usage, only = told.err.splitlines()
    assert (told.out, only) == ("", f"osqueue-broker: error: {line}")
    assert len(usage) == 2


def test_help_shows_the_subcommand_and_whole_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    help = capsys.readouterr().out
    usage = help.partition("\n\n")[0]
    assert "osqueue-broker fsck URL" in usage
    assert "osqueue-broker [--storage URL]" in usage
    assert "(default: 1048576)" in " ".join(help.split())


@pytest.mark.parametrize("port", ["-1", "65536", "70000", "99999999999", "x"])
def test_a_port_that_cannot_be_is_refused(port: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        options(f"--port={port}")
    assert "from 0 to 65535" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--advertise", "nonsense"], "osqueue-broker: ConfigError: advertise must be the host:port"),
        (
            ["--writes-per-minute", "5"],
            "osqueue-broker: ConfigError: broker_heartbeat_timeout is 10 s, but must be",
        ),
        (
            ["--heartbeat-timeout", "0"],
            "osqueue-broker: ConfigError: heartbeat_timeout must be more than 0 s",
        ),
        (["--storage", "ftp://x"], "osqueue-broker: ConfigError: the storage URL ftp://x is not right"),
    ],
)
def test_what_cannot_work_ends_with_one_line(
    arguments: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--storage", "memory:", "--port", "0", *arguments]) == 1
    [only] = capsys.readouterr().err.splitlines()
    assert only.startswith(line)


def test_a_port_in_use_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["--storage", "memory:", "--port", str(port)]) == 1
    [only] = capsys.readouterr().err.splitlines()
    assert only == (
        f"osqueue-broker: cannot listen on 127.0.0.1:{port}: Address already in use. "
        "Free it, or choose another port"
    )


def test_a_store_that_cannot_be_written_ends_the_start_and_says_why(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    ended = subprocess.run(
        [*COMMAND, "--port", "0", "--storage", f"file:{tmp_path}/file"],
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert (ended.returncode, ended.stdout) == (1, "")
    [only] = ended.stderr.splitlines()
    assert only.startswith("osqueue-broker: StorageBackendError: the store failed what is tried at start")
    assert "Not a directory" in only or "File exists" in only


@asynccontextmanager
async def running(*arguments: str) -> AsyncIterator[tuple[str, asyncio.subprocess.Process]]:
    process = await asyncio.create_subprocess_exec(
        *COMMAND, "--port", "0", *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(20):
            line = (await process.stdout.readline()).decode()
        yield line.removeprefix("Broker listening on ").strip(), process
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
            async with asyncio.timeout(10):
                await process.communicate()


async def test_a_throttled_broker_tells_its_counters() -> None:
    arguments = ("--storage", "memory:", "--writes-per-minute", "1200", "--reads-per-minute", "6000")
    async with running(*arguments) as (address, _), httpx.AsyncClient(base_url=f"http://{address}") as http:
        for _ in range(3):
            assert (await http.post("/v1/jobs", json={"payload": 1})).status_code == 200
        stats = (await http.get("/v1/throttle-stats")).json()
    assert stats.pop("totalWrites") >= 3 + 5  # the probe's, the takeover's, and those of the jobs
    assert stats.pop("totalReads") >= 2
    assert stats.pop("dailyWriteCount") >= 8
    assert set(stats) == {
        "throttling", "throttledReads", "throttledWrites", "totalReadDelayMs", "totalWriteDelayMs",
        "dailyBudgetExceeded",
    }  # fmt: skip
    assert stats["throttling"] is True
    assert stats["dailyBudgetExceeded"] is False


async def test_a_wildcard_host_is_warned_about_in_the_log() -> None:
    async with running("--storage", "memory:", "--host", "0.0.0.0") as (_, process):
        assert process.stderr is not None
        async with asyncio.timeout(10):
            line = json.loads(await process.stderr.readline())
    assert line["level"] == "warning"
    assert "without authentication" in line["event"]


def test_version(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("osqueue_broker.cli.version", lambda package: f"1.2.3 of {package}")
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == "osqueue-broker 1.2.3 of osqueue-broker\n"


def test_fsck_takes_the_queue_from_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OSQUEUE_STORAGE", f"file:{tmp_path}")
    assert main(["fsck"]) == 2
    assert "there is no queue document here" in capsys.readouterr().err
