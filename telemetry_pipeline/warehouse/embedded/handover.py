"""Data for an INSERT that a client of the same machine puts into the server's spool itself.

Sent through HTTP, tens of megabytes are copied half a dozen times in Python on both sides, which
costs more than the engine needs to read them. So a client that may write to the spool folder puts
the data there and names the file in a header; the server reads and removes it. A ClickHouse server
knows no such header: the client sends it to an embedded warehouse alone.
"""

from __future__ import annotations

import os
import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from telemetry_pipeline.warehouse.embedded.errors import QueryError, bad_argument

HEADER: Final = "X-Telemetry-Spooled-Data"
_NAME: Final = re.compile(r"[0-9a-f]{32}\.rows")


@contextmanager
def handed_over(spool: Path, data: bytes) -> Iterator[dict[str, str]]:
    """The headers of a request whose data is `data`; the file is gone afterwards."""
    path = spool / f"{uuid.uuid4().hex}.rows"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb", buffering=0) as file:
            view = memoryview(data)
            while view:
                view = view[file.write(view) :]
        yield {HEADER: path.name}
    finally:
        path.unlink(missing_ok=True)


def received(spool: Path, name: str) -> Path:
    """The file that a request names, under a name that no other request can use.

    Raises QueryError for a name that is none of the spool's, or is no longer there.
    """
    if not _NAME.fullmatch(name):
        raise bad_argument(f"{HEADER}: must be the name of a file in the spool")
    taken = spool / f"{uuid.uuid4().hex}.rows"
    try:
        os.rename(spool / name, taken)
    except OSError:
        raise QueryError(107, "FILE_DOESNT_EXIST", f"{HEADER}: the file is not there") from None
    return taken
