"""The real parts the benchmark needs, fetched when they are not in .cache/ yet."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from bench.ingest.warehouse import REPOSITORY, BenchError

CACHE = REPOSITORY / ".cache" / "bench"
ROTEL_LOCK = Path(__file__).with_name("rotel.lock")


def fetch_services() -> None:
    """The Collector and Kafka, as the tests use them. Raises BenchError when one is missing."""
    done = subprocess.run(
        [sys.executable, str(REPOSITORY / "services" / "fetch.py")],
        stdout=sys.stderr,
        check=False,
    )
    if done.returncode != 0:
        raise BenchError("a service is missing; what to install stands above")


def fetch_rotel() -> Path:
    """The agent of rotel's wheel, from an environment of its own. Raises BenchError."""
    environment = CACHE / "rotel"
    stamp = environment / "rotel.lock"
    if not (stamp.exists() and stamp.read_text() == ROTEL_LOCK.read_text()):
        print("rotel: fetching (once)", file=sys.stderr, flush=True)
        _call([sys.executable, "-m", "venv", "--clear", str(environment)])
        pip = [str(environment / "bin" / "python"), "-m", "pip", "--disable-pip-version-check"]
        only = ["--quiet", "--no-deps", "--require-hashes", "--only-binary", ":all:"]
        _call([*pip, "install", *only, "--requirement", str(ROTEL_LOCK)])
        stamp.write_text(ROTEL_LOCK.read_text())
    found = sorted(environment.glob("lib/python3*/site-packages/rotel/rotel-agent"))
    if not found:
        raise BenchError(f"rotel's wheel holds no agent in {environment}; remove it and try again")
    agent = found[0]
    agent.chmod(0o755)
    version = subprocess.run([str(agent), "version"], capture_output=True, text=True, check=False)
    if version.returncode != 0:
        raise BenchError(f"rotel does not run on this machine: {version.stderr.strip()[:500]}")
    return agent


def _call(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        tail = (done.stdout + done.stderr).strip().splitlines()[-5:]
        raise BenchError("\n  ".join(["rotel cannot be fetched:", *tail]))
