"""The HTTP engine's start, its requests, and its outcome for each kind of answer."""

from __future__ import annotations

import asyncio
import gzip
import json
import math
from dataclasses import dataclass, field
from typing import Any

import pytest
from aiohttp import web

from schemas.job import Message, ResponseFormat
from telemetry.clock import SystemClock
from telemetry.metrics import Metrics
from tests.integration.answering_worker import AnsweringWorker
from tests.integration.openai_http.servers import (
    KEY,
    Respond,
    Server,
    answers,
    engine_at,
    engine_for,
    lists,
    never,
    openai_server,
    problem,
    says,
)
from tests.integration.raw_server import FACT, HTML, page, saying, speaking
from tests.integration.test_engine_contract import QUESTION, request
from workers.engines.base import (
    Completion,
    EngineError,
    EngineFailed,
    EngineRefused,
    EngineUnavailable,
    RequestRejected,
)
from workers.engines.openai_http import create
from workers.engines.openai_http.server import MAX_REASON_CHARACTERS
from workers.engines.openai_http.settings import OpenAISettings
from workers.enrichment.choosing.rank import estimated_tokens
from workers.inference import engine_watch
from workers.inference.ground import CUT_NOTE

NO_MODEL = answers(404, {"error": {"message": "The model `m1` does not exist.", "param": "model", "code": 404}})
NO_PATH = answers(404, {"detail": "Not Found"})
REFUSED_KEY = answers(401, problem(f"{KEY} is unknown"))


async def generated(server: Server, settings: dict[str, Any] | None = None, **asked: Any) -> Completion:
    """The completion that an engine with these settings returns for one request."""
    async with engine_at(server, **(settings or {})) as engine:
        return await engine.complete(request(**asked))


# -- the start ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("models", "first", "settings", "why"),
    [
        (REFUSED_KEY, says("yes"), {}, r"127\.0\.0\.1:\d+ refuses .* \(401\): set \S*OPENAI__API_KEY to a key that"),
        (REFUSED_KEY, says("yes"), {"api_key": None}, r"refuses .* \(401\): set POSTBACK_ENGINE__OPENAI__API_KEY$"),
        (NO_PATH, REFUSED_KEY, {}, r"POSTBACK_ENGINE__OPENAI__API_KEY \(401\)"),
        (answers(403, problem(f"{KEY} may not")), answers(403, {}), {}, r"POSTBACK_ENGINE__OPENAI__API_KEY \(403\)"),
        (
            lists({"id": "m2"}, {"id": "polite", "parent": "m2"}),
            NO_MODEL,
            {},
            r"does not list the model m1, but m2, polite, and .*OPENAI__MODEL",
        ),
    ],
)
async def test_a_refused_key_or_an_absent_model_ends_the_start_with_the_setting_to_mend(
    models: Respond, first: Respond, settings: dict[str, Any], why: str
) -> None:
    async with engine_for(Server(first), Server(models), **settings) as engine:
        with pytest.raises(EngineRefused, match=why) as refused:
            await engine.start()
    assert KEY not in str(refused.value)


async def test_an_address_without_the_path_of_the_api_ends_the_start_and_names_the_setting() -> None:
    server = Server(says("yes"))
    async with openai_server(server) as url:
        lost = create(OpenAISettings(base_url=url.removesuffix("/v1"), model="m1"), Metrics(), SystemClock())
        with pytest.raises(EngineRefused, match=r"answered 404 to models, .* POSTBACK_ENGINE__OPENAI__BASE_URL"):
            await lost.start()
    assert server.bodies == []


@pytest.mark.parametrize(
    ("models", "first_requests"),
    [
        (NO_PATH, 2),
        (lists({"id": "m1:latest"}), 2),
        (lists({"id": "/models/m.gguf"}), 2),
        (lists({"id": "m0"}, {"id": "m1", "parent": "m0"}), 0),
        # OpenAI answers 403 to a key that may generate and not list models.
        (answers(403, problem("Missing scopes: api.model.read")), 2),
    ],
)
async def test_a_server_that_answers_for_an_unlisted_name_is_accepted(models: Respond, first_requests: int) -> None:
    server = Server(answers(503, problem("loading")), says("yes"))
    async with engine_at(server, Server(models)) as engine:
        assert len(server.bodies) == first_requests
        assert (await engine.complete(request())).text == "yes"
    assert {body["model"] for body in server.bodies} == {"m1"}


SIX_HUNDRED = lists({"id": "m1", "max_model_len": 600})


@pytest.mark.parametrize(
    ("models", "settings", "window"),
    [
        ([lists({"id": "m2", "max_model_len": 100}, {"id": "m1", "max_model_len": 600})], {}, 600),
        ([lists({"id": "m0", "max_model_len": 600}, {"id": "m1", "max_model_len": None, "parent": "m0"})], {}, 600),
        ([SIX_HUNDRED], {"context_tokens": 500}, 500),
        ([SIX_HUNDRED], {"context_tokens": 8000}, 600),
        ([lists({"id": "m1"})], {"context_tokens": 500}, 500),
        ([lists({"id": "m1"})], {}, None),
        ([lists({"id": "m2", "max_model_len": 600})], {}, None),
        ([lists({"id": "m1", "max_model_len": -1})], {}, None),
        ([lists({"id": "m1", "max_model_len": 0})], {"context_tokens": 500}, 500),
        ([answers(200, {"data": "none"})], {"context_tokens": 500}, 500),
        ([answers(404, problem("no such path"))], {"context_tokens": 500}, 500),
        ([lists({"id": "m1", "max_model_len": 600, "more": "x" * 10_000})], {}, None),
        # A server that is coming up is waited for.
        ([answers(503, problem("loading")), answers(502, {}), SIX_HUNDRED], {}, 600),
    ],
)
async def test_the_window_is_the_servers_for_its_model_or_the_settings(
    models: list[Respond], settings: dict[str, Any], window: int | None
) -> None:
    async with engine_at(Server(says("yes")), Server(*models), **settings) as engine:
        assert engine.context_tokens == window


@pytest.mark.parametrize(
    ("lacking", "settings_to_mend"),
    [
        (REFUSED_KEY, [" s: the server refuses POSTBACK_ENGINE__OPENAI__API_KEY (401)"]),
        (NO_MODEL, ["POSTBACK_ENGINE__OPENAI__BASE_URL", "POSTBACK_ENGINE__OPENAI__MODEL"]),
        (NO_PATH, ["POSTBACK_ENGINE__OPENAI__BASE_URL", "POSTBACK_ENGINE__OPENAI__MODEL"]),
        (
            answers(400, problem("Invalid model name", "model")),
            ["POSTBACK_ENGINE__OPENAI__BASE_URL", "POSTBACK_ENGINE__OPENAI__MODEL"],
        ),
    ],
    ids=["key", "model", "path", "400"],
)
async def test_no_job_is_rejected_for_a_setting_that_only_the_operator_can_mend(
    lacking: Respond,
    settings_to_mend: list[str],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """In an earlier version, each job met the refusal and was `rejected`: one wrong setting cost a whole backlog."""
    monkeypatch.setattr(engine_watch, "AWAY_SECONDS", 0.05)
    server = Server(lacking)
    async with engine_at(server) as engine, AnsweringWorker(engine=engine) as worker, asyncio.timeout(30):
        answering = asyncio.create_task(worker.answer("Which bridge?", sources=None))
        while not worker.engine_watch.reasons():
            await asyncio.sleep(0.01)
        [reason] = worker.engine_watch.reasons()
        assert all(setting in reason for setting in settings_to_mend)
        server.responses = [says("That one.")]
        assert (await answering).text == "That one."
        assert worker.engine_watch.reasons() == []
    assert len(server.bodies) > 2
    assert all(setting.removeprefix(" s: ") in caplog.text for setting in settings_to_mend)
    assert KEY not in caplog.text


@pytest.fixture(autouse=True)
def _short_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.engines.openai_http.server.MAX_RESPONSE_BYTES", 4096)


# -- requests ----------------------------------------------------------------------------------------------------------

ASKED = {"messages": [{"role": "user", "content": QUESTION}], "max_tokens": 8, "temperature": 0.0}
UNLIKELY = {"log_probabilities": False}
CHAT = (Message(role="system", content="Be brief."), Message(role="user", content="Is it?"))
FORM = ResponseFormat.model_validate({"type": "json_schema", "json_schema": {"schema": {"type": "object"}}})
EVERYTHING = {"seed": 7, "priority": 4, "response_format": FORM, "stop": ("\n",), "top_p": 0.9, "min_p": 0.1}


@pytest.mark.parametrize(
    ("settings", "asked", "body"),
    [
        (
            {},
            {"prompt": None, "messages": CHAT, **EVERYTHING},
            {
                "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Is it?"}],
                "max_tokens": 8,
                "temperature": 0.0,
                "seed": 7,
                "top_p": 0.9,
                "min_p": 0.1,
                "stop": ["\n"],
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "answer", "schema": {"type": "object"}, "strict": True},
                },
                "logprobs": True,
            },
        ),
        (UNLIKELY, {"priority": 4}, ASKED),
        (
            UNLIKELY,
            {"temperature": None, "temperature_is_default": True},
            {name: ASKED[name] for name in ("messages", "max_tokens")},
        ),
        (UNLIKELY, {"prompt": "It is", "is_raw": True}, {"prompt": "It is", "max_tokens": 8, "temperature": 0.0}),
        (
            {"api": "completions", **UNLIKELY},
            {"prompt": "It is"},
            {"prompt": "It is", "max_tokens": 8, "temperature": 0.0},
        ),
    ],
    ids=["all", "unasked", "sampling of the server", "raw", "completions"],
)
async def test_a_request_has_the_job_s_parameters_and_none_that_not_every_server_understands(
    settings: dict[str, Any], asked: dict[str, Any], body: dict[str, Any]
) -> None:
    said = {"message": {"role": "assistant", "content": "yes"}, "text": "yes", "finish_reason": "length"}
    server = Server(answers(200, {"choices": [said]}))
    completion = await generated(server, settings, **asked)
    assert server.bodies == [{"model": "m1", **body}]
    assert server.headers[0]["Authorization"] == f"Bearer {KEY}"
    assert (completion.text, completion.finish_reason, completion.confidence) == ("yes", "length", None)


@pytest.mark.parametrize(
    ("asked", "sent"),
    [({"sources": None}, None), ({}, 0), ({"temperature": 0.7}, 0.7), ({"sources": None, "temperature": 0}, 0)],
)
async def test_the_temperature_is_the_job_s_or_the_profile_s_or_the_model_s_own(
    asked: dict[str, Any], sent: float | None
) -> None:
    server = Server(says("yes"))
    async with engine_at(server) as engine, AnsweringWorker(engine=engine) as worker:
        assert (await worker.answer("Which bridge?", **asked)).outcome == "succeeded"
    assert server.bodies[0].get("temperature") == sent


async def test_a_proxy_of_the_environment_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert (await generated(Server(says("yes")))).text == "yes"


# -- answers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "parts"), [("deepseek-r1", ("Yes.", "Since.")), (None, ("Since.</think>Yes.", None))]
)
async def test_the_family_of_the_settings_separates_the_reasoning_of_a_model_with_another_name(
    family: str | None, parts: tuple[str, str | None]
) -> None:
    completion = await generated(Server(says("Since.</think>Yes.")), {"family": family})
    assert (completion.text, completion.reasoning) == parts


@pytest.mark.parametrize(
    ("message", "reason", "refusal"),
    [
        ({"content": None, "refusal": "I cannot help."}, "stop", "I cannot help."),
        ({"content": "", "refusal": "I cannot help."}, "content_filter", "I cannot help."),
        ({"content": "Not that."}, "refusal", "Not that."),
        ({"content": "Yes.", "refusal": None}, "stop", None),
    ],
)
async def test_a_refusal_of_the_model_is_a_whole_answer_without_a_text(
    message: dict[str, Any], reason: str, refusal: str | None
) -> None:
    """In an earlier version, a refusal was an empty success, or a failure through its finish reason."""
    server = Server(answers(200, {"choices": [{"message": message, "finish_reason": reason}]}))
    async with engine_at(server) as engine, AnsweringWorker(engine=engine) as worker:
        completion = await engine.complete(request())
        result = await worker.answer("Which bridge?", sources=None, response_format={"type": "json_object"})
    assert (completion.refusal, completion.finish_reason) == (refusal, "stop")
    assert completion.text == ("" if refusal else "Yes.")
    assert result.outcome == ("succeeded" if refusal else "failed")


async def test_the_confidence_is_the_geometric_mean_of_the_tokens_probabilities() -> None:
    tokens = [{"token": "y", "logprob": math.log(0.5)}, {"token": "es", "logprob": math.log(0.125)}]
    completion = await generated(Server(says("yes", logprobs={"content": tokens})))
    assert completion.confidence == pytest.approx(0.25)


async def hang_up(asked: web.Request) -> web.StreamResponse:
    assert asked.transport is not None
    asked.transport.abort()
    return web.Response()


@pytest.mark.parametrize(
    "failing",
    [
        *(answers(status, problem("later")) for status in (408, 429, 502, 503)),
        *(
            answers(429, problem("later"), Retry_After=after)
            for after in ("0", "Wed, 21 Oct 2015 07:28:00 GMT", "nonsense")
        ),
        hang_up,
    ],
)
async def test_a_failure_that_may_pass_is_tried_again(failing: Respond) -> None:
    server = Server(failing, says("yes"))
    assert (await generated(server)).text == "yes"
    assert len(server.bodies) == 2


PACKED = gzip.compress(json.dumps({"choices": [{"text": " " * 1_000_000}]}).encode())


async def bomb(asked: web.Request) -> web.StreamResponse:
    assert len(PACKED) < 4096
    return web.Response(body=PACKED, headers={"Content-Encoding": "gzip", "Content-Type": "application/json"})


def too_large(param: str) -> Respond:
    """OpenAI's refusal of a number of tokens, which it may name by its newer name."""
    return answers(400, {"error": {"message": "It is too large", "param": param, "code": "invalid_value"}})


@dataclass
class Refusal:
    """An answer of the server, the engine's error, and the number of requests that the engine made for it."""

    how: Respond
    error: type[EngineError]
    why: str
    requests: int = 1
    settings: dict[str, Any] = field(default_factory=dict)
    asked: dict[str, Any] = field(default_factory=dict)


OTHER_FORMS: list[Any] = [["not", "an", "answer"], {"choices": []}, {"choices": [{"message": 5}]}]
REFUSALS = [
    *(
        Refusal(answers(status, problem("too hot", "temperature")), RequestRejected, "^temperature: too hot$")
        for status in (400, 413, 422)
    ),
    Refusal(too_large("max_tokens"), RequestRejected, "^max_tokens: It is too large$"),
    Refusal(too_large("max_completion_tokens"), RequestRejected, "^max_tokens: It is too large$"),
    Refusal(answers(400, problem("no " * 1_000)), RequestRejected, rf"^prompt: .{{,{MAX_REASON_CHARACTERS}}}$"),
    Refusal(bomb, RequestRejected, "larger than this engine reads"),
    Refusal(answers(401, problem("who are you?")), EngineUnavailable, "401"),
    Refusal(answers(503, problem("later")), EngineUnavailable, "503", 3, {"attempts": 3}),
    # The server asks for a wait beyond the job's deadline.
    *(
        Refusal(answers(429, problem("later"), Retry_After=after), EngineUnavailable, "429")
        for after in ("86400", "Wed, 21 Oct 2095 07:28:00 GMT")
    ),
    # A failure that may be the request's own is not repeated here: the job's tries are bounded.
    Refusal(answers(500, problem("later")), EngineFailed, "500"),
    # Some servers name the parameter by a path, or only in their text.
    *(
        Refusal(answers(400, problem(text, param)), RequestRejected, f"^{named}: ")
        for text, param, named in (
            ("bad", "tools[0].function.parameters", "tools"),
            ("bad", "messages.0.content", "prompt"),
            ("max_tokens must be at least 1, got 0.", None, "max_tokens"),
            ("[{'type': 'less_than_equal', 'loc': ('body', 'top_p')}]", None, "top_p"),
            ("your text says 'maybe' too often", None, "prompt"),
        )
    ),
    # A redirect is never followed.
    Refusal(answers(307, {}, Location="/v1/completions"), EngineUnavailable, "307"),
    *(Refusal(answers(200, body), EngineFailed, "answer") for body in OTHER_FORMS),
    Refusal(never, EngineFailed, r"within 0\.2 s", settings={"request_timeout_seconds": 0.2}),
    Refusal(answers(404, {}), RequestRejected, "raw: the server has no /completions", asked={"is_raw": True}),
    Refusal(
        answers(404, problem("none", "model")), EngineUnavailable, "must name one of its models", asked={"is_raw": True}
    ),
    Refusal(
        answers(404, {}),
        EngineUnavailable,
        "answered 404 to completions",
        settings={"api": "completions"},
        asked={"is_raw": True},
    ),
]


@pytest.mark.parametrize("refusal", REFUSALS, ids=lambda refusal: f"{refusal.error.__name__}-{refusal.why[:20]}")
async def test_each_refusal_of_a_server_has_its_error_in_the_server_s_words(refusal: Refusal) -> None:
    server = Server(refusal.how)
    with pytest.raises(refusal.error, match=refusal.why) as refused:
        await generated(server, refusal.settings, **refusal.asked)
    assert KEY not in str(refused.value)
    assert len(server.bodies) == refusal.requests


# -- parameters that a model refuses -----------------------------------------------------------------------------------

REASONING = {
    "max_tokens": ("unsupported_parameter", "Unsupported parameter: 'max_tokens' is not supported with this model."),
    "logprobs": ("unsupported_parameter", "Unsupported parameter: 'logprobs' is not supported with this model."),
    "temperature": ("unsupported_value", "Unsupported value: 'temperature' does not support 0.0 with this model."),
}
"""OpenAI's errors for a reasoning model, one parameter at a time."""


async def reasoning(asked: web.Request) -> web.StreamResponse:
    body = await asked.json()
    for name, (code, message) in REASONING.items():
        if name in body:
            refused = {"message": message, "type": "invalid_request_error", "param": name, "code": code}
            return web.json_response({"error": refused}, status=400)
    return await says("yes")(asked)


@pytest.mark.parametrize("at_once", [1, 20])
async def test_a_refused_parameter_of_ours_is_learned_once_and_costs_no_job(
    at_once: int, caplog: pytest.LogCaptureFixture
) -> None:
    """An earlier worker rejected each job of a backlog for a parameter that the job did not set."""
    server = Server(reasoning)
    async with engine_at(server) as engine:
        for turn in range(3):
            asked = (
                engine.complete(request(f"r{turn}.{number}", temperature_is_default=True)) for number in range(at_once)
            )
            assert {completion.text for completion in await asyncio.gather(*asked)} == {"yes"}
    assert at_once > 1 or len(server.bodies) == 3 + 3
    assert server.bodies[-1].keys() == {"model", "messages", "max_completion_tokens"}
    assert server.bodies[-1]["max_completion_tokens"] == 8
    assert caplog.text.count("engine-parameter-refused") == 3


async def test_a_temperature_that_the_job_names_is_the_job_s_fault_each_time() -> None:
    async with engine_at(Server(reasoning)) as engine, AnsweringWorker(engine=engine) as worker:
        for asked_before in range(2):
            with pytest.raises(RequestRejected, match="temperature: Unsupported value"):
                await engine.complete(request(f"own-{asked_before}", temperature=0.7))
            await engine.complete(request(f"default-{asked_before}", temperature_is_default=True))
        assert (await worker.answer("Which bridge?", sources=None, temperature=0.0)).outcome == "rejected"
        assert (await worker.answer("Which bridge?", sources=None)).outcome == "succeeded"


async def test_the_reasoning_is_bounded_and_shown_apart_without_links_of_a_page() -> None:
    told = {"content": "It opened.", "reasoning_content": "See [it](https://bad.example/?q=1) first."}
    server = Server(answers(200, {"choices": [{"message": told, "finish_reason": "stop"}]}))
    asked: dict[str, Any] = {"reasoning": {"effort": "low", "max_tokens": 9}}
    async with engine_at(server) as engine, AnsweringWorker(engine=engine) as worker:
        answer = await worker.answer("When did it open?", **asked)
    assert (server.bodies[0]["reasoning_effort"], server.bodies[0]["thinking_token_budget"]) == ("low", 9)
    assert (answer.text or "").endswith("It opened.")
    assert answer.reasoning is not None
    assert "See" in answer.reasoning and "bad.example" not in answer.reasoning


async def test_a_job_that_asks_for_reasoning_is_rejected_by_a_model_that_cannot_reason() -> None:
    async with AnsweringWorker() as worker:
        refused = await worker.answer("Why?", sources=None, reasoning={"effort": "low"})
        plain = await worker.answer("Why?", sources=None, reasoning={"effort": "none"})
    assert (refused.outcome, plain.outcome) == ("rejected", "succeeded")
    assert refused.error is not None and refused.error.message.startswith("reasoning:")


# -- prompts beyond the window -----------------------------------------------------------------------------------------

TOO_LONG = (
    "This model's maximum context length is 600 tokens. However, your prompt contains at least 601 input tokens, which "
    "exceeds this limit even without any output tokens. Please reduce the length of the input prompt."
)
LONG_PAGE = page("".join(f"<p>{FACT} It was mentioned in report {number}.</p>" for number in range(100)))


def takes(characters: int) -> Respond:
    """A vLLM server with a small window, and a tokenizer that makes more tokens than estimated."""

    async def respond(asked: web.Request) -> web.StreamResponse:
        [message] = (await asked.json())["messages"]
        is_long = len(message["content"]) > characters
        return await (answers(400, problem(TOO_LONG, "input_tokens")) if is_long else says("In 1987 [1]."))(asked)

    return respond


async def test_max_tokens_beyond_a_window_that_is_known_do_not_reach_the_server() -> None:
    server = Server(says("yes"))
    async with engine_at(server, Server(SIX_HUNDRED)) as engine:
        with pytest.raises(RequestRejected) as rejected:
            await engine.complete(request(max_tokens=600))
    assert (rejected.value.field, server.bodies) == ("max_tokens", [])


@pytest.mark.parametrize(
    ("models", "server"),
    [
        (SIX_HUNDRED, Server(says("In 1987 [1]."))),
        (lists({"id": "m1"}), Server(takes(1500))),
        (lists({"id": "m1"}), Server(takes(900))),
    ],
    ids=["a known window", "1500", "900"],
)
async def test_sources_are_cut_to_the_servers_window_and_the_instructions_about_them_are_not(
    models: Respond, server: Server
) -> None:
    """A vLLM server answers 400 to a prompt beyond its window.

    An earlier version rejected the job because of its sources.
    """
    question, is_known = "Which bridge opened in 1987?", models is SIX_HUNDRED
    async with (
        speaking(saying(LONG_PAGE, HTML)) as origin,
        engine_at(server, Server(models)) as engine,
        AnsweringWorker(engine=engine) as worker,
    ):
        limit: dict[str, Any] = {"max_tokens": 100} if is_known else {}
        result = await worker.answer(question, f"{origin}/a", f"{origin}/b", **limit)
    asked = [body["messages"][0]["content"] for body in server.bodies]
    assert (len(asked) == 1) == is_known
    assert sorted(asked, key=len, reverse=True) == asked
    assert not is_known or estimated_tokens(asked[0]) <= 500
    assert all(one.startswith("Answer the question from the sources") and FACT in one for one in asked)
    assert all(one.endswith(f"Question: {question}\nAnswer:") for one in asked)
    assert (result.outcome, [source.title for source in result.source_details]) == ("succeeded", ["A bridge"])
    assert CUT_NOTE in result.notes or is_known


async def test_a_question_that_is_too_long_by_itself_is_rejected_in_the_server_s_words() -> None:
    async with (
        speaking(saying(page(), HTML)) as origin,
        engine_at(Server(takes(10))) as engine,
        AnsweringWorker(engine=engine) as worker,
    ):
        rejected = await worker.answer("Which bridge?", f"{origin}/a")
        failed = await worker.answer("Which bridge?", sources={"urls": [f"{origin}/a"], "required": True})
    assert rejected.error is not None
    assert (rejected.outcome, rejected.error.message) == ("rejected", f"prompt: {TOO_LONG}")
    assert (failed.outcome, failed.error and failed.error.code) == ("failed", "no_sources")
