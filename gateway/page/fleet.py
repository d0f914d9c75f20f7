"""The page of the whole fleet, for the scope `admin`: lanes, workers, the last minute, and Prometheus' alerts."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

from starlette.routing import Route

from gateway.access import Scope
from gateway.access.bounded_get import NotRead, get_json
from gateway.access.recent import Recent
from gateway.dependency import DependencyBusy
from gateway.page.desk import Desk, ShownPage, Visit, answered
from telemetry.clock import Clock, unix_ms
from telemetry.logs import get_logger

if TYPE_CHECKING:
    from cli.operations.top import Frame

MOST_ROWS: Final = 100
MOST_ALERTS: Final = 20
FRESH_SECONDS: Final = 2.0
"""Frames and alerts up to this age are shown again, so that many open pages cause one reading."""
FETCH_SECONDS: Final = 3.0
MOST_BYTES: Final = 1024 * 1024

log = get_logger()


@dataclass(frozen=True, slots=True)
class Alert:
    """An alert of Prometheus."""

    name: str
    state: str
    """`firing` or `pending`."""
    severity: str
    summary: str
    since_ms: int | None


def fleet_route(desk: Desk) -> Route:
    """Return the route of the fleet."""
    door, url, clock = desk.door, desk.door.settings.prometheus_url, desk.door.clock

    async def read_frame(_: None) -> Frame:
        return await door.frames.read()

    async def read_alerts(_: None) -> list[Alert] | str:
        if url is None:
            return "Set POSTBACK_GATEWAY__PROMETHEUS_URL to see the alerts of Prometheus here."
        try:
            async with asyncio.timeout(2 * FETCH_SECONDS):
                return await door.alerts.run(fetch_alerts, url, clock)
        except TimeoutError:
            return "The alerts cannot be read now: Prometheus is too slow."
        except (NotRead, DependencyBusy) as error:
            log.warning("The alerts cannot be read; the page says so.", action="alerts-away", reason=str(error))
            return f"Prometheus gives no alerts now: {error}."

    frames, alerts = Recent(read_frame, FRESH_SECONDS, clock), Recent(read_alerts, FRESH_SECONDS, clock)

    async def show(visit: Visit) -> ShownPage:
        frame, told = await answered(frames.get(None)), await alerts.get(None)
        recent = [(what, name, count) for (what, name), count in frame.recent.most_common(MOST_ROWS)]
        values = {"figures": frame.figures, "workers": frame.workers[:MOST_ROWS], "recent": recent}
        rates = {pool["lane"]: pool["jobs_per_second"] for pool in frame.figures["lanes"]}
        return ShownPage("fleet", {**values, "rates": rates, "alerts": told, "now_ms": unix_ms(clock)})

    return desk.shows("/fleet", Scope.ADMIN, "readFleet", show, tab="Fleet")


def fetch_alerts(url: str, clock: Clock) -> list[Alert]:
    """Return the newest alerts. Blocks for little more than FETCH_SECONDS. Raises NotRead."""
    import requests  # most gateways have no Prometheus

    with requests.Session() as session:
        session.trust_env = False  # ignore a .netrc, which could give the operator's passwords to the server
        address = f"{url.rstrip('/')}/api/v1/alerts"
        return alerts_of(get_json(session, address, clock, seconds=FETCH_SECONDS, most_bytes=MOST_BYTES))


def alerts_of(document: Any) -> list[Alert]:
    """Return the newest alerts of an answer of `/api/v1/alerts`. Raises NotRead for a document of another form."""
    data = document.get("data") if isinstance(document, dict) else None
    said = data.get("alerts") if isinstance(data, dict) else None
    if not isinstance(said, list):
        raise NotRead("its answer has no list of alerts")
    found = [_alert(each) for each in said if isinstance(each, dict)]
    return sorted(found, key=lambda alert: alert.since_ms or 0, reverse=True)[:MOST_ALERTS]


def _alert(said: dict[str, Any]) -> Alert:
    labels, notes = _texts(said.get("labels")), _texts(said.get("annotations"))
    summary = notes.get("summary") or notes.get("description") or ""
    state = str(said.get("state", "unknown"))
    return Alert(labels.get("alertname", "unnamed"), state, labels.get("severity", ""), summary, _ms(said))


def _texts(said: Any) -> dict[str, str]:
    return {name: str(value) for name, value in said.items()} if isinstance(said, dict) else {}


def _ms(said: dict[str, Any]) -> int | None:
    try:
        return int(datetime.fromisoformat(str(said.get("activeAt"))).timestamp() * 1000)
    except (ValueError, OverflowError):
        return None
