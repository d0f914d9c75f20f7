"""Judges whether the cited sources bear a sentence: by rules for figures, names and quotations, else by a judge.

A sentence is judged against its premises: the two or three nearest sentences of the cited sources. The rules decide
only these cases:

- All words stand in a source, in this order: supported, `exact`.
- A quotation is in no source: contradicted, or unsupported if the sentence has little else in common with the sources.
- A number, unit, date or name has no equal in the premises: contradicted if the rest is close, else unsupported.
- The sentence has too few words in common with the sources: unsupported.

All other sentences are a `Judge`'s. Without a judge, they count as supported by their words.
"""

from __future__ import annotations

import asyncio
import json
import math
import re
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import Final, Protocol

from rapidfuzz.distance import LCSseq

from schemas.operator_error import OperatorError
from schemas.result import Support
from workers.enrichment.answering.languages import Language, language_of
from workers.enrichment.answering.names import Name, NamesOf, canonical, in_one_word, names
from workers.enrichment.answering.places import Placed, exchanged, misplaced
from workers.enrichment.answering.quantities import Figures, figures, missing, rivals, swapped, years_of
from workers.enrichment.answering.quotes import without_links
from workers.enrichment.answering.sentences import MAX_SAID_CHARS, Sentence, blanked, normal, sentences
from workers.enrichment.evidence import Evidence, NumberedSource
from workers.enrichment.settings import ENTAILMENT_SETTING, EnrichmentSettings
from workers.processes.model_process import ModelAway, ModelNotLoaded, ModelProcess

LEXICAL_SHARE: Final = 0.6
"""Share of a sentence's content words that its premises must have, without a judge."""
FUZZY_SHARE: Final = 0.8
"""Share of a sentence's words that one sentence of a source has in the same order."""
GATE_SHARE: Final = 0.1
"""Share of content words below which no judge is asked: no sentence of the source bears the sentence."""
CLOSE_SHARE: Final = 0.5
"""From this share on, a figure or name without an equal contradicts the source; below it, it is only unsupported."""
ALONE_SHARE: Final = 0.75
"""A source's sentence with this share must have all figures itself; below it, the premises have them together."""
MAX_PREMISES: Final = 3
_MAX_QUOTES: Final = 20
_QUOTE_WORDS: Final = 3
"""A shorter quotation may be a term, so it counts only if the sentence says that somebody said it."""

_TOKEN: Final = re.compile(
    r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|(?:(?<![\w)])-)?\d+(?:[.,]\d+)*|[^\W\d_]+(?:'[^\W\d_]+)*|[%‰°$€£¥₹<>≤≥=+^]"
)
_SPEAKS: Final = re.compile(
    r"\b(?:said|says|say|told|tells|wrote|writes|called|calls|described|describes|stated|states|declared|according|"
    r"quoted|quotes|warned|added|argued|claimed|asked|announced|remarked|noted|concluded|put it)\b",
    re.IGNORECASE,
)
_CLAUSE: Final = re.compile(
    r"[,;:](?=\s)|\s[—-]\s|\s(?:but|while|although|though|whereas|and|because|since|which|until|"
    r"aber|sondern|während|obwohl|und|weil|mais|tandis|et|parce|pero|sino|mientras|aunque|y|porque|ma|mentre|maar|e)\s"
)
_FEWEST_IN_COMMON: Final = 2
PLACE_SHARE: Final = 0.8
"""Share of a sentence's words, without its names, from which on one clause of a source is about the same."""
_NUMBERED: Final = re.compile(r"\s*\(\d{1,2}\)(?=\s*[.!?]?$)")
"""A number in parentheses behind a sentence: a mark of a source, in a form that is no citation."""
_OMISSION: Final = re.compile(r"\s*(?:\.\.\.|…|\[[^\[\]]{0,40}\]|\([^()]{0,40}\))\s*")


class Verdict(StrEnum):
    """A judge's verdict on a sentence and its premises."""

    SUPPORTED = "supported"
    CONTRADICTED = "contradicted"
    UNDECIDED = "undecided"
    NOT_CONTRADICTED = "not_contradicted"
    """The verdict of a judge that knows contradictions only: the sentence keeps the support of its words."""


class Judge(Protocol):
    """The seam of judges: a cross-encoder in a process of its own, or the engine's model."""

    async def judge(self, sentence: str, premises: Sequence[str]) -> Verdict:
        """Say whether the premises bear the sentence. Raises JudgeAway."""
        ...


class JudgeAway(Exception):  # noqa: N818 - named after the event
    """The judge gives no verdict. The text tells the result's reader the reason."""


@dataclass(frozen=True, slots=True)
class Finding:
    """The outcome of the rules for one sentence and some sources."""

    support: Support
    """The level by words; UNSUPPORTED or CONTRADICTED if a rule decided so."""
    is_ruled: bool
    """True if a judge has nothing to add."""
    premises: tuple[SourceSentence, ...] = ()
    """The nearest sentences of the sources, the nearest first."""
    lost: tuple[str, ...] = ()
    """The figures, names and quotations that no source has."""


class SourceSentence:
    """A sentence of a source."""

    def __init__(self, number: int, text: str, language: Language, written: str = "") -> None:
        self.number = number
        self.text = text
        self.language = language
        self.written = written
        """The sentence as the source writes it, with its marks."""
        self.tokens = tokens(text)
        self.words = frozenset(_stems(self.tokens, language))

    @cached_property
    def figures(self) -> Figures:
        """The sentence's numbers and dates."""
        return figures(self.text[:MAX_SAID_CHARS], self.language)

    @cached_property
    def negates(self) -> bool:
        """True if the sentence denies something."""
        return self.language.negates(self.tokens)

    @cached_property
    def vocabulary(self) -> frozenset[str]:
        """The sentence's words as written, in lower case."""
        return frozenset(self.tokens)

    @cached_property
    def opposites(self) -> frozenset[str]:
        """The opposites of the sentence's words, such as "indicated" for "contraindicated"."""
        return self.language.opposites(self.vocabulary)

    def turned(self, other: SourceSentence) -> int:
        """Return the number of words that stand in the other sentence as their opposite."""
        mine, theirs = self.vocabulary, other.vocabulary
        return len((mine & other.opposites) - theirs) + len((theirs & self.opposites) - mine)

    @cached_property
    def placed(self) -> Placed:
        """The sentence's figures, names and words with their places."""
        return Placed(self.text[:MAX_SAID_CHARS], self.figures, self.language)

    @cached_property
    def clauses(self) -> list[SourceSentence]:
        """The sentence's clauses; the sentence itself if it has only one."""
        parts = [part for part in _CLAUSE.split(self.text[:MAX_SAID_CHARS]) if part.strip()]
        return [SourceSentence(self.number, part, self.language) for part in parts] if len(parts) > 1 else [self]


class SourceText:
    """A source, split into sentences once for all sentences of an answer."""

    def __init__(self, source: NumberedSource) -> None:
        plain = [without_links(text) for text in (source.title or "", *source.passages)]
        language = language_of(" ".join(plain))
        self.sentences = [
            SourceSentence(source.number, one.text, one.language, text[one.start : one.end])
            for text in plain
            for one in sentences(text, (), language)
        ]
        self._whole = " ".join(normal(text) for text in plain)
        self._starts: list[int] = []
        parts = []
        length = 0
        for one in self.sentences:
            self._starts.append(length)
            parts.append(" ".join(one.tokens))
            length += len(parts[-1]) + 1
        self.line = f" {' '.join(parts)} "

    @cached_property
    def names(self) -> NamesOf:
        """The source's words as names."""
        return NamesOf([self._whole])

    @cached_property
    def years(self) -> list[tuple[int, int]]:
        """The years that the source names."""
        return years_of(figures(self._whole).dates)

    def quotes(self, said: Sequence[str]) -> bool:
        """True if these words stand in the source, one after the other."""
        return bool(said) and f" {' '.join(said)} " in self.line

    def states(self, said: Sequence[str], language: Language) -> bool:
        """True if these words stand in the source as a statement: no word before them turns their meaning."""
        wanted = f" {' '.join(said)} "
        at = self.line.find(wanted) if said else -1
        while at >= 0:
            start = max((one for one in self._starts if one <= at), default=0)
            if language.turned.isdisjoint(self.line[start : at + 1].split()):
                return True
            at = self.line.find(wanted, at + 1)
        return False


class Sources:
    """The sources of one answer, by number."""

    def __init__(self, evidence: Evidence) -> None:
        self._evidence = {source.number: source for source in evidence.sources}
        self._read: dict[int, SourceText] = {}

    @property
    def numbers(self) -> Collection[int]:
        """The numbers by which an answer may cite the sources."""
        return self._evidence.keys()

    def __getitem__(self, number: int) -> SourceText:
        """Return the source, which is split at its first use."""
        if number not in self._read:
            self._read[number] = SourceText(self._evidence[number])
        return self._read[number]

    def name(self, number: int) -> str:
        """Return the name of source `number` in a citation. An unknown source is named by its number in brackets."""
        source = self._evidence.get(number)
        return f"[{number}]" if source is None else source.id

    def find(self, sentence: Sentence, numbers: Iterable[int]) -> Finding:
        """Judge the sentence by rules against the union of these sources."""
        sources = [self[number] for number in numbers]
        said = _Said(sentence)
        stating = [source for source in sources if source.states(said.tokens, said.language)]
        premises = _nearest(said, [one for source in stating or sources for one in source.sentences])
        held = tuple(premises)
        if stating:
            return Finding(Support.EXACT, True, held)
        if not premises or not (said.words or said.quotes or said.figures.spans):
            return Finding(Support.UNSUPPORTED, True)
        support, is_ruled, lost = _ruled(said, premises, sources)
        return Finding(support, is_ruled, held, tuple(lost))


class _Said:
    """A sentence of the answer, read for the rules."""

    def __init__(self, sentence: Sentence) -> None:
        text = _NUMBERED.sub("", without_links(sentence.text))
        self.language = sentence.language
        self.tokens = tokens(text)
        text = text[:MAX_SAID_CHARS]
        self.whole = SourceSentence(0, text, self.language)
        """The sentence, read as a sentence of a source."""
        speaks = _SPEAKS.search(text) is not None
        quotes = [one for one in sentence.quotes[:_MAX_QUOTES] if speaks or len(tokens(one)) >= _QUOTE_WORDS]
        self.quotes = [part for quote in quotes for part in map(tokens, _OMISSION.split(quote)) if part]
        for quote in quotes:
            text = text.replace(quote, " " * len(quote))
        self.figures = figures(text, self.language) if quotes else self.whole.figures
        self.ranked = frozenset(self.stems(self.tokens))
        self.plain = blanked(text, self.figures.spans)
        """The text without figures and quotations."""
        self.words = frozenset(word for word in self.stems(tokens(self.plain)) if not word[0].isdigit())
        """The stems of the content words outside of figures and quotations."""

    @cached_property
    def names(self) -> list[Name]:
        """The names outside of figures and quotations."""
        return names(self.plain, self.language)

    def stems(self, some: Iterable[str]) -> Iterable[str]:
        """Yield the stems of the content words, and the numbers."""
        return _stems(some, self.language)

    def share(self, words: Collection[str]) -> float:
        """Return the share of the content words among `words`; 1 if the sentence is all figures and quotations."""
        return _share(self.words, words)


def _nearest(said: _Said, candidates: Sequence[SourceSentence]) -> list[SourceSentence]:
    """Return the sentences with the rarest words in common, the nearest first."""
    counts = Counter(word for one in candidates for word in one.words & said.ranked)
    rarity = {word: math.log(1 + len(candidates) / count) for word, count in counts.items()}
    scored = [(sum(rarity[word] for word in one.words & said.ranked), at) for at, one in enumerate(candidates)]
    best = sorted((one for one in scored if one[0] > 0), key=lambda one: (-one[0], one[1]))
    return [candidates[at] for _, at in best[:MAX_PREMISES]]


def _ruled(
    said: _Said, premises: Sequence[SourceSentence], sources: Sequence[SourceText]
) -> tuple[Support, bool, Sequence[str]]:
    """Return the support, whether a judge has nothing to add, and what no source has."""
    union = frozenset(word for one in premises for word in one.words)
    alone = [said.share(one.words) for one in premises]
    best = max(alone)
    if false := [quote for quote in said.quotes if not any(source.quotes(quote) for source in sources)]:
        words = frozenset(word for quote in false for word in said.stems(quote))
        return _against(_share(words, union) >= CLOSE_SHARE), True, [" ".join(quote) for quote in false]
    years = [year for source in sources for year in source.years] if said.figures.dates else []
    lost = missing(said.figures, [one.figures for one in premises], years)
    lost += _lost_names(said, premises, sources)
    same = [one for one, each in zip(premises, alone, strict=True) if each >= max(ALONE_SHARE, best - 0.1)]
    lost = lost or _displaced(said, premises) or _displaced_figures(said, same) or _placed_otherwise(said, premises)
    if lost:
        return _against(best >= CLOSE_SHARE), True, lost
    if _is_negated(said, premises):
        return Support.CONTRADICTED, True, ()
    hard = sum(not one.is_soft for one in said.figures.quantities) + len(said.figures.dates)
    share = said.share(union)
    share = (share * len(said.words) + hard) / (len(said.words) + hard) if said.words else share
    if share < LEXICAL_SHARE:
        return Support.UNSUPPORTED, share < GATE_SHARE, ()
    if said.quotes:
        return Support.EXACT, True, ()
    is_close = any(_is_close(said.tokens, one.tokens) for one in premises)
    return Support.FUZZY if is_close else Support.LEXICAL, False, ()


def _against(is_close: bool) -> Support:
    return Support.CONTRADICTED if is_close else Support.UNSUPPORTED


def _lost_names(said: _Said, premises: Sequence[SourceSentence], sources: Sequence[SourceText]) -> list[str]:
    """Return the sentence's names that no source has."""
    lost = [one for one in said.names if not any(source.names.has(one.text) for source in sources)]
    first = [one.text for one in lost if not one.is_sure and _stands_for_a_name(one.text, said, premises)]
    return [one.text for one in lost if one.is_sure] + first


def _displaced(said: _Said, premises: Sequence[SourceSentence]) -> list[str]:
    """Return figures and names in whose place the nearest clause has another one.

    The source says "8% in Rome and 9% in Oslo"; the sentence says "9% in Rome". A figure or name that the clause has
    and the sentence lacks is a rival.
    """
    own = _words_of(said.names, said.language)
    rest = said.words - own or said.words
    clauses = [clause for one in premises for clause in one.clauses]
    best = max((_share(rest, clause.words) for clause in clauses), default=0.0)
    if best < PLACE_SHARE or len(rest) < 2:
        return []
    nearest = [clause for clause in clauses if _share(rest, clause.words) >= best]
    most = max(said.share(clause.words) for clause in nearest)
    if any(not rivals(said.figures, one.figures) and own <= one.words for one in nearest):
        return []
    found = [rivals(said.figures, one.figures) for one in nearest if said.share(one.words) >= most]
    if all(found):
        return found[0]
    here = nearest[0]
    strange = own - here.words
    if not strange or any(own & one.words and not own - one.words for one in nearest):
        return []
    theirs = _words_of(names(here.text, here.language), here.language)
    return sorted(strange) if theirs - said.ranked else []


def _words_of(some: Iterable[Name], language: Language) -> set[str]:
    """Return the stems of the names' words."""
    return {word for name in some for word in _stems(tokens(name.text), language)}


def _displaced_figures(said: _Said, told: Sequence[SourceSentence]) -> list[str]:
    """Return figures that each of these sentences of a source, which say about the same, states otherwise."""
    found = [rivals(said.figures, one.figures) or swapped(said.figures, one.figures) for one in told]
    return found[0] if found and all(found) else []


def _placed_otherwise(said: _Said, premises: Sequence[SourceSentence]) -> list[str]:
    """Return figures or names that stand at other words in the source."""
    told = [one.placed for one in premises]
    return next(filter(None, (exchanged(said.whole.placed, one) for one in told)), []) or misplaced(
        said.whole.placed, told
    )


def _share(wanted: Collection[str], words: Collection[str]) -> float:
    return sum(word in words for word in wanted) / len(wanted) if wanted else 1.0


def _stands_for_a_name(first: str, said: _Said, premises: Sequence[SourceSentence]) -> bool:
    """True if a sentence's first word, which may only be capital by its place, stands where the source has a name.

    All other words of the sentence are then those of one sentence of the source, which begins with another word.
    """
    stem, common = said.language.stem, said.language.common
    own = stem(canonical(first))
    rest = said.words - {own}
    if not rest or first.endswith("ly"):
        return False
    for one in premises:
        if own in one.words or not rest <= one.words:
            continue
        opening = next((word for word in one.tokens if word not in common), "")
        if opening and stem(canonical(opening)) not in said.words:
            return True
    return False


def _is_negated(said: _Said, premises: Sequence[SourceSentence]) -> bool:
    """True if a clause of the sentence says nearly all that its nearest clause of the source says, and only one denies.

    A sentence of one clause may also be a part of a longer clause.
    """
    told = [clause for one in premises for clause in one.clauses]
    parts = said.whole.clauses
    return any(_is_denied(part, told, is_whole=len(parts) == 1) for part in parts)


def _is_denied(said: SourceSentence, told: Sequence[SourceSentence], *, is_whole: bool) -> bool:
    enough = len(said.words) if is_whole else math.inf
    compared = []
    for one in told:
        turned = said.turned(one)
        common = len(said.words & one.words) + turned
        is_denial = (said.negates != one.negates) != (turned % 2 == 1)
        compared.append((common, common >= PLACE_SHARE * min(len(one.words), enough), is_denial))
    most = max(common for common, _, _ in compared)
    near = [is_denial for common, is_near, is_denial in compared if common == most and is_near]
    return most >= _FEWEST_IN_COMMON and bool(near) and all(near)


def _is_close(said: Sequence[str], told: Sequence[str]) -> bool:
    return len(said) >= 3 and LCSseq.similarity(said, told) >= FUZZY_SHARE * len(said)


def tokens(text: str) -> tuple[str, ...]:
    """Return a text's words, numbers with their signs, and signs of units, in lower case."""
    return tuple(_TOKEN.findall(in_one_word(normal(text)).casefold()))


def _stems(some: Iterable[str], language: Language) -> Iterable[str]:
    """Yield the stems of the content words, and the numbers."""
    for word in map(language.content, some) if language.elides else some:
        if word in language.common:
            continue
        if word[0].isalnum():
            yield language.stem(canonical(word)) if word[0].isalpha() else word
        elif word[0] == "-":
            yield word


_MODULE: Final = "workers.enrichment.answering.entailment"
"""The process's side."""
LOAD_SECONDS: Final = 300.0
SENTENCE_SECONDS: Final = 20.0
"""Timeout of one sentence; a process that takes longer counts as hung."""


class EntailmentModelRefused(OperatorError):  # noqa: N818 - named after the event, as EmbeddingModelRefused is
    """The cross-encoder cannot be used. The text names the setting, the reason and the fix."""


class CrossEncoder:
    """Runs one process with the model of the settings' folder, for all jobs."""

    def __init__(self, folder: str, settings: EnrichmentSettings) -> None:
        self._folder = folder
        self._settings = settings
        classes = settings.entailment_classes
        arguments = (folder, classes) if classes is not None else (folder,)
        self._process = ModelProcess("judge of answers", _MODULE, *arguments, load_seconds=LOAD_SECONDS)

    async def start(self) -> None:
        """Load the model, which takes seconds. Raises EntailmentModelRefused."""
        try:
            await self._process.start()
        except ModelNotLoaded as reason:
            raise EntailmentModelRefused(
                f"{ENTAILMENT_SETTING} names {self._folder}, which cannot be loaded: {reason}. "
                "Name the model's .onnx file or a folder with it, tokenizer.json and config.json, or unset the variable"
            ) from None

    async def close(self) -> None:
        """End the process."""
        await asyncio.to_thread(self._process.close)

    async def judge(self, sentence: str, premises: Sequence[str]) -> Verdict:
        """Ask the model, in turn. Raises JudgeAway."""
        task = json.dumps({"sentence": sentence, "premises": list(premises)}).encode("utf-8", "replace")
        try:
            asked = self._process.ask(dict, "probabilities", {}, task, SENTENCE_SECONDS)
            return self._verdict(await asyncio.wrap_future(asked))
        except ModelAway as away:
            raise JudgeAway(str(away)) from None

    def _verdict(self, found: dict[str, float]) -> Verdict:
        """Return the verdict by the settings' thresholds. A model without `entailment` knows contradictions only."""
        if found["contradiction"] >= self._settings.entailment_contradicts:
            return Verdict.CONTRADICTED
        if "entailment" not in found:
            return Verdict.NOT_CONTRADICTED
        return Verdict.SUPPORTED if found["entailment"] >= self._settings.entailment_supports else Verdict.UNDECIDED
