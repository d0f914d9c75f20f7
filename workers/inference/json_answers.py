"""Checks answers that are to be JSON. A constrained answer may still break it, where `max_tokens` cuts it off."""

from __future__ import annotations

import json

from workers.engines.base import Completion


class NotJson(Exception):  # noqa: N818 - it names what happened
    """The job asked for JSON, and the answer is not JSON. The text says what to do and quotes nothing of the answer."""


def require_json(completion: Completion, max_tokens: int) -> None:
    """Raises NotJson where the completion's text is not one JSON value (RFC 8259)."""
    try:
        json.loads(completion.text, parse_int=str, parse_constant=_refuse)  # str: an integer may have any length
    except (ValueError, RecursionError):
        if completion.finish_reason == "length":
            raise NotJson(f"max_tokens: the answer's JSON was not whole after {max_tokens} tokens; raise it") from None
        raise NotJson("response_format: the engine answered with what is not JSON") from None


def _refuse(name: str) -> None:
    """Refuse NaN and Infinity, which Python's parser would take."""
    raise ValueError(f"{name} is no JSON")
