"""Allow-lists and quotas of tenants, and `postback tenants`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from pydantic import ValidationError
from yarl import URL

from gateway.access.allowed import OF_A_BODY, OF_A_JOB, OF_A_LINE, check_job, may_call
from gateway.access.quotas import (
    QuotaExceeded,
    Work,
    queued_work,
    recount,
    release_answered,
    release_batch,
    reserve,
    tokens_of,
)
from gateway.access.tenant_settings import TenantSettings
from gateway.access.tenants import find_tenant, listed_tenants, put_tenant, remove_tenant
from gateway.store.store import Store
from gateway.store.tables import batches, jobs, tenants
from schemas.job import Job
from telemetry.hand_clock import HandClock
from tests.drawn import drawn
from tests.postback_command import environment_of, postback_here

CLOCK = HandClock()
HOSTS = TenantSettings(callback_domains=["hooks.example.com", "*.Bücher.example", "192.0.2.7", "2001:db8::1"])


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store.open(f"sqlite:///{tmp_path / 'store.db'}")
    yield opened
    opened.close()


# -- allow-lists ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        "https://hooks.example.com/in?token=1",
        "https://HOOKS.Example.com:8443/",
        "https://hooks.example.com./",
        "https://\uff48ooks.example.com/",
        "https://hooks。example。com/",
        "http://hooks.example.com",
        "https://a.bücher.example/",
        "https://a.b.xn--bcher-kva.example/",
        "https://192.0.2.7/",
        "https://[2001:DB8:0::1]/",
    ],
)
def test_a_callback_to_an_allowed_host_is_taken_in_every_spelling(url: str) -> None:
    assert may_call(HOSTS, url)


@pytest.mark.parametrize(
    "url",
    [
        "https://example.com/",
        "https://hooks.example.com.evil.example/",
        "https://evil-hooks.example.com/",
        "https://a.hooks.example.com/",
        "https://hooks.example.com@evil.example/",
        "https://hooks.example.com%2f@evil.example/",
        "https://hooks.example.com%00.evil.example/",
        "https://evil.example\\@hooks.example.com/",
        "https://evil.example#@hooks.example.com/",
        "https://evil.example/hooks.example.com",
        "https://evil.example?hooks.example.com",
        "https://user@hooks.example.com/",
        "https://bücher.example/",
        "https://xn--bcher-kva.example/",
        "https://notbücher.example/",
        "https://192.0.2.70/",
        "https://192.0.2.7.evil.example/",
        "https://3221225991/",
        "https://0300.0.2.7/",
        "https://[2001:db8::2]/",
        "https://[::ffff:192.0.2.7]/",
        "https://hooks.example.com../",
        "https:///hooks.example.com",
        "hooks.example.com",
        "",
    ],
)
def test_no_spelling_of_another_host_passes_for_an_allowed_one(url: str) -> None:
    assert not may_call(HOSTS, url)


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


@pytest.mark.parametrize(
    "domain",
    [
        "",
        "*",
        "*.",
        "https://a.example",
        "a.example/",
        "a.example:443",
        "a@b.example",
        "a b",
        "*.*.example",
        "*.1.2.3.4",
        "1.2",
    ],
)
def test_a_domain_that_is_no_host_is_refused(domain: str) -> None:
    with pytest.raises(ValidationError):
        TenantSettings(callback_domains=[domain])


@given(st.text(max_size=30))
def test_any_domain_is_refused_or_kept_in_one_spelling(domain: str) -> None:
    try:
        settings = TenantSettings(callback_domains=[domain])
    except ValidationError:
        return
    assert TenantSettings(callback_domains=settings.callback_domains) == settings


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


def test_the_command_writes_and_shows_settings(tmp_path: Path) -> None:
    env = environment_of(POSTBACK_STORE__URL=f"sqlite:///{tmp_path / 'store.db'}")
    settings = {"callback_domains": ["*.example.com"], "requests_per_second": 5}
    assert postback_here("tenants", "put", "acme", json.dumps(settings), env=env).returncode == 0
    assert postback_here("tenants", "put", "globex", "-", env=env, given="{}").returncode == 0
    assert json.loads(postback_here("tenants", "show", "acme", env=env).stdout) == settings
    assert postback_here("tenants", "list", env=env).stdout.splitlines()[1] == "globex  {}"
    assert postback_here("tenants", "remove", "acme", env=env).returncode == 0
    for words in (("show", "acme"), ("remove", "acme")):
        assert postback_here("tenants", *words, env=env).returncode == 1


@pytest.mark.parametrize(
    ("settings", "place"),
    [
        ("{", "the settings"),
        ("[]", "the settings"),
        ('{"model": []}', "model"),
        ('{"callback_domains": ["*"]}', "callback_domains.0"),
    ],
)
def test_the_command_names_the_wrong_field(settings: str, place: str, tmp_path: Path) -> None:
    env = environment_of(POSTBACK_STORE__URL=f"sqlite:///{tmp_path / 'store.db'}")
    done = postback_here("tenants", "put", "acme", settings, env=env)
    assert (done.returncode, done.stderr.startswith(f"postback: {place}: ")) == (2, True)


# -- quotas --------------------------------------------------------------------------------------------------------


class Answered(NamedTuple):
    """A result as the view passes it."""

    tenant: str
    job_id: str
    batch_id: str | None
    first: bool = True


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


def release(store: Store, *answered: Answered) -> None:
    store.submit(lambda c: release_answered(c, answered)).result()


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
    reserved(store, TenantSettings(queued_lines=9), Work(1, 10))
    release(store, Answered("acme", "counted", None, first=False))
    assert queued(store) == Work(1, 10)
    for _ in range(2):
        release(store, *(Answered("acme", name, None) for name in ("counted", "uncounted", "unknown")))
        release(store, Answered("globex", "counted", None))
    assert queued(store) == Work(0, 0)


def test_the_lines_of_a_batch_give_all_of_it_back_and_no_more(store: Store) -> None:
    put_batch(store, "batch_1", Work(3, 100))
    put_batch(store, "batch_2", Work(1, 7))
    reserved(store, TenantSettings(queued_lines=9), Work(4, 107))
    release(store, *(Answered("acme", f"batch_1.{line}", "batch_1") for line in range(2)))
    assert queued(store) == Work(2, 41)
    release(store, *(Answered("acme", f"batch_1.{line}", "batch_1") for line in range(5)))
    release(store, Answered("globex", "batch_2.0", "batch_2"))
    assert queued(store) == Work(1, 7)
    for _ in range(2):
        store.submit(lambda c: release_batch(c, "acme", "batch_2")).result()
    assert queued(store) == Work(0, 0)


STEPS = st.lists(st.tuples(st.sampled_from(["job", "batch", "answer", "line", "end", "recount"]), st.integers(0, 3)))


@hypothesis_settings(max_examples=drawn(20))
@given(steps=STEPS)
def test_counts_are_the_reservations_of_the_rows_after_any_steps(
    steps: list[tuple[str, int]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    store = Store.open(f"sqlite:///{tmp_path_factory.mktemp('quota') / 'store.db'}")
    lines = TenantSettings(queued_lines=1000)
    made: set[str] = set()
    for step, number in steps:
        name = f"{step}-{number}"
        if step in ("job", "batch") and name not in made:
            made.add(name)
            work = Work(1, 3) if step == "job" else Work(3, 10)
            put_job(store, name, work.tokens) if step == "job" else put_batch(store, name, work)
            reserved(store, lines, work)
        elif step == "answer":
            release(store, Answered("acme", f"job-{number}", None))
        elif step == "line":
            release(store, Answered("acme", f"batch-{number}.0", f"batch-{number}"))
        elif step == "end":
            store.submit(lambda c, number=number: release_batch(c, "acme", f"batch-{number}")).result()  # type: ignore[misc]
        before = queued(store)
        store.submit(recount).result()
        assert queued(store) == before
    store.close()


def test_the_tokens_of_a_job_are_its_text_and_its_longest_answer() -> None:
    assert [tokens_of(size, 100) for size in (0, 1, 4, 5)] == [100, 101, 101, 102]
