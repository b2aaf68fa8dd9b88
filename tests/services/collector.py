"""The OpenTelemetry Collector with an OTLP/HTTP receiver and the exporters that a test wants."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import yaml

from services.process import SERVICES, Service, free_port


class Collector(Service):
    """`logs_url` takes OTLP/JSON and answers 200 once every exporter has written it."""

    def __init__(self, folder: Path, exporters: Mapping[str, Any]) -> None:
        port = free_port()
        config = {
            "receivers": {"otlp": {"protocols": {"http": {"endpoint": f"127.0.0.1:{port}"}}}},
            "exporters": exporters,
            "service": {
                "telemetry": {"metrics": {"level": "none"}},
                "pipelines": {"logs": {"receivers": ["otlp"], "exporters": list(exporters)}},
            },
        }
        file = folder / "collector.yaml"
        file.write_text(yaml.safe_dump(config))
        self.logs_url = f"http://127.0.0.1:{port}/v1/logs"
        binary = SERVICES / "otelcol" / "otelcol"
        super().__init__(
            [str(binary), "--config", str(file)], folder / "collector.log", self._takes_logs
        )

    def _takes_logs(self) -> bool:
        try:
            answer = httpx.post(self.logs_url, json={"resourceLogs": []}, trust_env=False)
        except httpx.HTTPError:
            return False
        return answer.status_code == 200


@contextmanager
def running_collector(folder: Path, exporters: Mapping[str, Any]) -> Iterator[Collector]:
    collector = Collector(folder, exporters)
    collector.start()
    try:
        yield collector
    finally:
        collector.stop()
