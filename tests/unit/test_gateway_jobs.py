"""Jobs at the door: accepted once, screened, read, listed and cancelled; responses, completions and embeddings."""

from __future__ import annotations

import asyncio
import base64
import json
import struct
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import MagicMock
from urllib.parse import quote

import httpx
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from openai.types.chat import ChatCompletionChunk
from openai.types.responses import Response
from pydantic_core import from_json
from sqlalchemy import Connection, Engine, event, func, select, text

from gateway.accept.events import NewEvent, write_events
from gateway.accept.idempotency import KeyReused, StoredAnswer, once
from gateway.accept.jobs import JobExists, JobsRequest, NewJob
from gateway.accept.outbox import put_record, unpacked
from gateway.access import Principal, Scope
from gateway.access.principal import DEFAULT_SCOPES
from gateway.access.quotas import queued_work
from gateway.access.tenant_settings import TenantSettings
from gateway.door.body import MOST_VALUES
from gateway.door.settings import GatewaySettings
from gateway.door.streamed import ChatEvents, ResponseEvents
from gateway.errors import ApiError
from gateway.store.store import Store, StoreAway
from gateway.store.tables import batch_segments, idempotency, jobs, outbox, tenants, view_offsets
from gateway.view import segments
from gateway.view.offsets import HELD
from gateway.view.records import ResultRecord
from gateway.view.segments import current_entries, entries_of, entries_with, indexes
from gateway.view.stored_events import EventPage, events_after, last_number
from gateway.view.stored_jobs import JobFilter, StoredJob, delete_job, find_job, jobs_by_custom_id, list_jobs
from gateway.view.writing import write_results
from schemas.codec import read_result, write_result
from schemas.event import event_body
from schemas.kind_bodies import EMBEDDINGS
from schemas.openai import CHAT_COMPLETIONS, COMPLETIONS, RESPONSES
from schemas.openai_answers import answer_body
from schemas.outcome import Outcome
from schemas.result import Result, ResultError, Usage
from schemas.screening import read_findings
from schemas.tools import CalledFunction, ToolCall
from schemas.topics import SCREENING, Topics
from tests.accepted import accept_jobs
from tests.conftest import DATABASES
from tests.drawn import JSON, drawn
from tests.postgres_server import PostgresServer
from tests.unit.batch_rig import put_batch, result_record
from tests.unit.door_rig import all_pages, changed, limit, with_audit
from tests.unit.gateway_rig import Rig, gateway_rig
from workers.screening.screen import Screen

TENANT = "acme"
JOB = {"prompt": "Why is the sky blue?"}
FIELDS = st.sampled_from(["prompt", "messages", "job_id", "custom_id", "callback_url", "metadata", "sources", "body"])
BODIES = st.binary(max_size=40) | st.dictionaries(FIELDS, JSON, max_size=4).map(lambda job: json.dumps(job).encode())
SEVERAL = settings(
    max_examples=drawn(60), suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    with gateway_rig(tmp_path_factory.mktemp("door")) as made:
        yield made


@pytest.fixture(scope="module")
def key(rig: Rig) -> str:
    return rig.key(TENANT)


def ask(rig: Rig, method: str, path: str, key: str, **arguments: Any) -> httpx.Response:
    return asyncio.run(rig.request(method, path, key, **arguments))


def refused(answer: httpx.Response, status: int) -> dict[str, Any]:
    """The error of a refusal in OpenAI's shape."""
    assert answer.status_code == status, answer.text
    assert answer.headers["x-request-id"].startswith("req_")
    error: dict[str, Any] = answer.json()["error"]
    assert {"message", "type", "param", "code"} <= error.keys()
    return error


def test_a_job_is_accepted_read_and_cancelled_once_whatever_characters_its_id_has(rig: Rig, key: str) -> None:
    name = "a/b/cancel?c#%2F%~"
    asked = {**JOB, "metadata": {"team": "a"}, "custom_id": "row 1", "job_id": name}
    accepted = ask(rig, "POST", "/v1/jobs", key, json=asked)
    path = f"/v1/jobs/{quote(name, safe='')}"
    assert (accepted.status_code, accepted.json()["status"]) == (202, "queued")

    read = ask(rig, "GET", path, key).json()
    assert read.items() >= {**accepted.json(), "result": None, "batch_id": None, "url": "/v1/jobs"}.items()
    assert (read["id"], read["submitted_by"][:4]) == (name, "key:")
    for _ in range(2):
        answer = ask(rig, "POST", f"{path}/cancel", key)
        assert (answer.status_code, answer.json()["status"]) == (200, "cancelling")
    assert ask(rig, "GET", path, key).json()["status"] == "cancelling"


def test_a_job_that_starts_later_shows_its_time_and_a_time_that_is_too_late_is_refused(rig: Rig, key: str) -> None:
    begins = int(rig.clock.time()) + 3600
    accepted = ask(rig, "POST", "/v1/jobs", key, json={**JOB, "not_before": begins})
    assert accepted.status_code == 202
    read = ask(rig, "GET", f"/v1/jobs/{accepted.json()['id']}", key).json()
    assert (read["status"], read["not_before"]) == ("queued", begins)

    error = refused(ask(rig, "POST", "/v1/jobs", key, json={**JOB, "not_before": begins + 6 * 86_400}), 400)
    assert error["param"] == "not_before"
    assert "at most 6 are possible, since Kafka keeps jobs for seven days" in error["message"]


def test_an_array_is_accepted_whole_or_not_at_all(rig: Rig, key: str) -> None:
    accepted = ask(rig, "POST", "/v1/jobs?lane=bulk", key, json=[{**JOB, "job_id": f"whole-{n}"} for n in range(3)])
    assert [job["id"] for job in accepted.json()["data"]] == ["whole-0", "whole-1", "whole-2"]

    error = refused(ask(rig, "POST", "/v1/jobs", key, json=[{**JOB, "job_id": "part-0"}, {"promt": "q"}]), 400)
    assert (error["param"], error["message"].partition(";")[0]) == ("1.promt", "1.promt: is unknown")
    assert error["problems"][0] == {"index": 1, "field": "promt", "reason": "is unknown; did you mean `prompt`?"}
    for member, status, place in (
        ({"job_id": "whole-1"}, 409, "1.job_id"),
        ({"prompt": "q" * 600_000}, 400, "1"),
        ({"not_before": 4_000_000_000}, 400, "1.not_before"),
    ):
        error = refused(
            ask(rig, "POST", "/v1/jobs", key, json=[{**JOB, "job_id": "part-0"}, {**JOB, **member}]), status
        )
        assert (error["param"], error["message"].partition(": ")[0]) == (place, place)
    refused(ask(rig, "GET", "/v1/jobs/part-0", key), 404)
    repeated = refused(ask(rig, "POST", "/v1/jobs", key, json=[{**JOB, "job_id": "x"}, {**JOB, "job_id": "x"}]), 400)
    assert repeated["message"] == "1.job_id: is also the id of job 0"


def test_a_job_that_no_worker_would_run_or_whose_id_is_taken_is_refused_with_its_field(rig: Rig, key: str) -> None:
    for job, param, reason in (
        ({"callback_url": "https://10.1.2.3/hook?token=t0ken"}, "callback_url", "the address is not public"),
        ({"callback_url": "https://[::ffff:10.1.2.3]/"}, "callback_url", "the address is not public"),
        ({"job_id": "batch_0a.7"}, "job_id", "has the form of a batch line's id"),
        ({"prompt": "q" * 600_000}, None, "more than 524288 bytes"),
        ({"temperature": 9}, "temperature", "less than or equal to 2"),
    ):
        error = refused(ask(rig, "POST", "/v1/jobs", key, json={**JOB, **job}), 400)
        assert error["param"] == param
        assert reason in error["message"]
        assert "t0ken" not in error["message"]
    first, again = (ask(rig, "POST", "/v1/jobs", key, json={**JOB, "job_id": "only-one"}) for _ in range(2))
    assert first.status_code == 202
    assert refused(again, 409)["code"] == "job_exists"
    assert again.headers["x-should-retry"] == "false"


def test_a_repeat_with_one_idempotency_key_gets_the_first_answer(rig: Rig, key: str) -> None:
    once = {"idempotency-key": "order-7"}
    first = ask(rig, "POST", "/v1/jobs", key, json=JOB, headers=once)
    again = ask(rig, "POST", "/v1/jobs", key, json=JOB, headers=once)
    assert (again.status_code, again.content) == (202, first.content)

    for other in (
        ask(rig, "POST", "/v1/jobs", key, json={"prompt": "Another?"}, headers=once),
        ask(rig, "POST", "/v1/jobs?lane=bulk", key, json=JOB, headers=once),
    ):
        assert refused(other, 409)["code"] == "idempotency_key_reused"
        assert other.headers["x-should-retry"] == "false"
    refused(ask(rig, "POST", "/v1/jobs", key, json=JOB, headers={"idempotency-key": "a b"}), 400)
    another = ask(rig, "POST", "/v1/jobs", rig.key("jobs-other"), json=JOB, headers=once)
    assert another.json()["id"] != first.json()["id"]


def test_lists_page_to_their_end_and_every_filter_counts(rig: Rig) -> None:
    key = rig.key("jobs-list")
    jobs = [{**JOB, "job_id": f"n-{n}", "model_id": f"m{n % 2}", "metadata": {"team": f"t{n % 3}"}} for n in range(7)]
    ask(rig, "POST", "/v1/jobs", key, json=jobs)

    seen = asyncio.run(all_pages(rig, "/v1/jobs", key, limit=3))
    assert seen == [f"n-{n}" for n in reversed(range(7))]

    def ids(**filters: str) -> list[str]:
        answer = ask(rig, "GET", "/v1/jobs", key, params={"order": "asc", **filters})
        assert answer.status_code == 200, answer.text
        assert answer.json()["has_more"] is False
        return [job["id"] for job in answer.json()["data"]]

    assert ids(**{"metadata.team": "t1", "model": "m0"}) == ["n-4"]
    assert (
        ids(status="succeeded") == ids(batch="batch_1") == ids(created_before="1700000000") == ids(model="m'--") == []
    )
    assert ids(status="queued", created_after="2026-01-01T00:00Z", limit="7") == [f"n-{n}" for n in range(7)]
    assert ids(after="n-6") == []


def test_a_filter_that_cannot_be_read_is_refused_and_an_unknown_cursor_is_not_found(rig: Rig, key: str) -> None:
    pages = ("limit=0", "limit=101", "limit=٣", "order=up")
    for query in (*pages, "statuss=queued", "status=done", "created_after=soon", 'metadata."=a'):
        refused(ask(rig, "GET", f"/v1/jobs?{query}", key), 400)
    refused(ask(rig, "GET", "/v1/jobs?after=nowhere", key), 404)


def test_jobs_need_their_scope_and_their_tenant(rig: Rig, key: str) -> None:
    job = ask(rig, "POST", "/v1/jobs", key, json=JOB).json()["id"]
    other, reader = rig.key("jobs-stranger"), rig.key(TENANT, Scope.READ)
    refused(ask(rig, "GET", f"/v1/jobs/{job}", other), 404)
    refused(ask(rig, "POST", f"/v1/jobs/{job}/cancel", other), 404)
    assert ask(rig, "GET", "/v1/jobs", other).json()["data"] == []
    refused(ask(rig, "POST", "/v1/jobs", reader, json=JOB), 403)
    refused(ask(rig, "POST", f"/v1/jobs/{job}/cancel", reader), 403)


@SEVERAL
@given(body=BODIES)
@example(body=b"[" * 5000)
@example(body=b"[1]")
@example(body=b"[]")
@example(body=b"\xff")
def test_any_body_is_accepted_or_refused(rig: Rig, key: str, body: bytes) -> None:
    answer = ask(rig, "POST", "/v1/jobs", key, content=body)
    if answer.status_code not in (202, 409):
        refused(answer, 400)


@SEVERAL
@given(name=st.text(min_size=1, max_size=20), cancelled=st.booleans())
@example(name="\0", cancelled=False)
@example(name="batch_1.0", cancelled=True)
@example(name="a" * 5000, cancelled=True)
def test_any_unknown_id_is_not_found(rig: Rig, key: str, name: str, cancelled: bool) -> None:
    path = f"/v1/jobs/x{quote(name.encode('utf-8', 'replace'), safe='')}"
    answer = ask(rig, "POST", f"{path}/cancel", key) if cancelled else ask(rig, "GET", path, key)
    assert answer.status_code in (400, 404), answer.text
    refused(answer, answer.status_code)


# -- stored jobs and events --------------------------------------------------------------------------------------------


TEAMS = ["a", "it's", 'ü"', "\\", "%", ""]
FILTERS = st.builds(
    JobFilter,
    st.none() | st.sampled_from(["queued", "succeeded", "failed"]),
    st.none() | st.sampled_from(["batch_0f", "batch_1"]),
    st.none() | st.sampled_from(["m0", "m1", "m'--"]),
    st.none() | st.integers(-1, 11_000),
    st.none() | st.integers(-1, 11_000),
    st.just({}) | st.sampled_from([*TEAMS, "\0", "\ud800"]).map(lambda team: {"team": team}),
)


@pytest.fixture(scope="module", params=DATABASES)
def history(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """A history with 30 jobs, created three at a time, and 20 lines of a batch; each has a team and a model of its own.

    The results of the lines come in five pages that overlap in time.
    """
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path_factory.mktemp('store') / 'store.db'}"
    else:
        url = request.getfixturevalue("postgres").new_database()
    opened = Store.open(url)
    opened.submit(lambda connection: connection.execute(jobs.insert(), [row(n) for n in range(30)]) and None).result()
    opened.write_now(partial(put_batch, batch_id=BATCH, total=20))
    for page in range(5):
        answers = [answered_line(page * 4 + number) for number in (2, 0, 3, 1)]
        opened.write_now(lambda at, some=answers: write_results(at, some))  # type: ignore[misc]
    yield opened
    opened.close()


BATCH = "batch_0f"


def answered_line(number: int) -> ResultRecord:
    """The result of a line of BATCH, at a time at which jobs were created, too."""
    outcome = Outcome.SUCCEEDED if number % 3 else Outcome.FAILED
    metadata = {"team": TEAMS[number % len(TEAMS)]}
    said = {"custom_id": f"l'ï\0n\"{number}", "metadata": metadata, "model_id": f"m{number % 2}", "created_at": 1}
    result = Result(job_id=f"{BATCH}.{number}", outcome=outcome, **said)
    return result_record(result, TENANT, 1000 * (number * 3 % 8))


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
@given(most=st.integers(1, 12), ascending=st.booleans(), wanted=FILTERS)
def test_pages_hold_each_job_of_a_filter_once_and_in_order(
    history: Store, most: int, ascending: bool, wanted: JobFilter
) -> None:
    seen: list[str] = []
    more = True
    while more:
        read = partial(list_jobs, tenant=TENANT, wanted=wanted, limit=most, after=seen[-1] if seen else None)
        page, more = history.read_now(partial(read, ascending=ascending))
        assert len(page) == most or not more
        seen += ids(page)

    lines = [
        {
            **each.result.model_dump(include={"job_id", "model_id", "metadata"}),
            "status": str(each.result.outcome),
            "created_at": each.at_ms,
            "line": number,
        }
        for number, each in enumerate(map(answered_line, range(20)))
    ]
    single = [] if wanted.batch_id else [{**one, "line": -1} for one in map(row, range(30))]
    expected = [
        one
        for one in [*single, *(lines if wanted.batch_id in (None, BATCH) else ())]
        if wanted.status in (None, one["status"])
        and wanted.model_id in (None, one["model_id"])
        and wanted.metadata.get("team") in (None, one["metadata"]["team"])
        and (wanted.created_after_ms is None or one["created_at"] > wanted.created_after_ms)
        and (wanted.created_before_ms is None or one["created_at"] < wanted.created_before_ms)
    ]
    expected.sort(key=lambda one: (one["created_at"], one["line"], one["job_id"]), reverse=not ascending)
    assert seen == [one["job_id"] for one in expected]


def test_a_key_of_the_metadata_may_have_dots_and_spaces(history: Store) -> None:
    wanted = JobFilter(metadata={"a.b c": "4"})
    page, more = history.read_now(lambda at: list_jobs(at, TENANT, wanted, 5, None, ascending=True))
    assert (ids(page), more) == ([row(4)["job_id"]], False)


@given(st.text(max_size=20))
def test_any_id_that_no_job_of_the_tenant_has_is_not_found(history: Store, job_id: str) -> None:
    assert history.read_now(lambda at: find_job(at, TENANT, f"x{job_id}")) is None
    strange = ((TENANT, after) for after in ("nowhere", "", "\0", "job-00\ud800"))
    for tenant, after in (*strange, ("another", "job-00")):
        with pytest.raises(ApiError, match="No such job"):
            history.read_now(
                partial(list_jobs, tenant=tenant, wanted=JobFilter(), limit=5, after=after, ascending=True)
            )


def test_a_line_without_a_result_has_the_state_of_its_batch(history: Store) -> None:
    states = {"validating": "queued", "in_progress": "queued", "cancelling": "cancelling", "expired": "expired"}
    for status, line_status in states.items():
        batch = f"batch_{status.encode().hex()}"
        history.write_now(partial(put_batch, batch_id=batch, total=3, status=status))

        found = history.read_now(partial(find_job, tenant=TENANT, job_id=f"{batch}.2"))
        assert found is not None
        assert (found.status, found.batch_id, found.line, found.url) == (line_status, batch, 2, CHAT_COMPLETIONS)
        for tenant, name in ((TENANT, f"{batch}.3"), (TENANT, f"{batch}.02"), ("another", f"{batch}.2")):
            assert history.read_now(partial(find_job, tenant=tenant, job_id=name)) is None


def test_a_deleted_job_is_in_no_list_and_its_events_are_gone(history: Store) -> None:
    tenant = "deleting"
    ours, another = told(history, tenant, 1), told(history, tenant, 2)
    assert told_of(history, tenant) == [ours["job_id"], another["job_id"]]
    history.submit(lambda at: delete_job(at, tenant, ours["job_id"], 7)).result()

    assert history.read_now(lambda at: find_job(at, tenant, ours["job_id"])) is None
    page, _ = history.read_now(lambda at: list_jobs(at, tenant, JobFilter(), 5, None, ascending=True))
    assert ids(page) == told_of(history, tenant) == [another["job_id"]]


def test_a_further_result_of_a_deleted_job_is_not_kept(history: Store) -> None:
    """Its owner deleted the answer; a redriven job or a reading of the topic from its start must not restore it."""
    tenant = "deleted for good"
    deleted, kept = told(history, tenant, 1), told(history, tenant, 2)
    history.submit(lambda at: delete_job(at, tenant, deleted["job_id"], 7)).result()
    values = [result_bytes(made["job_id"], Outcome.FAILED) for made in (deleted, kept)]
    again = [ResultRecord(tenant, read_result(value), value, None, 9, has_callback=False) for value in values]
    history.submit(lambda at: write_results(at, again) and None).result()

    asked = select(jobs.c.job_id, jobs.c.status, jobs.c.deleted_at, jobs.c.result).where(jobs.c.tenant == tenant)
    found = history.read_now(lambda at: {row.job_id: tuple(row)[1:] for row in at.execute(asked)})
    assert found == {deleted["job_id"]: ("failed", 7, None), kept["job_id"]: ("failed", None, values[1])}
    assert history.read_now(lambda at: find_job(at, tenant, deleted["job_id"])) is None


def told(history: Store, tenant: str, number: int, outcome: Outcome = Outcome.SUCCEEDED) -> dict[str, Any]:
    """Store a job with a result and its event, as the view does; return the job's row."""
    made = row(number, tenant)
    made |= {"status": str(outcome), "result": result_bytes(made["job_id"], outcome)}
    event = NewEvent(tenant, f"inference.{outcome}", made["job_id"], 1, webhook_id=f"msg_{number}")

    def change(at: Connection) -> None:
        at.execute(jobs.insert(), made)
        write_events(at, [event])

    history.submit(change).result()
    return made


def result_bytes(job_id: str, outcome: Outcome) -> bytes:
    return write_result(Result(job_id=job_id, outcome=outcome, text="the answer", created_at=1))


def told_of(history: Store, tenant: str) -> list[str]:
    """The ids of the jobs that a tenant's events name."""
    return [from_json(each.data)["data"]["id"] for each in page_of(history, tenant).events]


def page_of(history: Store, tenant: str) -> EventPage:
    return history.read_now(lambda at: events_after(at, tenant, 0, (), 9, MIB))


@pytest.mark.parametrize("result", [b"", b"{}", b"{", result_bytes("job", Outcome.FAILED), None])
def test_an_event_is_the_webhooks_body_and_is_left_out_if_its_result_is_gone_or_replaced(
    history: Store, result: bytes | None
) -> None:
    tenant = f"gone{len(result or ())}{result is None}"
    gone, kept = told(history, tenant, 1), told(history, tenant, 2)
    this = (jobs.c.tenant == tenant) & (jobs.c.job_id == gone["job_id"])
    history.submit(lambda at: at.execute(jobs.update().where(this).values(result=result)) and None).result()
    (event,) = page_of(history, tenant).events
    assert event.data == event_body(kept["result"], "msg_2", tenant)
    history.submit(lambda at: at.execute(jobs.delete().where(this)) and None).result()
    assert told_of(history, tenant) == [kept["job_id"]]
    assert page_of(history, tenant).read_to == history.read_now(lambda at: last_number(at, tenant))


MIB = 1024 * 1024
LINES = [page * 4 + number for page in range(5) for number in (2, 0, 3, 1)]
"""The answered lines of BATCH, in the order of their results."""


@given(
    limit=st.integers(1, 25),
    most_bytes=st.integers(1, 3000),
    types=st.sampled_from([(), ("inference.failed",), ("inference.*",), ("batch.*",), ("inference.succeeded", "x.*")]),
)
def test_each_line_of_a_page_of_results_is_an_event_with_a_number_of_its_own(
    history: Store, limit: int, most_bytes: int, types: tuple[str, ...]
) -> None:
    seen: list[tuple[int, str, str]] = []
    read_to, end = 0, history.read_now(lambda at: last_number(at, TENANT))
    while read_to < end:
        read = partial(events_after, tenant=TENANT, number=read_to, types=types, limit=limit, most_bytes=most_bytes)
        page = history.read_now(read)
        assert len(page.events) <= limit
        assert sum(len(each.data) for each in page.events[:-1]) < most_bytes
        assert page.read_to > read_to
        read_to = page.read_to
        seen += ((each.number, each.type, from_json(each.data)["data"]["id"]) for each in page.events)

    kinds = {number: f"inference.{answered_line(number).result.outcome}" for number in LINES}
    chosen = [name for name in set(kinds.values()) if not types or name in types or "inference.*" in types]
    told = [(kinds[line], f"{BATCH}.{line}") for line in LINES if kinds[line] in chosen]
    assert [(kind, job_id) for _, kind, job_id in seen] == told
    assert [number for number, _, _ in seen] == [n for n, line in enumerate(LINES, 1) if kinds[line] in chosen]


@pytest.mark.parametrize(
    ("name", "line"),
    [("l'ï\0n\"7", 7), ("l'ï\ufffdn\"7", None), ("l'ï\0n\"", None), ("%", None), ("\0\ud800", None)],
)
def test_a_line_is_found_by_its_whole_custom_id(history: Store, name: str, line: int | None) -> None:
    found = history.read_now(partial(jobs_by_custom_id, tenant=TENANT, custom_id=name, limit=5))
    assert [each.line for each in found] == ([] if line is None else [line])
    assert history.read_now(partial(jobs_by_custom_id, tenant="another", custom_id=name, limit=5)) == []


def test_a_line_is_found_without_a_look_at_the_indexes_of_other_segments(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The results of a large batch come in no order, so a hundred segments have lines below and above a line."""
    store.write_now(partial(put_batch, batch_id=BATCH, total=20))
    for number in range(10):
        some = [answered_line(number), answered_line(19 - number)]
        store.write_now(lambda at, some=some: write_results(at, some))  # type: ignore[misc]
    reading = MagicMock(side_effect=entries_of)
    monkeypatch.setattr(segments, "entries_of", reading)
    for line in range(20):
        found = store.read_now(partial(find_job, tenant=TENANT, job_id=f"{BATCH}.{line}"))
        assert found is not None
        assert found.result == answered_line(line).value
    assert reading.call_count == 20


@pytest.mark.parametrize(
    "wanted", [JobFilter(metadata={"team": "none"}), JobFilter(model_id="m2"), JobFilter(status="expired")]
)
def test_a_list_looks_at_no_index_without_a_line_for_it(
    history: Store, monkeypatch: pytest.MonkeyPatch, wanted: JobFilter
) -> None:
    """A tenant may have millions of answered lines, whose indexes take minutes to read."""
    reading = MagicMock(side_effect=entries_of)
    monkeypatch.setattr("gateway.view.stored_jobs.entries_of", reading)
    assert history.read_now(partial(list_jobs, tenant=TENANT, wanted=wanted, limit=9, after=None, ascending=True)) == (
        [],
        False,
    )
    reading.assert_not_called()


@pytest.mark.postgresql
def test_postgres_keeps_the_indexes_that_were_not_read_yet(postgres: PostgresServer) -> None:
    """Without a cursor on the server, the gateway would hold the indexes of all lines of a tenant in its memory."""

    def cursors(connection: Connection) -> object:
        return connection.scalar(text("SELECT count(*) FROM pg_cursors WHERE statement LIKE '%line_index%'"))

    def read(connection: Connection) -> list[object]:
        seen: list[object] = []
        some: tuple[Iterator[object], ...] = (
            indexes(connection, TENANT, [], ascending=True),
            current_entries(connection, BATCH),
            entries_with(connection, batch_segments.c.batch_id == BATCH, {0}),
        )
        for reading in some:
            next(reading)
            seen.append(cursors(connection))
        del some, reading
        return [*seen, cursors(connection)]

    store = Store.open(postgres.new_database())
    store.write_now(partial(put_batch, batch_id=BATCH, total=20))
    store.write_now(lambda at: write_results(at, [answered_line(0)]))
    assert store.read_now(read) == [1, 2, 3, 0]
    store.close()


def test_an_event_of_a_line_is_left_out_if_another_outcome_replaced_its_result(history: Store) -> None:
    batch = "batch_0e"
    history.write_now(partial(put_batch, batch_id=batch, total=2, tenant="redriving"))
    for outcome in (Outcome.FAILED, Outcome.SUCCEEDED):
        some = [result_record(Result(job_id=f"{batch}.1", outcome=outcome, created_at=1), "redriving")]
        history.write_now(lambda at, some=some: write_results(at, some))  # type: ignore[misc]
    assert [each.type for each in page_of(history, "redriving").events] == ["inference.succeeded"]


def test_events_wait_while_the_rows_of_results_are_rebuilt(history: Store) -> None:
    job_id = told(history, "waiting", 4)["job_id"]
    held = {"topic": "t", "partition": 0, "topic_id": "", "next_offset": HELD}
    history.submit(lambda at: at.execute(view_offsets.insert(), held) and None).result()
    assert page_of(history, "waiting") == EventPage((), 0)
    history.submit(lambda at: at.execute(view_offsets.delete()) and None).result()
    assert told_of(history, "waiting") == [job_id]


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
    history: Store, kinds: list[str], chosen: tuple[str, ...], limit: int, name: int
) -> None:
    tenant = f"t{name}"
    history.submit(lambda at: write_events(at, [NewEvent(tenant, kind, "o", 1, b"{}") for kind in kinds])).result()
    start = history.read_now(lambda at: events_after(at, tenant, 0, (), 100, MIB)).events
    seen: list[tuple[int, str]] = []
    number, read_to = -1, 0
    while number < read_to:
        number = read_to
        read = partial(events_after, tenant=tenant, number=number, types=chosen, limit=limit, most_bytes=MIB)
        page = history.read_now(read)
        seen += [(event.number, event.type) for event in page.events]
        read_to = page.read_to

    def is_chosen(kind: str) -> bool:
        return not chosen or any(kind in (name, name.replace("*", kind.partition(".")[2])) for name in chosen)

    assert seen == [(event.number, event.type) for event in start if is_chosen(event.type)]


# -- acceptance --------------------------------------------------------------------------------------------------------


PRINCIPAL = Principal("acme", "key:1", "api_key", DEFAULT_SCOPES)


def accept(store: Store, *job_ids: str) -> None:
    new = [NewJob(job_id, "/v1/jobs", b"{}") for job_id in job_ids]
    store.submit(lambda connection: accept_jobs(connection, PRINCIPAL, new, Topics())).result()


def kept(store: Store) -> tuple[set[str], int]:
    """The ids of all jobs, and the number of records on their way to Kafka."""
    ids = set(store.read_now(lambda connection: connection.scalars(select(jobs.c.job_id)).all()))
    return ids, store.read_now(lambda at: at.scalar(select(func.count()).select_from(outbox)) or 0)


def test_an_accepted_job_has_a_row_and_a_record_and_one_with_a_taken_id_is_refused_with_all_of_its_request(
    store: Store,
) -> None:
    accept(store, "one")
    for again in (("one",), ("two", "one")):
        with pytest.raises(JobExists, match="'one'"):
            accept(store, *again)
    assert kept(store) == ({"one"}, 1)
    accept(store, "two", "three")
    assert kept(store) == ({"one", "two", "three"}, 3)


@pytest.mark.parametrize(
    ("reason", "others_wait"), [("full", False), ("unknown", True)], ids=["a full outbox", "an unknown position"]
)
def test_a_hold_of_the_store_refuses_jobs_and_without_a_position_every_record(
    store: Store, reason: str, others_wait: bool
) -> None:
    """A record that takes a number which Kafka knows already would be deleted as done."""
    setattr(store.hold, reason, "why")
    with pytest.raises(StoreAway, match="why"):
        accept(store, "one")
    cancelling = store.submit(lambda connection: put_record(connection, Topics().control, b"k", b"v"))
    assert isinstance(cancelling.exception(), StoreAway) == others_wait
    assert kept(store) == (set(), 0 if others_wait else 1)
    setattr(store.hold, reason, None)
    accept(store, "one")
    assert kept(store)[0] == {"one"}


# -- idempotency keys --------------------------------------------------------------------------------------------------


def test_a_repeat_with_the_same_key_gets_the_first_answer_and_work_that_fails_leaves_its_key_free(store: Store) -> None:
    made: list[int] = []

    def fail() -> StoredAnswer:
        raise ValueError

    def answer() -> StoredAnswer:
        made.append(1)
        return StoredAnswer(200, b"answer %d" % len(made))

    def ask(fingerprint: bytes, work: Callable[[], StoredAnswer] = answer) -> StoredAnswer:
        return store.submit(lambda connection: once(connection, "acme", "key", fingerprint, work)).result()

    with pytest.raises(ValueError):
        ask(b"b", fail)
    assert ask(b"a") == ask(b"a") == StoredAnswer(200, b"answer 1")
    with pytest.raises(KeyReused):
        ask(b"b")
    assert made == [1]


NUMBERS = count()


class Asked(NamedTuple):
    """One request. Its work writes a row, and then fails or answers."""

    tenant: str
    key: str | None
    fingerprint: bytes
    fails: bool
    process: int


REQUESTS = st.lists(
    st.builds(
        Asked,
        st.sampled_from(["acme", "globex"]),
        st.sampled_from(["one", "two", None]),
        st.sampled_from([b"a", b"b"]),
        st.booleans(),
        st.integers(0, 1),
    ),
    min_size=1,
    max_size=14,
)


@pytest.fixture
def stores(store_url: str) -> Iterator[list[Store]]:
    """The stores of two processes over one database."""
    opened = [Store.open(store_url) for _ in range(2)]
    yield opened
    for store in opened:
        store.close()


def submitted(store: Store, asked: Asked, example: int, number: int) -> Future[StoredAnswer]:
    answer = StoredAnswer(200, str(number).encode())

    def change(connection: Connection) -> StoredAnswer:
        def work() -> StoredAnswer:
            connection.execute(tenants.insert(), {"tenant": f"{example}-{number}", "settings": {}, "created_at": 0})
            if asked.fails:
                raise ZeroDivisionError
            return answer

        return once(connection, f"{asked.tenant}-{example}", asked.key, asked.fingerprint, work)

    return store.submit(change)


def said(future: Future[StoredAnswer]) -> str:
    """The number of the request whose work gave this answer, or the error's name."""
    error = future.exception(60)
    return type(error).__name__ if error is not None else future.result().body.decode()


def made(store: Store, example: int) -> set[str]:
    """The numbers of the example's requests whose rows were committed."""
    rows = store.read_now(lambda connection: connection.scalars(select(tenants.c.tenant)).all())
    return {row.partition("-")[2] for row in rows if row.startswith(f"{example}-")}


@given(REQUESTS)
@settings(max_examples=drawn(25), deadline=None, suppress_health_check=list(HealthCheck))
def test_each_key_has_one_answer_and_one_work(stores: list[Store], requests: list[Asked]) -> None:
    example = next(NUMBERS)
    futures = [submitted(stores[asked.process], asked, example, number) for number, asked in enumerate(requests)]
    answers = [said(future) for future in futures]

    by_key: defaultdict[tuple[str, str | None], list[int]] = defaultdict(list)
    for number, asked in enumerate(requests):
        by_key[asked.tenant, asked.key].append(number)
    done = set[str]()
    for (_, key), numbers in by_key.items():
        winners = {answers[number] for number in numbers} - {"KeyReused", "ZeroDivisionError"}
        done |= winners
        if key is None:
            assert [answers[number] for number in numbers] == [
                "ZeroDivisionError" if requests[number].fails else str(number) for number in numbers
            ]
            continue
        assert len(winners) == any(not requests[number].fails for number in numbers)
        for number in numbers:
            assert answers[number] in allowed(requests[number], requests, winners)
    assert made(stores[0], example) == done


def allowed(asked: Asked, requests: list[Asked], winners: set[str]) -> set[str]:
    """The answers that a request with a key may get.

    A failing request that comes before the winner fails; after the winner, it is answered like any other request.
    """
    of_its_own = {"ZeroDivisionError"} if asked.fails else set[str]()
    for winner in winners:
        same = requests[int(winner)].fingerprint == asked.fingerprint
        of_its_own |= {winner} if same else {"KeyReused"}
    return of_its_own


def test_a_refused_request_of_a_group_costs_the_others_no_statement(store: Store) -> None:
    """Four of seven requests are refused or repeat; the others' rows are one INSERT a table."""
    inserts: list[str] = []
    writes, go_on = threading.Event(), threading.Event()

    def wait(_connection: Connection) -> None:
        writes.set()
        assert go_on.wait(60)

    def note(_connection: object, _cursor: object, statement: str, *_rest: object) -> None:
        inserts.extend([statement.split()[2]] if statement.startswith("INSERT INTO") else [])

    limited = TenantSettings(queued_lines=2)
    store.submit(lambda connection: accept_jobs(connection, PRINCIPAL, [NewJob("job_0", "/v1/jobs", b"{}")], Topics()))
    held = store.submit(wait)
    assert writes.wait(60)
    event.listen(Engine, "before_cursor_execute", note)
    try:
        futures = [
            store.submit(
                JobsRequest(PRINCIPAL, key, print_of_it, new, StoredAnswer(202, answer), Topics(), settings=of)
            )
            for key, print_of_it, ids, answer, of in (
                ("k", b"1", ["job_1"], b"first", limited),
                ("k", b"1", ["job_2"], b"a repeat", limited),
                ("k", b"2", ["job_3"], b"another body", limited),
                (None, b"", ["job_4", "job_1"], b"a taken id", limited),
                (None, b"", ["job_0"], b"an id of before", limited),
                (None, b"", ["job_5"], b"second", limited),
                (None, b"", ["job_6"], b"too many", limited),
            )
            for new in [[NewJob(each, "/v1/jobs", b"{}") for each in ids]]
        ]
        go_on.set()
        held.result(60)
        answers = [said(future) for future in futures]
    finally:
        event.remove(Engine, "before_cursor_execute", note)
    assert answers == ["first", "first", "KeyReused", "JobExists", "JobExists", "second", "QuotaExceeded"]
    assert inserts.count("idempotency") == inserts.count("jobs") == inserts.count("outbox") == 1
    rows = store.read_now(lambda connection: connection.scalars(select(jobs.c.job_id).order_by("job_id")).all())
    assert rows == ["job_0", "job_1", "job_5"]
    assert store.read_now(lambda connection: queued_work(connection, "acme")).lines == 2


# -- responses and their kin -------------------------------------------------------------------------------------------


REQUESTED: dict[str, dict[str, Any]] = {
    CHAT_COMPLETIONS: {"model": "small", "messages": [{"role": "user", "content": "Why?"}]},
    COMPLETIONS: {"model": "small", "prompt": "Why?"},
    RESPONSES: {"model": "small", "input": "Why?"},
    EMBEDDINGS: {"model": "small", "input": "Why?"},
    "/v1/rerank": {"model": "small", "query": "Why?", "documents": ["So."]},
    "/v1/score": {"model": "small", "queries": "Why?", "documents": ["So."]},
    "/v1/classify": {"model": "small", "input": "Why?"},
}
BACKGROUND = {**REQUESTED[RESPONSES], "background": True}
USAGE = Usage(prompt_tokens=3, completion_tokens=2, total_tokens=5)


def finish(rig: Rig, job_id: str, outcome: Outcome = Outcome.SUCCEEDED, **more: Any) -> None:
    """Write a job's result as the view does, and wake its waiters."""
    text = {"text": "Because.", "usage": USAGE, "finish_reason": "stop"} if outcome is Outcome.SUCCEEDED else {}
    result = Result(job_id=job_id, outcome=outcome, created_at=1_800_000_001, **{**text, **more})
    row = {"status": str(outcome), "finished_at": 1_800_000_001_000, "result": write_result(result)}
    update = jobs.update().where(jobs.c.tenant == TENANT, jobs.c.job_id == job_id).values(row)
    rig.store.submit(lambda connection: connection.execute(update) and None).result()
    rig.door.waiting.announce([(TENANT, job_id)])


def known(rig: Rig) -> set[str]:
    """The ids of all jobs."""
    found = select(jobs.c.job_id).where(jobs.c.tenant == TENANT)
    return set(rig.store.read_now(lambda connection: connection.execute(found).scalars().all()))


async def asked(rig: Rig, key: str, url: str, **arguments: Any) -> tuple[asyncio.Task[httpx.Response], str]:
    """Send a request that waits for its job's result; return the request's task and the job's id."""
    before = known(rig)
    asking = again(rig, key, url, **arguments)
    while not (made := known(rig) - before):
        assert not asking.done(), asking.result().text
        await asyncio.sleep(0.001)
    return asking, made.pop()


def again(rig: Rig, key: str, url: str, **arguments: Any) -> asyncio.Task[httpx.Response]:
    body = {**REQUESTED[url], **arguments.pop("json", {})}
    return asyncio.create_task(rig.request("POST", url, key, json=body, **arguments))


def records_of(rig: Rig, topic: str) -> list[dict[str, Any]]:
    found = select(outbox.c.value).where(outbox.c.topic == topic).order_by(outbox.c.number)
    return [json.loads(value) for value in rig.store.read_now(lambda connection: connection.execute(found).scalars())]


async def out_waited(rig: Rig, asking: asyncio.Task[httpx.Response]) -> httpx.Response:
    """Move the clock until the request's patience is over; return its answer."""
    while not asking.done():
        rig.clock.sleep(rig.door.settings.await_seconds)
        await asyncio.sleep(0.01)
    return await asking


ANSWERS: dict[str, tuple[Any, ...]] = {
    EMBEDDINGS: ("data", 0, "embedding", [0.5, -1.0]),
    "/v1/rerank": ("results", 0, "relevance_score", 2.0),
    "/v1/score": ("data", 0, "score", 3.0),
    "/v1/classify": ("data", 0, "label", "calm"),
    CHAT_COMPLETIONS: ("choices", 0, "message", "content", "Because."),
    COMPLETIONS: ("choices", 0, "text", "Because."),
    RESPONSES: ("output_text", "Because."),
}
"""The place of the answer in each body, and the answer."""


@pytest.mark.parametrize("url", REQUESTED)
async def test_a_request_waits_for_its_answer(rig: Rig, key: str, url: str) -> None:
    tuned = {"presence_penalty": 1} if url == CHAT_COMPLETIONS else {}
    asking, job = await asked(rig, key, url, json=tuned)
    labels = [{"label": "calm", "probabilities": [1.0]}]
    finish(rig, job, embeddings=[[0.5, -1.0]], ranks=[{"index": 0, "score": 2.0}], scores=[3.0], labels=labels)
    answer = await asking

    assert answer.status_code == 200
    found, (*steps, wanted) = answer.json(), ANSWERS[url]
    notes = found["postback"].get("notes", [])
    for step in steps:
        found = found[step]
    assert found == wanted
    sent = records_of(rig, rig.door.fleet.kafka.topics.requests())[-1]
    assert sent["ttl_seconds"] == rig.door.settings.await_seconds
    assert notes == ["ignored, since no engine here has it: `presence_penalty`"] * len(tuned)


@pytest.mark.parametrize("url", [CHAT_COMPLETIONS, RESPONSES])
async def test_a_stream_has_comments_until_its_answer_or_its_failure_comes(
    rig: Rig, key: str, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.door.streamed.HEAD_SECONDS", 0.001)
    slow = changed(rig, settings=GatewaySettings(heartbeat_seconds=0.1))
    failure = {"outcome": Outcome.FAILED, "error": ResultError(code="not_json", message="No JSON.")}

    async def streamed(door: Rig, pause_seconds: float, **ended: Any) -> httpx.Response:
        asking, job = await asked(door, key, url, json={"stream": True})
        await asyncio.sleep(pause_seconds)
        finish(rig, job, **ended)
        return await asking

    answer = await streamed(slow, 0.15)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
    assert (answer.text.startswith(": waiting"), "Because." in answer.text) == (True, True)
    answer = await streamed(slow, 0.15, **failure)
    assert (answer.status_code, '"not_json"' in answer.text) == (200, True)
    monkeypatch.setattr("gateway.door.streamed.HEAD_SECONDS", 30)
    assert refused(await streamed(rig, 0, **failure), 422)["code"] == "not_json"


@pytest.mark.parametrize("url", [CHAT_COMPLETIONS, RESPONSES])
async def test_a_stream_ends_with_an_error_when_the_store_is_away(
    rig: Rig, key: str, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.door.streamed.HEAD_SECONDS", 0.001)
    asking, job = await asked(rig, key, url, json={"stream": True})
    await asyncio.sleep(0.05)
    with monkeypatch.context() as patch:
        patch.setattr(rig.store, "silent", True)
        rig.door.waiting.announce([(TENANT, job)])
        answer = await asking
    assert (answer.status_code, '"store_away"' in answer.text) == (200, True)


def events_of(url: str) -> ChatEvents | ResponseEvents:
    """The events of a stream of the job `j`."""
    if url == CHAT_COMPLETIONS:
        return ChatEvents(lambda result: answer_body(result, url), "j", 1, "m", with_usage=False)

    async def shown(result: Result) -> dict[str, Any]:
        return answer_body(result, url)

    return ResponseEvents({"id": "resp_j", "status": "queued"}, shown, "j")


def kinds_of(events: Sequence[bytes]) -> list[str]:
    return [event.partition(b"\n")[0].decode().removeprefix("event: response.") for event in events]


async def test_the_events_of_a_tool_call_and_of_a_refusal_are_those_of_the_sdk() -> None:
    call = ToolCall(id="call_1", function=CalledFunction(name="look", arguments='{"a": 1}'))
    result = Result(job_id="j", outcome=Outcome.SUCCEEDED, created_at=1, text="", tool_calls=[call], model_id="m")
    chunks = [
        ChatCompletionChunk.model_validate_json(event.removeprefix(b"data: "))
        for event in (await events_of(CHAT_COMPLETIONS).ended(result))[:-1]
    ]
    [called] = [each for chunk in chunks for choice in chunk.choices for each in choice.delta.tool_calls or ()]
    assert called.function is not None
    assert (called.index, called.id, called.function.name, called.function.arguments) == (
        *(0, "call_1", "look"),
        '{"a": 1}',
    )
    assert kinds_of(await events_of(RESPONSES).ended(result)) == [
        *("created", "in_progress", "output_item.added", "function_call_arguments.delta"),
        *("function_call_arguments.done", "output_item.done", "completed"),
    ]
    refused = result.model_copy(update={"tool_calls": None, "text": None, "refusal": "No."})
    assert kinds_of(await events_of(RESPONSES).ended(refused)) == [
        *("created", "in_progress", "output_item.added", "content_part.added", "refusal.delta", "refusal.done"),
        *("content_part.done", "output_item.done", "completed"),
    ]


TEXTS = st.text(alphabet="ab", max_size=6)


@pytest.mark.parametrize("url", [CHAT_COMPLETIONS, RESPONSES])
@settings(max_examples=drawn(60))
@given(pieces=st.lists(TEXTS.filter(bool), max_size=4), rest=TEXTS, text=TEXTS | st.none(), reasoning=TEXTS)
async def test_a_stream_says_the_results_text_once_or_ends_with_an_error(
    url: str, pieces: list[str], rest: str, text: str | None, reasoning: str
) -> None:
    """`text` is what the result says; None stands for a continuation of the pieces."""
    sent = "".join(pieces)
    said = sent + rest if text is None else text
    result = Result(
        job_id="j", outcome=Outcome.SUCCEEDED, created_at=1, text=said, model_id="m", reasoning=reasoning or None
    )
    events = events_of(url)
    made = [event for piece in pieces for event in events.delta(piece)]
    if not said.startswith(sent):
        with pytest.raises(ApiError, match="another text"):
            await events.ended(result)
        return
    documents = [
        json.loads(event.rpartition(b"data: ")[2]) for event in [*made, *await events.ended(result)] if b"{" in event
    ]
    if url == CHAT_COMPLETIONS:
        deltas = [choice["delta"] for each in documents for choice in each["choices"]]
        assert [list(each) for each in deltas].count(["role", "content"]) == 1
        assert "".join(each.get("content", "") for each in deltas) == said
    else:
        assert [each["sequence_number"] for each in documents] == [*range(len(documents))]
        added = [each["item"]["id"] for each in documents if each["type"] == "response.output_item.added"]
        assert added == [item["id"] for item in documents[-1]["response"]["output"]]
        assert "".join(each["delta"] for each in documents if each["type"].endswith("output_text.delta")) == said


async def test_embeddings_come_in_the_form_that_openai_s_sdk_asks_for(rig: Rig, key: str) -> None:
    asking, job = await asked(rig, key, EMBEDDINGS, json={"encoding_format": "base64"})
    finish(rig, job, embeddings=[[0.5, -1.0], [3.4028234663852886e38, 1e-60]])
    packed = [base64.b64decode(each["embedding"]) for each in (await asking).json()["data"]]
    assert [struct.unpack("<2f", each) for each in packed] == [(0.5, -1.0), (3.4028234663852886e38, 0.0)]
    other = await again(rig, key, EMBEDDINGS, json={"encoding_format": "hex"})
    assert refused(other, 400)["param"] == "encoding_format"


async def test_a_job_that_did_not_succeed_is_an_error_that_no_client_repeats(rig: Rig, key: str) -> None:
    for outcome, code, status in (
        (Outcome.REJECTED, "invalid_job", 400),
        (Outcome.FAILED, "no_sources", 422),
        (Outcome.FAILED, "engine_error", 500),
        (Outcome.EXPIRED, "expired", 504),
        (Outcome.CANCELLED, "cancelled", 409),
    ):
        asking, job = await asked(rig, key, CHAT_COMPLETIONS)
        finish(rig, job, outcome, error=ResultError(code=code, message="So it ended."))
        answer = await asking
        error = refused(answer, status)
        assert (error["code"], error["message"]) == (code, f"So it ended. (job {job})")
        assert answer.headers["x-should-retry"] == "false"


async def test_a_job_whose_time_is_over_is_cancelled(rig: Rig, key: str) -> None:
    asking, job = await asked(rig, key, CHAT_COMPLETIONS)
    answer = await out_waited(rig, asking)

    assert job in refused(answer, 504)["message"]
    assert answer.headers["x-should-retry"] == "false"
    rig.store.submit(lambda _connection: None).result()  # the writer has also made the earlier cancellation
    assert (await rig.request("GET", f"/v1/jobs/{job}", key)).json()["status"] == "cancelling"
    assert records_of(rig, rig.door.fleet.kafka.topics.control)[-1]["job_id"] == job


async def test_a_repeated_request_gets_the_answer_of_the_first_even_after_the_gateways_stop(rig: Rig, key: str) -> None:
    once = {"idempotency-key": "chat-1"}
    asking, job = await asked(rig, key, CHAT_COMPLETIONS, headers=once)
    asking.cancel()  # a stopping server cancels waiting requests like this
    stopped = await asking
    assert (refused(stopped, 503)["code"], stopped.headers["retry-after"]) == ("stopping", "1")
    assert (await rig.request("GET", f"/v1/jobs/{job}", key)).json()["status"] == "queued"

    second, third = (again(rig, key, CHAT_COMPLETIONS, headers=once) for _ in range(2))
    finish(rig, job)
    assert (await second).json() == (await third).json()
    assert (await second).json()["id"] == f"chatcmpl-{job}"


@pytest.mark.parametrize(
    ("outcome", "more", "status"),
    [
        (Outcome.SUCCEEDED, {}, "completed"),
        (Outcome.SUCCEEDED, {"finish_reason": "length"}, "incomplete"),
        (Outcome.FAILED, {"error": ResultError(code="not_json", message="No JSON.")}, "failed"),
        (Outcome.REJECTED, {}, "failed"),
        (Outcome.EXPIRED, {}, "failed"),
        (Outcome.CANCELLED, {}, "cancelled"),
    ],
)
def test_a_background_response_is_queued_and_then_has_its_end(
    rig: Rig, key: str, outcome: Outcome, more: dict[str, Any], status: str
) -> None:
    metadata = {"team": "a", "webhook_url": "https://c.example/?token=t0ken"}
    body = {**BACKGROUND, "instructions": "Be brief.", "metadata": metadata}
    created = ask(rig, "POST", RESPONSES, key, json=body)
    assert created.status_code == 200
    first = Response.model_validate(created.json())
    assert (first.status, first.background, first.instructions, first.output) == ("queued", True, "Be brief.", [])
    assert ask(rig, "GET", f"{RESPONSES}/{first.id}", key).json() == created.json()

    this = select(jobs).where(jobs.c.job_id == first.id.removeprefix("resp_"))
    row = rig.store.read_now(lambda connection: connection.execute(this).one())
    assert "t0ken" not in f"{row.request!r} {row.metadata!r}"
    finish(rig, first.id.removeprefix("resp_"), outcome, **more)
    ended = Response.model_validate(ask(rig, "GET", f"{RESPONSES}/{first.id}", key).json())
    assert (ended.id, ended.status, ended.metadata) == (first.id, status, {"team": "a"})
    assert ended.output_text == ("Because." if outcome is Outcome.SUCCEEDED else "")
    assert (ended.error is not None) == (status == "failed")
    assert (ended.completed_at is not None) == (status == "completed")


def test_a_response_is_cancelled_once_and_a_finished_one_is_a_conflict(rig: Rig, key: str) -> None:
    made = ask(rig, "POST", RESPONSES, key, json=BACKGROUND).json()["id"]
    cancelled = cancel_response(rig, key, made)
    assert (cancelled["status"], cancelled["postback"]) == ("in_progress", {"status": "cancelling"})
    finish(rig, made.removeprefix("resp_"), Outcome.CANCELLED)
    assert cancel_response(rig, key, made)["status"] == "cancelled"

    other = ask(rig, "POST", RESPONSES, key, json=BACKGROUND).json()["id"]
    finish(rig, other.removeprefix("resp_"))
    answer = ask(rig, "POST", f"{RESPONSES}/{other}/cancel", key)
    assert refused(answer, 409)["code"] == "job_finished"
    assert answer.headers["x-should-retry"] == "false"


def cancel_response(rig: Rig, key: str, response_id: str) -> dict[str, Any]:
    async def run() -> httpx.Response:
        asking = asyncio.create_task(rig.request("POST", f"{RESPONSES}/{response_id}/cancel", key))
        return await out_waited(rig, asking)

    answer = asyncio.run(run())
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    return body


def test_a_response_that_is_not_to_be_stored_leaves_no_text_in_the_store(rig: Rig, key: str) -> None:
    once = {"idempotency-key": "unstored"}
    body = {**BACKGROUND, "store": False, "instructions": "Keep the s3cret.", "temperature": 0.5}
    answer = ask(rig, "POST", RESPONSES, key, json=body, headers=once).json()
    assert (answer["instructions"], answer["store"], answer["temperature"]) == (None, False, 0.5)
    assert answer == ask(rig, "POST", RESPONSES, key, json=body, headers=once).json()
    rows = rig.store.read_now(lambda c: [*c.execute(select(jobs)), *c.execute(select(idempotency))])
    assert "s3cret" not in str(rows)


def test_a_line_of_a_batch_is_not_deleted_as_a_response(rig: Rig, key: str) -> None:
    name = f"batch_{'0' * 32}.0"
    rig.store.write_now(lambda at: put_batch(at, name.removesuffix(".0"), 1))
    answer = result_record(Result(job_id=name, outcome=Outcome.SUCCEEDED, text="a", created_at=1), TENANT)
    rig.store.write_now(lambda at: write_results(at, [answer]))
    assert refused(ask(rig, "DELETE", f"{RESPONSES}/resp_{name}", key), 409)["code"] == "response_of_batch"
    assert ask(rig, "GET", f"/v1/jobs/{name}", key).json()["result"]["text"] == "a"


def test_a_rejected_job_keeps_the_model_that_it_named(rig: Rig, key: str) -> None:
    made = ask(rig, "POST", "/v1/jobs", key, json={**JOB, "model_id": "small"}).json()["id"]
    result = Result(job_id=made, outcome=Outcome.REJECTED, created_at=1)
    record = ResultRecord(TENANT, result, write_result(result), None, 1, has_callback=False)
    rig.store.write_now(lambda c: write_results(c, [record]) and None)
    assert ask(rig, "GET", f"/v1/jobs/{made}", key).json()["model_id"] == "small"


def test_the_lane_is_a_part_of_a_repeated_request(rig: Rig, key: str) -> None:
    def post(lane: str) -> httpx.Response:
        headers = {"idempotency-key": "lane", "x-postback-lane": lane}
        return ask(rig, "POST", "/v1/jobs", key, json=JOB, headers=headers)

    assert (post("bulk").status_code, post("bulk").status_code) == (202, 202)
    assert refused(post("default"), 409)["code"] == "idempotency_key_reused"


def test_work_that_its_tenants_quota_can_never_hold_is_refused_for_good(rig: Rig) -> None:
    limit(rig, "narrow", queued_lines=2, queued_tokens=5000)
    narrow = rig.key("narrow")
    assert refused(ask(rig, "POST", "/v1/jobs", narrow, json=[JOB] * 3), 400)["code"] == "quota_too_small"
    long = {**JOB, "max_tokens": 6000}
    assert refused(ask(rig, "POST", "/v1/jobs", narrow, json=long), 400)["code"] == "quota_too_small"


@pytest.mark.parametrize("url", ["/v1/jobs", RESPONSES, "/v1/chat/completions"])
def test_a_body_of_very_many_values_is_refused_before_it_is_parsed(rig: Rig, key: str, url: str) -> None:
    content = b'{"prompt": "a", "x": [' + b"[]," * MOST_VALUES + b"[]]}"
    assert refused(ask(rig, "POST", url, key, content=content), 400)["code"] == "too_many_values"


def test_bodies_beyond_the_budget_of_all_requests_are_refused_until_others_end(rig: Rig, key: str) -> None:
    few = changed(rig, settings=GatewaySettings(bodies_bytes=1024))
    for _ in range(3):
        answer = ask(few, "POST", "/v1/jobs", key, json={"prompt": "a" * 1100})
        assert (refused(answer, 503)["code"], answer.headers["retry-after"]) == ("busy", "5")
        assert ask(few, "POST", "/v1/jobs", key, json={"prompt": "a" * 700}).status_code == 202


def test_a_finished_response_is_deleted_with_its_answer_and_its_input(rig: Rig, key: str) -> None:
    made = ask(rig, "POST", RESPONSES, key, json=BACKGROUND).json()["id"]
    path, job_id = f"{RESPONSES}/{made}", made.removeprefix("resp_")
    assert refused(ask(rig, "DELETE", path, key), 409)["code"] == "response_unfinished"
    finish(rig, job_id)

    assert ask(rig, "DELETE", path, key).json() == {"id": made, "object": "response", "deleted": True}
    for method, gone in (("GET", path), ("DELETE", path), ("POST", f"{path}/cancel"), ("GET", f"/v1/jobs/{job_id}")):
        refused(ask(rig, method, gone, key), 404)
    row = rig.store.read_now(lambda connection: connection.execute(select(jobs).where(jobs.c.job_id == job_id)).one())
    assert (row.result, row.request) == (None, None)
    assert refused(ask(rig, "POST", "/v1/jobs", key, json={"prompt": "q", "job_id": job_id}), 409)


def test_the_input_of_a_response_is_listed_in_pages(rig: Rig, key: str) -> None:
    items = [{"role": "user", "content": f"{n}?"} for n in range(2)] + [{"role": "assistant", "content": "Two."}]
    made = ask(rig, "POST", RESPONSES, key, json={**BACKGROUND, "input": items}).json()["id"]
    path = f"{RESPONSES}/{made}/input_items"

    page = ask(rig, "GET", f"{path}?limit=2&order=asc", key).json()
    assert [item["content"] for item in page["data"]] == [[{"type": "input_text", "text": f"{n}?"}] for n in range(2)]
    assert page["has_more"] is True
    rest = ask(rig, "GET", f"{path}?order=asc&after={page['last_id']}", key).json()
    assert [item["role"] for item in rest["data"]] == ["assistant"]
    assert rest["has_more"] is False
    refused(ask(rig, "GET", f"{path}?after=elsewhere", key), 404)

    forgotten = ask(rig, "POST", RESPONSES, key, json={**BACKGROUND, "store": False}).json()["id"]
    assert refused(ask(rig, "GET", f"{RESPONSES}/{forgotten}/input_items", key), 404)["code"] == "input_not_stored"


def test_a_response_continues_an_earlier_one_and_lists_its_whole_input(rig: Rig, key: str) -> None:
    first = ask(rig, "POST", RESPONSES, key, json=BACKGROUND).json()["id"]
    going_on = {**BACKGROUND, "input": "And then?", "previous_response_id": first}
    assert refused(ask(rig, "POST", RESPONSES, key, json=going_on), 400)["code"] == "previous_response_not_found"
    call = ToolCall(id="call_1", function=CalledFunction(name="look", arguments="{}"))
    finish(rig, first.removeprefix("resp_"), tool_calls=[call])

    second = ask(rig, "POST", RESPONSES, key, json=going_on).json()
    assert second["previous_response_id"] == first
    sent = records_of(rig, rig.door.fleet.kafka.topics.requests())[-1]["messages"]
    assert [message["role"] for message in sent] == ["user", "assistant", "assistant", "user"]
    assert (sent[1]["content"], sent[-1]["content"]) == ("Because.", "And then?")
    listed = ask(rig, "GET", f"{RESPONSES}/{second['id']}/input_items?order=asc", key).json()["data"]
    assert [(item["type"], item.get("role")) for item in listed] == [
        *(("message", "user"), ("message", "assistant"), ("function_call", None), ("message", "user"))
    ]
    assert (listed[2]["call_id"], listed[2]["name"], listed[2]["arguments"]) == ("call_1", "look", "{}")
    other = rig.key("another")
    assert refused(ask(rig, "POST", RESPONSES, other, json=going_on), 400)["param"] == "previous_response_id"
    for odd in (5, True, {}, {"role": "user"}):
        assert refused(ask(rig, "POST", RESPONSES, key, json={**going_on, "input": odd}), 400)["param"] == "input"


async def test_a_page_of_stored_completions_has_few_bytes_and_all_pages_have_each_once(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.view.stored_jobs.LISTED_BYTES", 30_000)
    with_store = {"store": True, "messages": [{"role": "user", "content": "w" * 10_000}]}
    key, made = rig.key(TENANT), []
    for _ in range(4):
        asking, job_id = await asked(rig, key, CHAT_COMPLETIONS, json=with_store)
        finish(rig, job_id)
        made.append((await asking).json()["id"])
        rig.clock.sleep(1)

    async def page(query: str) -> tuple[list[str], bool]:
        found = (await rig.request("GET", f"{CHAT_COMPLETIONS}?{query}", key)).json()
        return [each["id"] for each in found["data"] if each["id"] in made], found["has_more"]

    before = f"limit=100&after={made[0]}"
    assert await page(before) == (made[1:4], False)
    monkeypatch.setattr("gateway.view.stored_jobs.LISTED_BYTES", 15_000)
    assert await page(before) == (made[1:3], True)
    assert await page(f"limit=100&after={made[2]}") == (made[3:], False)
    assert await page(f"limit=1&after={made[1]}") == (made[2:3], True)


async def test_only_a_response_can_be_continued(rig: Rig, key: str) -> None:
    asking, job_id = await asked(rig, key, CHAT_COMPLETIONS, json={"store": True})
    finish(rig, job_id)
    await asking
    going_on = {**BACKGROUND, "previous_response_id": f"resp_{job_id}"}
    refusal = refused(await rig.request("POST", RESPONSES, key, json=going_on), 400)
    assert refusal["code"] == "previous_response_not_found"


def test_a_request_that_no_engine_can_fulfil_is_refused_by_its_member(rig: Rig, key: str) -> None:
    before = known(rig)
    for url, param, wrong in (
        (RESPONSES, "previous_response_id", "resp_1"),
        (RESPONSES, "max_tokens", 5),
        (RESPONSES, "metadata.webhook_url", {"webhook_url": "https://10.0.0.1/"}),
        (CHAT_COMPLETIONS, "n", 17),
        (COMPLETIONS, "prompt", ["a", "b"]),
    ):
        body = {**REQUESTED[url], param.partition(".")[0]: wrong}
        assert refused(ask(rig, "POST", url, key, json=body), 400)["param"] == param
    assert known(rig) == before
    refused(ask(rig, "GET", f"{RESPONSES}/resp_1?stream=true", key), 400)


@settings(max_examples=drawn(60))
@given(
    url=st.sampled_from(list(REQUESTED)),
    body=st.binary(max_size=40) | JSON.map(json.dumps).map(str.encode),
)
@example(url=RESPONSES, body=b'{"input":[{"role":"user","content":[]}]}')
@example(url=RESPONSES, body=b'{"input":[{"role":[],"content":[{"type":"input_text"}]}]}')
@example(url=CHAT_COMPLETIONS, body=b'{"messages":{},"metadata":[],"stop":{}}')
def test_any_body_that_is_no_request_is_refused(rig: Rig, key: str, url: str, body: bytes) -> None:
    refused(ask(rig, "POST", url, key, content=body), 400)


@settings(max_examples=drawn(60))
@given(name=st.text(max_size=20), method=st.sampled_from(["GET", "POST", "DELETE"]), prefixed=st.booleans())
def test_any_unknown_response_is_not_found(rig: Rig, key: str, name: str, method: str, prefixed: bool) -> None:
    path = f"{RESPONSES}/{'resp_' if prefixed else 'x'}{quote(name.encode('utf-8', 'replace'), safe='')}"
    answer = ask(rig, method, f"{path}/cancel" if method == "POST" else path, key)
    refused(answer, 404)


# -- the input filter --------------------------------------------------------------------------------------------------


SECRET = "hunter2-launch-code"
CARD = "4111 1111 1111 1111"
RULES = f"""
[[rule]]
name = "launch"
kind = "regex"
verdict = "reject"
patterns = ["{SECRET}"]

[[rule]]
name = "cards"
kind = "pii"
verdict = "redact"
find = ["card"]

[[rule]]
name = "codename"
kind = "regex"
verdict = "flag"
patterns = ["falcon"]
"""


@pytest.fixture
def screened(tmp_path: Path) -> Iterator[Rig]:
    file = tmp_path / "rules.toml"
    file.write_text(RULES)
    with gateway_rig(tmp_path) as made, with_audit(made, screen=Screen.load(file)) as rig:
        yield rig


def post(screened: Rig, path: str, body: Any) -> httpx.Response:
    return asyncio.run(screened.request("POST", path, screened.key(), json=body))


def stored(screened: Rig) -> tuple[int, str]:
    """The number of stored jobs, and the text of all stored requests and of all records on their way to Kafka."""

    def values(column: Any) -> list[bytes | None]:
        return list(screened.store.read_now(lambda connection: connection.scalars(select(column)).all()))

    requests = values(jobs.c.request)
    return len(requests), b"".join(value for value in [*values(outbox.c.value), *requests] if value).decode()


TEMPLATES: list[tuple[str, Any]] = [
    ("/v1/jobs", {"prompt": "{}"}),
    ("/v1/jobs", [{"prompt": "harmless"}, {"prompt": "{}"}]),
    ("/v1/responses", {"input": "{}", "background": True}),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": "{}"}]}),
]


def with_text(body: Any, text: str) -> Any:
    if isinstance(body, dict):
        return {name: with_text(value, text) for name, value in body.items()}
    if isinstance(body, list):
        return [with_text(value, text) for value in body]
    return text if body == "{}" else body


@pytest.mark.parametrize(("path", "body"), TEMPLATES)
def test_a_rejected_job_is_refused_by_rule_and_field_and_nothing_is_stored(screened: Rig, path: str, body: Any) -> None:
    answer = post(screened, path, with_text(body, f"tell me {SECRET}"))
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "screened")
    assert "rule launch" in answer.text
    assert SECRET not in answer.text
    assert stored(screened) == (0, "")


@pytest.mark.parametrize(("path", "body"), TEMPLATES[:3])
def test_a_redacted_job_is_stored_without_the_match(screened: Rig, path: str, body: Any) -> None:
    answer = post(screened, path, with_text(body, f"pay with {CARD}"))
    assert answer.status_code in (200, 202), answer.text
    count, content = stored(screened)
    assert count == (len(body) if isinstance(body, list) else 1)
    assert "[redacted:card]" in content
    assert CARD not in content


def audited(screened: Rig) -> tuple[str, list[str] | None]:
    """The verdict and the rules of the audit's newest line."""
    said = json.loads((screened.folder / "audit.jsonl").read_text().splitlines()[-1])
    return said["postback.verdict"], said.get("postback.rules")


def found_in_records(screened: Rig) -> list[list[tuple[str, str, str]]]:
    """Rule, verdict and field of each finding in the header of each record on its way to Kafka."""
    packed = screened.store.read_now(
        lambda connection: connection.execute(select(outbox.c.headers).order_by(outbox.c.number)).scalars().all()
    )
    headers = [dict(unpacked(each)).get(SCREENING, b"[]").decode() for each in packed]
    return [[(one.rule, one.verdict, one.field) for one in read_findings(each)] for each in headers]


def test_the_audit_and_the_record_name_the_rules_that_match(screened: Rig) -> None:
    said = [{"prompt": "harmless"}, {"prompt": f"pay {CARD}"}, {"prompt": "falcon"}]
    assert post(screened, "/v1/jobs", said).status_code == 202
    assert audited(screened) == ("redact", ["cards", "codename"])
    assert found_in_records(screened) == [[], [("cards", "redact", "prompt")], [("codename", "flag", "prompt")]]
    sample = screened.door.metrics.registry.get_sample_value
    counts = [sample("postback_screened_total", {"verdict": name}) for name in ("pass", "flag", "redact")]
    assert counts == [1, 1, 1]
    assert post(screened, "/v1/jobs", {"prompt": "harmless"}).status_code == 202
    assert audited(screened) == ("pass", None)
    secret = {"messages": [{"role": "user", "content": SECRET}]}
    assert post(screened, "/v1/chat/completions", secret).status_code == 400
    assert audited(screened) == ("reject", ["launch"])
    assert SECRET not in (screened.folder / "audit.jsonl").read_text()
