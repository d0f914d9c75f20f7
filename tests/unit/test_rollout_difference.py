"""Two answers are compared: JSON by its fields, other texts by their words."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.inference.rollout.difference import Said, Thresholds, difference, similarity, words

JSON = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False) | st.integers() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=15,
)
LONG = "The capital of France is Paris and it lies on the river Seine in the north of the country"
PLAIN = Thresholds()


def differs(
    one: str | None, other: str | None, *, is_json: bool = False, codes: tuple[Any, Any] = (None, None)
) -> float:
    return difference(Said(one, codes[0]), Said(other, codes[1]), is_json=is_json, thresholds=PLAIN)


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ("Paris", "paris.", 0),
        ("Paris", "Rome", 1),
        ("It is 5", "It is -5", 1),
        ("It is 5.", "It is 5", 0),
        ("It is 1.5", "It is 1.50", 1),
        ("x < 3", "x > 3", 1),
        ("\N{FULLWIDTH LATIN CAPITAL LETTER P}aris  is", "paris is", 0),
        (LONG, LONG.replace("north", "heart"), 1),
        (f"{LONG}. {LONG}", f"{LONG}. {LONG.replace('north', 'heart')}", 0),
        (LONG, " ".join(reversed(LONG.split())), 1),
        ("東京は日本の首都です", "東京は日本の首都です。", 0),
        ("東京は日本の首都です", "大阪は日本の首都です", 1),
        ("", "", 0),
        ("?", "!", 1),
        ("", "something", 1),
    ],
)
def test_texts_differ_by_their_words(one: str, other: str, expected: int) -> None:
    assert differs(one, other) == expected


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ('{"a": 1, "b": 2}', '{"b": 2, "a": 1}', 0),
        ('{"score": 0.800}', '{"score": 0.805}', 0),
        ('{"score": 0.80}', '{"score": 0.85}', 1),
        ('{"a": 1}', '{"a": 1, "b": 2}', 1),
        ('{"a": [1, 2]}', '{"a": [1, 2, 3]}', 1),
        ('{"a": true}', '{"a": 1}', 1),
        ('{"a": "Low"}', '{"a": "low"}', 0),
        ('{"a": "low"}', '{"a": "high"}', 1),
        ('{"a": null}', '{"a": 0}', 1),
        ("{broken", "{broken too", 1),
        ("9" * 5000, "9" * 5000 + "9", 0),
    ],
)
def test_json_differs_by_its_fields(one: str, other: str, expected: int) -> None:
    assert differs(one, other, is_json=True) == expected


@given(JSON)
def test_json_equals_itself_in_another_form(value: Any) -> None:
    assert differs(json.dumps(value), json.dumps(value, indent=3, ensure_ascii=False), is_json=True) == 0


@given(st.text(max_size=300), st.text(max_size=300), st.booleans())
def test_any_two_texts_have_a_difference_that_is_the_same_both_ways(one: str, other: str, is_json: bool) -> None:
    assert differs(one, other, is_json=is_json) == differs(other, one, is_json=is_json)
    assert differs(one, one, is_json=is_json) == 0


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "[" * 900 + "]" * 900])
def test_deeply_nested_answers_are_compared_as_text_or_by_their_fields(text: str) -> None:
    assert differs(text, text + " ", is_json=True) in (0, 1)


def test_failures_with_one_code_are_equal_and_a_failure_differs_from_an_answer() -> None:
    assert differs(None, None, codes=("not_json", "not_json")) == 0
    assert differs(None, None, codes=("not_json", "unsupported")) == 1
    assert differs("text", None, codes=(None, "not_json")) == 1


@given(st.lists(st.sampled_from("ab"), max_size=30), st.lists(st.sampled_from("ab"), max_size=30))
def test_a_similarity_is_symmetric_and_one_for_equal_words(one: list[str], other: list[str]) -> None:
    assert 0 <= similarity(one, other) == similarity(other, one) <= 1
    assert similarity(one, one) == 1


def test_words_keep_numbers_whole() -> None:
    assert words("It costs -3.50 €, i.e. 7%") == ["it", "costs", "-3.50", "i", "e", "7", "%"]


def test_a_short_text_must_have_equal_words_even_with_a_low_threshold() -> None:
    low = Thresholds(similarity=0.5)
    assert difference(Said("It is safe"), Said("It is not safe"), is_json=False, thresholds=low) == 1
    assert difference(Said(LONG), Said(LONG.replace("north", "heart")), is_json=False, thresholds=low) == 0
