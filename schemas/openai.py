"""OpenAI's Batch input lines and request bodies, converted to jobs. `openai_answers` converts results.

Source: OpenAI API reference, "The request input object" of the Batch API, and the bodies of /v1/chat/completions,
/v1/completions and /v1/responses. `kind_bodies` has the bodies of the endpoints for texts, such as /v1/embeddings.

A line's body may also have Postback's own `sources`, `context_window`, `adapter`, `priority`, `not_before` and
`ttl_seconds` (`extra_body` in OpenAI's SDK). Members that only tune the sampling and have no field in a job, such as
`presence_penalty`, are ignored. Members that would change the kind of answer, such as `modalities`, are rejected.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Literal, TypeGuard

from schemas.kind_bodies import ENDPOINTS
from schemas.kinds import QUESTIONS
from schemas.openai_tools import called_message, response_choice, response_place, response_tools
from schemas.problems import Problem, UnusableLine

CHAT_COMPLETIONS: Final = "/v1/chat/completions"
COMPLETIONS: Final = "/v1/completions"
RESPONSES: Final = "/v1/responses"
URLS: Final = (CHAT_COMPLETIONS, COMPLETIONS, RESPONSES, *ENDPOINTS)

CALLBACK_KEY = "webhook_url"
"""The member of `body.metadata` that holds the callback URL. Results do not repeat it."""

Rule = Literal["copied", "read", "no effect"]


@dataclass(frozen=True, slots=True)
class Member:
    """A member of a body: the endpoints that take it, and its meaning there."""

    name: str
    urls: tuple[str, ...] = URLS
    """The endpoints that take the member. Elsewhere it is ignored, and the result names it."""
    rule: Rule | tuple[object, ...] = "read"
    """`copied` to the job's field of this name, `read` by the code of the endpoint, or of `no effect` on the answer.

    A tuple has the only values that are accepted beside null, because they change nothing.
    """
    instead: str = ""
    """The way out for a value that is not accepted."""
    has_kin: bool = False
    """True if endpoints without the member have a similar one, which is suggested for it."""


def _rows(names: str, urls: tuple[str, ...] = URLS, rule: Rule | tuple[object, ...] = "read") -> tuple[Member, ...]:
    return tuple(Member(name, urls, rule) for name in names.split())


_CHATS: Final = (CHAT_COMPLETIONS,)
_OF_SEVERAL: Final = (CHAT_COMPLETIONS, COMPLETIONS)
_OF_TOOLS: Final = (CHAT_COMPLETIONS, RESPONSES)
_EARLIER: Final = "; send the earlier messages in `input`"
_TABLE: Final = (
    *_rows("model metadata stop"),
    *_rows("temperature top_p min_p seed", rule="copied"),
    *_rows("sources context_window adapter priority not_before ttl_seconds", rule="copied"),
    *_rows("user store service_tier safety_identifier prompt_cache_key", rule="no effect"),
    *_rows("tools tool_choice parallel_tool_calls", _OF_TOOLS),
    *_rows("response_format reasoning_effort thinking_token_budget", _CHATS),
    Member("messages", _CHATS, has_kin=True),
    Member("max_tokens", _OF_SEVERAL, has_kin=True),
    Member("max_completion_tokens", _CHATS, has_kin=True),
    *_rows("logprobs n", _OF_SEVERAL),
    *_rows("top_logprobs", _OF_TOOLS),
    *_rows("prompt", (COMPLETIONS, RESPONSES)),
    *_rows("instructions text reasoning include", (RESPONSES,)),
    Member("input", (RESPONSES,), has_kin=True),
    Member("max_output_tokens", (RESPONSES,), has_kin=True),
    *(Member(name, (each.url,), has_kin=True) for each in ENDPOINTS.values() for name in each.members),
    Member("n", tuple(url for url in URLS if url not in _OF_SEVERAL), (1,)),
    Member("best_of", rule=(1,)),
    Member("stream", rule=(False,), instead="; the answer comes whole"),
    Member("echo", rule=(False,)),
    Member("background", rule=(False, True)),
    Member("suffix", rule=("",)),
    Member("functions", rule=([],)),
    Member("modalities", rule=(["text"],)),
    Member("encoding_format", rule=("float",), instead="; a batch has embeddings as arrays of numbers, `float`"),
    Member("return_documents", rule=(False,), instead="; a result names each document by its index"),
    Member("previous_response_id", rule=(), instead=_EARLIER),
    Member("conversation", rule=(), instead=_EARLIER),
    *_rows("access_programs audio background_options context_management frequency_penalty function_call image", ()),
    *_rows("logit_bias max_tool_calls moderation prediction presence_penalty prompt_cache_options", ()),
    *_rows("prompt_cache_retention stream_options truncation verbosity web_search_options", ()),
)
"""The members of all bodies: OpenAI's, and Postback's own in `extra_body`."""
_BY_URL: Final = {url: {each.name: each for each in _TABLE if url in each.urls} for url in URLS}
_COPIED: Final = {
    url: {name for name, each in taken.items() if each.rule == "copied"} for url, taken in _BY_URL.items()
}
MEMBERS: Final = tuple(sorted({each.name for each in _TABLE if each.urls}))
"""Members that at least one of the URLs accepts and does not report as ignored."""
NOT_TAKEN: Final = frozenset(
    each.name for each in _TABLE if not each.has_kin and any(each.name not in taken for taken in _BY_URL.values())
)
"""OpenAI's members that some URLs do not accept. Each is a correct name, so no similar name is suggested for it."""
LOGPROBS_INCLUDED: Final = "message.output_text.logprobs"
"""The value of `include` by which a request to /v1/responses asks for log-probabilities."""
_REASONING_PLACES = {"effort": "reasoning_effort", "max_tokens": "thinking_token_budget"}
"""The members of chats that bound reasoning: OpenAI's for the effort, and vLLM's for the maximum number of tokens."""
_PLACES = {"callback_url": f"metadata.{CALLBACK_KEY}", "model_id": "model"}
_PLACES_BY_URL = {
    RESPONSES: {"messages": "input", "max_tokens": "max_output_tokens", "response_format": "text.format"},
    COMPLETIONS: {"top_logprobs": "logprobs"},
}
"""The names in a body that differ from the job's names for the same fields."""


def is_batch_line(document: object) -> TypeGuard[dict[str, Any]]:
    """True if this JSON value looks like a Batch line rather than a job."""
    if not isinstance(document, dict) or document.keys() & QUESTIONS:
        return False
    return "body" in document and ("url" in document or "method" in document)


def callback_of(line: dict[str, Any]) -> object:
    """Return the value of `metadata.webhook_url` in a line's body, of any type."""
    body = line.get("body")
    metadata = body.get("metadata") if isinstance(body, dict) else None
    return metadata.get(CALLBACK_KEY) if isinstance(metadata, dict) else None


def job_fields(line: dict[str, Any]) -> dict[str, Any]:
    """Convert a Batch line to a job's fields, to be validated as a Job. Raises UnusableLine."""
    body = line.get("body")
    problems = [*_frame_problems(line), *_unsupported(line.get("url"), body if isinstance(body, dict) else {})]
    if problems or not isinstance(body, dict):
        raise UnusableLine(*problems)
    return {"custom_id": line["custom_id"], **_fields(line["url"], body)}


def body_fields(url: str, body: dict[str, Any]) -> dict[str, Any]:
    """Convert a request's body to a job's fields, to be validated as a Job. `url` is one of URLS. Raises UnusableLine.

    Problems are named as in a Batch line, such as `body.input`.
    """
    if problems := _unsupported(url, body):
        raise UnusableLine(*problems)
    return _fields(url, body)


def _fields(url: str, body: dict[str, Any]) -> dict[str, Any]:
    """Convert a body's members to a job's fields; the body has no unsupported members. Raises UnusableLine."""
    fields = {
        "model_id": body.get("model"),
        "callback_url": callback_of({"body": body}),
        "metadata": _metadata(body.get("metadata")),
        **{name: body[name] for name in body.keys() & _COPIED[url]},
        "stop": _stop(body.get("stop")),
        **_QUESTIONS[url](body),
    }
    return {name: value for name, value in fields.items() if value is not None}


def members_of(url: str) -> Collection[str]:
    """Return the members that a body for this URL may have.

    Each of these members either has a field in a job or changes nothing.
    """
    return _BY_URL[url].keys()


def passed_over(line: dict[str, Any]) -> list[str]:
    """Return the names of those members of a usable line's body that have a value but are ignored."""
    members = members_of(line["url"])
    body = line["body"]
    passed = {name for name, value in body.items() if value is not None and name not in members}
    if line["url"] == RESPONSES and body.get("include") not in (None, [], [LOGPROBS_INCLUDED]):
        passed.add("include")
    return sorted(passed)


def problem_in_line(problem: Problem, line: dict[str, Any]) -> Problem:
    """Return the problem with its field renamed from the job's name to the line's name."""
    if problem.field == "custom_id":
        return problem
    first, *rest = problem.field.split(".")
    endpoint = ENDPOINTS.get(line["url"])
    if endpoint is not None and first == endpoint.kind.field:
        return dataclasses.replace(problem, field=".".join(("body", *endpoint.place(rest, line["body"]))))
    names = _PLACES | _PLACES_BY_URL.get(line["url"], {})
    if first == "messages" and rest and line["url"] == RESPONSES and line["body"].get("instructions") is not None:
        # The instructions became the job's first message, so a message's number in the input is one less.
        first, rest = ("instructions", []) if rest[0] == "0" else (first, [str(int(rest[0]) - 1), *rest[1:]])
    if first == "reasoning" and rest and line["url"] == CHAT_COMPLETIONS:
        first, rest = _REASONING_PLACES[rest[0]], []
    if line["url"] == RESPONSES:
        first, *rest = response_place([first, *rest])
    return dataclasses.replace(problem, field=".".join(("body", names.get(first, first), *rest)))


def _frame_problems(line: dict[str, Any]) -> list[Problem]:
    problems = []
    if not isinstance(line.get("custom_id"), str):
        problems.append(Problem("custom_id", "is required and is a string"))
    if line.get("method", "POST") != "POST":
        problems.append(Problem("method", "can only be POST"))
    if line.get("url") not in URLS:
        problems.append(Problem("url", f"is none of {', '.join(URLS)}"))
    if not isinstance(line.get("body"), dict):
        problems.append(Problem("body", "is not a JSON object"))
    return problems


def _unsupported(url: object, body: dict[str, Any]) -> list[Problem]:
    taken = _BY_URL.get(str(url), {})
    return [
        Problem(f"body.{name}", f"is not supported here{each.instead}")
        for name, value in body.items()
        if (each := taken.get(name)) is not None
        and isinstance(each.rule, tuple)
        and value is not None
        and value not in each.rule
    ]


def _metadata(metadata: object) -> object:
    if not isinstance(metadata, dict):
        return metadata
    return {name: value for name, value in metadata.items() if name != CALLBACK_KEY}


def _stop(stop: object) -> object:
    """Return a single text as a list of one, and an empty text as None."""
    if isinstance(stop, str):
        return [stop] if stop else None
    return stop


def _chat_question(body: dict[str, Any]) -> dict[str, Any]:
    messages = body.get("messages")
    if messages is None:
        raise UnusableLine(Problem("body.messages", "is required"))
    limit = body.get("max_completion_tokens")
    return {
        "messages": messages,
        "max_tokens": body.get("max_tokens") if limit is None else limit,
        **{name: body.get(name) for name in ("n", "logprobs", "top_logprobs")},
        **_tools(body, body.get("tools"), body.get("tool_choice")),
        "response_format": body.get("response_format"),
        "reasoning": _reasoning_asked(body.get("reasoning_effort"), body.get("thinking_token_budget")),
    }


def _tools(body: dict[str, Any], tools: object, choice: object) -> dict[str, Any]:
    """Return the fields for tools; without tools, `tool_choice` and `parallel_tool_calls` change nothing."""
    if tools in (None, []):
        return {}
    return {"tools": tools, "tool_choice": choice, "parallel_tool_calls": body.get("parallel_tool_calls")}


def _reasoning_asked(effort: object, max_tokens: object = None) -> dict[str, object] | None:
    return None if effort is None and max_tokens is None else {"effort": effort, "max_tokens": max_tokens}


def _completion_question(body: dict[str, Any]) -> dict[str, Any]:
    prompt = body.get("prompt")
    if isinstance(prompt, list) and len(prompt) == 1:
        prompt = prompt[0]
    if not isinstance(prompt, str):
        raise UnusableLine(Problem("body.prompt", "is required and is one string"))
    top = body.get("logprobs")
    return {
        "prompt": prompt,
        "raw": True,
        "max_tokens": body.get("max_tokens"),
        "n": body.get("n"),
        "logprobs": True if top is not None else None,
        "top_logprobs": top,
    }


def _response_question(body: dict[str, Any]) -> dict[str, Any]:
    question = body.get("input")
    if body.get("prompt") is not None:
        raise UnusableLine(Problem("body.prompt", "is not supported here: OpenAI keeps the template that it names"))
    if isinstance(question, str):
        messages = [{"role": "user", "content": question}]
    elif isinstance(question, list) and question:
        messages = [_response_item(item, f"body.input.{index}") for index, item in enumerate(question)]
    else:
        raise UnusableLine(Problem("body.input", "is required and is a string or a list of messages"))
    if (instructions := body.get("instructions")) is not None:
        messages.insert(0, {"role": "system", "content": instructions})
    return {
        "messages": messages,
        "max_tokens": body.get("max_output_tokens"),
        "reasoning": _reasoning_of_response(body.get("reasoning")),
        "logprobs": _wants_logprobs(body),
        "top_logprobs": body.get("top_logprobs"),
        **_tools(body, response_tools(body.get("tools")), response_choice(body.get("tool_choice"))),
        "response_format": _response_format(body.get("text")),
    }


def _wants_logprobs(body: dict[str, Any]) -> bool | None:
    included = body.get("include")
    is_included = isinstance(included, list) and LOGPROBS_INCLUDED in included
    return True if is_included or body.get("top_logprobs") is not None else None


def _reasoning_of_response(asked: object) -> object:
    """Return the effort; `summary`, which only OpenAI's models write, has no effect."""
    return _reasoning_asked(asked.get("effort")) if isinstance(asked, dict) else asked


def _response_item(item: object, place: str) -> dict[str, Any]:
    return called_message(item) or _response_message(item, place)


def _response_message(item: object, place: str) -> dict[str, Any]:
    if not isinstance(item, dict) or item.get("type", "message") != "message":
        raise UnusableLine(Problem(place, "is neither a message nor a function call nor its output"))
    content = item.get("content")
    if isinstance(content, list):
        content = [_response_part(part, f"{place}.content.{index}") for index, part in enumerate(content)]
    return {"role": item.get("role"), "content": content}


def _response_part(part: object, place: str) -> dict[str, Any]:
    part = part if isinstance(part, dict) else {}
    kind = part.get("type")
    if kind == "input_image" and part.get("file_id") is not None:
        raise UnusableLine(Problem(f"{place}.file_id", "is not supported here; send the image in `image_url`"))
    if kind == "input_image":
        return {"type": "image_url", "image_url": {"url": part.get("image_url"), "detail": part.get("detail")}}
    if kind not in ("input_text", "output_text"):
        raise UnusableLine(Problem(place, "only text and `input_image` parts are taken; audio and files are not"))
    return {"type": "text", "text": part.get("text")}


def _response_format(text: object) -> object:
    """Convert the format of Responses to that of chat completions, which nests the schema one level deeper."""
    wanted = text.get("format") if isinstance(text, dict) else None
    if not isinstance(wanted, dict) or wanted.get("type") != "json_schema":
        return wanted
    members = {name: wanted[name] for name in ("name", "schema", "strict") if wanted.get(name) is not None}
    return {"type": "json_schema", "json_schema": members}


_QUESTIONS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    CHAT_COMPLETIONS: _chat_question,
    COMPLETIONS: _completion_question,
    RESPONSES: _response_question,
    **{endpoint.url: partial(endpoint.fields, endpoint) for endpoint in ENDPOINTS.values()},
}
