"""Counters with known label values: the values are those that the code counts, and the reference names each."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import get_args

import pytest
from prometheus_client import Counter

from gateway.door.places import Refusal
from schemas.codes import DEAD_LETTER_REASONS
from schemas.endpoint import DisabledBecause
from schemas.outcome import Outcome
from schemas.screening import Verdict
from telemetry.metrics import Metrics
from telemetry.series import ClosedCounter
from workers.delivery.breaker import BreakerState
from workers.delivery.post import FailureReason
from workers.engines.vllm.figures import Figures
from workers.stage.defects import Call
from workers.stage.settler_state import SettlerState

OPEN = {"model_cost", "http_requests"}
"""Counters whose label values come from a registry's currencies, and from routes and statuses."""

COUNTED: Mapping[str, Iterable[str]] = {
    "jobs": Outcome,
    "repairs": [state.value for state in SettlerState if state not in (SettlerState.READY, SettlerState.SETTLING)],
    "handler_defects": get_args(Call),
    "dead_letters": DEAD_LETTER_REASONS,
    "endpoints_disabled": set(DisabledBecause) - {DisabledBecause.OPERATOR},
    "breaker_changes": set(BreakerState) - {BreakerState.HALF_OPEN},
    "callbacks": {"delivered", *FailureReason},
    "screened": Verdict,
    "http_connections_refused": {*get_args(Refusal), "handshake"},
}
"""Counters for whose label values the code has one list."""


def closed() -> dict[str, ClosedCounter]:
    return {name: one for name, one in vars(Metrics()).items() if isinstance(one, ClosedCounter)}


def test_each_counter_with_labels_has_known_values_or_is_listed_as_open() -> None:
    labelled = {name for name, one in vars(Metrics()).items() if isinstance(one, Counter) and one._labelnames}

    assert labelled - closed().keys() == OPEN


@pytest.mark.parametrize("name", COUNTED)
def test_the_known_values_are_those_that_the_code_counts(name: str) -> None:
    assert set(closed()[name].values) == set(map(str, COUNTED[name]))


@pytest.mark.parametrize("name", sorted(closed().keys() - {"dead_letters"}))
def test_the_reference_names_each_known_value(name: str) -> None:
    [family] = closed()[name].describe()

    assert [value for value in closed()[name].values if not re.search(rf"\b{value}\b", family.documentation)] == []


def test_a_begun_counter_has_a_series_of_0_for_each_known_value_and_no_series_before() -> None:
    metrics = Metrics()
    assert shown(metrics.model_requests) == {}
    begun = metrics.model_requests.begin("small")
    begun["failed"].inc()

    assert shown(metrics.model_requests) == {("small", "answered"): 0, ("small", "refused"): 0, ("small", "failed"): 1}


def test_the_counters_of_vllm_begin_with_its_figures() -> None:
    metrics = Metrics()
    Figures(metrics, [0])

    assert shown(metrics.engine_tokens) == {("prompt",): 0, ("generation",): 0}
    assert shown(metrics.engine_prefix_tokens) == {("hit",): 0, ("miss",): 0}


def shown(counter: ClosedCounter) -> dict[tuple[str, ...], float]:
    """Return the value of each series of the counter, by the labels of the series."""
    [family] = counter.collect()
    return {tuple(one.labels.values()): one.value for one in family.samples if one.name.endswith("_total")}
