"""`make services` on a machine that lacks the tools says which part wants what."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from fresh import REPOSITORY


def test_without_go_java_and_redis_each_part_says_what_to_install(tmp_path: Path) -> None:
    for folder in ("services", "collector"):
        shutil.copytree(REPOSITORY / folder, tmp_path / folder)

    done = subprocess.run(
        [sys.executable, str(tmp_path / "services" / "fetch.py")],
        env={"PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "services: otelcol: go is not on PATH; install Go 1.25 or newer",
        "services: kafka: java is not on PATH; install Java 17 or newer",
        "services: redis: redis-server is not on PATH; apt-get install redis-server",
    ]
    assert not (tmp_path / ".cache" / "services" / "otelcol").exists(), "no part is half there"
