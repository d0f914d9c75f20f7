"""Signing in at the console page: cookies, forged forms, ended keys, and the headers of every answer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from starlette.types import ASGIApp, Receive, Send
from starlette.types import Scope as ASGIScope

from gateway.access import Principal, Scope
from gateway.access.key_text import id_of
from gateway.access.keys import revoke_key
from gateway.access.sessions import MOST, Sessions
from gateway.door.door import PEER
from gateway.store.tables import console_sessions
from operators.certificates import Leaf, init, issue
from telemetry.clock import SystemClock
from tests.drawn import drawn
from tests.unit.console_browser import Browser, console_rig, signed_in
from tests.unit.gateway_rig import Rig

OTHERS = [{"sec-fetch-site": "cross-site"}, {"sec-fetch-site": "same-site"}, {"origin": "https://evil.example"}]
QUICK = settings(max_examples=drawn(60), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    with console_rig(tmp_path_factory.mktemp("console")) as made:
        yield made


def test_a_visitor_without_a_session_is_sent_to_the_form_and_back_to_the_page(rig: Rig) -> None:
    browser = Browser(rig)
    sent = browser.get("/console?x=1")
    assert (sent.status_code, sent.headers["location"]) == (303, "/console/sign-in?next=%2Fconsole%3Fx%3D1")
    form = browser.page(sent.headers["location"])
    wanted = form.css_first("input[name=next]")
    assert wanted is not None
    assert wanted.attributes["value"] == "/console?x=1"
    entered = browser.sign_in(rig.key(), next="/console?x=1")
    assert (entered.status_code, entered.headers["location"]) == (303, "/console?x=1")
    assert browser.get("/console").status_code == 200
    assert browser.get("/console/sign-in").headers["location"] == "/console"


def test_the_cookie_is_out_of_reach_of_scripts_and_of_other_sites(rig: Rig) -> None:
    plain = Browser(rig).sign_in(rig.key()).headers["set-cookie"]
    over_tls = Browser(rig, "https").sign_in(rig.key()).headers["set-cookie"]
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
    assert not list(browser.cookies.jar)


def test_a_key_without_the_scope_read_does_not_sign_in(rig: Rig) -> None:
    refused = Browser(rig).sign_in(rig.key("acme", Scope.SUBMIT))
    assert (refused.status_code, "set-cookie" in refused.headers) == (403, False)


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


def test_a_session_ends_after_its_time(rig: Rig) -> None:
    browser = signed_in(rig)
    rig.clock.sleep(rig.door.settings.session_seconds)
    assert browser.get("/console").status_code == 303


async def test_the_session_of_a_token_ends_with_the_token(rig: Rig) -> None:
    sessions = Sessions(rig.store, rig.clock, 3600)
    scopes = frozenset({Scope.READ})
    token = await sessions.begin(Principal("acme", "jwt:alice", "jwt", scopes, int(rig.clock.time()) + 60))
    found = await sessions.find(token)
    assert (found, found.scopes) == (Principal("acme", "jwt:alice", "jwt", scopes), scopes)
    rig.clock.sleep(60)
    with pytest.raises(Exception, match="ended"):
        await sessions.find(token)


async def test_a_credential_has_few_sessions_and_the_newest_stay(rig: Rig) -> None:
    sessions = Sessions(rig.store, rig.clock, 3600)
    other = await sessions.begin(Principal("other", "jwt:bob", "jwt", frozenset({Scope.READ})))
    tokens = []
    for _ in range(MOST + 2):
        rig.clock.sleep(1)
        tokens.append(await sessions.begin(Principal("acme", "jwt:bob", "jwt", frozenset({Scope.READ}))))
    for token in (*tokens[2:], other):
        await sessions.find(token)
    for token in tokens[:2]:
        with pytest.raises(Exception, match="ended"):
            await sessions.find(token)


def test_a_session_that_was_signed_out_is_of_no_use_to_a_thief(rig: Rig) -> None:
    browser = signed_in(rig)
    thief = Browser(rig, cookies=browser.cookies)
    left = browser.send("/console/sign-out", {})
    assert (left.status_code, left.headers["location"]) == (303, "/console/sign-in")
    assert thief.get("/console").status_code == 303


@pytest.mark.parametrize("headers", OTHERS)
def test_a_form_of_another_site_is_refused(rig: Rig, headers: dict[str, str]) -> None:
    browser = signed_in(rig)
    token = browser.token()
    forged = browser.ask("POST", "/console/sign-out", data={"form_token": token}, headers=headers)
    entered = Browser(rig).ask("POST", "/console/sign-in", data={"credential": rig.key()}, headers=headers)
    assert (forged.status_code, entered.status_code) == (403, 403)
    assert "set-cookie" not in entered.headers
    assert browser.get("/console").status_code == 200


def test_a_form_of_this_site_is_taken_with_either_header(rig: Rig) -> None:
    for headers in ({"sec-fetch-site": "same-origin"}, {"origin": "http://door"}):
        entered = Browser(rig).ask("POST", "/console/sign-in", data={"credential": rig.key()}, headers=headers)
        assert entered.status_code == 303


def test_a_form_needs_the_token_of_its_own_session(rig: Rig) -> None:
    browser, other = signed_in(rig), signed_in(rig)
    for token in ("", "x", other.token(), "é\udc80"):
        assert browser.send("/console/sign-out", {}, token=token.encode("utf-8", "replace").decode()).status_code == 403
    assert browser.ask("POST", "/console/sign-out").status_code == 415
    assert browser.get("/console").status_code == 200


def test_a_sign_in_leads_to_pages_of_the_console_only(rig: Rig) -> None:
    for wanted in ("https://evil.example", "//evil.example", "/console\\@evil", "/consolex", "/v1/jobs", "/console/\n"):
        assert Browser(rig).sign_in(rig.key(), next=wanted).headers["location"] == "/console"


def test_a_client_certificate_signs_in_without_a_form(rig: Rig, tmp_path: Path) -> None:
    certified = replace(rig, app=connection_with(rig.app, certificate_of(tmp_path, "acme")))
    browser = Browser(certified)
    assert "acme" in browser.get("/console").text
    assert "Sign out" not in browser.get("/console").text
    assert browser.get("/console/sign-in").headers["location"] == "/console"
    assert browser.get("/console", headers={"sec-fetch-site": "cross-site"}).status_code == 403
    assert not list(browser.cookies.jar)


def test_a_session_needs_a_connection_whose_certificate_is_of_its_tenant(rig: Rig, tmp_path: Path) -> None:
    browser = signed_in(rig, "globex")
    certified = replace(rig, app=connection_with(rig.app, certificate_of(tmp_path, "acme")))
    page = Browser(certified, cookies=browser.cookies).get("/console").text
    assert "globex" not in page
    assert "acme" in page


def certificate_of(folder: Path, tenant: str) -> bytes:
    """A client certificate (DER) of a private authority."""
    now = datetime.fromtimestamp(SystemClock().time(), UTC)
    init(folder / "ca", now)
    pem = issue(folder / "ca", Leaf.client("one", tenant, "read,cancel"), now).certificate.read_bytes()
    return x509.load_pem_x509_certificate(pem).public_bytes(Encoding.DER)


def connection_with(app: ASGIApp, certificate: bytes) -> ASGIApp:
    """Pass this client certificate to the application with each connection, as the door's server does."""

    async def serve(scope: ASGIScope, receive: Receive, send: Send) -> None:
        await app({**scope, PEER: certificate}, receive, send)

    return serve


def test_every_answer_has_the_headers_against_misuse(rig: Rig) -> None:
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


def test_no_page_has_a_script_or_a_style_of_its_own(rig: Rig) -> None:
    for path in ("/console", "/console/nothing"):
        page = signed_in(rig).get(path).text
        assert "<style" not in page
        assert ' style="' not in page
        assert "onclick" not in page
        assert page.count("<script") == 2
        assert "https://" not in page


@QUICK
@given(st.text(max_size=70))
@example("a" * 5000)
def test_any_cookie_is_answered(rig: Rig, cookie: str) -> None:
    value = cookie.encode("utf-8", "surrogatepass").hex() if not cookie.isalnum() or not cookie.isascii() else cookie
    answer = Browser(rig).get("/console", headers={"cookie": f"postback={value}"})
    assert answer.status_code == 303


@QUICK
@given(st.dictionaries(st.sampled_from(["credential", "next", "x"]), st.text(max_size=30)) | st.binary(max_size=60))
def test_any_form_is_answered(rig: Rig, form: dict[str, str] | bytes) -> None:
    headers = {"content-type": "application/x-www-form-urlencoded"}
    sent: dict[str, object] = {"content": form} if isinstance(form, bytes) else {"data": _encodable(form)}
    assert Browser(rig).ask("POST", "/console/sign-in", headers=headers, **sent).status_code in (400, 401)


def _encodable(form: dict[str, str]) -> dict[str, str]:
    return {name: value.encode("utf-8", "replace").decode() for name, value in form.items()}
