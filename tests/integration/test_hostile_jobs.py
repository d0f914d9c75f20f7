"""A live fleet gets every class of record that a stranger can send: each record has one result, and no process ends."""

from __future__ import annotations

import pytest

from bench.fleet import Kafka
from bench.hostile_jobs import run
from tests.conftest import SharedBroker

pytestmark = pytest.mark.broker

RECORDS = 500
"""Records of each class; `python -m bench.hostile_jobs` sends 20,000."""


def test_each_job_of_the_published_schema_and_each_broken_one_has_its_one_result(
    broker: SharedBroker, clean_processes: None
) -> None:
    counted = run(Kafka(broker.bootstrap_servers), RECORDS, RECORDS, pool=50, seed=7)
    drawn, broken = counted["drawn"], counted["broken"]
    assert drawn.outcomes.total() == broken.outcomes.total() == RECORDS
    assert {"succeeded", "rejected"} <= drawn.outcomes.keys()
    assert broken.outcomes["rejected"] > RECORDS / 2
    assert drawn.callbacks
    assert broken.callbacks
