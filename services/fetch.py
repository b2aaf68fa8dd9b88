"""Fetches and builds into .cache/services what the tests run for real: Collector, Kafka, Redis."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
SERVICES = REPOSITORY / ".cache" / "services"
COLLECTOR = REPOSITORY / "collector"
MANIFEST = COLLECTOR / "builder.yaml"
LOCKS = (COLLECTOR / "go.mod", COLLECTOR / "go.sum")
KAFKA_POM = REPOSITORY / "services" / "kafka" / "pom.xml"
BUILDER = "go.opentelemetry.io/collector/cmd/builder"
CORE = "go.opentelemetry.io/collector/otelcol"
BUILD_OPTIONS = ("-trimpath", "-ldflags=-s -w")
GO, JAVA, MAVEN = (1, 25), (17, 0), (3, 6)


class NotFetched(Exception):
    """A part could not be made; the text says what to do."""


@dataclass(frozen=True)
class Part:
    """Something to build: `make(work, target)` fills the folder `target` and may litter `work`.

    It is made again when a file of `pinned_by` has changed.
    """

    name: str
    pinned_by: tuple[Path, ...]
    make: Callable[[Path, Path], None]

    @property
    def folder(self) -> Path:
        return SERVICES / self.name

    @property
    def version(self) -> str:
        digest = hashlib.sha256()
        for path in self.pinned_by:
            digest.update(path.read_bytes() + b"\0")
        return digest.hexdigest()

    def is_there(self) -> bool:
        stamp = self.folder / "version"
        return stamp.exists() and stamp.read_text() == self.version

    def fetch(self) -> None:
        """Make it beside its place and move it there whole: nothing half-made is ever used."""
        work = SERVICES / f"{self.name}.making"
        shutil.rmtree(work, ignore_errors=True)
        target = work / "result"
        target.mkdir(parents=True)
        self.make(work, target)
        (target / "version").write_text(self.version)
        shutil.rmtree(self.folder, ignore_errors=True)
        target.rename(self.folder)
        shutil.rmtree(work)


def build_collector(work: Path, target: Path) -> None:
    source, variables = _generate_collector(work)
    for lock in LOCKS:
        shutil.copy(lock, source)
    _run(["go", "build", *BUILD_OPTIONS, "-o", str(target / "otelcol"), "."], source, variables)


def lock_collector(work: Path, target: Path) -> None:
    """Resolve the manifest anew into go.mod and go.sum.

    The builder would do that with `go mod tidy`, which also wants what the tests of every module
    need; some of that is not published.
    """
    source, variables = _generate_collector(work)
    text = MANIFEST.read_text()
    wanted = [*re.findall(r"(?m)^  - gomod: (.+)$", text), f"{CORE} {_collector_version()}"]
    lines = ["module product-telemetry/otelcol", "go 1.25", "require (", *wanted, ")", ""]
    (source / "go.mod").write_text("\n".join(lines))
    _run(
        ["go", "build", "-mod=mod", *BUILD_OPTIONS, "-o", str(target / "otelcol"), "."],
        source,
        variables,
    )
    for lock in LOCKS:
        shutil.copy(source / lock.name, lock)


def _generate_collector(work: Path) -> tuple[Path, dict[str, str]]:
    """The folder with the main program that the builder writes, and the variables to build it."""
    _require("go", ["go", "version"], r"go(\d+)\.(\d+)", GO, "Go 1.25 or newer")
    # Whatever Go compiles on the way stays in `work`; only its module cache is shared.
    variables = {
        "GOBIN": str(work / "bin"),
        "GOCACHE": str(work / "go-build"),
        "GOTMPDIR": str(work),
        "GOTOOLCHAIN": "local",
        "GOFLAGS": "-buildvcs=false",
        "CGO_ENABLED": "0",
    }
    _run(["go", "install", f"{BUILDER}@{_collector_version()}"], work, variables)
    generate = [str(work / "bin" / "builder"), "--skip-get-modules", "--skip-compilation"]
    _run([*generate, "--config", str(MANIFEST)], work, variables)
    return work / "otelcol-source", variables


def _collector_version() -> str:
    found = re.search(r"(?m)^  version: (\S+)$", MANIFEST.read_text())
    if found is None:
        raise NotFetched(f"{MANIFEST} has no version")
    return f"v{found[1]}"


def copy_kafka(work: Path, target: Path) -> None:
    _require("java", ["java", "-version"], r'version "(\d+)(?:\.(\d+))?', JAVA, "Java 17 or newer")
    _require("mvn", ["mvn", "--version"], r"Apache Maven (\d+)\.(\d+)", MAVEN, "Maven 3.6 or newer")
    command = ["mvn", "--quiet", "--batch-mode", "--file", str(KAFKA_POM)]
    command += [f"-Dmaven.repo.local={work / 'repository'}", f"-DoutputDirectory={target / 'libs'}"]
    _run([*command, "dependency:copy-dependencies"], work, {})


PARTS = (
    Part("otelcol", (MANIFEST, *LOCKS), build_collector),
    Part("kafka", (KAFKA_POM,), copy_kafka),
)
LOCKED = Part("otelcol", (MANIFEST, *LOCKS), lock_collector)


def main(arguments: list[str]) -> int:
    """Exit code: 0 when everything is there, 1 when a part could not be made, 2 for wrong usage."""
    if arguments not in ([], ["--lock"]):
        print("usage: fetch.py [--lock]", file=sys.stderr)
        return 2
    missing = [LOCKED] if arguments else [part for part in PARTS if not part.is_there()]
    failures = []
    for part in missing:
        print(f"{part.name}: fetching and building (once)", flush=True)
        began = time.monotonic()
        try:
            part.fetch()
        except NotFetched as failure:
            failures.append(f"{part.name}: {failure}")
        else:
            print(f"{part.name}: ready after {time.monotonic() - began:.0f} s", flush=True)
    if shutil.which("redis-server") is None:
        failures.append("redis: redis-server is not on PATH; apt-get install redis-server")
    for failure in failures:
        print(f"services: {failure}", file=sys.stderr)
    if not failures:
        print(f"services: {', '.join(part.name for part in PARTS)} and redis-server are there")
    return 1 if failures else 0


def _require(
    program: str, command: list[str], pattern: str, least: tuple[int, int], wanted: str
) -> None:
    """Refuse to begin without the tool: its own failure would come late and say less."""
    if shutil.which(program) is None:
        raise NotFetched(f"{program} is not on PATH; install {wanted}")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = re.search(pattern, done.stdout + done.stderr)
    if found is None:
        raise NotFetched(f"`{' '.join(command)}` does not say its version; install {wanted}")
    if (int(found[1]), int(found[2] or 0)) < least:
        raise NotFetched(f"{program} {found[1]}.{found[2] or 0} is too old; install {wanted}")


def _run(command: list[str], folder: Path, variables: Mapping[str, str]) -> None:
    """Run it quietly; what it said is shown when it fails."""
    log = folder / "log"
    with log.open("ab") as output:
        done = subprocess.run(
            command,
            cwd=folder,
            env=os.environ | dict(variables),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            check=False,
        )
    if done.returncode != 0:
        tail = log.read_text(errors="replace").splitlines()[-15:]
        name = Path(command[0]).name
        raise NotFetched(
            "\n  ".join([f"{name} failed ({done.returncode}), all of it in {log}:", *tail])
        )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
