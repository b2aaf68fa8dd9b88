"""Every mistake in telemetry.yaml is one line: file, line, field, and what to do."""

from __future__ import annotations

from pathlib import Path

import pytest
from fresh import REPOSITORY

from telemetry_pipeline.catalog.publish import check_reporting
from telemetry_pipeline.catalog.reader import read_catalog
from telemetry_pipeline.config import (
    KafkaSource,
    as_policy,
    is_enabled,
    load_config,
    resolve,
    resolve_endpoint,
)
from telemetry_pipeline.errors import PolicyError, TelemetryError
from telemetry_pipeline.paths import Project
from telemetry_pipeline.sources.kafka_settings import read_connection
from telemetry_pipeline.yaml_document import load_yaml

POLICY = """\
sources:
  app_events:
    kind: otel_file
    path: .data/sink/events.jsonl
consent:
  absent: drop
retention:
  raw_days: 180
  dead_letter_days: 14
reporting:
  timezone: UTC
  features:
    change_requests:
      adopted_by: [change_request.created]
      enabled_flag: flagChangeRequests
routing:
  - events: ["change_request.*"]
    to: [amplitude]
destinations:
  amplitude:
    kind: amplitude
    enabled: env:AMPLITUDE_ENABLED
    endpoint: env:AMPLITUDE_ENDPOINT
    api_key: env:AMPLITUDE_API_KEY
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "telemetry.yaml"
    path.write_text(POLICY)
    return path


def test_the_repositorys_own_policy_is_read_and_fits_its_catalogue() -> None:
    config = load_config(REPOSITORY / "telemetry.yaml")

    assert config.consent.absent == "drop"
    assert list(config.sources) == ["app_events"]
    check_reporting(
        Project(REPOSITORY, REPOSITORY / ".data"), config, read_catalog(REPOSITORY / "catalog")
    )


def test_nothing_is_routed_that_is_not_named(file: Path) -> None:
    config = load_config(file)

    assert config.allowlist("amplitude") == ("change_request.*",)
    assert config.allowlist("another") == ()


def test_only_sources_are_required(file: Path) -> None:
    file.write_text(POLICY[: POLICY.index("consent:")])

    config = load_config(file)

    assert (config.consent.absent, config.retention.raw_days) == ("drop", 180)
    assert (config.routing, dict(config.destinations)) == ([], {})


#: name: (what stands there, what stands there instead, line and field, the problem)
MISTAKES = {
    "an empty file": (POLICY, "", "1", "must be a mapping with sources"),
    "a list": (POLICY, "- sources\n", "1", "must be a mapping with sources"),
    "a tab": ("  absent: drop", "\tabsent: drop", "6", "is not valid YAML"),
    "a key twice": (
        "  absent: drop\n",
        "  absent: drop\n  absent: accept\n",
        "7: consent.absent",
        "stands twice; remove one of the two",
    ),
    "an unknown section": ("consent:", "consents:", "5: consents", "is not a setting"),
    "an unknown setting": ("absent: drop", "missing: drop", "6: consent.missing", "is not a"),
    "no sources": (POLICY[: POLICY.index("consent")], "", "1: sources", "is missing"),
    "sources that are empty": (
        POLICY[: POLICY.index("consent")],
        "sources: {}\n",
        "1: sources",
        "Dictionary should have at least 1 item",
    ),
    "a source's name in capitals": ("  app_events:", "  AppEvents:", "2: sources.AppEvents", ""),
    "an unknown kind": (
        "otel_file",
        "rabbit",
        "3: sources.app_events.kind",
        "must be one of 'otel_file'",
    ),
    "no path": (
        "    path: .data/sink/events.jsonl\n",
        "",
        "2: sources.app_events.path",
        "is missing",
    ),
    "an empty path": (".data/sink/events.jsonl", '""', "4: sources.app_events.path", "String"),
    "a Redis address in clear": (
        "    kind: otel_file\n    path: .data/sink/events.jsonl\n",
        "    kind: redis_stream\n    url: redis://:s3cret@cache:6379/0\n",
        "4: sources.app_events.url",
        "must be a reference, env:NAME or file:PATH, never the value itself",
    ),
    "a Redis prefix with a colon": (
        "    kind: otel_file\n    path: .data/sink/events.jsonl\n",
        "    kind: redis_stream\n    url: env:REDIS_URL\n    prefix: 'product:telemetry'\n",
        "5: sources.app_events.prefix",
        "String should match pattern",
    ),
    "a Redis group without a name": (
        "    kind: otel_file\n    path: .data/sink/events.jsonl\n",
        "    kind: redis_stream\n    url: env:REDIS_URL\n    group: ''\n",
        "5: sources.app_events.group",
        "String should have at least 1 character",
    ),
    "an unknown choice": ("absent: drop", "absent: keep", "6: consent.absent", "Input should be"),
    "days as text": ("raw_days: 180", 'raw_days: "180"', "8: retention.raw_days", "Input should"),
    "days as a fraction": ("raw_days: 180", "raw_days: 1.5", "8: retention.raw_days", "Input sh"),
    "too few days": ("raw_days: 180", "raw_days: 1", "8: retention.raw_days", "Input should be gr"),
    "too many days": ("raw_days: 180", "raw_days: 9999", "8: retention.raw_days", "Input should"),
    "a time zone that is none": (
        "timezone: UTC",
        "timezone: Mars/Olympus",
        "11: reporting.timezone",
        "is not an IANA time zone such as Europe/Berlin",
    ),
    "a time zone that is a path": (
        "timezone: UTC",
        "timezone: ../../etc/passwd",
        "11: reporting.timezone",
        "is not an IANA time zone",
    ),
    "a time zone that is a folder": (
        "timezone: UTC",
        "timezone: Europe",
        "11: reporting.timezone",
        "is not an IANA time zone",
    ),
    "a feature without events": (
        "[change_request.created]",
        "[]",
        "14: reporting.features.change_requests.adopted_by",
        "List should have at least 1 item",
    ),
    "a route to nowhere": (
        "to: [amplitude]",
        "to: [posthog]",
        "18: routing.0.to",
        "no destination named posthog (there are: amplitude)",
    ),
    "a route without events": (
        '["change_request.*"]',
        "[]",
        "17: routing.0.events",
        "List should have at least 1 item",
    ),
    "a secret in clear": (
        "env:AMPLITUDE_API_KEY",
        "0123456789abcdef",
        "24: destinations.amplitude.api_key",
        "must be a reference, env:NAME or file:PATH, never the value itself",
    ),
    "no secret": (
        "    api_key: env:AMPLITUDE_API_KEY\n",
        "",
        "20: destinations.amplitude.api_key",
        "is missing",
    ),
    "enabled by text": (
        "env:AMPLITUDE_ENABLED",
        "sometimes",
        "22: destinations.amplitude.enabled",
        "",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_with_its_place(file: Path, mistake: str) -> None:
    old, new, place, problem = MISTAKES[mistake]
    assert POLICY.count(old) == 1
    file.write_text(POLICY.replace(old, new))

    with pytest.raises(PolicyError) as caught:
        load_config(file)

    assert str(caught.value).startswith(f"telemetry.yaml:{place}: {problem}")
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


def test_a_secret_in_clear_is_not_repeated_in_the_message(file: Path) -> None:
    file.write_text(POLICY.replace("env:AMPLITUDE_API_KEY", "0123456789abcdef"))

    with pytest.raises(PolicyError) as caught:
        load_config(file)

    assert "0123456789abcdef" not in str(caught.value)


def test_a_missing_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match=r"telemetry\.yaml: not found in"):
        load_config(tmp_path / "telemetry.yaml")


def test_a_folder_instead_of_a_file_is_said(tmp_path: Path) -> None:
    (tmp_path / "telemetry.yaml").mkdir()

    with pytest.raises(PolicyError, match=r"telemetry\.yaml: cannot be read: Is a directory"):
        load_config(tmp_path / "telemetry.yaml")


@pytest.mark.parametrize("content", [b"\x00", b"a: *nowhere\n", b"a: &a [*a]\n", b"a: !!set {x}\n"])
def test_strange_yaml_is_said(file: Path, content: bytes) -> None:
    file.write_bytes(content)

    with pytest.raises(PolicyError, match=r"telemetry\.yaml"):
        load_config(file)


def test_a_value_knows_its_line(file: Path) -> None:
    document = load_yaml(file)

    assert document.line(("routing", 0, "to", 0)) == 18
    assert document.line(("retention", "raw_days")) == 8
    assert document.line(("retention", "no_such", "thing")) == 7, "else its nearest parent's"


def test_a_feature_of_an_unknown_event_is_said(file: Path) -> None:
    file.write_text(POLICY.replace("[change_request.created]", "[change_request.opened]"))

    with pytest.raises(
        PolicyError, match=r"change_requests\.adopted_by: change_request\.opened is"
    ):
        check_reporting(
            Project(file.parent, file.parent),
            load_config(file),
            read_catalog(REPOSITORY / "catalog"),
        )


def test_what_changes_the_outcome_of_ingest_changes_the_policy(file: Path) -> None:
    before = as_policy(load_config(file))
    for old, new in (("absent: drop", "absent: accept"), ("180", "90"), ("UTC", "Europe/Berlin")):
        file.write_text(POLICY.replace(old, new))
        assert as_policy(load_config(file)) != before
    file.write_text(POLICY.replace("to: [amplitude]", "to: [amplitude, amplitude]"))
    assert as_policy(load_config(file)) == before


def test_references_are_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_NAME", "value")
    monkeypatch.delenv("NO_NAME", raising=False)
    (tmp_path / "secret").write_text("from a file\n")

    assert resolve("env:SOME_NAME", tmp_path) == "value"
    assert resolve("env:NO_NAME", tmp_path) is None
    assert resolve("file:secret", tmp_path) == "from a file"
    assert resolve("file:nothing", tmp_path) is None
    with pytest.raises(TelemetryError, match=r"^\.: cannot be read"):
        resolve("file:.", tmp_path)


@pytest.mark.parametrize(
    ("value", "enabled"),
    [("1", True), ("true", True), ("ON", True), ("0", False), ("", False), ("maybe", False)],
)
def test_a_destination_is_enabled_by_a_reference(
    value: str, enabled: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SWITCH", value)

    assert is_enabled("env:SWITCH", tmp_path) == enabled
    assert is_enabled("env:NO_SWITCH", tmp_path) is False


def test_an_endpoint_is_an_address_or_a_reference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ENDPOINT", "http://there")

    assert resolve_endpoint("http://here", tmp_path, "http://default") == "http://here"
    assert resolve_endpoint("env:ENDPOINT", tmp_path, "http://default") == "http://there"
    assert resolve_endpoint("env:NO_ENDPOINT", tmp_path, "http://default") == "http://default"


KAFKA = """\
sources:
  kafka_events:
    kind: kafka
    brokers: [kafka-1:9092, kafka-2:9092]
    topic: product-telemetry
    settings:
      security.protocol: SASL_SSL
      sasl.mechanism: PLAIN
      sasl.username: env:KAFKA_USER
      sasl.password: env:KAFKA_PASSWORD
      ssl.ca.location: certificates/kafka.pem
      enable.ssl.certificate.verification: true
      socket.timeout.ms: 10000
"""


def test_a_kafka_source_becomes_a_connection_with_its_references_followed(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file.write_text(KAFKA)
    monkeypatch.setenv("KAFKA_USER", "reader")
    monkeypatch.setenv("KAFKA_PASSWORD", "correct horse")
    source = load_config(file).sources["kafka_events"]
    assert isinstance(source, KafkaSource)

    connection = read_connection(Project(file.parent, file.parent), "kafka_events", source)

    assert connection.brokers == "kafka-1:9092,kafka-2:9092"
    assert connection.settings == {
        "security.protocol": "SASL_SSL",
        "sasl.mechanism": "PLAIN",
        "sasl.username": "reader",
        "sasl.password": "correct horse",
        "ssl.ca.location": str(file.parent / "certificates/kafka.pem"),
        "enable.ssl.certificate.verification": "true",
        "socket.timeout.ms": "10000",
    }
    assert "correct horse" not in repr(connection)


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("env:KAFKA_PASSWORD", "env:NO_SUCH", r"settings\.sasl\.password: env:NO_SUCH is not set"),
        (
            "[kafka-1:9092, kafka-2:9092]",
            "env:NO_SUCH",
            r"brokers: env:NO_SUCH is not set or empty",
        ),
    ],
)
def test_a_kafka_reference_without_a_value_is_named(
    file: Path, monkeypatch: pytest.MonkeyPatch, old: str, new: str, problem: str
) -> None:
    monkeypatch.setenv("KAFKA_USER", "reader")
    monkeypatch.setenv("KAFKA_PASSWORD", "correct horse")
    monkeypatch.delenv("NO_SUCH", raising=False)
    file.write_text(KAFKA.replace(old, new))
    source = load_config(file).sources["kafka_events"]
    assert isinstance(source, KafkaSource)

    with pytest.raises(PolicyError, match=r"telemetry\.yaml: sources\.kafka_events\." + problem):
        read_connection(Project(file.parent, file.parent), "kafka_events", source)


#: name: (what stands there, what stands there instead, the problem)
KAFKA_MISTAKES = {
    "a password in clear": (
        "env:KAFKA_PASSWORD",
        "hunter2",
        "sasl.password must be a reference, env:NAME or file:PATH, never the value itself",
    ),
    "a key's password in clear": (
        "ssl.ca.location: certificates/kafka.pem",
        "ssl.key.password: hunter2",
        "ssl.key.password must be a reference",
    ),
    "a key in clear": (
        "ssl.ca.location: certificates/kafka.pem",
        "ssl.key.pem: hunter2",
        "ssl.key.pem must be a reference",
    ),
    "a client secret as a number": (
        "sasl.password: env:KAFKA_PASSWORD",
        "sasl.oauthbearer.client.secret: 12345678",
        "sasl.oauthbearer.client.secret must be a reference",
    ),
    **{
        f"{setting}": (
            "socket.timeout.ms: 10000",
            f"{setting}: {value}",
            f"{setting} is not yours to set: ",
        )
        for setting, value in {
            "enable.auto.commit": "true",
            "isolation.level": "read_uncommitted",
            "auto.offset.reset": "latest",
            "enable.auto.offset.store": "true",
            "enable.partition.eof": "false",
            "group.id": "mine",
            "bootstrap.servers": "elsewhere:9092",
        }.items()
    },
}


@pytest.mark.parametrize("mistake", KAFKA_MISTAKES)
def test_a_kafka_setting_that_may_not_stand_there_is_named(file: Path, mistake: str) -> None:
    old, new, problem = KAFKA_MISTAKES[mistake]
    assert KAFKA.count(old) == 1
    file.write_text(KAFKA.replace(old, new))

    with pytest.raises(PolicyError) as caught:
        load_config(file)

    place = "telemetry.yaml:6: sources.kafka_events.settings: "
    assert str(caught.value).startswith(place + problem)
    assert "hunter2" not in str(caught.value) and "12345678" not in str(caught.value)


@pytest.mark.parametrize(
    "brokers", ["kafka:9092", "[]", "[kafka]", "[http://kafka:9092]", "[9092]"]
)
def test_brokers_are_hosts_with_ports_or_a_reference(file: Path, brokers: str) -> None:
    file.write_text(KAFKA.replace("[kafka-1:9092, kafka-2:9092]", brokers))

    with pytest.raises(PolicyError, match=r"telemetry\.yaml:4: sources\.kafka_events\.brokers"):
        load_config(file)
