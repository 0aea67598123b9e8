"""`registry_usage.py` holds what type checkers must refuse: an `ignore` that is not needed is an error, too."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

USAGE = Path(__file__).with_name("registry_usage.py")


def test_mypy_finds_exactly_the_expected_errors(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--warn-unused-ignores", "--config-file", "",
         "--cache-dir", str(tmp_path), str(USAGE)],
        capture_output=True, text=True, timeout=55,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def test_pyright_finds_exactly_the_expected_errors(tmp_path: Path) -> None:
    settings = tmp_path / "pyrightconfig.json"
    settings.write_text(
        json.dumps(
            {
                "include": [str(USAGE)],
                "extraPaths": [path for path in sys.path if path],
                "typeCheckingMode": "standard",
                "enableTypeIgnoreComments": True,
                "reportUnnecessaryTypeIgnoreComment": "error",
            }
        )
    )
    done = subprocess.run(
        [sys.executable, "-m", "basedpyright", "--project", str(settings)],
        capture_output=True, text=True, timeout=55,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
