"""Checks and their findings.

If a check hangs or raises an error, this becomes a finding, and the other checks still run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from threading import Thread

from producers.errors import AccessRefused, BrokerUnreachable, ProducerError, TopicMissing
from schemas.settings import SettingsRefused
from telemetry.clock import Clock, Deadline, SystemClock

CHECK_SECONDS = 30.0
"""Longest time for one round of checks. All checks of a round run at the same time."""
_NAMED = 3
_CLOCK = SystemClock()


class FindingLevel(StrEnum):
    """The severity of a finding."""

    WARNING = "warning"
    """The fleet works, but an operator should look at this finding."""
    FAULT = "fault"
    """Something does not work, or loses work."""


@dataclass(frozen=True, slots=True)
class Finding:
    """A fault with its fix, each a phrase without a full stop."""

    level: FindingLevel
    problem: str
    fix: str


def fault(problem: str, fix: str) -> Finding:
    """Return a finding of something that does not work."""
    return Finding(FindingLevel.FAULT, problem, fix)


def warning(problem: str, fix: str) -> Finding:
    """Return a finding of something that works, but that an operator should look at."""
    return Finding(FindingLevel.WARNING, problem, fix)


def fault_of(error: Exception, fix: str, separator: str = "; ") -> Finding:
    """Return a fault in the words of an error, whose text is a problem and perhaps its own fix behind the separator."""
    problem, _, own_fix = str(error).partition(separator)
    return fault(problem, own_fix or fix)


@dataclass(frozen=True, slots=True)
class Check:
    """One subject to examine. `look` may block, and may raise ProducerError and SettingsRefused."""

    name: str
    look: Callable[[], Iterable[Finding]]
    needs: str | None = None
    """The name of a check that must succeed first. If that check fails, this one is skipped, because it would find the
    same fault again."""


@dataclass(frozen=True, slots=True)
class Examined:
    """A check's findings; empty if all is well. If `skipped` is true, the check did not run."""

    check: str
    findings: tuple[Finding, ...] = ()
    skipped: bool = False


def examine(checks: Sequence[Check], seconds: float = CHECK_SECONDS, clock: Clock = _CLOCK) -> list[Examined]:
    """Run the checks in two rounds, those that other checks need in the first.

    Return the checks' findings in the given order.
    """
    done = _round([check for check in checks if check.needs is None], seconds, clock)
    sound = {
        name for name, each in done.items() if all(found.level is not FindingLevel.FAULT for found in each.findings)
    }
    done |= _round([check for check in checks if check.needs in sound], seconds, clock)
    return [done.get(check.name, Examined(check.name, skipped=True)) for check in checks]


def _round(checks: Sequence[Check], seconds: float, clock: Clock) -> dict[str, Examined]:
    """Run the checks at the same time, each in a thread of its own, so that a hanging check delays no other check."""
    done: dict[str, Examined] = {}

    def make(check: Check) -> None:
        done[check.name] = _made(check)

    # The threads are daemons, because a thread that hangs in a library's call must not keep the command from ending.
    threads = {check.name: Thread(target=make, args=(check,), daemon=True) for check in checks}
    for thread in threads.values():
        thread.start()
    deadline = Deadline.after(clock, seconds)
    for thread in threads.values():
        thread.join(deadline.remaining)
    late = fault(f"this check had no end after {seconds:g} s", "run the command again; if it repeats, look for a hang")
    ended = dict(done)
    return {name: ended.get(name, Examined(name, (late,))) for name in threads}


def _made(check: Check) -> Examined:
    try:
        return Examined(check.name, tuple(check.look()))
    except (TopicMissing, SettingsRefused):
        return Examined(check.name, skipped=True)  # the checks of topics and of settings report this error
    except AccessRefused as error:
        found = fault(f"Kafka refuses access ({error.reason})", "grant the operations of docs/DEPLOY.md#acls")
    except BrokerUnreachable:
        found = fault("Kafka stopped answering", "run the command again; look at the brokers' logs if it repeats")
    except ProducerError as error:
        found = fault_of(error, "look at the brokers' logs", ": ")
    except Exception as error:
        # The error's text may hold a setting's value, so only its type is shown.
        found = fault(f"this check itself failed ({type(error).__name__})", "report it as a defect of Postback")
    return Examined(check.name, (found,))


def listed(names: Sequence[str]) -> str:
    """Return the first names and the number of the others, as text."""
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def in_words(seconds: float) -> str:
    """Return a length of time with its unit: seconds below a minute, minutes below an hour, otherwise hours."""
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"
