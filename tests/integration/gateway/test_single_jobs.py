"""Single jobs from end to end over real TLS: OpenAI's Python SDK, curl, a worker, and streams of events."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from typing import Any

import openai
import pytest
import requests
from openai import OpenAI

from tests.integration.certificates import Authority
from tests.integration.gateway.gateway_process import Gateway, running_gateway
from tests.product import Role, eventually

MODEL = "small"
SECONDS = 60.0
TENANT = "single"


@pytest.fixture(scope="module")
def worker(tls_gateway: Gateway) -> Role:
    return tls_gateway.product.worker("w", "--engine", "echo", "--model", MODEL)


@pytest.fixture(scope="module")
def key(tls_gateway: Gateway) -> str:
    return tls_gateway.key(TENANT)


@pytest.fixture
def client(
    tls_gateway: Gateway, worker: Role, key: str, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> Iterator[OpenAI]:
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.ca_file))
    with OpenAI(base_url=f"{tls_gateway.url}/v1", api_key=key, max_retries=0) as made:
        yield made


def ended(client: OpenAI, response_id: str) -> openai.types.responses.Response:
    """Return the response once it has ended."""
    found = client.responses.retrieve(response_id)

    def has_ended() -> bool:
        nonlocal found
        found = client.responses.retrieve(response_id)
        return found.status not in ("queued", "in_progress")

    eventually(has_ended, SECONDS, lambda: f"{found}")
    return found


def test_a_background_response_is_read_listed_and_deleted(client: OpenAI) -> None:
    made = client.responses.create(model=MODEL, input="Why is it so?", background=True, metadata={"team": "a"})
    assert (made.status, made.background) == ("queued", True)

    done = ended(client, made.id)
    assert (done.status, done.output_text, done.metadata) == ("completed", "Why is it so?", {"team": "a"})
    assert done.usage is not None
    (item,) = client.responses.input_items.list(made.id)
    assert item.model_dump()["content"][0]["text"] == "Why is it so?"
    with pytest.raises(openai.ConflictError) as refused:
        client.responses.cancel(made.id)
    assert refused.value.code == "job_finished"
    client.responses.delete(made.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(made.id)


def test_an_awaited_answer_comes_in_the_shape_of_its_url(client: OpenAI) -> None:
    chat = client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "One?"}])
    assert (chat.choices[0].message.content, chat.choices[0].finish_reason) == ("One?", "stop")
    assert client.completions.create(model=MODEL, prompt="Two?").choices[0].text == "Two?"
    assert client.responses.create(model=MODEL, input="Three?").output_text == "Three?"
    kept = client.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": "Four?"}], store=True, metadata={"team": "kept"}
    )
    assert client.chat.completions.retrieve(kept.id).choices == kept.choices
    assert [one.id for one in client.chat.completions.list(metadata={"team": "kept"})] == [kept.id]


def test_an_answer_is_streamed_in_the_events_of_the_sdk(client: OpenAI) -> None:
    asked: Any = {"model": MODEL, "messages": [{"role": "user", "content": "One?"}]}
    chunks = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    said = [choice for chunk in chunks for choice in chunk.choices]
    assert ("".join(each.delta.content or "" for each in said), said[-1].finish_reason) == ("One?", "stop")
    assert (chunks[-1].usage is not None, [chunk.usage for chunk in chunks[:-1]]) == (True, [None] * (len(chunks) - 1))
    with client.chat.completions.stream(**asked) as chat:
        assert chat.get_final_completion().choices[0].message.content == "One?"
    with client.responses.stream(model=MODEL, input="Three?") as stream:
        kinds = [event.type for event in stream]
        assert stream.get_final_response().output_text == "Three?"
    assert (kinds[0], kinds[-1], kinds.count("response.output_text.delta")) == (
        *("response.created", "response.completed"),
        1,
    )


def test_a_request_that_cannot_be_answered_is_an_error_of_the_sdk(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as unknown:
        client.chat.completions.create(model="no-such-model", messages=[{"role": "user", "content": "?"}])
    assert unknown.value.code == "model_not_found"
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="no-such-model", messages=[{"role": "user", "content": "?"}], stream=True)
    with pytest.raises(openai.BadRequestError) as streamed:
        client.responses.create(model=MODEL, input="?", stream=True, background=True)
    assert streamed.value.param == "stream"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("no-such-model")


def test_the_workers_models_are_listed(client: OpenAI) -> None:
    def listed() -> list[str]:
        return [model.id for model in client.models.list()]

    eventually(lambda: MODEL in listed(), SECONDS, lambda: f"{listed()}")
    assert client.models.retrieve(MODEL).owned_by == "postback"


def test_a_running_response_is_cancelled(client: OpenAI) -> None:
    made = client.responses.create(model=MODEL, input="[[sleep 300]] Why?", background=True)
    assert client.responses.cancel(made.id).status in ("in_progress", "cancelled")
    assert ended(client, made.id).status == "cancelled"
    assert client.responses.cancel(made.id).status == "cancelled"


def test_a_job_whose_client_leaves_is_cancelled(client: OpenAI, tls_gateway: Gateway, key: str) -> None:
    with pytest.raises(openai.APITimeoutError):
        client.chat.completions.create(
            model=MODEL,
            messages=[{"role": "user", "content": "[[sleep 300]] Why?"}],
            metadata={"case": "left"},
            timeout=1.0,
        )

    def statuses() -> list[str]:
        jobs = tls_gateway.get("/v1/jobs?metadata.case=left", key).json()["data"]
        return [job["status"] for job in jobs]

    eventually(lambda: statuses() == ["cancelled"], SECONDS, lambda: f"{statuses()}")


def test_a_job_whose_cancellation_races_with_its_answer_ends_once(
    client: OpenAI, tls_gateway: Gateway, key: str
) -> None:
    jobs = [{"prompt": f"[[sleep 0.{n}]] Why?", "job_id": f"race-{n}"} for n in range(9)]
    assert tls_gateway.post("/v1/jobs", key, json=jobs).status_code == 202
    answers = [tls_gateway.post(f"/v1/jobs/{job['job_id']}/cancel", key) for job in jobs]
    assert {answer.status_code for answer in answers} <= {200, 409}

    def read() -> list[dict[str, Any]]:
        return [tls_gateway.get(f"/v1/jobs/{job['job_id']}", key).json() for job in jobs]

    eventually(lambda: all(job["result"] is not None for job in read()), SECONDS, lambda: f"{read()}")
    for job, answer in zip(read(), answers, strict=True):
        assert job["status"] == job["result"]["outcome"]
        assert job["status"] in ("cancelled", "succeeded")
        assert answer.status_code == 200 or job["status"] == "succeeded"


def test_curl_submits_and_reads_a_job(client: OpenAI, tls_gateway: Gateway, key: str, authority: Authority) -> None:
    def curl(*arguments: str) -> dict[str, Any]:
        options = ("--silent", "--fail", "--cacert", str(authority.ca_file), "--header", f"Authorization: Bearer {key}")
        done = subprocess.run(["curl", *options, *arguments], capture_output=True, check=True, timeout=60)
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    job = curl("--json", '{"prompt": "Why?"}', f"{tls_gateway.url}/v1/jobs")
    path = f"{tls_gateway.url}/v1/jobs/{job['id']}"
    eventually(lambda: curl(path)["status"] == "succeeded", SECONDS, lambda: f"{curl(path)}")
    assert curl(path)["result"]["text"] == "Why?"


def test_a_stream_of_events_ends_with_its_gateway_and_continues_at_another(
    client: OpenAI, tls_gateway: Gateway, key: str
) -> None:
    def submitted(name: str) -> str:
        answer = tls_gateway.post("/v1/jobs", key, json={"prompt": "Why?", "job_id": name})
        assert answer.status_code == 202
        return name

    first = submitted("event-1")
    with tls_gateway.get("/v1/events?after=0&types=inference.*", key, stream=True) as stream:
        number = next(number for number, job in events_of(stream) if job == first)

    with running_gateway(tls_gateway.product, "--roles", "door", store=tls_gateway.store, replica="door-2") as other:
        stream = other.get("/v1/events?types=inference.*", key, headers={"last-event-id": str(number)}, stream=True)
        second = submitted("event-2")
        found = events_of(stream)
        assert next(found)[1] == second
        other.role.stop()
        assert list(found) == []
        assert other.role.ended(SECONDS) == 0


def events_of(stream: requests.Response) -> Iterator[tuple[int, str]]:
    """The numbers and jobs of a stream's events, until its regular end."""
    number = 0
    for line in stream.iter_lines():
        name, _, value = line.decode().partition(": ")
        if name == "id":
            number = int(value)
        elif name == "data":
            yield number, json.loads(value)["data"]["id"]
