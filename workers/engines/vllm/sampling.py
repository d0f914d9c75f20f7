"""Translation of requests into vLLM's sampling parameters, and of vLLM's outputs and errors back."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from schemas.result import TokenLogprob
from workers.engines.base import (
    NAMES,
    Completion,
    EngineError,
    EngineFailed,
    GenerationRequest,
    RequestRejected,
    named,
    token_logprob,
    with_calls,
)
from workers.engines.finish import finish_reason, is_failure
from workers.engines.vllm.calling import ToolsOfRequest
from workers.engines.vllm.loading import short
from workers.engines.vllm.settings import VllmSettings
from workers.engines.vllm.thinking import Thinking, confidence_from

_FIELDS = {name: name for name in ("max_tokens", "temperature", "n", "logprobs", *NAMES)}
"""Maps vLLM's parameters to a job's fields.

If vLLM refuses any other parameter, the error names the response format or the prompt.
"""


_OF_SEVERAL = 1.0
"""The temperature of a request for several answers that sets none. vLLM refuses several answers at temperature 0."""
_BY_THE_MODEL = ("top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty")
"""Parameters whose values come from the model's `generation_config.json`, unless the job sets them."""


def sampling_params(
    request: GenerationRequest,
    settings: VllmSettings,
    defaults: Mapping[str, Any],
    *,
    marks_are_special: bool = False,
    tools: ToolsOfRequest | None = None,
    decodes_at_end: bool = False,
) -> Any:
    """Return the request as `SamplingParams`. `defaults` come from the model's `generation_config.json`.

    `marks_are_special` keeps the marks around reasoning in the text. With `decodes_at_end`, vLLM decodes only answers
    whose stop texts or log-probabilities need the text of each token; see `decoding`. If neither the request nor the
    model gives a temperature, one answer is sampled greedily, and several answers with the temperature 1. Raises
    RequestRejected for a JSON Schema that exceeds the bounds of `schema_limits`.
    """
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    own = named("vllm", request)
    stop = [*own.pop("stop", ()), *settings.stop]
    return SamplingParams(
        n=request.n,
        max_tokens=request.max_tokens,
        temperature=_temperature(request, defaults),
        stop=stop,
        detokenize=bool(stop) or request.top_logprobs is not None or not decodes_at_end,
        logprobs=_logprobs(request, settings),
        flat_logprobs=True,  # a flat list takes a third less CPU time than a dictionary for each token
        structured_outputs=_structure(request, tools),
        thinking_token_budget=_budget(request),
        skip_special_tokens=not (marks_are_special or (tools is not None and tools.keeps_special_tokens)),
        **{name: defaults[name] for name in _BY_THE_MODEL if name in defaults} | own,
        output_kind=RequestOutputKind.FINAL_ONLY,  # an abort also yields a final output, with the tokens so far
    )


def completion_of(
    output: Any,
    request: GenerationRequest,
    prompt: Sequence[int],
    thinking: Thinking | None = None,
    tools: ToolsOfRequest | None = None,
) -> Completion:
    """Return the first answer of the final output; `further` has the other answers.

    The completion is aborted if one of the answers is. Raises EngineError if vLLM ended an answer with an error.
    """
    first, *further = [_answer(each, request, prompt, thinking, tools) for each in output.outputs]
    reasons = [each.finish_reason for each in (first, *further)]
    thought = [each.reasoning_tokens for each in (first, *further) if each.reasoning_tokens is not None]
    return replace(
        first,
        finish_reason="abort" if "abort" in reasons else first.finish_reason,
        prompt_tokens=len(prompt),
        completion_tokens=sum(each.completion_tokens for each in (first, *further)),
        reasoning_tokens=sum(thought) if thought else None,
        cached_tokens=output.num_cached_tokens,
        further=tuple(further),
    )


def _answer(
    answer: Any,
    request: GenerationRequest,
    prompt: Sequence[int],
    thinking: Thinking | None,
    tools: ToolsOfRequest | None,
) -> Completion:
    """Return one of the request's answers, with its own tokens."""
    count = len(answer.token_ids)
    if is_failure(answer.finish_reason):
        raise _ended_by_an_error(request, count)
    confidence = None
    if answer.cumulative_logprob is not None and count:
        confidence = min(1.0, math.exp(answer.cumulative_logprob / count))
    completion = Completion(
        answer.text,
        finish_reason(answer.finish_reason),
        0,
        count,
        confidence,
        logprobs=_token_logprobs(answer.logprobs, request.top_logprobs),
    )
    if thinking is None or grammar_is_first(request, prompt, thinking, tools):
        return _with_calls_of(completion, tools, answer.token_ids, thinking)
    whole = thinking.parted(answer.text, is_open=thinking.is_open(prompt), keeps_special_tokens=tools is not None)
    if whole.reasoning is None:
        return _with_calls_of(replace(completion, text=whole.text), tools, answer.token_ids, thinking)
    tokens = thinking.tokens(answer.text, answer.token_ids, whole)
    reasoned = replace(
        completion,
        text=whole.text,
        reasoning=whole.reasoning,
        reasoning_tokens=tokens,
        confidence=confidence_from(answer.logprobs, tokens),
        logprobs=completion.logprobs[tokens:] if completion.logprobs is not None else None,
    )
    return _with_calls_of(reasoned, tools, answer.token_ids[tokens:], thinking)


def _with_calls_of(
    completion: Completion, tools: ToolsOfRequest | None, ids: Sequence[int], thinking: Thinking | None
) -> Completion:
    """Return the completion with the calls that its text contains.

    Special tokens are removed from the text afterwards.
    """
    if tools is None:
        return completion
    text, calls = tools.calls(completion.text, ids)
    return with_calls(replace(completion, text=thinking.shown(text) if thinking is not None else text), calls)


def _token_logprobs(found: Any, top: int | None) -> tuple[TokenLogprob, ...] | None:
    """Return vLLM's `FlatLogprobs` with tokens; None unless asked for. At each place the chosen token comes first."""
    if found is None or top is None:
        return None
    tokens = [token or "" for token in found.decoded_tokens]
    pairs = [*zip(tokens, found.logprobs, strict=True)]
    return tuple(
        token_logprob(
            tokens[start], found.logprobs[start], pairs[start + 1 : min(end, start + 1 + top)] if top else None
        )
        for start, end in zip(found.start_indices, found.end_indices, strict=True)
    )


def grammar_is_first(
    request: GenerationRequest, prompt: Sequence[int], thinking: Thinking, tools: ToolsOfRequest | None = None
) -> bool:
    """True if JSON or a demanded call begins with the first token, so that the output has no reasoning.

    Reasoning comes first if the prompt ends inside an open reasoning, or if the job asks for reasoning.
    """
    has_grammar = tools is not None and tools.is_demanded and tools.structure is not None
    if not has_grammar and (request.response_format is None or request.response_format.type == "text"):
        return False
    is_asked = request.reasoning is not None and request.reasoning.is_wanted
    return thinking.parser is None or not (is_asked or thinking.is_open(prompt))


def refusal(request: GenerationRequest, error: Exception) -> RequestRejected:
    """Return vLLM's error as RequestRejected, with the job's field.

    The first argument of vLLM's error is the reason, without the refused value.
    """
    field = _FIELDS.get(getattr(error, "parameter", None) or "")
    if request.pooling is not None:
        field = request.pooling.kind.field
    if field is None:
        field = (
            "response_format" if request.response_format is not None else "messages" if request.messages else "prompt"
        )
    return RequestRejected(field, short(str(error.args[0]) if error.args else type(error).__name__))


def _temperature(request: GenerationRequest, defaults: Mapping[str, Any]) -> float:
    if request.temperature is not None:
        return request.temperature
    temperature: float = defaults.get("temperature", 0.0)
    return temperature or (_OF_SEVERAL if request.n > 1 else 0.0)


def _logprobs(request: GenerationRequest, settings: VllmSettings) -> int | None:
    """Return the number of alternatives whose log-probabilities vLLM returns beside those of the chosen tokens."""
    return request.top_logprobs if request.top_logprobs is not None else 0 if settings.log_probabilities else None


def _budget(request: GenerationRequest) -> int | None:
    """Return the cap on the tokens of reasoning; None without a cap, or if the chat template turns reasoning off."""
    asked = request.reasoning
    return asked.max_tokens if asked is not None and asked.is_wanted else None


def _structure(request: GenerationRequest, tools: ToolsOfRequest | None) -> Any:
    """Return the grammar of the job's calls and response format, or of the response format alone."""
    if tools is not None and tools.structure is not None:
        if request.response_format is not None and request.response_format.json_schema is not None:
            check_schema(request.response_format.json_schema.schema_)
        for tool in request.tools:
            check_schema(tool.function.parameters, "tools.function.parameters")
        return tools.structure
    if request.response_format is None or request.response_format.type == "text":
        return None
    from vllm.sampling_params import StructuredOutputsParams

    if request.response_format.json_schema is None:
        return StructuredOutputsParams(json_object=True)
    schema = request.response_format.json_schema.schema_
    check_schema(schema)
    return StructuredOutputsParams(json=schema)


def _ended_by_an_error(request: GenerationRequest, tokens: int) -> EngineError:
    """Return the error for an answer that vLLM ended with an error.

    If the request has a response format, the cause is that no next token fits the format. Another try of this request
    would end in the same way.
    """
    if request.response_format is not None and request.response_format.type != "text":
        return RequestRejected("response_format", "no answer can go on in the form that the field asks for")
    return EngineFailed("the engine failed at this request", wasted_tokens=tokens)


# -- Bounds on a JSON Schema: vLLM compiles the schema into a grammar, and the compilation cannot be interrupted --
# xgrammar's time grows with the cube of the number of an object's optional properties: 2 s for 1,000 and 24 s for 2,000
# (two loaded cores). A pattern with nested repetitions takes about 0.05 s. vLLM compiles one or a few schemas at a
# time, so every other job with a schema would wait.
MAX_SCHEMA_CHARS: Final = 64 * 1024
MAX_PROPERTIES: Final = 500
"""Limit on the properties of one object."""
MAX_PATTERNS: Final = 50
FIELD: Final = "response_format.json_schema.schema"


def check_schema(schema: dict[str, Any], field: str = FIELD) -> None:
    """Raise RequestRejected, with the field, for a schema that exceeds a bound."""
    size = len(json.dumps(schema, ensure_ascii=False))
    if size > MAX_SCHEMA_CHARS:
        raise RequestRejected(field, f"has {size} characters, and {MAX_SCHEMA_CHARS} are allowed")
    patterns = 0
    for part in _parts(schema):
        properties = part.get("properties")
        if isinstance(properties, dict) and len(properties) > MAX_PROPERTIES:
            raise RequestRejected(
                field, f"has an object with {len(properties)} properties, and {MAX_PROPERTIES} are allowed"
            )
        patterns += isinstance(part.get("pattern"), str)
        pattern_properties = part.get("patternProperties")
        patterns += len(pattern_properties) if isinstance(pattern_properties, dict) else 0
    if patterns > MAX_PATTERNS:
        raise RequestRejected(field, f"has {patterns} patterns, and {MAX_PATTERNS} are allowed")


def _parts(schema: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield every object in the schema, at any depth."""
    waiting: list[Any] = [schema]
    while waiting:
        part = waiting.pop()
        if isinstance(part, dict):
            yield part
            waiting.extend(part.values())
        elif isinstance(part, list):
            waiting.extend(part)
