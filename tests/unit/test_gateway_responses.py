"""`/v1/responses`, completions and embeddings: requests in the background, awaited, cancelled, deleted and refused."""

from __future__ import annotations

import asyncio
import base64
import json
import struct
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from openai.types.responses import Response
from sqlalchemy import select

from gateway.store.tables import jobs, outbox
from schemas.codec import write_result
from schemas.kind_bodies import EMBEDDINGS
from schemas.openai import CHAT_COMPLETIONS, COMPLETIONS, RESPONSES
from schemas.outcome import Outcome
from schemas.result import Result, ResultError, Usage
from tests.drawn import drawn
from tests.unit.gateway_rig import Rig, gateway_rig

BODIES: dict[str, dict[str, Any]] = {
    CHAT_COMPLETIONS: {"model": "small", "messages": [{"role": "user", "content": "Why?"}]},
    COMPLETIONS: {"model": "small", "prompt": "Why?"},
    RESPONSES: {"model": "small", "input": "Why?"},
    EMBEDDINGS: {"model": "small", "input": "Why?"},
    "/v1/rerank": {"model": "small", "query": "Why?", "documents": ["So."]},
    "/v1/score": {"model": "small", "queries": "Why?", "documents": ["So."]},
    "/v1/classify": {"model": "small", "input": "Why?"},
}
BACKGROUND = {**BODIES[RESPONSES], "background": True}
USAGE = Usage(prompt_tokens=3, completion_tokens=2, total_tokens=5)
NOISE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda some: st.lists(some, max_size=3) | st.dictionaries(st.text(max_size=9), some, max_size=3),
    max_leaves=8,
)
TENANT = "acme"


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
    assert answer.status_code == status, answer.text
    error: dict[str, Any] = answer.json()["error"]
    assert {"message", "type", "param", "code"} <= error.keys()
    return error


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
    asking = asyncio.create_task(rig.request("POST", url, key, **{"json": BODIES[url], **arguments}))
    while not (made := known(rig) - before):
        assert not asking.done(), asking.result().text
        await asyncio.sleep(0.001)
    return asking, made.pop()


def records(rig: Rig, topic: str) -> list[dict[str, Any]]:
    found = select(outbox.c.value).where(outbox.c.topic == topic).order_by(outbox.c.number)
    return [json.loads(value) for value in rig.store.read_now(lambda connection: connection.execute(found).scalars())]


async def out_waited(rig: Rig, asking: asyncio.Task[httpx.Response]) -> httpx.Response:
    """Move the clock until the request's patience is over; return its answer."""
    while not asking.done():
        rig.clock.sleep(rig.door.settings.await_seconds)
        await asyncio.sleep(0.01)
    return await asking


@pytest.mark.parametrize("url", BODIES)
async def test_a_request_waits_for_its_answer(rig: Rig, key: str, url: str) -> None:
    tuned = {"presence_penalty": 1} if url == CHAT_COMPLETIONS else {}
    asking, job = await asked(rig, key, url, json={**BODIES[url], **tuned})
    labels = [{"label": "calm", "probabilities": [1.0]}]
    finish(rig, job, embeddings=[[0.5, -1.0]], ranks=[{"index": 0, "score": 2.0}], scores=[3.0], labels=labels)
    answer = await asking

    assert answer.status_code == 200
    body = answer.json()
    texts = {
        EMBEDDINGS: lambda: body["data"][0]["embedding"],
        "/v1/rerank": lambda: body["results"][0]["relevance_score"],
        "/v1/score": lambda: body["data"][0]["score"],
        "/v1/classify": lambda: body["data"][0]["label"],
        CHAT_COMPLETIONS: lambda: body["choices"][0]["message"]["content"],
        COMPLETIONS: lambda: body["choices"][0]["text"],
        RESPONSES: lambda: body["output_text"],
    }
    numbers = {EMBEDDINGS: [0.5, -1.0], "/v1/rerank": 2.0, "/v1/score": 3.0, "/v1/classify": "calm"}
    assert texts[url]() == numbers.get(url, "Because.")
    assert records(rig, rig.door.fleet.kafka.topics.requests())[-1]["ttl_seconds"] == rig.door.settings.await_seconds
    assert body["postback"].get("notes", []) == (
        ["ignored, since no engine here has it: `presence_penalty`"] if url == CHAT_COMPLETIONS else []
    )


async def test_embeddings_come_in_the_form_that_openai_s_sdk_asks_for(rig: Rig, key: str) -> None:
    asking, job = await asked(rig, key, EMBEDDINGS, json={**BODIES[EMBEDDINGS], "encoding_format": "base64"})
    finish(rig, job, embeddings=[[0.5, -1.0], [3.4028234663852886e38, 1e-60]])
    packed = [base64.b64decode(each["embedding"]) for each in (await asking).json()["data"]]
    assert [struct.unpack("<2f", each) for each in packed] == [(0.5, -1.0), (3.4028234663852886e38, 0.0)]
    other = await rig.request("POST", EMBEDDINGS, key, json={**BODIES[EMBEDDINGS], "encoding_format": "hex"})
    assert refused(other, 400)["param"] == "encoding_format"


@pytest.mark.parametrize(
    ("outcome", "code", "status"),
    [
        (Outcome.REJECTED, "invalid_job", 400),
        (Outcome.FAILED, "no_sources", 422),
        (Outcome.FAILED, "engine_error", 500),
        (Outcome.EXPIRED, "expired", 504),
        (Outcome.CANCELLED, "cancelled", 409),
    ],
)
async def test_a_job_that_did_not_succeed_is_an_error_that_no_client_repeats(
    rig: Rig, key: str, outcome: Outcome, code: str, status: int
) -> None:
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
    assert records(rig, rig.door.fleet.kafka.topics.control)[-1]["job_id"] == job


async def test_a_repeated_request_gets_the_answer_of_the_first(rig: Rig, key: str) -> None:
    once = {"idempotency-key": "chat-1"}
    asking, job = await asked(rig, key, CHAT_COMPLETIONS, headers=once)
    again = asyncio.create_task(rig.request("POST", CHAT_COMPLETIONS, key, json=BODIES[CHAT_COMPLETIONS], headers=once))
    finish(rig, job)
    assert (await again).json() == (await asking).json()
    assert (await again).json()["id"] == f"chatcmpl-{job}"


async def test_a_repeat_after_the_gateways_stop_gets_the_same_jobs_answer(rig: Rig, key: str) -> None:
    once = {"idempotency-key": "chat-stop"}
    asking, job = await asked(rig, key, CHAT_COMPLETIONS, headers=once)
    assert (await rig.request("GET", f"/v1/jobs/{job}", key)).json()["status"] == "queued"
    asking.cancel()  # a stopping server cancels waiting requests like this
    stopped = await asking
    assert (refused(stopped, 503)["code"], stopped.headers["retry-after"]) == ("stopping", "1")
    assert (await rig.request("GET", f"/v1/jobs/{job}", key)).json()["status"] == "queued"

    again = asyncio.create_task(rig.request("POST", CHAT_COMPLETIONS, key, json=BODIES[CHAT_COMPLETIONS], headers=once))
    finish(rig, job)
    assert (await again).json()["id"] == f"chatcmpl-{job}"


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
    body = {
        **BACKGROUND,
        "instructions": "Be brief.",
        "metadata": {"team": "a", "webhook_url": "https://c.example/?t"},
    }
    created = ask(rig, "POST", RESPONSES, key, json=body)
    assert created.status_code == 200
    first = Response.model_validate(created.json())
    assert (first.status, first.background, first.instructions, first.output) == ("queued", True, "Be brief.", [])
    assert ask(rig, "GET", f"{RESPONSES}/{first.id}", key).json() == created.json()

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


def test_a_finished_response_is_deleted_with_its_answer_and_its_input(rig: Rig, key: str) -> None:
    made = ask(rig, "POST", RESPONSES, key, json=BACKGROUND).json()["id"]
    path, job_id = f"{RESPONSES}/{made}", made.removeprefix("resp_")
    assert refused(ask(rig, "DELETE", path, key), 409)["code"] == "response_unfinished"
    finish(rig, job_id)

    assert ask(rig, "DELETE", path, key).json() == {"id": made, "object": "response", "deleted": True}
    for method, gone in (("GET", path), ("DELETE", path), ("POST", f"{path}/cancel"), ("GET", f"/v1/jobs/{job_id}")):
        refused(ask(rig, method, gone, key), 404)
    kept = rig.store.read_now(lambda connection: connection.execute(select(jobs).where(jobs.c.job_id == job_id)).one())
    assert (kept.result, kept.request) == (None, None)
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


def test_the_stored_input_has_no_callback(rig: Rig, key: str) -> None:
    body = {**BACKGROUND, "metadata": {"webhook_url": "https://consumer.example/?token=t0ken"}}
    made = ask(rig, "POST", RESPONSES, key, json=body).json()["id"].removeprefix("resp_")
    kept = rig.store.read_now(lambda connection: connection.execute(select(jobs).where(jobs.c.job_id == made)).one())
    assert "t0ken" not in f"{kept.request!r} {kept.metadata!r}"


@pytest.mark.parametrize(
    ("url", "more", "param"),
    [
        (RESPONSES, {"stream": True}, "stream"),
        (RESPONSES, {"previous_response_id": "resp_1"}, "previous_response_id"),
        (RESPONSES, {"max_tokens": 5}, "max_tokens"),
        (RESPONSES, {"metadata": {"webhook_url": "https://10.0.0.1/"}}, "metadata.webhook_url"),
        (CHAT_COMPLETIONS, {"stream": True}, "stream"),
        (CHAT_COMPLETIONS, {"n": 17}, "n"),
        (COMPLETIONS, {"prompt": ["a", "b"]}, "prompt"),
    ],
)
def test_a_request_that_no_engine_can_fulfil_is_refused_by_its_member(
    rig: Rig, key: str, url: str, more: dict[str, Any], param: str
) -> None:
    before = known(rig)
    assert refused(ask(rig, "POST", url, key, json={**BODIES[url], **more}), 400)["param"] == param
    assert known(rig) == before
    refused(ask(rig, "GET", f"{RESPONSES}/resp_1?stream=true", key), 400)


@settings(max_examples=drawn(60))
@given(url=st.sampled_from(list(BODIES)), body=st.binary(max_size=40) | NOISE.map(json.dumps).map(str.encode))
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
