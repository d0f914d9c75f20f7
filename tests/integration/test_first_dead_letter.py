"""The first dead letter of a reason, as a real Prometheus sees it: its series must have been 0 before."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from tests.fleet_here import FleetHere
from tests.integration.test_dashboard_panels import panels
from tests.product import eventually
from tests.prometheus_tools import scraping

pytestmark = [pytest.mark.broker, pytest.mark.timeout(600)]

SECONDS = 120.0


def test_a_panel_counts_the_first_dead_letter_of_a_job_and_the_first_of_a_callback(
    fleet_here: FleetHere, tmp_path: Path
) -> None:
    [query] = panels()["fleet", "Dead letters by reason"]
    worker = fleet_here.worker("w1", "--engine", "echo", "--with-delivery")
    eventually(lambda: worker.ready()[0], SECONDS, worker.said)
    with scraping(tmp_path, {"postback-worker": [worker.port]}) as prometheus:
        eventually(
            lambda: any(len(scrapes) > 2 for scrapes in prometheus.values("up == 1", 60)),
            SECONDS,
            "Prometheus does not scrape",
        )
        fleet_here.put([b"no job"])
        fleet_here.put([b"no result"], [("callback-url", b"https://example.com/")], fleet_here.kafka.topics.results)

        def counted(reason: str) -> bool:
            selected = query.replace("postback_dead_letters_total", f'postback_dead_letters_total{{reason="{reason}"}}')
            assert selected != query
            return any(rate > 0 for rates in prometheus.values(selected, 60) for rate in rates)

        for reason in ("rejected", "unusable_result"):
            eventually(partial(counted, reason), SECONDS, f"the panel shows no dead letter with the reason {reason}")
