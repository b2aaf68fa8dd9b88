"""Events as OTLP/JSON, OTLP protobuf and ProductTelemetryBatch."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import KeyValue

from chaos.events import ROUTE, SCHEMA_VERSION, Event, Fate, Value
from telemetry_pipeline.demo.wire import EdgeIds

NS_PER_MS = 1_000_000
#: Attribute of the catalogue -> its key in a batch's payload.
PayloadKeys = Mapping[str, str]


def attributes_of(event: Event, edge_ids: EdgeIds) -> dict[str, Value]:
    """The record's attributes; ids hashed as the edge would."""
    return {
        "event.id": event.event_id,
        "consent.analytics": "denied" if event.fate is Fate.DENIED else "granted",
        "organisation.id": edge_ids("organisation", event.organisation),
        "enduser.pseudo.id": edge_ids("user", event.user),
        "session.id": edge_ids("session", event.session),
        "url.template": ROUTE,
        **event.payload,
    }


def by_service(batch: Sequence[Event]) -> dict[str, list[Event]]:
    grouped = defaultdict(list)
    for event in batch:
        grouped[event.service].append(event)
    return grouped


def otlp_json(batch: Sequence[Event], edge_ids: EdgeIds) -> bytes:
    """One export request in one line, without its newline."""
    resource_logs = [
        {
            "resource": {"attributes": [_pair("service.name", service)]},
            "scopeLogs": [{"logRecords": [_record(event, edge_ids) for event in events]}],
        }
        for service, events in by_service(batch).items()
    ]
    return json.dumps({"resourceLogs": resource_logs}, separators=(",", ":")).encode()


def _record(event: Event, edge_ids: EdgeIds) -> dict[str, Any]:
    return {
        "timeUnixNano": str(event.time_ms * NS_PER_MS),
        "eventName": event.name,
        "attributes": [_pair(key, v) for key, v in attributes_of(event, edge_ids).items()],
    }


def _pair(key: str, value: Value) -> dict[str, Any]:
    if isinstance(value, bool):
        return {"key": key, "value": {"boolValue": value}}
    if isinstance(value, int):
        return {"key": key, "value": {"intValue": str(value)}}
    return {"key": key, "value": {"stringValue": value}}


def otlp_proto(batch: Sequence[Event], edge_ids: EdgeIds) -> ExportLogsServiceRequest:
    """The same as a protobuf export request."""
    request = ExportLogsServiceRequest()
    for service, events in by_service(batch).items():
        resource_logs = request.resource_logs.add()
        _set(resource_logs.resource.attributes.add(), "service.name", service)
        records = resource_logs.scope_logs.add().log_records
        for event in events:
            record = records.add(time_unix_nano=event.time_ms * NS_PER_MS, event_name=event.name)
            for key, value in attributes_of(event, edge_ids).items():
                _set(record.attributes.add(), key, value)
    return request


def _set(pair: KeyValue, key: str, value: Value) -> None:
    pair.key = key
    if isinstance(value, bool):
        pair.value.bool_value = value
    elif isinstance(value, int):
        pair.value.int_value = value
    else:
        pair.value.string_value = value


def batches_of(
    batch: Sequence[Event], payload_keys: PayloadKeys
) -> Iterator[tuple[str, dict[str, Any]]]:
    """(organisation, ProductTelemetryBatch) with raw ids: consent is said once for a batch."""
    grouped = defaultdict(list)
    for event in batch:
        denied = event.fate is Fate.DENIED
        grouped[event.organisation, event.user, event.session, event.service, denied].append(event)
    for (organisation, user, session, service, denied), events in grouped.items():
        yield (
            organisation,
            {
                "schemaVersion": SCHEMA_VERSION,
                "source": service,
                "sentAt": _timestamp(max(event.time_ms for event in events)),
                "sessionId": session,
                "anonymousUserId": user,
                "consent": {"analytics": "denied" if denied else "granted"},
                "events": [_event(event, payload_keys) for event in events],
            },
        )


def _event(event: Event, payload_keys: PayloadKeys) -> dict[str, Any]:
    return {
        "eventId": event.event_id,
        "name": event.name,
        "occurredAt": _timestamp(event.time_ms),
        "routePattern": ROUTE,
        "payload": {payload_keys[key]: value for key, value in event.payload.items()},
    }


def _timestamp(time_ms: int) -> str:
    at = datetime.fromtimestamp(time_ms // 1000, UTC)
    return f"{at:%Y-%m-%dT%H:%M:%S}.{time_ms % 1000:03}Z"
