"""OpenAI's Response objects of jobs in every state, and the HTTP errors of jobs that did not succeed.

Source: OpenAI API reference, "The response object", and `openai-python`'s `types/responses/response.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from schemas.openai import RESPONSES
from schemas.openai_answers import answer_body
from schemas.outcome import Outcome
from schemas.result import Result

PREFIX: Final = "resp_"
"""A response's id is this prefix and the job's id."""
CANCELLING: Final = "cancelling"
"""The status of a job that is to be cancelled and has no result yet."""
NOTES: Final = "notes"
"""The member with the notes about the request, in a stored request. OpenAI's bodies have no member of this name."""

_ECHOED = (
    "previous_response_id",
    "instructions",
    "max_output_tokens",
    "temperature",
    "top_p",
    "top_logprobs",
    "reasoning",
    "text",
    "user",
    "safety_identifier",
)
"""Members of the request that the Response object repeats; null where the request has none."""
_DEFAULTS: Mapping[str, Any] = {
    "text": {"format": {"type": "text"}},
    "tools": [],
    "tool_choice": "auto",
    "parallel_tool_calls": True,
    "truncation": "disabled",
}
"""Members that the Response object repeats, with OpenAI's defaults, which are the fleet's own."""
_KEPT = ("input", "background", "store", *dict.fromkeys((*_ECHOED, *_DEFAULTS)))
_WITHOUT_TEXT = (
    *("background", "store", "max_output_tokens", "temperature", "top_p", "top_logprobs"),
    *("parallel_tool_calls", "truncation"),
)
_ERROR_CODES = {Outcome.REJECTED: "invalid_prompt"}
_STATUSES = {
    Outcome.SUCCEEDED: "completed",
    Outcome.CANCELLED: "cancelled",
    Outcome.FAILED: "failed",
    Outcome.EXPIRED: "failed",
    Outcome.REJECTED: "failed",
}


def response_status(result: Result) -> str:
    """Return the status of a finished response: `completed`, `incomplete`, `failed` or `cancelled`."""
    if result.outcome is Outcome.SUCCEEDED and result.finish_reason == "length":
        return "incomplete"
    return _STATUSES[result.outcome]


def response_object(
    job_id: str,
    status: str,
    created_at: int,
    request: Mapping[str, Any],
    *,
    model_id: str | None = None,
    metadata: Mapping[str, str] | None = None,
    result: Result | None = None,
    finished_at: int | None = None,
) -> dict[str, Any]:
    """Return the Response object of a job. One that is to be cancelled is `in_progress` until its result comes.

    `status` is `queued`, CANCELLING or an outcome. `request` has the members of the body, see `shown_members`, and
    NOTES; it is empty where they are not stored. Times are Unix seconds.
    """
    made: dict[str, Any] = {
        "id": f"{PREFIX}{job_id}",
        "object": "response",
        "created_at": created_at,
        "status": "in_progress" if status == CANCELLING else "queued",
        "background": request.get("background") is True,
        "completed_at": None,
        "error": None,
        "incomplete_details": None,
        "metadata": dict(metadata or {}),
        "model": model_id or "",
        "output": [],
        "output_text": "",
        "store": request.get("store") is not False,
        "usage": None,
        **{name: request.get(name) for name in _ECHOED},
    }
    made |= {name: default if (said := request.get(name)) is None else said for name, default in _DEFAULTS.items()}
    made |= _finished(result, finished_at) if result is not None else {"postback": {"status": status}}
    if notes := request.get(NOTES):
        made["postback"]["notes"] = [*made["postback"].get("notes", ()), *notes]
    return made


def _finished(result: Result, finished_at: int | None) -> dict[str, Any]:
    """Return the members of a finished response that differ from those of a queued one."""
    made: dict[str, Any] = {"status": response_status(result), "postback": {"status": str(result.outcome)}}
    if result.model_id is not None:
        made["model"] = result.model_id
    if result.outcome is Outcome.SUCCEEDED:
        answer = answer_body(result, RESPONSES)
        made |= {name: answer[name] for name in ("output", "incomplete_details", "usage")}
        made["output_text"] = result.text or ""
        made["completed_at"] = finished_at if made["status"] == "completed" else None
        made["postback"] |= answer["postback"]
    elif result.outcome is not Outcome.CANCELLED:
        code, message = told(result)
        made["error"] = {"code": _ERROR_CODES.get(result.outcome, "server_error"), "message": message}
        made["postback"]["error"] = {"code": code, "message": message}
    return made


def told(result: Result) -> tuple[str, str]:
    """Return the code and the message of a job that did not succeed."""
    if result.error is not None:
        return result.error.code, result.error.message
    return str(result.outcome), f"The job ended as {result.outcome}."


def shown_members(body: Mapping[str, Any]) -> dict[str, Any]:
    """Return the members of a request's body that its Response object shows, and its input."""
    return {name: body[name] for name in _KEPT if body.get(name) is not None}


def unstored_members(body: Mapping[str, Any]) -> dict[str, Any]:
    """Return the members without texts, for the answer to a request whose members are not stored."""
    return {name: body[name] for name in _WITHOUT_TEXT if body.get(name) is not None}


def input_items(job_id: str, request: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the input of a valid request's body as a list of items, in the order of the request."""
    return [_item(f"msg_{job_id}_{number}", item) for number, item in enumerate(_items(request.get("input")))]


def continued(
    request: Mapping[str, Any], output: Sequence[Mapping[str, Any]], question: str | list[Any] | None
) -> list[Any]:
    """Return the input of a request that continues a response: its input, its output, and the new question."""
    earlier = _items(request.get("input"))
    for item in output:
        if item["type"] == "message":
            earlier.append({"role": "assistant", "content": "".join(part["text"] for part in item["content"])})
        elif item["type"] == "function_call":
            earlier.append({name: item[name] for name in ("type", "call_id", "name", "arguments")})
    return earlier + _items(question)


def _items(given: str | list[Any] | None) -> list[Any]:
    """Return an input as a list of items: a text is one message of the user."""
    return [{"role": "user", "content": given}] if isinstance(given, str) else list(given or ())


def _item(identifier: str, item: Mapping[str, Any]) -> dict[str, Any]:
    if "role" not in item:  # a function's call or its output
        return {"status": "completed", **item, "id": identifier}
    content = item["content"]
    kind = "output_text" if item["role"] == "assistant" else "input_text"
    parts = [{"type": kind, "text": content}] if isinstance(content, str) else content
    return {"id": identifier, "type": "message", "status": "completed", "role": item["role"], "content": parts}


_OF_THE_JOB = ("no_image", "no_sources", "not_json", "invalid_output", "result_too_large", "unfinished", "unsupported")
"""Codes of failures that would happen again if the same job were sent again. Other codes are failures of the fleet."""
_OUTCOME_STATUS = {Outcome.REJECTED: 400, Outcome.CANCELLED: 409, Outcome.EXPIRED: 504}


def error_status(result: Result) -> int:
    """Return the HTTP status that tells a waiting client that the job did not succeed."""
    if result.outcome is Outcome.FAILED:
        return 422 if told(result)[0] in _OF_THE_JOB else 500
    return _OUTCOME_STATUS[result.outcome]
