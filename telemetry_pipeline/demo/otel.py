"""The OpenTelemetry SDK of the demo: log records in, lines of OTLP/JSON out."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

from opentelemetry._logs import LogRecord, SeverityNumber
from opentelemetry.exporter.otlp.json.common._log_encoder import encode_logs
from opentelemetry.sdk._logs import (
    LoggerProvider,
    LogRecordProcessor,
    ReadableLogRecord,
    ReadWriteLogRecord,
)
from opentelemetry.sdk._logs.export import LogRecordExporter, LogRecordExportResult
from opentelemetry.sdk.resources import Resource

from telemetry_pipeline.demo.behaviour import BACK_END, FRONT_END
from telemetry_pipeline.demo.wire import Delivery

_SCOPE = "telemetry-demo"


class LineExporter(LogRecordExporter):
    """Encodes each batch with the official OTLP/JSON encoder and hands it on as one line."""

    def __init__(self, write: Callable[[bytes], None]) -> None:
        self._write = write

    def export(self, batch: Sequence[ReadableLogRecord]) -> LogRecordExportResult:
        # Compact, as the Collector writes it; the encoder's own to_json() leaves spaces in.
        document = encode_logs(batch).to_dict()
        self._write(json.dumps(document, separators=(",", ":")).encode())
        return LogRecordExportResult.SUCCESS

    def shutdown(self) -> None:
        """Nothing is held back."""

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return True


class BatchOnDemand(LogRecordProcessor):
    """Collects records until force_flush(), which exports them as one batch.

    The SDK's BatchLogRecordProcessor exports from a thread, on a timer, and discards what its
    queue cannot hold: the same seed would not give the same lines.
    """

    def __init__(self, exporter: LogRecordExporter) -> None:
        self._exporter = exporter
        self._batch: list[ReadableLogRecord] = []

    def on_emit(self, log_record: ReadWriteLogRecord) -> None:
        self._batch.append(
            ReadableLogRecord(
                log_record=log_record.log_record,
                resource=log_record.resource or Resource.get_empty(),
                instrumentation_scope=log_record.instrumentation_scope,
                limits=log_record.limits,
            )
        )

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        if self._batch:
            self._exporter.export(self._batch)
            self._batch = []
        return True

    def shutdown(self) -> None:
        self.force_flush()


class Telemetry:
    """The SDK of both services over one batch, as a Collector in front of them would merge it.

    `write` receives one line (without its newline) for each flush().
    """

    def __init__(self, write: Callable[[bytes], None]) -> None:
        self._processor = BatchOnDemand(LineExporter(write))
        self._loggers = {
            service: self._provider(service).get_logger(_SCOPE) for service in (FRONT_END, BACK_END)
        }

    def _provider(self, service: str) -> LoggerProvider:
        provider = LoggerProvider(Resource({"service.name": service}), shutdown_on_exit=False)
        provider.add_log_record_processor(self._processor)
        return provider

    def emit(self, delivery: Delivery) -> None:
        self._loggers[delivery.service].emit(
            LogRecord(
                timestamp=delivery.time_ns,
                observed_timestamp=delivery.delivered_ns,
                severity_number=SeverityNumber.INFO,
                body=delivery.body,
                attributes=delivery.attributes,
                event_name=delivery.name,
            )
        )

    def flush(self) -> None:
        """Export what was emitted since the last flush, if anything, as one line."""
        self._processor.force_flush()
