"""Every engine's words for the end of generation: half a text is never a success."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.echo_worker import record, working
from workers.engines.base import Completion, EngineFailed, FinishReason, GenerationRequest
from workers.engines.finish import finish_reason, is_failure
from workers.engines.openai_http.answers import ServerAnswer, completion_of
from workers.inference import generate as generating

WORDS: dict[str, FinishReason] = {
    **dict.fromkeys(["stop", "STOP", "eos", "eos_token", "stop_sequence", "end_turn", "COMPLETE"], "stop"),
    **dict.fromkeys(["length", "model_length", "max_tokens", "MAX_TOKENS"], "length"),
    **dict.fromkeys(["content_filter", "RECITATION", "SAFETY", "refusal"], "content_filter"),
    **dict.fromkeys(["tool_calls", "function_call", "tool_use"], "tool_calls"),
    **dict.fromkeys(["abort"], "abort"),
    **dict.fromkeys(["repetition"], "repetition"),
    **dict.fromkeys(["load", "pause_turn", "unknown", "halt"], "other"),
}


def answer_of(said: str | None) -> Completion:
    """The completion for a server's answer with this finish reason."""
    choice = {"message": {"content": "half a"}, "finish_reason": said}
    usage = {"prompt_tokens": 3, "completion_tokens": 2}
    return completion_of(ServerAnswer.model_validate({"choices": [choice], "usage": usage}))


@pytest.mark.parametrize(("said", "reason"), [(None, "stop"), ("", "stop"), *WORDS.items()])
def test_a_server_s_finish_reason_becomes_the_completion_s(said: str | None, reason: FinishReason) -> None:
    assert answer_of(said).finish_reason == reason


@pytest.mark.parametrize("said", ["error", "ERROR", "insufficient_system_resource"])
def test_a_server_that_says_that_it_failed_has_not_answered(said: str) -> None:
    with pytest.raises(EngineFailed, match="failed while it generated") as failed:
        answer_of(said)
    assert failed.value.wasted_tokens == 2


@given(st.text(min_size=1))
def test_an_unknown_finish_reason_leaves_no_answer(said: str) -> None:
    known = said.lower() in {word.lower() for word in WORDS} | {"completed", "safety", "cancelled"}
    assert known or is_failure(said) or finish_reason(said) == "other"


@pytest.mark.parametrize("reason", ["content_filter", "tool_calls", "repetition", "other"])
async def test_an_answer_that_is_not_whole_is_a_failure_that_says_why_and_shows_no_text(
    monkeypatch: pytest.MonkeyPatch, reason: FinishReason
) -> None:
    async def generate(request: GenerationRequest) -> Completion:
        return Completion("half a", reason, 3, 2)

    async with working() as worker:
        monkeypatch.setattr(worker.engine, "generate", generate)
        result = await worker.result(record())
    assert (result.outcome, result.text, result.finish_reason) == ("failed", None, reason)
    assert (result.error and result.error.code, result.usage and result.usage.total_tokens) == ("unfinished", 5)


@pytest.mark.parametrize("said", ["abort", "error"])
async def test_a_request_that_the_engine_ends_by_itself_is_tried_again(
    monkeypatch: pytest.MonkeyPatch, said: str
) -> None:
    monkeypatch.setattr(generating, "FIRST_RETRY_SECONDS", 0.001)
    words = [said, said, "stop"]

    async def generate(request: GenerationRequest) -> Completion:
        return answer_of(words.pop(0))

    async with working() as worker:
        monkeypatch.setattr(worker.engine, "generate", generate)
        result = await worker.result(record())
    assert (result.outcome, result.text) == ("succeeded", "half a")
    assert worker.sample("postback_tokens_total", kind="wasted") == 4
