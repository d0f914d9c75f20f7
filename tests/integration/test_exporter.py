"""`postback exporter`: a real process beside a real broker, with and without workers, and while the broker is away."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cli.devkit.broker import Broker
from tests.conftest import MakeFleet
from tests.product import Product, eventually, running

pytestmark = pytest.mark.broker


@pytest.fixture
def own(make_fleet: MakeFleet, tmp_path: Path, clean_processes: None) -> Iterator[tuple[Broker, Product]]:
    """A fleet on a broker that the test may kill."""
    with Broker.start() as broker, running(make_fleet(broker.bootstrap_servers), tmp_path) as product:
        yield broker, product


def test_the_figures_hold_without_a_worker_with_one_and_over_the_brokers_death(own: tuple[Broker, Product]) -> None:
    broker, product = own
    exporter = product.exporter("e1", POSTBACK_EXPORTER__INTERVAL_SECONDS="0.2")
    job = {"prompt": "Why?", "ttl_seconds": 900}
    product.submit([*[{**job, "callback_url": "http://127.0.0.1:9/"}] * 3, *[job] * 7])
    product.put([b"\xff", b"[" * 5000], headers=[("tenant", b"\xff"), ("deadline", b"soon")])

    def shows(**wanted: Any) -> None:
        def told() -> bool:
            status, said = exporter.page("/backlog")
            return status == 200 and {name: said[name] for name in wanted} == wanted

        eventually(told, 60, lambda: f"not {wanted}: {exporter.page('/backlog')}\n{exporter.said()}")

    shows(jobs=12, workers=0, wanted_replicas=1, dead_letters=0, callbacks=0)
    said = exporter.page("/backlog")[1]
    assert 0 < said["tightest_deadline_seconds"] <= 900
    assert said["oldest_job_seconds"] > 0

    worker = product.worker("w1")
    shows(jobs=0, workers=1, models={"default": 1, "echo": 1}, oldest_job_seconds=0.0, dead_letters=2)
    shows(callbacks=3, fresh_callbacks=3)  # the seven results without a callback, and transaction markers, do not count
    assert worker.terminate() == 0
    shows(workers=0, models={})
    assert exporter.metrics()["postback_open_dead_letters"] == 2

    broker.kill()
    eventually(lambda: exporter.page("/backlog")[0] == 503, 90, exporter.said)
    stale = exporter.page("/backlog")[1]
    assert (stale["stale"], stale["dead_letters"]) == (True, 2)
    assert exporter.ready()[0] is False
    assert exporter.alive()
    assert exporter.metrics()["postback_figures_stale"] == 1

    broker.restart()
    shows(jobs=0, dead_letters=2, stale=False)
    assert exporter.metrics()["postback_figures_stale"] == 0
    assert exporter.ready() == (True, [])
    assert exporter.terminate() == 0
