"""The marks around sources, in the prompts of two workers of one fleet."""

from __future__ import annotations

import json

import pytest

from tests.fleet_here import FleetHere
from tests.messages import value_of

pytestmark = pytest.mark.broker


def test_two_workers_without_a_trust_secret_put_equal_marks_around_equal_sources(fleet_here: FleetHere) -> None:
    sources = {"documents": [{"id": "memo", "text": "Tarnby has a mill. Analysts expect the mill to grow."}]}
    for number in (1, 2):
        job = {"job_id": f"job-{number}", "prompt": "Does the mill of Tarnby grow?", "sources": sources}
        fleet_here.put([json.dumps(job).encode()])
        worker = fleet_here.worker(f"w{number}", POSTBACK_ENRICHMENT__BUDGET_SECONDS="60")
        fleet_here.wait_for_results(number, 60)
        assert worker.terminate() == 0
    # The echo engine answers with the whole prompt.
    one, other = (json.loads(value_of(message))["text"] for message in fleet_here.read(fleet_here.kafka.topics.results))
    assert "Tarnby has a mill" in one
    assert one == other
