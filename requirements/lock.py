"""Resolves pyproject.toml into the lock files, or says that they are stale.

The first line of each lock is a hash of what it was made from, so that the check needs no network.
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOCKS = {"dev.lock": ["--extra", "dev"], "runtime.lock": []}


def main() -> int:
    """Exit code 1: a lock is stale."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0] if __doc__ else None)
    parser.add_argument("--check", action="store_true", help="only compare, write nothing")
    if not parser.parse_args().check:
        write()
    stale = [name for name in LOCKS if first_line(name) != stamp()]
    if stale:
        print(f"{', '.join(stale)}: not made from this pyproject.toml; run `make lock`")
    return 1 if stale else 0


def stamp() -> str:
    """The first line of a lock made from pyproject.toml as it is now."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [
        project["requires-python"],
        project["dependencies"],
        project["optional-dependencies"],
    ]
    return f"# made from {hashlib.sha256(repr(wanted).encode()).hexdigest()[:32]}"


def first_line(name: str) -> str:
    return (ROOT / "requirements" / name).read_text().split("\n", 1)[0]


def write() -> None:
    """Resolve both; runtime.lock is dev.lock without the development tools, version for version."""
    for name, extra in LOCKS.items():
        target = ROOT / "requirements" / name
        constraint = ["-c", "requirements/dev.lock"] if name != "dev.lock" else []
        resolved = subprocess.run(
            [
                *(
                    Path(sys.executable).parent / "uv",
                    "pip",
                    "compile",
                    "pyproject.toml",
                    "--quiet",
                ),
                *("--universal", "--python-version", "3.11", "--generate-hashes"),
                *("--no-emit-index-url", "--no-annotate", "--no-header", *extra, *constraint),
            ],
            cwd=ROOT,
            check=True,
            capture_output=True,
            text=True,
        )
        target.write_text(f"{stamp()}\n{resolved.stdout}")


if __name__ == "__main__":
    sys.exit(main())
