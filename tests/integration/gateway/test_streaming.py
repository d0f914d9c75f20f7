"""Answers that come piece by piece: OpenAI's Python SDK, a gateway, a worker, Kafka and Redis, all of them real."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai import OpenAI, Stream
from openai.types.chat import ChatCompletionChunk
from redis import Redis

from schemas.topics import DELTAS
from telemetry.peers import ASK_SECONDS
from tests.fleet_here import FleetHere
from tests.integration.gateway.gateway_process import Gateway, running_gateway
from tests.product import Product, Role, eventually
from tests.redis_server import RedisServer
from workers.system.deltas import channel_of

MODEL = "small"
SECONDS = 60.0
TENANT = "streaming"
SOME_WORDS = "[[sleep 5]] two three four five six seven eight nine ten"
ENDLESS = f"[[sleep 3000]]{' word' * 3000}"
"""The answer has its first word after a second, and its last after 50 minutes."""


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(tmp_path_factory.mktemp("redis")) as started:
        yield started


@pytest.fixture(scope="module")
def worker(module_fleet_here: FleetHere, redis: RedisServer) -> Role:
    channel = {"POSTBACK_DELTAS__REDIS_URL": redis.url}
    return module_fleet_here.worker("w", "--engine", "echo", "--model", MODEL, **channel)


@pytest.fixture(scope="module")
def gateway(module_fleet_here: FleetHere, redis: RedisServer, worker: Role) -> Iterator[Gateway]:
    with running_gateway(module_fleet_here, POSTBACK_DELTAS__REDIS_URL=redis.url) as started:
        yield started


@pytest.fixture(scope="module")
def client(gateway: Gateway) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{gateway.url}/v1", api_key=gateway.key(TENANT), max_retries=0) as made:
        yield made


def chat(client: OpenAI, question: str, **more: Any) -> Stream[ChatCompletionChunk]:
    messages: Any = [{"role": "user", "content": question}]
    made: Stream[ChatCompletionChunk] = client.chat.completions.create(
        model=MODEL, messages=messages, stream=True, **more
    )
    return made


def pieces(chunks: Iterator[ChatCompletionChunk]) -> Iterator[str]:
    """Yield the texts of a stream's chunks, without those that bring none."""
    for chunk in chunks:
        for choice in chunk.choices:
            if choice.delta.content:
                yield choice.delta.content


def first_piece(stream: Stream[ChatCompletionChunk]) -> tuple[str, str]:
    """Return the id of the stream's job, and its first text."""
    for chunk in stream:
        if chunk.choices and chunk.choices[0].delta.content:
            return chunk.id.removeprefix("chatcmpl-"), chunk.choices[0].delta.content
    raise AssertionError("the stream has no text")


def marked(gateway: Gateway, job_id: str) -> bool:
    """Return whether the job's record says that a client waits for deltas."""
    [headers] = [
        dict(record.headers() or ())
        for record in gateway.product.read(gateway.product.kafka.topics.requests())
        if json.loads(record.value() or b"{}").get("job_id") == job_id
    ]
    return DELTAS in headers


def test_the_first_words_come_before_the_result_and_a_client_that_leaves_ends_its_job(
    gateway: Gateway, client: OpenAI
) -> None:
    def outcome(job_id: str) -> str | None:
        return next((found["outcome"] for found in gateway.product.results() if found["job_id"] == job_id), None)

    with chat(client, ENDLESS) as stream:
        job_id, first = first_piece(stream)
        more = next(pieces(stream))
        assert ENDLESS.startswith(first + more)
        assert (outcome(job_id), marked(gateway, job_id)) == (None, True)
    eventually(lambda: outcome(job_id) == "cancelled", SECONDS, lambda: f"{outcome(job_id)}")


def test_a_chat_and_a_response_grow_in_the_events_of_the_sdk(client: OpenAI) -> None:
    chunks = list(chat(client, SOME_WORDS, stream_options={"include_usage": True}))
    said = list(pieces(iter(chunks)))
    assert ("".join(said), len(said) > 1) == (SOME_WORDS, True)
    assert {(chunk.id, chunk.created, chunk.model) for chunk in chunks} == {
        (chunks[0].id, chunks[0].created, MODEL),
    }
    usage = chunks[-1].usage
    assert usage is not None
    assert (usage.completion_tokens, chunks[-2].choices[0].finish_reason) == (len(SOME_WORDS.split()), "stop")
    with client.responses.stream(model=MODEL, input=SOME_WORDS) as stream:
        events = list(stream)
        final = stream.get_final_response()
    assert (final.output_text, final.status) == (SOME_WORDS, "completed")
    kinds = [event.type for event in events]
    assert [event.sequence_number for event in events] == [*range(len(events))]
    assert kinds.count("response.output_text.delta") > 1
    assert [kind for kind in kinds if kind != "response.output_text.delta"] == [
        f"response.{kind}"
        for kind in (
            *("created", "in_progress", "output_item.added", "content_part.added"),
            *("output_text.done", "content_part.done", "output_item.done", "completed"),
        )
    ]


@pytest.mark.parametrize(
    "checked",
    [
        {"response_format": {"type": "json_object"}},
        {"logprobs": True},
        {"n": 2},
        {"extra_body": {"sources": {"documents": [{"id": "a", "text": "The bridge opened in 1932."}]}}},
    ],
    ids=["JSON", "log-probabilities", "several", "sources"],
)
def test_an_answer_that_is_checked_or_has_parts_comes_as_a_whole(
    gateway: Gateway, client: OpenAI, checked: dict[str, Any]
) -> None:
    chunks = list(chat(client, "[[sleep 1]] When did the bridge open?", **checked))
    said = [choice.index for chunk in chunks for choice in chunk.choices if choice.delta.content]
    assert (len(said), len(set(said))) == (checked.get("n", 1), len(said))
    assert not marked(gateway, chunks[0].id.removeprefix("chatcmpl-"))


def test_a_second_attempt_of_the_job_continues_the_text(gateway: Gateway, client: OpenAI) -> None:
    with chat(client, SOME_WORDS) as stream:
        _, first = first_piece(stream)
        gateway.product.submit([{"job_id": f"crash-{first}".strip("[ "), "prompt": "[[crash-engine]]"}])
        assert first + "".join(pieces(stream)) == SOME_WORDS


def test_an_attempt_with_another_text_ends_the_stream_with_an_error(
    gateway: Gateway, client: OpenAI, redis: RedisServer
) -> None:
    with chat(client, SOME_WORDS) as stream, Redis.from_url(redis.url) as other:
        job_id, first = first_piece(stream)
        said = json.dumps(["other", 0, f"{first} and another word"])
        channel = channel_of(gateway.product.kafka.topic_prefix, TENANT, job_id)
        assert other.publish(channel, said) == 1
        with pytest.raises(openai.APIError) as failed:
            list(stream)
    assert failed.value.code == "answer_changed"


def test_without_redis_the_answer_is_whole_and_with_it_the_words_come_again(client: OpenAI, redis: RedisServer) -> None:
    with chat(client, SOME_WORDS) as stream:
        _, first = first_piece(stream)
        redis.kill()
        assert first + "".join(pieces(stream)) == SOME_WORDS
    assert list(pieces(chat(client, "[[sleep 1]] Why?"))) == ["[[sleep 1]] Why?"]
    redis.start()

    def grows() -> bool:
        return len(list(pieces(chat(client, "[[sleep 2]] one two three")))) > 1

    eventually(grows, SECONDS, "no answer grows")


def test_the_silence_of_a_redis_for_deltas_alone_is_a_series_of_worker_and_gateway(
    worker: Role, gateway: Gateway, redis: RedisServer
) -> None:
    """PostbackRedisAway asks for this series."""

    def silences() -> list[float]:
        return [role.metrics()["postback_peer_silent_seconds{redis}"] for role in (worker, gateway.role)]

    assert max(silences()) < SECONDS
    redis.kill()
    eventually(lambda: min(silences()) > 2 * ASK_SECONDS, SECONDS, lambda: f"{silences()}")
    redis.start()
    eventually(lambda: max(silences()) <= ASK_SECONDS, SECONDS, lambda: f"{silences()}")


def test_a_killed_workers_answer_goes_on_at_another_worker(product: Product, redis: RedisServer) -> None:
    channel = {"POSTBACK_DELTAS__REDIS_URL": redis.url}
    first = product.worker("first", "--engine", "echo", "--model", MODEL, **channel)
    with running_gateway(product, **channel) as gateway:
        eventually(lambda: first.ready()[0], SECONDS, "the worker is not ready")
        api = OpenAI(base_url=f"{gateway.url}/v1", api_key=gateway.key(TENANT), max_retries=0)
        with api as client, chat(client, SOME_WORDS) as stream:
            _, said = first_piece(stream)
            first.kill()
            product.worker("second", "--engine", "echo", "--model", MODEL, **channel)
            assert said + "".join(pieces(stream)) == SOME_WORDS
