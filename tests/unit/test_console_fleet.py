"""The console's page of the fleet: its scope, its figures, the alerts, and the connection that it keeps to Kafka."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from pydantic_core import to_json

from cli.operations.exporter.exporter import ClassFigures, FleetFigures, PoolFigures
from cli.operations.top import Frame
from gateway.access import Scope
from gateway.access.bounded_get import NotRead
from gateway.door.fleet import FleetFrames
from gateway.page.fleet import MOST_ALERTS, alerts_of, fetch_alerts
from gateway.page.views import page_routes
from producers.errors import BrokerUnreachable
from schemas.settings import KafkaSettings, SettingsRefused
from schemas.worker import WorkerAnnouncement
from telemetry.clock import SystemClock
from telemetry.hand_clock import HandClock
from tests.http_handler import handling
from tests.unit.door_rig import changed
from tests.unit.gateway_rig import NOW, Rig
from tests.unit.test_console_page import EVIL, Browser, body_of, console_rig, figures

TAGS = EVIL.replace(" ", "")
LANES = (
    PoolFigures(None, 1200, 75.0, -3.0, 2, 4.25, 0.0, 3, (ClassFigures("bulk", 1000, 1.0, None),) * 2),
    PoolFigures(EVIL, 0, 0.0, None, 0, 1.0, 0.0, 0),
)
FIGURES = FleetFigures(NOW, {}, 30, 20, 4, 1, {"m": 1}, LANES)
WORKERS = (
    WorkerAnnouncement(replica="w-1", models=("m", TAGS), at=0, version=EVIL, answer_seconds=61.0),
    WorkerAnnouncement(replica="w-2", models=(), at=0),
)
FRAME = Frame(FIGURES.document(stale=False), WORKERS, Counter({("settled", EVIL): 7, ("attempt", "timeout"): 2}))
ALERT: dict[str, Any] = {
    "labels": {"alertname": "Slow", "severity": "page"},
    "annotations": {"summary": EVIL},
    "state": "firing",
    "activeAt": "2026-12-01T10:00:00.123456789Z",
}


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    with console_rig(tmp_path) as made:
        yield made


def reading(frame: Frame | Exception) -> Any:
    return patch("gateway.door.fleet.FleetFrames._frame", side_effect=[frame])


def admin(rig: Rig) -> Browser:
    browser = Browser(rig)
    browser.sign_in(rig.key("ops", Scope.ADMIN))
    return browser


def test_an_admin_sees_lanes_workers_and_the_last_minute_with_names_escaped(rig: Rig) -> None:
    browser = admin(rig)
    with reading(FRAME):
        page = browser.page("/console/fleet")
    assert figures(page) == {"jobs": 1200, "callbacks": 30, "workers": 2, "dead_letters": 4}
    assert (len(page.css("script")), len(page.css("img"))) == (2, 1)
    lanes, workers, minute, alerts = (body_of(page, f"#live {each}") for each in CARDS)
    assert "shared 1\u202f200".replace("\u202f", " ") in lanes
    assert "1 min 15 s passed 2 3" in lanes
    assert f"{EVIL} 0 none none 0 0" in lanes
    assert f"w-1 {EVIL} shared m {TAGS} 4.25 1 min 1 s" in workers
    assert "w-2 shared any 4.25 no answer yet" in workers
    assert f"job {EVIL} 7 callback attempt timeout 2" in minute
    assert "POSTBACK_GATEWAY__PROMETHEUS_URL" in alerts


CARDS = ("> .card", "> .card ~ .card", ".columns .card", ".columns .card ~ .card")


def test_the_fleet_is_for_admins_and_a_kafka_that_is_away_is_told(rig: Rig) -> None:
    reader = Browser(rig)
    reader.sign_in(rig.key("acme"))
    assert reader.get("/console/fleet").status_code == 403
    assert "/console/fleet" not in reader.get("/console").text
    with reading(BrokerUnreachable("kafka-7.inside:9092")):
        answer = admin(rig).get("/console/fleet")
    assert (answer.status_code, "kafka-7" in answer.text) == (503, False)
    with reading(SettingsRefused("POSTBACK_EXPORTER__MIN_REPLICAS: is no number")):
        answer = admin(rig).get("/console/fleet")
    assert (answer.status_code, "POSTBACK_EXPORTER__MIN_REPLICAS" in answer.text) == (503, True)


@contextmanager
def prometheus(status: int, body: bytes) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if self.path == "/base/api/v1/alerts" else 404)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            """Log nothing."""

    with handling(Handler) as url:
        yield f"{url}/base"


def test_alerts_are_those_of_prometheus_the_newest_first(rig: Rig) -> None:
    older = {**ALERT, "labels": {"alertname": "Older"}, "state": "pending", "activeAt": "2026-11-01T10:00:00Z"}
    with prometheus(200, to_json({"data": {"alerts": [older, ALERT, 7, {}]}})) as url:
        found = fetch_alerts(url, SystemClock())
        settings = rig.door.settings.model_copy(update={"prometheus_url": url})
        with reading(FRAME):
            page = admin(changed(rig, page_routes, settings=settings)).page("/console/fleet")
    assert [(each.name, each.state, each.since_ms) for each in found] == [
        *(("Slow", "firing", 1_796_119_200_123), ("Older", "pending", 1_793_527_200_000), ("unnamed", "unknown", None)),
    ]
    assert f"Slow page {EVIL} firing" in body_of(page, CARDS[3])


@pytest.mark.parametrize(
    ("status", "body"), [(500, b"{}"), (200, b"[]"), (200, b"no JSON"), (200, b'{"data": {}}'), (200, b" " * 2_000_000)]
)
def test_a_prometheus_without_alerts_is_told(status: int, body: bytes) -> None:
    with prometheus(status, body) as url, pytest.raises(NotRead):
        fetch_alerts(url, SystemClock())
    with pytest.raises(NotRead, match="ConnectionError"):
        fetch_alerts(url, SystemClock())


def test_a_prometheus_that_sends_a_byte_at_a_time_is_left_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.page.fleet.FETCH_SECONDS", 0.5)

    class Dripping(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            with suppress(OSError):  # the reader leaves
                for _ in range(600):
                    self.wfile.write(b" ")
                    time.sleep(0.1)

        def log_message(self, *_: Any) -> None:
            """Log nothing."""

    with handling(Dripping) as url, pytest.raises(NotRead, match="too slow"):
        fetch_alerts(url, SystemClock())


def test_a_page_shows_few_of_many_alerts() -> None:
    assert len(alerts_of({"data": {"alerts": [ALERT] * 500}})) == MOST_ALERTS


class Watch:
    """A connection to Kafka that gives one frame, and then fails."""

    def __init__(self) -> None:
        self.opened = self.closed = self.read = 0

    @contextmanager
    def opening(self, *_: Any) -> Iterator[Watch]:
        self.opened += 1
        yield self
        self.closed += 1

    def frame(self) -> Frame:
        self.read += 1
        if self.read == 3:
            raise BrokerUnreachable("away")
        return FRAME


def test_a_reading_keeps_its_connection_until_it_fails_or_nobody_reads() -> None:
    watch, frames = Watch(), FleetFrames(KafkaSettings(), HandClock(NOW))

    async def read() -> None:
        with patch("cli.operations.top.watching", watch.opening), patch("gateway.door.fleet.IDLE_SECONDS", 0.01):
            await frames.read()
            assert (await frames.read(), watch.opened, watch.closed) == (FRAME, 1, 0)
            with pytest.raises(BrokerUnreachable):
                await frames.read()
            assert (watch.opened, watch.closed) == (1, 1)
            await frames.read()
            while watch.closed < 2:
                await asyncio.sleep(0.005)

    asyncio.run(asyncio.wait_for(read(), 30))
    frames.close()
    assert (watch.opened, watch.closed) == (2, 2)
