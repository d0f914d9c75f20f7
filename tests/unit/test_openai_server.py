"""A server that speaks OpenAI's protocol: its counts, the requests that it gets at once, and its answers."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Gauge, Histogram, generate_latest
from yarl import URL

from schemas.job import Job
from telemetry.clock import SystemClock
from tests.any_json import COUNTS, SCALARS, any_json
from tests.any_json import NOISE as ANY_JSON
from tests.asking import request_of
from tests.drawn import drawn
from tests.unit.counted_calls import calls_of
from workers.engines.base import (
    Completion,
    EngineError,
    EngineFailed,
    EngineUnavailable,
    GenerationRequest,
    RequestRejected,
    request_for,
)
from workers.engines.online.anthropic import AnthropicServer, AnthropicSettings
from workers.engines.online.gemini import GeminiServer, GeminiSettings
from workers.engines.online.responses import ResponsesServer, ResponsesSettings
from workers.engines.online.turns import parted
from workers.engines.openai_http.dialect import OpenAIServer
from workers.engines.openai_http.pooling import SERVER_ENDPOINTS
from workers.engines.openai_http.server import ModelServer, TryAgain, new_session
from workers.engines.openai_http.settings import OpenAISettings
from workers.engines.openai_http.slots import FIRST, QUEUE_LOOKS, ServerLoad, Slots, load_in

CLOCK = SystemClock()
ANTHROPIC_API = AnthropicServer(AnthropicSettings(model="m"), CLOCK)
GEMINI_API = GeminiServer(GeminiSettings(model="m"), CLOCK)
RESPONSES_API = ResponsesServer(ResponsesSettings(model="m"), CLOCK)
DIALECT = OpenAIServer(OpenAISettings(model="m1"), CLOCK)
QUESTION = request_of(prompt="a", temperature=None)

# -- server figures --------------------------------------------------------------------------------------------------
PAGE = b"""\
# HELP python_gc_objects_collected_total Objects collected during gc
# TYPE python_gc_objects_collected_total counter
python_gc_objects_collected_total{generation="0"} 11298.0
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="tiny"} 3.0
# HELP vllm:num_requests_waiting Number of requests waiting to be processed.
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{engine="0",model_name="tiny"} 2.0
# HELP vllm:num_requests_waiting_by_reason Number of waiting requests by reason.
# TYPE vllm:num_requests_waiting_by_reason gauge
vllm:num_requests_waiting_by_reason{engine="0",model_name="tiny",reason="capacity"} 2.0
vllm:num_requests_waiting_by_reason{engine="0",model_name="tiny",reason="deferred"} 0.0
"""
RUNNING, WAITING = "vllm:num_requests_running", "vllm:num_requests_waiting"


def test_the_counts_of_a_vllm_server_are_read_once_each() -> None:
    assert load_in(PAGE) == ServerLoad(running=3, waiting=2)


@pytest.mark.parametrize(
    "page",
    [
        b"",
        b"<html>404</html>",
        PAGE.replace(b"num_requests_running", b"num_requests_walking"),
        PAGE.replace(b"} 3.0", b"} NaN"),
        PAGE.replace(b"} 3.0", b"} +Inf"),
        PAGE.replace(b"} 3.0", b"} -1"),
        PAGE.replace(b"} 3.0", b"} 1e300"),
        PAGE.replace(b"} 3.0", b"} three"),
        PAGE.replace(b"} 3.0", b"} " + b"9" * 900),
        PAGE + b"vllm:num_requests_running{",
    ],
    ids=range(10),
)
def test_a_page_without_both_counts_tells_nothing(page: bytes) -> None:
    assert load_in(page) is None


@settings(max_examples=drawn(60))
@given(st.lists(st.tuples(st.text(max_size=40), st.integers(0, 2000), st.integers(0, 2000)), min_size=1, max_size=9))
def test_the_counts_of_all_ranks_and_models_are_added(counts: list[tuple[str, int, int]]) -> None:
    registry = CollectorRegistry()
    labels = ["model_name", "engine"]
    running, waiting = (Gauge(name, "A count.", labels, registry=registry) for name in (RUNNING, WAITING))
    Histogram("vllm:e2e_request_latency_seconds", "Seconds.", labels, registry=registry).labels("tiny", "0").observe(1)
    for rank, (model, runs, waits) in enumerate(counts):
        running.labels(model, str(rank)).set(runs)
        waiting.labels(model, str(rank)).set(waits)
    page = generate_latest(registry)
    assert load_in(page) == ServerLoad(sum(runs for _, runs, _ in counts), sum(waits for _, _, waits in counts))


HOSTILE = [b'\\"', b"\\\\", b"}", b"} 1", b'a="",', b"{", b" ", b"\t", b"9", b"1 1"]


@pytest.mark.parametrize("label", HOSTILE)
def test_a_line_takes_few_steps_whatever_its_labels_hold(label: bytes) -> None:
    lines = [name.encode() + b'{a="' + label * (900 // len(label)) + b'"} 1' for name in (RUNNING, WAITING)]
    page = b"\n".join(lines * 500)
    found: list[ServerLoad | None] = []
    assert calls_of(lambda: found.append(load_in(page))) < 10_000
    assert found == [ServerLoad(500, 500)]


NOISE = st.one_of(
    st.binary(max_size=200),
    st.text(max_size=100).map(lambda text: text.encode("utf-8", "surrogatepass")),
    st.text(alphabet='vllm:num_{}="\\,#. 0123456789eE+-NaInf\t\r\x00', max_size=80).map(str.encode),
)


@settings(max_examples=drawn(300))
@given(st.lists(st.tuples(st.sampled_from([RUNNING, WAITING, ""]), NOISE), max_size=6))
def test_noise_is_no_page_and_raises_nothing(lines: list[tuple[str, bytes]]) -> None:
    load = load_in(b"\n".join(name.encode() + rest for name, rest in lines))
    assert load is None or (load.running >= 0 and load.waiting >= 0)


@settings(max_examples=drawn(200))
@given(st.data())
def test_a_damaged_page_raises_nothing(data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(PAGE)))
    end = data.draw(st.integers(start, min(len(PAGE), start + 40)))
    load = load_in(PAGE[:start] + data.draw(NOISE) + PAGE[end:])
    assert load is None or (load.running >= 0 and load.waiting >= 0)


# -- server limits ---------------------------------------------------------------------------------------------------
MOST = 256


def stepped(slots: Slots, steps: str) -> list[tuple[str, int]]:
    """Take steps such as `a16=32`; return each step with the limit that differs from the one after its `=`.

    `a` is an answer and `r` a refusal while all slots are in use, `f` an answer while a slot is free. `r8` and `t8` are
    a refusal and a timeout with 8 requests in flight; `a16` and `f16` are 16 answers.
    """
    wrong = []
    for step in steps.split():
        event, _, expected = step.partition("=")
        number = int(event[1:] or (1 if event[0] in "af" else slots.number))
        match event[0]:
            case "a" | "f":
                for _ in range(number):
                    slots.taken = slots.number - (event[0] == "f")
                    slots.answered()
            case "r":
                slots.taken = number
                slots.refused(slots.begin())
            case _:
                slots.taken = number
                slots.timed_out(slots.begin())
        if expected and slots.number != int(expected):
            wrong.append((step, slots.number))
    return wrong


class Shown:
    total = 0.0

    def __call__(self, difference: float) -> None:
        self.total += difference


def slots_of(most: int = MOST) -> Slots:
    return Slots(most, Shown())


def told(slots: Slots, *looks: tuple[int, int], in_flight: int = MOST) -> tuple[int, int]:
    """Take the counts (running, waiting) of each look at the server; return the places and the limit."""
    for running, waiting in looks:
        slots.taken = in_flight
        slots.told(ServerLoad(running, waiting))
    return slots.places, slots.number


# -- refusals ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("most", "first", "steps"),
    [
        # A limit begins modestly, and never above its bound.
        (1, 1, ""),
        (8, 8, ""),
        # Each round of answers doubles the limit before the first refusal. With one more a round, a server with 256
        # places would stay mostly idle for 240 rounds.
        (MOST, FIRST, "a16=32 a32=64 a64=128 a128=256 a256=256"),
        # After a refusal, the limit grows by one in a round.
        (MOST, FIRST, "f1 r=8 a7=8 a2=9 a10=10"),
        # An answer while slots are free raises no limit.
        (MOST, FIRST, "f100=16"),
        # A refusal says nothing while the requests of a halved limit are still in flight: the refused requests are
        # sent again while the server is as full as before.
        (MOST, FIRST, "f1 r=8 r16=8 r12=8 r9=8 r8=4"),
        # A timeout counts as a refusal only while the limit is in use. Otherwise a job that hangs a server now and then
        # would leave a quiet worker a limit of one.
        (MOST, FIRST, "t15=16 t16=8"),
        # The limit never falls below one, and recovers.
        (MOST, FIRST, "f1 r=8 r=4 r=2 r=1 r=1 r=1 a1=2"),
        # After an outage, the limit is soon back at half of its former value. With one more a round, a server that
        # answers in 5 s would get 256 requests only after 20 minutes.
        (MOST, FIRST, "a16 a32 a64 a128=256 r=128 r=64 r=32 r=16 r=8 r=4 r=2 r=1 r=1 a127=128 a128=128 a1=129"),
    ],
)
def test_answers_raise_the_limit_and_refusals_lower_it(most: int, first: int, steps: str) -> None:
    slots = slots_of(most)
    assert slots.number == first
    assert stepped(slots, steps) == []


def test_the_refusals_of_one_round_trip_halve_the_limit_once() -> None:
    slots = slots_of()
    sent = [slots.begin() for _ in range(FIRST)]
    slots.taken = FIRST
    for number in sent:
        slots.refused(number)
    assert slots.number == FIRST // 2
    later, slots.taken = slots.begin(), 8
    slots.refused(sent[-1])
    assert slots.number == 8
    slots.refused(later)
    assert slots.number == 4


# -- counts --------------------------------------------------------------------------------------------------------
FULL = [(64, 192)] * QUEUE_LOOKS


@pytest.mark.parametrize(
    ("in_flight", "looks", "places", "number"),
    [
        (1, [(1, 0)], MOST, MOST),  # all places until requests wait
        (MOST, FULL, 64, 72),  # the running requests, and the few that wait at an engine in the worker too
        (MOST, [(16, 240)] * QUEUE_LOOKS, 16, 18),
        (
            MOST,
            [*[(20, 236)] * (QUEUE_LOOKS - 1), (256, 0)],
            MOST,
            MOST,
        ),  # one look at the start of a burst is no queue
        # A real server with four places reported these counts at the end of a batch, and then got only one request at
        # a time for a second.
        (40, [(4, 36), (4, 36), (1, 31)], 4, 5),
        (MOST, [*[(0, 256)] * 9, (0, 0)], MOST, MOST),  # a server without running requests says nothing
        (128, [(256, 256)] * QUEUE_LOOKS, 64, 72),  # a worker takes its part of a server that others use too
        # The server generates 40 of the 80 answers to 20 requests, so 10 requests run.
        (20, [(40, 40)] * QUEUE_LOOKS, 10, 12),
    ],
)
def test_the_counts_of_a_server_make_the_places_and_the_limit(
    in_flight: int, looks: list[tuple[int, int]], places: int, number: int
) -> None:
    assert told(slots_of(), *looks, in_flight=in_flight) == (places, number)


def test_a_limit_that_the_server_runs_grows_up_to_the_setting() -> None:
    slots = slots_of()
    places, number = told(slots, *FULL)
    seen = []
    while number < MOST:
        places, number = told(slots, (number, 0), in_flight=number)
        seen.append(places)
    assert seen[:3] == [72, 80, 88]
    assert told(slots, *[(MOST, 0)] * 3) == (MOST, MOST)


def test_requests_that_the_server_has_not_counted_yet_do_not_raise_the_limit() -> None:
    slots = slots_of()
    told(slots, *FULL)
    assert told(slots, (30, 0), in_flight=72) == (64, 72)


@pytest.mark.parametrize("shares", [[256, 16], [256, 256, 256, 256], [8, 100, 200, 31]])
def test_workers_that_share_a_server_get_equal_parts_and_leave_a_short_queue(shares: list[int]) -> None:
    server = 256
    workers = [slots_of() for _ in shares]
    for slots, share in zip(workers, shares, strict=True):
        told(slots, *[(share, 1)] * QUEUE_LOOKS, in_flight=share)
    for _ in range(2000):
        in_flight = [slots.number for slots in workers]
        running = min(server, sum(in_flight))
        for slots, own in zip(workers, in_flight, strict=True):
            told(slots, (running, sum(in_flight) - running), in_flight=own)
    in_flight = [slots.number for slots in workers]
    assert server <= sum(in_flight) <= server + 16 * len(shares)
    assert max(in_flight) - min(in_flight) <= server // len(shares) // 4


# -- both ----------------------------------------------------------------------------------------------------------
def test_a_gateway_that_refuses_requests_limits_a_server_that_tells_its_counts() -> None:
    slots = slots_of()
    told(slots, (64, 0), in_flight=64)
    assert stepped(slots, "a1 r=128") == []
    assert told(slots, (128, 0), in_flight=128) == (128, 128)


def test_a_server_that_tells_its_counts_no_longer_keeps_its_limit_and_may_raise_it_by_answers() -> None:
    slots = slots_of()
    told(slots, *FULL)
    slots.untold()
    assert (slots.places, slots.number) == (72, 72)
    slots.untold()
    assert stepped(slots, "a8=80") == []
    assert slots.number == 80
    assert told(slots, (80, 0), in_flight=80) == (MOST, MOST)


EVENTS = st.one_of(
    st.tuples(st.just("told"), st.integers(0, 10**9), st.integers(0, 10**9), st.integers(0, 9000)),
    st.tuples(st.just("untold")),
    st.tuples(st.just("answered"), st.integers(1, 300)),
    st.tuples(st.just("refused"), st.integers(1, 9000), st.integers(0, 3)),
)


@settings(max_examples=drawn(200))
@given(st.integers(1, 8192), st.lists(EVENTS, max_size=60))
def test_after_any_counts_and_refusals_the_limit_is_between_one_and_the_setting(
    most: int, events: list[tuple[str, int, int, int]]
) -> None:
    slots = slots_of(most)
    for kind, *numbers in events:
        if kind == "told":
            told(slots, (numbers[0], numbers[1]), in_flight=numbers[2])
        elif kind == "untold":
            slots.untold()
        elif kind == "answered":
            stepped(slots, f"a{numbers[0]}")
        else:
            slots.taken = numbers[0]
            slots.timed_out(slots.begin())
            slots.refused(slots.begin() - numbers[1])
        assert 1 <= slots.places <= slots.number <= most


async def test_the_cookies_of_a_server_are_not_kept() -> None:
    """A server can send a new cookie with each answer, and kept cookies would fill the worker's memory."""
    async with new_session({}, 1) as session:
        for number in range(3):
            session.cookie_jar.update_cookies({f"cookie{number}": "x"}, URL("http://models.example/v1"))
        assert not list(session.cookie_jar)


# -- slots -----------------------------------------------------------------------------------------------------------
async def held(slots: Slots, begun: list[int], number: int, free: asyncio.Event) -> None:
    async with slots.slot():
        begun.append(number)
        await free.wait()


async def settled() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_requests_beyond_the_limit_get_their_turn_in_the_order_of_the_calls() -> None:
    slots, begun, free = slots_of(), list[int](), asyncio.Event()
    tasks = [asyncio.create_task(held(slots, begun, number, free)) for number in range(FIRST + 5)]
    await settled()
    assert (begun, slots.taken) == ([*range(FIRST)], FIRST)
    free.set()
    await asyncio.gather(*tasks)
    assert (begun, slots.taken) == ([*range(FIRST + 5)], 0)


async def test_a_raised_limit_lets_waiting_requests_begin_at_once() -> None:
    slots, begun, free = slots_of(), list[int](), asyncio.Event()
    tasks = [asyncio.create_task(held(slots, begun, number, free)) for number in range(40)]
    await settled()
    slots.told(ServerLoad(FIRST, 0))
    await settled()
    assert (len(begun), slots.taken) == (40, 40)
    free.set()
    await asyncio.gather(*tasks)


async def test_a_lowered_limit_begins_no_request_until_enough_have_ended() -> None:
    slots, begun = slots_of(), list[int]()
    frees = [asyncio.Event() for _ in range(FIRST + 1)]
    tasks = [asyncio.create_task(held(slots, begun, number, free)) for number, free in enumerate(frees)]
    await settled()
    slots.refused(slots.begin())
    for free in frees[: FIRST // 2]:
        free.set()
    await settled()
    assert FIRST not in begun
    for free in frees[FIRST // 2 :]:
        free.set()
    await asyncio.gather(*tasks)
    assert FIRST in begun


async def test_only_answers_while_all_slots_are_taken_raise_the_limit() -> None:
    slots = slots_of()
    for _ in range(100):
        async with slots.slot():
            slots.answered()
    assert slots.places == FIRST


async def test_the_limit_is_shown_from_the_opening_to_the_close() -> None:
    shown = Shown()
    one, other = Slots(256, shown), Slots(4, shown)
    one.open()
    other.open()
    assert shown.total == FIRST + 4
    async with one.slot():
        for _ in range(QUEUE_LOOKS):
            one.told(ServerLoad(0, 0))
        assert shown.total == 256 + 4
    one.close()
    assert shown.total == 4


@settings(max_examples=drawn(60))
@given(st.integers(0, 2**32), st.integers(1, 20))
def test_cancelled_waits_lose_no_slot_and_no_limit_is_exceeded(seed: int, most: int) -> None:
    """A random walk: requests begin, end, are cancelled or refused, in any order."""
    chance = random.Random(seed)

    async def walk() -> None:
        slots, frees, tasks = slots_of(most), list[asyncio.Event](), list[asyncio.Task[None]]()
        for _ in range(200):
            event = chance.choice(["begin", "begin", "end", "cancel", "refused", "rest"])
            if event == "begin":
                before = slots.taken
                frees.append(asyncio.Event())
                tasks.append(asyncio.create_task(held(slots, [], 0, frees[-1])))
                await asyncio.sleep(0)
                assert slots.taken <= max(before, most)
            elif event == "end" and frees:
                chance.choice(frees).set()
            elif event == "cancel" and tasks:
                chance.choice(tasks).cancel()
            elif event == "refused":
                slots.refused(slots.begin())
            else:
                await asyncio.sleep(0)
        for free in frees:
            free.set()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert slots.taken == 0

    asyncio.run(walk())


# -- server numbers --------------------------------------------------------------------------------------------------
LOGPROBS = st.lists(st.none() | st.floats(), max_size=4)
NUMBERS_OR_NOISE = any_json(st.sampled_from(("id", "data")), COUNTS | SCALARS)
WINDOWS = st.fixed_dictionaries(
    {"id": st.just("m"), "name": st.just("m")},
    optional=dict.fromkeys(
        ("max_input_tokens", "inputTokenLimit", "outputTokenLimit", "max_model_len"), NUMBERS_OR_NOISE
    ),
)


def require_usable(completion: Completion) -> None:
    counts = completion.prompt_tokens, completion.completion_tokens, completion.cached_tokens
    assert all(count is None or 0 <= count < 2**33 for count in (*counts, completion.reasoning_tokens))
    assert completion.confidence is None or 0 <= completion.confidence <= 1


def written(answer: Any) -> bytes:
    return json.dumps(answer).encode()


@given(COUNTS, COUNTS, COUNTS, LOGPROBS)
@example(0, 0, 0, [1000.0])
@example(0, 0, 0, [float("inf"), float("-inf"), float("nan")])
@example(-1, 0, 0, [])
@example(0, 10**400, 0, [])
def test_any_numbers_of_an_openai_server_are_usable_or_refused(
    prompt: int, generated: int, thought: int, logprobs: list[float | None]
) -> None:
    usage = {"prompt_tokens": prompt, "completion_tokens": generated}
    usage_details = {"completion_tokens_details": {"reasoning_tokens": thought}}
    choice = {"message": {"content": "a"}, "finish_reason": "stop", "logprobs": {"token_logprobs": logprobs}}
    try:
        require_usable(DIALECT.completion(written({"choices": [choice], "usage": usage | usage_details}), QUESTION))
    except ValueError:
        return


@given(COUNTS, COUNTS, st.none() | st.floats())
@example(0, 10**400, None)
def test_any_numbers_of_an_online_service_are_usable_or_refused(read: int, generated: int, mean: float | None) -> None:
    usage = {"input_tokens": read, "output_tokens": generated, "cache_read_input_tokens": read}
    message = {"type": "message", "stop_reason": "end_turn", "usage": usage, "content": [{"type": "text", "text": "a"}]}
    counts = {"promptTokenCount": read, "candidatesTokenCount": generated, "thoughtsTokenCount": generated}
    candidate = {"content": {"parts": [{"text": "a"}]}, "finishReason": "STOP", "avgLogprobs": mean}
    contents = {"candidates": [candidate], "usageMetadata": counts}
    text = {"type": "output_text", "text": "a", "logprobs": [{"token": "a", "logprob": mean}]}
    details = {"input_tokens_details": {"cached_tokens": read}, "output_tokens_details": {"reasoning_tokens": read}}
    response = {"status": "completed", "output": [{"type": "message", "content": [text]}], "usage": usage | details}
    for api, answer in (
        (ANTHROPIC_API, message),
        (GEMINI_API, contents),
        (RESPONSES_API, response),
    ):
        asked = request_of(prompt="a", temperature=None, top_logprobs=0)
        try:
            completion = api.completion(written(answer), asked)
        except ValueError:
            continue
        require_usable(completion)


@given(
    st.binary(max_size=40)
    | (NUMBERS_OR_NOISE | WINDOWS | st.fixed_dictionaries({"data": st.lists(WINDOWS)})).map(written)
)
@example(written({"data": [{"id": "m", "max_model_len": -1}]}))
def test_any_description_of_a_model_has_a_window_that_holds_a_token_or_none_or_is_refused(body: bytes) -> None:
    reads: tuple[Callable[[bytes], int | None], ...] = (
        ANTHROPIC_API.window_in,
        GEMINI_API.window_in,
        RESPONSES_API.window_in,
        OpenAIServer(OpenAISettings(model="m"), CLOCK).window_in,
    )
    for read in reads:
        try:
            window = read(body)
        except (ValueError, LookupError):  # the model may be missing from the list
            continue
        assert window is None or window >= 1


@pytest.mark.parametrize(
    ("server", "usage"),
    [
        (OpenAIServer(OpenAISettings(model="m"), CLOCK), {"usage": {"completion_tokens": 7}}),
        (RESPONSES_API, {"usage": {"output_tokens": 7}}),
        (ANTHROPIC_API, {"usage": {"output_tokens": 7}}),
        (GEMINI_API, {"usageMetadata": {"candidatesTokenCount": 5, "thoughtsTokenCount": 2}}),
    ],
    ids=["openai", "responses", "anthropic", "gemini"],
)
def test_the_tokens_of_an_answer_without_its_form_were_generated_for_nothing(
    server: ModelServer, usage: dict[str, Any]
) -> None:
    asked = request_of(prompt="a", temperature=None)
    with pytest.raises(EngineFailed) as failed:
        server.outcome(asked, "path", 200, {}, written(usage | {"choices": 1, "output": 1, "candidates": 1}))
    assert failed.value.wasted_tokens == 7


# -- pooling answers -------------------------------------------------------------------------------------------------
JOBS: dict[str, dict[str, Any]] = {
    "embed": {"embed": ["one", "two"], "dimensions": 3},
    "rerank": {"rerank": {"query": "number", "documents": ["one", "two"]}},
    "score": {"score": {"queries": ["number"], "documents": ["one", "two"]}},
    "classify": {"classify": ["one", "two"]},
}
NUMBERS = st.floats() | st.lists(st.floats(), max_size=3) | ANY_JSON
ROWS = st.fixed_dictionaries(
    {"index": st.integers(-1, 2)},
    optional={
        **dict.fromkeys(("embedding", "relevance_score", "score", "probs"), NUMBERS),
        "label": ANY_JSON,
    },
)
ANSWERS = ANY_JSON | st.fixed_dictionaries(
    {},
    optional={
        "data": st.lists(ROWS, max_size=3),
        "results": st.lists(ROWS, max_size=3),
        "usage": ANY_JSON,
    },
)


def asked(field: str) -> GenerationRequest:
    return request_for(Job.model_validate(JOBS[field]), "r1")


def answered(field: str, document: object, status: int = 200) -> Any:
    return DIALECT.outcome(asked(field), "path", status, {}, json.dumps(document).encode())


def vector(index: int, *numbers: float) -> dict[str, Any]:
    return {"object": "embedding", "index": index, "embedding": numbers}


def test_every_kind_has_an_endpoint() -> None:
    assert [*SERVER_ENDPOINTS] == [*JOBS]


def test_the_server_is_asked_for_numbers_and_its_embeddings_are_put_into_the_texts_order() -> None:
    dialect = OpenAIServer(OpenAISettings(model="e5"), CLOCK)
    assert (dialect.paths(asked("embed"))[0], dialect.body(asked("embed"))) == (
        "embeddings",
        {"model": "e5", "input": ["one", "two"], "encoding_format": "float", "dimensions": 3},
    )
    completion = answered("embed", {"data": [vector(1, 0.5), vector(0, -1.0)], "usage": {"prompt_tokens": 7}})
    assert completion.pooled.rows == ((-1.0,), (0.5,))
    assert (completion.prompt_tokens, completion.completion_tokens, completion.finish_reason) == (7, 0, "stop")


@pytest.mark.parametrize("data", [[vector(0, 1.0)], [vector(0, 1.0), vector(0, 1.0)], [vector(0, 1.0), vector(2, 1.0)]])
def test_an_answer_without_one_embedding_for_each_text_is_a_failure(data: object) -> None:
    with pytest.raises(EngineFailed):
        answered("embed", {"data": data})


@given(st.sampled_from([*JOBS]), ANSWERS, st.sampled_from([200, 200, 400, 404]))
def test_any_answer_is_a_row_for_each_text_or_an_engine_s_error(field: str, document: object, status: int) -> None:
    try:
        found = answered(field, document, status)
    except EngineError:
        return
    assert isinstance(found, TryAgain) or (len(found.pooled.rows) == 2 and all(found.pooled.rows))


@pytest.mark.parametrize("field", JOBS)
def test_a_server_or_an_engine_without_the_kind_refuses_its_field(field: str) -> None:
    with pytest.raises(RequestRejected, match=rf"{field}: the server has no /\w+, so its model gives no"):
        answered(field, {"detail": "Not Found"}, 404)
    with pytest.raises(RequestRejected, match=f"{field}: this engine gives no"):
        parted(asked(field))
    with pytest.raises(RequestRejected, match=f"{field}: too long"):
        answered(field, {"error": {"message": "too long", "param": "input"}}, 400)


@pytest.mark.parametrize("api", ["chat", "completions"])
def test_a_question_is_refused_by_a_server_that_only_embeds_or_ranks(api: str) -> None:
    """Without the refusal, the job would wait until its deadline, and many such jobs would fill the worker's window."""
    dialect = OpenAIServer(OpenAISettings.model_validate({"model": "bge", "api": api}), CLOCK)
    question = request_of(prompt="Is it?", temperature=None)

    def ask() -> object:
        return dialect.outcome(question, dialect.paths(question)[0], 404, {}, b"")

    with pytest.raises(EngineUnavailable):
        ask()
    dialect.found.add("../rerank")
    with pytest.raises(RequestRejected, match=r"prompt: the server has no /[a-z/]+, so its model answers no question"):
        ask()
    dialect.found.add(dialect.paths(question)[0])
    with pytest.raises(EngineUnavailable):
        ask()
