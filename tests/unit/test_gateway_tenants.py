"""Tenants at the door: allow-lists, quotas, rates, the admin's routes, and the audit of requests."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from yarl import URL

from gateway.access import Scope
from gateway.access import rates as rates_module
from gateway.access.allowed import OF_A_BODY, OF_A_JOB, OF_A_LINE, check_job, may_call
from gateway.access.keys import id_of, revoke_key
from gateway.access.principal import DEFAULT_SCOPES
from gateway.access.quotas import (
    QuotaExceeded,
    Work,
    queued_work,
    recount,
    release,
    reserve,
    tokens_of,
)
from gateway.access.rates import AWAY_SECONDS, Rate, Rates, network_of
from gateway.access.settings import AccessSettings
from gateway.access.tenant_settings import TenantSettings
from gateway.access.tenants import find_tenant, listed_tenants, put_tenant, remove_tenant
from gateway.door.api import API
from gateway.store.store import Store, StoreAway
from gateway.store.tables import batches, jobs, tenants
from gateway.view.writing import write_results
from schemas.job import Job
from schemas.outcome import Outcome
from schemas.result import Result
from telemetry.audit import Audit, AuditEvent
from telemetry.clock import SystemClock
from telemetry.hand_clock import HandClock
from tests.drawn import JSON, drawn
from tests.postback_command import environment_of, postback_here
from tests.redis_server import RedisServer
from tests.unit.batch_rig import result_record
from tests.unit.door_rig import all_pages, limit, with_audit
from tests.unit.gateway_rig import Rig, gateway_rig

CLOCK = HandClock()
HOSTS = TenantSettings(callback_domains=["hooks.example.com", "*.Bücher.example", "192.0.2.7", "2001:db8::1"])


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store.open(f"sqlite:///{tmp_path / 'store.db'}")
    yield opened
    opened.close()


# -- allow-lists ---------------------------------------------------------------------------------------------------


def test_a_callback_to_an_allowed_host_is_taken_in_every_spelling_and_to_no_other_host() -> None:
    allowed = """
        https://hooks.example.com/in?token=1 https://HOOKS.Example.com:8443/ https://hooks.example.com./
        https://\uff48ooks.example.com/ https://hooks。example。com/ http://hooks.example.com
        https://a.bücher.example/ https://a.b.xn--bcher-kva.example/ https://192.0.2.7/ https://[2001:DB8:0::1]/
    """
    refused = """
        https://example.com/ https://hooks.example.com.evil.example/ https://evil-hooks.example.com/
        https://a.hooks.example.com/ https://hooks.example.com@evil.example/
        https://hooks.example.com%2f@evil.example/ https://hooks.example.com%00.evil.example/
        https://evil.example\\@hooks.example.com/ https://evil.example#@hooks.example.com/
        https://evil.example/hooks.example.com https://evil.example?hooks.example.com
        https://user@hooks.example.com/ https://bücher.example/ https://xn--bcher-kva.example/
        https://notbücher.example/ https://192.0.2.70/ https://192.0.2.7.evil.example/ https://3221225991/
        https://0300.0.2.7/ https://[2001:db8::2]/ https://[::ffff:192.0.2.7]/ https://hooks.example.com../
        https:///hooks.example.com hooks.example.com
    """
    assert [url for url in allowed.split() if not may_call(HOSTS, url)] == []
    assert [url for url in (*refused.split(), "") if may_call(HOSTS, url)] == []


@example("https://hooks.example.com:80@evil.example/")
@given(st.text(max_size=60) | st.text(max_size=30).map(lambda text: f"https://hooks.example.com{text}"))
def test_every_url_that_is_taken_connects_to_an_allowed_host(url: str) -> None:
    if may_call(HOSTS, url):
        host = (URL(url).raw_host or "").removesuffix(".")
        assert host in ("hooks.example.com", "192.0.2.7", "2001:db8::1") or host.endswith(".xn--bcher-kva.example")


def test_an_absent_list_refuses_nothing_and_an_empty_one_everything() -> None:
    job = Job(prompt="Hello", model_id="echo", callback_url="https://hooks.example.com/")
    assert check_job(TenantSettings(), job) == ()
    assert len(check_job(TenantSettings(models=[], callback_domains=[]), job)) == 2
    assert check_job(TenantSettings(models=["echo"], callback_domains=["hooks.example.com"]), job) == ()


@pytest.mark.parametrize("names", [OF_A_JOB, OF_A_BODY, OF_A_LINE])
def test_a_refusal_names_the_field_as_the_author_of_the_job_knows_it(names: tuple[str, str]) -> None:
    job = Job(prompt="Hello", callback_url="https://evil.example/")
    problems = check_job(TenantSettings(models=["a", "b"], callback_domains=["*.example"]), job, names)  # type: ignore[arg-type]
    assert [problem.field for problem in problems] == [names[0]]
    problems = check_job(TenantSettings(models=["a"], callback_domains=["x.example"]), job, names)  # type: ignore[arg-type]
    assert [problem.field for problem in problems] == list(names)
    assert all("evil" not in problem.reason for problem in problems)


@given(st.text(max_size=30))
def test_any_domain_is_refused_or_kept_in_one_spelling(domain: str) -> None:
    try:
        settings = TenantSettings(callback_domains=[domain])
    except ValidationError:
        return
    assert TenantSettings(callback_domains=settings.callback_domains) == settings


def test_a_domain_that_is_no_host_is_refused() -> None:
    wrong = ("", "*", "*.", "https://a.example", "a.example/", "a.example:443", "a@b.example", "a b", "*.*.example")
    for domain in (*wrong, "*.1.2.3.4", "1.2"):
        with pytest.raises(ValidationError):
            TenantSettings(callback_domains=[domain])


# -- settings in the store ---------------------------------------------------------------------------------------------


def test_settings_are_written_replaced_listed_and_removed(store: Store) -> None:
    settings = TenantSettings(models=["echo"], queued_lines=5)
    for name, each in (("globex", TenantSettings()), ("acme", TenantSettings()), ("acme", settings)):
        store.submit(lambda c, name=name, each=each: put_tenant(c, CLOCK, name, each)).result()  # type: ignore[misc]
    assert store.read_now(lambda c: find_tenant(c, "acme")) == settings
    assert store.read_now(lambda c: listed_tenants(c, after="acme")) == [("globex", TenantSettings())]
    assert store.submit(lambda c: remove_tenant(c, "acme")).result()
    assert not store.submit(lambda c: remove_tenant(c, "acme")).result()
    assert store.read_now(lambda c: find_tenant(c, "acme")) is None


def test_settings_of_a_later_version_admit_nothing(store: Store) -> None:
    row = {"tenant": "acme", "settings": {"models": ["a"], "regions": ["eu"]}, "created_at": 0}
    store.submit(lambda c: c.execute(tenants.insert(), row)).result()
    found = store.read_now(lambda c: find_tenant(c, "acme"))
    assert found is not None
    assert len(check_job(found, Job(prompt="x", model_id="a", callback_url="https://a.example/"))) == 2


def test_the_command_writes_and_shows_settings_and_names_a_wrong_field(tmp_path: Path) -> None:
    env = environment_of(POSTBACK_STORE__URL=f"sqlite:///{tmp_path / 'store.db'}")
    settings = {"callback_domains": ["*.example.com"], "requests_per_second": 5}
    assert postback_here("tenants", "put", "acme", json.dumps(settings), env=env).returncode == 0
    assert postback_here("tenants", "put", "globex", "-", env=env, given="{}").returncode == 0
    assert json.loads(postback_here("tenants", "show", "acme", env=env).stdout) == settings
    assert postback_here("tenants", "list", env=env).stdout.splitlines()[1] == "globex  {}"
    assert postback_here("tenants", "remove", "acme", env=env).returncode == 0
    for words in (("show", "acme"), ("remove", "acme")):
        assert postback_here("tenants", *words, env=env).returncode == 1
    for wrong, place in (
        *(("{", "the settings"), ("[]", "the settings"), ('{"model": []}', "model")),
        ('{"callback_domains": ["*"]}', "callback_domains.0"),
    ):
        done = postback_here("tenants", "put", "acme", wrong, env=env)
        assert (done.returncode, done.stderr.startswith(f"postback: {place}: ")) == (2, True)


# -- quotas --------------------------------------------------------------------------------------------------------


def put_job(store: Store, job_id: str, tokens: int | None, tenant: str = "acme") -> None:
    row = {"tenant": tenant, "job_id": job_id, "url": "/v1/jobs", "status": "queued", "created_at": 0, "metadata": {}}
    store.submit(lambda c: c.execute(jobs.insert(), {**row, "reserved_tokens": tokens})).result()


def put_batch(store: Store, batch_id: str, work: Work, tenant: str = "acme") -> None:
    row: dict[str, object] = {"id": batch_id, "tenant": tenant, "endpoint": "/v1/responses", "input_file_id": "file-1"}
    row |= {"status": "in_progress", "total": work.lines, "completed": 0, "failed": 0, "created_at": 0}
    row |= {"expires_at": 0, "claimed_until": 0, "reserved_lines": work.lines, "reserved_tokens": work.tokens}
    store.submit(lambda c: c.execute(batches.insert(), row)).result()


def reserved(store: Store, settings: TenantSettings, work: Work, tenant: str = "acme") -> None:
    store.submit(lambda c: reserve(c, tenant, settings, work)).result()


def answer(store: Store, *job_ids: str, tenant: str = "acme") -> None:
    results = [Result(job_id=each, outcome=Outcome.SUCCEEDED, created_at=1) for each in job_ids]
    store.write_now(lambda c: write_results(c, [result_record(each, tenant) for each in results]))


def remove(store: Store, *job_ids: str) -> None:
    store.write_now(lambda c: release(c, [("acme", each) for each in job_ids]))


def end(store: Store, batch_id: str) -> None:
    store.write_now(lambda c: release(c, of_batches={("acme", batch_id): None}))


def queued(store: Store, tenant: str = "acme") -> Work:
    return store.read_now(lambda c: queued_work(c, tenant))


@pytest.mark.parametrize(
    ("settings", "word"), [(TenantSettings(queued_lines=3), "jobs"), (TenantSettings(queued_tokens=30), "tokens")]
)
def test_work_beyond_the_quota_is_refused_and_not_counted(settings: TenantSettings, word: str, store: Store) -> None:
    reserved(store, settings, Work(2, 20))
    with pytest.raises(QuotaExceeded, match=word):
        reserved(store, settings, Work(2, 20))
    reserved(store, settings, Work(1, 10))
    assert (queued(store), queued(store, "globex")) == (Work(3, 30), Work(0, 0))


def test_a_job_gives_its_reservation_back_once(store: Store) -> None:
    put_job(store, "counted", 10)
    put_job(store, "uncounted", None)
    put_job(store, "waiting", 5)
    reserved(store, TenantSettings(queued_lines=9), Work(2, 15))
    answer(store, "counted", tenant="globex")
    assert queued(store) == Work(2, 15)
    for _ in range(2):
        answer(store, "counted", "uncounted", "unknown")
        remove(store, "counted", "uncounted", "unknown")
        assert queued(store) == Work(1, 5)


def test_a_count_that_is_too_low_ends_at_zero(store: Store) -> None:
    """A count below zero would let the tenant queue more than its quota for good."""
    put_job(store, "counted", 10)
    reserved(store, TenantSettings(queued_lines=9), Work(0, 4))
    answer(store, "counted")
    assert queued(store) == Work(0, 0)


def test_the_lines_of_a_batch_give_all_of_it_back_and_no_more(store: Store) -> None:
    put_batch(store, "batch_1", Work(3, 100))
    put_batch(store, "batch_2", Work(1, 7))
    reserved(store, TenantSettings(queued_lines=9), Work(4, 107))
    answer(store, "batch_1.0", "batch_1.1")
    assert queued(store) == Work(2, 41)
    for _ in range(2):
        answer(store, "batch_1.0")  # a redriven line's further result
        assert queued(store) == Work(2, 41)
    answer(store, *(f"batch_1.{line}" for line in range(5)))
    answer(store, "batch_2.0", tenant="globex")
    assert queued(store) == Work(1, 7)
    for _ in range(2):
        end(store, "batch_2")
    assert queued(store) == Work(0, 0)


STEPS = st.lists(st.tuples(st.sampled_from(["job", "batch", "answer", "line", "end", "recount"]), st.integers(0, 3)))


@settings(max_examples=drawn(20))
@given(steps=STEPS)
def test_counts_are_the_reservations_of_the_rows_after_any_steps(
    steps: list[tuple[str, int]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    store = Store.open(f"sqlite:///{tmp_path_factory.mktemp('quota') / 'store.db'}")
    lines = TenantSettings(queued_lines=1000)
    made: set[str] = set()
    for step, number in steps:
        name = f"{step}_{number}"
        if step in ("job", "batch") and name not in made:
            made.add(name)
            work = Work(1, 3) if step == "job" else Work(3, 10)
            put_job(store, name, work.tokens) if step == "job" else put_batch(store, name, work)
            reserved(store, lines, work)
        elif step == "answer" and f"job_{number}" in made:
            answer(store, f"job_{number}")
        elif step == "line":
            answer(store, f"batch_{number}.0")
        elif step == "end":
            end(store, f"batch_{number}")
        before = queued(store)
        store.submit(recount).result()
        assert queued(store) == before
    store.close()


def test_the_tokens_of_a_job_are_its_text_and_its_longest_answer() -> None:
    assert [tokens_of(size, 100) for size in (0, 1, 4, 5)] == [100, 101, 101, 102]


# -- rates -------------------------------------------------------------------------------------------------------------


FEW = AccessSettings(requests_per_second=1_000_000, failures_per_minute=3, key_cache_seconds=0)


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    with gateway_rig(tmp_path, FEW) as made:
        yield made


async def models(rig: Rig, key: str | None) -> httpx.Response:
    return await rig.request("GET", "/v1/jobs", key)


async def statuses(rig: Rig, key: str | None, requests: int) -> list[int]:
    return [(await models(rig, key)).status_code for _ in range(requests)]


def wait_hint(response: httpx.Response) -> int:
    return int(response.headers["retry-after"])


async def test_requests_are_counted_without_a_thread_and_any_number_of_addresses_takes_bounded_memory() -> None:
    clock = HandClock(0.0)
    rates, before = Rates(None, clock, most=100), threading.active_count()
    assert [(await rates.take(Rate(2, 60), "one")).allowed for _ in range(3)] == [True, True, False]
    assert threading.active_count() == before
    rate = Rate(5_000, 60)
    for number in range(1_000):
        busy = await rates.take(rate, "busy")
        await rates.take(rate, str(number))
    assert busy.remaining == 4_000
    assert (await rates.take(rate, "0")).remaining == 4_999  # its window was evicted
    clock.sleep(60)
    assert (await rates.take(rate, "busy")).remaining == 4_999


async def test_requests_above_the_rate_of_the_whole_door_are_refused(tmp_path: Path) -> None:
    with gateway_rig(tmp_path, AccessSettings(requests_per_second=2)) as rig:
        key = rig.key()
        answers = [await rig.request("GET", path, key) for path in ("/v1/jobs", "/nowhere", "/v1/files") * 20]
    refused = [answer for answer in answers if answer.status_code == 429]
    assert refused
    error = refused[0].json()["error"]
    assert (error["type"], error["code"]) == ("rate_limit_error", "rate_limit_exceeded")
    assert all(1 <= wait_hint(answer) <= 60 and "x-request-id" in answer.headers for answer in refused)


async def test_strangers_use_up_the_rate_of_their_own_address_only(tmp_path: Path) -> None:
    with gateway_rig(tmp_path, AccessSettings(requests_per_second=3, stranger_requests_per_second=2)) as rig:
        key = rig.key()
        paths = ("/docs", "/openapi.json", "/nowhere", "/v1/jobs", "/console/sign-in")
        strange = [(await rig.request("GET", path)).status_code for path in paths * 4]
        assert {200, 401, 404, 429} == set(strange)
        assert await statuses(rig, key, 3) == [200, 200, 200]


async def test_a_key_is_valid_although_the_store_cannot_note_its_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with gateway_rig(tmp_path) as rig:
        key = rig.key()

        def behind(_: object) -> None:
            raise StoreAway("too many changes wait")

        monkeypatch.setattr(rig.store, "submit", behind)
        assert await statuses(rig, key, 1) == [200]


async def test_the_rate_of_a_tenant_is_shared_by_its_credentials_and_that_of_a_credential_is_its_own(rig: Rig) -> None:
    limit(rig, "acme", requests_per_second=3)
    limit(rig, "initech", key_requests_per_second=3, requests_per_second=1_000_000)
    keys, other = [rig.key(), rig.key()], rig.key("globex")
    first = await models(rig, keys[0])
    assert first.headers["x-ratelimit-limit-requests"] == "3"
    assert first.headers["x-ratelimit-remaining-requests"] == "2"
    assert first.headers["x-ratelimit-reset-requests"].endswith("s")
    seen = [await statuses(rig, key, 30) for key in keys]
    assert all(429 in each for each in seen)
    assert await statuses(rig, other, 20) == [200] * 20
    assert "x-ratelimit-limit-requests" not in (await models(rig, other)).headers
    busy, idle = rig.key("initech"), rig.key("initech")
    assert 429 in await statuses(rig, busy, 40)
    answer = await models(rig, idle)
    assert (answer.status_code, answer.headers["x-ratelimit-limit-requests"]) == (200, "3")


async def test_guessing_of_keys_is_slowed_by_address_and_known_keys_still_work(rig: Rig) -> None:
    known, unknown, guess = rig.key(), rig.key("globex"), rig.key()
    rig.store.write_now(
        lambda connection: connection.exec_driver_sql("DELETE FROM api_keys WHERE id = ?", (guess[3:19],))
    )
    assert await statuses(rig, known, 1) == [200]
    # A credential that lacks only the scope is known, and so no guess.
    assert await statuses(rig, rig.key("acme", Scope.SUBMIT), 6) == [403] * 6
    assert await statuses(rig, guess, 5) == [401, 401, 401, 429, 429]
    assert await statuses(rig, None, 1) == [429]
    assert await statuses(rig, unknown, 1) == [200]  # a valid key is never refused for the bad ones of others
    assert await statuses(rig, known, 2) == [200, 200]
    refused = await models(rig, guess)
    assert 1 <= wait_hint(refused) <= 60


@given(st.text(max_size=50))
def test_an_address_is_counted_with_its_network(address: str) -> None:
    assert network_of(address)
    networks = {"192.0.2.1": "192.0.2.1", "::ffff:192.0.2.1": "192.0.2.1", "testclient": "unknown"}
    networks |= dict.fromkeys(("2001:db8::1", "2001:db8::ffff:1"), "2001:db8::/64")
    assert {each: network_of(each) for each in networks} == networks
    assert network_of(None) == "unknown"


async def test_a_burst_of_requests_is_counted_in_redis_and_is_not_taken_for_its_end(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The door lets one address have 500 connections, which is more than the connections to Redis."""
    monkeypatch.setattr(rates_module, "REDIS_SECONDS", 10.0)  # a busy machine may take long for so many
    rate = Rate(1_000, 60)
    with RedisServer(tmp_path) as redis:
        rates = Rates(redis.url, SystemClock())
        taken = await asyncio.gather(*(rates.take(rate, "acme") for _ in range(500)))
        await rates.close()
    assert sorted(each.remaining for each in taken) == [*range(500, 1_000)]
    assert caplog.text.count("Redis does not answer") == 0


async def test_gateways_count_together_in_redis_and_each_by_itself_while_it_is_away(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    clock, item = HandClock(SystemClock().time()), Rate(3, 60)
    with RedisServer(tmp_path) as redis:
        first, second = Rates(redis.url, clock), Rates(redis.url, clock)
        counts = [(await each.take(item, "a")).remaining for each in (first, second, first)]
        assert counts == [2, 1, 0]
        taken = await second.take(item, "a")
        assert (taken.allowed, 1 <= taken.reset_seconds <= 60) == (False, True)
        assert await second.is_spent(item, "a")
        assert not any([await second.is_spent(item, "b") for _ in range(4)])
        assert first._redis is not None
        await first._redis.persist(item.key_for("a"))  # as by another program
        assert (await second.take(item, "a")).reset_seconds == 60
        assert 0 < await first._redis.ttl(item.key_for("a")) <= 60

        redis.kill()
        alone = [(await first.take(item, "a")).allowed for _ in range(4)]
        assert alone == [True, True, True, False]
        assert await first.is_spent(item, "a")
        assert (await second.take(Rate(1), "a")).allowed
        assert caplog.text.count("Redis does not answer") == 2

        redis.start()
        clock.now += AWAY_SECONDS
        assert (await first.take(item, "a")).remaining == 2
        assert "Redis answers again" in caplog.text
        await first.close()
        await second.close()


# -- the admin's routes ------------------------------------------------------------------------------------------------


@dataclass
class Admin:
    """A client with the scope of admins."""

    rig: Rig
    key: str

    async def ask(self, method: str, path: str, json: object = None, **arguments: object) -> httpx.Response:
        return await self.rig.request(method, f"/v1/admin{path}", self.key, json=json, **arguments)

    async def put(self, tenant: str, **settings: object) -> httpx.Response:
        return await self.ask("PUT", f"/tenants/{tenant}", settings)


@pytest.fixture(scope="module")
def admin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Admin]:
    with gateway_rig(tmp_path_factory.mktemp("admin")) as made:
        yield Admin(made, made.key("operators", Scope.ADMIN))


async def test_no_tenants_credential_reaches_the_admins_routes(admin: Admin) -> None:
    key = admin.rig.key("acme", *DEFAULT_SCOPES)
    for method, path in (
        *(("POST", "api_keys"), ("GET", "api_keys"), ("DELETE", "api_keys/0123456789abcdef"), ("GET", "tenants")),
        *((method, "tenants/acme") for method in ("GET", "PUT", "DELETE")),
    ):
        for credential, status in ((key, 403), (None, 401)):
            answer = await admin.rig.request(method, f"/v1/admin/{path}", credential, content=b"{}")
            assert answer.status_code == status, path


async def test_a_created_key_works_is_listed_and_stops_when_it_is_revoked(admin: Admin) -> None:
    asked = {"tenant": "initech", "scopes": ["read"], "label": "ci", "expires_in_seconds": 60}
    made = (await admin.ask("POST", "/api_keys", asked)).json()
    assert id_of(made["key"]) == made["id"]
    assert (made["object"], made["status"], made["expires_at"] - made["created_at"]) == ("api_key", "valid", 60)
    assert (await models(admin.rig, made["key"])).status_code == 200
    assert (await admin.rig.request("GET", "/v1/admin/api_keys", made["key"])).status_code == 403

    listed = (await admin.ask("GET", "/api_keys?tenant=initech")).json()
    assert [(each["id"], each["scopes"], each["label"]) for each in listed["data"]] == [(made["id"], ["read"], "ci")]
    assert made["key"] not in json.dumps(listed)

    assert (await admin.ask("DELETE", f"/api_keys/{made['id']}")).json()["status"] == "revoked"
    assert (await models(admin.rig, made["key"])).status_code == 401
    assert (await admin.ask("DELETE", "/api_keys/unknown")).json()["error"]["code"] == "api_key_not_found"


async def test_lists_of_admins_are_paged_to_their_end(admin: Admin) -> None:
    for number in range(3):
        await admin.ask("POST", "/api_keys", {"tenant": "paged"})
        await admin.put(f"paged-{number}")
    for path, query in (("api_keys", {"tenant": "paged"}), ("tenants", {})):
        seen = await all_pages(admin.rig, f"/v1/admin/{path}", admin.key, limit=2, **query)
        assert len(seen) == len(set(seen)) >= 3


async def test_settings_of_a_tenant_are_written_shown_and_removed(admin: Admin) -> None:
    assert (await admin.ask("GET", "/tenants/hooli")).json()["error"]["code"] == "tenant_not_found"
    put = await admin.put("hooli", callback_domains=["HOOKS.example.com."])
    assert put.json()["settings"]["callback_domains"] == ["hooks.example.com"]
    assert (await admin.ask("GET", "/tenants/hooli")).json() == put.json()
    assert (await admin.ask("DELETE", "/tenants/hooli")).json()["deleted"] is True
    assert (await admin.ask("DELETE", "/tenants/hooli")).status_code == 404


async def test_a_wrong_field_is_named(admin: Admin) -> None:
    acme = {"tenant": "acme"}
    for method, path, body, param in (
        ("POST", "/api_keys", {}, "tenant"),
        ("POST", "/api_keys", {"tenant": "-x"}, "tenant"),
        ("POST", "/api_keys", {**acme, "scopes": []}, "scopes"),
        ("POST", "/api_keys", {**acme, "scopes": ["all"]}, "scopes.0"),
        ("POST", "/api_keys", {**acme, "expires_in_seconds": 0}, "expires_in_seconds"),
        ("POST", "/api_keys", {**acme, "key": "mine"}, "key"),
        ("PUT", "/tenants/acme", {"models": "echo"}, "models"),
        ("PUT", "/tenants/acme", {"queued_lines": -1}, "queued_lines"),
        ("PUT", "/tenants/acme", {"callback_domains": ["a", "*"]}, "callback_domains.1"),
        ("PUT", "/tenants/-acme", {}, "tenant"),
        ("GET", "/api_keys?limit=0", None, "limit"),
        ("GET", "/api_keys?tenants=acme", None, "tenants"),
    ):
        answer = await admin.ask(method, path, body)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, param), body


BODIES = st.binary(max_size=60) | st.dictionaries(
    st.sampled_from(["tenant", "scopes", "label", "expires_in_seconds", "models", "callback_domains", "queued_tokens"]),
    JSON | st.just("acme") | st.just(["read"]),
).map(lambda body: json.dumps(body).encode())


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=drawn(50))
@given(body=BODIES, name=st.text(max_size=20))
async def test_no_body_or_name_makes_an_admins_route_fail(body: bytes, name: str, admin: Admin) -> None:
    for method, path in (("POST", "/api_keys"), ("PUT", "/tenants/noise"), ("PUT", f"/tenants/{name!r}")):
        assert (await admin.ask(method, path, content=body)).status_code < 500


async def test_a_job_outside_the_allow_lists_is_refused_by_field(admin: Admin) -> None:
    await admin.put("umbrella", models=["echo"], callback_domains=["example.com"])
    key = admin.rig.key("umbrella")
    good = {"prompt": "Hello", "model_id": "echo", "callback_url": "https://example.com/in"}
    evil = {**good, "callback_url": "https://example.com.evil.example/"}
    assert (await admin.rig.request("POST", "/v1/jobs", key, json=good)).status_code == 202
    for body, param in (
        ({**good, "model_id": "gpt"}, "model_id"),
        (evil, "callback_url"),
        ([good, evil], "1.callback_url"),
        ({"prompt": "Hello"}, "model_id"),
    ):
        answer = await admin.rig.request("POST", "/v1/jobs", key, json=body)
        assert (answer.status_code, answer.json()["error"]["param"]) == (403, param)
        assert (answer.json()["error"]["code"], answer.headers["x-should-retry"]) == ("not_allowed", "false")


async def test_jobs_beyond_the_quota_are_refused_together_and_a_repeat_counts_once(admin: Admin) -> None:
    await admin.put("vandelay", queued_lines=3)
    rig, key, job = admin.rig, admin.rig.key("vandelay"), {"prompt": "Hello"}
    for _ in range(3):
        once = {"idempotency-key": "one"}
        assert (await rig.request("POST", "/v1/jobs", key, json=[job, job], headers=once)).status_code == 202
    refused = await rig.request("POST", "/v1/jobs", key, json=[job, job])
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "quota_exceeded")
    assert (refused.headers["x-should-retry"], int(refused.headers["retry-after"]) <= 60) == ("false", True)
    assert len((await models(rig, key)).json()["data"]) == 2
    assert (await rig.request("POST", "/v1/jobs", key, json=job)).status_code == 202


# -- the audit ---------------------------------------------------------------------------------------------------------


PROMPT = "Why is the secret sky blue?"
EVENT = AuditEvent("createJobs", "creation", succeeded=True, user="key:1", tenant="acme")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "audit.jsonl"


@pytest.fixture
def audited(tmp_path: Path) -> Iterator[Rig]:
    with gateway_rig(tmp_path) as made, with_audit(made) as rig:
        yield rig


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


async def test_each_request_is_a_line_with_the_credential_and_its_objects(audited: Rig, file: Path) -> None:
    key, job = audited.key("acme"), {"prompt": PROMPT, "job_id": "job-1"}
    answer = await audited.request("POST", "/v1/jobs", key, json=job)
    uploaded = (await audited.upload(b'{"custom_id": "1"}\n', key)).json()["id"]
    await audited.request("GET", "/v1/jobs/job-1", key)
    await audited.request("POST", "/v1/jobs/job-1/cancel", key)
    await audited.request("DELETE", f"/v1/files/{uploaded}", key)
    made, *later = lines(file)
    assert made["user.id"] == f"key:{key.split('_')[1]}"
    assert (made["organization.id"], made["event.outcome"], made["event.type"]) == ("acme", "success", ["creation"])
    assert (made["postback.objects"], made["http.request.id"]) == (["job-1"], answer.headers["x-request-id"])
    assert len(made["postback.prompt_sha256"][0]) == hashlib.sha256().digest_size * 2
    assert [(line["event.type"][0], line["postback.objects"]) for line in later] == [
        *(("creation", [uploaded]), ("access", ["job-1"]), ("change", ["job-1"]), ("deletion", [uploaded]))
    ]
    assert PROMPT not in file.read_text()
    assert key not in file.read_text()


async def test_refusals_are_lines_too_and_a_repeat_claims_no_new_job(audited: Rig, file: Path) -> None:
    await audited.request("GET", "/v1/jobs")
    await audited.request("POST", "/v1/jobs", audited.key("acme", Scope.READ), json={"prompt": PROMPT})
    key, once = audited.key("acme"), {"idempotency-key": "once"}
    for _ in range(2):
        await audited.request("POST", "/v1/jobs", key, json={"prompt": PROMPT}, headers=once)
    unknown, unscoped, first, second = lines(file)
    assert (unknown["event.type"], unknown["http.response.status_code"]) == (["denied"], 401)
    assert "user.id" not in unknown
    assert (unknown["error.code"], unscoped["error.code"]) == ("invalid_api_key", "insufficient_permissions")
    assert "error.code" not in first
    assert (unscoped["organization.id"], unscoped["event.outcome"]) == ("acme", "failure")
    assert len(first["postback.objects"]) == 1
    assert "postback.objects" not in second


async def test_the_lines_name_their_endpoints_and_a_head_request_has_none(audited: Rig, file: Path) -> None:
    for endpoint in API:
        await audited.request(endpoint.method, re.sub(r"\{.*?\}", "x", endpoint.path))
        if endpoint.method == "GET":
            await audited.request("HEAD", re.sub(r"\{.*?\}", "x", endpoint.path))
    assert [line["event.action"] for line in lines(file)] == [endpoint.name for endpoint in API]


async def test_the_line_of_a_refused_key_has_its_id(audited: Rig, file: Path) -> None:
    revoked = audited.key("acme")
    identifier = revoked.split("_")[1]
    audited.store.write_now(lambda connection: revoke_key(connection, audited.clock, identifier))
    await audited.request("GET", "/v1/jobs", revoked)
    [line] = lines(file)
    assert (line["user.id"], line["error.code"]) == (f"key:{identifier}", "invalid_api_key")


def test_a_rotated_file_is_replaced_by_a_new_one_and_a_line_that_cannot_be_written_is_reported(
    tmp_path: Path, file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    clock = HandClock()
    audit = Audit(file, clock, "gateway")
    audit.record(EVENT)
    file.rename(tmp_path / "audit.1")
    clock.sleep(2)
    audit.record(EVENT)
    assert (len(lines(tmp_path / "audit.1")), len(lines(file))) == (1, 1)
    assert file.stat().st_mode & 0o777 == 0o600
    audit.close()
    audit.record(EVENT)
    assert "audit line cannot be written" in caplog.text


def test_lines_of_many_threads_do_not_mix(file: Path) -> None:
    audit = Audit(file, SystemClock(), "gateway")
    event = replace(EVENT, objects=[f"job-{number}" for number in range(200)])
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: audit.record(event), range(200)))
    audit.close()
    assert len(lines(file)) == 200


@settings(max_examples=drawn(50), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(max_size=40), st.text(max_size=40))
def test_any_text_is_one_line(file: Path, user: str, identifier: str) -> None:
    audit = Audit(file, SystemClock(), "gateway")
    audit.record(replace(EVENT, user=user, objects=[identifier]))
    audit.close()
    assert lines(file)[-1]["postback.objects"] == [identifier]
