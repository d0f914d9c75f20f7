"""`/v1/jobs`: accepting, refusing, reading, listing and cancelling."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from gateway.access import Scope
from tests.drawn import drawn
from tests.unit.gateway_rig import Rig, gateway_rig

JOB = {"prompt": "Why is the sky blue?"}
NOISE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda some: st.lists(some, max_size=3) | st.dictionaries(st.text(max_size=9), some, max_size=3),
    max_leaves=8,
)
FIELDS = st.sampled_from(["prompt", "messages", "job_id", "custom_id", "callback_url", "metadata", "sources", "body"])
BODIES = st.binary(max_size=40) | st.dictionaries(FIELDS, NOISE, max_size=4).map(lambda job: json.dumps(job).encode())
SEVERAL = settings(max_examples=drawn(60), suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    with gateway_rig(tmp_path_factory.mktemp("door")) as made:
        yield made


@pytest.fixture(scope="module")
def key(rig: Rig) -> str:
    return rig.key("jobs")


def ask(rig: Rig, method: str, path: str, key: str, **arguments: Any) -> httpx.Response:
    return asyncio.run(rig.request(method, path, key, **arguments))


def refused(answer: httpx.Response, status: int) -> dict[str, Any]:
    """The error of a refusal in OpenAI's shape."""
    assert answer.status_code == status, answer.text
    assert answer.headers["x-request-id"].startswith("req_")
    error: dict[str, Any] = answer.json()["error"]
    assert {"message", "type", "param", "code"} <= error.keys()
    return error


def test_a_job_is_accepted_and_can_be_read(rig: Rig, key: str) -> None:
    asked = {**JOB, "metadata": {"team": "a"}, "custom_id": "row 1"}
    accepted = ask(rig, "POST", "/v1/jobs", key, json=asked)
    assert accepted.status_code == 202
    job = accepted.json()
    assert job["status"] == "queued"

    read = ask(rig, "GET", f"/v1/jobs/{job['id']}", key).json()
    assert read.items() >= {**job, "result": None, "batch_id": None, "url": "/v1/jobs"}.items()
    assert read["submitted_by"].startswith("key:")


def test_an_array_is_accepted_whole_or_not_at_all(rig: Rig, key: str) -> None:
    accepted = ask(rig, "POST", "/v1/jobs?lane=bulk", key, json=[{**JOB, "job_id": f"whole-{n}"} for n in range(3)])
    assert [job["id"] for job in accepted.json()["data"]] == ["whole-0", "whole-1", "whole-2"]

    error = refused(ask(rig, "POST", "/v1/jobs", key, json=[{**JOB, "job_id": "part-0"}, {"promt": "q"}]), 400)
    assert (error["param"], error["message"].partition(";")[0]) == (
        "1.promt",
        "1.promt: is unknown; did you mean `prompt`?".partition(";")[0],
    )
    assert error["problems"][0] == {"index": 1, "field": "promt", "reason": "is unknown; did you mean `prompt`?"}
    refused(ask(rig, "POST", "/v1/jobs", key, json=[{**JOB, "job_id": "part-0"}, {**JOB, "job_id": "whole-1"}]), 409)
    refused(ask(rig, "GET", "/v1/jobs/part-0", key), 404)
    repeated = refused(ask(rig, "POST", "/v1/jobs", key, json=[{**JOB, "job_id": "x"}, {**JOB, "job_id": "x"}]), 400)
    assert repeated["message"] == "1.job_id: is also the id of job 0"


@pytest.mark.parametrize(
    ("job", "param", "reason"),
    [
        ({"callback_url": "https://10.1.2.3/hook?token=t0ken"}, "callback_url", "the address is not public"),
        ({"callback_url": "https://[::ffff:10.1.2.3]/"}, "callback_url", "the address is not public"),
        ({"job_id": "batch_0a.7"}, "job_id", "has the form of a batch line's id"),
        ({"prompt": "q" * 600_000}, None, "more than 524288 bytes"),
        ({"temperature": 9}, "temperature", "less than or equal to 2"),
    ],
)
def test_a_job_that_no_worker_would_run_is_refused_with_its_field(
    rig: Rig, key: str, job: dict[str, object], param: str | None, reason: str
) -> None:
    error = refused(ask(rig, "POST", "/v1/jobs", key, json={**JOB, **job}), 400)
    assert error["param"] == param
    assert reason in error["message"]
    assert "t0ken" not in error["message"]


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


def test_a_second_job_with_one_id_is_a_conflict(rig: Rig, key: str) -> None:
    named = {**JOB, "job_id": "only-one"}
    assert ask(rig, "POST", "/v1/jobs", key, json=named).status_code == 202
    again = ask(rig, "POST", "/v1/jobs", key, json=named)
    assert refused(again, 409)["code"] == "job_exists"
    assert again.headers["x-should-retry"] == "false"


def test_lists_page_to_their_end_and_every_filter_counts(rig: Rig) -> None:
    key = rig.key("jobs-list")
    jobs = [{**JOB, "job_id": f"n-{n}", "model_id": f"m{n % 2}", "metadata": {"team": f"t{n % 3}"}} for n in range(7)]
    ask(rig, "POST", "/v1/jobs", key, json=jobs)

    seen, after, more = [], "", True
    while more:
        page = ask(rig, "GET", "/v1/jobs", key, params={"limit": 3, **({"after": after} if after else {})}).json()
        seen += [job["id"] for job in page["data"]]
        after, more = page["last_id"], page["has_more"]
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


@pytest.mark.parametrize(
    "query",
    [
        "limit=0",
        "limit=101",
        "limit=٣",
        "order=up",
        "statuss=queued",
        "status=done",
        "created_after=soon",
        'metadata."=a',
    ],
)
def test_a_filter_that_cannot_be_read_is_refused(rig: Rig, key: str, query: str) -> None:
    refused(ask(rig, "GET", f"/v1/jobs?{query}", key), 400)


def test_a_cursor_that_is_unknown_is_not_found(rig: Rig, key: str) -> None:
    refused(ask(rig, "GET", "/v1/jobs?after=nowhere", key), 404)


def test_a_job_without_a_result_is_cancelled_once(rig: Rig, key: str) -> None:
    job = ask(rig, "POST", "/v1/jobs", key, json=JOB).json()["id"]
    for _ in range(2):
        answer = ask(rig, "POST", f"/v1/jobs/{job}/cancel", key)
        assert (answer.status_code, answer.json()["status"]) == (200, "cancelling")
    assert ask(rig, "GET", f"/v1/jobs/{job}", key).json()["status"] == "cancelling"


def test_a_jobs_id_may_have_any_character_that_ids_have(rig: Rig, key: str) -> None:
    name = "a/b/cancel?c#%2F%é".replace("é", "~")
    ask(rig, "POST", "/v1/jobs", key, json={**JOB, "job_id": name})
    path = f"/v1/jobs/{quote(name, safe='')}"
    assert ask(rig, "GET", path, key).json()["id"] == name
    assert ask(rig, "POST", f"{path}/cancel", key).json()["status"] == "cancelling"


def test_jobs_need_their_scope_and_their_tenant(rig: Rig, key: str) -> None:
    job = ask(rig, "POST", "/v1/jobs", key, json=JOB).json()["id"]
    other, reader = rig.key("jobs-stranger"), rig.key("jobs", Scope.READ)
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
