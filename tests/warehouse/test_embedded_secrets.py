"""A key sent as a query parameter is in no file, no log and no error message."""

from __future__ import annotations

import secrets
import signal
import subprocess
from pathlib import Path

import httpx
import pytest
from embedded_server import Server, running_server, start_server

from telemetry_pipeline.warehouse.embedded.errors import QueryError, from_engine
from telemetry_pipeline.warehouse.embedded.options import Options
from telemetry_pipeline.warehouse.embedded.secrets_guard import without_values

INSERT = (
    "INSERT INTO hashed SELECT lower(hex(HMAC('SHA256', x, {secret_key_x:String}))) "
    "FROM input('x String') FORMAT LineAsString"
)
FAILING = [
    f"INSERT INTO hashed SELECT {expression} FROM input('x String') FORMAT LineAsString"
    for expression in (
        "throwIf(x = 'b', {secret_key_x:String})",
        "no_such({secret_key_x:String})",
        "HMAC({secret_key_x:String}, x, 'k')",
        "toString({secret_key_x:UInt8})",
        "toString(toUInt8({secret_key_x:String}))",
    )
]


def files_with(folder: Path, text: str) -> list[Path]:
    return [
        path for path in folder.rglob("*") if path.is_file() and text.encode() in path.read_bytes()
    ]


def test_a_key_is_in_no_byte_of_the_data_folder_and_in_no_answer_or_output(
    tmp_path: Path,
) -> None:
    key = secrets.token_hex(24)
    server = start_server(tmp_path / "data")
    with server.http() as http:
        server.sql("CREATE TABLE hashed (x String) ENGINE = MergeTree ORDER BY x")
        parameters = {"param_secret_key_x": key}
        stored = http.post("/", params={**parameters, "query": INSERT}, content=b"a\nb\n")
        assert stored.status_code == 200, stored.text
        for statement in FAILING:
            failed = http.post("/", params={**parameters, "query": statement}, content=b"a\nb\n")
            assert failed.status_code != 200
            assert key not in failed.text
            assert key[:12] not in failed.text
        seen = (
            "SELECT *, HMAC('SHA256', '', {secret_key_x:String}) FROM system.processes FORMAT JSON"
        )
        assert key not in http.post("/", params=parameters, content=seen).text
        http.post("/", content="SYSTEM FLUSH LOGS")
        assert files_with(tmp_path / "data", key) == []
    server.process.send_signal(signal.SIGTERM)
    printed = "".join(server.process.communicate(timeout=15))
    assert key not in printed
    assert files_with(tmp_path / "data", key) == []
    with running_server(tmp_path / "data") as again:
        hashes = again.sql("SELECT x FROM hashed ORDER BY x").split()
    assert len(hashes) == 2
    assert {len(value) for value in hashes} == {64}


def test_no_log_table_is_kept(server: Server) -> None:
    server.sql("SYSTEM FLUSH LOGS")
    assert (
        server.sql(
            "SELECT count() FROM system.tables WHERE name LIKE '%query_log%' AND total_rows > 0"
        )
        == "0"
    )
    assert server.sql("SELECT getSetting('log_queries')") == "false"


def test_a_server_under_errors_prints_nothing(tmp_path: Path) -> None:
    server = start_server(tmp_path / "data")
    with server.http() as http:
        http.post("/", params={"param_p": "printed?"}, content="SELECT {p:UInt8}")
        http.get("/", params={"query": "SELECT 'printed?'", "no_such": "printed?"})
        httpx.get(f"{server.endpoint.url}/printed?printed")
        with pytest.raises(httpx.RemoteProtocolError):
            http.post("/", content="SELECT throwIf(number = 3000000) FROM numbers(4000000)")
    server.process.send_signal(signal.SIGTERM)
    out, errors = server.process.communicate(timeout=15)
    assert out.count("\n") == 1
    assert errors == ""


class TestErrorMessages:
    def test_lose_the_values_of_parameters(self) -> None:
        error = QueryError(1, "X", "bad 'it\\'s a key' and it's a key and 12345678")
        cleaned = without_values(error, {"p": "it\\'s a key", "secret_n": "12345678"})
        assert cleaned.message == "bad '[HIDDEN]' and [HIDDEN] and [HIDDEN]"

    def test_lose_a_secret_however_short(self) -> None:
        assert (
            without_values(QueryError(1, "X", "k7"), {"secret_key_x": "k7"}).message == "[HIDDEN]"
        )

    def test_keep_short_values_that_are_no_secret(self) -> None:
        assert without_values(QueryError(1, "X", "5 rows"), {"n": "5"}).message == "5 rows"

    def test_of_a_secret_that_cannot_be_parsed_name_only_the_parameter(self) -> None:
        error = QueryError(457, "BAD_QUERY_PARAMETER", "only 2 of 3: ab for 'secret_key_x'")
        cleaned = without_values(error, {"secret_key_x": "ab\tc"})
        assert "ab" not in cleaned.message.replace("parameter", "")
        assert "'secret_key_x'" in cleaned.message

    def test_are_unwrapped_to_one(self) -> None:
        wrapped = (
            "Code: 73. DB::Exception: Code: 73. DB::Exception: Unknown format Foo. "
            "(UNKNOWN_FORMAT) (version 26.9.2.1). (UNKNOWN_FORMAT)"
        )
        assert from_engine(wrapped).text == (
            "Code: 73. DB::Exception: Unknown format Foo. (UNKNOWN_FORMAT)"
        )


def test_options_do_not_show_parameters() -> None:
    shown = repr(Options(query=b"", query_id="", parameters={"secret_key_x": "hidden"}))
    assert "hidden" not in shown


def test_nothing_but_the_embedded_package_imports_the_engine() -> None:
    root = Path(__file__).parents[2]
    found = subprocess.run(
        ["grep", "-rlE", r"^\s*(import|from) chdb", "--include=*.py", "telemetry_pipeline"],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    ).stdout.split()
    assert found == ["telemetry_pipeline/warehouse/embedded/engine.py"]
