"""Each wheel is whole, and says all that it needs: it can be installed alone."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from email.message import Message
from email.parser import BytesParser
from importlib.metadata import packages_distributions
from pathlib import Path
from zipfile import ZipFile

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("osqueue-storage", "osqueue-client", "osqueue-broker", "osqueue-worker")

# What a package needs though it does not import it, and why.
NEEDED_UNSEEN = {
    "osqueue-broker": {
        "httptools": "uvicorn's HTTP parser, which the listener chooses by its class",
        "websockets": "uvicorn loads it by the name 'websockets-sansio'",
    },
}

# Parts that are released with the whole, which pins them: to name the whole is enough.
PART_OF = {
    "pydantic-core": "pydantic",
    "protobuf-py-pure": "protobuf-py",
    "protobuf-py-ext": "protobuf-py",
    "botocore": "aiobotocore",
    "yarl": "aiohttp",
    "azure-core": "azure-identity",
}


class Wheel:
    """What stands in a wheel."""

    def __init__(self, path: Path) -> None:
        with ZipFile(path) as archive:
            self.files = {name: archive.read(name) for name in archive.namelist() if not name.endswith("/")}
        self.metadata: Message = BytesParser().parsebytes(self._info("METADATA"))
        self.module = path.name.partition("-")[0]

    def _info(self, name: str) -> bytes:
        [found] = [body for file, body in self.files.items() if file.endswith(f".dist-info/{name}")]
        return found

    @property
    def license(self) -> bytes:
        return self._info("licenses/LICENSE")

    @property
    def requires(self) -> set[str]:
        """The other distributions that it names, those of its extras too."""
        lines = self.metadata.get_all("Requires-Dist", [])
        names = {_normal(match[0]) for line in lines if (match := re.match(r"[\w.-]+", line))}
        return names - {_normal(self.module)}

    @property
    def imports(self) -> set[str]:
        """The modules of others that its own modules import anywhere, by their first name."""
        found: set[str] = set()
        for name, body in self.files.items():
            for node in ast.walk(ast.parse(body)) if name.endswith(".py") else ():
                if isinstance(node, ast.Import):
                    found |= {alias.name.partition(".")[0] for alias in node.names}
                elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
                    found.add(node.module.partition(".")[0])
        return found - sys.stdlib_module_names - {self.module}


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Wheel]:
    """The wheels of all packages, built as they are installed: without isolation, and from nothing else."""
    folder = tmp_path_factory.mktemp("wheels")
    paths = os.pathsep.join(
        (str(Path(sys.executable).parent), os.environ["PATH"])
    )  # uv-build is a program, too
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check"),
            *("--no-deps", "--no-index", "--no-build-isolation", "--wheel-dir", str(folder)),
            *(str(ROOT / "packages" / name) for name in PACKAGES),
        ],
        check=True,
        timeout=60,
        env=os.environ | {"PATH": paths},
    )
    made = {_normal(path.name.partition("-")[0]): Wheel(path) for path in folder.iterdir()}
    assert sorted(made) == sorted(PACKAGES)
    return made


@pytest.mark.parametrize("name", PACKAGES)
def test_a_wheel_holds_its_package_its_types_and_its_licence_and_nothing_else(
    wheels: dict[str, Wheel], name: str
) -> None:
    wheel = wheels[name]
    source = ROOT / "packages" / name / "src"
    expected = {
        path.relative_to(source).as_posix()
        for path in source.rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    assert f"{wheel.module}/py.typed" in expected
    assert {file for file in wheel.files if ".dist-info/" not in file} == expected
    assert wheel.license == (ROOT / "LICENSE").read_bytes()


@pytest.mark.parametrize("package", PACKAGES)
def test_a_wheel_names_exactly_what_it_imports(wheels: dict[str, Wheel], package: str) -> None:
    wheel = wheels[package]
    distributions = dict(packages_distributions()) | {_module(package): [package] for package in PACKAGES}
    imported: set[str] = set()
    for module in wheel.imports:
        assert module in distributions, f"{module} belongs to no distribution that is installed"
        imported |= {PART_OF.get(name := _normal(found), name) for found in distributions[module]}
    assert wheel.requires == imported | set(NEEDED_UNSEEN.get(package, ()))


@pytest.mark.parametrize("name", PACKAGES)
def test_a_wheel_says_what_it_is(wheels: dict[str, Wheel], name: str) -> None:
    metadata = wheels[name].metadata
    assert metadata["Name"] == name
    assert metadata["License-Expression"] == "MIT"
    assert metadata["Requires-Python"] == ">=3.11"
    assert metadata["Summary"]
    assert name in str(metadata.get_payload())  # the README
    assert "Typing :: Typed" in metadata.get_all("Classifier", [])


def test_the_four_have_one_version_and_need_each_other_at_it(wheels: dict[str, Wheel]) -> None:
    [version] = {wheel.metadata["Version"] for wheel in wheels.values()}
    ladder = {
        name: {line for line in wheel.metadata.get_all("Requires-Dist", []) if line.startswith("osqueue")}
        for name, wheel in wheels.items()
    }
    client, storage = f"osqueue-client=={version}", f"osqueue-storage=={version}"
    assert ladder == {
        "osqueue-storage": set(),
        "osqueue-client": {storage},
        "osqueue-broker": {storage, client}
        | {f"osqueue-storage[{extra}]=={version} ; extra == '{extra}'" for extra in ("s3", "gcs", "azure")},
        "osqueue-worker": {client},
    }


def test_the_broker_brings_its_command(wheels: dict[str, Wheel]) -> None:
    points = wheels["osqueue-broker"]._info("entry_points.txt").decode()
    assert "osqueue-broker = osqueue_broker.cli:main" in points


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _module(package: str) -> str:
    return package.replace("-", "_")
