"""A wrong key, address or model: the start fails and names the setting to fix, and no job is rejected."""

from __future__ import annotations

import asyncio

import pytest

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
    openai_server,
    problem,
    says,
)
from tests.integration.test_engine_contract import request
from workers.engines.base import EngineRefused
from workers.engines.openai_http import OpenAIEngine
from workers.engines.openai_http.settings import OpenAISettings
from workers.inference import engine_watch, generate


@pytest.mark.parametrize(
    ("key", "mend"),
    [(KEY, "set POSTBACK_ENGINE__OPENAI__API_KEY to a key that"), (None, "set POSTBACK_ENGINE__OPENAI__API_KEY$")],
)
async def test_a_server_that_does_not_let_us_in_ends_the_start_with_the_setting_to_mend(
    key: str | None, mend: str
) -> None:
    models = Server(answers(401, problem(f"{KEY} is unknown")))
    async with engine_for(Server(says("yes")), models, api_key=key) as engine:
        with pytest.raises(EngineRefused, match=rf"127\.0\.0\.1:\d+ refuses .* \(401\): {mend}") as refused:
            await engine.start()
    assert KEY not in str(refused.value)


async def test_a_key_that_is_refused_later_is_reported_until_it_is_accepted_again_and_the_jobs_are_answered_then(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(engine_watch, "AWAY_SECONDS", 0.05)
    monkeypatch.setattr(generate, "FIRST_RETRY_SECONDS", 0.01)
    monkeypatch.setattr(generate, "LONGEST_RETRY_SECONDS", 0.02)
    server = Server(answers(401, problem(f"{KEY} is unknown")))
    async with engine_at(server) as engine, AnsweringWorker(engine=engine) as worker:
        watch = worker.engine_watch
        answering = asyncio.create_task(worker.answer("Which bridge?", sources=None))
        async with asyncio.timeout(30):
            while not watch.reasons():
                await asyncio.sleep(0.01)
        [reason] = watch.reasons()
        assert reason.endswith(" s: the server refuses POSTBACK_ENGINE__OPENAI__API_KEY (401)")
        server.responses = [says("That one.")]
        assert (await answering).text == "That one."
        assert watch.reasons() == []
    assert len(server.bodies) > 2
    assert "POSTBACK_ENGINE__OPENAI__API_KEY (401)" in caplog.text
    assert KEY not in caplog.text


NO_MODEL = answers(404, {"error": {"message": "The model `m1` does not exist.", "param": "model", "code": 404}})
NO_PATH = answers(404, {"detail": "Not Found"})


@pytest.mark.parametrize(
    "lacking", [NO_MODEL, NO_PATH, answers(400, problem("Invalid model name", "model"))], ids=["model", "path", "400"]
)
async def test_no_job_is_rejected_for_an_address_or_a_model_that_only_the_operator_can_mend(
    lacking: Respond, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In an earlier version, each job met the refusal and was `rejected`: one wrong setting cost a whole backlog."""
    monkeypatch.setattr(engine_watch, "AWAY_SECONDS", 0.05)
    monkeypatch.setattr(generate, "FIRST_RETRY_SECONDS", 0.01)
    monkeypatch.setattr(generate, "LONGEST_RETRY_SECONDS", 0.02)
    server = Server(lacking)
    async with engine_at(server) as engine, AnsweringWorker(engine=engine) as worker:
        answering = asyncio.create_task(worker.answer("Which bridge?", sources=None))
        async with asyncio.timeout(30):
            while not worker.engine_watch.reasons():
                await asyncio.sleep(0.01)
        [reason] = worker.engine_watch.reasons()
        assert "POSTBACK_ENGINE__OPENAI__BASE_URL" in reason
        assert "POSTBACK_ENGINE__OPENAI__MODEL" in reason
        server.responses = [says("That one.")]
        assert (await answering).text == "That one."


async def test_a_model_that_the_server_lacks_ends_the_start_with_the_names_of_its_models() -> None:
    models = Server(lists({"id": "m2"}, {"id": "polite", "parent": "m2"}))
    async with engine_for(Server(NO_MODEL), models) as engine:
        with pytest.raises(EngineRefused, match=r"does not list the model m1, but m2, polite, and .*OPENAI__MODEL"):
            await engine.start()


async def test_an_address_without_the_path_of_the_api_ends_the_start_and_names_the_setting() -> None:
    server = Server(says("yes"))
    async with openai_server(server) as url:
        lost = OpenAIEngine(OpenAISettings(base_url=url.removesuffix("/v1"), model="m1"), SystemClock(), Metrics())
        with pytest.raises(
            EngineRefused, match=r"gave no list of models \(404\), .* POSTBACK_ENGINE__OPENAI__BASE_URL"
        ):
            await lost.start()
    assert server.bodies == []


@pytest.mark.parametrize("models", [NO_PATH, lists({"id": "m1:latest"}), lists({"id": "/models/m.gguf"})])
async def test_a_server_that_answers_for_an_unlisted_name_is_accepted(models: Respond) -> None:
    server = Server(answers(503, problem("loading")), says("yes"))
    async with engine_at(server, Server(models)) as engine:
        assert (await engine.generate(request())).text == "yes"
    assert [body["model"] for body in server.bodies] == ["m1"] * 3


async def test_a_model_s_adapter_is_a_model_of_the_server_too() -> None:
    server = Server(says("yes"))
    async with engine_at(server, Server(lists({"id": "m0"}, {"id": "m1", "parent": "m0"}))):
        assert server.bodies == []


async def test_a_key_that_may_generate_but_not_list_models_starts_the_engine() -> None:
    """OpenAI answers such a restricted key with 403."""
    server = Server(says("yes"))
    async with engine_at(server, Server(answers(403, problem("Missing scopes: api.model.read")))):
        assert len(server.bodies) == 1


@pytest.mark.parametrize(("status", "models"), [(401, NO_PATH), (403, answers(403, problem(f"{KEY} may not")))])
async def test_a_key_that_only_the_first_request_shows_to_be_refused_ends_the_start(
    status: int, models: Respond
) -> None:
    async with engine_for(Server(answers(status, problem(f"{KEY} is unknown"))), Server(models)) as engine:
        with pytest.raises(EngineRefused, match=rf"POSTBACK_ENGINE__OPENAI__API_KEY \({status}\)") as refused:
            await engine.start()
    assert KEY not in str(refused.value)
