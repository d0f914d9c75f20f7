"""Any numbers in a server's answer: they give counts for metrics and a confidence from 0 to 1, or a refusal."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st

from workers.engines.base import Completion, GenerationRequest
from workers.engines.online.anthropic import MessagesApi
from workers.engines.online.gemini import GenerateContentApi
from workers.engines.online.responses import ResponsesApi
from workers.engines.openai_http.answers import ServerAnswer, completion_of
from workers.engines.openai_http.models import ServerModels

COUNTS = st.integers() | st.sampled_from([-1, 2**31, 10**400])
LOGPROBS = st.lists(st.none() | st.floats(), max_size=4)


NOISE = st.recursive(
    st.none() | st.booleans() | COUNTS | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(("id", "data")), inner, max_size=2),
    max_leaves=8,
)
WINDOWS = st.fixed_dictionaries(
    {"id": st.just("m"), "name": st.just("m")},
    optional=dict.fromkeys(("max_input_tokens", "inputTokenLimit", "outputTokenLimit", "max_model_len"), NOISE),
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
        answer = ServerAnswer.model_validate_json(written({"choices": [choice], "usage": usage | usage_details}))
    except ValueError:
        return
    require_usable(completion_of(answer))


@given(COUNTS, COUNTS, st.none() | st.floats())
@example(0, 10**400, None)
def test_any_numbers_of_an_online_service_are_usable_or_refused(read: int, generated: int, mean: float | None) -> None:
    usage = {"input_tokens": read, "output_tokens": generated, "cache_read_input_tokens": read}
    message = {"content": [{"type": "text", "text": "a"}], "stop_reason": "end_turn", "usage": usage}
    counts = {"promptTokenCount": read, "candidatesTokenCount": generated, "thoughtsTokenCount": generated}
    candidate = {"content": {"parts": [{"text": "a"}]}, "finishReason": "STOP", "avgLogprobs": mean}
    contents = {"candidates": [candidate], "usageMetadata": counts}
    text = {"type": "output_text", "text": "a", "logprobs": [{"token": "a", "logprob": mean}]}
    details = {"input_tokens_details": {"cached_tokens": read}, "output_tokens_details": {"reasoning_tokens": read}}
    response = {"status": "completed", "output": [{"type": "message", "content": [text]}], "usage": usage | details}
    for api, answer in (
        (MessagesApi("m", "2023-06-01"), message),
        (GenerateContentApi("m"), contents),
        (ResponsesApi("m"), response),
    ):
        asked = GenerationRequest("r1", "a", None, 8, None, top_logprobs=0)
        try:
            completion = api.completion(written(answer), asked)
        except ValueError:
            continue
        require_usable(completion)


@given(st.binary(max_size=40) | (NOISE | WINDOWS | st.fixed_dictionaries({"data": st.lists(WINDOWS)})).map(written))
@example(written({"data": [{"id": "m", "max_model_len": -1}]}))
def test_any_description_of_a_model_has_a_window_that_holds_a_token_or_none_or_is_refused(body: bytes) -> None:
    reads: tuple[Callable[[bytes], int | None], ...] = (
        MessagesApi("m", "2023-06-01").window,
        GenerateContentApi("m").window,
        ResponsesApi("m").window,
        lambda listed: ServerModels.model_validate_json(listed).window_of("m"),
    )
    for read in reads:
        try:
            window = read(body)
        except (ValueError, LookupError):  # the model may be missing from the list
            continue
        assert window is None or window >= 1
