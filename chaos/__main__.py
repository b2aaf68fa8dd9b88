"""`python -m chaos`: KILLS, SEED, SOURCE, EVENTS, ENCODING and BREAK come from the environment."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

import yaml

from chaos.edges import find_methods
from chaos.run import NotSettled, Outcome, Run
from chaos.sinks.base import Sink
from chaos.sinks.file import ChaosFile
from chaos.sinks.kafka import ChaosKafka
from chaos.sinks.redis import ChaosRedis
from telemetry_pipeline.catalog.reader import read_catalog
from telemetry_pipeline.demo.wire import EdgeIds
from telemetry_pipeline.errors import TelemetryError
from telemetry_pipeline.identity.keys import create_missing_keys, read_key
from telemetry_pipeline.paths import Project

REPOSITORY = Path(__file__).resolve().parent.parent
KINDS = ("file", "kafka", "redis")
#: From so many kills on, a run has room for every named edge.
ALL_EDGES_FROM = 80


def main() -> int:
    """Exit code: 0 when all is well, 1 when not, 2 for wrong usage, 3 when a part is missing."""
    kills = _number("KILLS", 100)
    seed = _number("SEED", 1)
    source = os.environ.get("SOURCE", "")
    if source not in ("", *KINDS):
        return _refuse(f"SOURCE={source} is not one of {', '.join(KINDS)}", 2)
    kinds = [source] if source else list(KINDS)
    fetched = subprocess.run([sys.executable, REPOSITORY / "services" / "fetch.py"], check=False)
    if fetched.returncode != 0:
        return _refuse("a service is missing (see above)", 3)
    signal.signal(signal.SIGTERM, _end)
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    keep = True
    try:
        find_methods()
        project = _make_project(folder)
        sinks = [_make_sink(kind, project) for kind in kinds]
        variables = _finish_project(project, sinks)
        run = Run(project, sinks, kills, seed, _number("EVENTS", 100_000), variables)
        outcome = run.play()
        failed = _report(run, outcome, kills)
        keep = bool(failed)
        print(json.dumps(outcome.figures), flush=True)
        return 1 if failed else 0
    except (NotSettled, TelemetryError) as error:
        return _refuse(str(error), 3)
    finally:
        if keep:
            print(f"chaos: everything is kept in {folder}", file=sys.stderr)
        else:
            shutil.rmtree(folder)


def _report(run: Run, outcome: Outcome, kills: int) -> list[str]:
    """Say what happened, line by line; returns why the run is a failure."""
    for what, times in run.failures().most_common():
        print(f"  {times} times: {what}")
    failed = [f"{records:,} records: {name}" for name, records in outcome.verdict.problems.items()]
    figures = outcome.figures
    for figure in ("lost", "duplicated"):
        if figures[figure]:
            failed.append(f"{figures[figure]:,} events {figure}")
    if figures["emitted"] < run.events_wanted:
        failed.append(f"only {figures['emitted']:,} events were emitted")
    if figures["kills_mid_slice"] * 2 <= figures["kills"]:
        failed.append("most kills missed the middle of a slice")
    if outcome.edges_missed and kills >= ALL_EDGES_FROM:
        failed.append(f"edges not met: {', '.join(outcome.edges_missed)}")
    failed += [f"control: {unnoticed}" for unnoticed in outcome.unnoticed]
    for reason in failed:
        print(f"FAILED: {reason}")
    for name, examples in outcome.verdict.examples.items():
        print(f"  {name}, for example: {', '.join(examples)}")
    return failed


def _make_project(folder: Path) -> Project:
    """The repository's policy under a root of its own, with fresh keys."""
    project = Project(root=folder / "project", data_dir=folder / "data")
    project.root.mkdir()
    project.sink_dir.mkdir(parents=True)
    shutil.copytree(REPOSITORY / "catalog", project.catalog_dir)
    create_missing_keys(project.keys_dir)
    os.environ.pop("CLICKHOUSE_URL", None)
    os.environ["TELEMETRY_ROOT"] = str(project.root)
    os.environ["TELEMETRY_DATA_DIR"] = str(project.data_dir)
    return project


def _finish_project(project: Project, sinks: Sequence[Sink]) -> dict[str, str]:
    """Write telemetry.yaml with these sources; returns the variables that workers need."""
    policy = yaml.safe_load((REPOSITORY / "telemetry.yaml").read_text(encoding="utf-8"))
    policy["sources"] = {sink.name: sink.settings for sink in sinks}
    project.config_file.write_text(yaml.safe_dump(policy), encoding="utf-8")
    variables = {"CHAOS_BREAK": os.environ.get("BREAK", "")}
    for sink in sinks:
        variables |= sink.variables
    return variables


def _make_sink(kind: str, project: Project) -> Sink:
    edge = read_key("edge", project.keys_dir)
    edge_ids = EdgeIds(edge.key_id, edge.secret)
    match kind:
        case "file":
            return ChaosFile(project.sink_dir, edge_ids)
        case "kafka":
            encoding = os.environ.get("ENCODING") or "otlp_proto"
            return ChaosKafka(project.data_dir / "kafka", edge_ids, encoding)
        case _:
            keys = {
                item.key: item.payload_key
                for item in read_catalog(project.catalog_dir).attributes
                if item.payload_key is not None
            }
            return ChaosRedis(project.data_dir / "redis", keys)


def _number(name: str, default: int) -> int:
    text = os.environ.get(name) or str(default)
    if not text.isdecimal() or int(text) < 1:
        raise SystemExit(_refuse(f"{name}={text} is not a positive number", 2))
    return int(text)


def _refuse(why: str, code: int) -> int:
    print(f"chaos: {why}", file=sys.stderr)
    return code


def _end(signal_number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + signal_number)


if __name__ == "__main__":
    sys.exit(main())
