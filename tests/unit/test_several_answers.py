"""Jobs for several answers and log-probabilities: fields, requests to each engine, answers, results, OpenAI's forms."""

from __future__ import annotations

import json
import math
import tracemalloc
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from schemas.codec import InvalidJob, Origin, read_job, read_result, write_result
from schemas.job import MAX_TOKENS, Job, ResponseFormat
from schemas.openai import CHAT_COMPLETIONS, COMPLETIONS, LOGPROBS_INCLUDED, RESPONSES
from schemas.openai_answers import output_line
from schemas.result import ResultError
from schemas.strict import NotAJob, body_job, ignored_members
from tests.unit.echo_worker import record, working
from workers.engines.base import Completion, EngineError, GenerationRequest, token_logprob
from workers.engines.families import families
from workers.engines.families.quirks import without_fence
from workers.engines.online.gemini import GenerateContentApi
from workers.engines.online.responses import ResponsesApi
from workers.engines.openai_http.answers import TryAgain, outcome
from workers.engines.openai_http.dialect import Dialect, ServerProblem
from workers.engines.openai_http.settings import OpenAISettings
from workers.engines.vllm.sampling import completion_of
from workers.inference.choices import ReadAnswer, notes_on, read_answers
from workers.inference.ground import GroundedRequest

PLACE = Origin("topic-uuid", 3, 7)
ASKED = GenerationRequest("r1", "Is it?", None, 8, 0.5, n=3, top_logprobs=2)
NOISE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)


def job(**fields: Any) -> Job:
    return read_job(json.dumps({"prompt": "a", **fields}).encode(), [], PLACE, 0).job


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"n": 0}, "n: "),
        ({"n": 17}, "n: "),
        ({"n": 2, "temperature": 0}, "n: `n` above 1 needs a `temperature` above 0"),
        ({"top_logprobs": 2}, "top_logprobs: `top_logprobs` goes with `logprobs`"),
        ({"top_logprobs": 2, "logprobs": False}, "`top_logprobs` goes with `logprobs`"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs: "),
        ({"n": 2, "max_tokens": MAX_TOKENS}, "max_tokens: `max_tokens` may be 65536 at most"),
        ({"n": 16, "logprobs": True, "top_logprobs": 20}, "`max_tokens` may be 390 at most"),
        ({"embed": ["a"], "prompt": None, "n": 2}, "`n` goes with `prompt`"),
        ({"embed": ["a"], "prompt": None, "logprobs": True}, "`logprobs` goes with `prompt`"),
    ],
)
def test_a_job_s_answers_and_log_probabilities_have_bounds_that_name_the_field(
    fields: dict[str, Any], problem: str
) -> None:
    with pytest.raises(InvalidJob, match=problem):
        job(**fields)


@given(st.integers(0, 20), st.none() | st.booleans(), st.none() | st.integers(-1, 25), st.integers(1, MAX_TOKENS))
def test_no_job_asks_for_more_log_probabilities_than_the_bound(
    n: int, logprobs: bool | None, top: int | None, most: int
) -> None:
    given_fields = {"n": n, "logprobs": logprobs, "top_logprobs": top, "max_tokens": most}
    try:
        read = job(**{name: value for name, value in given_fields.items() if value is not None})
    except InvalidJob:
        return
    assert read.n * read.max_tokens * (1 + (read.top_logprobs or 0)) <= MAX_TOKENS


@given(st.fixed_dictionaries({}, optional={"n": NOISE, "logprobs": NOISE, "top_logprobs": NOISE}))
def test_any_members_of_a_job_or_a_body_are_taken_or_refused_by_name(members: dict[str, Any]) -> None:
    for read in (partial(job, **members), partial(body_job, CHAT_COMPLETIONS, {"messages": [], **members})):
        try:
            read()
        except (InvalidJob, NotAJob) as refused:
            assert refused.problems


# -- OpenAI's bodies ---------------------------------------------------------------------------------------------------

CHAT = [{"role": "user", "content": "a"}]


@pytest.mark.parametrize(
    ("url", "body", "wanted"),
    [
        (CHAT_COMPLETIONS, {"messages": CHAT, "n": 2, "logprobs": True, "top_logprobs": 3}, (2, True, 3)),
        (CHAT_COMPLETIONS, {"messages": CHAT, "logprobs": False}, (1, False, None)),
        (COMPLETIONS, {"prompt": "a", "n": 2, "logprobs": 0}, (2, True, 0)),
        (COMPLETIONS, {"prompt": "a", "logprobs": 5}, (1, True, 5)),
        (RESPONSES, {"input": "a", "include": [LOGPROBS_INCLUDED]}, (1, True, None)),
        (RESPONSES, {"input": "a", "top_logprobs": 4}, (1, True, 4)),
        (RESPONSES, {"input": "a", "include": ["other"]}, (1, False, None)),
    ],
)
def test_each_url_of_openai_s_names_these_options_differently(url: str, body: dict[str, Any], wanted: object) -> None:
    read = body_job(url, body)
    assert (read.n, read.logprobs, read.top_logprobs) == wanted
    assert ("`include`" in (ignored_members(url, body) or "")) == (body.get("include") == ["other"])


@pytest.mark.parametrize(
    ("url", "body", "field"),
    [
        (COMPLETIONS, {"prompt": "a", "logprobs": 21}, "logprobs"),
        (COMPLETIONS, {"prompt": "a", "logprobs": True}, "logprobs"),
        (CHAT_COMPLETIONS, {"messages": CHAT, "logprobs": 5}, "logprobs"),
        (CHAT_COMPLETIONS, {"messages": CHAT, "n": 17}, "n"),
        (RESPONSES, {"input": "a", "n": 2}, "n"),
        (RESPONSES, {"input": "a", "logprobs": True}, "logprobs"),
    ],
)
def test_a_body_is_refused_by_its_own_member(url: str, body: dict[str, Any], field: str) -> None:
    with pytest.raises(NotAJob) as refused:
        body_job(url, body)
    assert field in [problem.field for problem in refused.value.problems]


# -- the whole way -----------------------------------------------------------------------------------------------------


async def test_a_worker_gives_every_answer_with_the_log_probabilities_of_its_tokens() -> None:
    async with working() as worker:
        result = await worker.result(record(prompt="one two", n=3, temperature=0.5, logprobs=True, top_logprobs=1))
        plain = await worker.result(record(prompt="one two", logprobs=True))
    assert (result.outcome, result.text, result.logprobs) == ("succeeded", "one two", None)
    assert result.usage is not None
    assert result.usage.completion_tokens == 6
    assert [(choice.index, choice.text, choice.finish_reason) for choice in result.choices or ()] == [
        (index, "one two", "stop") for index in range(3)
    ]
    assert read_result(write_result(result)) == result
    chat = output_line(result, CHAT_COMPLETIONS)["response"]["body"]["choices"]
    assert [each["message"]["content"] for each in chat] == ["one two"] * 3
    assert chat[2]["logprobs"]["content"][1] == {
        "token": " two",
        "logprob": 0.0,
        "bytes": [*b" two"],
        "top_logprobs": [{"token": " two", "logprob": 0.0, "bytes": [*b" two"]}],
    }
    completion = output_line(result, COMPLETIONS)["response"]["body"]["choices"]
    assert completion[0]["logprobs"] == {
        "tokens": ["one", " two"],
        "token_logprobs": [0.0, 0.0],
        "top_logprobs": [{"one": 0.0}, {" two": 0.0}],
        "text_offset": [0, 3],
    }
    assert plain.choices is None
    [part] = output_line(plain, RESPONSES)["response"]["body"]["output"][0]["content"]
    assert [each["token"] for each in part["logprobs"]] == ["one", " two"]


def test_a_token_that_is_part_of_a_character_has_no_bytes() -> None:
    half = token_logprob("\N{REPLACEMENT CHARACTER}", -1.0)
    result = read_result(b'{"job_id":"a","outcome":"succeeded","created_at":1}').model_copy(update={"logprobs": [half]})
    [token] = output_line(result, CHAT_COMPLETIONS)["response"]["body"]["choices"][0]["logprobs"]["content"]
    assert (token["bytes"], token["top_logprobs"]) == (None, [])


async def test_an_answer_of_no_use_is_left_out_with_a_note_and_more_than_the_job_wants_are_dropped() -> None:
    asked = GroundedRequest("a", None, None, 0.0, response_format=ResponseFormat(type="json_object"))
    cut = Completion("", "content_filter", 0, 0)
    good = Completion("{}", "stop", 0, 0)
    several = replace(Completion("no", "stop", 1, 9), further=(good, cut, good, good))
    read = await read_answers(several, asked, job(n=4, temperature=1))
    assert [isinstance(each, ReadAnswer) for each in read] == [False, True, False, True]
    first, _, third, _ = read
    assert isinstance(first, ResultError)
    assert isinstance(third, ResultError)
    assert (first.code, third.code) == ("not_json", "unfinished")
    notes = notes_on(read, 6)
    assert [note.partition(":")[0] for note in notes] == [
        "answer 1 of 6 was left out",
        "answer 3 of 6 was left out",
        "n",
    ]


def test_a_family_s_code_fence_is_removed_from_every_answer() -> None:
    fenced = Completion("```json\n{}\n```", "stop", 0, 0)
    request = replace(ASKED, response_format=ResponseFormat(type="json_object"))
    completion = without_fence(replace(fenced, text="{}", further=(fenced,)), request, families()["mistral"])
    assert (completion.text, completion.further[0].text) == ("{}", "{}")


# -- OpenAI's protocol -------------------------------------------------------------------------------------------------


def answered(*choices: object) -> Any:
    body = {"choices": choices, "usage": {"prompt_tokens": 3, "completion_tokens": 7}}
    return outcome(ASKED, "chat/completions", 200, {}, json.dumps(body).encode(), 0.0)


def test_a_server_is_asked_in_the_words_of_its_two_apis_and_refuses_in_the_job_s() -> None:
    dialect = Dialect("m1", OpenAISettings(log_probabilities=False))
    chat, raw = dialect.body(ASKED), dialect.body(replace(ASKED, is_raw=True))
    assert (chat["n"], chat["logprobs"], chat["top_logprobs"]) == (3, True, 2)
    assert (raw["n"], raw["logprobs"], raw.get("top_logprobs")) == (3, 2, None)
    assert not dialect.learns(ASKED, chat, ServerProblem(param="logprobs"))
    assert not dialect.learns(ASKED, chat, ServerProblem(param="top_logprobs"))


def test_a_server_s_choices_are_put_in_order_and_only_the_wanted_alternatives_are_kept() -> None:
    likely = [{"token": token, "logprob": value} for token, value in (("y", -0.1), ("n", -2.0), ("m", -math.inf))]
    content = [{"token": "y", "logprob": -0.1, "top_logprobs": likely}]
    completion = answered(
        {"index": 1, "message": {"content": "n"}, "finish_reason": "length"},
        {"index": 0, "message": {"content": "y"}, "finish_reason": "stop", "logprobs": {"content": content}},
    )
    assert (completion.text, completion.prompt_tokens, completion.completion_tokens) == ("y", 3, 7)
    assert completion.logprobs == (token_logprob("y", -0.1, [("y", -0.1), ("n", -2.0)]),)
    [second] = completion.further
    assert (second.text, second.finish_reason, second.logprobs) == ("n", "length", None)


def test_log_probabilities_of_a_completion_are_paired_with_tokens() -> None:
    logprobs = {"tokens": ["a", "b"], "token_logprobs": [None, -math.inf], "top_logprobs": [None, {"c": -3, "b": -1}]}
    completion = answered({"text": "ab", "finish_reason": "stop", "logprobs": logprobs})
    assert completion.logprobs == (
        token_logprob("a", -9999.0, []),
        token_logprob("b", -9999.0, [("b", -1.0), ("c", -3.0)]),
    )


LOGPROBS = st.fixed_dictionaries(
    {}, optional=dict.fromkeys(("content", "tokens", "token_logprobs", "top_logprobs"), NOISE)
)
TOKENS = st.lists(
    st.fixed_dictionaries(
        {"token": st.text(max_size=3), "logprob": st.none() | st.floats()},
        optional={"top_logprobs": st.lists(st.fixed_dictionaries({"token": st.text(), "logprob": st.floats()}))},
    ),
    max_size=4,
)


@given(st.lists(LOGPROBS | TOKENS.map(lambda tokens: {"content": tokens}) | NOISE, min_size=1, max_size=3))
@example([{"content": [{"token": "\ud800", "logprob": 1.0}]}])
@example([{"tokens": ["a"], "token_logprobs": [float("nan")], "top_logprobs": []}])
def test_any_log_probabilities_of_a_server_become_a_result_or_an_engine_s_error(found: list[object]) -> None:
    try:
        said = answered(*({"message": {"content": "a"}, "finish_reason": "stop", "logprobs": each} for each in found))
    except EngineError:
        return
    assert not isinstance(said, TryAgain)
    for each in (said, *said.further):
        for token in each.logprobs or ():
            assert -9999.0 <= token.logprob <= 0
            assert all(-9999.0 <= top.logprob <= 0 for top in token.top_logprobs or ())
            json.dumps(token.model_dump(), allow_nan=False)


# -- Gemini ------------------------------------------------------------------------------------------------------------


def test_gemini_is_asked_for_candidates_and_each_chosen_token_is_joined_with_its_alternatives() -> None:
    api = GenerateContentApi("gemini-x")
    options = api.body(ASKED, with_temperature=True)["generationConfig"]
    assert {name: options[name] for name in ("candidateCount", "responseLogprobs", "logprobs")} == {
        "candidateCount": 3,
        "responseLogprobs": True,
        "logprobs": 2,
    }
    chosen = [{"token": "y", "logProbability": -0.5}, {"token": "es", "logProbability": -1.5}]
    top = [{"candidates": [{"token": "y", "logProbability": -0.5}, {"token": "n", "logProbability": -2}]}]
    candidates = [
        {"index": 1, "content": {"parts": [{"text": "no"}]}, "finishReason": "STOP"},
        {
            "content": {"parts": [{"text": "yes"}]},
            "finishReason": "STOP",
            "logprobsResult": {"chosenCandidates": chosen, "topCandidates": top},
        },
    ]
    completion = api.completion(json.dumps({"candidates": candidates}).encode(), ASKED)
    assert (completion.text, [each.text for each in completion.further]) == ("yes", ["no"])
    assert completion.logprobs == (
        token_logprob("y", -0.5, [("y", -0.5), ("n", -2.0)]),
        token_logprob("es", -1.5),
    )


@given(NOISE | st.fixed_dictionaries({"chosenCandidates": NOISE, "topCandidates": NOISE}))
def test_any_log_probabilities_of_gemini_are_read_or_refused(found: object) -> None:
    candidate = {"content": {"parts": [{"text": "a"}]}, "finishReason": "STOP", "logprobsResult": found}
    try:
        completion = GenerateContentApi("m").completion(json.dumps({"candidates": [candidate]}).encode(), ASKED)
    except ValueError:
        return
    assert all(-9999.0 <= token.logprob <= 0 for token in completion.logprobs or ())


# -- vLLM's outputs ----------------------------------------------------------------------------------------------------


def vllm_answer(text: str, reason: str, *logprobs: tuple[str, float]) -> SimpleNamespace:
    """One of vLLM's outputs with `FlatLogprobs`: at each place the chosen token and one alternative."""
    flat = SimpleNamespace(
        start_indices=[2 * at for at in range(len(logprobs))],
        end_indices=[2 * at + 2 for at in range(len(logprobs))],
        decoded_tokens=[token for chosen, _ in logprobs for token in (chosen, None)],
        logprobs=[value for _, chosen in logprobs for value in (chosen, -7.0)],
    )
    total = sum(value for _, value in logprobs)
    ids = [*range(len(logprobs))]
    return SimpleNamespace(
        text=text, finish_reason=reason, token_ids=ids, logprobs=flat, cumulative_logprob=total, index=0
    )


def test_vllm_s_answers_have_their_own_log_probabilities_and_one_abort_aborts_all() -> None:
    first, second = vllm_answer("ab", "stop", ("a", -1.0), ("b", -math.inf)), vllm_answer("c", "length", ("c", -2.0))
    output = SimpleNamespace(outputs=[first, second], num_cached_tokens=1)
    completion = completion_of(output, ASKED, [1, 2, 3])
    assert (completion.text, completion.finish_reason, completion.prompt_tokens) == ("ab", "stop", 3)
    assert (completion.completion_tokens, completion.cached_tokens) == (3, 1)
    assert completion.logprobs == (token_logprob("a", -1.0, [("", -7.0)]), token_logprob("b", -9999.0, [("", -7.0)]))
    assert [(each.text, each.finish_reason) for each in completion.further] == [("c", "length")]
    assert completion_of(output, replace(ASKED, top_logprobs=None), [1]).logprobs is None
    second.finish_reason = "abort"
    assert completion_of(output, ASKED, [1]).finish_reason == "abort"


# -- bounds of answers -------------------------------------------------------------------------------------------------


MANY = b",".join([b"{}"] * 100_000)
PLACES = b",".join([b'{"top_logprobs":[' + b",".join([b"{}"] * 20) + b"]}"] * 5_000)
PART = b'{"type":"output_text","text":"","logprobs":[%b]}'
RESPONSE = b'{"status":"completed","output":[{"type":"message","content":[%b]}]}' % PART
TOPS = b",".join([b'{"candidates":[' + b",".join([b"{}"] * 20) + b"]}"] * 5_000)


@pytest.mark.parametrize(
    ("openai", "gemini", "response"),
    [
        (b'{"content":[%b]}' % MANY, b'{"chosenCandidates":[%b]}' % MANY, MANY),
        (b'{"content":[%b]}' % PLACES, b'{"chosenCandidates":[{}],"topCandidates":[%b]}' % TOPS, PLACES),
    ],
)
def test_a_server_s_log_probabilities_take_little_memory(openai: bytes, gemini: bytes, response: bytes) -> None:
    """In an earlier version each token became a pydantic model of 1.1 kB: 8 MiB of answer took 2.3 GB and a minute."""
    asked = replace(ASKED, n=1)
    tracemalloc.start()
    answers = (
        outcome(asked, "chat/completions", 200, {}, b'{"choices":[{"logprobs":%b}]}' % openai, 0.0),
        GenerateContentApi("m").completion(b'{"candidates":[{"logprobsResult":%b}]}' % gemini, asked),
        ResponsesApi("m").completion(RESPONSE % response, asked),
    )
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 40 * 1024 * 1024
    assert [len(each.logprobs or ()) <= asked.max_tokens for each in answers if isinstance(each, Completion)] == [
        True
    ] * 3


def test_choices_and_tokens_beyond_those_of_the_request_are_left_out() -> None:
    asked = replace(ASKED, n=2, max_tokens=3)
    token, candidate = {"token": "a", "logprob": -1}, {"token": "a", "logProbability": -1}
    choices = [{"index": at, "text": "a", "logprobs": {"content": [token] * 4}} for at in range(3)]
    completions = [{"text": "a", "logprobs": {"tokens": ["a"] * 4, "token_logprobs": [-1] * 4}}] * 3
    candidates = [{"index": at, "logprobsResult": {"chosenCandidates": [candidate] * 4}} for at in range(3)]
    answers = (
        outcome(asked, "chat/completions", 200, {}, json.dumps({"choices": choices}).encode(), 0.0),
        outcome(asked, "completions", 200, {}, json.dumps({"choices": completions}).encode(), 0.0),
        GenerateContentApi("m").completion(json.dumps({"candidates": candidates}).encode(), asked),
    )
    for each in answers:
        assert isinstance(each, Completion)
        assert [len(one.logprobs or ()) for one in (each, *each.further)] == [3, 3]
