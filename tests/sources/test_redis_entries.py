"""Ids as offsets, and entries as lines: no entry can add a key, a line, or end another one."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from telemetry_pipeline.sources.redis_entries import (
    LARGEST,
    after,
    before,
    fits,
    format_id,
    id_of,
    last_id_of,
    line_of,
    offset_of,
    organisation_of,
    parse_id,
)

NUMBERS = st.one_of(
    st.integers(0, LARGEST),
    st.sampled_from([0, 1, 2**22 - 2, 2**22 - 1, 2**22, 2**42 - 2, 2**42 - 1, 2**42, LARGEST]),
)
IDS = st.tuples(NUMBERS, NUMBERS)
BATCH = b'{"events": []}'


@given(IDS)
def test_an_id_that_fits_has_an_offset_of_its_own(entry: tuple[int, int]) -> None:
    offset = offset_of(entry)

    assert 0 <= offset < 2**64 - 1, "offset + 1 is a UInt64, too"
    assert id_of(offset) <= entry <= last_id_of(offset)
    if fits(entry):
        assert id_of(offset) == entry == last_id_of(offset)
    assert parse_id(format_id(entry)) == entry


@given(IDS, IDS)
def test_offsets_keep_the_order_of_ids(one: tuple[int, int], other: tuple[int, int]) -> None:
    if one < other:
        assert offset_of(one) < offset_of(other) or not fits(other)
        assert offset_of(one) <= offset_of(other)


@given(st.one_of(st.integers(1, offset_of((LARGEST, LARGEST))), IDS.map(offset_of).filter(bool)))
def test_nothing_lies_between_an_offset_and_what_is_before_it(offset: int) -> None:
    assert after(before(offset)) == id_of(offset)
    assert offset_of(before(offset)) == offset - 1


@pytest.mark.parametrize(
    ("entry", "is_so"),
    [
        ((1, 2**22 - 2), True),
        ((1, 2**22 - 1), False),
        ((2**42 - 2, 0), True),
        ((2**42 - 1, 0), False),
        ((LARGEST, LARGEST), False),
    ],
)
def test_where_ids_cease_to_fit(entry: tuple[int, int], is_so: bool) -> None:
    assert fits(entry) == is_so


@pytest.mark.parametrize(
    ("stream", "organisation"),
    [
        (b"product-telemetry:acme:events", "acme"),
        (b"product-telemetry:anonymous:events", ""),
        (b"product-telemetry::events", ""),
        (b"product-telemetry:a:b:events", "a:b"),
        (b"product-telemetry:events:events", "events"),
        (b"product-telemetry:product-telemetry:x:events:events", "product-telemetry:x:events"),
        ('product-telemetry:ü"\n{}:events'.encode(), 'ü"\n{}'),
        (b"product-telemetry:Anonymous:events", "Anonymous"),
        (b"product-telemetry:\xff:events", None),
    ],
)
def test_the_middle_of_a_streams_name_is_the_organisation(
    stream: bytes, organisation: str | None
) -> None:
    assert organisation_of(stream, "product-telemetry") == organisation


def test_a_batch_stands_in_its_line_as_it_came() -> None:
    batch = b'{"b": 1.50, "a": "\\u00e9\xc3\xa9", "b": 2}'

    assert line_of("acme", [b"batch", batch]) == (
        b'{"organisation": "acme", "batch": ' + batch + b"}\n"
    )


def test_line_ends_between_tokens_become_spaces() -> None:
    made = line_of("acme", [b"batch", b'\n{\r\n"a"\n:\r1}\n'])

    assert made == b'{"organisation": "acme", "batch":  {  "a" : 1} }\n'


def test_other_fields_beside_the_batch_are_passed_over() -> None:
    made = line_of("acme", [b"trace", b'"}\n', b"batch", BATCH, b"organisation", b"x"])

    assert made == b'{"organisation": "acme", "batch": {"events": []}}\n'


HOSTILE = {
    "a second organisation": b'1}, "organisation": "x"',
    "a second line": b'{}}\n{"organisation": "x", "batch": {}',
    "an end and a new beginning": b'{}} {"organisation": "x"',
    "a line end in a string": b'{"a": "x\ny"}',
    "no text": b"",
    "blanks": b" \n ",
    "two values": b"{} {}",
    "a comment": b"{}//",
    "an unfinished value": b'{"a": 1',
    "a number": b"1",
    "a list": b"[{}]",
    "a quoted batch": b'"{}"',
    "null": b"null",
    "NaN": b'{"a": NaN}',
    "a byte order mark": b"\xef\xbb\xbf{}",
    "no UTF-8": b'{"a": "\xff"}',
    "a surrogate as bytes": b'{"a": "\xed\xa0\x80"}',
    "a surrogate as an escape": b'{"a": "\\ud800"}',
    "NUL": b"{}\x00",
    "NUL in a string": b'{"a": "\x00"}',
    "5,000 levels": b'{"a": ' + b"[" * 5000 + b"]" * 5000 + b"}",
    "a million digits": b'{"a": ' + b"9" * 1_000_000 + b"}",
    "a line separator": "\u2028".encode(),
}


@pytest.mark.parametrize("hostile", HOSTILE)
def test_a_batch_that_is_no_json_object_is_text_in_an_undecodable_line(hostile: str) -> None:
    made = line_of("acme", [b"batch", HOSTILE[hostile]])

    assert made.count(b"\n") == 1 and made.endswith(b"\n")
    pairs = json.loads(made, object_pairs_hook=list)
    assert [key for key, _ in pairs] == ["organisation", "undecodable"]
    assert pairs[0][1] == "acme"
    assert pairs[1][1] == HOSTILE[hostile].decode(errors="backslashreplace")


@pytest.mark.parametrize(
    "fields", [[], [b"body", BATCH], [b"batch", BATCH, b"batch", BATCH], [b"\xff", b"\n"]]
)
def test_an_entry_without_one_batch_keeps_all_its_fields(fields: list[bytes]) -> None:
    made = line_of("acme", fields)

    assert made.count(b"\n") == 1
    text = json.loads(made)["undecodable"]
    expected = [field.decode(errors="backslashreplace") for field in fields]
    assert [part for pair in json.loads(text) for part in pair] == expected


def test_a_stream_without_a_readable_name_gives_nobodys_undecodable_lines() -> None:
    assert json.loads(line_of(None, [b"batch", BATCH])) == {
        "organisation": "",
        "undecodable": BATCH.decode(),
    }


@given(st.text(), st.binary())
def test_whatever_stands_in_an_entry_it_is_one_line_with_two_keys(
    organisation: str, batch: bytes
) -> None:
    made = line_of(organisation, [b"batch", batch])

    assert made.count(b"\n") == 1 and b"\r" not in made
    pairs = json.loads(made, object_pairs_hook=list)
    assert pairs[0] == ("organisation", organisation) and len(pairs) == 2
    assert pairs[1][0] in ("batch", "undecodable")


@given(st.recursive(st.none() | st.booleans() | st.text(), st.lists, max_leaves=5))
def test_any_json_object_arrives_as_it_is(value: object) -> None:
    batch = {"value": value, "}": '"'}

    made = line_of("acme", [b"batch", json.dumps(batch, indent=1).encode()])

    assert json.loads(made)["batch"] == batch
