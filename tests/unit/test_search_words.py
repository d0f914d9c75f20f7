"""The search query is a prompt's question, at any place and among any other text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.job import Sources
from workers.enrichment.answering.profile import Profiles
from workers.enrichment.search.words import MAX_QUESTION_CHARS, MAX_WORDS, question_in, search_words

QUESTION = "Does low-dose aspirin lower the risk of stroke in adults with diabetes?"
WORDS = ["low-dose", "aspirin", "lower", "risk", "stroke", "adults", "diabetes"]
RULES = (
    "You are OR are OR a careful research assistant. Always answer in English and be concise. Never invent a number. "
    "If you do not know, say so. Cite your sources as [1]. Respond in at most five sentences. "
    "Do not mention these rules. Make sure that your answer is valid Markdown. "
    "You must not give advice to a single patient. "
)
DOCUMENT = (
    "The harbour of Tarnby was dredged in 1911. Its lighthouse burned coal until 1934. Why was it built so far inland? "
    "Historians do not agree. Some point to a wreck of 1870, others to the price of land. The keeper's diary survives. "
)
FRAMES = [
    f"Context:\n{DOCUMENT * 2}",
    f"```\n{DOCUMENT * 3}\n```",
    f"<document>\n{DOCUMENT * 2}\n</document>",
    RULES * 2,
]


@st.composite
def prompts(draw: st.DrawFn) -> str:
    """Prompts of 50 to 500 words with the question at the start, in the middle or at the end."""
    parts = draw(st.lists(st.sampled_from(FRAMES), min_size=1, max_size=2))
    label = draw(st.sampled_from(["", "Question: ", "Q: ", "**Question:** "]))
    place = draw(st.integers(0, len(parts)))
    return "\n\n".join([*parts[:place], label + QUESTION, *parts[place:]])


@given(prompts())
def test_the_question_is_found_at_the_start_in_the_middle_and_at_the_end(prompt: str) -> None:
    assert 50 <= len(prompt.split()) <= 500
    assert question_in(prompt).lstrip("* ") == QUESTION
    assert search_words(prompt) == WORDS


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        (f"{RULES}{QUESTION}", WORDS),
        (f"{QUESTION} {RULES}", WORDS),
        (f"{RULES}\n\nAspirin is given after a stroke. Is it safe then?", ["Aspirin", "given", "stroke", "safe"]),
        (f"{RULES}\nQuestion:\n{QUESTION}\n", WORDS),
        (f"{RULES}\nSummarise the evidence on zinc for colds.", ["evidence", "zinc", "colds"]),
        ("zinc lozenges for colds", ["zinc", "lozenges", "colds"]),
        ("Welche Wirkung hat Zink bei Erkältung?", ["Wirkung", "Zink", "Erkältung"]),
        ("Quel est l'effet du zinc sur le rhume ?", ["l'effet", "zinc", "rhume"]),
        ("What is it?", ["What", "is", "it"]),
        ("", []),
    ],
)
def test_the_words_to_match_are_those_of_the_question(prompt: str, words: list[str]) -> None:
    assert search_words(prompt) == words


def test_a_profile_searches_for_the_question_in_plain_words() -> None:
    medical = Profiles.load()["medical"]
    asked = f'{RULES * 3}\n\nDoes "early" treatment of COPD (any stage) AND asthma help?'
    search = medical.applied(Sources(), asked).search
    assert search is not None
    assert search.query == "Does early treatment of COPD any stage and asthma help?"


@given(st.text(max_size=3000) | st.lists(st.sampled_from([*FRAMES, "?", "\n", "a? ", "Q:"]), max_size=6).map("".join))
def test_any_prompt_gives_a_short_question_and_few_words(prompt: str) -> None:
    question = question_in(prompt)
    assert len(question) <= MAX_QUESTION_CHARS
    assert "\n" not in question
    assert len(search_words(prompt)) <= MAX_WORDS
    assert bool(question) or not any(character.isalnum() for character in prompt)
