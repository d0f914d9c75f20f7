"""The tokens left for sources in a prompt, by the job's window, the model's window, and all else that must fit."""

from __future__ import annotations

import tracemalloc

import pytest

from schemas.job import Job, Message
from workers.enrichment.choosing.tokens import estimated_tokens, room_for_sources

QUESTION = "Which bridge opened in 1987?"


def job(**fields: object) -> Job:
    return Job.model_validate({"prompt": QUESTION, "max_tokens": 100, **fields})


def test_without_a_window_there_is_no_limit() -> None:
    assert room_for_sources(job()) is None


def test_the_smaller_of_both_windows_counts() -> None:
    narrow = room_for_sources(job(context_window=1000))
    assert narrow is not None
    assert 0 < narrow < 900
    assert room_for_sources(job(), context_tokens=1000) == narrow
    assert room_for_sources(job(context_window=1000), context_tokens=4000) == narrow
    assert room_for_sources(job(context_window=4000), context_tokens=1000) == narrow


def test_the_answer_the_instructions_and_each_message_take_their_part() -> None:
    plain = room_for_sources(job(), context_tokens=1000)
    assert plain is not None
    assert room_for_sources(job(max_tokens=150), context_tokens=1000) == plain - 50
    assert room_for_sources(job(), "Be brief.", context_tokens=1000) == plain - 4
    turns = [Message(role="user", content=QUESTION), Message(role="assistant", content="Which?")]
    spoken = room_for_sources(job(prompt=None, messages=turns), context_tokens=1000)
    assert spoken is not None
    assert spoken < plain - 4


def test_a_question_that_fills_the_window_leaves_no_room() -> None:
    assert room_for_sources(job(prompt="word " * 1000), context_tokens=1000) == 0


def test_figures_and_marks_count_one_by_one_as_models_read_them() -> None:
    """An earlier version estimated this table of figures at 24 tokens, less than half of Gemma's 59."""
    assert estimated_tokens("Revenue 12,345.67 | 8,910.11 | 2023-11-04 | 45.2% | 1,002,003 | (17.8)") >= 55
    assert estimated_tokens("The bridge carries the road over the river. ") == 15 + 1
    assert estimated_tokens("东海大桥") == 4


@pytest.mark.parametrize(
    ("text", "tokens"),
    [("", 0), ("a few\nwords", 4), ("1987", 4), ("né", 2), ("桥 12", 4), ("{a}", 3), ("\ud800", 1)],
)
def test_letters_and_blanks_share_tokens_and_all_other_characters_have_their_own(text: str, tokens: int) -> None:
    assert estimated_tokens(text) == tokens


def test_an_estimate_makes_no_object_for_each_digit_of_a_long_text() -> None:
    """The estimate is made on the event loop, and a payload of 8 MiB of digits must not block the loop."""
    text = "1" * 1_000_000
    tracemalloc.start()
    try:
        assert estimated_tokens(text) == len(text)
        assert tracemalloc.get_traced_memory()[1] < 4 * len(text)
    finally:
        tracemalloc.stop()
