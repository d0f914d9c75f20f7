"""The alerts ask for series that a fleet of real processes exposes after its first job.

A counter's label that appears with its first event hides that event: `increase` needs an earlier sample.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from operator import eq, ne
from pathlib import Path

import pytest
import requests
from prometheus_client.parser import text_string_to_metric_families

from tests.integration.certificates import Authority
from tests.integration.gateway.gateway_process import start_gateway
from tests.integration.test_monitoring import OF_OTHERS, rules
from tests.product import Product, Role, eventually

pytestmark = pytest.mark.broker

SELECTOR = re.compile(r"\b(postback_\w+|DCGM_\w+)(?:\{([^}]*)\})?")
MATCHER = re.compile(r'(\w+)(=~|!=|=)"([^"]*)"')
HOLDS: dict[str, Callable[[str, str], bool]] = {
    "=": eq,
    "!=": ne,
    "=~": lambda value, pattern: re.fullmatch(pattern, value) is not None,
}

WITH_FAULTS = {
    ("postback_peer_silent_seconds", 'peer="redis"'),
    ("postback_peer_silent_seconds", 'peer="model_server"'),
    ("postback_http_requests_total", 'status=~"5.."'),
}
"""Series of servers that this fleet does without, and of answers that it never gives; test_deaths_ring.py has them."""

Series = tuple[str, dict[str, str]]


def test_each_series_that_a_rule_asks_for_exists_in_a_fleet_that_answered_one_job(
    product: Product, tmp_path: Path
) -> None:
    product.callbacks.up()
    gateway = start_gateway(product, tls=Authority.create(tmp_path))
    roles: list[Role] = [
        gateway.role,
        product.worker("w1"),
        product.deliver("d1"),
        product.exporter("e1", POSTBACK_EXPORTER__INTERVAL_SECONDS="0.2"),
    ]
    product.submit(
        [{"prompt": "Why?", "callback_url": product.callbacks.url}, {"prompt": "[[sleep 300]]"}]
    )  # the second job runs until the end of the test, which kills the processes
    gateway.wait_until_ready()
    gateway.get("/v1/models", gateway.key())
    product.wait_for_callbacks(1, 90)

    asked = {
        selector for rule in rules() for selector in SELECTOR.findall(rule["expr"]) if selector[0] not in OF_OTHERS
    } - WITH_FAULTS
    eventually(lambda: missing(asked, roles) == [], 60, lambda: f"no series of {missing(asked, roles)}")


def missing(asked: set[tuple[str, str]], roles: list[Role]) -> list[tuple[str, str]]:
    """Return the selectors for which no role's metrics have a series."""
    exposed = [one for role in roles for one in series(role)]
    return sorted(selector for selector in asked if not any(selects(selector, one) for one in exposed))


def series(role: Role) -> list[Series]:
    text = requests.get(f"http://127.0.0.1:{role.port}/metrics", timeout=30).text
    return [(one.name, one.labels) for family in text_string_to_metric_families(text) for one in family.samples]


def selects(selector: tuple[str, str], one: Series) -> bool:
    name, labels = one
    return selector[0] == name and all(
        HOLDS[operator](labels.get(label, ""), value) for label, operator, value in MATCHER.findall(selector[1])
    )
