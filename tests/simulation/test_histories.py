"""Histories of a fleet under faults: each job has one result, none is early, nothing is stuck."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.drawn import drawn
from tests.simulation.history import drawing, drawn_history

PARTS = 10
SEED = int(os.environ.get("POSTBACK_FIRST_SEED", "0"))
HISTORIES = int(os.environ.get("POSTBACK_HISTORIES", "0")) or drawn(5_000)
"""2,000 by default, since the default profile draws 40 examples instead of 100."""


@pytest.mark.timeout(300 + HISTORIES)
@pytest.mark.parametrize("part", range(PARTS))
def test_a_fleet_keeps_its_promises_in_every_history(part: int) -> None:
    for seed in range(SEED + part, SEED + HISTORIES, PARTS):
        drawn_history(seed)


def test_two_runs_of_one_seed_have_the_same_history() -> None:
    for seed in range(10):
        assert drawn_history(seed) == drawn_history(seed)


def test_the_command_repeats_a_history_in_another_process() -> None:
    """The order of a set differs between two processes, unless its members are numbers."""
    told = subprocess.run(
        [sys.executable, "-m", "tests.simulation", "3"],
        env={**os.environ, "PYTHONHASHSEED": "7"},
        capture_output=True,
        check=True,
        text=True,
    )
    assert told.stdout == drawing(drawn_history(3)) + "\n"
