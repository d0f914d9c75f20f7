"""The pages of the console: true figures, escaped texts, one tenant's objects only, and no query that fails."""

from __future__ import annotations

import re
from collections.abc import Iterator
from urllib.parse import urlencode

import pytest
from selectolax.lexbor import LexborHTMLParser

from gateway.access import Scope
from gateway.access.tenant_settings import TenantSettings
from gateway.access.tenants import put_tenant
from gateway.page.rendering import link
from gateway.page.undelivered import MOST_LOOKED_AT, MOST_SHOWN, failed_callbacks
from gateway.store.tables import batches, job_attempts, jobs, webhook_endpoints
from schemas.outcome import Outcome
from tests.unit.console_browser import Browser, console_rig, signed_in
from tests.unit.console_rows import EVIL, NOW_MS, attempt_row, batch_row, finished, job_row, put
from tests.unit.gateway_rig import Rig

FORMS = ("/console/job/cancel", "/console/batch/cancel", "/console/callbacks/resend", "/console/letters/redrive")


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    with console_rig(tmp_path_factory.mktemp("console")) as made:
        yield made


def figures(page: LexborHTMLParser) -> dict[str, int]:
    """The numbers that a page shows, by their names."""
    found = {}
    for node in page.css("[data-figure]"):
        found[node.attributes["data-figure"] or ""] = int(re.sub(r"\s", "", node.text()))
    return found


def body_of(page: LexborHTMLParser, selector: str = "main") -> str:
    node = page.css_first(selector)
    assert node is not None
    return " ".join(node.text(separator=" ").split())


def test_the_overview_shows_the_tenants_figures_and_no_other_tenants(rig: Rig) -> None:
    waiting = [job_row("figures", f"w{n}") for n in range(3)] + [job_row("figures", "c", status="cancelling")]
    ended = [finished("figures", f"s{n}") for n in range(5)]
    bad = [finished("figures", f"f{each}", outcome=each, text=None) for each in Outcome if each != "succeeded"]
    old = {**finished("figures", "old"), "finished_at": NOW_MS - 16 * 60_000}
    put(rig, jobs, *waiting, *ended, *bad, old, *(job_row("stranger", f"x{n}") for n in range(7)))
    put(rig, batches, batch_row("figures", "batch_1"), batch_row("figures", "batch_2", status="completed"))
    page = signed_in(rig, "figures").page("/console")
    assert figures(page) == {"waiting": 4 + 5, "finished": 9, "succeeded": 5, "others": 4}
    assert "4 jobs, 5 lines" in body_of(page)
    assert [node.attributes["href"] for node in page.css("td a")] == ["/console/batch?id=batch_1"]
    assert page.css("svg rect.good")[-1].attributes["height"] == "33.33"


def test_the_overview_of_a_new_tenant_is_empty(rig: Rig) -> None:
    page = signed_in(rig, "newcomer").page("/console")
    assert set(figures(page).values()) == {0}
    assert "There are no unfinished batches." in body_of(page)


def test_the_live_part_of_a_page_refreshes_itself_until_the_work_is_over(rig: Rig) -> None:
    put(rig, batches, batch_row("live", "batch_a"), batch_row("live", "batch_b", status="completed"))
    put(rig, jobs, job_row("live", "open"), finished("live", "over"))
    browser = signed_in(rig, "live")
    refreshed = {
        path: browser.page(path).css_first("#live[hx-get]") is not None
        for path in ("/console", "/console/batch?id=batch_a", "/console/batch?id=batch_b", *jobs_at("open", "over"))
    }
    assert list(refreshed.values()) == [True, True, False, True, False]


def jobs_at(*ids: str) -> list[str]:
    return [link("/job", id=job_id) for job_id in ids]


def test_a_batch_shows_the_counts_of_the_api_and_links_to_its_files(rig: Rig) -> None:
    files = {"output_file_id": "file-2", "error_file_id": "file-3", "metadata": {"run": EVIL}}
    put(rig, batches, batch_row("batches", "batch_c", **files, in_progress_at=NOW_MS))
    browser = signed_in(rig, "batches")
    page = browser.page("/console/batch?id=batch_c")
    api = browser.ask("GET", "/v1/batches/batch_c", headers={"authorization": f"Bearer {rig.key('batches')}"}).json()
    counts = api["request_counts"]
    assert figures(page) == {**counts, "open": counts["total"] - counts["completed"] - counts["failed"]}
    assert [node.attributes["href"] for node in page.css("dd a")] == [
        f"/console/file?id=file-{number}" for number in (1, 2, 3)
    ]
    assert EVIL in body_of(page)


def test_batches_are_listed_in_pages_that_end(rig: Rig) -> None:
    put(rig, batches, *(batch_row("paged", f"batch_{number:02}") for number in range(45)))
    browser, path, seen = signed_in(rig, "paged"), "/console/batches", []
    while path:
        page = browser.page(path)
        seen += [node.text() for node in page.css("td a")]
        older = [node for node in page.css(".paging a") if node.text() == "Older"]
        path = (older[0].attributes["href"] or "") if older else ""
    assert seen == [f"batch_{number:02}" for number in reversed(range(45))]


def test_a_file_is_downloaded_through_the_session(rig: Rig) -> None:
    browser = signed_in(rig, "filed")
    sent = browser.ask(
        "POST",
        "/v1/files",
        files={"file": ("in.jsonl", b"{}\n")},
        data={"purpose": "batch"},
        headers={"authorization": f"Bearer {rig.key('filed')}"},
    )
    answer = browser.get(link("/file", id=sent.json()["id"]))
    assert (answer.content, answer.headers["content-disposition"].partition(";")[0]) == (b"{}\n", "attachment")


def test_a_batch_and_a_job_are_cancelled_by_the_form_and_not_twice(rig: Rig) -> None:
    put(rig, batches, batch_row("ended", "batch_d"))
    put(rig, jobs, job_row("ended", "job/1?"), finished("ended", "done"))
    browser = signed_in(rig, "ended")
    assert browser.send("/console/batch/cancel", {"id": "batch_d"}).headers["location"] == "/console/batch?id=batch_d"
    assert "cancelling" in body_of(browser.page("/console/batch?id=batch_d"))
    sent = browser.send("/console/job/cancel", {"id": "job/1?"})
    assert sent.headers["location"] == "/console/job?id=job%2F1%3F"
    assert "cancelling" in body_of(browser.page(sent.headers["location"]))
    assert browser.send("/console/job/cancel", {"id": "done"}).status_code == 409
    assert browser.send("/console/job/cancel", {}).status_code == 404


def test_jobs_are_filtered_as_in_the_api(rig: Rig) -> None:
    put(
        rig,
        jobs,
        job_row("filtered", "a", model_id="m1", metadata={"team": "x=y"}),
        job_row("filtered", "b", status="failed", batch_id="batch_1"),
        job_row("filtered", "c", created_at=NOW_MS - 3_600_000),
    )
    browser = signed_in(rig, "filtered")
    for said, wanted in (
        ({}, "bac"),
        ({"status": "failed"}, "b"),
        ({"status": "", "batch": "batch_1", "model": ""}, "b"),
        ({"model": "m1"}, "a"),
        ({"metadata": "team=x=y"}, "a"),
        ({"created_before": "-30m"}, "c"),
        ({"created_after": "-30m", "order": "asc"}, "ab"),
    ):
        page = browser.page(f"/console/jobs?{urlencode(said)}")
        assert "".join(node.text() for node in page.css("td a")) == wanted, said
    for wrong in ("status=x", "created_after=x", "metadata=x", "limit=0", "after=zz", "statsu=failed"):
        assert browser.get(f"/console/jobs?{wrong}").status_code in (400, 404), wrong
    page = browser.page("/console/jobs?metadata=team%3Dx%3Dy&limit=1&order=asc")
    field = page.css_first("#metadata")
    assert field is not None
    assert field.attributes["value"] == "team=x=y"


def test_a_jobs_page_shows_its_way_its_sources_and_its_callbacks(rig: Rig) -> None:
    text = "Blue is scattered. Red is not."
    row = finished(
        "traced",
        "sky",
        text=text,
        model_id="m1",
        timings={"queued_ms": 1500, "enrich_ms": 20, "infer_ms": 70_000},
        sources=["https://a.example/x", "javascript:alert(1)"],
        source_details=[{"id": "https://a.example/x", "url": "https://a.example/x", "title": EVIL}],
        citations=[{"start": 0, "end": 18, "source": "https://a.example/x", "support": "exact"}],
    )
    put(rig, jobs, {**row, "submitted_by": "key:1"})
    put(
        rig,
        job_attempts,
        attempt_row("traced", "sky", 1, "server_error"),
        attempt_row("traced", "sky", 2, None, status=200, attempt=2),
    )
    page = signed_in(rig, "traced").page("/console/job?id=sky")
    assert [node.text() for node in page.css(".step")] == [
        *("Accepted", "Queued", "Enriched", "Generated", "Succeeded", "Callback 1", "Callback 2")
    ]
    assert [node.text() for node in page.css(".detail")] == [
        "through /v1/jobs by key:1",
        "for 1.5 s",
        "in 20 ms, with 2 sources",
        "in 1 min 10 s by m1",
        "the result is stored",
        "to https://a.example: failed, server error, status 503",
        "to https://a.example: delivered, status 200",
    ]
    answer = page.css_first(".answer")
    assert answer is not None
    assert answer.text() == "Blue is scattered.1 Red is not."
    assert [node.text() for node in page.css(".answer mark.exact")] == ["Blue is scattered."]
    links = page.css(".sources a")
    assert [(node.attributes["href"], node.attributes["rel"], node.text()) for node in links] == [
        ("https://a.example/x", "noopener noreferrer nofollow", EVIL)
    ]
    assert "javascript:alert(1)" in body_of(page, "#source-2")


def test_another_tenants_objects_are_not_found(rig: Rig) -> None:
    put(rig, jobs, finished("owner", "secret-job"))
    put(rig, batches, batch_row("owner", "batch_secret"))
    put(rig, job_attempts, attempt_row("owner", "secret-job", 500, "timeout"))
    endpoint = {"id": "we_secret", "tenant": "owner", "name": "n", "url": "https://secret.example", "events": []}
    versions = {"headers": {}, "secret_version": 1, "enabled": True, "created_at": 0, "updated_at": 0}
    put(rig, webhook_endpoints, endpoint | versions)
    thief, owner = signed_in(rig, "thief"), signed_in(rig, "owner")
    for path in ("/console/job?id=secret-job", "/console/batch?id=batch_secret"):
        assert owner.get(path).status_code == 200
        assert thief.get(path).status_code == 404
    for path in ("/console/jobs", "/console/callbacks", "/console/endpoints", "/console/batches", "/console"):
        assert "secret" in owner.get(path).text or path == "/console"
        assert "secret" not in thief.get(path).text
    callback = {"id": "secret-job", "webhook_id": "msg_secret-job", "origin": "https://a.example"}
    for path, fields in (
        ("/console/job/cancel", {"id": "secret-job"}),
        ("/console/batch/cancel", {"id": "batch_secret"}),
        ("/console/callbacks/resend", callback),
    ):
        assert thief.send(path, fields).status_code == 404
    assert thief.get("/console/file?id=file-1").status_code == 404


def test_a_page_and_a_form_need_their_scopes(rig: Rig) -> None:
    put(rig, job_attempts, attempt_row("reader", "j", 600, "timeout"))
    browser = Browser(rig)
    browser.sign_in(rig.key("reader", Scope.READ))
    assert "Resend" not in browser.get("/console/callbacks").text
    for path in FORMS:
        assert browser.send(path, {"id": "j"}).status_code == 403


@pytest.mark.parametrize("path", FORMS)
def test_a_form_without_the_sessions_token_changes_nothing(rig: Rig, path: str) -> None:
    browser = signed_in(rig, "forged")
    assert browser.send(path, {"id": "x"}, token="0" * 64).status_code == 403
    forged = browser.ask("POST", path, data={"form_token": browser.token()}, headers={"sec-fetch-site": "cross-site"})
    assert forged.status_code == 403


def test_a_callback_counts_as_failed_by_its_last_attempt(rig: Rig) -> None:
    put(
        rig,
        job_attempts,
        attempt_row("calls", "mended", 700, "timeout"),
        attempt_row("calls", "mended", 701, None),
        attempt_row("calls", "broken", 702, None),
        attempt_row("calls", "broken", 703, "connect_failed", origin="https://b.example"),
        attempt_row("calls", "batch_1", 704, "gone"),
    )
    page = signed_in(rig, "calls").page("/console/callbacks")
    assert [node.attributes["href"] for node in page.css("td a")] == [
        "/console/batch?id=batch_1",
        "/console/job?id=broken",
    ]
    assert "connect failed" in body_of(page)
    assert len(page.css("form[action='/console/callbacks/resend']")) == 2


def test_a_callback_is_not_sent_again_to_a_domain_that_the_tenant_may_not_call_any_more(rig: Rig) -> None:
    left = TenantSettings(callback_domains=["b.example"])
    rig.store.write_now(lambda connection: put_tenant(connection, rig.clock, "moved", left))
    put(rig, job_attempts, attempt_row("moved", "old", 800, "timeout"))
    callback = {"id": "old", "webhook_id": "msg_old", "origin": "https://a.example"}
    answer = signed_in(rig, "moved").send("/console/callbacks/resend", callback)
    assert answer.status_code == 403
    assert "may not go to https://a.example any more" in answer.text


def test_the_page_of_callbacks_looks_at_the_newest_attempts_only(rig: Rig) -> None:
    rows = [attempt_row("busy", f"j{n}", 10_000 + n, "timeout") for n in range(MOST_LOOKED_AT + 1)]
    rig.store.write_now(lambda connection: connection.execute(job_attempts.insert(), rows).rowcount)
    found = rig.store.read_now(lambda connection: failed_callbacks(connection, "busy"))
    assert (len(found.shown), found.found, found.is_whole) == (MOST_SHOWN, MOST_LOOKED_AT, False)
    assert found.shown[0].job_id == f"j{MOST_LOOKED_AT}"
