"""What URL parameters and headers mean: pure functions, no server."""

from __future__ import annotations

from base64 import b64encode

import lz4.frame
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from telemetry_pipeline.warehouse.embedded.compression import decoder_for, encoder_for
from telemetry_pipeline.warehouse.embedded.engine_config import EngineLimits
from telemetry_pipeline.warehouse.embedded.errors import QueryError, from_engine
from telemetry_pipeline.warehouse.embedded.options import (
    credentials,
    parse_options,
    set_statement,
)


class TestOptions:
    def test_are_settings_unless_the_interface_reserves_them(self) -> None:
        options = parse_options(
            [
                ("query", "SELECT 1"),
                ("database", "d"),
                ("param_x", "v"),
                ("max_threads", "2"),
                ("query_id", "q"),
                ("wait_end_of_query", "1"),
                ("buffer_size", "5"),
                ("client_protocol_version", "54460"),
            ],
            {},
        )
        assert options.query == b"SELECT 1"
        assert (options.database, options.query_id) == ("d", "q")
        assert options.parameters == {"x": "v"}
        assert options.settings == {"max_threads": "2"}
        assert options.wait_end_of_query
        assert options.protocol_revision == 54460

    def test_in_the_url_win_over_headers(self) -> None:
        headers = {"x-clickhouse-database": "h", "x-clickhouse-format": "CSV"}
        assert parse_options([], headers).database == "h"
        assert parse_options([("database", "u")], headers).database == "u"
        assert parse_options([], headers).default_format == "CSV"

    def test_of_a_form_are_options_too(self) -> None:
        options = parse_options([("max_threads", "1")], {}, [("query", "q"), ("param_a", "b")])
        assert (options.query, options.parameters) == (b"q", {"a": "b"})

    @pytest.mark.parametrize("name", ["a b", "a'", "param_", "param_a-b", "", "x = 1, readonly"])
    def test_with_a_name_that_is_none_are_refused(self, name: str) -> None:
        with pytest.raises(QueryError, match="BAD_ARGUMENTS"):
            parse_options([(name, "1")], {})

    def test_for_roles_are_refused(self) -> None:
        with pytest.raises(QueryError, match="NOT_IMPLEMENTED"):
            parse_options([("role", "x")], {})

    @pytest.mark.parametrize("text", ["x", "-1", "3601", "1.5", "\u00b2"])
    def test_for_a_session_need_a_sensible_timeout(self, text: str) -> None:
        with pytest.raises(QueryError, match="INVALID_SESSION_TIMEOUT"):
            parse_options([("session_id", "s"), ("session_timeout", text)], {})

    def test_become_one_set_statement(self) -> None:
        sql = set_statement({"a": "1", "b": "it's \\"})
        assert sql == rb"SET a = '1', b = 'it\'s \\'"


class TestCredentials:
    def test_are_taken_from_the_first_place_that_has_them(self) -> None:
        basic = {"authorization": "Basic " + b64encode(b"u:p:q").decode()}
        assert credentials([], basic) == ("u", "p:q")
        own = {"x-clickhouse-user": "h", "x-clickhouse-key": "k", **basic}
        assert credentials([], own) == ("h", "k")
        assert credentials([("user", "url"), ("password", "x")], {}) == ("url", "x")
        assert credentials([], {}) == ("default", "")


class TestCompression:
    @pytest.mark.parametrize("name", ["gzip", "deflate", "zstd", "lz4"])
    @given(data=st.binary(max_size=5000), cut=st.integers(1, 997))
    def test_packed_answers_unpack_piece_by_piece(self, name: str, data: bytes, cut: int) -> None:
        accepted = encoder_for(name)
        assert accepted is not None
        encoder = accepted[1]
        packed = b"".join(encoder.feed(data[i : i + cut]) for i in range(0, len(data), cut))
        packed += encoder.finish()
        decoder = decoder_for(name)
        unpacked = b"".join(decoder.feed(packed[i : i + 7]) for i in range(0, len(packed), 7))
        decoder.finish()
        assert unpacked == data

    @pytest.mark.parametrize("name", ["gzip", "deflate", "zstd", "lz4"])
    def test_garbage_is_an_error(self, name: str) -> None:
        with pytest.raises(QueryError, match="not valid"):
            decoder_for(name).feed(b"not packed at all" * 10)

    @pytest.mark.parametrize("packed", [zstandard.compress(b"x" * 999), lz4.frame.compress(b"xy")])
    def test_half_a_body_is_an_error(self, packed: bytes) -> None:
        name = "zstd" if packed.startswith(b"\x28\xb5") else "lz4"
        decoder = decoder_for(name)
        decoder.feed(packed[:-1])
        with pytest.raises(QueryError, match="before its frame does"):
            decoder.finish()

    def test_the_clients_first_known_choice_counts(self) -> None:
        chosen = encoder_for("br, lz4;q=0, zstd;q=0.5, gzip")
        assert chosen is not None
        assert chosen[0] == "zstd"
        assert encoder_for("br, snappy") is None


class TestErrors:
    @pytest.mark.parametrize(
        ("code", "status"),
        [(62, 400), (60, 404), (516, 403), (159, 408), (48, 501), (241, 500), (394, 500)],
    )
    def test_have_clickhouses_http_status(self, code: int, status: int) -> None:
        assert QueryError(code, "X", "x").http_status == status

    def test_of_an_unknown_shape_are_kept(self) -> None:
        assert from_engine("something else").text == (
            "Code: 1002. DB::Exception: something else (UNKNOWN_EXCEPTION)"
        )


def test_one_query_cannot_take_all_memory() -> None:
    limits = EngineLimits.from_total(1_000)
    assert (limits.server_bytes, limits.query_bytes) == (1_000, 800)
    assert EngineLimits.from_total(None).server_bytes > 100_000_000
