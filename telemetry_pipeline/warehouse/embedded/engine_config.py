"""The configuration files the engine reads at start: limits, defaults, and the two roles.

Users cannot be created in chDB, but its users file is honoured. So the one engine user has two
roles, and a connection for the reader gives up the owner's.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from xml.sax.saxutils import escape

from telemetry_pipeline.warehouse.embedded.errors import EmbeddedWarehouseError

READER_ROLE: Final = "reader"
# The engine reads these as patterns in file(), or as part of its connection string.
_FORBIDDEN_IN_PATH: Final = frozenset("?*{}[]&%#'\"\\\n|<>")


@dataclass(frozen=True)
class EngineLimits:
    """Memory in bytes for the whole engine and for one query."""

    server_bytes: int
    query_bytes: int

    @classmethod
    def from_total(cls, max_memory_bytes: int | None) -> EngineLimits:
        """Limits for a given total, or for 60 % of this machine's memory."""
        total = max_memory_bytes or int(machine_memory_bytes() * 0.6)
        return cls(server_bytes=total, query_bytes=int(total * 0.8))


@dataclass(frozen=True)
class Layout:
    """The folders below a data folder."""

    data_dir: Path

    @property
    def database(self) -> Path:
        """Where the engine keeps its tables."""
        return self.data_dir / "database"

    @property
    def spool(self) -> Path:
        """Where bodies and long answers wait; emptied at start."""
        return self.data_dir / "tmp"

    @property
    def config(self) -> Path:
        """The engine's main configuration file."""
        return self.data_dir / "engine" / "config.xml"

    @property
    def schemas(self) -> Path:
        """Where the engine works: it keeps schemas there that statements bring along."""
        return self.data_dir / "engine" / "schemas"

    @property
    def users(self) -> Path:
        """The engine's users file."""
        return self.data_dir / "engine" / "users.xml"


def check_path(data_dir: Path) -> None:
    """Raise `EmbeddedWarehouseError` for a folder whose name the engine would misread."""
    bad = sorted(_FORBIDDEN_IN_PATH & set(str(data_dir)))
    if bad:
        raise EmbeddedWarehouseError(
            f"the data folder {str(data_dir)!r} has {' '.join(map(repr, bad))} in its name; "
            "choose another one"
        )


def write_config(layout: Layout, limits: EngineLimits) -> None:
    """Write both files anew, so that a changed limit takes effect at the next start."""
    layout.config.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    layout.config.write_text(_config_xml(layout, limits), encoding="utf-8")
    layout.users.write_text(_users_xml(limits), encoding="utf-8")


def default_settings(limits: EngineLimits) -> Mapping[str, str]:
    """The settings every query starts with; a client may change each of them."""
    return {
        # An acknowledged insert is in the table, and in its own block.
        "async_insert": "0",
        # No query text, and so no parameter, goes to a log table on disk.
        "log_queries": "0",
        "max_memory_usage": str(limits.query_bytes),
        "allow_introspection_functions": "0",
    }


def machine_memory_bytes() -> int:
    """Physical memory, or the container's limit if that is lower."""
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii"))
    except (OSError, ValueError):
        return physical
    return min(physical, limit)


def _config_xml(layout: Layout, limits: EngineLimits) -> str:
    # fsync: an acknowledged row survives a power cut, not only a killed process (+5 ms an insert).
    return f"""<clickhouse>
    <users_config>{escape(str(layout.users))}</users_config>
    <max_server_memory_usage>{limits.server_bytes}</max_server_memory_usage>
    <mark_cache_size>134217728</mark_cache_size>
    <merge_tree>
        <fsync_after_insert>1</fsync_after_insert>
        <fsync_part_directory>1</fsync_part_directory>
    </merge_tree>
</clickhouse>
"""


def _users_xml(limits: EngineLimits) -> str:
    settings = "\n            ".join(
        f"<{name}>{escape(value)}</{name}>" for name, value in default_settings(limits).items()
    )
    return f"""<clickhouse>
    <profiles>
        <default>
            {settings}
        </default>
    </profiles>
    <roles>
        <owner><grants><query>GRANT ALL ON *.* WITH GRANT OPTION</query></grants></owner>
        <{READER_ROLE}>
            <grants>
                <query>GRANT SELECT, SHOW, dictGet ON *.*</query>
            </grants>
        </{READER_ROLE}>
    </roles>
    <users>
        <default>
            <password></password>
            <networks><ip>127.0.0.1</ip><ip>::1</ip></networks>
            <profile>default</profile>
            <quota>default</quota>
            <grants><query>GRANT owner, {READER_ROLE}</query></grants>
        </default>
    </users>
    <quotas><default></default></quotas>
</clickhouse>
"""
