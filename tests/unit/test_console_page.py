"""The console page: signing in, pages of objects, dead letters, and hostile texts."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock, patch
from urllib.parse import quote, urlencode

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from selectolax.lexbor import LexborHTMLParser
from sqlalchemy import Connection, Table, insert
from starlette.types import ASGIApp, Receive, Send
from starlette.types import Scope as ASGIScope

from cli.operations.certificates import Leaf, init, issue
from cli.operations.dead_letters import Letter, kind_of
from cli.operations.put_back import Returning
from gateway.access import CredentialRefused, Scope
from gateway.access.access import DOUBTED_AT_ONCE
from gateway.access.keys import id_of, revoke_key
from gateway.access.principal import DEFAULT_SCOPES, Principal
from gateway.access.sessions import MOST, Sessions
from gateway.access.settings import AccessSettings
from gateway.door.door import PEER
from gateway.door.settings import GatewaySettings
from gateway.page.callbacks import FRESH_SECONDS, MOST_LOOKED_AT, MOST_SHOWN, last_attempts
from gateway.page.desk import Visit
from gateway.page.endpoints import EVENT_FIELD
from gateway.page.letters import (
    DAYS,
    MOST_SECONDS,
    OBSTACLES,
    NewestLetters,
    callback_of,
    find_letter,
    newest_letters,
    put_letter_back,
)
from gateway.page.letters import (
    MOST_SHOWN as LETTERS_SHOWN,
)
from gateway.page.rendering import duration, link, page, pieces, web_address
from gateway.page.views import page_routes, read_figures
from gateway.store.store import Store
from gateway.store.tables import batches, console_sessions, files, job_attempts, jobs, webhook_endpoints
from gateway.view.writing import write_results
from gateway.webhooks.endpoints import EVENT_TYPES
from gateway.webhooks.fan_out import Sending
from producers.errors import BrokerUnreachable, RequestRefused
from producers.scan import Range, Stored, StoredPlace
from schemas import topics
from schemas.codec import write_result
from schemas.codes import CLIENTS_MISTAKES, DEAD_LETTER_REASONS
from schemas.outcome import Outcome
from schemas.result import Citation, Result, SourceDetails, Support, Timings, Usage
from schemas.settings import KafkaSettings
from schemas.topics import Topics
from telemetry.clock import SystemClock
from telemetry.hand_clock import HandClock, SetClock
from tests.drawn import drawn
from tests.unit.batch_rig import result_record
from tests.unit.door_rig import changed, limit, with_audit
from tests.unit.gateway_rig import NOW, Rig, gateway_rig, statements
from workers.delivery.keyring import Keyring
from workers.delivery.post import Poster
from workers.delivery.settings import DeliverySettings
from workers.egress import EgressPolicy


@contextmanager
def console_rig(folder: Path) -> Iterator[Rig]:
    """A door with the console page."""
    with gateway_rig(folder) as made:
        yield changed(made, page_routes)


@dataclass
class Browser:
    """Requests of one browser."""

    rig: Rig
    scheme: str = "http"
    cookies: httpx.Cookies = field(default_factory=httpx.Cookies)

    def ask(self, method: str, path: str, **arguments: object) -> httpx.Response:
        """Send one request; follow no redirect."""
        return asyncio.run(self._ask(method, path, **arguments))

    async def _ask(self, method: str, path: str, **arguments: object) -> httpx.Response:
        transport = httpx.ASGITransport(self.rig.app)
        async with httpx.AsyncClient(
            transport=transport, base_url=f"{self.scheme}://door", cookies=self.cookies
        ) as client:
            answer = await client.request(method, path, **arguments)  # type: ignore[arg-type]
            self.cookies = client.cookies
            return answer

    def get(self, path: str, **arguments: object) -> httpx.Response:
        return self.ask("GET", path, **arguments)

    def sign_in(self, key: str, **fields: str) -> httpx.Response:
        """Sign in by the form."""
        return self.ask("POST", "/console/sign-in", data={"credential": key, **fields})

    def page(self, path: str) -> LexborHTMLParser:
        """The page at this path, which must exist."""
        answer = self.get(path)
        assert answer.status_code == 200, answer.text
        return LexborHTMLParser(answer.text)

    def token(self) -> str:
        """The token of this session's forms."""
        return value_of(self.page("/console"), "input[name=form_token]")

    def send(self, path: str, fields: Mapping[str, str], token: str | None = None) -> httpx.Response:
        """Send a form with `token`, or with the session's token if `token` is None."""
        return self.ask("POST", path, data={"form_token": self.token() if token is None else token, **fields})


def value_of(page: LexborHTMLParser, field: str) -> str:
    """The value of a form's field, which the page must have."""
    found = page.css_first(field)
    assert found is not None
    return found.attributes["value"] or ""


def addresses(page: LexborHTMLParser, links: str = "td a") -> list[str | None]:
    return [node.attributes["href"] for node in page.css(links)]


def texts(page: LexborHTMLParser, selector: str = "td a") -> list[str]:
    return [node.text() for node in page.css(selector)]


def signed_in(rig: Rig, tenant: str = "acme") -> Browser:
    """A browser with a session of this tenant."""
    browser = Browser(rig)
    assert browser.sign_in(rig.key(tenant)).status_code == 303
    return browser


# -- rows of the store -------------------------------------------------------------------------------------------------


NOW_MS = int(NOW * 1000)
EVIL = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>{{7*7}}"
"""A text that would run a script on a page that does not escape it."""


def put(store: Store, table: Table, *rows: dict[str, Any]) -> None:
    def change(connection: Connection) -> None:
        for row in rows:
            connection.execute(insert(table).values(row))

    store.write_now(change)


def job_row(tenant: str, job_id: str, **more: Any) -> dict[str, Any]:
    row = {"tenant": tenant, "job_id": job_id, "url": "/v1/jobs", "status": "queued", "created_at": NOW_MS}
    return {**row, "metadata": {}, **more}


def finished(tenant: str, job_id: str, **more: Any) -> dict[str, Any]:
    """The row of a job with a result; `more` are members of the result."""
    said = {"job_id": job_id, "outcome": "succeeded", "text": "an answer", "created_at": int(NOW), **more}
    result = Result.model_validate(said)
    at = {"status": str(result.outcome), "finished_at": NOW_MS, "result": write_result(result)}
    return job_row(tenant, job_id, **at)


def answer_line(store: Store, tenant: str, job_id: str, outcome: Outcome = Outcome.SUCCEEDED, **more: Any) -> None:
    """Store the result of a batch's line, as the view does; `more` are members of the result."""
    answer = result_record(Result(job_id=job_id, outcome=outcome, created_at=int(NOW), **more), tenant, NOW_MS)
    store.write_now(lambda connection: write_results(connection, [answer]))


def batch_row(tenant: str, batch_id: str, **more: Any) -> dict[str, Any]:
    counts = {"total": 10, "completed": 4, "failed": 1, "status": "in_progress"}
    times = {"created_at": NOW_MS, "expires_at": NOW_MS + 1000, "claimed_until": 0}
    return {"id": batch_id, "tenant": tenant, "endpoint": "/v1/responses", "input_file_id": "file-1"} | (
        counts | times | more
    )


def attempt_row(tenant: str, job_id: str, offset: int, error: str | None, **more: Any) -> dict[str, Any]:
    details = {"origin": "https://a.example", "status": 503, "error": error, "attempt": 1, **more}
    place = {"topic_partition": 0, "topic_offset": offset, "at": NOW_MS + offset}
    return {**place, "tenant": tenant, "job_id": job_id, "webhook_id": f"msg_{job_id}", "details": details}


def endpoint_row(tenant: str, identifier: str, **more: Any) -> dict[str, Any]:
    terms = {"name": "n", "url": "https://a.example", "event_types": ["batch.failed"], "headers": {}, "enabled": True}
    versions = {"secret_version": 1, "created_at": NOW_MS, "updated_at": NOW_MS}
    return {"id": identifier, "tenant": tenant, **terms, **versions, **more}


# -- signing in --------------------------------------------------------------------------------------------------------


OTHERS = [{"sec-fetch-site": "cross-site"}, {"sec-fetch-site": "same-site"}, {"origin": "https://evil.example"}]
QUICK = settings(max_examples=drawn(40), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    with console_rig(tmp_path_factory.mktemp("console")) as made:
        yield made


@pytest.fixture
def later(rig: Rig) -> Iterator[Rig]:
    """The rig for a test that moves its clock: the clock is set back afterwards."""
    yield rig
    rig.clock.now = NOW


def test_a_visitor_without_a_session_is_sent_to_the_form_and_back_to_the_page(rig: Rig) -> None:
    browser = Browser(rig)
    sent = browser.get("/console?x=1")
    assert (sent.status_code, sent.headers["location"]) == (303, "/console/sign-in?next=%2Fconsole%3Fx%3D1")
    assert value_of(browser.page(sent.headers["location"]), "input[name=next]") == "/console?x=1"
    entered = browser.sign_in(rig.key(), next="/console?x=1")
    assert (entered.status_code, entered.headers["location"]) == (303, "/console?x=1")
    assert browser.get("/console").status_code == 200
    assert browser.get("/console/sign-in").headers["location"] == "/console"


def test_the_cookie_is_out_of_reach_of_scripts_and_of_other_sites(rig: Rig) -> None:
    plain = Browser(rig).sign_in(rig.key()).headers["set-cookie"]
    over_tls = Browser(rig, "https").sign_in(rig.key()).headers["set-cookie"]
    proxied = changed(rig, page_routes, settings=GatewaySettings(plain_http=True))
    assert Browser(proxied).sign_in(rig.key()).headers["set-cookie"].startswith("__Host-postback=")
    for cookie in (plain, over_tls):
        assert {"HttpOnly", "SameSite=strict", "Path=/"} <= set(cookie.split("; "))
        assert "Domain" not in cookie
    assert over_tls.startswith("__Host-postback=")
    assert "Secure" in over_tls
    assert "Secure" not in plain


def test_neither_the_cookie_nor_the_store_holds_the_key(rig: Rig) -> None:
    browser, key = Browser(rig), rig.key()
    browser.sign_in(key)
    cookie = next(iter(browser.cookies.jar)).value or ""
    rows = rig.store.read_now(lambda connection: connection.execute(console_sessions.select()).all())
    secret = key.split("_")[2]
    assert secret not in cookie
    assert rows
    assert not any(secret in str(value) or cookie in str(value) for row in rows for value in row)


def test_a_wrong_key_is_refused_on_the_form(rig: Rig) -> None:
    browser, key = Browser(rig), rig.key()
    for wrong in ("", "pk_", key[:-1], f"{key}x", "Bearer", "é", "a b"):
        refused = browser.sign_in(wrong)
        assert refused.status_code == 401
        assert "unknown, expired or revoked" in refused.text
        assert key not in refused.text
    assert browser.sign_in(rig.key("acme", Scope.SUBMIT)).status_code == 403  # it lacks the scope `read`
    assert not list(browser.cookies.jar)


def test_a_revoked_key_ends_its_sessions_at_the_next_request(rig: Rig) -> None:
    browser, key = Browser(rig), rig.key()
    browser.sign_in(key)
    assert browser.get("/console").status_code == 200
    identifier = id_of(key) or ""
    rig.store.write_now(lambda connection: revoke_key(connection, rig.clock, identifier))
    assert browser.get("/console").headers["location"].startswith("/console/sign-in")
    refreshed = browser.get("/console", headers={"hx-request": "true"})
    assert (refreshed.status_code, refreshed.headers["hx-redirect"]) == (
        401,
        "/console/sign-in?next=%2Fconsole&reason=ended",
    )


async def test_the_session_of_a_token_ends_with_the_token(later: Rig) -> None:
    sessions = Sessions(later.store, later.clock, 3600)
    scopes = frozenset({Scope.READ})
    token = await sessions.begin(Principal("acme", "jwt:alice", "jwt", scopes, int(later.clock.time()) + 60))
    found = await sessions.find(token)
    assert (found, found.scopes) == (Principal("acme", "jwt:alice", "jwt", scopes), scopes)
    later.clock.sleep(60)
    with pytest.raises(Exception, match="ended"):
        await sessions.find(token)


async def test_a_credential_has_few_sessions_and_the_newest_stay(later: Rig) -> None:
    sessions = Sessions(later.store, later.clock, 3600)
    other = await sessions.begin(Principal("other", "jwt:bob", "jwt", frozenset({Scope.READ})))
    tokens = []
    for _ in range(MOST + 2):
        later.clock.sleep(1)
        tokens.append(await sessions.begin(Principal("acme", "jwt:bob", "jwt", frozenset({Scope.READ}))))
    for token in (*tokens[2:], other):
        await sessions.find(token)
    for token in tokens[:2]:
        with pytest.raises(Exception, match="ended"):
            await sessions.find(token)


def test_a_session_ends_after_its_time_and_is_of_no_use_to_a_thief_once_it_was_signed_out(later: Rig) -> None:
    browser = signed_in(later)
    thief = Browser(later, cookies=browser.cookies)
    left = browser.send("/console/sign-out", {})
    assert (left.status_code, left.headers["location"]) == (303, "/console/sign-in")
    assert thief.get("/console").status_code == 303
    browser = signed_in(later)
    later.clock.sleep(later.door.settings.session_seconds)
    assert browser.get("/console").status_code == 303


def test_a_form_is_taken_from_this_site_only(rig: Rig) -> None:
    browser = signed_in(rig)
    token = browser.token()
    for headers in OTHERS:
        forged = browser.ask("POST", "/console/sign-out", data={"form_token": token}, headers=headers)
        entered = Browser(rig).ask("POST", "/console/sign-in", data={"credential": rig.key()}, headers=headers)
        assert (forged.status_code, entered.status_code) == (403, 403), headers
        assert "set-cookie" not in entered.headers
    assert browser.get("/console").status_code == 200
    for headers in ({"sec-fetch-site": "same-origin"}, {"origin": "http://door"}):
        entered = Browser(rig).ask("POST", "/console/sign-in", data={"credential": rig.key()}, headers=headers)
        assert entered.status_code == 303, headers


def test_a_form_needs_the_token_of_its_own_session(rig: Rig) -> None:
    browser, other = signed_in(rig), signed_in(rig)
    for token in ("", "x", other.token(), "é\udc80"):
        assert browser.send("/console/sign-out", {}, token=token.encode("utf-8", "replace").decode()).status_code == 403
    assert browser.ask("POST", "/console/sign-out").status_code == 415
    assert browser.get("/console").status_code == 200


def test_a_sign_in_leads_to_pages_of_the_console_only(rig: Rig) -> None:
    for wanted in ("https://evil.example", "//evil.example", "/console\\@evil", "/consolex", "/v1/jobs", "/console/\n"):
        assert Browser(rig).sign_in(rig.key(), next=wanted).headers["location"] == "/console"


def test_a_client_certificate_signs_in_without_a_form_and_before_any_session(rig: Rig, tmp_path: Path) -> None:
    certified = replace(rig, app=connection_with(rig.app, certificate_of(tmp_path, "acme")))
    browser = Browser(certified)
    assert "acme" in browser.get("/console").text
    assert "Sign out" not in browser.get("/console").text
    assert browser.get("/console/sign-in").headers["location"] == "/console"
    assert browser.get("/console", headers={"sec-fetch-site": "cross-site"}).status_code == 403
    assert not list(browser.cookies.jar)
    page = Browser(certified, cookies=signed_in(rig, "globex").cookies).get("/console").text
    assert ("globex" in page, "acme" in page) == (False, True)


def certificate_of(folder: Path, tenant: str) -> bytes:
    """A client certificate (DER) of a private authority."""
    now = datetime.fromtimestamp(SystemClock().time(), UTC)
    init(folder / "ca", now)
    pem = issue(folder / "ca", Leaf.client("one", tenant, ("read", "cancel")), now).certificate.read_bytes()
    return x509.load_pem_x509_certificate(pem).public_bytes(Encoding.DER)


def connection_with(app: ASGIApp, certificate: bytes) -> ASGIApp:
    """Pass this client certificate to the application with each connection, as the door's server does."""

    async def serve(scope: ASGIScope, receive: Receive, send: Send) -> None:
        await app({**scope, PEER: certificate}, receive, send)

    return serve


def test_every_answer_has_the_headers_against_misuse_and_no_script_or_style_of_its_own(rig: Rig) -> None:
    browser = signed_in(rig)
    paths = ["/console", "/console/sign-in", "/console/nothing", "/console/sign-out", "/console/"]
    for answer in [browser.get(path) for path in paths] + [browser.sign_in("wrong"), Browser(rig).get("/console")]:
        assert answer.headers["content-security-policy"] == (
            "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; "
            "form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
        )
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "same-origin"
        assert answer.headers["cache-control"] == "no-store"
        assert not [text for text in ("<style", ' style="', "onclick", "https://") if text in answer.text]
        assert answer.text.count("<script") in (0, 2)


def test_static_files_are_kept_by_browsers_and_named_by_their_content(rig: Rig) -> None:
    browser = Browser(rig)
    page = browser.page("/console/sign-in")
    found = {
        node.attributes.get(name) or ""
        for tag, name in (("script", "src"), ("link", "href"), ("img", "src"))
        for node in page.css(tag)
    }
    assert len(found) == 4
    for address in found:
        answer = browser.get(address)
        assert answer.status_code == 200
        assert "immutable" in answer.headers["cache-control"]
        assert answer.headers["x-content-type-options"] == "nosniff"
    changed = next(iter(found)).replace("/static/", "/static/0")
    assert browser.get(changed).status_code == 404


@QUICK
@given(st.text(max_size=70))
@example("a" * 5000)
def test_any_cookie_is_answered(rig: Rig, cookie: str) -> None:
    value = cookie.encode("utf-8", "surrogatepass").hex() if not cookie.isalnum() or not cookie.isascii() else cookie
    answer = Browser(rig).get("/console", headers={"cookie": f"postback={value}"})
    assert answer.status_code == 303


async def test_guessed_cookies_take_few_threads_of_the_store_and_a_session_is_still_found(tmp_path: Path) -> None:
    with gateway_rig(tmp_path, AccessSettings(failures_per_minute=3)) as made:
        rig = changed(made, page_routes)
        known, reading, most = rig.key(), 0, 0
        read = rig.store.read

        async def counted(query: Callable[[Connection], Any]) -> Any:
            nonlocal reading, most
            reading += 1
            most = max(most, reading)
            await asyncio.sleep(0.005)
            reading -= 1
            return await read(query)

        async def shown(cookie: str) -> int:
            return (await rig.request("GET", "/console", headers={"cookie": f"postback={cookie}"})).status_code

        entered = await rig.request("POST", "/console/sign-in", data={"credential": known})
        session = entered.cookies["postback"]
        for number in range(3):
            assert await shown(f"guess{number}") == 303
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(rig.store, "read", counted)
            answers = await asyncio.gather(*(shown(f"more{number}") for number in range(30)))
        assert (set(answers), most) == ({429}, DOUBTED_AT_ONCE)
        assert await shown(session) == 200


@QUICK
@given(st.dictionaries(st.sampled_from(["credential", "next", "x"]), st.text(max_size=30)) | st.binary(max_size=60))
def test_any_form_is_answered(rig: Rig, form: dict[str, str] | bytes) -> None:
    headers = {"content-type": "application/x-www-form-urlencoded"}
    if isinstance(form, dict):
        form = urlencode(form, errors="replace").encode()
    assert Browser(rig).ask("POST", "/console/sign-in", headers=headers, content=form).status_code in (400, 401)


# -- pages -------------------------------------------------------------------------------------------------------------


ENDPOINT_FORMS = tuple(f"/console/endpoints/{each}" for each in ("register", "test", "switch", "rotate", "delete"))
FORMS = (
    *("/console/job/cancel", "/console/batch/cancel", "/console/callbacks/resend", "/console/letters/redrive"),
    *ENDPOINT_FORMS,
)


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


def test_the_head_links_to_the_pages_of_the_visitors_scopes_and_marks_the_present_one(rig: Rig) -> None:
    every = ["Overview", "Batches", "Jobs", "Callbacks", "Dead letters", "Endpoints", "Fleet"]
    browser = Browser(rig)
    for scope, path, shown, marked in (
        (Scope.READ, "/console/jobs", every[:-1], ["Jobs"]),
        (Scope.ADMIN, "/console", every, ["Overview"]),
    ):
        assert browser.sign_in(rig.key("acme", scope)).status_code == 303
        links = browser.page(path).css("header nav a")
        assert [each.text() for each in links] == shown
        assert [each.text() for each in links if "aria-current" in each.attributes] == marked


def test_the_overview_shows_the_tenants_figures_and_no_other_tenants(rig: Rig) -> None:
    waiting = [job_row("figures", f"w{n}") for n in range(3)] + [job_row("figures", "c", status="cancelling")]
    ended = [finished("figures", f"s{n}") for n in range(5)]
    bad = [finished("figures", f"f{each}", outcome=each, text=None) for each in Outcome if each != "succeeded"]
    old = {**finished("figures", "old"), "finished_at": NOW_MS - 16 * 60_000}
    put(rig.store, jobs, *waiting, *ended, *bad, old, *(job_row("stranger", f"x{n}") for n in range(7)))
    put(rig.store, batches, batch_row("figures", "batch_1"), batch_row("figures", "batch_2", status="completed"))
    page = signed_in(rig, "figures").page("/console")
    assert figures(page) == {"waiting": 4 + 5, "finished": 9, "succeeded": 5, "others": 4}
    assert "4 jobs, 5 lines" in body_of(page)
    assert addresses(page) == ["/console/batch?id=batch_1"]
    assert page.css(".chart rect.good")[-1].attributes["height"] == "33.33"
    empty = signed_in(rig, "newcomer").page("/console")
    assert set(figures(empty).values()) == {0}
    assert "There are no unfinished batches." in body_of(empty)


def test_the_live_part_of_a_page_refreshes_itself_until_the_work_is_over(rig: Rig) -> None:
    put(rig.store, batches, batch_row("live", "batch_a"), batch_row("live", "batch_b", status="completed"))
    put(rig.store, jobs, job_row("live", "open"), finished("live", "over"))
    browser = signed_in(rig, "live")
    refreshed = {
        path: browser.page(f"/console{path}").css_first("#live[hx-get]") is not None
        for path in ("", "/batch?id=batch_a", "/batch?id=batch_b", "/job?id=open", "/job?id=over")
    }
    assert list(refreshed.values()) == [True, True, False, True, False]


@pytest.mark.parametrize("path", ["/job?id=j-{}", "/batch?id=batch_{}"])
def test_the_attempts_of_an_ended_object_refresh_for_a_while_after_the_last_news(rig: Rig, path: str) -> None:
    tenant, place = path[1:4], 30_000 if "job" in path else 31_000
    old, new = NOW_MS - 3_600_000, NOW_MS - 60_000
    ended = {"quiet": old, "just": new, "tried": old, "settled": old}
    for kind, at in ended.items():
        if "job" in path:
            put(rig.store, jobs, {**finished(tenant, f"j-{kind}"), "finished_at": at})
        else:
            put(rig.store, batches, batch_row(tenant, f"batch_{kind}", status="failed", created_at=at, failed_at=at))
    for kind, at in (("tried", new), ("settled", old)):
        name = path.rpartition("=")[2].format(kind)
        put(rig.store, job_attempts, {**attempt_row(tenant, name, place + len(kind), "timeout"), "at": at})
    browser = signed_in(rig, tenant)
    live = [kind for kind in ended if browser.page(f"/console{path.format(kind)}").css("#attempts[hx-get]")]
    assert live == ["just", "tried"]


def test_a_batch_shows_the_counts_of_the_api_and_links_to_its_files(rig: Rig) -> None:
    files = {"output_file_id": "file-2", "error_file_id": "file-3", "metadata": {"run": EVIL}}
    put(rig.store, batches, batch_row("batches", "batch_c", **files, in_progress_at=NOW_MS))
    browser = signed_in(rig, "batches")
    page = browser.page("/console/batch?id=batch_c")
    api = browser.ask("GET", "/v1/batches/batch_c", headers={"authorization": f"Bearer {rig.key('batches')}"}).json()
    counts = api["request_counts"]
    assert figures(page) == {**counts, "open": counts["total"] - counts["completed"] - counts["failed"]}
    assert addresses(page, "dd a") == [f"/console/file?id=file-{number}" for number in (1, 2, 3)]
    assert EVIL in body_of(page)


def test_a_list_of_batches_names_files_metadata_and_durations_and_a_failure_looks_like_one(rig: Rig) -> None:
    errors = [{"line": 1, "code": "invalid_json_line", "message": EVIL}]
    counts = {"total": 0, "completed": 0, "failed": 0}
    hour_ago = {"created_at": NOW_MS - 3_600_000}
    put(
        rig.store,
        batches,
        batch_row("named", "batch_n1", input_file_id="file-31", metadata={"run": EVIL}, **hour_ago),
        batch_row("named", "batch_n2", status="completed", completed_at=NOW_MS - 90_000, **hour_ago),
        batch_row("named", "batch_n3", status="failed", failed_at=NOW_MS, errors=errors, **counts),
    )
    put(rig.store, files, file_row("named", "file-31", EVIL), file_row("stranger", "file-1", "stranger's"))
    browser = signed_in(rig, "named")
    page = browser.page("/console/batches")
    assert len(page.css("img")) == 1
    failed, done, running = (body_of(page, f"tbody tr:nth-child({row})") for row in (1, 2, 3))
    assert EVIL in failed
    assert "58 min 30 s" in done
    assert "so far" not in done
    assert "stranger's" not in done
    assert (running.count(EVIL), f"run={EVIL}" in running, "1 h 0 min so far" in running) == (2, True, True)
    assert [rect.attributes["width"] for rect in page.css("tbody tr:last-child rect")] == ["40.0", "10.0"]
    assert EVIL in body_of(browser.page("/console/batch?id=batch_n1"), ".facts")
    assert "the input file has 1 error" in body_of(browser.page("/console/batch?id=batch_n3"), ".problem")


@pytest.mark.parametrize("path", ["/jobs", "/batches", "/callbacks", "/letters", "/endpoints"])
def test_the_first_page_of_a_list_refreshes_itself_with_its_filter(rig: Rig, path: str) -> None:
    tenant = f"lists-{path[1:]}"
    put(rig.store, jobs, *(job_row(tenant, f"r{n}", status="failed", created_at=NOW_MS + n) for n in range(2)))
    browser = signed_in(rig, tenant)
    with patch("gateway.page.letters.newest_letters", return_value=NewestLetters()):
        live = browser.page(f"/console{path}").css_first("#live")
    assert live is not None
    assert live.attributes["hx-get"] in (f"/console{path}", f"/console{path}?show=failed")
    assert live.attributes["hx-trigger"] == ("every 30s" if path == "/letters" else "every 5s")
    if path == "/jobs":
        filtered = "/console/jobs?status=failed&metadata="
        assert addresses(browser.page(filtered), "#live[hx-get] td a") == ["/console/job?id=r1", "/console/job?id=r0"]
        assert filtered in [node.attributes["hx-get"] for node in browser.page(filtered).css("#live")]
        assert browser.page(f"{filtered}&after=r1").css("#live[hx-get]") == []


def test_batches_are_listed_in_pages_that_end(rig: Rig) -> None:
    put(rig.store, batches, *(batch_row("paged", f"batch_{number:02}") for number in range(45)))
    browser, path, seen = signed_in(rig, "paged"), "/console/batches", []
    while path:
        page = browser.page(path)
        seen += texts(page)
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
    put(rig.store, batches, batch_row("ended", "batch_d"))
    put(rig.store, jobs, job_row("ended", "job/1?"), finished("ended", "done"))
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
        rig.store,
        jobs,
        job_row("filtered", "a", model_id="m1", metadata={"team": "x=y"}),
        job_row("filtered", "c", created_at=NOW_MS - 3_600_000),
    )
    put(rig.store, batches, batch_row("filtered", "batch_f11", total=1))
    answer_line(rig.store, "filtered", "batch_f11.0", Outcome.FAILED)
    browser = signed_in(rig, "filtered")
    for said, wanted in (
        ({}, "batch_f11.0ac"),
        ({"status": "failed"}, "batch_f11.0"),
        ({"status": "", "batch": "batch_f11", "model": ""}, "batch_f11.0"),
        ({"model": "m1"}, "a"),
        ({"metadata": "team=x=y"}, "a"),
        ({"created_before": "-30m"}, "c"),
        ({"created_after": "-30m", "order": "asc"}, "abatch_f11.0"),
    ):
        page = browser.page(f"/console/jobs?{urlencode(said)}")
        assert "".join(texts(page)) == wanted, said
    for wrong in ("status=x", "created_after=x", "metadata=x", "limit=0", "after=zz", "statsu=failed"):
        assert browser.get(f"/console/jobs?{wrong}").status_code in (400, 404), wrong
    page = browser.page("/console/jobs?metadata=team%3Dx%3Dy&limit=1&order=asc")
    assert value_of(page, "#metadata") == "team=x=y"


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
    put(rig.store, jobs, {**row, "submitted_by": "key:1"})
    put(
        rig.store,
        job_attempts,
        attempt_row("traced", "sky", 1, "server_error"),
        attempt_row("traced", "sky", 2, None, status=200, attempt=2),
    )
    page = signed_in(rig, "traced").page("/console/job?id=sky")
    assert texts(page, ".step") == ["Accepted", "Queued", "Enriched", "Generated", "Succeeded"]
    assert texts(page, ".detail") == [
        "through /v1/jobs by key:1",
        "for 1.5 s",
        "in 20 ms, with 2 sources",
        "in 1 min 10 s by m1",
        "the result is stored",
    ]
    assert [body_of(page, f"#attempts tbody tr:nth-child({row})") for row in (1, 2)] == [
        "2 2027-01-15 08:00:00 UTC delivered status 200 https://a.example Resend",
        "1 2027-01-15 08:00:00 UTC server error status 503 https://a.example",
    ]
    assert texts(page, ".answer")[0] == "Blue is scattered.1 Red is not."
    assert texts(page, ".answer mark.exact") == ["Blue is scattered."]
    links = page.css(".sources a")
    assert [(node.attributes["href"], node.attributes["rel"], node.text()) for node in links] == [
        ("https://a.example/x", "noopener noreferrer nofollow", EVIL)
    ]
    assert "javascript:alert(1)" in body_of(page, "#source-2")


def test_another_tenants_objects_are_not_found(rig: Rig) -> None:
    put(rig.store, jobs, finished("owner", "secret-job"))
    put(rig.store, batches, batch_row("owner", "batch_secret"))
    put(rig.store, job_attempts, attempt_row("owner", "secret-job", 500, "timeout"))
    put(rig.store, webhook_endpoints, endpoint_row("owner", "we_secret", url="https://secret.example"))
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


def test_a_form_needs_its_scope_and_the_sessions_token(rig: Rig) -> None:
    put(rig.store, job_attempts, attempt_row("reader", "j", 600, "timeout"))
    reader, forged = Browser(rig), signed_in(rig, "forged")
    reader.sign_in(rig.key("reader", Scope.READ))
    assert "Resend" not in reader.get("/console/callbacks").text
    crossing, token = {"sec-fetch-site": "cross-site"}, forged.token()
    for path in FORMS:
        assert reader.send(path, {"id": "j"}).status_code == 403, path
        assert forged.send(path, {"id": "x"}, token="0" * 64).status_code == 403, path
        assert forged.ask("POST", path, data={"form_token": token}, headers=crossing).status_code == 403, path


def test_a_callback_counts_as_failed_by_its_last_attempt(rig: Rig) -> None:
    put(
        rig.store,
        job_attempts,
        attempt_row("calls", "mended", 700, "timeout"),
        attempt_row("calls", "mended", 701, None),
        attempt_row("calls", "broken", 702, None),
        attempt_row("calls", "broken", 703, "connect_failed", origin="https://b.example"),
        attempt_row("calls", "batch_1", 704, "gone"),
    )
    browser = signed_in(rig, "calls")
    page = browser.page("/console/callbacks")
    assert addresses(page) == ["/console/batch?id=batch_1", "/console/job?id=broken"]
    assert "connect failed" in body_of(page)
    assert len(page.css("form[action='/console/callbacks/resend']")) == 2
    delivered = browser.page("/console/callbacks?show=delivered")
    assert addresses(delivered) == ["/console/job?id=broken", "/console/job?id=mended"]
    assert "connect failed" not in body_of(delivered)
    assert addresses(browser.page("/console/callbacks?show=all")) == [
        *("/console/batch?id=batch_1", "/console/job?id=broken", "/console/job?id=broken", "/console/job?id=mended"),
    ]
    assert browser.get("/console/callbacks?show=none").status_code == 400


@pytest.mark.parametrize("page", ["/console/job?id=twice", "/console/batch?id=batch_9"])
def test_the_page_of_a_job_or_a_batch_sends_each_of_its_callbacks_again(rig: Rig, page: str) -> None:
    tenant, identifier = page.rpartition("=")[2].replace("_", "-"), page.rpartition("=")[2]
    put(rig.store, jobs, finished(tenant, "twice"))
    put(rig.store, batches, batch_row(tenant, "batch_9", status="completed", id=f"{identifier}"))
    numbered = enumerate([("timeout", "https://a.example"), (None, "https://b.example"), (None, "https://a.example")])
    place = 20_000 if identifier == "twice" else 21_000
    rows = [attempt_row(tenant, identifier, place + n, error, origin=origin) for n, (error, origin) in numbered]
    put(rig.store, job_attempts, *rows)
    browser = signed_in(rig, tenant)
    found = browser.page(page)
    forms = found.css("#attempts form[action='/console/callbacks/resend']")
    assert [value_of(LexborHTMLParser(form.html or ""), "[name=origin]") for form in forms] == [
        *("https://a.example", "https://b.example"),
    ]
    fields = {node.attributes["name"] or "": node.attributes["value"] or "" for node in forms[0].css("input")}
    stored = Stored("results", StoredPlace(0, 1), NOW_MS, None, b"{}", [(topics.CALLBACK_URL, b"https://a.example/in")])
    with patch("gateway.page.callbacks.find_records", lambda *_: [stored]):
        again = browser.send("/console/callbacks/resend", fields)
    assert moved(again) == f"{page}&done=resent"
    assert "on its way again" in body_of(browser.page(moved(again)))


def test_a_callback_is_not_sent_again_to_a_domain_that_the_tenant_may_not_call_any_more(rig: Rig) -> None:
    limit(rig, "moved", callback_domains=["b.example"])
    put(rig.store, job_attempts, attempt_row("moved", "old", 800, "timeout"))
    callback = {"id": "old", "webhook_id": "msg_old", "origin": "https://a.example"}
    answer = signed_in(rig, "moved").send("/console/callbacks/resend", callback)
    assert answer.status_code == 403
    assert "may not go to https://a.example any more" in answer.text


def test_the_page_of_callbacks_looks_at_the_newest_attempts_only_and_again_after_a_while(rig: Rig) -> None:
    rows = [attempt_row("busy", f"j{n}", 10_000 + n, "timeout") for n in range(MOST_LOOKED_AT + 1)]
    rig.store.write_now(lambda connection: connection.execute(job_attempts.insert(), rows).rowcount)
    found = rig.store.read_now(lambda connection: last_attempts(connection, "busy"))["failed"]
    assert (len(found.shown), found.found, found.is_whole) == (MOST_SHOWN, MOST_LOOKED_AT, False)
    browser = signed_in(rig, "busy")
    with patch("gateway.page.callbacks.last_attempts", side_effect=last_attempts) as reading:
        for show in ("failed", "all", "failed"):
            assert "j2000" in browser.get(f"/console/callbacks?show={show}").text
        assert reading.call_count == 1
        put(rig.store, job_attempts, attempt_row("busy", "newest", 15_000, "timeout"))
        rig.clock.sleep(FRESH_SECONDS)
        assert "newest" in browser.get("/console/callbacks").text
        assert reading.call_count == 2
    assert found.shown[0].job_id == f"j{MOST_LOOKED_AT}"


# -- the search --------------------------------------------------------------------------------------------------------


def file_row(tenant: str, identifier: str, filename: str) -> dict[str, Any]:
    row = {"id": identifier, "tenant": tenant, "filename": filename, "purpose": "batch", "bytes": 1}
    return {**row, "sha256": "", "created_at": NOW_MS, "stored_at": NOW_MS}


@pytest.fixture(scope="module")
def sought(rig: Rig) -> Browser:
    """A browser of a tenant with jobs, batches and files; another tenant has objects of the same names."""
    for tenant, mark in (("finder", ""), ("neighbour", "n")):
        named = [job_row(tenant, f"j{mark}{n}", custom_id="twice", created_at=NOW_MS + n) for n in range(2)]
        put(rig.store, jobs, *named, finished(tenant, f"once{mark}"), job_row(tenant, f"x{mark}", custom_id="single"))
        put(rig.store, batches, batch_row(tenant, f"batch_5{mark}", input_file_id=f"file-5{mark}"))
        answer_line(rig.store, tenant, f"batch_5{mark}.1", custom_id=f"li'\"ne{mark}")
        put(rig.store, batches, batch_row(tenant, f"batch_6{mark}", output_file_id=f"file-6{mark}"))
        put(rig.store, files, file_row(tenant, f"file-5{mark}", "in.jsonl"), file_row(tenant, f"file-7{mark}", "lone"))
    put(rig.store, jobs, finished("neighbour", "theirs", custom_id="their-line"))
    return signed_in(rig, "finder")


@pytest.mark.parametrize(
    ("asked", "hits"),
    [
        ("once", "/console/job?id=once"),
        (" once ", "/console/job?id=once"),
        ("resp_once", "/console/job?id=once"),
        ("chatcmpl-once", "/console/job?id=once"),
        ("single", "/console/job?id=x"),
        ("batch_5", "/console/batch?id=batch_5"),
        ("batch_5.3", "/console/job?id=batch_5.3"),
        ("file-6", "/console/batch?id=batch_6"),
        ("li'\"ne", "/console/job?id=batch_5.1"),
        ("chatcmpl-batch_5.1", "/console/job?id=batch_5.1"),
        ("twice", ["job?id=j1", "job?id=j0"]),
        ("in.jsonl", ["batch?id=batch_5", "file?id=file-5"]),
        ("file-5", ["batch?id=batch_5", "file?id=file-5"]),
        ("lone", ["file?id=file-7"]),
        ("theirs", []),
        ("their-line", []),
        ("batch_5n", []),
        ("batch_5n.3", []),
        ("file-6n", []),
        ("twic", []),
        (EVIL, []),
        ("%", []),
        ("a\x00\ud800", []),
    ],
)
def test_a_search_goes_to_its_only_hit_and_lists_several(sought: Browser, asked: str, hits: str | list[str]) -> None:
    answer = sought.get(f"/console/search?{urlencode({'q': asked}, errors='surrogatepass')}")
    if isinstance(hits, str):
        assert moved(answer) == hits
        return
    page = LexborHTMLParser(answer.text)
    assert addresses(page) == [f"/console/{each}" for each in hits]
    assert len(page.css("img")) == 1
    if asked == EVIL:
        assert value_of(page, "input[name=q]") == EVIL


def test_a_search_by_custom_id_reads_an_index(sought: Browser) -> None:
    with statements() as seen:
        assert sought.get("/console/search?q=twice").status_code == 200
    [(asked, values)] = [(one, values) for one, values in seen.items() if "custom_id = ?" in one]
    plan = sought.rig.store.read_now(
        lambda connection: connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {asked}", values).all()
    )
    assert "ix_jobs_tenant_custom_id" in plan[0][3]


# -- webhook endpoints -------------------------------------------------------------------------------------------------


SWITCHED = {"enabled": "false"}
TERMS = {"name": "Mine", "url": "https://hooks.example/in", "headers": "X-Team: search\r\n\r\nx-b:c: d"}
EVERY_EVENT = {f"{EVENT_FIELD}{kind}": "on" for kind in EVENT_TYPES}


@pytest.fixture(scope="module")
def signing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """A door with the console page, an audit, and the keyring of webhook endpoints."""
    folder = tmp_path_factory.mktemp("signing")
    with gateway_rig(folder) as made:
        keyring = Keyring.create(folder / "keyring.json", made.clock)
        sending = Sending(keyring, Poster(DeliverySettings(), EgressPolicy(), made.clock), made.clock)
        with with_audit(made, page_routes, webhooks=sending) as rig:
            yield rig


def endpoints_of(rig: Rig, tenant: str) -> list[dict[str, Any]]:
    """The tenant's endpoints as the API lists them."""
    answer = asyncio.run(rig.request("GET", "/v1/webhook_endpoints", rig.key(tenant)))
    found: list[dict[str, Any]] = answer.json()["data"]
    return found


def secret_on(answer: httpx.Response) -> str:
    assert answer.status_code == 200, answer.text
    return texts(LexborHTMLParser(answer.text), ".secret")[0]


def test_an_endpoint_is_registered_disabled_rotated_and_deleted_by_forms(signing: Rig) -> None:
    browser = signed_in(signing, "hooked")
    first = secret_on(browser.send("/console/endpoints/register", TERMS | EVERY_EVENT))
    [made] = endpoints_of(signing, "hooked")
    identifier = {"id": made["id"]}
    assert (made["name"], made["url"], made["event_types"]) == ("Mine", "https://hooks.example/in", list(EVENT_TYPES))
    assert made["headers"] == {"x-team": "…", "x-b": "…"}
    assert first.endswith(made["signing_secret_hint"][-4:])
    assert first not in browser.get("/console/endpoints").text

    assert "disabled" in body_of(browser.page(moved(browser.send("/console/endpoints/switch", identifier | SWITCHED))))
    assert endpoints_of(signing, "hooked")[0]["enabled"] is False
    browser.send("/console/endpoints/switch", identifier | {"enabled": "true"})
    assert endpoints_of(signing, "hooked")[0]["enabled"] is True
    assert browser.send("/console/endpoints/switch", identifier | {"enabled": "perhaps"}).status_code == 400

    second = secret_on(browser.send("/console/endpoints/rotate", identifier | {"overlap": "on"}))
    assert second.endswith(endpoints_of(signing, "hooked")[0]["signing_secret_hint"][-4:])
    assert "the version before signs until" in body_of(browser.page("/console/endpoints"))
    assert len({first, second, secret_on(browser.send("/console/endpoints/rotate", identifier))}) == 3
    assert "the version before signs until" not in body_of(browser.page("/console/endpoints"))

    assert moved(browser.send("/console/endpoints/delete", identifier)) == "/console/endpoints?done=deleted"
    assert endpoints_of(signing, "hooked") == []
    assert browser.send("/console/endpoints/delete", identifier).status_code == 404
    audit = (signing.folder / "audit.jsonl").read_text()
    lines = [json.loads(line) for line in audit.splitlines()]
    changes = [line["event.action"] for line in lines if line.get("postback.objects") == [made["id"]]]
    assert changes == [
        *("createWebhookEndpoint", "updateWebhookEndpoint", "updateWebhookEndpoint", "updateWebhookEndpoint"),
        *("rotateWebhookSecret", "rotateWebhookSecret", "deleteWebhookEndpoint", "deleteWebhookEndpoint"),
    ]
    assert "whsec_" not in audit


def moved(answer: httpx.Response) -> str:
    assert answer.status_code == 303, answer.text
    return answer.headers["location"]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"url": "http://10.0.0.1/"}, "url: must not be called"),
        ({"url": ""}, "url: String should have at least 1 character"),
        ({"name": " "}, "name: String should have at least 1 character"),
        ({"headers": "x-a: b\nno colon"}, "headers: line 2 has no colon"),
        ({"headers": "x-a: b\nx-a: c"}, "headers: line 2 repeats a header"),
        ({"headers": "webhook-id: forged"}, "headers: has a header twice, or a header that the sender sets"),
        (dict.fromkeys(EVERY_EVENT, None), "event_types: List should have at least 1 item"),
    ],
)
def test_a_refused_registration_keeps_the_visitors_input(
    signing: Rig, changed: dict[str, str | None], said: str
) -> None:
    filled = {
        name: value for name, value in (TERMS | EVERY_EVENT | {"name": EVIL} | changed).items() if value is not None
    }
    browser = signed_in(signing, "refused")
    answer = browser.send("/console/endpoints/register", filled)
    page = LexborHTMLParser(answer.text)
    assert answer.status_code == 400
    assert said in body_of(page, "[role=alert]")
    assert (value_of(page, "#name"), value_of(page, "#url")) == (filled["name"], filled["url"])
    assert texts(page, "#headers") == [filled["headers"].replace("\r", "")]
    kept = [node.attributes["name"] for node in page.css("[checked]") if "event:" in (node.attributes["name"] or "")]
    assert kept == [name for name in filled if name in EVERY_EVENT]
    assert page.css_first("details[open]") is not None
    assert endpoints_of(signing, "refused") == []


def test_a_test_event_that_meets_no_server_or_has_no_known_type_is_told_above_the_list(signing: Rig) -> None:
    put(signing.store, webhook_endpoints, endpoint_row("tester", "we_t", url="https://10.0.0.1/"))
    browser = signed_in(signing, "tester")
    for kind, status, said in (("batch.failed", 409, "gave no HTTP answer"), (EVIL, 400, "event_type: is none of")):
        answer = browser.send("/console/endpoints/test", {"id": "we_t", "event_type": kind})
        assert (answer.status_code, said in body_of(LexborHTMLParser(answer.text), "[role=alert]")) == (status, True)
    assert browser.send("/console/endpoints/test", {"id": "we_none", "event_type": "batch.failed"}).status_code == 404


def test_another_tenants_endpoint_is_out_of_reach(signing: Rig) -> None:
    put(signing.store, webhook_endpoints, endpoint_row("hook-owner", "we_owned"))
    thief, owned = signed_in(signing, "hook-thief"), endpoints_of(signing, "hook-owner")
    for path in ENDPOINT_FORMS[1:]:
        assert thief.send(path, {"id": "we_owned", "event_type": "batch.failed", **SWITCHED}).status_code == 404, path
    assert endpoints_of(signing, "hook-owner") == owned
    assert "we_owned" not in thief.get("/console/endpoints").text


def test_an_endpoint_is_shown_with_its_texts_escaped_and_without_forms_for_readers(signing: Rig) -> None:
    row = endpoint_row("hostile", "we_h", name=EVIL, url=EVIL, event_types=[EVIL], headers={EVIL: EVIL})
    put(signing.store, webhook_endpoints, row)
    page = signed_in(signing, "hostile").page("/console/endpoints")
    assert (len(page.css("script")), len(page.css("img")), len(page.css("main form"))) == (2, 1, 5)
    assert body_of(page, "h2") == EVIL
    reader = Browser(signing)
    reader.sign_in(signing.key("hostile", Scope.READ))
    assert reader.page("/console/endpoints").css("main form") == []


def test_without_a_keyring_endpoints_are_listed_and_the_page_says_why_there_is_no_form(rig: Rig) -> None:
    browser = signed_in(rig, "keyless")
    page = browser.page("/console/endpoints")
    assert "POSTBACK_KEYRING" in body_of(page)
    assert page.css("main form") == []
    assert browser.send("/console/endpoints/register", TERMS | EVERY_EVENT).status_code == 409


# -- dead letters ------------------------------------------------------------------------------------------------------


NAMES = Topics("")
PRINCIPAL = Principal("acme", "key:1", "api_key", DEFAULT_SCOPES)
VISITOR = Visit(door=MagicMock(), request=MagicMock(), principal=PRINCIPAL, form_token="token", can_leave=True)
HEADERS = (
    *(topics.TENANT, topics.JOB_ID, topics.WEBHOOK_ID, topics.CALLBACK_URL, topics.REASON, topics.REASON_DETAIL),
    *(topics.ATTEMPTS, topics.ABRIDGED, topics.SOURCE_TOPIC, topics.SOURCE_PARTITION, topics.SOURCE_OFFSET),
)
SAID = st.one_of(
    st.binary(max_size=30), st.sampled_from([EVIL.encode(), NAMES.results.encode(), NAMES.requests().encode()])
)
RECORDS = st.builds(
    Stored,
    st.just(NAMES.dead_letters),
    st.builds(StoredPlace, st.integers(0, 9), st.integers(0, 2**60)),
    st.integers(-(2**63), 2**63 - 1),
    st.none() | st.binary(max_size=9),
    st.none() | st.binary(max_size=9),
    st.lists(st.tuples(st.sampled_from(HEADERS), st.none() | SAID), max_size=12),
)


@settings(max_examples=drawn(200))
@given(RECORDS, st.lists(st.booleans(), min_size=4, max_size=4), st.booleans())
@example(Stored(NAMES.dead_letters, StoredPlace(0, 1), 0, None, b"[" * 100_000, []), [False] * 4, False)
def test_any_letter_can_be_shown(record: Stored, states: list[bool], all_tenants: bool) -> None:
    letter = Letter(record, kind_of(record, NAMES), None, *states)
    assert isinstance(callback_of(letter), str | None)
    found = NewestLetters()
    found.add(letter)
    said = {"found": found, "days": DAYS, "said": "", "obstacles": OBSTACLES, "all_tenants": all_tenants}
    made = page("letters", 200, visitor=VISITOR, pages=[], path="/letters", **said)
    shown = LexborHTMLParser(bytes(made.body).decode())
    assert len(shown.css("tbody tr")) == 1
    assert len(shown.css("tbody button")) == (letter.obstacle is None)
    assert not shown.css("main script, main img")


def test_a_form_that_names_no_letter_is_answered_without_kafka(rig: Rig) -> None:
    browser = signed_in(rig)
    for name in ("", "job_1", "1", "1:", ":1", "-1:2", "1:2:3", "\u0661:2", "1:1e3", f"{10**30}:1"):
        assert browser.send("/console/letters/redrive", {"id": name}).status_code == 404, name


CLOCK = SetClock(1_800_000_000.0)
KAFKA = KafkaSettings()


def job_letter(offset: int, value: bytes = b"{}", job_id: str = "job_1", tenant: str = "acme") -> Stored:
    """The record of a job's letter in partition 0."""
    said = {topics.TENANT: tenant, topics.JOB_ID: job_id, topics.SOURCE_TOPIC: NAMES.requests()}
    headers = [(name, text.encode()) for name, text in said.items()]
    return Stored(NAMES.dead_letters, StoredPlace(0, offset), 1_799_999_999_000, None, value, headers)


class Letters:
    """A scanner of letters in memory; all other topics are empty. Reading a record moves `clock` by `seconds`."""

    def __init__(self, *records: Stored, clock: HandClock | None = None, seconds: float = 0.0) -> None:
        self._records, self._clock, self._seconds = records, clock, seconds
        self.read_places: set[StoredPlace] = set()

    def __enter__(self) -> Letters:
        return self

    def __exit__(self, *_error: object) -> None:
        pass

    def topics(self) -> list[str]:
        return [NAMES.requests()]

    def ranges(self, topic: str, since_ms: int | None = None) -> list[Range]:
        return [Range(topic, 0, 0, 9)] if topic == NAMES.dead_letters else []

    def read(self, ranges: list[Range]) -> Iterator[Stored]:
        for each in ranges:
            for record in self._records:
                if each.start <= record.place.offset < each.stop:
                    self.read_places.add(record.place)
                    if self._clock is not None:
                        self._clock.sleep(self._seconds)
                    yield record


def test_a_click_puts_one_letter_back_and_reads_no_other_one() -> None:
    """A stranger may give a job the id of another letter, so a click on a letter finds the letter by its place."""
    letters = Letters(job_letter(4), job_letter(5), job_letter(6, job_id="0:5"), job_letter(7, tenant="globex"))
    sent: list[Returning] = []
    back: Any = MagicMock()
    back.return_value.__enter__.return_value.send.side_effect = sent.extend
    with (
        patch("producers.scan.Scanner", return_value=letters),
        patch("cli.operations.put_back.PutBack", back),
        patch("cli.operations.dead_letters.disabled_endpoints", return_value=frozenset()),
        patch("cli.operations.dead_letters.partition_counts", return_value={NAMES.requests(): 1}),
    ):
        found = find_letter(KAFKA, CLOCK, None, StoredPlace(0, 5))
        others = [find_letter(KAFKA, CLOCK, "acme", StoredPlace(*place)) for place in ((0, 8), (0, 9), (1, 5), (0, 7))]
        assert put_letter_back(KAFKA, CLOCK, None, StoredPlace(0, 5))
        assert not put_letter_back(KAFKA, CLOCK, "globex", StoredPlace(0, 5))
    assert found is not None
    assert (found.place, others) == (StoredPlace(0, 5), [None] * 4)
    assert [(each.topic, each.key) for each in sent] == [(NAMES.requests(), None), (NAMES.redriven, b"0:5")]
    assert letters.read_places == {StoredPlace(0, 5), StoredPlace(0, 7)}


def test_the_newest_letters_are_those_of_the_tenant_and_a_search_of_all_letters_ends_in_time() -> None:
    clock = HandClock(CLOCK.now)
    records = (job_letter(0, tenant="globex"), job_letter(1, tenant="globex"), job_letter(2), job_letter(3))
    quick, slow = Letters(*records), Letters(*records, clock=clock, seconds=MOST_SECONDS / 2)
    with (
        patch("producers.scan.Scanner", side_effect=[quick, slow]),
        patch("cli.operations.dead_letters.disabled_endpoints", return_value=frozenset()),
    ):
        found = newest_letters(KAFKA, clock, "acme")
        with pytest.raises(RequestRefused, match="too many for a page"):
            newest_letters(KAFKA, clock, "acme")
    assert ([one["id"] for one in found.fleets.shown], found.fleets.found) == (["0:3", "0:2"], 2)
    assert slow.read_places == {StoredPlace(0, 0), StoredPlace(0, 1)}


def test_many_mistakes_of_clients_hide_no_letter_of_the_fleet(rig: Rig) -> None:
    assert set(DEAD_LETTER_REASONS) > CLIENTS_MISTAKES

    def letter(offset: int, reason: str) -> Letter:
        headers = [(topics.REASON, reason.encode()), (topics.TENANT, b"acme")]
        record = Stored(NAMES.dead_letters, StoredPlace(0, offset), NOW_MS + offset, None, b"", headers)
        return Letter(record, kind_of(record, NAMES), None, False, False)

    found = NewestLetters()
    found.add(letter(0, "internal_error"))
    found.add(letter(1, "of a later release"))
    for offset in range(2, LETTERS_SHOWN + 3):
        found.add(letter(offset, "rejected"))
    with patch("gateway.page.letters.newest_letters", return_value=found):
        shown = signed_in(rig, "mistaken").page("/console/letters")
    fleets, clients = ([node.text() for node in card.css(".time .soft")] for card in shown.css("#live .card"))
    assert fleets == ["0:1", "0:0"]
    assert clients == [f"0:{offset}" for offset in range(LETTERS_SHOWN + 2, 2, -1)]
    assert "1 older ones are left out" in body_of(shown)


def test_open_pages_share_a_reading_of_the_letters_until_one_is_put_back(rig: Rig) -> None:
    """A reading may take a minute, and every open page asks each half minute."""
    with (
        patch("gateway.page.letters.newest_letters", return_value=NewestLetters()) as read,
        patch("gateway.page.letters.find_letter", return_value=Letter(job_letter(5, b"{}"), "job", None)),
        patch("gateway.page.letters.put_letter_back", return_value=True),
    ):
        browser = signed_in(rig, "sharing")
        for _ in range(3):
            browser.page("/console/letters")
        assert read.call_count == 1
        assert browser.send("/console/letters/redrive", {"id": "0:5"}).status_code == 303
        browser.page("/console/letters")
        assert read.call_count == 2


@pytest.mark.parametrize(
    ("url", "status"), [("https://left.example/x", 403), ("https://hooks.example/x", 303), (None, 303)]
)
def test_a_job_whose_callback_the_tenant_may_no_longer_call_is_not_put_back(
    rig: Rig, url: str | None, status: int
) -> None:
    limit(rig, "acme", callback_domains=["hooks.example"])
    rig.door.access.forget_tenant("acme")
    value = json.dumps({"prompt": "p", "callback_url": url}).encode()
    with (
        patch("gateway.page.letters.find_letter", return_value=Letter(job_letter(5, value), "job", None)),
        patch("gateway.page.letters.put_letter_back", return_value=True) as back,
    ):
        assert signed_in(rig).send("/console/letters/redrive", {"id": "0:5"}).status_code == status
    assert back.called == (status == 303)


def test_a_visitor_is_not_told_the_address_of_a_kafka_that_is_away(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    with patch("gateway.page.letters.newest_letters", side_effect=BrokerUnreachable("kafka-7.inside:9092")):
        answer = signed_in(rig, "unlucky").get("/console/letters")
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
    assert "kafka-7" not in answer.text
    assert "kafka-7.inside:9092" in caplog.text


# -- queries and the audit ---------------------------------------------------------------------------------------------


def test_both_databases_give_the_same_figures(store: Store) -> None:
    of_jobs = [job_row("acme", "w"), finished("acme", "a"), finished("acme", "b", outcome="failed")]
    of_batches = [batch_row("acme", "batch_1"), batch_row("other", "batch_2")]
    of_attempts = [attempt_row("acme", "a", 1, "timeout"), attempt_row("other", "b", 2, "gone")]

    for table, rows in ((jobs, of_jobs), (batches, of_batches), (job_attempts, of_attempts)):
        put(store, table, *rows)
    found = store.read_now(lambda connection: read_figures(connection, "acme", NOW_MS))
    assert (found.jobs, found.lines, found.finished, found.outcomes["failed"]) == (1, 5, 2, 1)
    assert (found.minutes[-1].succeeded, found.minutes[-1].others, found.busiest) == (1, 1, 2)
    assert [row.id for row in found.batches] == ["batch_1"]
    failed = store.read_now(lambda connection: last_attempts(connection, "acme"))["failed"]
    assert [(each.job_id, each.last.error) for each in failed.shown] == [("a", "timeout")]


def test_sessions_begin_and_end_on_both_databases(store: Store) -> None:
    sessions = Sessions(store, HandClock(NOW), 60)
    principal = Principal("acme", "jwt:alice", "jwt", frozenset({Scope.READ}))

    async def tokens() -> list[str]:
        return [await sessions.begin(principal) for _ in range(MOST)]

    newest = asyncio.run(tokens())[-1]
    assert asyncio.run(sessions.find(newest)) == principal
    asyncio.run(sessions.end(newest))
    with pytest.raises(CredentialRefused):
        asyncio.run(sessions.find(newest))


def test_a_page_is_a_line_of_the_audit_with_ids_and_no_secret(tmp_path: Path) -> None:
    file = tmp_path / "audit.jsonl"
    with gateway_rig(tmp_path) as made, with_audit(made, page_routes) as rig:
        put(rig.store, jobs, job_row("acme", "sky"))
        browser = signed_in(rig)
        browser.page("/console/job?id=sky")
        token = browser.token()
        browser.send("/console/job/cancel", {"id": "sky"}, token)
        browser.send("/console/job/cancel", {"id": "sky"}, "forged")
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    said = [(line["event.action"], line["event.outcome"], line.get("postback.objects", [])) for line in lines]
    assert said == [
        ("signIn", "success", []),
        ("getJob", "success", ["sky"]),
        ("readOverview", "success", []),
        ("cancelJob", "success", ["sky"]),
        ("cancelJob", "failure", []),
    ]
    assert {(line["organization.id"], line["user.id"][:4]) for line in lines} == {("acme", "key:")}
    cookie = next(iter(browser.cookies.jar)).value or ""
    assert cookie not in file.read_text()
    assert token not in file.read_text()
    assert "pk_" not in file.read_text()


# -- hostile texts -----------------------------------------------------------------------------------------------------


PATHS = [
    *("/console", "/console/batches", "/console/batch", "/console/jobs", "/console/job", "/console/callbacks"),
    *("/console/endpoints", "/console/file", "/console/sign-in", "/console/search", "/console/nothing"),
]
FIELDS = (
    *("id", "after", "limit", "status", "created_after", "metadata", "q"),
    *("model", "batch", "order", "next", "done", "reason"),
)
TEXTS = st.text(st.characters(), max_size=30) | st.just(EVIL)


@QUICK
@given(
    st.sampled_from(PATHS),
    st.lists(
        st.tuples(
            st.sampled_from(FIELDS) | TEXTS,
            TEXTS,
        ),
        max_size=5,
    ),
)
@example("/console/jobs", [("metadata", '"=x')])
@example("/console/jobs", [("created_after", "9" * 11)])
@example("/console/batches", [("after", "batch_zz"), ("limit", "100")])
def test_any_query_is_answered(rig: Rig, path: str, said: list[tuple[str, str]]) -> None:
    browser = signed_in_once(rig)
    query = urlencode([(name, value) for name, value in said], errors="surrogatepass").replace("%00", "")
    answer = browser.get(f"{path}?{query}")
    assert answer.status_code < 500
    assert EVIL not in answer.text
    assert "<img src=x" not in answer.text


def signed_in_once(rig: Rig) -> Browser:
    """The browser that all examples of a property share."""
    if rig.folder not in _SIGNED_IN:
        _SIGNED_IN[rig.folder] = signed_in(rig, "noisy")
    return _SIGNED_IN[rig.folder]


_SIGNED_IN: dict[object, Browser] = {}


@QUICK
@given(TEXTS, TEXTS, TEXTS, st.dictionaries(TEXTS.filter(bool), TEXTS, max_size=2), st.data())
def test_any_job_is_shown_with_its_texts_escaped(
    rig: Rig, job_id: str, text: str, name: str, metadata: dict[str, str], data: st.DataObject
) -> None:
    browser = signed_in_once(rig)
    citation = st.builds(
        Citation, start=st.integers(0, 40), end=st.integers(0, 40), source=TEXTS, support=st.sampled_from(Support)
    )
    result = Result(
        job_id=job_id,
        outcome=data.draw(st.sampled_from(Outcome)),
        text=text,
        sources=[name, EVIL],
        source_details=[SourceDetails(id=name, url=f"https://{name}/", title=text)],
        citations=data.draw(st.lists(citation, max_size=4)),
        notes=[name],
        usage=Usage(completion_tokens=3),
        timings=Timings(infer_ms=1e9),
        metadata=metadata,
        created_at=0,
    )
    identifier = f"any-{quote(job_id.encode('utf-8', 'replace'))}"[:200] + data.draw(
        st.sampled_from(["", "/..", "?a#b", "%"])
    )
    row = job_row("noisy", identifier, status=str(result.outcome), finished_at=NOW_MS, custom_id=name)

    rig.store.write_now(lambda connection: connection.execute(jobs.delete().where(jobs.c.tenant == "noisy")) and None)
    put(rig.store, jobs, {**row, "metadata": metadata, "result": encoded(result)})
    listed = browser.page("/console/jobs")
    answer = browser.get(addresses(listed)[0] or "")
    assert answer.status_code == 200
    page = LexborHTMLParser(answer.text)
    for tag in ("script", "img", "style", "iframe", "object", "base"):
        assert len(page.css(tag)) == {"script": 2, "img": 1}.get(tag, 0)
    for node in page.css("main a"):
        assert (node.attributes["href"] or "").startswith(("https://", "http://", "/console", "#source-"))
    assert not any(name.startswith("on") or name == "style" for node in page.css("*") for name in node.attributes)


def encoded(result: Result) -> bytes:
    """The result's record; UTF-8 has no lone surrogates, so a result with one becomes a failed result."""
    try:
        return result.model_dump_json().encode()
    except ValueError:
        return write_result(Result(job_id="x", outcome=Outcome.FAILED, created_at=0))


@given(
    st.text(max_size=40),
    st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60), st.sampled_from(Support)), max_size=8),
)
def test_the_pieces_of_an_answer_are_its_text_whatever_its_citations_name(
    text: str, places: list[tuple[int, int, Support]]
) -> None:
    citations = [Citation(start=start, end=end, source="s", support=support) for start, end, support in places]
    result = Result(job_id="j", outcome=Outcome.SUCCEEDED, text=text, sources=["s"], citations=citations, created_at=0)
    found = list(pieces(result))
    assert "".join(piece.text for piece in found) == text
    assert all(piece.text for piece in found)
    cited = [each for each in citations if each.start < min(each.end, len(text))]
    assert sum(len(piece.references) for piece in found) == len(cited)
    place = 0
    for piece in found:
        covering = [each.support for each in cited if each.start <= place < each.end]
        weakest = max(covering, key=list(Support).index, default=None)
        assert piece.support == weakest
        place += len(piece.text)


@given(st.text())
def test_a_link_leads_to_the_web_only(text: str) -> None:
    assert web_address(text) is None or text.lower().startswith(("http://", "https://"))
    for wrong in ("javascript:alert(1)", "data:text/html,x", "//evil", "ftp://a", "https://", "http://[", " https://a"):
        assert web_address(wrong) is None
    assert web_address(None) is web_address("") is None


def test_a_duration_has_the_unit_that_suits_it() -> None:
    said = {0: "0 ms", 999: "999 ms", 1500: "1.5 s", 61_000: "1 min 1 s", 7_260_000: "2 h 1 min"}
    assert {milliseconds: duration(milliseconds) for milliseconds in said} == said
