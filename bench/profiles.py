"""Judges the written answers to 60 questions of each profile: `python -m bench.profiles [--model]`.

Each question has two sources, and answers of four kinds: right, unsupported, contradicted, and refusals of questions
that the sources do not answer. The real `answered` judges each answer under its profile, with both sources as the
evidence. A `finance` answer is the JSON of its profile. A contradicted `finance` answer is written twice: as a wrong
quote, and as a wrong claim beside a right quote.

With `--model`, the demo's small model also answers each question, or each profile's first N (`--questions N`), and its
answers are judged in the same way. Without `--model`, the bench uses no clock and no random numbers, so the results are
equal on every machine.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tomllib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

from bench.result import figure, parsed, table
from schemas.job import Job
from workers.enrichment.answering.citations import BEARING, Draft, Unsupported
from workers.enrichment.answering.grounding import GroundedPrompt, ground
from workers.enrichment.answering.profile import Profile, Profiles
from workers.enrichment.evidence import Evidence, NumberedSource

FOLDER: Final = Path(__file__).parent / "evaluation"
PROFILES: Final = ("medical", "finance")
MODEL_TOKENS: Final = {"medical": 64, "finance": 400}
"""Cap on the tokens of the small model's answers: the model often ignores instructions, and would fill any length."""
_HEAD: Final = ("profile", "answers", "number", "supported", "withheld", "flagged")


class AnswerKind(StrEnum):
    """The kind of a written answer."""

    RIGHT = "right"
    UNSUPPORTED = "unsupported"
    CONTRADICTED = "contradicted"
    MISREAD = "contradicted beside a right quote"
    REFUSING = "refusing"


class Fate(StrEnum):
    """The outcome of an answer under its profile."""

    SUPPORTED = "supported"
    """The result has the answer, and a source supports every citation of it."""
    WITHHELD = "withheld"
    """The job fails with `unsupported`: the profile gives no answer without support."""
    FLAGGED = "flagged"
    """The result has the answer, but no citation, or a citation without support."""


@dataclass(frozen=True, slots=True)
class ProfileQuestion:
    """A question with its sources, and its written answers.

    The sources answer a question if one of its written answers is right.
    """

    profile: str
    ask: str
    evidence: Evidence
    answers: tuple[tuple[AnswerKind, str], ...]

    @property
    def is_answerable(self) -> bool:
        """True if the sources answer the question."""
        return any(kind is AnswerKind.RIGHT for kind, _ in self.answers)


def load_questions(profile: str) -> list[ProfileQuestion]:
    """Return the profile's questions, in the order of the file."""
    with (FOLDER / f"profile_{profile}.toml").open("rb") as opened:
        topics = tomllib.load(opened)["topic"]
    return [_question(profile, topic["sources"], each) for topic in topics for each in topic["question"]]


def judged(text: str, evidence: Evidence, profile: Profile) -> Fate:
    """Return the fate of this answer under the profile."""
    try:
        answer = Draft.of(text, evidence, profile, is_json=profile.evidence_chain is not None).answer()
    except Unsupported:
        return Fate.WITHHELD
    levels = [citation.support in BEARING for citation in answer.citations]
    return Fate.SUPPORTED if levels and all(levels) else Fate.FLAGGED


def _question(profile: str, sources: Sequence[str], written: dict[str, Any]) -> ProfileQuestion:
    numbered = (
        NumberedSource(number, f"https://a.example/{number}", f"https://a.example/{number}", None, (text,))
        for number, text in enumerate(sources, start=1)
    )
    answers = _finance(written) if profile == "finance" else _medical(written)
    return ProfileQuestion(profile, written["ask"], Evidence(tuple(numbered), question=written["ask"]), tuple(answers))


def _medical(written: dict[str, Any]) -> Iterator[tuple[AnswerKind, str]]:
    for kind in AnswerKind:
        if kind in written:
            yield kind, written[kind]


def _finance(written: dict[str, Any]) -> Iterator[tuple[AnswerKind, str]]:
    source, quote = written.get("source", 1), written.get("quote", "")
    if "refusing" in written:
        yield AnswerKind.REFUSING, _assessed(written["refusing"])
    else:
        yield AnswerKind.RIGHT, _assessed("", (written["right"], source, quote))
        yield AnswerKind.CONTRADICTED, _assessed("", (written["contradicted"], source, written["contradicted"]))
        yield AnswerKind.MISREAD, _assessed("", (written["contradicted"], source, quote))
    yield AnswerKind.UNSUPPORTED, _assessed("", (written["unsupported"], source, written["unsupported"]))


def _assessed(summary: str, *items: tuple[str, int, str]) -> str:
    evidence = [{"claim": claim, "source": source, "quote": quote} for claim, source, quote in items]
    return json.dumps({"summary": summary, "evidence": evidence, "risk_score": 50, "risk_level": "medium"})


def prompted(question: ProfileQuestion, profile: Profile) -> GroundedPrompt:
    """Return the prompt that a worker would give its engine for this question."""
    return ground(question.ask, question.evidence, instructions=profile.instructions)


async def _model_answers(questions: Sequence[ProfileQuestion], profiles: Profiles) -> list[str]:
    """Let the demo's small model answer all questions.

    A newline ends each of the model's answers, since a base model would continue the text.
    """
    from scripts.play.model import small_model
    from telemetry.metrics import Metrics
    from workers.engines.base import request_for
    from workers.engines.vllm import VllmEngine
    from workers.engines.vllm.settings import VllmSettings

    engine = VllmEngine(VllmSettings(model=str(small_model()), context_tokens=4096, stop=("\n",)), Metrics())
    await engine.start()
    try:
        requests = [
            request_for(
                Job(
                    prompt=prompted(question, profiles[question.profile]).prompt,
                    max_tokens=MODEL_TOKENS[question.profile],
                    temperature=0.0,
                    response_format=profiles[question.profile].answer_format(len(question.evidence.sources)),
                ),
                str(number),
            )
            for number, question in enumerate(questions)
        ]
        completions = await asyncio.gather(*(engine.generate(request) for request in requests))
    finally:
        await engine.close()
    return [completion.text.strip() for completion in completions]


def _rows(judgements: Sequence[tuple[str, str, Fate]]) -> list[tuple[object, ...]]:
    counts = Counter(judgements)
    groups = dict.fromkeys((profile, kind) for profile, kind, _ in judgements)
    outcomes = {group: [counts[(*group, outcome)] for outcome in Fate] for group in groups}
    return [(*group, sum(found), *found) for group, found in outcomes.items()]


def main() -> None:
    """Print the fate of each kind of answer, and the contradictions that pass."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", action="store_true", help="let the demo's small model answer too")
    parser.add_argument("--questions", type=int, help="number of questions of each profile that the model answers")
    options = parsed(parser)
    profiles = Profiles.load()
    questions = [question for profile in PROFILES for question in load_questions(profile)]
    written = [
        (question, kind, text, judged(text, question.evidence, profiles[question.profile]))
        for question in questions
        for kind, text in question.answers
    ]
    table(_HEAD, _rows([(question.profile, kind, outcome) for question, kind, _, outcome in written]))
    for profile in PROFILES:
        for kind in (AnswerKind.CONTRADICTED, AnswerKind.MISREAD, AnswerKind.RIGHT):
            ends = [fate for question, of, _, fate in written if (question.profile, of) == (profile, kind)]
            if not ends:
                continue
            figure(
                f"`{profile}`: answers that are {kind}, and pass as supported",
                f"{ends.count(Fate.SUPPORTED)} of {len(ends)}",
            )
    for question, kind, text, outcome in written:
        if (outcome is Fate.SUPPORTED) is not (kind is AnswerKind.RIGHT):
            print(f"{question.profile}: {outcome}, though it is {kind}: {text}")
    if options.model:
        asked = [one for profile in PROFILES for one in load_questions(profile)[: options.questions]]
        answers = asyncio.run(_model_answers(asked, profiles))
        fates = [
            (
                one.profile,
                "answerable" if one.is_answerable else "not answerable",
                judged(text, one.evidence, profiles[one.profile]),
            )
            for one, text in zip(asked, answers, strict=True)
        ]
        table(_HEAD, _rows(fates))


if __name__ == "__main__":
    main()
