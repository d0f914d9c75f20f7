"""Histories: what happens to a fleet, drawn from a seed."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tests.simulation.fleet import Broken, Fleet, Process
from tests.simulation.scheduler import Event

REQUESTS = ("commit", "results", "offsets", "abort", "init", "committed")
"""The requests whose answers may be lost; `results` is a commit with results."""
STUMBLES = ("before", "after", "fenced")
"""The ways in which a commit may fail."""
SHOWN = 400
"""The number of a history's last lines that a failure shows."""

Act = Callable[[Fleet, random.Random], None]


def _to_one(act: Callable[[Fleet, Process, random.Random], None]) -> Act:
    """Return an action on a process that is drawn."""

    def acts(fleet: Fleet, rng: random.Random) -> None:
        if fleet.processes:
            act(fleet, rng.choice(fleet.processes), rng)

    return acts


def _start(fleet: Fleet, rng: random.Random) -> None:
    missing = [name for name in fleet.names if not fleet.alive(name)]
    if missing:
        fleet.start(rng.choice(missing))


def _twin(fleet: Fleet, rng: random.Random) -> None:
    name = rng.choice(fleet.names)
    if len(fleet.alive(name)) == 1:
        fleet.start(name)


def _brokers(fleet: Fleet, rng: random.Random) -> None:
    if fleet.kafka.up:
        fleet.brokers_away()
    else:
        fleet.brokers_back(restarted=rng.random() < 0.5)


def _pause(fleet: Fleet, process: Process, rng: random.Random) -> None:
    if process.paused:
        fleet.go_on(process)
    else:
        fleet.pause(process)


def _crash(fleet: Fleet, process: Process, rng: random.Random) -> None:
    """Crash the engine when several records run: at most moments none runs, or only one."""
    process.crashes_amid = rng.randrange(1, 8)
    process.note(f"its engine will crash amid {process.crashes_amid} records")


ACTIONS: dict[str, tuple[int, Act]] = {
    "add": (5, lambda fleet, rng: fleet.add(rng.randrange(1, 8), in_transaction=rng.random() < 0.3)),
    "add_gap": (1, lambda fleet, rng: fleet.add(rng.randrange(1, 3), aborted=True)),
    "start": (6, _start),
    "twin": (1, _twin),
    "kill": (2, _to_one(lambda fleet, process, rng: fleet.kill(process))),
    "stop": (4, _to_one(lambda fleet, process, rng: fleet.stop(process))),
    "pause": (4, _to_one(_pause)),
    "cut": (2, _to_one(lambda fleet, process, rng: fleet.cut(process, rng.choice((0.3, 3.0, 7.0, 13.0))))),
    "lose": (3, _to_one(lambda fleet, process, rng: fleet.lose_answer(process, rng.choice(REQUESTS)))),
    "stumble": (4, _to_one(lambda fleet, process, rng: fleet.stumble(process, rng.choice(STUMBLES)))),
    "refuse_offsets": (2, _to_one(lambda fleet, process, rng: fleet.refuse_offsets(process))),
    "crash": (4, _to_one(_crash)),
    "brokers": (2, _brokers),
    "rebalance": (2, lambda fleet, rng: fleet.rebalance()),
    "more_partitions": (1, lambda fleet, rng: fleet.more_partitions()),
    "trim": (1, lambda fleet, rng: fleet.trim()),
}
"""The actions of a history, each with its weight."""
_NAMES = list(ACTIONS)
_WEIGHTS = [weight for weight, _ in ACTIONS.values()]


class HistoryFailed(AssertionError):  # noqa: N818 - it names what happened
    """A history broke a promise. The text has the seed and the history."""


def drawn_history(seed: int) -> list[Event]:
    """Let a fleet live the history of this seed. Raises HistoryFailed; returns the history."""
    fleet = Fleet(seed)
    rng = fleet.random
    with telling(fleet, f"seed {seed}"), silent():
        for name in fleet.names:
            fleet.start(name)
        fleet.add(rng.randrange(3, 12))
        for _ in range(rng.randrange(3, 15)):
            fleet.simulation.run(int(rng.choice((5, 30, 100)) * rng.random()) + 1, rng.choice((0.2, 2.0, 8.0)))
            (name,) = rng.choices(_NAMES, _WEIGHTS)
            ACTIONS[name][1](fleet, rng)
        fleet.settle()
    return fleet.simulation.history


@contextmanager
def telling(fleet: Fleet, which: str) -> Iterator[None]:
    """Add the seed and the history to an error, and end the fleet."""
    try:
        try:
            yield
        finally:
            fleet.simulation.error = None
            fleet.close()
    except Exception as error:
        said = str(error) if isinstance(error, Broken) else f"{type(error).__name__}: {error}"
        raise HistoryFailed(f"{which}: {said}\n{drawing(fleet.simulation.history)}") from error


def drawing(history: list[Event]) -> str:
    """Return the last lines of a history: step, time, who, what."""
    lines = [f"{step:6} {time:9.3f} {who:>3}  {what}" for step, time, who, what in history[-SHOWN:]]
    return "\n".join(lines)


@contextmanager
def silent() -> Iterator[None]:
    """Write no log lines: they would take most of the time.

    `logging.disable` also empties the loggers' caches of enabled levels. With the manager's attribute set by hand,
    warnings of later tests would be left out.
    """
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)
