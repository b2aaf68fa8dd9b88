"""One export asset for each destination of telemetry.yaml."""

from contextlib import closing
from datetime import timedelta

import dagster as dg

from telemetry_pipeline.assets.raw import EVENTS
from telemetry_pipeline.config import (
    AmplitudeDestination,
    Config,
    is_enabled,
    load_config,
    resolve,
    resolve_endpoint,
)
from telemetry_pipeline.destinations.amplitude import ENDPOINTS, Amplitude, AmplitudeSettings
from telemetry_pipeline.destinations.export import amplitude_due, export_once
from telemetry_pipeline.destinations.outbox import accepted_in_total
from telemetry_pipeline.errors import TelemetryError
from telemetry_pipeline.identity.keys import read_key
from telemetry_pipeline.paths import Project, find_project
from telemetry_pipeline.warehouse.client import connect

AMPLITUDE = dg.AssetKey(["exports", "amplitude"])


class ExportConfig(dg.Config):
    """`max_seconds` bounds one run; what is left stays due and goes with the next."""

    max_seconds: float = 300.0


@dg.asset(
    key=AMPLITUDE,
    deps=[EVENTS],
    group_name="exports",
    description=(
        "Allowlisted events at Amplitude, each exactly once by its insert_id, under ids that only "
        "this destination knows. Off unless telemetry.yaml enables the destination."
    ),
    owners=["team:growth"],
    kinds={"amplitude"},
    freshness_policy=dg.FreshnessPolicy.time_window(fail_window=timedelta(days=1)),
)
def amplitude(
    context: dg.AssetExecutionContext, config: ExportConfig
) -> dg.MaterializeResult[None]:
    """Sends what is due and records what came of it."""
    project = find_project()
    policy = load_config(project.config_file)
    name, destination = _amplitude_destination(policy)
    if destination is None or not is_enabled(destination.enabled, project.root):
        context.log.info("amplitude is not enabled in telemetry.yaml: nothing was sent")
        return dg.MaterializeResult(metadata={"enabled": False, "sent": 0})
    globs = policy.allowlist(name)
    with (
        closing(connect(project, log_comment=context.run_id)) as client,
        Amplitude(_settings(project, destination)) as service,
    ):
        report = export_once(
            client,
            service,
            name=name,
            globs=globs,
            insert_key=read_key("amplitude", project.keys_dir).secret,
        )
        total = amplitude_due(client, name, globs)
    return dg.MaterializeResult(
        metadata={
            "enabled": True,
            "due": report.due,
            "sent": report.sent,
            "resent": report.resent,
            "accepted": report.accepted,
            "refused": dg.MetadataValue.json(dict(report.refused)),
            "withheld": dg.MetadataValue.json(dict(report.withheld)),
            "waiting": report.waiting,
            "requests": report.requests,
            "bytes": report.bytes,
            "due_in_total": total,
            "stopped": report.stopped or "",
        }
    )


@dg.asset_check(
    asset=AMPLITUDE,
    description="Nothing that is due waits: no run stopped early, all of it is taken.",
)
def amplitude_is_up_to_date() -> dg.AssetCheckResult:
    """Passes when the outbox holds nothing unsent; a disabled destination owes nothing."""
    project = find_project()
    policy = load_config(project.config_file)
    name, destination = _amplitude_destination(policy)
    if destination is None or not is_enabled(destination.enabled, project.root):
        return dg.AssetCheckResult(passed=True, metadata={"enabled": False})
    with closing(connect(project)) as client:
        due = amplitude_due(client, name, policy.allowlist(name))
        waiting = due - accepted_in_total(client, name)
    return dg.AssetCheckResult(
        passed=waiting == 0,
        severity=dg.AssetCheckSeverity.WARN,
        metadata={"enabled": True, "waiting": waiting},
    )


def _amplitude_destination(policy: Config) -> tuple[str, AmplitudeDestination | None]:
    for name, destination in policy.destinations.items():
        if destination.kind == "amplitude":
            return name, destination
    return "amplitude", None


def _settings(project: Project, destination: AmplitudeDestination) -> AmplitudeSettings:
    api_key = resolve(destination.api_key, project.root)
    if not api_key:
        raise TelemetryError(
            f"telemetry.yaml: destinations.amplitude.api_key: {destination.api_key} is not set"
        )
    return AmplitudeSettings(
        endpoint=resolve_endpoint(destination.endpoint, project.root, ENDPOINTS["us"]),
        api_key=api_key,
        events_per_second=destination.events_per_second,
    )
