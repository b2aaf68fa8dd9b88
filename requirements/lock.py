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
    parser.add_argument("--upgrade", action="store_true", help="the newest versions of everything")
    arguments = parser.parse_args()
    if not arguments.check:
        write(upgrade=arguments.upgrade)
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


def write(*, upgrade: bool) -> None:
    """Resolve both; runtime.lock is dev.lock without the development tools, version for version.

    What is locked stays as it is unless `upgrade`: a new dependency should bring itself alone.
    """
    for name, extra in LOCKS.items():
        target = ROOT / "requirements" / name
        constraint = ["-c", "requirements/dev.lock"] if name != "dev.lock" else []
        subprocess.run(
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
                *("--output-file", str(target), *(["--upgrade"] if upgrade else [])),
            ],
            cwd=ROOT,
            check=True,
            stdout=subprocess.DEVNULL,
        )
        target.write_text(f"{stamp()}\n{target.read_text()}")


if __name__ == "__main__":
    sys.exit(main())
