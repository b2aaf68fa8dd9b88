"""Every mistake in catalog/ is one line: file, line, field, and what to do."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from fresh import REPOSITORY

from telemetry_pipeline.catalog.reader import read_catalog
from telemetry_pipeline.catalog.sql import quote
from telemetry_pipeline.errors import PolicyError

ATTRIBUTES = """\
file_format: definition/2
attributes:
  - key: user.id
    type: string
    brief: Who.
    annotations: {pii: pseudonymise, column: anonymous_user_id}
  - key: ui.feature
    type: string
    brief: What.
    annotations:
      pii: none
      payload_key: feature
      pattern: "[a-z]+"
      max_length: 20
  - key: ui.count
    type: int
    brief: How many.
    annotations: {pii: none, payload_key: count, minimum: 0, maximum: 10}
  - key: ui.surface
    type:
      members:
        - {id: page, value: page}
        - {id: modal, value: modal}
    brief: Where.
    annotations: {pii: none, payload_key: surface}
attribute_groups:
  - id: common
    attributes:
      - {ref: user.id, requirement_level: recommended}
"""
EVENTS = """\
file_format: definition/2
events:
  - name: feature_viewed
    brief: Shown.
    attributes:
      - ref_group: common
      - {ref: ui.feature, requirement_level: required}
    annotations:
      class: business
      owner: product
      purpose: Which features people find.
      schema_version: 2026-05-telemetry-v1
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "attributes.yaml").write_text(ATTRIBUTES)
    (tmp_path / "events.yaml").write_text(EVENTS)
    return tmp_path


def test_the_repositorys_own_catalogue_is_read() -> None:
    catalog = read_catalog(REPOSITORY / "catalog")

    assert len(catalog.events) == 14
    event = catalog.event("change_request.committed")
    assert event is not None
    required = {item.attribute.key for item in event.attributes if item.required}
    assert required == {"environment.kind", "change_request.approvals"}
    assert [item.key for item in catalog.for_column("anonymous_user_id")] == [
        "enduser.pseudo.id",
        "user.id",
    ]


def test_a_small_catalogue_is_read(folder: Path) -> None:
    catalog = read_catalog(folder)

    (event,) = catalog.events
    assert [(item.attribute.key, item.required) for item in event.attributes] == [
        ("user.id", False),
        ("ui.feature", True),
    ]
    feature = event.attributes[1].attribute
    assert (feature.pattern, feature.max_length, feature.payload_key) == ("[a-z]+", 20, "feature")


def test_what_an_event_says_itself_outranks_its_group(folder: Path) -> None:
    _replace(
        folder,
        "events.yaml",
        "      - {ref: ui.feature",
        "      - {ref: user.id, requirement_level: required}\n      - {ref: ui.feature",
    )

    (event,) = read_catalog(folder).events

    assert [(item.attribute.key, item.required) for item in event.attributes] == [
        ("user.id", True),
        ("ui.feature", True),
    ]


def test_a_group_may_stand_in_a_file_that_comes_later(folder: Path) -> None:
    (folder / "attributes.yaml").rename(folder / "zzz.yaml")

    (event,) = read_catalog(folder).events

    assert len(event.attributes) == 2


def _replace(folder: Path, name: str, old: str, new: str) -> None:
    text = (folder / name).read_text()
    assert text.count(old) == 1, f"{old!r} stands {text.count(old)} times in {name}"
    (folder / name).write_text(text.replace(old, new))


A, E = "attributes.yaml", "events.yaml"
#: name: (file, what stands there, what stands there instead, line and field, the problem)
MISTAKES = {
    "another format": (
        E,
        "definition/2",
        "definition/1",
        "1: file_format",
        "must be definition/2",
    ),
    "no format": (
        E,
        "file_format: definition/2\n",
        "",
        "1: file_format",
        "must be definition/2",
    ),
    "a list instead of a mapping": (E, EVENTS, "- a\n- b\n", "1", "must be a mapping"),
    "an empty file": (E, EVENTS, "", "1", "must be a mapping"),
    "a section that is no list": (
        E,
        EVENTS,
        "file_format: definition/2\nevents: {a: 1}\n",
        "2: events",
        "must be a list",
    ),
    "an entry that is no mapping": (
        E,
        EVENTS,
        "file_format: definition/2\nevents:\n  - page_viewed\n",
        "3: events.0",
        "must be a mapping",
    ),
    "an unknown section": (E, "events:", "event:", "2: event", "is not a section"),
    "YAML that is none": (
        E,
        "    brief: Shown.",
        "    brief: [Shown",
        "5",
        "is not valid YAML",
    ),
    "a key twice": (
        E,
        "    brief: Shown.\n",
        "    brief: Shown.\n    brief: Seen.\n",
        "5: events.0.brief",
        "stands twice",
    ),
    "no name": (
        E,
        "  - name: feature_viewed\n    brief",
        "  - brief",
        "3: events.0.name",
        "is missing",
    ),
    "a name in camel case": (
        E,
        "feature_viewed",
        "featureViewed",
        "3: events.0.name",
        "must be lower snake case",
    ),
    "a name twice": (
        E,
        EVENTS,
        EVENTS + EVENTS[EVENTS.index("  - name") :],
        "13: events.1.name",
        "feature_viewed is defined twice",
    ),
    "no brief": (E, "    brief: Shown.\n", "", "3: events.0.brief", "is missing"),
    "no annotations": (
        E,
        EVENTS[EVENTS.index("    annotations") :],
        "",
        "3: events.0",
        "needs annotations",
    ),
    "an unknown annotation": (
        E,
        "      owner: product",
        "      owners: product",
        "10: events.0.annotations.owners",
        "is not an annotation",
    ),
    "no class": (
        E,
        "      class: business\n",
        "",
        "8: events.0.annotations.class",
        "feature_viewed needs class: technical | business",
    ),
    "an unknown class": (
        E,
        "class: business",
        "class: important",
        "9: events.0.annotations.class",
        "feature_viewed needs class",
    ),
    "no owner": (
        E,
        "      owner: product\n",
        "",
        "8: events.0.annotations.owner",
        "is missing",
    ),
    "a schema version that is a date": (
        E,
        "2026-05-telemetry-v1",
        "2026-05-01",
        "12: events.0.annotations.schema_version",
        "must be text; put it in quotes",
    ),
    "a date that is none": (
        E,
        "2026-05-telemetry-v1",
        "2026-13-41",
        "12: events.0.annotations.schema_version",
        "is not valid YAML",
    ),
    "a reference to nothing": (
        E,
        "ref: ui.feature",
        "ref: ui.featur",
        "7: events.0.attributes.1.ref",
        "names no attribute of the catalogue",
    ),
    "a reference that is a list": (
        E,
        "ref: ui.feature",
        "ref: [ui.feature]",
        "7: events.0.attributes.1.ref",
        "names no attribute of the catalogue",
    ),
    "a reference that is text": (
        E,
        "{ref: ui.feature, requirement_level: required}",
        "ui.feature",
        "7: events.0.attributes.1",
        "must be a mapping with ref or ref_group",
    ),
    "attributes that are no list": (
        E,
        EVENTS[EVENTS.index("      - ref_group") : EVENTS.index("    annotations")],
        "      ui.feature: required\n",
        "5: events.0.attributes",
        "must be a list",
    ),
    "a group of nothing": (
        E,
        "ref_group: common",
        "ref_group: comon",
        "6: events.0.attributes.0.ref_group",
        "names no attribute group",
    ),
    "an unknown level": (
        E,
        "requirement_level: required",
        "requirement_level: needed",
        "7: events.0.attributes.1.requirement_level",
        "must be required, recommended or opt_in",
    ),
    "an attribute twice in an event": (
        E,
        "      - {ref: ui.feature, requirement_level: required}\n",
        "      - {ref: ui.feature, requirement_level: required}\n" * 2,
        "8: events.0.attributes.2.ref",
        "ui.feature stands twice",
    ),
    "a group twice": (
        A,
        "  - id: common",
        "  - id: common\n    attributes: []\n  - id: common",
        "29: attribute_groups.1.id",
        "common is defined twice",
    ),
    "an attribute twice": (
        A,
        "key: ui.count",
        "key: ui.feature",
        "15: attributes.2.key",
        "ui.feature is defined twice",
    ),
    "a key in camel case": (
        A,
        "key: ui.count",
        "key: uiCount",
        "15: attributes.2.key",
        "must be dotted lower snake case",
    ),
    "no pii": (
        A,
        "      pii: none\n",
        "",
        "10: attributes.1.annotations.pii",
        "ui.feature needs pii: none | pseudonymise | drop",
    ),
    "an unknown pii": (
        A,
        "      pii: none\n",
        "      pii: maybe\n",
        "11: attributes.1.annotations.pii",
        "ui.feature needs pii",
    ),
    "pii that is a list": (
        A,
        "      pii: none\n",
        "      pii: [none]\n",
        "11: attributes.1.annotations.pii",
        "ui.feature needs pii",
    ),
    "neither column nor payload key": (
        A,
        "      payload_key: feature\n",
        "",
        "10: attributes.1.annotations",
        "ui.feature needs a column or a payload_key",
    ),
    "both column and payload key": (
        A,
        "payload_key: feature",
        "payload_key: feature\n      column: route_pattern",
        "10: attributes.1.annotations",
        "ui.feature needs a column or a payload_key",
    ),
    "an unknown column": (
        A,
        "column: anonymous_user_id",
        "column: user",
        "6: attributes.0.annotations.column",
        "must be one of event_id",
    ),
    "a payload key in snake case": (
        A,
        "payload_key: feature",
        "payload_key: ui_feature",
        "12: attributes.1.annotations.payload_key",
        "must be camelCase",
    ),
    "a payload key twice": (
        A,
        "payload_key: count",
        "payload_key: feature",
        "18: attributes.2.annotations.payload_key",
        "feature is the key of ui.feature, too",
    ),
    "a pseudonym in the payload": (
        A,
        "column: anonymous_user_id",
        "payload_key: user",
        "6: attributes.0.annotations",
        "user.id is pseudonymised and so needs a column",
    ),
    "a pseudonym in a column for text": (
        A,
        "column: anonymous_user_id",
        "column: route_pattern",
        "6: attributes.0.annotations.column",
        "user.id is pseudonymised and so needs one of org_id_hash, anonymous_user_id, session_id",
    ),
    "a person in clear": (
        A,
        "pii: pseudonymise",
        "pii: none",
        "6: attributes.0.annotations.pii",
        "user.id fills anonymous_user_id and so needs pii: pseudonymise",
    ),
    "a pseudonym of a number": (
        A,
        "    type: string\n    brief: Who.",
        "    type: int\n    brief: Who.",
        "4: attributes.0.type",
        "fills the column anonymous_user_id and so must be string",
    ),
    "an unknown type": (
        A,
        "type: int",
        "type: integer",
        "16: attributes.2.type",
        "must be string, int, double, boolean or members",
    ),
    "members without values": (
        A,
        "{id: modal, value: modal}",
        "{id: modal}",
        "20: attributes.3.type",
        "every member needs a string value",
    ),
    "members that are text": (
        A,
        "{id: modal, value: modal}",
        "modal",
        "20: attributes.3.type",
        "every member needs a string value",
    ),
    "members that are no list": (
        A,
        "      members:\n        - {id: page, value: page}\n        - {id: modal, value: modal}\n",
        "      members: {page: 1}\n",
        "20: attributes.3.type",
        "every member needs a string value",
    ),
    "no members": (
        A,
        "      members:\n        - {id: page, value: page}\n        - {id: modal, value: modal}\n",
        "      members: []\n",
        "20: attributes.3.type",
        "must be string, int, double, boolean or members",
    ),
    "a member twice": (
        A,
        "{id: modal, value: modal}",
        "{id: modal, value: page}",
        "20: attributes.3.type",
        "page stands twice",
    ),
    "a pattern that is none": (
        A,
        '"[a-z]+"',
        '"[a-z"',
        "13: attributes.1.annotations.pattern",
        "is not a regular expression",
    ),
    "a pattern the engine does not know": (
        A,
        '"[a-z]+"',
        '"(?!x)[a-z]+"',
        "13: attributes.1.annotations.pattern",
        "uses look-around, a backreference",
    ),
    "a pattern with a backreference": (
        A,
        '"[a-z]+"',
        r"'([a-z])\1'",
        "13: attributes.1.annotations.pattern",
        "uses look-around, a backreference",
    ),
    "a pattern with 2,000 repetitions": (
        A,
        '"[a-z]+"',
        '"[a-z]{1,2000}"',
        "13: attributes.1.annotations.pattern",
        "uses look-around, a backreference, \\Z or more than 1000 repetitions",
    ),
    "a pattern for a number": (
        A,
        "minimum: 0,",
        'pattern: "[0-9]",',
        "18: attributes.2.annotations.pattern",
        "is for strings, and ui.count is int",
    ),
    "a length for a number": (
        A,
        "minimum: 0,",
        "max_length: 3,",
        "18: attributes.2.annotations.max_length",
        "is for strings",
    ),
    "a minimum for text": (
        A,
        "max_length: 20",
        "minimum: 1",
        "14: attributes.1.annotations.minimum",
        "is for int and double, and ui.feature is string",
    ),
    "a length that is text": (
        A,
        "max_length: 20",
        "max_length: twenty",
        "14: attributes.1.annotations.max_length",
        "must be a whole number from 1 on",
    ),
    "a length of nothing": (
        A,
        "max_length: 20",
        "max_length: 0",
        "14: attributes.1.annotations.max_length",
        "must be a whole number from 1 on",
    ),
    "a limit that is text": (
        A,
        "minimum: 0",
        "minimum: none",
        "18: attributes.2.annotations.minimum",
        "must be a number",
    ),
    "a limit that is a boolean": (
        A,
        "minimum: 0",
        "minimum: yes",
        "18: attributes.2.annotations.minimum",
        "must be a number",
    ),
    "a limit that is no number": (
        A,
        "minimum: 0",
        "minimum: .nan",
        "18: attributes.2.annotations.minimum",
        "must be a number",
    ),
    "a broken limit for whole numbers": (
        A,
        "minimum: 0",
        "minimum: 0.5",
        "18: attributes.2.annotations.minimum",
        "must be a whole number of 64 bits, as ui.count is int",
    ),
    "a limit beyond 64 bits": (
        A,
        "maximum: 10",
        "maximum: 9223372036854775808",
        "18: attributes.2.annotations.maximum",
        "must be a whole number of 64 bits",
    ),
    "limits the wrong way round": (
        A,
        "minimum: 0",
        "minimum: 11",
        "18: attributes.2.annotations.minimum",
        "is above the maximum",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_with_its_place(folder: Path, mistake: str) -> None:
    file, old, new, place, problem = MISTAKES[mistake]
    _replace(folder, file, old, new)

    with pytest.raises(PolicyError) as caught:
        read_catalog(folder)

    assert str(caught.value).startswith(f"{file}:{place}: {problem}")
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


def test_a_folder_without_files_is_said(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match=r"holds no \.yaml file"):
        read_catalog(tmp_path)


def test_a_catalogue_without_events_is_said(folder: Path) -> None:
    (folder / "events.yaml").unlink()

    with pytest.raises(PolicyError, match="holds no event"):
        read_catalog(folder)


def test_a_file_that_is_not_text_is_said(folder: Path) -> None:
    (folder / "events.yaml").write_bytes(b"\xff\xfe")

    with pytest.raises(PolicyError, match=r"events\.yaml: is not UTF-8 \(byte 0\)"):
        read_catalog(folder)


def test_two_files_may_not_define_one_event(folder: Path) -> None:
    shutil.copy(folder / "events.yaml", folder / "more.yaml")

    with pytest.raises(PolicyError, match=r"more\.yaml:3: .*feature_viewed is defined twice"):
        read_catalog(folder)


@pytest.mark.parametrize("text", ["it's", "back\\slash", "new\nline", "\\'; DROP TABLE x --"])
def test_text_in_a_statement_is_quoted(text: str) -> None:
    quoted = quote(text)

    assert quoted.startswith("'") and quoted.endswith("'")
    inner = quoted[1:-1].replace("\\\\", "").replace("\\'", "")
    assert "'" not in inner and "\n" not in inner
