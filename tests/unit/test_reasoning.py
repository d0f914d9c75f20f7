"""The reasoning of a model, separated from its answer by the marks of its family."""

from __future__ import annotations

import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from schemas.job import MAX_TOKENS, Job, Reasoning
from schemas.openai import CHAT_COMPLETIONS, RESPONSES
from schemas.openai_answers import answer_body
from schemas.outcome import Outcome
from schemas.result import Result, Usage
from schemas.strict import NotAJob, body_job
from workers.engines.families import ReasoningMarks, families
from workers.engines.openai_http.answers import ServerAnswer, completion_of
from workers.engines.reasoning import Parted, parted

MARKS = ReasoningMarks(opening="<think>", closing="</think>", parser="qwen3", opened_by="model")
OPEN, CLOSE = MARKS.opening, MARKS.closing
PIECES = st.lists(st.sampled_from([OPEN, CLOSE, "<thi", "nk>", "</", "</think", "a", "b c", "\n", " "]), max_size=12)


@pytest.mark.parametrize(
    ("output", "reasoning", "text"),
    [
        ("<think>a</think>\n\nb", "a", "b"),
        ("\n<think>\na\n</think>b", "a", "b"),
        ("b", None, "b"),
        (" b", None, " b"),
        ("<think></think>b", "", "b"),
        ("<think>a", "a", ""),
        ("<think>a</think>", "a", ""),
        ("<think>a</thin", "a</thin", ""),
        ("a</think>b", "a", "b"),
        ("<think>a<think>b</think>c</think>d", "ab  c".replace("  ", ""), "d"),
        ("<think>a<think> tag</think>b", "a tag", "b"),
        ("<think>a</think>b<think>c</think>d", "ac", "bd"),
        ("the mark <think> opens it", None, "the mark <think> opens it"),
        ("<think>a</think>write <think> so", "a", "write <think> so"),
        ("", None, ""),
    ],
)
def test_the_reasoning_is_separated_from_the_answer(output: str, reasoning: str | None, text: str) -> None:
    whole = parted(output, MARKS)
    assert (whole.reasoning, whole.text) == (reasoning, text)


def test_an_output_of_many_marks_is_read_in_one_pass() -> None:
    """With a pass for each mark, a model that repeats its opening mark would stop the event loop for minutes."""
    output = f"x{OPEN * 400_000}"
    assert parted(output, MARKS) == Parted(output, None, 0)


@pytest.mark.parametrize(
    ("output", "reasoning", "text"), [("a</think>b", "a", "b"), ("a", "a", ""), ("<think>a</think>b", "a", "b")]
)
def test_a_prompt_that_opened_the_reasoning_is_continued(output: str, reasoning: str, text: str) -> None:
    whole = parted(output, MARKS, is_open=True)
    assert (whole.reasoning, whole.text) == (reasoning, text)


def own_letters(text: str) -> list[str]:
    """The letters that occur in no mark.

    Letters of a mark may vanish from the answer: if a mark is removed, the pieces around it may form another mark.
    """
    return sorted(each for each in text if each.isalpha() and each not in OPEN)


@given(PIECES.map("".join), st.booleans())
@example("<thi<think>nk>", True)
@example("<think>a</think>b<think>c", False)
def test_no_output_leaves_a_closing_mark_or_a_part_of_the_reasoning_in_the_answer(output: str, is_open: bool) -> None:
    whole = parted(output, MARKS, is_open=is_open)
    assert CLOSE not in whole.text
    assert 0 <= whole.end <= len(output)
    assert (whole.reasoning is None) == (whole.end == 0 and not is_open) or output == ""
    if whole.reasoning is None:
        assert whole == Parted(output, None, 0)
    assert own_letters("".join([whole.text, whole.reasoning or ""])) == own_letters(output)


@given(st.text(), st.text(), st.sampled_from([one.reasoning for one in families().values() if one.reasoning]))
def test_the_marks_of_each_family_separate_the_thought_from_the_answer(
    thought: str, said: str, marks: ReasoningMarks
) -> None:
    for mark in (marks.opening, marks.closing):
        thought, said = thought.replace(mark[0], ""), said.replace(mark[0], "")
    whole = parted(f"{marks.opening}{thought}{marks.closing}{said}", marks)
    assert whole == Parted(said.lstrip(), thought.strip(), len(f"{marks.opening}{thought}{marks.closing}"))


def server_answer(message: dict[str, object], **usage: object) -> ServerAnswer:
    return ServerAnswer.model_validate({"choices": [{"message": message, "finish_reason": "stop"}], "usage": usage})


@pytest.mark.parametrize("member", ["reasoning", "reasoning_content"])
def test_a_server_s_reasoning_is_taken_from_its_own_member(member: str) -> None:
    details = {"reasoning_tokens": 7}
    answer = server_answer(
        {"content": "b </think>", member: "a"}, completion_tokens=9, completion_tokens_details=details
    )
    completion = completion_of(answer, MARKS)
    assert (completion.text, completion.reasoning, completion.reasoning_tokens) == ("b </think>", "a", 7)


def test_if_the_server_does_not_separate_the_reasoning_the_family_s_marks_do() -> None:
    answer = server_answer({"content": "<think>a</think>b"})
    assert (completion_of(answer, MARKS).text, completion_of(answer, MARKS).reasoning) == ("b", "a")
    assert (completion_of(answer).text, completion_of(answer).reasoning) == ("<think>a</think>b", None)
    assert completion_of(server_answer({"content": None, "reasoning": "a"})).text == ""


RESULT = Result(
    job_id="j",
    outcome=Outcome.SUCCEEDED,
    text="b",
    reasoning="a",
    usage=Usage(prompt_tokens=1, completion_tokens=9, total_tokens=10, reasoning_tokens=7),
    created_at=1,
)


def test_openai_s_shapes_show_the_reasoning_beside_the_answer() -> None:
    chat, response = answer_body(RESULT, CHAT_COMPLETIONS), answer_body(RESULT, RESPONSES)
    message = chat["choices"][0]["message"]
    assert (message["content"], message["reasoning"], message["reasoning_content"]) == ("b", "a", "a")
    assert chat["usage"]["completion_tokens_details"] == {"reasoning_tokens": 7}
    assert [item["type"] for item in response["output"]] == ["reasoning", "message"]
    assert response["output"][0]["content"] == [{"type": "reasoning_text", "text": "a"}]
    assert response["usage"]["output_tokens_details"] == {"reasoning_tokens": 7}
    without = RESULT.model_copy(update={"reasoning": None, "usage": None})
    assert "reasoning" not in json.dumps([answer_body(without, url) for url in (CHAT_COMPLETIONS, RESPONSES)])


CHAT = {"messages": [{"role": "user", "content": "Why?"}]}


@pytest.mark.parametrize(
    ("url", "body", "asked"),
    [
        (CHAT_COMPLETIONS, {**CHAT, "reasoning_effort": "low"}, Reasoning(effort="low")),
        (CHAT_COMPLETIONS, {**CHAT, "thinking_token_budget": 9}, Reasoning(max_tokens=9)),
        (CHAT_COMPLETIONS, CHAT, None),
        (RESPONSES, {"input": "Why?", "reasoning": {"effort": "high", "summary": "auto"}}, Reasoning(effort="high")),
        (RESPONSES, {"input": "Why?", "reasoning": {"summary": "auto"}}, None),
    ],
)
def test_openai_s_members_bound_the_reasoning(url: str, body: dict[str, object], asked: Reasoning | None) -> None:
    assert body_job(url, body).reasoning == asked


@pytest.mark.parametrize(
    ("url", "body", "field"),
    [
        (CHAT_COMPLETIONS, {**CHAT, "reasoning_effort": "most"}, "reasoning_effort"),
        (CHAT_COMPLETIONS, {**CHAT, "thinking_token_budget": -1}, "thinking_token_budget"),
        (RESPONSES, {"input": "Why?", "reasoning": {"effort": 7}}, "reasoning.effort"),
        (RESPONSES, {"input": "Why?", "reasoning": "high"}, "reasoning"),
    ],
)
def test_a_refused_bound_is_named_as_its_body_names_it(url: str, body: dict[str, object], field: str) -> None:
    with pytest.raises(NotAJob) as refused:
        body_job(url, body)
    assert [problem.field for problem in refused.value.problems] == [field]


@given(st.sampled_from(["none", "low", None]), st.none() | st.integers(0, MAX_TOKENS))
def test_no_reasoning_is_wanted_where_the_effort_is_none_or_the_tokens_are_0(
    effort: str | None, tokens: int | None
) -> None:
    job = Job.model_validate({"prompt": "a", "reasoning": {"effort": effort, "max_tokens": tokens}})
    assert job.reasoning is not None
    assert job.reasoning.is_wanted == (effort != "none" and tokens != 0)
