"""The evaluation questions of the profiles `medical` and `finance`."""

from __future__ import annotations

from collections import Counter

import pytest

from bench.profiles import PROFILES, AnswerKind, Fate, ProfileQuestion, judged, load_questions, prompted
from workers.enrichment.answering.profile import Profiles

LOADED = Profiles.load()
QUESTIONS = {profile: load_questions(profile) for profile in PROFILES}


def outcomes(profile: str, kind: AnswerKind) -> Counter[Fate]:
    answers = [(text, one) for one in QUESTIONS[profile] for written, text in one.answers if written is kind]
    return Counter(judged(text, one.evidence, LOADED[profile]) for text, one in answers)


@pytest.mark.parametrize("profile", PROFILES)
def test_each_profile_has_sixty_questions_and_a_fifth_of_them_has_no_answer(profile: str) -> None:
    asked = QUESTIONS[profile]
    assert (len(asked), len({one.ask for one in asked}), sum(not one.is_answerable for one in asked)) == (60, 60, 12)


@pytest.mark.parametrize("profile", PROFILES)
def test_right_answers_are_given_with_support_and_others_are_not(profile: str) -> None:
    assert outcomes(profile, AnswerKind.RIGHT)[Fate.SUPPORTED] >= 47
    assert outcomes(profile, AnswerKind.CONTRADICTED)[Fate.SUPPORTED] <= 3
    assert outcomes(profile, AnswerKind.UNSUPPORTED)[Fate.SUPPORTED] <= 1
    assert outcomes("finance", AnswerKind.MISREAD)[Fate.SUPPORTED] == 0


def test_a_medical_answer_without_support_is_withheld_and_a_financial_one_is_flagged() -> None:
    assert outcomes("medical", AnswerKind.UNSUPPORTED)[Fate.FLAGGED] == 0
    assert outcomes("finance", AnswerKind.UNSUPPORTED)[Fate.FLAGGED] == 60
    assert outcomes("finance", AnswerKind.REFUSING)[Fate.FLAGGED] == 12


@pytest.mark.parametrize("question", [QUESTIONS[profile][0] for profile in PROFILES], ids=PROFILES)
def test_a_model_is_asked_as_a_worker_asks_it(question: ProfileQuestion) -> None:
    prompt = prompted(question, LOADED[question.profile]).prompt or ""
    assert prompt.startswith(LOADED[question.profile].instructions)
    assert question.ask in prompt
    assert all(source.passages[0] in prompt for source in question.evidence.sources)
