"""The same actions as in `history.py`, drawn by Hypothesis, which shrinks a failing history to the actions it needs."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from tests.drawn import drawn
from tests.simulation.fleet import Fleet
from tests.simulation.history import ACTIONS, silent, telling


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
