"""The decisions of a rollout: a pure fold over its comparisons, in the order of their partition.

Every worker folds the same records and comes to the same decision, so that no worker has to lead.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque
from dataclasses import dataclass, field
from math import log10
from typing import Final

from schemas.rollout.comparison import Comparison, ObservedAnswer
from schemas.rollout.e_process import DECIDED, EProcess
from schemas.rollout.facts import RolloutOrder, Step

MOST_DIFFERENT: Final = 0.03
"""The smallest mean difference, after the noise is subtracted, that decides against a candidate."""
FLAGS: Final = {
    "failed": "failures",
    "not_json": "answers that are not JSON",
    "refused": "refusals",
    "cut": "answers cut at max_tokens",
    "unsupported": "unsupported citations",
}
_SLOWER_MS = 250.0
"""An answer is slow only if it also exceeds the primary's 95th percentile by this time.

If the primary's times are short, noise alone may make an answer take `slower` times as long.
"""
_SLOW_SHARE = 0.05
_BASELINE_JOBS = 20
"""The candidate's latency is judged only after this many jobs of the primary."""
_LATENCIES = 1000
_BOUNDS: Final = {"latency": MOST_DIFFERENT, "tokens": 0.2, **dict.fromkeys(FLAGS, MOST_DIFFERENT)}
"""For each guard, the allowed mean excess over the primary."""
_NAMES: Final = {**FLAGS, "latency": "slow answers", "tokens": "longer answers"}
MOST_PROFILES: Final = 100
_PATH_POINTS: Final = 2000


@dataclass(frozen=True, slots=True)
class Decision:
    """The next step, with its reason in words."""

    step: Step
    why: str


@dataclass(slots=True)
class Baseline:
    """The primary's answers so far."""

    count: int = 0
    flags: dict[str, int] = field(default_factory=lambda: dict.fromkeys(FLAGS, 0))
    tokens: int = 0
    _recent: deque[float] = field(default_factory=deque)
    _sorted: list[float] = field(default_factory=list)

    def take(self, seen: ObservedAnswer) -> None:
        """Add an answer."""
        self.count += 1
        self.tokens += seen.tokens
        for name in FLAGS:
            self.flags[name] += getattr(seen, name)
        self._recent.append(seen.infer_ms)
        insort(self._sorted, seen.infer_ms)
        if len(self._recent) > _LATENCIES:
            del self._sorted[bisect_left(self._sorted, self._recent.popleft())]

    @property
    def p95_ms(self) -> float | None:
        """The 95th percentile of the last thousand latencies; None for fewer than twenty."""
        if len(self._sorted) < _BASELINE_JOBS:
            return None
        return self._sorted[int(0.95 * (len(self._sorted) - 1))]

    def excess(self, seen: ObservedAnswer, beside: ObservedAnswer | None, slower: float) -> dict[str, float]:
        """Return, for each guard, the value of the candidate's answer minus the primary's, from -1 to 1.

        `beside` is the primary's answer to the same job; if it is None, the primary's mean so far is used. `slower` is
        the order's field of that name.
        """
        found: dict[str, float] = {}
        for name in FLAGS:
            usual = float(getattr(beside, name)) if beside is not None else self.flags[name] / max(1, self.count)
            found[name] = float(getattr(seen, name)) - usual
        tokens = beside.tokens if beside is not None else self.tokens / max(1, self.count)
        if beside is not None or self.count:
            found["tokens"] = (seen.tokens - tokens) / max(seen.tokens, tokens, 1)
        if (p95 := self.p95_ms) is not None:
            slow = seen.infer_ms > max(slower * p95, p95 + _SLOWER_MS)
            found["latency"] = float(slow) - _SLOW_SHARE
        return found


def _new_guards() -> dict[str, EProcess]:
    return {name: EProcess(bound) for name, bound in _BOUNDS.items()}


@dataclass(slots=True)
class ProfileJudge:
    """The evidence of one profile's jobs.

    The canary's reports have guards of their own. If they shared the guards of the copies, then after 2,000 good copies
    it would take 86 failures in a row to abort, and the first canary step would end well before.
    """

    difference: EProcess = field(default_factory=lambda: EProcess(MOST_DIFFERENT))
    copies_guards: dict[str, EProcess] = field(default_factory=_new_guards)
    canary_guards: dict[str, EProcess] = field(default_factory=_new_guards)
    baseline: Baseline = field(default_factory=Baseline)
    has_passed: bool = False
    is_different: bool = False
    tripped: dict[str, None] = field(default_factory=dict)
    """The guards that have decided against the candidate."""
    path: list[tuple[float, float]] = field(default_factory=list)
    """After each compared job: log10 of the e-values for "equal" and for "different"."""

    def take(self, said: Comparison, slower: float) -> None:
        """Add a record. `slower` is the order's field of that name."""
        if said.candidate is not None:
            guards = self.copies_guards if said.primary is not None else self.canary_guards
            for name, excess in self.baseline.excess(said.candidate, said.primary, slower).items():
                guard = guards[name]
                guard.take(excess)
                if guard.above >= DECIDED:
                    self.tripped[name] = None
        if said.primary is not None:
            self.baseline.take(said.primary)
        if said.primary is not None and said.candidate is not None:
            self.difference.take(said.differs - said.noise)
            self.has_passed = self.has_passed or self.difference.below >= DECIDED
            self.is_different = self.is_different or self.difference.above >= DECIDED
            if len(self.path) < _PATH_POINTS:
                self.path.append((log10(self.difference.below), log10(self.difference.above)))


class Judge:
    """Folds a rollout's comparisons into its next step."""

    def __init__(self, order: RolloutOrder) -> None:
        self.order = order
        self.profiles: dict[str, ProfileJudge] = {}
        self.compared = 0
        self.canary = dict.fromkeys(Step, 0)
        """Number of the candidate's reported jobs at each step."""

    def take(self, said: Comparison) -> None:
        """Add a record of this rollout."""
        if said.profile not in self.profiles and len(self.profiles) >= MOST_PROFILES:
            return
        self.profiles.setdefault(said.profile, ProfileJudge()).take(said, self.order.slower)
        if said.primary is not None and said.candidate is not None:
            self.compared += 1
        elif said.candidate is not None:
            self.canary[said.step] += 1

    def decision(self, step: Step) -> Decision | None:
        """Return the step that follows the present one; None while the evidence does not decide."""
        if step.is_over:
            return None
        against = self._against()
        if against is not None:
            return Decision(Step.ABORTED, against)
        if step is Step.SHADOW:
            return self._after_shadow()
        if self.canary[step] < self.order.canary_jobs:
            return None
        return Decision(
            step.next, f"{self.canary[step]} jobs of the candidate at a share of {step.share:.0%}: no guard holds"
        )

    def _against(self) -> str | None:
        """Return the first reason against the candidate, with its profile; None if there is none."""
        for name, profile in self.profiles.items():
            for guard in profile.tripped:
                return f"profile {name}: more {_NAMES[guard]} than the primary has"
            if profile.is_different:
                rate = profile.difference.mean
                return f"profile {name}: the answers differ by {rate:.1%}, {profile.difference.count} jobs compared"
        return None

    def _after_shadow(self) -> Decision | None:
        judged = {name: each for name, each in self.profiles.items() if each.difference.count}
        open_ = [name for name, each in judged.items() if not each.has_passed]
        if judged and not open_:
            return Decision(
                Step.SHADOW.next,
                f"{self.compared} jobs compared: fewer than {MOST_DIFFERENT:.0%} differ in each profile",
            )
        if self.compared >= self.order.max_jobs:
            return Decision(Step.ABORTED, f"undecided after {self.compared} jobs: profile {', '.join(open_[:5])}")
        return None
