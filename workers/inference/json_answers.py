"""The check of answers that must be JSON. If `max_tokens` cuts an answer off, even a constrained answer is not JSON."""

from __future__ import annotations

import json

from workers.engines.base import Completion


class NotJson(Exception):  # noqa: N818 - named after the event
    """The job asked for JSON, and the answer is not JSON. The error's text quotes no part of the answer."""


def require_json(completion: Completion, max_tokens: int) -> None:
    """Raise NotJson if the completion's text is not one JSON value (RFC 8259)."""
    try:
        json.loads(completion.text, parse_int=str, parse_constant=_refuse)  # `str`, since `int` refuses long numbers
    except (ValueError, RecursionError):
        if completion.finish_reason == "length":
            raise NotJson(f"max_tokens: the answer's JSON was not whole after {max_tokens} tokens; raise it") from None
        raise NotJson("response_format: the engine's answer is not JSON") from None


def _refuse(name: str) -> None:
    """Refuse NaN and Infinity, which Python's parser would accept."""
    raise ValueError(f"{name} is no JSON")
