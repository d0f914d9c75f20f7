"""Every counter with known label values shows 0 in the role that counts it, before the first event.

Prometheus's `rate` and `increase` miss an event that creates its series.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from telemetry.metrics import Metrics
from telemetry.series import ClosedCounter
from tests.fleet_here import FleetHere
from tests.integration.gateway.gateway_process import start_gateway
from tests.integration.gateway.test_alert_series import Series, series
from tests.product import eventually
from tests.screening_rules import regex

pytestmark = pytest.mark.broker

REGISTRY = """
[engines.here]
kind = "echo"
[models.small]
engine = "here"
cost = { prompt = 1, completion = 2 }
"""
OF_A_STAGE = {"settles", "repairs", "handler_defects"}
OF_A_RENDERER = {"renderings"}
OF_VLLM = {"engine_tokens", "engine_prefix_tokens"}
BEGUN = {
    "worker": OF_A_STAGE
    | {"jobs", "dead_letters", "tokens", "model_requests", "screened", "rollout_samples"}
    | {"cache_lookups", "fetches", "searches", "reranks"},
    "shadow": OF_A_STAGE | {"tokens", "rollout_samples"},
    "deliver": OF_A_STAGE | {"dead_letters", "callbacks", "breaker_changes", "endpoints_disabled"},
    "gateway": OF_A_STAGE | {"jobs", "dead_letters", "screened", "viewed_records", "http_connections_refused"},
    "exporter": set[str](),
}


def test_each_role_begins_every_series_of_the_counters_that_it_counts(fleet_here: FleetHere, tmp_path: Path) -> None:
    (tmp_path / "models.toml").write_text(REGISTRY)
    rules = tmp_path / "rules.toml"
    rules.write_text(f"[[rule]]\n{regex('secret')}\n")
    registry, screening = str(tmp_path / "models.toml"), str(rules)
    at = ("--host", "127.0.0.1")
    gateway = start_gateway(fleet_here, POSTBACK_SCREENING__RULES=screening)
    roles = {
        "worker": fleet_here.worker("w1", *at, POSTBACK_WORKER__REGISTRY=registry, POSTBACK_SCREENING__RULES=screening),
        "shadow": fleet_here.worker("w2", "--engine", "echo", "--shadow"),
        "deliver": fleet_here.deliver("d1"),
        "gateway": gateway.role,
        "exporter": fleet_here.exporter("e1"),
    }
    gateway.wait_until_ready()
    for role in roles.values():
        eventually(lambda role=role: role.ready()[0], 120, role.said)  # type: ignore[misc]
    exposed = {name: series(role) for name, role in roles.items()}

    assert {name: begun(of_role) for name, of_role in exposed.items()} == BEGUN
    assert set().union(*BEGUN.values()) | OF_A_RENDERER | OF_VLLM == closed().keys()
    assert ("postback_model_cost_total", {"model": "small", "currency": "USD"}) in exposed["worker"]


def begun(of_role: list[Series]) -> set[str]:
    """Return the counters of which a role shows a series; each of them must show all its label values."""
    found = set()
    for attribute, counter in closed().items():
        [family] = counter.describe()
        values = {labels[counter._labelnames[-1]] for name, labels in of_role if name == f"{family.name}_total"}
        assert values in (set(), set(counter.values)), attribute
        if values:
            found.add(attribute)
    return found


def closed() -> dict[str, ClosedCounter]:
    return {name: one for name, one in vars(Metrics()).items() if isinstance(one, ClosedCounter)}
