"""The one place where a key is read: from the environment or from files, never from YAML."""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
from dataclasses import dataclass, field
from pathlib import Path

from telemetry_pipeline.errors import TelemetryError

#: What each key is for. Losing one of them loses what the right-hand side says.
KEY_PURPOSES = {
    "edge": "hashes ids before they leave an application (demo and local emitters only)",
    "pseudonym": "turns edge ids into the warehouse's pseudonyms",
    "event": "gives an id to events without one; never rotated",
    "dead_letter": "encrypts dead letters",
    "amplitude": "makes Amplitude's insert_id from event ids",
}

_KEY_TEXT = re.compile(r"(?P<id>[a-z0-9]{1,16}):(?P<secret>[0-9a-f]{64})")


@dataclass(frozen=True)
class Key:
    """A 32-byte secret and the id under which rows remember it. Its repr shows no secret."""

    key_id: str
    secret: bytes = field(repr=False)

    def derive(self, purpose: str) -> str:
        """A separate key for one purpose, as 64 hex characters (HMAC-SHA256 of the purpose)."""
        return hmac.new(self.secret, purpose.encode(), hashlib.sha256).hexdigest()


def read_key(name: str, keys_dir: Path) -> Key:
    """The key `name` from TELEMETRY_KEY_<NAME>, else from the file <keys_dir>/<name>.key.

    Both hold `<key id>:<64 hex characters>`. Raises TelemetryError that says how to make one.
    """
    variable = f"TELEMETRY_KEY_{name.upper()}"
    text = os.environ.get(variable)
    place = variable
    if text is None:
        path = keys_dir / f"{name}.key"
        place = str(path)
        try:
            text = path.read_text(encoding="ascii")
        except FileNotFoundError:
            raise TelemetryError(
                f"key {name} is missing: set {variable} or run `telemetry keys init` for {path}"
            ) from None
        except (OSError, UnicodeDecodeError):
            raise TelemetryError(f"key {name} cannot be read from {path}") from None
    matched = _KEY_TEXT.fullmatch(text.strip())
    if matched is None:
        raise TelemetryError(f"{place}: must hold `<key id>:<64 hex characters>`")
    return Key(matched["id"], bytes.fromhex(matched["secret"]))


def create_missing_keys(keys_dir: Path) -> list[str]:
    """Make a random key file (mode 600) for each purpose that has none; returns their names.

    A key that the environment provides gets no file.
    """
    keys_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    made = []
    for name in KEY_PURPOSES:
        path = keys_dir / f"{name}.key"
        if path.exists() or f"TELEMETRY_KEY_{name.upper()}" in os.environ:
            continue
        # Written under another name first: a crash must not leave half a key behind. The name is
        # nobody else's, not even of a dead process with this one's id.
        partial = path.with_suffix(f".{secrets.token_hex(8)}.partial")
        handle = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(handle, "w", encoding="ascii") as file:
                file.write(f"1:{secrets.token_hex(32)}\n")
                file.flush()
                os.fsync(file.fileno())
            # link() refuses to replace: of two processes that start at once, the first key stays.
            os.link(partial, path)
            made.append(name)
        except FileExistsError:
            pass
        finally:
            partial.unlink()
    return made
