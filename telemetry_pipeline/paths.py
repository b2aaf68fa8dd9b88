"""Where the project and its data lie on this machine."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

CONFIG_FILE = "telemetry.yaml"


@dataclass(frozen=True)
class Project:
    """The checkout (`root`) and the folder that holds everything a run writes (`data_dir`)."""

    root: Path
    data_dir: Path

    def resolve(self, path: str) -> Path:
        """A path of telemetry.yaml: .data/… lies in the data folder, the rest in the root."""
        first, _, rest = path.partition("/")
        return self.data_dir / rest if first == ".data" else self.root / path

    @property
    def config_file(self) -> Path:
        return self.root / CONFIG_FILE

    @property
    def catalog_dir(self) -> Path:
        return self.root / "catalog"

    @property
    def dbt_dir(self) -> Path:
        return self.root / "dbt_project"

    @property
    def warehouse_dir(self) -> Path:
        return self.data_dir / "warehouse"

    @property
    def keys_dir(self) -> Path:
        return self.data_dir / "keys"

    @property
    def dagster_home(self) -> Path:
        return self.data_dir / "dagster"

    @property
    def dbt_target_dir(self) -> Path:
        return self.data_dir / "dbt" / "target"

    @property
    def sink_dir(self) -> Path:
        return self.data_dir / "sink"


def find_project() -> Project:
    """The project of TELEMETRY_ROOT, else of the nearest folder above that holds telemetry.yaml.

    TELEMETRY_DATA_DIR moves the data; its default is .data/ in the root.
    """
    named = os.environ.get("TELEMETRY_ROOT")
    root = Path(named) if named else _nearest_root(Path.cwd())
    data = os.environ.get("TELEMETRY_DATA_DIR")
    return Project(root=root.resolve(), data_dir=(Path(data) if data else root / ".data").resolve())


def _nearest_root(start: Path) -> Path:
    for folder in (start, *start.parents):
        if (folder / CONFIG_FILE).exists():
            return folder
    return start
