"""Prints the history of a seed: `python -m tests.simulation SEED`."""

from __future__ import annotations

import sys

from tests.simulation.history import HistoryFailed, drawing, drawn_history

try:
    print(drawing(drawn_history(int(sys.argv[1]))))  # noqa: T201 - the program's output
except HistoryFailed as failed:
    sys.exit(str(failed))
