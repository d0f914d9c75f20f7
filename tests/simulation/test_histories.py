"""Histories of a fleet under faults: each job has one result, none is early, nothing is stuck.

Some are drawn by `history.py`; others by Hypothesis, which shrinks a failing history to the actions it needs.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from tests.drawn import drawn
from tests.simulation.fleet import Fleet
from tests.simulation.history import ACTIONS, drawing, drawn_history, silent, telling

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


class FleetMachine(RuleBasedStateMachine):
    """A fleet, and the faults that befall it."""

    fleet: Fleet | None = None
    is_broken = False

    @initialize(seed=st.integers(0, 10_000))
    def begin(self, seed: int) -> None:
        self.fleet = Fleet(seed)
        for name in self.fleet.names:
            self.fleet.start(name)
        self.fleet.add(5)

    @rule(name=st.sampled_from(list(ACTIONS)), steps=st.integers(1, 100))
    def act(self, name: str, steps: int) -> None:
        assert self.fleet is not None, "`begin` comes first"
        self.is_broken = True
        with silent():
            self.fleet.simulation.run(steps, 8.0)
            ACTIONS[name][1](self.fleet, self.fleet.random)
        self.is_broken = False

    def teardown(self) -> None:
        if self.fleet is not None:
            with telling(self.fleet, "these actions"), silent():
                if not self.is_broken:
                    self.fleet.settle()


FleetMachine.TestCase.settings = settings(max_examples=drawn(40), stateful_step_count=15)
TestMachine = FleetMachine.TestCase
