"""A file sink that behaves like the Collector's file exporter: appends lines, rotates by name."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

ACTIVE_NAME = "events.jsonl"

#: Every so many rotations, the newline of a file's last line opens the next file: the exporter
#: writes a line and its newline separately, and rotation can fall between the two.
_SPLIT_NEWLINE_EVERY = 4


class FileSink:
    """Appends lines to <folder>/events.jsonl, which is renamed when it would grow too large.

    Opening a folder that holds files appends to them. Every line is one unbuffered write, so a
    reader sees a line as soon as it is written. Not safe for two writers at once.
    """

    def __init__(self, folder: Path, max_megabytes: float) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._max_bytes = int(max_megabytes * 1024 * 1024)
        self._rotations = 0
        self._file = self._open()
        self._close_torn_line()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

    def write(self, line: bytes, at: datetime) -> None:
        """Append one line, given without its newline. `at` names the file if it is rotated."""
        if self._size and self._size + len(line) + 1 > self._max_bytes:
            self._rotate(at)
        self._append(line)
        is_nearly_full = self._size + 2 * len(line) > self._max_bytes
        if is_nearly_full and self._rotations % _SPLIT_NEWLINE_EVERY == 1:
            self._rotate(at)
        self._append(b"\n")

    def _append(self, data: bytes) -> None:
        self._file.write(data)
        self._size += len(data)

    def _rotate(self, at: datetime) -> None:
        self._file.close()
        (self._folder / ACTIVE_NAME).rename(self._free_name(at))
        self._rotations += 1
        self._file = self._open()

    def _free_name(self, at: datetime) -> Path:
        while True:
            stamp = at.astimezone(UTC).strftime("%Y-%m-%dT%H-%M-%S.%f")[:-3]
            path = self._folder / f"events-{stamp}-size.jsonl"
            if not path.exists():
                return path
            at += timedelta(milliseconds=1)

    def _open(self) -> BinaryIO:
        file = open(self._folder / ACTIVE_NAME, "ab", buffering=0)  # noqa: SIM115
        self._size = file.tell()
        return file

    def _close_torn_line(self) -> None:
        """A writer that was killed leaves half a line: what follows must not be glued to it."""
        if not self._size:
            return
        with open(self._folder / ACTIVE_NAME, "rb") as file:
            file.seek(-1, 2)
            if file.read(1) != b"\n":
                self._append(b"\n")
