"""An online engine starts by reading the service's description of the model, or else by a first request."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from tests.drawn import drawn
from tests.integration.online.scripted import EACH, RESPONSES, OnlineKind, engine_of, problem, says
from tests.integration.online.services import KEY, MODEL, gemini_app
from tests.integration.openai_http.servers import Respond, Server, answers, lists
from tests.integration.openai_server import serving
from workers.engines.base import EngineRefused
from workers.engines.online.responses import ResponsesApi

NO_PATH = answers(404, {"detail": "Not Found"})


@asynccontextmanager
async def service(models: Server, server: Server) -> AsyncIterator[str]:
    """A service whose `models` answers each GET and whose `server` answers each POST; yields its URL."""
    app = web.Application()
    app.router.add_get("/v1/{path:.*}", models.respond)
    app.router.add_post("/v1/{path:.*}", server.respond)
    async with serving(app) as url:
        yield url


async def started(kind: OnlineKind, models: Respond, *responses: Respond, **options: Any) -> tuple[int | None, Server]:
    """Start an engine; return the model's context window, and the server, which has the engine's first requests."""
    server = Server(*responses)
    async with service(Server(models), server) as url:
        engine = engine_of(kind.name, url, **options)
        try:
            await engine.start()
            return engine.context_tokens, server
        finally:
            await engine.close()


async def test_the_window_of_a_model_is_read_at_the_start() -> None:
    async with serving(gemini_app()) as url:
        engine = engine_of("gemini", url)
        await engine.start()
        assert engine.context_tokens == 1024
        await engine.close()


@pytest.mark.parametrize(
    ("model", "window"), [({"id": MODEL}, None), ({"id": MODEL, "max_model_len": 600}, 600)], ids=["openai", "vllm"]
)
async def test_a_server_of_responses_that_only_lists_its_models_needs_no_first_request(
    model: dict[str, Any], window: int | None
) -> None:
    """In an earlier version, the engine asked for the description of one model, which only OpenAI's service has."""
    found, server = await started(RESPONSES, lists({"id": "other"}, model))
    assert (found, server.bodies) == (window, [])


@EACH
@pytest.mark.parametrize(
    "models", [NO_PATH, answers(405, {}), answers(501, {}), answers(200, [1]), answers(200, {"data": "none"})]
)
async def test_a_service_without_a_description_of_the_model_is_asked_for_a_few_tokens(
    kind: OnlineKind, models: Respond, caplog: pytest.LogCaptureFixture
) -> None:
    window, server = await started(kind, models, problem(kind, 503), says(kind, "Hello."))
    assert (window, len(server.bodies)) == (None, 2)
    assert "does not list the model" in caplog.text


@pytest.mark.parametrize("models", [lists({"id": "other"}), lists({"id": MODEL, "more": "x" * 10_000})])
async def test_a_model_that_the_list_lacks_or_that_a_long_list_hides_may_still_answer(models: Respond) -> None:
    _, server = await started(RESPONSES, models, says(RESPONSES, "Hello."), max_response_bytes=4096)
    [body] = server.bodies
    assert (body["model"], body["max_output_tokens"]) == (MODEL, 16)


async def test_a_model_that_does_not_answer_ends_the_start_with_the_names_of_the_service_s_models() -> None:
    refusal = problem(RESPONSES, 404, "The model 'x' does not exist")
    with pytest.raises(
        EngineRefused, match=rf"does not list the model {MODEL}, but other, and .* \(.* 404.*\): \S*URL"
    ):
        await started(RESPONSES, lists({"id": "other"}), refusal)


@EACH
async def test_a_description_that_is_too_long_is_named_if_the_model_does_not_answer(kind: OnlineKind) -> None:
    models = answers(200, {"data": [{"id": MODEL}], "more": "x" * 10_000})
    with pytest.raises(EngineRefused, match=r"more than the 4096 bytes of max_response_bytes, and a first request"):
        await started(kind, models, problem(kind, 404, "There is no such model"), max_response_bytes=4096)


@EACH
async def test_a_key_that_may_generate_but_not_read_descriptions_starts_the_engine(kind: OnlineKind) -> None:
    _, server = await started(kind, problem(kind, 403, "Missing scopes: api.model.read"), says(kind, "Hello."))
    assert len(server.bodies) == 1


@EACH
@pytest.mark.parametrize(("description", "status"), [(404, 401), (403, 403)])
async def test_a_key_that_only_the_first_request_shows_to_be_wrong_ends_the_start(
    kind: OnlineKind, description: int, status: int
) -> None:
    with pytest.raises(EngineRefused, match=r"API_KEY .*must be a key that may use it") as refused:
        await started(kind, answers(description, {}), problem(kind, status, f"{KEY} is unknown"))
    assert KEY not in str(refused.value)


NOISE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(("data", "id", "parent", "max_model_len")), inner, max_size=4)
    ),
    max_leaves=8,
)
ENTRIES = st.fixed_dictionaries(
    {"id": st.just(MODEL) | st.text(max_size=5)},
    optional={"parent": st.none() | st.just(MODEL), "max_model_len": st.none() | st.integers(-2, 2**70)},
)
LISTS = st.fixed_dictionaries({"data": st.lists(ENTRIES, max_size=4)})


@settings(max_examples=drawn(200))
@given(st.one_of((LISTS | NOISE).map(lambda body: json.dumps(body).encode()), st.binary(max_size=20)))
def test_any_list_of_models_gives_a_window_or_an_error_that_the_start_expects(body: bytes) -> None:
    try:
        window = ResponsesApi(MODEL).window(body)
    except (ValidationError, LookupError):
        return
    assert window is None or window > 0
