"""`/v1/events`, `/v1/models` and `/v1/webhook_endpoints`."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic_core import from_json
from sqlalchemy import Row, select

from gateway.accept.outbox import unpacked
from gateway.access import Scope
from gateway.access.keys import id_of, revoke_key
from gateway.access.settings import AccessSettings
from gateway.door.fleet import (
    FRESH_SECONDS,
    KNOWN_SECONDS,
    SOON_SECONDS,
    Announcements,
    FleetModels,
)
from gateway.door.routes.events import READ_TOGETHER, event_text
from gateway.errors import ApiError
from gateway.store.tables import events, outbox
from gateway.view.records import ResultRecord
from gateway.view.stored_events import StoredEvent
from gateway.webhooks.fan_out import Sending, batch_ended, fanning_out
from producers.errors import BrokerUnreachable
from schemas import topics as names
from schemas.codec import write_result
from schemas.outcome import Outcome
from schemas.result import Result
from schemas.topics import Topics
from schemas.worker import LIVE_SECONDS
from telemetry.hand_clock import HandClock
from tests.drawn import JSON, drawn
from tests.unit.door_rig import all_pages, changed, limit
from tests.unit.gateway_rig import NOW, Rig, gateway_rig
from workers.delivery.endpoint_events import read_endpoint_event
from workers.delivery.keyring import Keyring
from workers.delivery.post import Poster
from workers.delivery.settings import DeliverySettings
from workers.egress import EgressPolicy

TENANT = "acme"
SUCCEEDED, FAILED, DONE = "inference.succeeded", "inference.failed", "batch.completed"


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    with gateway_rig(tmp_path) as made:
        yield made


def store(rig: Rig, first: int, *types: str, tenant: str = TENANT) -> None:
    """Store events with numbers from `first` on, as the view does, and wake their readers."""
    rows: list[dict[str, Any]] = [
        {"number": n, "tenant": tenant, "type": kind, "object_id": f"job_{n}", "at": n, "data": b'{"id":"msg_%d"}' % n}
        for n, kind in enumerate(types, first)
    ]
    rig.store.submit(lambda connection: connection.execute(events.insert(), rows) and None).result()
    rig.door.waiting.announce([(tenant, row["object_id"]) for row in rows])


def parsed(content: bytes) -> list[dict[str, str]]:
    """The whole events of a stream, by the rules of WHATWG HTML, section 9.2.6; comments are left out."""
    found = []
    for block in content.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n\n")[:-1]:
        event: dict[str, str] = {}
        for line in filter(None, block.decode().split("\n")):
            name, _, value = line.partition(":")
            value = value.removeprefix(" ")
            event[name] = f"{event[name]}\n{value}" if name in event else value
        found.append(event)
    return found


@dataclass
class Reader:
    """A client of a stream, and the answer that the server has sent it so far."""

    status: int = 0
    content: bytes = b""
    whole: bool = False
    leave: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None

    async def receive(self) -> dict[str, Any]:
        await self.leave.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        self.status = message.get("status", self.status)
        self.content += message.get("body", b"")
        self.whole = message["type"] == "http.response.body" and not message.get("more_body", False)

    @property
    def numbers(self) -> list[int]:
        return [int(event["id"]) for event in parsed(self.content) if "data" in event]

    async def until(self, numbers: Sequence[int]) -> None:
        async with asyncio.timeout(30):
            while self.numbers != [*numbers]:
                assert self.task is not None
                assert not self.task.done(), (self.status, self.content)
                await asyncio.sleep(0.001)


@asynccontextmanager
async def reading(rig: Rig, key: str, query: str = "", **headers: str) -> AsyncIterator[Reader]:
    """A reader of `/v1/events`; it leaves at the block's end."""
    reader = Reader()
    fields = {"authorization": f"Bearer {key}", **{name.replace("_", "-"): value for name, value in headers.items()}}
    scope = {
        "type": "http",
        "method": "GET",
        "path": "/v1/events",
        "raw_path": b"/v1/events",
        "root_path": "",
        "query_string": query.encode(),
        "headers": [(name.encode(), value.encode()) for name, value in fields.items()],
    }
    reader.task = asyncio.create_task(rig.app(scope, reader.receive, reader.send))
    try:
        yield reader
    finally:
        reader.leave.set()
        await reader.task


async def test_a_stream_begins_where_its_reader_says(rig: Rig) -> None:
    key = rig.key(TENANT)
    store(rig, 1, SUCCEEDED, FAILED, DONE)
    store(rig, 4, SUCCEEDED, tenant="another")

    async with reading(rig, key, "after=0") as whole, reading(rig, key, "after=0", last_event_id="2") as rest:
        await whole.until([1, 2, 3])
        await rest.until([3])
        async with reading(rig, key) as new:
            while b"retry" not in new.content:
                await asyncio.sleep(0.001)
            store(rig, 5, FAILED)
            await new.until([5])
            await whole.until([1, 2, 3, 5])
    assert whole.whole
    assert new.content.startswith(b"id: 3\nretry: 2000\n\n")  # after a cut, the client would ask for the events after 3
    assert whole.content.startswith(b"id: 0\nretry: 2000\n\nid: 1\nevent: inference.succeeded\ndata: {")


async def test_a_stream_reads_all_of_many_events_and_those_of_its_types(rig: Rig) -> None:
    key, many = rig.key(TENANT), 2 * READ_TOGETHER + 7
    store(rig, 1, *([SUCCEEDED, DONE] * many)[:many], FAILED)

    async with reading(rig, key, "after=0") as whole, reading(rig, key, f"after=0&types={FAILED}") as failed:
        await whole.until(range(1, many + 2))
        await failed.until([many + 1])
        store(rig, many + 2, DONE, FAILED)
        await failed.until([many + 1, many + 3])
    async with reading(rig, key, "after=0&types=batch.*") as batches:
        await batches.until([*range(2, many, 2), many + 2])


async def test_a_quiet_stream_sends_comments_and_is_a_whole_response_once_the_server_ends_it(rig: Rig) -> None:
    async with reading(rig, rig.key(TENANT)) as reader:
        while b": heartbeat\n\n" not in reader.content:
            rig.clock.sleep(rig.door.settings.heartbeat_seconds)
            await asyncio.sleep(0.01)
        assert reader.numbers == []
        assert reader.task is not None
        reader.task.cancel()
        await asyncio.wait([reader.task])
        assert reader.whole


@pytest.mark.parametrize("cause", ["revoked", "store-away"])
async def test_a_stream_ends_whole_with_its_credential_or_when_the_store_is_away(
    rig: Rig, cause: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = rig.key(TENANT)
    store(rig, 1, DONE)
    async with reading(rig, key, "after=0") as reader:
        await reader.until([1])
        if cause == "revoked":
            identifier = id_of(key) or ""
            rig.store.write_now(lambda connection: revoke_key(connection, rig.clock, identifier))
            rig.clock.sleep(AccessSettings().key_cache_seconds)
            store(rig, 2, DONE)
        else:
            monkeypatch.setattr(rig.store, "silent", True)
            rig.door.waiting.announce([(TENANT, "job_1")])
        assert reader.task is not None
        async with asyncio.timeout(30):
            await reader.task
        assert (reader.whole, reader.numbers) == (True, [1])


async def test_a_tenant_has_a_limited_number_of_streams(rig: Rig) -> None:
    key, most = rig.key(TENANT), rig.door.settings.event_streams
    async with AsyncExitStack() as stack:
        begun = [await stack.enter_async_context(reading(rig, key)) for _ in range(most)]
        while not all(stream.content for stream in begun):
            await asyncio.sleep(0.001)
        async with reading(rig, key) as refused:
            while not refused.whole:
                await asyncio.sleep(0.001)
            assert (refused.status, json.loads(refused.content)["error"]["code"]) == (429, "too_many_streams")
    async with reading(rig, key, "after=0") as again:
        store(rig, 1, DONE)
        await again.until([1])


async def test_a_stream_that_cannot_begin_is_refused(rig: Rig) -> None:
    key = rig.key(TENANT)
    for query in ("after=-1", "after=x", "after=9999999999999999999", "types=A", "types=a..b", "from=1"):
        assert (await rig.request("GET", f"/v1/events?{query}", key)).status_code == 400, query


@given(st.integers(1, 10**18), st.dictionaries(st.text(max_size=9), st.text(max_size=9), max_size=3), st.booleans())
def test_any_event_is_read_back(number: int, content: dict[str, str], spaced: bool) -> None:
    data = json.dumps(content, indent=2 if spaced else None).encode()
    (read,) = parsed(event_text(StoredEvent(number, DONE, data)))
    assert (read["id"], read["event"], json.loads(read["data"])) == (str(number), DONE, content)


async def test_a_tenant_sees_the_announced_models_that_it_may_use(rig: Rig) -> None:
    rig.door.models._ask = lambda: Announcements(("b/large", "a"), {"b/large": NOW - 60, "a": NOW})
    key, limited = rig.key(TENANT), rig.key("limited")
    limit(rig, "limited", models=["a", "gone"])

    async def names(key: str) -> list[str]:
        return [model["id"] for model in (await rig.request("GET", "/v1/models", key)).json()["data"]]

    assert (await names(key), await names(limited)) == (["a", "b/large"], ["a"])
    one = {"id": "b/large", "object": "model", "created": int(NOW) - 60, "owned_by": "postback"}
    assert (await rig.request("GET", "/v1/models/b%2Flarge", key)).json() == one
    assert (await rig.request("GET", "/v1/models/b%2Flarge", limited)).status_code == 404
    assert (await rig.request("GET", "/v1/models/nope", key)).json()["error"]["code"] == "model_not_found"


async def test_models_are_asked_once_for_all_and_kept_while_kafka_is_away(rig: Rig) -> None:
    clock, answers = HandClock(), iter([Announcements(("a",)), Announcements()])
    asked = 0

    def ask() -> Announcements:
        nonlocal asked
        asked += 1
        try:
            return next(answers)
        except StopIteration:
            raise BrokerUnreachable("away") from None

    fleet = FleetModels(ask, rig.store, clock)
    assert set(await asyncio.gather(*(fleet.names() for _ in range(9)))) == {("a",)}
    assert asked == 1
    clock.sleep(FRESH_SECONDS + 1)
    assert (await fleet.names(), asked) == ((), 2)
    clock.sleep(FRESH_SECONDS + 1)
    assert (await fleet.names(), asked) == ((), 3)
    clock.sleep(LIVE_SECONDS)
    with pytest.raises(ApiError, match="unknown, since Kafka"):
        await fleet.names()


async def test_a_model_that_nothing_announced_within_a_day_is_refused_at_once(rig: Rig) -> None:
    key, said = rig.key(TENANT), Announcements()
    rig.door.models._ask = lambda: said

    async def answer(model: str, url: str = "/v1/jobs") -> tuple[int, str | None]:
        body = {"prompt": "a", "model_id": model} if url == "/v1/jobs" else {"input": "a", "model": model}
        got = await rig.request("POST", url, key, json=body | ({"background": True} if "model" in body else {}))
        return got.status_code, got.json().get("error", {}).get("code")

    assert await answer("small") == (202, None)  # a fleet that was never seen
    said = Announcements((), {"small": NOW})
    rig.clock.sleep(SOON_SECONDS + 1)
    assert await answer("nope") == (404, "model_not_found")
    assert await answer("nope", "/v1/responses") == (404, "model_not_found")
    assert (await answer("small"), await answer("a/path")) == ((202, None), (202, None))
    said = Announcements()
    rig.clock.sleep(KNOWN_SECONDS - 60)
    rig.door.models._kept = None  # as after the gateway's start: the store knows what Kafka has forgotten
    assert (await answer("small"), await answer("nope")) == ((202, None), (404, "model_not_found"))
    said = Announcements((), {"new": rig.clock.time()})
    rig.clock.sleep(120)
    assert (await answer("small"), await answer("new")) == ((404, "model_not_found"), (202, None))
    said = Announcements((), {"new": rig.clock.time()}, more=True)
    rig.clock.sleep(SOON_SECONDS + 1)
    assert await answer("unlisted") == (202, None)


# -- webhook endpoints -------------------------------------------------------------------------------------------------


TOPICS = Topics()
PATH = "/v1/webhook_endpoints"
TERMS = {"name": "mine", "url": "https://hooks.example/in", "event_types": ["batch.completed", "response.failed"]}
MEMBERS = st.sampled_from(["name", "url", "event_types", "headers", "enabled", "rate_limit", "event_type"])


@pytest.fixture(scope="module")
def sending(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """A door with the keyring of webhook endpoints."""
    folder = tmp_path_factory.mktemp("door")
    with gateway_rig(folder) as made:
        keyring = Keyring.create(folder / "keyring.json", made.clock)
        poster = Poster(DeliverySettings(), EgressPolicy(), made.clock)
        yield changed(made, webhooks=Sending(keyring, poster, made.clock))


class Owner:
    """A tenant's client of webhook endpoints."""

    def __init__(self, rig: Rig, tenant: str, *scopes: Scope) -> None:
        self.rig, self.tenant, self.key = rig, tenant, rig.key(tenant, *scopes)

    def ask(self, method: str, rest: str = "", **arguments: Any) -> httpx.Response:
        return asyncio.run(self.rig.request(method, f"{PATH}{rest}", self.key, **arguments))

    def terms(self, **changed: Any) -> httpx.Response:
        """Ask for an endpoint with these terms."""
        return self.ask("POST", json={**TERMS, **changed})

    def made(self, **changed: Any) -> dict[str, Any]:
        answer = self.terms(**changed)
        assert answer.status_code == 200, answer.text
        created: dict[str, Any] = answer.json()
        return created

    def headers(self) -> list[tuple[Row[Any], list[tuple[str, bytes]]]]:
        """The rows of this tenant's events in the outbox, with their headers."""
        rows = self.rig.store.read_now(lambda connection: connection.execute(select(outbox)).all())
        found = [(row, list(unpacked(row.headers))) for row in rows]
        return [(row, headers) for row, headers in found if dict(headers)[names.TENANT] == self.tenant.encode()]

    def announced(self, *results: ResultRecord) -> list[tuple[str, str]]:
        """The endpoint and the type of each event that the fan-out puts into the outbox."""
        fan_out = fanning_out(TOPICS, self.rig.clock)
        self.rig.store.submit(lambda connection: fan_out(connection, results)).result()
        told = self.headers()
        assert {row.topic for row, _ in told} <= {TOPICS.events}
        bodies = [from_json(row.value) for row, _ in told]
        assert [body["id"].encode() for body in bodies] == [dict(headers)[names.WEBHOOK_ID] for _, headers in told]
        endpoints = [read_endpoint_event(headers).endpoint_id for _, headers in told]
        return [(str(body["type"]), endpoint) for body, endpoint in zip(bodies, endpoints, strict=True)]

    def stored(self, **changed: Any) -> ResultRecord:
        result = Result(job_id="job-1", outcome=Outcome.FAILED, created_at=1)
        known: dict[str, Any] = {"url": "/v1/responses", "has_callback": False, "first": True, **changed}
        return ResultRecord(self.tenant, result, write_result(result), "msg_job-1", 1_000, **known)


def test_the_secret_is_shown_at_create_and_at_rotate_only(sending: Rig) -> None:
    owner = Owner(sending, "secrets")
    created = owner.made()
    path = f"/{created['id']}"
    read = owner.ask("GET", path).json()
    assert "signing_secret" not in read
    assert created["signing_secret"].startswith("whsec_")
    assert read["signing_secret_hint"].endswith(created["signing_secret"][-4:])

    rotated = owner.ask("POST", f"{path}/rotate_secret").json()
    assert rotated["signing_secret"] != created["signing_secret"]
    assert rotated["signing_secret_hint"] == owner.ask("GET", path).json()["signing_secret_hint"]


def test_an_update_replaces_the_named_members_only(sending: Rig) -> None:
    owner = Owner(sending, "updates")
    path = f"/{owner.made(headers={'X-Team': 'a'})['id']}"
    changed = owner.ask("POST", path, json={"event_types": ["inference.failed"], "enabled": False}).json()
    assert (changed["name"], changed["url"]) == (TERMS["name"], TERMS["url"])
    assert (changed["event_types"], changed["enabled"]) == (["inference.failed"], False)
    assert changed["headers"] == {"x-team": "…"}
    assert [
        owner.ask("POST", path, json=terms).json()["rate_limit"]
        for terms in ({}, {"rate_limit": 7}, {"enabled": True}, {"rate_limit": None})
    ] == [None, 7, 7, None]


def test_a_tenant_has_at_most_twenty_endpoints_and_a_list_has_each_once(sending: Rig) -> None:
    owner = Owner(sending, "lists")
    created = []
    for _ in range(20):
        sending.clock.sleep(1)
        created.append(owner.made()["id"])
    assert owner.terms().status_code == 409
    assert asyncio.run(all_pages(sending, PATH, owner.key, limit=7)) == created[::-1]


def test_another_tenants_endpoint_looks_absent_and_a_key_without_the_scope_changes_nothing(sending: Rig) -> None:
    path = f"/{Owner(sending, 'owner').made()['id']}"
    other, reader = Owner(sending, "stranger"), Owner(sending, "scoped", Scope.READ)
    for method, rest in (("GET", ""), ("POST", ""), ("DELETE", ""), ("POST", "/rotate_secret"), ("POST", "/test")):
        body = {"json": {"event_type": "batch.completed"} if rest == "/test" else {}} if method == "POST" else {}
        assert other.ask(method, path + rest, **body).status_code == 404
    assert other.ask("GET").json()["data"] == []
    assert (reader.terms().status_code, reader.ask("GET").status_code) == (403, 200)


def test_a_test_event_goes_only_where_the_tenants_callbacks_may_go_by_now(sending: Rig) -> None:
    owner = Owner(sending, "narrowed")
    path = f"/{owner.made()['id']}/test"
    limit(sending, "narrowed", callback_domains=["other.example"])
    sending.door.access.forget_tenant("narrowed")
    refused = owner.ask("POST", path, json={"event_type": "batch.completed"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "not_allowed")


def test_terms_that_cannot_be_kept_are_refused_by_name(sending: Rig) -> None:
    owner = Owner(sending, "refused")
    urls = ("http://hooks.example/in", "https://10.0.0.1/in", "https://user:secret@hooks.example/")
    headers = ({"Host": "other.example"}, {"webhook-signature": "v1,forged"}, {"X-A": "b\r\nX-C: d"})
    refused: dict[str, tuple[object, ...]] = {
        "url": (*urls, "https://[2001:db8::1::2]/", 7),
        "event_types": ([], ["eval.run.succeeded"], [["batch.completed"]]),
        "name": ("",),
        "enabled": ("yes",),
        "rate_limit": (0, 10_001, 1.5, True, "5"),
        "headers": (*headers, {"X-A": "1", "x-a": "2"}, {f"x-{number}": "1" for number in range(17)}),
        "secret": ("mine",),
    }
    for member, values in refused.items():
        for value in values:
            answer = owner.terms(**{member: value})
            place = answer.json()["error"]["param"]
            assert (answer.status_code, place.partition(".")[0]) == (400, member), value
            assert "secret@" not in answer.text


@settings(max_examples=drawn(60), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=40) | st.dictionaries(MEMBERS, JSON, max_size=4).map(lambda body: json.dumps(body).encode()))
def test_any_body_is_answered_without_a_failure(sending: Rig, body: bytes) -> None:
    owner = Owner(sending, "noise")
    page = owner.ask("GET").json()["data"]
    endpoint = page[0]["id"] if page else owner.made()["id"]
    for rest in (f"/{endpoint}", f"/{endpoint}/rotate_secret", f"/{endpoint}/test", ""):
        assert owner.ask("POST", rest, content=body).status_code < 500


def test_each_endpoint_gets_the_events_that_it_takes_once(sending: Rig) -> None:
    owner = Owner(sending, "taker")
    one = owner.made()["id"]
    two = owner.made(event_types=["inference.failed", "response.completed"])["id"]
    owner.made(enabled=False)
    Owner(sending, "bystander").made()
    assert owner.announced(owner.stored(first=False)) == []  # an operator put this result back
    assert sorted(owner.announced(owner.stored())) == sorted([("response.failed", one), ("inference.failed", two)])


def test_a_job_with_a_callback_of_its_own_is_not_announced_as_inference_too(sending: Rig) -> None:
    owner = Owner(sending, "own")
    owner.made(event_types=["inference.failed", "response.failed"])
    assert [kind for kind, _ in owner.announced(owner.stored(has_callback=True))] == ["response.failed"]


def test_a_batch_that_ends_is_announced_and_stored_as_an_event(sending: Rig) -> None:
    owner = Owner(sending, "batcher")
    endpoint = owner.made()["id"]
    ended = partial(batch_ended, topics=TOPICS, clock=sending.clock, tenant="batcher", batch_id="batch_1")
    for status in ("completed", "failed"):
        sending.store.submit(partial(ended, status=status)).result()
    assert owner.announced() == [("batch.completed", endpoint)]


def test_an_old_secret_signs_for_a_day_where_the_tenant_asks_for_it(sending: Rig) -> None:
    owner = Owner(sending, "overlap")
    kept = {"keep_old_secret_active_for_24_hours": True}
    assert owner.ask("POST", f"/{owner.made()['id']}/rotate_secret", json=kept).status_code == 200

    def versions() -> set[tuple[int, ...]]:
        owner.announced(owner.stored())
        return {read_endpoint_event(headers).versions for _, headers in owner.headers()}

    assert versions() == {(2, 1)}
    sending.clock.sleep(24 * 3600 + 1)
    assert versions() == {(2, 1), (2,)}


def test_an_endpoints_events_carry_its_rate_limit(sending: Rig) -> None:
    owner = Owner(sending, "paced")
    limits = {owner.made(rate_limit=7)["id"]: 7, owner.made()["id"]: None}
    owner.announced(owner.stored())
    told = [read_endpoint_event(headers) for _, headers in owner.headers()]
    assert {event.endpoint_id: event.rate_limit for event in told} == limits


def test_without_a_keyring_the_refusal_names_the_setting(rig: Rig) -> None:
    answer = Owner(rig, "bare").terms()
    assert answer.status_code == 409
    assert "POSTBACK_KEYRING" in answer.text


def test_an_endpoint_obeys_its_tenants_callback_domains(sending: Rig) -> None:
    limit(sending, "limited", callback_domains=["*.example.org"])
    owner, evil = Owner(sending, "limited"), {"url": "https://example.org.evil.example/"}
    path = f"/{owner.made(url='https://a.example.org/')['id']}"
    for answer in (owner.terms(**evil), owner.ask("POST", path, json=evil)):
        assert (answer.status_code, answer.json()["error"]["param"]) == (403, "url")
    assert owner.ask("GET", path).json()["url"] == "https://a.example.org/"
