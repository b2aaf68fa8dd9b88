"""How dbt runs here: its environment, and a manifest prepared once and not at every import."""

from __future__ import annotations

import fcntl
import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from telemetry_pipeline.config import load_config
from telemetry_pipeline.errors import TelemetryError
from telemetry_pipeline.paths import Project
from telemetry_pipeline.warehouse.client import Address


def dbt_environment(project: Project, address: Address | None) -> dict[str, str]:
    """The variables that profiles.yml reads; without an address, those that parsing needs."""
    environment = {
        "DBT_PROFILES_DIR": str(project.dbt_dir),
        "DBT_TARGET_PATH": str(project.dbt_target_dir),
        "DBT_LOG_PATH": str(project.data_dir / "dbt" / "logs"),
        "DBT_SEND_ANONYMOUS_USAGE_STATS": "false",
        "DBT_REPORTING_TIMEZONE": load_config(project.config_file).reporting.timezone,
    }
    if address is not None:
        environment |= {
            "DBT_CLICKHOUSE_HOST": address.host,
            "DBT_CLICKHOUSE_PORT": str(address.port),
            "DBT_CLICKHOUSE_USER": address.user,
            "DBT_CLICKHOUSE_PASSWORD": address.password,
            "DBT_CLICKHOUSE_SECURE": str(address.scheme == "https").lower(),
        }
    return environment


def dbt_executable() -> str:
    """The dbt of this environment, whatever PATH says."""
    return str(Path(sys.executable).parent / "dbt")


def ensure_manifest(project: Project) -> Path:
    """The path of a manifest that matches dbt_project/; parses only when the project changed.

    Several processes may ask at once: one parses, the others wait for it.
    """
    target = project.dbt_target_dir
    target.mkdir(parents=True, exist_ok=True)
    manifest, stamp = target / "manifest.json", target / "manifest.sources"
    environment = dbt_environment(project, None)
    # The time zone is a constant of the manifest: another one is another manifest.
    wanted = f"{_sources_hash(project.dbt_dir)} {environment['DBT_REPORTING_TIMEZONE']}"
    with _locked(target / "manifest.lock"):
        if manifest.exists() and stamp.exists() and stamp.read_text() == wanted:
            return manifest
        parsed = subprocess.run(
            [dbt_executable(), "parse", "--quiet", "--project-dir", str(project.dbt_dir)],
            env=os.environ | environment,
            capture_output=True,
            text=True,
            check=False,
        )
        if parsed.returncode != 0:
            lines = (parsed.stdout + parsed.stderr).strip().splitlines()
            raise TelemetryError("dbt_project/ does not parse: " + " ".join(lines)[-500:])
        stamp.write_text(wanted)
    return manifest


def _sources_hash(dbt_dir: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(dbt_dir.rglob("*")):
        if path.suffix in (".sql", ".yml", ".md", ".csv") and path.is_file():
            digest.update(str(path.relative_to(dbt_dir)).encode() + b"\n" + path.read_bytes())
    return digest.hexdigest()


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
