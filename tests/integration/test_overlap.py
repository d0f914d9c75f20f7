"""A real worker on a real broker, and a site that a test holds: jobs that wait for the web delay no others."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tests.fleet_here import FleetHere
from tests.product import eventually

pytestmark = pytest.mark.broker

AT_ONCE = 3
HELD = 30
READY = 40


class HeldSite:
    """A site that answers no page before `release`."""

    def __init__(self, server: ThreadingHTTPServer) -> None:
        self.url = f"http://127.0.0.1:{server.server_address[1]}"
        self.release = threading.Event()
        self.asked: list[str] = []


@contextmanager
def held_site() -> Iterator[HeldSite]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path == "/robots.txt":
                self.send_error(404)
                return
            site.asked.append(self.path)
            site.release.wait(120)
            self.send_response(200)
            self.send_header("Content-Type", "text/plain")
            self.end_headers()
            self.wfile.write(f"The number of this page is {self.path[1:]}.".encode())

        def log_message(self, *_: object) -> None:
            """Log nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    site = HeldSite(server)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield site
    finally:
        site.release.set()
        server.shutdown()
        server.server_close()
        thread.join()


def test_jobs_that_wait_for_the_web_hold_no_job_back_that_is_ready(fleet_here: FleetHere) -> None:
    """The held jobs come first: more than are enriched at once, and more than the engine's target of waiting jobs."""
    with held_site() as site:
        fleet_here.worker(
            "w1", "--engine", "echo",
            POSTBACK_WORKER__ENRICH_AHEAD=str(AT_ONCE),
            POSTBACK_WORKER__WAITING_TARGET="4",
            POSTBACK_ENGINE__ECHO__MAX_CONCURRENCY="4",
            POSTBACK_ENRICHMENT__BUDGET_SECONDS="120",
            POSTBACK_ENRICHMENT__MEMBER_SECONDS="30",
            POSTBACK_EGRESS__ALLOW_FETCH="127.0.0.0/8",
        )  # fmt: skip
        held = [f"held-{number}" for number in range(HELD)]
        ready = [f"ready-{number}" for number in range(READY)]
        sources = [{"urls": [f"{site.url}/{number}"], "required": True} for number in range(HELD)]
        fleet_here.submit(
            {"job_id": name, "prompt": "Which number has the page?", "sources": one}
            for name, one in zip(held, sources, strict=True)
        )
        eventually(lambda: len(site.asked) == AT_ONCE, 60, "the first pages are not asked for")
        fleet_here.submit({"job_id": name, "prompt": "Who wrote it?"} for name in ready)
        fleet_here.wait_for_results(READY, 60)
        assert fleet_here.outcomes() == dict.fromkeys(ready, "succeeded")
        assert len(site.asked) == AT_ONCE, "no more pages are read at once than the setting says"

        site.release.set()
        fleet_here.wait_for_results(HELD + READY, 60)
        assert fleet_here.outcomes() == dict.fromkeys([*held, *ready], "succeeded")
        assert sorted(site.asked) == sorted(f"/{number}" for number in range(HELD))
    fleet_here.wait_until_nothing_is_left()
