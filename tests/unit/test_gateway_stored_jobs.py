"""A tenant's jobs and events as the gateway reads them, on SQLite and on PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic_core import from_json
from sqlalchemy import Connection

from gateway.accept.events import NewEvent, write_events
from gateway.store.store import Store
from gateway.store.tables import batches, jobs, view_offsets
from gateway.view.offsets import HELD
from gateway.view.stored_events import EventPage, events_after, last_number
from gateway.view.stored_jobs import JobFilter, NoSuchCursor, StoredJob, delete_job, find_job, list_jobs
from schemas.codec import write_result
from schemas.event import event_body
from schemas.outcome import Outcome
from schemas.result import Result
from tests.conftest import DATABASES
from tests.drawn import drawn

TENANT = "acme"
TEAMS = ["a", "it's", 'ü"', "\\", "%", ""]


@pytest.fixture(scope="module", params=DATABASES)
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """A store with 30 jobs, created three at a time; every job has a team and a model of its own."""
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path_factory.mktemp('store') / 'store.db'}"
    else:
        url = request.getfixturevalue("postgres").new_database()
    opened = Store.open(url)
    opened.submit(lambda connection: connection.execute(jobs.insert(), [row(n) for n in range(30)]) and None).result()
    yield opened
    opened.close()


def row(number: int, tenant: str = TENANT) -> dict[str, Any]:
    return {
        "tenant": tenant,
        "job_id": f"job-{number * 7 % 30:02}",
        "url": "/v1/jobs",
        "model_id": f"m{number % 2}",
        "status": "succeeded" if number % 5 else "queued",
        "created_at": 1000 * (number // 3),
        "metadata": {"team": TEAMS[number % len(TEAMS)], "a.b c": str(number)},
        "result": b"{}",
    }


def ids(found: Sequence[StoredJob]) -> list[str]:
    return [job.job_id for job in found]


@settings(max_examples=drawn(25))
@given(
    limit=st.integers(1, 12),
    ascending=st.booleans(),
    status=st.none() | st.sampled_from(["queued", "succeeded", "failed"]),
    model=st.none() | st.sampled_from(["m0", "m1", "m'--"]),
    team=st.none() | st.sampled_from([*TEAMS, "\0", "\ud800"]),
    after_ms=st.none() | st.integers(-1, 11_000),
    before_ms=st.none() | st.integers(-1, 11_000),
)
def test_pages_hold_each_job_of_a_filter_once_and_in_order(
    store: Store,
    limit: int,
    ascending: bool,
    status: str | None,
    model: str | None,
    team: str | None,
    after_ms: int | None,
    before_ms: int | None,
) -> None:
    wanted = JobFilter(status, None, model, after_ms, before_ms, {} if team is None else {"team": team})
    seen: list[str] = []
    more = True
    while more:
        read = partial(list_jobs, tenant=TENANT, wanted=wanted, limit=limit, after=seen[-1] if seen else None)
        page, more = store.read_now(partial(read, ascending=ascending))
        assert len(page) == limit or not more
        seen += ids(page)

    expected = [
        one
        for one in map(row, range(30))
        if status in (None, one["status"])
        and model in (None, one["model_id"])
        and team in (None, one["metadata"]["team"])
        and (after_ms is None or one["created_at"] > after_ms)
        and (before_ms is None or one["created_at"] < before_ms)
    ]
    expected.sort(key=lambda one: (one["created_at"], one["job_id"]), reverse=not ascending)
    assert seen == [one["job_id"] for one in expected]


def test_a_key_of_the_metadata_may_have_dots_and_spaces(store: Store) -> None:
    wanted = JobFilter(metadata={"a.b c": "4"})
    page, more = store.read_now(lambda at: list_jobs(at, TENANT, wanted, 5, None, ascending=True))
    assert (ids(page), more) == ([row(4)["job_id"]], False)


@pytest.mark.parametrize("after", ["nowhere", "", "\0", "job-00\ud800"])
def test_a_list_continues_only_after_a_job_of_its_tenant(store: Store, after: str) -> None:
    with pytest.raises(NoSuchCursor):
        store.read_now(lambda at: list_jobs(at, TENANT, JobFilter(), 5, after, ascending=True))
    with pytest.raises(NoSuchCursor):
        store.read_now(lambda at: list_jobs(at, "another", JobFilter(), 5, "job-00", ascending=True))


@given(st.text(max_size=20))
def test_any_id_that_no_job_has_is_not_found(store: Store, job_id: str) -> None:
    assert store.read_now(lambda at: find_job(at, TENANT, f"x{job_id}")) is None


@pytest.mark.parametrize(
    ("status", "line_status"),
    [("validating", "queued"), ("in_progress", "queued"), ("cancelling", "cancelling"), ("expired", "expired")],
)
def test_a_line_without_a_result_has_the_state_of_its_batch(store: Store, status: str, line_status: str) -> None:
    batch = f"batch_{status.encode().hex()}"
    made = {
        "id": batch,
        "tenant": TENANT,
        "endpoint": "/v1/responses",
        "input_file_id": "file-1",
        "status": status,
        "total": 3,
        "completed": 0,
        "failed": 0,
        "claimed_until": 0,
        "created_at": 5000,
        "expires_at": 6000,
    }
    store.submit(lambda at: at.execute(batches.insert(), made) and None).result()

    found = store.read_now(lambda at: find_job(at, TENANT, f"{batch}.2"))
    assert found is not None
    assert (found.status, found.batch_id, found.line, found.url) == (line_status, batch, 2, "/v1/responses")
    for tenant, name in ((TENANT, f"{batch}.3"), (TENANT, f"{batch}.02"), ("another", f"{batch}.2")):
        assert store.read_now(partial(find_job, tenant=tenant, job_id=name)) is None


def test_a_deleted_job_is_in_no_list_and_its_events_are_gone(store: Store) -> None:
    tenant = "deleting"
    ours, another = told(store, tenant, 1), told(store, tenant, 2)
    assert told_of(store, tenant) == [ours["job_id"], another["job_id"]]
    store.submit(lambda at: delete_job(at, tenant, ours["job_id"], 7)).result()

    assert store.read_now(lambda at: find_job(at, tenant, ours["job_id"])) is None
    page, _ = store.read_now(lambda at: list_jobs(at, tenant, JobFilter(), 5, None, ascending=True))
    assert ids(page) == told_of(store, tenant) == [another["job_id"]]


def told(store: Store, tenant: str, number: int, outcome: Outcome = Outcome.SUCCEEDED) -> dict[str, Any]:
    """Store a job with a result and its event, as the view does; return the job's row."""
    made = row(number, tenant)
    made |= {"status": str(outcome), "result": result_bytes(made["job_id"], outcome)}
    event = NewEvent(tenant, f"inference.{outcome}", made["job_id"], 1, webhook_id=f"msg_{number}")

    def change(at: Connection) -> None:
        at.execute(jobs.insert(), made)
        write_events(at, [event])

    store.submit(change).result()
    return made


def result_bytes(job_id: str, outcome: Outcome) -> bytes:
    return write_result(Result(job_id=job_id, outcome=outcome, text="the answer", created_at=1))


def told_of(store: Store, tenant: str) -> list[str]:
    """The ids of the jobs that a tenant's events name."""
    return [from_json(each.data)["data"]["id"] for each in page_of(store, tenant).events]


def page_of(store: Store, tenant: str) -> EventPage:
    return store.read_now(lambda at: events_after(at, tenant, 0, (), 9))


def test_an_event_of_a_result_is_the_webhooks_body(store: Store) -> None:
    job_id = told(store, "telling", 3)["job_id"]
    (event,) = page_of(store, "telling").events
    assert event.data == event_body(result_bytes(job_id, Outcome.SUCCEEDED), "msg_3", "telling")


@pytest.mark.parametrize("result", [b"", b"{}", b"{", result_bytes("job", Outcome.FAILED), None])
def test_an_event_is_left_out_if_its_result_is_gone_or_replaced(store: Store, result: bytes | None) -> None:
    tenant = f"gone{len(result or ())}{result is None}"
    gone, kept = told(store, tenant, 1), told(store, tenant, 2)
    this = (jobs.c.tenant == tenant) & (jobs.c.job_id == gone["job_id"])
    store.submit(lambda at: at.execute(jobs.update().where(this).values(result=result)) and None).result()
    assert told_of(store, tenant) == [kept["job_id"]]
    store.submit(lambda at: at.execute(jobs.delete().where(this)) and None).result()
    assert (told_of(store, tenant), page_of(store, tenant).read_to) == ([kept["job_id"]], last(store, tenant))


def last(store: Store, tenant: str) -> int:
    return store.read_now(lambda at: last_number(at, tenant))


def test_events_wait_while_the_rows_of_results_are_rebuilt(store: Store) -> None:
    job_id = told(store, "waiting", 4)["job_id"]
    held = {"topic": "t", "partition": 0, "topic_id": "", "next_offset": HELD}
    store.submit(lambda at: at.execute(view_offsets.insert(), held) and None).result()
    assert page_of(store, "waiting") == EventPage((), 0)
    store.submit(lambda at: at.execute(view_offsets.delete()) and None).result()
    assert told_of(store, "waiting") == [job_id]


@given(
    kinds=st.lists(
        st.sampled_from(["batch.completed", "batch_x.failed", "batchyx.failed", "inference.failed"]), max_size=9
    ),
    chosen=st.sampled_from([(), ("batch_x.*",), ("batch.*", "inference.failed"), ("nothing",)]),
    limit=st.integers(1, 4),
    name=st.integers(0, 10**9),
)
@settings(max_examples=drawn(25))
def test_reading_in_pages_finds_each_event_of_the_chosen_types_once(
    store: Store, kinds: list[str], chosen: tuple[str, ...], limit: int, name: int
) -> None:
    tenant = f"t{name}"
    store.submit(lambda at: write_events(at, [NewEvent(tenant, kind, "o", 1, b"{}") for kind in kinds])).result()
    start = store.read_now(lambda at: events_after(at, tenant, 0, (), 100)).events
    seen: list[tuple[int, str]] = []
    number, read_to = -1, 0
    while number < read_to:
        number = read_to
        page = store.read_now(partial(events_after, tenant=tenant, number=number, types=chosen, limit=limit))
        seen += [(event.number, event.type) for event in page.events]
        read_to = page.read_to

    def is_chosen(kind: str) -> bool:
        return not chosen or any(kind in (name, name.replace("*", kind.partition(".")[2])) for name in chosen)

    assert seen == [(event.number, event.type) for event in start if is_chosen(event.type)]
