"""The two users of the embedded warehouse and their generated passwords."""

from __future__ import annotations

import hmac
import json
import os
import secrets
from dataclasses import asdict, dataclass
from pathlib import Path

_USERS_FILE = "users.json"
WRITER = "telemetry"
READER = "telemetry_reader"


@dataclass(frozen=True)
class User:
    """A user name and its password; the password stays out of `repr`."""

    name: str
    password: str

    def __repr__(self) -> str:
        return f"User(name={self.name!r}, password=...)"


@dataclass(frozen=True)
class Users:
    """`writer` may do everything, `reader` may only read tables."""

    writer: User
    reader: User

    def authenticate(self, name: str, password: str) -> User | None:
        """The user with this name and password, or None; takes as long for every wrong guess."""
        given = password.encode("utf-8", "surrogateescape")
        found = None
        for user in (self.writer, self.reader):
            same_password = hmac.compare_digest(user.password.encode(), given)
            same_name = hmac.compare_digest(user.name.encode(), name.encode("utf-8", "replace"))
            if same_password and same_name:
                found = user
        return found


def read_users(data_dir: Path) -> Users:
    """The users stored in `data_dir`. Raises FileNotFoundError before the first start."""
    stored = json.loads((data_dir / _USERS_FILE).read_text(encoding="utf-8"))
    return Users(writer=User(**stored["writer"]), reader=User(**stored["reader"]))


def ensure_users(data_dir: Path) -> Users:
    """The stored users, made with random passwords if there are none yet.

    Two processes may do this at once: the first file wins and both return it.
    """
    data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    target = data_dir / _USERS_FILE
    if not target.exists():
        _store_new_users(target)
    return read_users(data_dir)


def _store_new_users(target: Path) -> None:
    users = Users(
        writer=User(WRITER, secrets.token_urlsafe(24)),
        reader=User(READER, secrets.token_urlsafe(24)),
    )
    draft = target.with_name(f"{target.name}.{os.getpid()}.{secrets.token_hex(4)}.new")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        json.dump(asdict(users), file)
        file.flush()
        os.fsync(file.fileno())
    try:
        os.link(draft, target)  # unlike a rename, fails if somebody was first
    except FileExistsError:
        pass
    finally:
        draft.unlink()
