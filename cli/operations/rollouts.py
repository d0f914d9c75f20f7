"""Rollouts of candidate models: an operator's orders for them, and their state from the records in Kafka."""

from __future__ import annotations

import secrets
from collections import deque
from dataclasses import dataclass
from typing import Any, Final

from cli.operations.compacted import put_facts
from producers.scan import Scanner
from schemas.operator_error import OperatorError
from schemas.rollout.comparison import Comparison, InvalidComparison, read_comparison
from schemas.rollout.facts import (
    InvalidRollout,
    Rollout,
    RolloutOrder,
    RolloutStep,
    RolloutTable,
    Step,
    order_record,
    step_record,
)
from schemas.rollout.judge import Judge
from schemas.settings import KafkaSettings
from telemetry.clock import SystemClock, unix_ms

OPERATOR: Final = "operator"
EXAMPLES: Final = 50
"""The report keeps at most this number of comparisons whose answers differ: the latest ones."""
_CLOCK = SystemClock()


class RolloutRefused(OperatorError):  # noqa: N818 - named after the answer
    """An order that cannot be given now. The text names the fix."""


@dataclass(frozen=True, slots=True)
class JudgedRollout:
    """A rollout with the evidence of its comparisons."""

    rollout: Rollout
    judge: Judge
    different: tuple[Comparison, ...]
    """The latest comparisons whose answers differ."""


def rollouts(settings: KafkaSettings) -> RolloutTable:
    """Return the rollouts of all aliases. Raises ProducerError."""
    table = RolloutTable()
    with Scanner(settings) as scanner:
        for record in scanner.read(scanner.ranges(settings.topics.rollouts)):
            try:
                table.apply(record.key, record.value)
            except InvalidRollout:
                continue  # workers also ignore this record, and log a warning
    return table


def new_order(**wanted: Any) -> RolloutOrder:
    """Return an order with a new id, given now; `wanted` has its other fields. Raises ValidationError."""
    return RolloutOrder(id=f"ro_{secrets.token_hex(8)}", at=unix_ms(_CLOCK), **wanted)


def start(settings: KafkaSettings, wanted: RolloutOrder) -> Rollout:
    """Order a rollout, with the alias's present model as its primary.

    Returns when Kafka has the order. Raises RolloutRefused and ProducerError.
    """
    table = rollouts(settings)
    running = next((each.order for each in table.by_alias.values() if not each.step.is_over), None)
    if running is not None:
        raise RolloutRefused(
            f"the rollout of {running.candidate} for {running.alias} is still running, and one runs at a time: "
            f"`postback rollout abort --alias {running.alias}` ends it"
        )
    before = table.by_alias.get(wanted.alias)
    primary = model_of(before) if before is not None else None
    if wanted.candidate in (primary, wanted.alias):
        raise RolloutRefused(f"{wanted.alias} stands for {wanted.candidate} already; name another candidate")
    order = wanted.model_copy(update={"primary": primary})
    old = [(key, None) for key in table.records_of(order.alias)]
    # The new order comes first: if the old order's steps were withdrawn before it, the old order would begin again.
    put_facts(settings, settings.topics.rollouts, [order_record(order), *old])
    return Rollout(order)


def end(settings: KafkaSettings, rollout: Rollout, step: Step) -> None:
    """Write the step `promoted` or `aborted`. Returns when Kafka has the record. Raises RolloutRefused, ProducerError.

    An aborted rollout stays aborted. A promoted rollout can still be aborted, and its alias goes back to the primary.
    """
    order = rollout.order
    if rollout.step is Step.ABORTED:
        raise RolloutRefused(f"the rollout of {order.candidate} for {order.alias} is aborted; start another one")
    if rollout.step is step:
        raise RolloutRefused(f"the rollout of {order.candidate} for {order.alias} is promoted already")
    at = unix_ms(_CLOCK)
    said = RolloutStep(
        alias=order.alias,
        rollout=order.id,
        step=step,
        why=f"an operator's order, during {rollout.step}",
        by=OPERATOR,
        at=at,
    )
    put_facts(settings, settings.topics.rollouts, [step_record(said)])


def judged(settings: KafkaSettings, rollout: Rollout) -> JudgedRollout:
    """Return the evidence of a rollout, computed from its comparisons by the same rules as in every worker.

    Raises ProducerError.
    """
    judge, different = Judge(rollout.order), deque[Comparison](maxlen=EXAMPLES)
    key = rollout.order.id.encode()
    with Scanner(settings) as scanner:
        for record in scanner.read(scanner.ranges(settings.topics.comparisons, rollout.order.at)):
            if record.key != key:
                continue
            try:
                said = read_comparison(record.key, record.value)
            except InvalidComparison:
                continue  # workers also ignore this record, and log a warning
            judge.take(said)
            if said.differs:
                different.append(said)
    return JudgedRollout(rollout, judge, tuple(different))


def model_of(rollout: Rollout) -> str | None:
    """Return the model that the alias stands for after this rollout; None if no rollout has given the alias a model."""
    return rollout.order.candidate if rollout.step is Step.PROMOTED else rollout.order.primary
