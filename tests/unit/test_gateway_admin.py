"""`/v1/admin`: keys and settings of tenants, for admins only; and requests that a tenant's settings refuse."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.access import Scope
from gateway.access.key_text import id_of
from gateway.access.principal import DEFAULT_SCOPES
from tests.drawn import drawn
from tests.unit.gateway_rig import Rig, gateway_rig

KEYS, TENANTS = "/v1/admin/api_keys", "/v1/admin/tenants"
ROUTES = [
    ("POST", KEYS),
    ("GET", KEYS),
    ("DELETE", f"{KEYS}/0123456789abcdef"),
    ("GET", TENANTS),
    ("GET", f"{TENANTS}/acme"),
    ("PUT", f"{TENANTS}/acme"),
    ("DELETE", f"{TENANTS}/acme"),
]


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    with gateway_rig(tmp_path_factory.mktemp("admin")) as made:
        yield made


@pytest.fixture(scope="module")
def admin(rig: Rig) -> str:
    return rig.key("operators", Scope.ADMIN)


@pytest.mark.parametrize(("method", "path"), ROUTES)
async def test_no_tenants_credential_reaches_the_admins_routes(method: str, path: str, rig: Rig) -> None:
    key = rig.key("acme", *DEFAULT_SCOPES)
    assert (await rig.request(method, path, key, content=b"{}")).status_code == 403
    assert (await rig.request(method, path, None, content=b"{}")).status_code == 401


async def test_a_created_key_works_is_listed_and_stops_when_it_is_revoked(rig: Rig, admin: str) -> None:
    asked = {"tenant": "initech", "scopes": ["read"], "label": "ci", "expires_in_seconds": 60}
    made = (await rig.request("POST", KEYS, admin, json=asked)).json()
    assert id_of(made["key"]) == made["id"]
    assert (made["object"], made["status"], made["expires_at"] - made["created_at"]) == ("api_key", "valid", 60)
    assert (await rig.request("GET", "/v1/jobs", made["key"])).status_code == 200
    assert (await rig.request("GET", KEYS, made["key"])).status_code == 403

    listed = (await rig.request("GET", f"{KEYS}?tenant=initech", admin)).json()
    assert [(each["id"], each["scopes"], each["label"]) for each in listed["data"]] == [(made["id"], ["read"], "ci")]
    assert made["key"] not in json.dumps(listed)

    revoked = (await rig.request("DELETE", f"{KEYS}/{made['id']}", admin)).json()
    assert revoked["status"] == "revoked"
    assert (await rig.request("GET", "/v1/jobs", made["key"])).status_code == 401
    assert (await rig.request("DELETE", f"{KEYS}/unknown", admin)).json()["error"]["code"] == "api_key_not_found"


async def test_lists_of_admins_are_paged_to_their_end(rig: Rig, admin: str) -> None:
    for number in range(3):
        await rig.request("POST", KEYS, admin, json={"tenant": "paged"})
        await rig.request("PUT", f"{TENANTS}/paged-{number}", admin, json={})
    for path, least in ((f"{KEYS}?tenant=paged&limit=2", 3), (f"{TENANTS}?limit=2", 3)):
        seen: list[str] = []
        page: dict[str, Any] = {"has_more": True, "last_id": ""}
        while page["has_more"]:
            after = f"&after={page['last_id']}" if page["last_id"] else ""
            page = (await rig.request("GET", f"{path}{after}", admin)).json()
            seen += [each["id"] for each in page["data"]]
        assert len(seen) == len(set(seen)) >= least


async def test_settings_of_a_tenant_are_written_shown_and_removed(rig: Rig, admin: str) -> None:
    path = f"{TENANTS}/hooli"
    assert (await rig.request("GET", path, admin)).json()["error"]["code"] == "tenant_not_found"
    put = await rig.request("PUT", path, admin, json={"callback_domains": ["HOOKS.example.com."]})
    assert put.json()["settings"]["callback_domains"] == ["hooks.example.com"]
    assert (await rig.request("GET", path, admin)).json() == put.json()
    assert (await rig.request("DELETE", path, admin)).json()["deleted"] is True
    assert (await rig.request("DELETE", path, admin)).status_code == 404


@pytest.mark.parametrize(
    ("method", "path", "body", "param"),
    [
        ("POST", KEYS, {}, "tenant"),
        ("POST", KEYS, {"tenant": "-x"}, "tenant"),
        ("POST", KEYS, {"tenant": "acme", "scopes": []}, "scopes"),
        ("POST", KEYS, {"tenant": "acme", "scopes": ["all"]}, "scopes.0"),
        ("POST", KEYS, {"tenant": "acme", "expires_in_seconds": 0}, "expires_in_seconds"),
        ("POST", KEYS, {"tenant": "acme", "key": "mine"}, None),
        ("PUT", f"{TENANTS}/acme", {"models": "echo"}, "models"),
        ("PUT", f"{TENANTS}/acme", {"queued_lines": -1}, "queued_lines"),
        ("PUT", f"{TENANTS}/acme", {"callback_domains": ["a", "*"]}, "callback_domains.1"),
        ("PUT", f"{TENANTS}/-acme", {}, "tenant"),
        ("GET", f"{KEYS}?limit=0", None, "limit"),
        ("GET", f"{KEYS}?tenants=acme", None, "tenants"),
    ],
)
async def test_a_wrong_field_is_named(
    method: str, path: str, body: object, param: str | None, rig: Rig, admin: str
) -> None:
    answer = await rig.request(method, path, admin, json=body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


THINGS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=9),
    lambda some: st.lists(some, max_size=3) | st.dictionaries(st.text(max_size=5), some, max_size=3),
    max_leaves=5,
)
BODIES = st.binary(max_size=60) | st.dictionaries(
    st.sampled_from(["tenant", "scopes", "label", "expires_in_seconds", "models", "callback_domains", "queued_tokens"]),
    THINGS | st.just("acme") | st.just(["read"]),
).map(lambda body: json.dumps(body).encode())


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=drawn(50), deadline=None)
@given(body=BODIES, name=st.text(max_size=20))
async def test_no_body_or_name_makes_an_admins_route_fail(body: bytes, name: str, rig: Rig, admin: str) -> None:
    for method, path in (("POST", KEYS), ("PUT", f"{TENANTS}/noise"), ("PUT", f"{TENANTS}/{name!r}")):
        answer = await rig.request(method, path, admin, content=body)
        assert answer.status_code < 500


async def test_a_job_outside_the_allow_lists_is_refused_by_field(rig: Rig, admin: str) -> None:
    rules = {"models": ["echo"], "callback_domains": ["example.com"]}
    await rig.request("PUT", f"{TENANTS}/umbrella", admin, json=rules)
    key, good = rig.key("umbrella"), {"prompt": "Hello", "model_id": "echo", "callback_url": "https://example.com/in"}
    assert (await rig.request("POST", "/v1/jobs", key, json=good)).status_code == 202
    evil = {**good, "callback_url": "https://example.com.evil.example/"}
    for body, param in (
        ({**good, "model_id": "gpt"}, "model_id"),
        (evil, "callback_url"),
        ([good, evil], "1.callback_url"),
    ):
        answer = await rig.request("POST", "/v1/jobs", key, json=body)
        assert (answer.status_code, answer.json()["error"]["param"]) == (403, param)
        assert (answer.json()["error"]["code"], answer.headers["x-should-retry"]) == ("not_allowed", "false")
    nameless = await rig.request("POST", "/v1/jobs", key, json={"prompt": "Hello"})
    assert nameless.json()["error"]["param"] == "model_id"


async def test_jobs_beyond_the_quota_are_refused_together_and_a_repeat_counts_once(rig: Rig, admin: str) -> None:
    await rig.request("PUT", f"{TENANTS}/vandelay", admin, json={"queued_lines": 3})
    key, job = rig.key("vandelay"), {"prompt": "Hello"}
    for _ in range(3):
        repeated = await rig.request("POST", "/v1/jobs", key, json=[job, job], headers={"idempotency-key": "one"})
        assert repeated.status_code == 202
    refused = await rig.request("POST", "/v1/jobs", key, json=[job, job])
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "quota_exceeded")
    assert (refused.headers["x-should-retry"], int(refused.headers["retry-after"]) <= 60) == ("false", True)
    listed = (await rig.request("GET", "/v1/jobs", key)).json()
    assert len(listed["data"]) == 2
    assert (await rig.request("POST", "/v1/jobs", key, json=job)).status_code == 202
