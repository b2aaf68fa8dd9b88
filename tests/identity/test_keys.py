"""Keys come from the environment or from files, are made once, and are never shown."""

from __future__ import annotations

import hashlib
import hmac
import stat
import threading
from pathlib import Path

import pytest

from telemetry_pipeline.errors import TelemetryError
from telemetry_pipeline.identity.keys import KEY_PURPOSES, Key, create_missing_keys, read_key

SECRET = "ab" * 32


def test_a_key_is_read_from_its_file(tmp_path: Path) -> None:
    (tmp_path / "event.key").write_text(f"7:{SECRET}\n")

    assert read_key("event", tmp_path) == Key("7", bytes.fromhex(SECRET))


def test_the_environment_outranks_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "event.key").write_text(f"7:{SECRET}\n")
    monkeypatch.setenv("TELEMETRY_KEY_EVENT", f"8:{SECRET}")

    assert read_key("event", tmp_path).key_id == "8"


def test_a_missing_key_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(TelemetryError, match="TELEMETRY_KEY_EVENT or run `telemetry keys init`"):
        read_key("event", tmp_path)


@pytest.mark.parametrize(
    "text", ["", SECRET, f"1:{SECRET[:-2]}", f"1:{SECRET}ab", f"Long Id:{SECRET}", "1:secret"]
)
def test_a_malformed_key_is_named_and_not_shown(tmp_path: Path, text: str) -> None:
    (tmp_path / "event.key").write_text(text)

    with pytest.raises(TelemetryError, match=r"event\.key: must hold") as caught:
        read_key("event", tmp_path)

    assert SECRET[:10] not in str(caught.value)


def test_a_key_file_that_is_a_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "event.key").mkdir()

    with pytest.raises(TelemetryError, match="key event cannot be read"):
        read_key("event", tmp_path)


def test_keys_are_made_once_and_only_for_their_owner(tmp_path: Path) -> None:
    folder = tmp_path / "keys"

    assert create_missing_keys(folder) == list(KEY_PURPOSES)
    before = {path.name: path.read_text() for path in folder.iterdir()}
    assert create_missing_keys(folder) == []

    assert {path.name: path.read_text() for path in folder.iterdir()} == before
    assert set(before) == {f"{name}.key" for name in KEY_PURPOSES}
    assert len(set(before.values())) == len(before)
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_a_key_of_the_environment_gets_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TELEMETRY_KEY_EVENT", f"1:{SECRET}")

    assert "event" not in create_missing_keys(tmp_path)
    assert not (tmp_path / "event.key").exists()


def test_what_a_crash_left_behind_does_not_stop_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # In a container the process that starts again has the id of the one that died.
    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", _crash)
        patch.setattr("pathlib.Path.unlink", lambda *_: None)
        with pytest.raises(KeyboardInterrupt):
            create_missing_keys(tmp_path)
    assert list(tmp_path.iterdir())

    assert create_missing_keys(tmp_path) == list(KEY_PURPOSES)


def _crash(_: int) -> None:
    raise KeyboardInterrupt


def test_of_two_that_make_keys_at_once_the_first_key_stays(tmp_path: Path) -> None:
    start = threading.Barrier(4)

    def work() -> None:
        start.wait()
        create_missing_keys(tmp_path)
        seen.append({name: read_key(name, tmp_path).secret for name in KEY_PURPOSES})

    seen: list[dict[str, bytes]] = []
    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(seen) == 4
    assert all(keys == seen[0] for keys in seen)
    assert {path.suffix for path in tmp_path.iterdir()} == {".key"}


def test_each_purpose_has_a_key_of_its_own() -> None:
    key = Key("1", bytes.fromhex(SECRET))

    expected = hmac.new(key.secret, b"user", hashlib.sha256).hexdigest()
    assert key.derive("user") == expected
    assert len({key.derive(purpose) for purpose in ("user", "organisation", "session")}) == 3


def test_a_key_does_not_show_its_secret() -> None:
    key = Key("1", bytes.fromhex(SECRET))

    assert SECRET not in repr(key)
    assert repr(key.secret) not in repr(key)
