"""The quirks of each family, which every engine of a worker gets, with and without a model registry."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.job import Message, ResponseFormat
from telemetry.clock import SystemClock
from telemetry.metrics import Metrics
from tests.drawn import drawn
from tests.unit.test_model_families import MODELS
from workers.engines import ENGINES
from workers.engines.base import Completion, GenerationRequest
from workers.engines.families import families
from workers.engines.families.quirks import with_quirks, without_fence
from workers.engines.registry import create, engine_settings

FENCE_JSON = {
    *("deepseek-v3", "deepseek-v3-1", "deepseek-r1", "deepseek-r1-distill", "llama-2", "qwen-2-5", "qwq", "mistral"),
    *("magistral", "mixtral", "gemma-2", "gemma-3", "phi-3", "phi-4", "phi-4-mini", "chatglm", "yi", "internlm"),
    *("command-r", "olmo", "falcon", "falcon-h1r", "baichuan", "minicpm", "minicpm-4-1", "claude"),
    "phi-4-reasoning",
}
REFUSE_SYSTEM_MESSAGES = {"gemma-2"}
ASKED = GenerationRequest(
    "r1",
    None,
    (Message(role="system", content="Be brief."), Message(role="user", content="Hello?")),
    16,
    None,
    response_format=ResponseFormat(type="json_object"),
)
EACH = pytest.mark.parametrize(("family", "model"), [(name, next(iter(models))) for name, models in MODELS.items()])
AN_ANSWER = st.text() | st.text("` \n\t\rab{}", max_size=40)


def completion(text: str) -> Completion:
    return Completion(text, "stop", 3, 2)


@EACH
def test_the_fence_around_an_answer_is_removed_for_the_families_that_fence_json(family: str, model: str) -> None:
    fenced = '```json\n{"a": 1}\n```'
    expected = '{"a": 1}' if family in FENCE_JSON else fenced
    assert without_fence(completion(fenced), ASKED, families()[family]).text == expected


@EACH
def test_system_messages_join_the_question_for_the_families_that_refuse_them(family: str, model: str) -> None:
    joined = (Message(role="user", content="Be brief.\n\nHello?"),)
    expected = joined if family in REFUSE_SYSTEM_MESSAGES else ASKED.messages
    assert with_quirks(ASKED, families()[family]).messages == expected


@EACH
@pytest.mark.parametrize("kind", ENGINES)
def test_each_engine_of_the_command_line_has_the_family_of_its_model(kind: str, family: str, model: str) -> None:
    made = create(kind, engine_settings()(), Metrics(), SystemClock(), model=model)
    assert made.family == families()[family]


def test_an_engine_whose_model_is_of_no_family_changes_nothing() -> None:
    made = create("echo", engine_settings()(), Metrics(), SystemClock())
    assert made.family is None
    assert with_quirks(ASKED, None) is ASKED
    fenced = completion("```\n{}\n```")
    assert without_fence(fenced, ASKED, None) is fenced


@pytest.mark.parametrize(
    ("text", "inside"),
    {
        "```\n{}\n```": "{}",
        " \n```json \r\n{}\n  ```\n": "{}",
        "```json\n{}```": "{}",
        "```json\n```": "",
        '```json\n{"a": "```"}\n```': '{"a": "```"}',
        "```json\n{}": "```json\n{}",
        "```": "```",
        "```json {}```": "```json {}```",
        "Here it is:\n```json\n{}\n```": "Here it is:\n```json\n{}\n```",
        "```json\n{}\n```\nThat is all.": "```json\n{}\n```\nThat is all.",
        "{}": "{}",
    }.items(),
)
def test_only_a_fence_around_the_whole_answer_is_removed(text: str, inside: str) -> None:
    assert without_fence(completion(text), ASKED, families()["gemma-2"]).text == inside


@given(AN_ANSWER, st.sampled_from(["", "json", "JSON", "c++"]))
@settings(max_examples=drawn(100))
def test_any_answer_comes_out_of_its_fence(text: str, language: str) -> None:
    fenced = completion(f"```{language}\n{text}|\n```")
    assert without_fence(fenced, ASKED, families()["gemma-2"]).text == f"{text}|"


@given(AN_ANSWER)
@settings(max_examples=drawn(100))
def test_the_text_inside_a_fence_is_a_part_of_the_answer(text: str) -> None:
    inside = without_fence(completion(text), ASKED, families()["gemma-2"]).text
    assert inside == text or (text.strip().startswith("```") and inside in text)


@pytest.mark.parametrize("run", [" ", "\n", "`", "\n ", "```\n"])
def test_a_long_run_of_one_text_takes_linear_time(run: str) -> None:
    """A regular expression that backtracks would take hours here."""
    text = f"```\n{run * 1_000_000}x"
    assert without_fence(completion(text), ASKED, families()["gemma-2"]).text == text


MESSAGES = st.lists(
    st.builds(
        lambda role, content: Message(role=role, content=content),
        st.sampled_from(["system", "developer", "user", "assistant"]),
        st.text(min_size=1),
    ),
    min_size=1,
    max_size=6,
)


@given(MESSAGES)
@settings(max_examples=drawn(100))
def test_no_system_message_is_left_and_no_text_is_lost(messages: list[Message]) -> None:
    asked: Any = GenerationRequest("r1", None, tuple(messages), 16, None)
    changed = with_quirks(asked, families()["gemma-2"]).messages or ()
    roles = [message.role for message in changed]
    assert not {"system", "developer"} & {*roles}
    assert "user" in roles or not {"system", "developer"} & {message.role for message in messages}
    said = "\n".join(message.text for message in changed)
    assert all(message.text in said for message in messages)
