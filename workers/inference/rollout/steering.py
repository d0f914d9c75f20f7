"""Turns the comparisons of a rollout into its next step.

All workers read the same comparisons and derive the same steps.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from math import log10

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from schemas.rollout.comparison import InvalidComparison, read_comparison
from schemas.rollout.facts import Rollout, RolloutStep, Step, step_record
from schemas.rollout.judge import Judge
from schemas.settings import KafkaSettings
from telemetry.clock import Clock, unix_ms
from telemetry.logs import get_logger
from telemetry.metrics import Metrics
from workers.inference.rollout.rollouts import Rollouts
from workers.kafka.clients import client_config
from workers.system.side_task import SideTask

AGAIN_SECONDS = 10.0
"""A step that is not visible after this time is written once more."""
_POLL_SECONDS = 0.5
_KEPT_MS = 10_000
_MOST_EARLY = 1000

log = get_logger()


class Steering(SideTask):
    """Adds up comparisons as they are read, and writes the steps that follow from the totals.

    Two workers may write the same step: their records have one key, and the second record has no effect.
    """

    def __init__(
        self, rollouts: Rollouts, replica: str, clock: Clock, metrics: Metrics, write: Callable[[RolloutStep], object]
    ) -> None:
        self._rollouts = rollouts
        self._replica = replica
        self._clock = clock
        self._metrics = metrics
        self._write = write
        self._judges: dict[str, Judge] = {}
        self._early: deque[tuple[bytes | None, bytes | None]] = deque(maxlen=_MOST_EARLY)
        """Comparisons that arrived before the order of their rollout."""
        self._written: dict[tuple[str, Step], float] = {}
        """The written steps, and the time of each write."""
        rollouts.on_change.append(self._changed)

    def apply(self, key: bytes | None, value: bytes | None) -> None:
        """Apply a record of the topic that has the comparisons."""
        rollout = self._rollouts.with_id(key.decode("ascii", "replace")) if key is not None else None
        if rollout is None:
            self._early.append((key, value))
            return
        if rollout.step.is_over:
            return
        try:
            said = read_comparison(key, value)
        except InvalidComparison as error:
            log.warning(
                "Skipping an unreadable comparison.", action="rollout-comparison-unreadable", problem=str(error)
            )
            return
        judge = self._judges.setdefault(rollout.order.id, Judge(rollout.order))
        judge.take(said)
        self._decide(rollout, judge)

    def _changed(self, rollout: Rollout) -> None:
        """Apply a new order or a new step of a rollout."""
        self._metrics.rollout_share.labels(rollout.order.alias).set(rollout.step.share)
        known = {each.order.id for each in self._rollouts.running()}
        self._judges = {name: judge for name, judge in self._judges.items() if name in known}
        early = [each for each in self._early if each[0] == rollout.order.id.encode()]
        for each in early:
            self._early.remove(each)
        for each in early:
            self.apply(*each)
        if (judge := self._judges.get(rollout.order.id)) is not None:
            self._decide(rollout, judge)

    def _decide(self, rollout: Rollout, judge: Judge) -> None:
        """Write the next step if the comparisons suffice, unless this worker has just written that step."""
        order = rollout.order
        values = [(each.difference.below, each.difference.above) for each in judge.profiles.values()]
        for claim, lowest in zip(("equal", "different"), zip(*values, strict=True), strict=True):
            self._metrics.rollout_e_value.labels(order.alias, claim).set(log10(min(lowest)))
        decision = judge.decision(rollout.step)
        if decision is None:
            return
        now, known = self._clock.monotonic(), self._written.get((order.id, decision.step))
        if known is not None and now - known < AGAIN_SECONDS:
            return
        self._written[order.id, decision.step] = now
        self._write(
            RolloutStep(
                alias=order.alias,
                rollout=order.id,
                step=decision.step,
                why=decision.why[:1000],
                by=self._replica,
                at=unix_ms(self._clock),
            )
        )

    async def ended(self) -> None:
        """Until cancelled, write each step again that does not become visible: Kafka may have lost the record."""
        while True:
            await asyncio.sleep(AGAIN_SECONDS)
            for rollout in self._rollouts.running():
                if (judge := self._judges.get(rollout.order.id)) is not None:
                    self._decide(rollout, judge)


class StepWriter(SideTask):
    """Writes steps to `model_rollouts`. The first step creates the producer, since most workers write no step."""

    def __init__(self, kafka: KafkaSettings) -> None:
        self._kafka = kafka
        self._producer: Producer | None = None

    def write(self, step: RolloutStep) -> None:
        """Send a step's record; a failure is logged, and `Steering` writes the step again."""
        key, value = step_record(step)
        log.info(
            "The evidence decides a rollout; writing its next step.",
            action="rollout-decided",
            step=step.step,
            why=step.why,
        )
        try:
            if self._producer is None:
                config = {**client_config(self._kafka), "linger.ms": 0, "message.timeout.ms": _KEPT_MS}
                self._producer = Producer(config)
            self._producer.produce(self._kafka.topics.rollouts, value, key, 0, on_delivery=_delivered)
        except (KafkaException, BufferError) as error:
            _delivered(
                error.args[0] if isinstance(error.args[0], KafkaError) else KafkaError(KafkaError._QUEUE_FULL), None
            )

    async def ended(self) -> None:
        """Report deliveries until cancelled."""
        while True:
            if self._producer is not None:
                self._producer.poll(0)
            await asyncio.sleep(_POLL_SECONDS)

    async def close(self) -> None:
        """Wait at most two seconds for the broker."""
        if self._producer is not None:
            await asyncio.to_thread(self._producer.flush, 2.0)
            self._producer.purge()


def _delivered(error: KafkaError | None, _: Message | None) -> None:
    if error is not None:
        log.warning(
            "Kafka refused a rollout's step; writing it again.", action="rollout-step-refused", problem=error.name()
        )
