"""A worker of `--engine`, without a model registry, and a server whose model has its family's quirks."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.fleet_here import FleetHere
from tests.http_handler import Answering, handling
from tests.product import eventually

MODELS = ("google/gemma-2-9b-it", "Qwen/Qwen2.5-7B-Instruct")


class Quirky(Answering):
    """A server like vLLM's: Gemma 2's template refuses system messages, and both models put JSON into a fence."""

    def do_GET(self) -> None:
        self.answer_json(200, {"object": "list", "data": [{"id": model, "object": "model"} for model in MODELS]})

    def do_POST(self) -> None:
        asked = json.loads(self.body())
        roles = [message["role"] for message in asked["messages"]]
        if "gemma-2" in asked["model"] and "system" in roles:
            refusal = {"message": "System role not supported", "type": "BadRequestError", "code": 400}
            self.answer_json(400, {"error": refusal})
            return
        text = f"```json\n{json.dumps({'roles': roles, 'asked': asked['messages'][-1]['content']})}\n```"
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        self.answer_json(200, {"choices": [choice], "usage": {"prompt_tokens": 3, "completion_tokens": 2}})


@pytest.mark.broker
@pytest.mark.parametrize(
    ("model", "answer"),
    [
        (MODELS[0], {"roles": ["user"], "asked": "Answer in JSON.\n\nHello?"}),
        (MODELS[1], {"roles": ["system", "user"], "asked": "Hello?"}),
    ],
)
def test_a_job_for_json_succeeds_with_the_quirks_of_the_model_s_family(
    fleet_here: FleetHere, model: str, answer: dict[str, Any]
) -> None:
    messages = [{"role": "system", "content": "Answer in JSON."}, {"role": "user", "content": "Hello?"}]
    with handling(Quirky) as url:
        worker = fleet_here.worker(
            *("w1", "--engine", "openai", "--model", model), POSTBACK_ENGINE__OPENAI__BASE_URL=f"{url}/v1"
        )
        fleet_here.submit([{"job_id": "j1", "messages": messages, "response_format": {"type": "json_object"}}])
        eventually(lambda: "j1" in fleet_here.outcomes(), 60, worker.said)
        assert worker.terminate() == 0
    [result] = fleet_here.results()
    assert (result["outcome"], json.loads(result["text"])) == ("succeeded", answer)
