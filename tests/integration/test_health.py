"""Pages over real sockets: the port for orchestrators and Prometheus, and the exporter's process."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cli.devkit.broker import Broker
from telemetry.clock import SystemClock
from telemetry.hand_clock import HandClock
from telemetry.health import READY, HealthPage, HealthServer, Heartbeat, Readiness
from telemetry.metrics import Metrics
from tests.conftest import MakeFleet
from tests.product import Product, eventually, running


def ask(server: HealthServer, path: str, method: str = "GET", **headers: str) -> tuple[int, str, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    try:
        connection.request(method, path, headers=headers)
        response = connection.getresponse()
        return response.status, response.getheader("Content-Type", ""), response.read()
    finally:
        connection.close()


def ask_json(server: HealthServer, path: str) -> tuple[int, Any]:
    status, _, body = ask(server, path)
    return status, json.loads(body)


def test_a_ready_process_says_so() -> None:
    with HealthServer(Metrics(), lambda: READY) as server:
        assert ask_json(server, "/readyz") == (200, {"ready": True, "reasons": []})
        assert ask_json(server, "/healthz") == (200, {"alive": True, "reasons": []})


def test_a_process_that_is_not_ready_gives_its_reasons_and_is_alive() -> None:
    with HealthServer(Metrics(), lambda: Readiness(("The broker is away.",))) as server:
        assert ask_json(server, "/readyz") == (503, {"ready": False, "reasons": ["The broker is away."]})
        assert ask_json(server, "/healthz")[0] == 200


def test_a_process_with_a_stuck_event_loop_is_not_alive_until_the_loop_runs_again() -> None:
    clock = HandClock()
    heartbeat = Heartbeat(clock, limit_seconds=30)
    with HealthServer(Metrics(), lambda: READY, alive=heartbeat) as server:
        clock.now += 30
        assert ask_json(server, "/healthz")[0] == 200
        clock.now += 1
        status, answer = ask_json(server, "/healthz")
        assert (status, answer["alive"]) == (503, False)
        heartbeat.beat()
        assert ask_json(server, "/healthz")[0] == 200


def test_a_process_that_has_not_started_is_not_alive_so_that_a_startup_probe_counts() -> None:
    started = False
    with HealthServer(Metrics(), lambda: READY, started=lambda: started) as server:
        reason = "The process has not started yet."
        assert ask_json(server, "/healthz") == (503, {"alive": False, "reasons": [reason]})
        started = True
        assert ask_json(server, "/healthz") == (200, {"alive": True, "reasons": []})


def test_metrics_are_served_as_text_and_as_openmetrics() -> None:
    metrics = Metrics()
    metrics.jobs.labels("succeeded").inc(3)
    with HealthServer(metrics, lambda: READY) as server:
        status, kind, body = ask(server, "/metrics")
        assert (status, kind.partition(";")[0]) == (200, "text/plain")
        assert b'postback_jobs_total{outcome="succeeded"} 3.0' in body
        _, kind, body = ask(server, "/metrics", Accept="application/openmetrics-text; version=1.0.0")
        assert kind.startswith("application/openmetrics-text")
        assert body.endswith(b"# EOF\n")


def test_each_process_shows_its_own_clock() -> None:
    metrics, clock = Metrics(), SystemClock()
    with HealthServer(metrics, lambda: READY):
        before = clock.time()
        shown = metrics.registry.get_sample_value("postback_clock_seconds")
        assert shown is not None
        assert before <= shown <= clock.time()


def test_another_path_is_not_found_and_head_has_no_body() -> None:
    with HealthServer(Metrics(), lambda: READY) as server:
        assert ask(server, "/")[0] == 404
        assert ask(server, "/healthz?verbose=1", "HEAD")[::2] == (200, b"")


def test_a_check_that_raises_is_a_500_and_the_server_lives_on() -> None:
    def broken() -> Readiness:
        raise RuntimeError("private detail")

    with HealthServer(Metrics(), broken) as server:
        status, _, body = ask(server, "/readyz")
        assert status == 500
        assert b"private detail" not in body
        assert ask_json(server, "/healthz")[0] == 200


def test_a_role_may_add_pages_of_its_own_and_say_how_long_clients_may_cache_them() -> None:
    pages: dict[str, Callable[[str], HealthPage | None]] = {}
    with HealthServer(Metrics(), lambda: READY, pages=pages) as server:
        assert ask(server, "/keys")[0] == 404
        pages["/keys"] = lambda _: HealthPage("application/jwk-set+json", b"{}", max_age_seconds=60)
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
        connection.request("GET", "/keys?fresh")
        response = connection.getresponse()
        assert (response.status, response.read()) == (200, b"{}")
        assert response.getheader("Content-Type") == "application/jwk-set+json"
        assert response.getheader("Cache-Control") == "public, max-age=60"
        connection.close()
        assert b"/keys" in ask(server, "/")[2]


def test_a_folder_of_pages_serves_only_the_names_that_its_function_knows() -> None:
    pages: dict[str, Callable[[str], HealthPage | None]] = {
        "/keys/": lambda name: HealthPage("text/plain", name.encode()) if name == "acme.json" else None,
        "/keys.json": lambda name: HealthPage("text/plain", b"all" + name.encode()),
    }
    with HealthServer(Metrics(), lambda: READY, pages=pages) as server:
        assert ask(server, "/keys/acme.json")[::2] == (200, b"acme.json")
        assert ask(server, "/keys.json")[::2] == (200, b"all")
        for absent in ("/keys/", "/keys", "/keys/other", "/keys/acme.json/", "/keys//acme.json", "/keys/../keys.json/"):
            assert ask(server, absent)[0] == 404, absent
        assert ask(server, "/keys/other")[2] == b"/metrics /healthz /readyz /keys/ /keys.json\n"


def test_a_client_that_never_asks_delays_no_other_client() -> None:
    server = HealthServer(Metrics(), lambda: READY).start()
    with socket.create_connection(("127.0.0.1", server.port)):
        assert ask_json(server, "/healthz")[0] == 200
        server.stop()


def test_a_busy_port_is_an_error_before_any_work_begins() -> None:
    with HealthServer(Metrics(), lambda: READY) as server, pytest.raises(OSError, match="in use"):
        HealthServer(Metrics(), lambda: READY, port=server.port)


def test_the_port_listens_on_this_machine_only() -> None:
    with HealthServer(Metrics(), lambda: READY) as server:
        socket.create_connection(("127.0.0.1", server.port), timeout=10).close()
        with pytest.raises(ConnectionRefusedError):  # a server on all addresses would accept this connection too
            socket.create_connection(("127.0.0.2", server.port), timeout=10)


# -- `postback exporter` -------------------------------------------------------------------------------------------


@pytest.fixture
def own(make_fleet: MakeFleet, tmp_path: Path, clean_processes: None) -> Iterator[tuple[Broker, Product]]:
    """A fleet on a broker that the test may kill."""
    with Broker.start() as broker, running(make_fleet(broker.bootstrap_servers), tmp_path) as product:
        yield broker, product


@pytest.mark.broker
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
