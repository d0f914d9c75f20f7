"""Requests to an engine, made from a job's fields as a worker makes them."""

from __future__ import annotations

from typing import Any

from schemas.job import Job
from workers.engines.base import GenerationRequest, request_for

_OURS = ("is_whole", "prefix_key", "temperature_is_default", "abort")
"""The request's own fields, which no job has."""


def request_of(request_id: str = "r1", **fields: Any) -> GenerationRequest:
    """Return the request of a job with these fields; fields that are None are absent.

    Without other values, the answer has at most 8 tokens and is greedy.
    """
    ours = {"temperature_is_default": False} | {name: fields.pop(name) for name in _OURS if name in fields}
    given = {name: value for name, value in fields.items() if value is not None}
    if "messages" in given:
        given.pop("prompt", None)
    if given.pop("is_raw", False):
        given["raw"] = True
    if "temperature" not in fields:
        given["temperature"] = 0.5 if given.get("n", 1) > 1 else 0.0
    if "top_logprobs" in given:
        given["logprobs"] = True
    return request_for(Job.model_validate({"max_tokens": 8, **given}), request_id, **ours)
