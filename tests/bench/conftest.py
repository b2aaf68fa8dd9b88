"""The benchmarks lie beside the tests, not in the installed package."""

from __future__ import annotations

import sys

from fresh import REPOSITORY

sys.path.append(str(REPOSITORY))
