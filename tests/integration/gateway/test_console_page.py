"""The console page in Debian's Chromium, over real TLS: every page, wide and narrow, light and dark, with true figures.

Screenshots lie in the test's folder.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from itertools import product
from pathlib import Path
from typing import Any, Literal

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright
from standardwebhooks import Webhook, WebhookVerificationError

from cli.devkit.kafka.jars import program
from cli.devkit.receiver import Behaviour
from tests.http_handler import handling
from tests.integration.gateway.gateway_process import Gateway
from tests.product import eventually

pytestmark = pytest.mark.broker
TENANT = "seen"
SECONDS = 60.0
SIZES = {"wide": 1280, "phone": 390}
SCHEMES: list[Literal["light", "dark"]] = ["light", "dark"]
# These limits are longer than the defaults, because a reader process starts slowly on a busy machine.
PATIENT = {
    "POSTBACK_EGRESS__ALLOW_FETCH": "127.0.0.1/32",
    "POSTBACK_ENRICHMENT__BUDGET_SECONDS": "60",
    "POSTBACK_ENRICHMENT__MEMBER_SECONDS": "30",
}
FACT = "The lighthouse of Kell was built in 1874 and is 41 metres tall."


@dataclass
class Work:
    """The jobs and batches of the tenant."""

    key: str
    job: str = ""
    batch: str = ""
    problems: list[str] = field(default_factory=list)
    """Errors that the browser reported."""


@contextmanager
def site() -> Iterator[str]:
    """A web page with one fact; yields its URL."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            content = f"<html><title>Kell</title><body><p>{FACT}</p></body></html>".encode()
            self.send_response(200 if self.path == "/kell" else 404)
            self.send_header("content-type", "text/html")
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            """Log nothing."""

    with handling(Handler) as url:
        yield f"{url}/kell"


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    path = program("chromium", "chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def work(tls_gateway: Gateway) -> Iterator[Work]:
    """A job with sources whose callback failed, a finished batch, and an endpoint that refuses its event."""
    fleet, key = tls_gateway.product, tls_gateway.key(TENANT)
    fleet.callbacks.tenants = (TENANT,)
    fleet.callbacks.up(Behaviour(status=404))
    fleet.worker("w", "--engine", "echo", "--model", "small", **PATIENT)
    fleet.deliver("d")
    made = Work(key)
    endpoint = {"name": "Mine", "url": fleet.callbacks.url, "event_types": ["batch.completed"]}
    assert tls_gateway.post("/v1/webhook_endpoints", key, json=endpoint).status_code == 200
    with site() as url:
        # The echo engine answers with the question, whose last sentence the page supports.
        prompt = {"prompt": f"Is this right?\n\n{FACT.removesuffix('.')} [1].", "sources": {"urls": [url]}}
        sent = tls_gateway.post("/v1/jobs", key, json={**prompt, "callback_url": fleet.callbacks.url})
        made.job = sent.json()["id"]
        body = {"model": "small", "prompt": "x", "max_tokens": 5}
        line = {"method": "POST", "url": "/v1/completions", "body": body}
        lines = "".join(json.dumps({"custom_id": f"{number}", **line}) + "\n" for number in range(3))
        files = {"file": ("in.jsonl", lines.encode())}
        file = tls_gateway.post("/v1/files", key, files=files, data={"purpose": "batch"}).json()["id"]
        order = {"input_file_id": file, "endpoint": "/v1/completions", "completion_window": "24h"}
        made.batch = tls_gateway.post("/v1/batches", key, json=order).json()["id"]
        eventually(lambda: len(fleet.attempts()) >= 2, SECONDS, fleet.last_lines)
        eventually(lambda: batch_of(tls_gateway, made)["status"] == "completed", SECONDS, fleet.last_lines)
        yield made


def batch_of(gateway: Gateway, work: Work) -> dict[str, Any]:
    found: dict[str, Any] = gateway.get(f"/v1/batches/{work.batch}", work.key).json()
    return found


@contextmanager
def signed_in(chromium: Browser, gateway: Gateway, work: Work) -> Iterator[Page]:
    """A page in a browser that has signed in through the page's form."""
    context = chromium.new_context(base_url=gateway.url, ignore_https_errors=True)
    page = context.new_page()
    page.on("console", lambda message: work.problems.append(message.text) if message.type != "debug" else None)
    page.on("pageerror", lambda error: work.problems.append(str(error)))
    page.goto("/console/jobs")
    page.get_by_label("API key or token").fill(work.key)
    page.get_by_role("button", name="Sign in").click()
    page.wait_for_url("**/console/jobs")
    yield page
    context.close()


def test_every_page_is_shown_without_an_error(
    chromium: Browser, tls_gateway: Gateway, work: Work, tmp_path: Path
) -> None:
    work.problems.clear()
    pages = {
        "overview": "/console",
        "batches": "/console/batches",
        "batch": f"/console/batch?id={work.batch}",
        "jobs": "/console/jobs",
        "job": f"/console/job?id={work.job}",
        "callbacks": "/console/callbacks",
        "letters": "/console/letters",
        "endpoints": "/console/endpoints",
        "search": f"/console/search?q={work.batch}.0",
        "nothing": "/console/search?q=nothing",
    }
    with signed_in(chromium, tls_gateway, work) as page:
        for name, path in pages.items():
            answer = page.goto(path)
            assert answer is not None
            assert answer.status == 200
            for size, scheme in product(SIZES, SCHEMES):
                page.set_viewport_size({"width": SIZES[size], "height": 800})
                page.emulate_media(color_scheme=scheme)
                page.screenshot(path=tmp_path / f"{name}-{size}-{scheme}.png", full_page=True)
                assert page.evaluate("document.documentElement.scrollWidth") <= SIZES[size], f"{name} is too wide"
        [cookie] = page.context.cookies()
        assert (cookie["name"], cookie["httpOnly"], cookie["secure"], cookie["sameSite"]) == (
            *("__Host-postback", True, True, "Strict"),
        )
        assert page.evaluate("document.cookie") == ""
    assert work.problems == []


def test_the_pages_show_the_figures_of_the_api_and_follow_them(
    chromium: Browser, tls_gateway: Gateway, work: Work
) -> None:
    work.problems.clear()
    with signed_in(chromium, tls_gateway, work) as page:
        page.goto(f"/console/batch?id={work.batch}")
        counts = batch_of(tls_gateway, work)["request_counts"]
        for name, number in counts.items():
            expect(page.locator(f"[data-figure={name}]")).to_have_text(str(number))
        with page.expect_download() as downloading:
            page.get_by_role("link", name="file-").nth(1).click()
        assert len(downloading.value.path().read_text().splitlines()) == counts["completed"]

        page.goto("/console")
        jobs = tls_gateway.get("/v1/jobs", work.key).json()["data"]
        expect(page.locator("[data-figure=finished]")).to_have_text(str(len(jobs)))
        sent = tls_gateway.post("/v1/jobs", work.key, json={"prompt": "one more"})
        expect(page.locator("[data-figure=finished]")).to_have_text(str(len(jobs) + 1), timeout=SECONDS * 1000)
        expect(page.locator("[data-figure=waiting]")).to_have_text("0", timeout=SECONDS * 1000)

        page.goto(f"/console/job?id={work.job}")
        answer = tls_gateway.get(f"/v1/jobs/{work.job}", work.key).json()["result"]
        assert FACT in answer["text"]
        marked = [answer["text"][cited["start"] : cited["end"]] for cited in answer["citations"]]
        assert marked
        assert page.locator(".answer mark").all_text_contents() == marked
        expect(page.locator(".sources a").first).to_have_attribute("href", answer["source_details"][0]["url"])
        assert sent.status_code == 202
    assert work.problems == []


def test_a_failed_callback_is_sent_again_by_a_click(chromium: Browser, tls_gateway: Gateway, work: Work) -> None:
    fleet = tls_gateway.product
    fleet.callbacks.up()
    with signed_in(chromium, tls_gateway, work) as page:
        for object_id in (work.job, work.batch):
            page.goto("/console/callbacks?show=all")  # its next attempt may have succeeded by now
            row = page.locator("tr", has=page.locator(f"[title='{object_id}']"))
            page.once("dialog", lambda dialog: dialog.accept())
            row.get_by_role("button", name="Resend").click()
            expect(page.get_by_role("status").first).to_have_text("The callback is on its way again.")

            def has_begun_anew(sent: str = object_id) -> bool:
                tries = [each["attempt"] for each in fleet.attempts() if each["job_id"] == sent]
                return tries.count(1) == 2

            eventually(has_begun_anew, SECONDS, fleet.last_lines)
        eventually(lambda: work.job in fleet.callbacks.events, SECONDS, fleet.last_lines)
        page.goto(f"/console/job?id={work.job}")
        expect(page.locator("#attempts td", has_text="delivered status 200").first).to_be_visible()


def test_a_dead_letter_is_put_back_by_a_click_of_its_tenant_and_of_an_admin(
    chromium: Browser, tls_gateway: Gateway, work: Work
) -> None:
    fleet = tls_gateway.product

    def rejected() -> int:
        return [letter["reason"] for letter in fleet.dead_letters()].count("rejected")

    with signed_in(chromium, tls_gateway, Work(tls_gateway.key("stranger"))) as page:
        fleet.put([b"{}"], [("tenant", TENANT.encode())])
        for number, key in enumerate((work.key, tls_gateway.key("ops", scopes="admin")), 1):
            # The worker rejects the job again after each redrive, which makes one more dead letter.
            eventually(lambda letters=number: rejected() == letters, SECONDS, fleet.last_lines)  # type: ignore[misc]
            page.goto("/console/letters")
            expect(page.locator("main")).to_contain_text("No job was refused, and no receiver failed")
            with signed_in(chromium, tls_gateway, Work(key)) as own:
                own.goto("/console/letters")
                own.once("dialog", lambda dialog: dialog.accept())
                own.locator("tr", has_text="rejected").get_by_role("button", name="Redrive").click()
                expect(own.get_by_role("status").first).to_have_text("The letter is put back.", timeout=SECONDS * 1000)
            assert len(fleet.read(fleet.kafka.topics.redriven)) == number


def test_an_endpoint_is_registered_tested_disabled_rotated_and_deleted_by_clicks(
    chromium: Browser, tls_gateway: Gateway
) -> None:
    fleet, work = tls_gateway.product, Work(tls_gateway.key("hooked"))
    fleet.callbacks.tenants = (TENANT, "hooked")
    fleet.callbacks.up()

    def received() -> int:
        return sum(one.event["type"] == "batch.expired" for one in list(fleet.callbacks.received))

    def verify(secret: str) -> None:
        [*_, one] = [one for one in list(fleet.callbacks.received) if one.event["type"] == "batch.expired"]
        Webhook(secret).verify(one.body, one.headers)

    with signed_in(chromium, tls_gateway, work) as page:
        page.on("dialog", lambda dialog: dialog.accept())
        page.goto("/console/endpoints")
        page.get_by_text("Register an endpoint").click()
        page.get_by_label("Name").fill("Clicked")
        page.get_by_label("URL").fill("ftp://wrong.example")
        page.get_by_label("batch.completed").check()
        page.get_by_role("button", name="Register").click()
        expect(page.get_by_role("alert")).to_contain_text("url: must not be called")
        page.get_by_label("URL").fill(fleet.callbacks.url)
        page.get_by_role("button", name="Register").click()
        first = page.locator(".secret").inner_text()

        def test_event() -> None:
            seen = received()
            page.goto("/console/endpoints")
            page.get_by_label("Type of the test event").select_option("batch.expired")
            page.get_by_role("button", name="Send a test").click()
            expect(page.get_by_role("status").first).to_contain_text("batch.expired with status")
            assert received() == seen + 1

        test_event()
        verify(first)
        page.goto("/console/endpoints")
        page.get_by_label("the old one signs").uncheck()
        page.get_by_role("button", name="New secret").click()
        second = page.locator(".secret").inner_text()
        test_event()
        verify(second)
        with pytest.raises(WebhookVerificationError):
            verify(first)
        for button, state in (("Disable", "disabled"), ("Enable", "enabled")):
            page.get_by_role("button", name=button).click()
            expect(page.locator(".endpoint .state")).to_have_text(state)
        page.get_by_role("button", name="Delete").click()
        expect(page.locator("#live")).to_have_text("There is no webhook endpoint here.", use_inner_text=True)
    work.problems = [problem for problem in work.problems if "status of 400" not in problem]
    assert work.problems == []


def test_the_header_finds_a_batchs_line_and_a_list_follows_without_taking_a_choice_away(
    chromium: Browser, tls_gateway: Gateway, work: Work
) -> None:
    work.problems.clear()
    with signed_in(chromium, tls_gateway, work) as page:
        page.get_by_label("Search", exact=True).fill("2")
        page.get_by_label("Search", exact=True).press("Enter")
        page.wait_for_url(f"**/console/job?id={work.batch}.2")
        page.get_by_label("Search", exact=True).fill("in.jsonl")
        page.get_by_label("Search", exact=True).press("Enter")
        expect(page.locator(f"[title='{work.batch}']")).to_be_visible()

        page.goto("/console/endpoints")
        choice = page.get_by_label("Type of the test event")
        choice.select_option("batch.failed")
        endpoint = {"name": "Beside", "url": tls_gateway.product.callbacks.url, "event_types": ["batch.failed"]}
        with page.expect_request("**/console/endpoints", timeout=1000 * SECONDS) as _:
            choice.select_option("batch.completed")
            made = tls_gateway.post("/v1/webhook_endpoints", work.key, json=endpoint).json()
            page.locator("h1").click()
        expect(page.locator(".endpoint")).to_have_count(2, timeout=1000 * SECONDS)
        choice.first.select_option("inference.failed")
        tls_gateway.request("DELETE", f"/v1/webhook_endpoints/{made['id']}", work.key)
        page.wait_for_timeout(6000)
        expect(choice.first).to_have_value("inference.failed")
        expect(page.locator(".endpoint")).to_have_count(2)
        times = page.locator(".endpoint time").first
        expect(times).to_have_attribute("title", re.compile(r"UTC$"))
    assert work.problems == []


def test_an_admin_sees_the_fleet_in_every_size(
    chromium: Browser, tls_gateway: Gateway, work: Work, tmp_path: Path
) -> None:
    ops = Work(tls_gateway.key("ops", scopes="admin"))
    with signed_in(chromium, tls_gateway, ops) as page:
        page.goto("/console/fleet")
        expect(page.locator("main")).to_contain_text("small")
        expect(page.locator("[data-figure=workers]")).to_have_text("1")
        for size, scheme in product(SIZES, SCHEMES):
            page.set_viewport_size({"width": SIZES[size], "height": 800})
            page.emulate_media(color_scheme=scheme)
            page.screenshot(path=tmp_path / f"fleet-{size}-{scheme}.png", full_page=True)
            assert page.evaluate("document.documentElement.scrollWidth") <= SIZES[size]
        tls_gateway.post("/v1/jobs", work.key, json={"prompt": "counted in the last minute"})
        expect(page.locator("tr", has_text="job").filter(has_text="succeeded")).to_be_visible(timeout=SECONDS * 1000)
    assert ops.problems == []


def test_a_session_ends_with_its_key_and_the_open_page_goes_to_the_sign_in(
    chromium: Browser, tls_gateway: Gateway, work: Work
) -> None:
    made = tls_gateway.created("--tenant", TENANT)
    with signed_in(chromium, tls_gateway, Work(made["key"])) as page:
        page.goto("/console")
        admin = tls_gateway.key("ops", scopes="admin")
        assert tls_gateway.request("DELETE", f"/v1/admin/api_keys/{made['id']}", admin).status_code == 200
        page.wait_for_url("**/console/sign-in*", timeout=SECONDS * 1000)
        expect(page.get_by_role("alert")).to_have_text("The session has ended. Sign in again.")
