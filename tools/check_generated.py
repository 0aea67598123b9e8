"""Fails when the committed protobuf messages are not those that the .proto files give today."""

from __future__ import annotations

import filecmp
import os
import subprocess
import sys
import tempfile
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "packages" / "osqueue-client"
COMMITTED = PACKAGE / "src" / "osqueue_client" / "_generated"


def main() -> int:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path}
    for command in (["buf", "lint"], ["buf", "format", "--diff", "--exit-code"]):
        subprocess.run(command, cwd=PACKAGE, env=environment, check=True)
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["buf", "generate", "--output", folder], cwd=PACKAGE, env=environment, check=True)
        fresh = Path(folder) / "src" / "osqueue_client" / "_generated"
        names = sorted({p.relative_to(root) for root in (fresh, COMMITTED) for p in root.rglob("*.py")})
        stale = [
            str(name)
            for name in names
            if not ((fresh / name).exists() and (COMMITTED / name).exists())
            or not filecmp.cmp(fresh / name, COMMITTED / name, shallow=False)
        ]
    if stale:
        print(f"stale generated code: {', '.join(stale)}; run `make generate` and commit what it writes")
        return 1
    print(f"{len(names)} generated files are fresh")
    return 0


if __name__ == "__main__":
    sys.exit(main())
