"""The body of a request: one JSON object in the shape of OpenAI's chat completions, from the job to the engine.

`body_of` makes it once. A chat and a `prompt` have `messages`; a `raw` prompt has `prompt`, as in OpenAI's completions.
All other members are those of chat completions, and a member that the job does not set is absent. Engines read the
body, and pass its members on by the names of FIELDS.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from pydantic import BaseModel

from schemas.job import Job, Message, Reasoning

Body = dict[str, Any]
"""A request in OpenAI's shape, or one message of it."""

# -- The members of a body: one row a member, with its name at each kind of engine --
_OPENAI: Final = ("echo", "openai", "vllm")


@dataclass(frozen=True, slots=True)
class Member:
    """One member of a body."""

    field: str
    """The job's field."""
    names: Mapping[str, str]
    """Maps each kind of engine that takes the member to its name there."""


def _row(name: str, *same: str, field: str | None = None, **others: str) -> Member:
    return Member(field or name, {**dict.fromkeys((*_OPENAI, *same), name), **others})


FIELDS: Final[Mapping[str, Member]] = {
    "max_tokens": _row("max_tokens", "anthropic", gemini="maxOutputTokens", responses="max_output_tokens"),
    "temperature": _row("temperature", "anthropic", "gemini", "responses"),
    "top_p": _row("top_p", "anthropic", "responses", gemini="topP"),
    "min_p": _row("min_p"),
    "seed": _row("seed", "gemini"),
    # The Responses API takes no stop texts, so its engine cuts the answer itself.
    "stop": _row("stop", "responses", anthropic="stop_sequences", gemini="stopSequences"),
    # A service without one of the next three gives fewer answers, or no log-probabilities, and the result says so.
    "n": _row("n", "anthropic", "responses", gemini="candidateCount"),
    "logprobs": _row("logprobs", "anthropic", gemini="responseLogprobs", responses="include"),
    "top_logprobs": _row("top_logprobs", "anthropic", "responses", gemini="logprobs"),
    "tools": _row("tools", "anthropic", "gemini", "responses"),
    "tool_choice": _row("tool_choice", "anthropic", "responses", gemini="toolConfig"),
    "parallel_tool_calls": _row("parallel_tool_calls", "anthropic", "gemini", "responses"),
    "response_format": _row(
        "response_format", anthropic="output_config", gemini="responseJsonSchema", responses="text"
    ),
    "reasoning_effort": _row(
        "reasoning_effort",
        field="reasoning.effort",
        anthropic="output_config.effort",
        gemini="thinkingConfig.thinkingLevel",
        responses="reasoning",
    ),
    "thinking_token_budget": _row(
        "thinking_token_budget",
        field="reasoning.max_tokens",
        anthropic="thinking",
        gemini="thinkingConfig",
        responses="reasoning.max_tokens",
    ),
}
"""The members that pass from a job to an engine, beside the question.

An engine kind without a name for a member does not get it, and the result names the job's field. Members that steer an
engine for other jobs too have no row: vLLM's `priority`, `request_id`, `kv_transfer_params` and `cache_salt`, and
`use_beam_search`, which takes a multiple of the memory.
"""
_SAME: Final = ("top_p", "min_p", "seed", "stop", "parallel_tool_calls", "tool_choice")
"""The members that are the job's fields of the same name."""


def passed(kind: str, body: Body, *members: str) -> Body:
    """Return these members of a body by their names at this engine kind, without those that it does not take."""
    rows = ((FIELDS[name].names.get(kind), name) for name in members if name in body)
    return {there: body[name] for there, name in rows if there is not None}


def left_out(kind: str, body: Body) -> tuple[str, ...]:
    """Return the job's fields that this engine kind does not take."""
    return tuple(FIELDS[name].field for name in body if name in FIELDS and kind not in FIELDS[name].names)


# -- The body of a job --


def body_of(job: Job) -> Body:
    """Return the body of a job with a question. A prompt is one user message, unless it is raw.

    Several greedy answers would be all the same, so a temperature of 0 from a profile or the registry is left out.
    """
    if job.messages is not None:
        body: Body = {"messages": [message_of(message) for message in job.messages]}
    else:
        prompt = job.prompt or ""
        body = {"prompt": prompt} if job.raw else {"messages": [user_message(prompt)]}
    body["max_tokens"] = job.max_tokens
    if job.temperature is not None and (job.temperature or job.n == 1):
        body["temperature"] = job.temperature
    for name in _SAME:
        if (value := getattr(job, name)) not in (None, []):
            body[name] = value.model_dump() if isinstance(value, BaseModel) else value
    if job.n > 1:
        body["n"] = job.n
    if job.logprobs:
        body |= {"logprobs": True, "top_logprobs": job.top_logprobs or 0}
    if job.tools:
        body["tools"] = [tool.model_dump(exclude_none=True) for tool in job.tools]
    if job.response_format is not None and job.response_format.type != "text":
        body["response_format"] = job.response_format.model_dump(by_alias=True, exclude_none=True)
    return body | _reasoning(job.reasoning) if job.reasoning is not None else body


def user_message(text: str) -> Body:
    """Return a user's message."""
    return {"role": "user", "content": text}


def message_of(message: Message) -> Body:
    """Return a message with its texts as one text, unless it has images."""
    said: Body = {"role": message.role, "content": message.text if message.content is not None else None}
    if message.images:
        said["content"] = [part.model_dump(exclude_none=True) for part in message.parts]
    if message.tool_calls is not None:
        said["tool_calls"] = [call.model_dump() for call in message.tool_calls]
    if message.tool_call_id is not None:
        said["tool_call_id"] = message.tool_call_id
    return said


def _reasoning(asked: Reasoning) -> Body:
    if not asked.is_wanted:
        return {"reasoning_effort": "none"}
    fields = {"reasoning_effort": asked.effort, "thinking_token_budget": asked.max_tokens}
    return {name: value for name, value in fields.items() if value is not None}


# -- What a body says --
SYSTEM_ROLES: Final = ("system", "developer")


def text_of(message: Body) -> str:
    """Return a message's text, without its images."""
    content = message["content"]
    if isinstance(content, str):
        return content
    return "\n".join(part["text"] for part in content or () if part["type"] == "text")


def parts_of(message: Body) -> Sequence[Body]:
    """Return the parts of a message with images; no parts for a message of text alone."""
    return message["content"] if isinstance(message["content"], list) else ()


def plain_text(messages: Sequence[Body]) -> str:
    """Return messages as text, for a model without a chat template.

    A single message becomes its text without a role.
    """
    if len(messages) == 1:
        return text_of(messages[0])
    turns = [f"{_SPEAKERS[message['role']]}: {text_of(message)}" for message in messages]
    return "\n\n".join([*turns, "Assistant:"])


_SPEAKERS: Final = {"system": "System", "developer": "System", "user": "User", "assistant": "Assistant", "tool": "Tool"}


def last_user_text(messages: Sequence[Body]) -> str:
    """Return the question: the user's last message, else the last message of any role."""
    by_user = [message for message in messages if message["role"] == "user"]
    return text_of((by_user or messages)[-1])
