"""Answers that should be JSON, and the errors of those that are not."""

from __future__ import annotations

from typing import Literal

import pytest

from workers.engines.base import Completion
from workers.inference.json_answers import NotJson, require_json


def answer(text: str, reason: Literal["stop", "length", "abort"] = "stop") -> Completion:
    return Completion(text, reason, 1, 1)


@pytest.mark.parametrize("text", ['{"a": 1}', "[]", "7", f"[{'9' * 5000}]", ' {"a": null}\n'])
def test_json_is_taken_also_where_max_tokens_fell_on_its_end(text: str) -> None:
    require_json(answer(text), 8)
    require_json(answer(text, "length"), 8)


@pytest.mark.parametrize("text", ['{"a": ', "", "[NaN]", "{'a': 1}", "[" * 100_000, '{"a": 1} {'])
def test_an_answer_that_is_not_json_is_refused_with_the_fix(text: str) -> None:
    with pytest.raises(NotJson, match=r"max_tokens: the answer's JSON was not whole after 8 tokens; raise it"):
        require_json(answer(text, "length"), 8)
    with pytest.raises(NotJson, match="response_format: the engine's answer is not JSON"):
        require_json(answer(text), 8)
