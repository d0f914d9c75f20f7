"""Jobs at a server that never answers, of one tenant or of many, beside another tenant's jobs in one real worker."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.fleet_here import FleetHere
from tests.http_handler import Answering, handling
from tests.images import PNG, image_part
from tests.product import eventually

pytestmark = pytest.mark.broker

WORKER = {
    "POSTBACK_WORKER__WINDOW_RECORDS": "128",
    "POSTBACK_WORKER__ENRICH_AHEAD": "16",
    "POSTBACK_WORKER__DRAIN_SECONDS": "1",
    "POSTBACK_EGRESS__ALLOW_FETCH": "127.0.0.1/32",
    "POSTBACK_ENRICHMENT__IMAGE_JOBS": "16",
    "POSTBACK_ENRICHMENT__IMAGE_SECONDS": "600",
    "POSTBACK_ENRICHMENT__BUDGET_SECONDS": "120",
    "POSTBACK_ENRICHMENT__MEMBER_SECONDS": "60",
}
"""No hung job ends during the test, so no place becomes free by itself."""
PAGE = b"<html><head><title>A bridge</title></head><body><p>The bridge in Tarnby opened in 1987.</p></body></html>"


class Healthy(Answering):
    """A server that answers each request with an image or a page."""

    def do_GET(self) -> None:
        self.answer(200, PNG if self.path.endswith(".png") else PAGE)


@contextmanager
def deaf() -> Iterator[str]:
    """Yield the origin of a server whose connections the kernel accepts, and no code reads."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(1024)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


def jobs(name: str, count: int, **fields: Any) -> list[bytes]:
    """Jobs of this name; a `%` in a field's text becomes the job's number."""
    body = json.dumps({"job_id": f"{name}-%", **fields})
    return [body.replace("%", str(number)).encode() for number in range(count)]


def seeing(origin: str) -> dict[str, Any]:
    """Return the fields of jobs that have an image at this origin."""
    parts = [{"type": "text", "text": "What does the image show?"}, image_part(f"{origin}/%.png")]
    return {"messages": [{"role": "user", "content": parts}]}


def reading(origin: str) -> dict[str, Any]:
    """The fields of jobs that need a page at this origin."""
    return {"prompt": "When did the bridge open?", "sources": {"urls": [f"{origin}/%"], "required": True}}


@pytest.mark.parametrize("at", [seeing, reading], ids=["images", "sources"])
def test_a_thousand_jobs_at_a_server_that_never_answers_hold_up_no_other_tenant(
    fleet_here: FleetHere, at: Callable[[str], dict[str, Any]]
) -> None:
    with deaf() as hung, handling(Healthy) as healthy:
        fleet_here.put(jobs("hung", 1000, **at(hung)), [("tenant", b"acme")])
        worker = fleet_here.worker("w1", **WORKER)
        eventually(lambda: worker.metrics()["postback_in_flight"] >= 64, 60, "the hung jobs have not begun")
        fleet_here.put(jobs("text", 300, prompt="Name a river."), [("tenant", b"globex")])
        fleet_here.put(jobs("fetching", 60, **at(healthy)), [("tenant", b"globex")])
        fleet_here.wait_for_results(360, 90)
        outcomes = fleet_here.outcomes()
    assert set(outcomes.values()) == {"succeeded"}
    assert {name.partition("-")[0] for name in outcomes} == {"text", "fetching"}


@pytest.mark.parametrize("at", [seeing, reading], ids=["images", "sources"])
def test_fifty_tenants_with_one_job_each_at_a_server_that_never_answers_hold_up_no_other_tenants_text(
    fleet_here: FleetHere, at: Callable[[str], dict[str, Any]]
) -> None:
    with deaf() as hung:
        for number in range(50):
            fleet_here.put(jobs(f"hung-{number}", 1, **at(hung)), [("tenant", b"tenant-%d" % number)])
        worker = fleet_here.worker("w1", **(WORKER | {"POSTBACK_WORKER__WINDOW_RECORDS": "32"}))
        eventually(lambda: worker.metrics()["postback_in_flight"] >= 28, 60, "the hung jobs have not begun")
        fleet_here.put(jobs("text", 300, prompt="Name a river."), [("tenant", b"globex")])
        fleet_here.wait_for_results(300, 90)
        outcomes = fleet_here.outcomes()
    assert set(outcomes.values()) == {"succeeded"}
    assert {name.partition("-")[0] for name in outcomes} == {"text"}
