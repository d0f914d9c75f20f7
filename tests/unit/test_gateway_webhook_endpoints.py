"""`/v1/webhook_endpoints`: terms, secrets, other tenants; and the records of events."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic_core import from_json
from sqlalchemy import select

from gateway.accept.outbox import unpacked
from gateway.access import Scope
from gateway.access.tenant_settings import TenantSettings
from gateway.access.tenants import put_tenant
from gateway.door.app import create_app
from gateway.store.tables import outbox
from gateway.view.results import StoredResult
from gateway.webhooks.fan_out import batch_ended, fanning_out
from gateway.webhooks.sending import Sending
from schemas import topics as names
from schemas.codec import write_result
from schemas.outcome import Outcome
from schemas.result import Result
from schemas.topics import Topics
from tests.drawn import drawn
from tests.unit.gateway_rig import Rig, gateway_rig
from workers.delivery.endpoint_events import read_endpoint_event
from workers.delivery.keyring import Keyring
from workers.delivery.post import Poster
from workers.delivery.settings import DeliverySettings
from workers.egress import EgressPolicy

TOPICS = Topics()
TERMS = {"name": "mine", "url": "https://hooks.example/in", "event_types": ["batch.completed", "response.failed"]}
NOISE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=9),
    lambda some: st.lists(some, max_size=3) | st.dictionaries(st.text(max_size=9), some, max_size=3),
    max_leaves=6,
)
MEMBERS = st.sampled_from(["name", "url", "event_types", "headers", "enabled", "event_type", "object"])


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    folder = tmp_path_factory.mktemp("door")
    with gateway_rig(folder) as made:
        keyring = Keyring.create(folder / "keyring.json", made.clock)
        poster = Poster(DeliverySettings(), EgressPolicy(), made.clock)
        door = replace(made.door, webhooks=Sending(keyring, poster, made.clock))
        yield replace(made, door=door, app=create_app(door))


def ask(rig: Rig, method: str, path: str, key: str, **arguments: Any) -> httpx.Response:
    return asyncio.run(rig.request(method, path, key, **arguments))


def made(rig: Rig, key: str, **changed: Any) -> dict[str, Any]:
    answer = ask(rig, "POST", "/v1/webhook_endpoints", key, json={**TERMS, **changed})
    assert answer.status_code == 200, answer.text
    created: dict[str, Any] = answer.json()
    return created


def test_the_secret_is_shown_at_create_and_at_rotate_only(rig: Rig) -> None:
    key = rig.key("secrets")
    created = made(rig, key)
    path = f"/v1/webhook_endpoints/{created['id']}"
    read = ask(rig, "GET", path, key).json()
    assert "signing_secret" not in read
    assert created["signing_secret"].startswith("whsec_")
    assert read["signing_secret_hint"].endswith(created["signing_secret"][-4:])

    rotated = ask(rig, "POST", f"{path}/rotate_secret", key).json()
    assert rotated["signing_secret"] != created["signing_secret"]
    assert rotated["signing_secret_hint"] == ask(rig, "GET", path, key).json()["signing_secret_hint"]


def test_an_update_replaces_the_named_members_only(rig: Rig) -> None:
    key = rig.key("updates")
    path = f"/v1/webhook_endpoints/{made(rig, key, headers={'X-Team': 'a'})['id']}"
    changed = ask(rig, "POST", path, key, json={"event_types": ["inference.failed"], "enabled": False}).json()
    assert (changed["name"], changed["url"]) == (TERMS["name"], TERMS["url"])
    assert (changed["event_types"], changed["enabled"]) == (["inference.failed"], False)
    assert changed["headers"] == {"x-team": "…"}


def test_a_list_ends_and_has_each_endpoint_once(rig: Rig) -> None:
    key = rig.key("lists")
    created = []
    for _ in range(5):
        rig.clock.sleep(1)
        created.append(made(rig, key)["id"])
    found: list[str] = []
    while True:
        after = {"after": found[-1]} if found else {}
        page = ask(rig, "GET", "/v1/webhook_endpoints", key, params={"limit": 2, **after}).json()
        found += [each["id"] for each in page["data"]]
        if not page["has_more"]:
            break
    assert found == created[::-1]


def test_another_tenants_endpoint_looks_absent(rig: Rig) -> None:
    path = f"/v1/webhook_endpoints/{made(rig, rig.key('owner'))['id']}"
    other = rig.key("stranger")
    tries = [("GET", ""), ("POST", ""), ("DELETE", ""), ("POST", "/rotate_secret"), ("POST", "/test")]
    for method, rest in tries:
        body = {"json": {"event_type": "batch.completed"} if rest == "/test" else {}} if method == "POST" else {}
        assert ask(rig, method, path + rest, other, **body).status_code == 404
    assert ask(rig, "GET", "/v1/webhook_endpoints", other).json()["data"] == []


def test_a_key_without_the_scope_changes_nothing(rig: Rig) -> None:
    key = rig.key("scoped", Scope.READ)
    assert ask(rig, "POST", "/v1/webhook_endpoints", key, json=TERMS).status_code == 403
    assert ask(rig, "GET", "/v1/webhook_endpoints", key).status_code == 200


def test_a_tenant_has_at_most_twenty_endpoints(rig: Rig) -> None:
    key = rig.key("many")
    for _ in range(20):
        made(rig, key)
    assert ask(rig, "POST", "/v1/webhook_endpoints", key, json=TERMS).status_code == 409


REFUSED: list[tuple[str, Any]] = [
    ("url", "http://hooks.example/in"),
    ("url", "https://10.0.0.1/in"),
    ("url", "https://user:secret@hooks.example/"),
    ("url", "https://[2001:db8::1::2]/"),
    ("url", 7),
    ("event_types", []),
    ("event_types", ["eval.run.succeeded"]),
    ("event_types", [["batch.completed"]]),
    ("name", ""),
    ("enabled", "yes"),
    ("headers", {"Host": "other.example"}),
    ("headers", {"webhook-signature": "v1,forged"}),
    ("headers", {"X-A": "b\r\nX-C: d"}),
    ("headers", {"X-A": "1", "x-a": "2"}),
    ("headers", {f"x-{number}": "1" for number in range(17)}),
    ("secret", "mine"),
]


@pytest.mark.parametrize(("member", "value"), REFUSED)
def test_terms_that_cannot_be_kept_are_refused_by_name(rig: Rig, member: str, value: Any) -> None:
    answer = ask(rig, "POST", "/v1/webhook_endpoints", rig.key("refused"), json={**TERMS, member: value})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, member)
    assert "secret@" not in answer.text


@settings(max_examples=drawn(60), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=40) | st.dictionaries(MEMBERS, NOISE, max_size=4).map(lambda body: json.dumps(body).encode()))
def test_any_body_is_answered_without_a_failure(rig: Rig, body: bytes) -> None:
    key = rig.key("noise")
    path = f"/v1/webhook_endpoints/{made_once(rig, key)}"
    for rest in ("", "/rotate_secret", "/test"):
        assert ask(rig, "POST", path + rest, key, content=body).status_code < 500
    assert ask(rig, "POST", "/v1/webhook_endpoints", key, content=body).status_code < 500


def made_once(rig: Rig, key: str) -> str:
    page = ask(rig, "GET", "/v1/webhook_endpoints", key).json()["data"]
    return str(page[0]["id"]) if page else str(made(rig, key)["id"])


def stored(tenant: str, job_id: str, outcome: Outcome = Outcome.FAILED, **changed: Any) -> StoredResult:
    result = Result(job_id=job_id, outcome=outcome, created_at=1)
    known: dict[str, Any] = {"url": "/v1/responses", "has_callback": False, "first": True, **changed}
    return StoredResult(
        tenant=tenant,
        job_id=job_id,
        batch_id=None,
        line=None,
        result=result,
        value=write_result(result),
        webhook_id=f"msg_{job_id}",
        at_ms=1_000,
        **known,
    )


def announced(rig: Rig, tenant: str, *results: StoredResult) -> list[tuple[str, str]]:
    """The endpoint and the type of each event that the fan-out puts into the outbox."""
    fan_out = fanning_out(TOPICS, rig.clock)
    rig.store.submit(lambda connection: fan_out(connection, results)).result()
    rows = rig.store.read_now(lambda connection: connection.execute(select(outbox)).all())
    found = []
    for row in rows:
        headers = dict(unpacked(row.headers))
        if headers[names.TENANT] == tenant.encode():
            assert row.topic == TOPICS.events
            assert from_json(row.value)["id"] == headers[names.WEBHOOK_ID].decode()
            found.append((str(from_json(row.value)["type"]), read_endpoint_event(list(headers.items())).endpoint_id))
    return found


def test_each_endpoint_gets_the_events_that_it_takes(rig: Rig) -> None:
    key = rig.key("taker")
    one, two = made(rig, key)["id"], made(rig, key, event_types=["inference.failed", "response.completed"])["id"]
    made(rig, key, enabled=False)
    made(rig, rig.key("bystander"))
    assert sorted(announced(rig, "taker", stored("taker", "job-1"))) == sorted(
        [("response.failed", one), ("inference.failed", two)]
    )


def test_a_result_that_an_operator_put_back_is_not_announced_again(rig: Rig) -> None:
    made(rig, rig.key("again"))
    assert announced(rig, "again", stored("again", "job-1", first=False)) == []


def test_a_job_with_a_callback_of_its_own_is_not_announced_as_inference_too(rig: Rig) -> None:
    made(rig, rig.key("own"), event_types=["inference.failed", "response.failed"])
    types = [kind for kind, _ in announced(rig, "own", stored("own", "job-1", has_callback=True))]
    assert types == ["response.failed"]


def test_a_batch_that_ends_is_announced_and_stored_as_an_event(rig: Rig) -> None:
    key = rig.key("batcher")
    endpoint = made(rig, key)["id"]
    for status in ("completed", "failed"):
        ended = partial(
            batch_ended, topics=TOPICS, clock=rig.clock, tenant="batcher", batch_id="batch_1", status=status
        )
        rig.store.submit(ended).result()
    assert announced(rig, "batcher") == [("batch.completed", endpoint)]


def test_an_old_secret_signs_for_a_day_where_the_tenant_asks_for_it(rig: Rig) -> None:
    key = rig.key("overlap")
    created = made(rig, key)
    path = f"/v1/webhook_endpoints/{created['id']}/rotate_secret"
    assert ask(rig, "POST", path, key, json={"keep_old_secret_active_for_24_hours": True}).status_code == 200

    def versions() -> set[tuple[int, ...]]:
        announced(rig, "overlap", stored("overlap", "job-1"))
        rows = rig.store.read_now(lambda connection: connection.execute(select(outbox)).all())
        mine = [each for row in rows if dict(each := unpacked(row.headers))[names.TENANT] == b"overlap"]
        return {read_endpoint_event(each).versions for each in mine}

    assert versions() == {(2, 1)}
    rig.clock.sleep(24 * 3600 + 1)
    assert versions() == {(2, 1), (2,)}


def test_without_a_keyring_the_refusal_names_the_setting(tmp_path: Path) -> None:
    with gateway_rig(tmp_path) as bare:
        answer = ask(bare, "POST", "/v1/webhook_endpoints", bare.key("bare"), json=TERMS)
    assert answer.status_code == 409
    assert "POSTBACK_KEYRING" in answer.text


def test_an_endpoint_obeys_its_tenants_callback_domains(rig: Rig) -> None:
    rules = TenantSettings(callback_domains=["*.example.org"])
    rig.store.submit(lambda connection: put_tenant(connection, rig.clock, "limited", rules)).result()
    key = rig.key("limited")
    path = f"/v1/webhook_endpoints/{made(rig, key, url='https://a.example.org/')['id']}"
    evil = {"url": "https://example.org.evil.example/"}
    for answer in (
        ask(rig, "POST", "/v1/webhook_endpoints", key, json={**TERMS, **evil}),
        ask(rig, "POST", path, key, json=evil),
    ):
        assert (answer.status_code, answer.json()["error"]["param"]) == (403, "url")
    assert ask(rig, "GET", path, key).json()["url"] == "https://a.example.org/"
