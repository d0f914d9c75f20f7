"""The input filter as gateway and workers use it: `loading` gives a Screen, and its `check` reads a job.

`RulesRefused`, which `load` and `start` raise, names every mistake in the operator's file and in the files that it
names. A check raises nothing for any job.

A redaction puts markers such as `[redacted:card]` in place of matches. The worker screens each text again after the
gateway has redacted it. Markers in the text are left as they are, and a match inside a marker is ignored. So screening
a redacted text changes nothing.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple, Self

from schemas.job import Job
from schemas.screening import Category, FieldName, ScreeningFinding, Verdict
from workers.processes.model_process import ModelAway
from workers.screening.classifier_process import Classifier, ModelRefused, check_folder
from workers.screening.loading import RulesRefused
from workers.screening.plain import plain
from workers.screening.rules import ClassifierRule
from workers.screening.rules_file import CompiledRule, MatchingRule, RuleRefused, compiled, read_rules
from workers.screening.texts import JobText, rewritten, texts_of


class Cut(NamedTuple):
    """A place of a text, [start, end), that a marker replaces."""

    start: int
    end: int
    marker: str


def marker(label: str) -> str:
    """Return the marker with this label: the kind of personal data, or the rule's name."""
    return f"[redacted:{label}]"


class Markers:
    """Finds the markers of all rules in a text."""

    def __init__(self, labels: Iterable[str]) -> None:
        alternatives = "|".join(map(re.escape, sorted(labels, key=len, reverse=True)))
        self._pattern = re.compile(rf"\[redacted:(?:{alternatives})\]") if alternatives else None

    def places(self, text: str) -> list[Cut]:
        """Return the places of the markers in a text, in order."""
        if self._pattern is None or "[redacted:" not in text:
            return []
        return [Cut(*found.span(), found[0]) for found in self._pattern.finditer(text)]


def outside(spans: Iterable[Cut], markers: Sequence[Cut]) -> list[Cut]:
    """Return the spans in order, without those that lie inside markers.

    A span that cuts a marker includes the whole marker.
    """
    kept: list[Cut] = []
    number = 0
    for span in sorted(spans):
        while number < len(markers) and markers[number].end <= span.start:
            number += 1
        touched = []
        for place in markers[number:]:
            if place.start >= span.end:
                break
            touched.append(place)
        if sum(min(span.end, place.end) - max(span.start, place.start) for place in touched) == span.end - span.start:
            continue
        if touched:
            span = Cut(min(span.start, touched[0].start), max(span.end, touched[-1].end), span.marker)
        kept.append(span)
    return kept


def merged(spans: Iterable[Cut]) -> list[Cut]:
    """Return the spans in order, with overlapping and touching ones joined under the marker of the first."""
    joined: list[Cut] = []
    for span in sorted(spans, key=lambda each: (each.start, -each.end)):
        if joined and span.start <= joined[-1].end:
            last = joined[-1]
            joined[-1] = Cut(last.start, max(last.end, span.end), last.marker)
        else:
            joined.append(span)
    return joined


def redacted(text: str, cuts: Sequence[Cut]) -> str:
    """Return the text with each cut's marker in its place. `cuts` are in order and do not overlap."""
    pieces: list[str] = []
    done = 0
    for cut in cuts:
        pieces += (text[done : cut.start], cut.marker)
        done = cut.end
    return "".join((*pieces, text[done:]))


def redacted_parts(parts: Sequence[str], cuts: Sequence[Cut]) -> tuple[str, ...]:
    """Return a message's parts with each cut's marker in its place.

    The cuts' places are offsets in the parts' joined text. A cut over several parts leaves one marker.
    """
    changed: list[str] = []
    start = first = 0
    marked = -1
    for part in parts:
        end = start + len(part)
        while first < len(cuts) and cuts[first].end <= start:
            first += 1
        inside: list[Cut] = []
        for number in range(first, len(cuts)):
            cut = cuts[number]
            if cut.start >= end:
                break
            text = cut.marker if number > marked else ""
            inside.append(Cut(max(cut.start, start) - start, min(cut.end, end) - start, text))
            marked = number
        changed.append(redacted(part, inside))
        start = end + 1
    return tuple(changed)


_MOST_PASSES = 4
"""The maximum number of passes over a text. After a pass has inserted a marker, the text beside the marker may match
for the first time. Two passes are usual.
"""
_TENANTS_KEPT = 1024
_UNAVAILABLE = "unavailable"

_Counts = Counter[tuple[str, str, FieldName]]
"""Number of matches by rule, kind and field."""


@dataclass(frozen=True, slots=True)
class Screened:
    """The filter's answer about one job."""

    verdict: Verdict
    """The strictest verdict of the rules that match."""
    findings: tuple[ScreeningFinding, ...]
    """One finding for each rule, kind and field with matches, in the file's order."""
    job: Job
    """The job with markers in place of redacted matches; the given job if the verdict is `reject`.

    Markers can make a job larger, so a caller with a size limit checks the job's size afterwards.
    """

    @property
    def refusals(self) -> list[ScreeningFinding]:
        """The findings of the rules that reject the job."""
        return [finding for finding in self.findings if finding.verdict is Verdict.REJECT]


@dataclass(frozen=True, slots=True)
class Moderated:
    """The filter's judgement of one text. Its categories are those that a rule has measured."""

    verdict: Verdict
    """The strictest verdict of the rules that match."""
    rules: tuple[str, ...]
    """The names of the rules that match."""
    matches: dict[Category, bool]
    """For each measured category, True if a rule of the category matches."""
    scores: dict[Category, float]
    """For each measured category, the highest score: a classifier's, or 1 where another rule matches, else 0."""


class Screen:
    """The rules of an operator's file. Threads may share a Screen."""

    def __init__(self, rules: Sequence[CompiledRule], classifiers: Sequence[tuple[ClassifierRule, Classifier]]) -> None:
        self._rules = rules
        self._classifiers = classifiers
        self._markers = Markers(label for rule in rules if rule.redacts for label in rule.labels)
        self._rules_for = lru_cache(maxsize=_TENANTS_KEPT)(self._reading)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a file of rules. Raises RulesRefused.

        The folder of a classifier is checked, but `start` loads the model.
        """
        placed, mistakes = read_rules(path)
        rules: list[CompiledRule] = []
        classifiers: list[tuple[ClassifierRule, Classifier]] = []
        models: dict[Path, Classifier] = {}
        for place, rule in placed:
            try:
                if isinstance(rule, ClassifierRule):
                    model = (path.parent / rule.folder).resolve()
                    check_folder(model, rule.labels)
                    classifiers.append((rule, models.setdefault(model, Classifier(model))))
                else:
                    rules.append(compiled(rule, path.parent))
            except (RuleRefused, ModelRefused) as refused:
                mistakes.append(f"{place}: {refused}")
        if mistakes:
            raise RulesRefused(path, mistakes)
        return cls(rules, classifiers)

    @property
    def waits(self) -> bool:
        """True if `check` may wait for a classifier's process. An event loop must not call `check` then."""
        return bool(self._classifiers)

    def start(self) -> None:
        """Load the models of classifiers, and wait until they are loaded, which may take many seconds.

        Raises RulesRefused.
        """
        for rule, classifier in self._classifiers:
            try:
                classifier.start(rule.labels)
            except ModelRefused as refused:
                self.close()
                raise RulesRefused(Path(rule.folder), [f"rule `{rule.name}`: {refused}"]) from None

    def close(self) -> None:
        """End the processes of classifiers."""
        for _, classifier in self._classifiers:
            classifier.close()

    def check(self, tenant: str, job: Job) -> Screened:
        """Apply the tenant's rules to a job, and return the strictest verdict, the findings and the changed job.

        Each rule sees the job as it was given. Checking `Screened.job` again gives the same job, the same verdict, and
        the same markers in the findings.
        """
        rules, classifiers = self._rules_for(tenant)
        counts: _Counts = Counter()

        def read(text: JobText) -> str | tuple[str, ...] | None:
            reading = [rule for rule in rules if text.field in rule.rule.fields]
            return self._read(text, reading, counts) if reading else None

        screened = rewritten(job, read) if rules else job
        findings = [finding for rule in rules for finding in _findings(rule, counts)]
        if not any(finding.verdict is Verdict.REJECT for finding in findings):
            findings += [finding for each in classifiers for finding in _judged(*each, screened)]
        verdict = max((finding.verdict for finding in findings), key=_strictness, default=Verdict.PASS)
        return Screened(verdict, tuple(findings), job if verdict is Verdict.REJECT else screened)

    def moderate(self, tenant: str, texts: Sequence[str]) -> list[Moderated]:
        """Judge each text as the tenant's rules judge a prompt.

        A classifier reads all texts within the time that its rule allows. If it gives no answer, it measures nothing.
        """
        rules, classifiers = self._rules_for(tenant)
        found: list[list[_Judgement]] = [[] for _ in texts]
        views = [plain(text).text for text in texts]
        for each in (rule for rule in rules if "prompt" in rule.rule.fields):
            for judged, view in zip(found, views, strict=True):
                is_match = any(True for _ in each.matcher.matches(view))
                judged.append(_Judgement(each.rule, is_match, float(is_match)))
        for rule, classifier in (each for each in classifiers if "prompt" in each[0].fields):
            with suppress(ModelAway):
                for judged, said in zip(found, classifier.scores(texts, rule.seconds), strict=True):
                    is_match = any(said.get(label, 0.0) >= least for label, least in rule.labels.items())
                    judged.append(_Judgement(rule, is_match, max(said.get(label, 0.0) for label in rule.labels)))
        return [_moderated(judged) for judged in found]

    def _reading(self, tenant: str) -> tuple[list[CompiledRule], list[tuple[ClassifierRule, Classifier]]]:
        """Return the rules and classifiers for a tenant."""
        return (
            [rule for rule in self._rules if rule.rule.reads(tenant)],
            [each for each in self._classifiers if each[0].reads(tenant)],
        )

    def _read(self, text: JobText, rules: Sequence[CompiledRule], counts: _Counts) -> str | tuple[str, ...] | None:
        """Count the matches in one text. Return the text, or its parts, with markers; None if no marker is new."""
        redacting = [rule for rule in rules if rule.redacts]
        cuts = self._matched(text.text, rules, text.field, counts)
        current, parts = text.text, text.parts
        for _ in range(_MOST_PASSES):
            if not cuts:
                break
            parts = redacted_parts(parts, cuts)
            current = "\n".join(parts) if parts else redacted(current, cuts)
            if text.most_chars is not None and len(current) > text.most_chars:
                current = cuts[0].marker
            cuts = self._matched(current, redacting, text.field, counts)
        for place in self._markers.places(current) if redacting else ():
            for rule in redacting:
                label = next((label for label in rule.labels if marker(label) == place.marker), None)
                if label is not None:
                    counts[rule.rule.name, rule.kind(label), text.field] += 1
                    break
        if current == text.text:
            return None
        return parts or current

    def _matched(self, text: str, rules: Iterable[CompiledRule], field: FieldName, counts: _Counts) -> list[Cut]:
        """Count the matches of the rules that do not redact, and return the cuts of those that do."""
        markers = self._markers.places(text)
        view = plain(text)
        cuts: list[Cut] = []
        for rule in rules:
            spans: dict[str, list[Cut]] = {}
            for match in rule.matcher.matches(view.text):
                start, end = view.original(match.start, match.end)
                spans.setdefault(match.kind, []).append(Cut(start, end, marker(rule.label(match.kind))))
            for kind, found in spans.items():
                places = outside(found, markers)
                if rule.redacts:
                    cuts += places
                elif places:
                    counts[rule.rule.name, kind, field] += len(merged(places))
        return merged(cuts)


class _Judgement(NamedTuple):
    """One rule's judgement of a text."""

    rule: MatchingRule | ClassifierRule
    is_match: bool
    score: float


def _moderated(judged: Sequence[_Judgement]) -> Moderated:
    matches: dict[Category, bool] = {}
    scores: dict[Category, float] = {}
    for rule, is_match, score in judged:
        for category in rule.categories:
            matches[category] = matches.get(category, False) or is_match
            scores[category] = max(scores.get(category, 0.0), score)
    matching = [each.rule for each in judged if each.is_match]
    verdict = max((rule.verdict for rule in matching), key=_strictness, default=Verdict.PASS)
    return Moderated(verdict, tuple(rule.name for rule in matching), matches, scores)


def _strictness(verdict: Verdict) -> int:
    return verdict.strictness


def _findings(rule: CompiledRule, counts: _Counts) -> Iterator[ScreeningFinding]:
    for (name, kind, field), count in counts.items():
        if name == rule.rule.name and rule.rule.verdict is not Verdict.PASS:
            yield ScreeningFinding(rule=name, kind=kind, verdict=rule.rule.verdict, field=field, count=count)


def _judged(rule: ClassifierRule, classifier: Classifier, job: Job) -> Iterator[ScreeningFinding]:
    """Return a finding for each field that the model gives one of the rule's labels."""
    texts: dict[FieldName, list[str]] = {}
    for text in texts_of(job):
        if text.field in rule.fields:
            texts.setdefault(text.field, []).append(text.text)
    if not texts or rule.verdict is Verdict.PASS:
        return
    try:
        scores = classifier.scores(["\n".join(parts) for parts in texts.values()], rule.seconds)
    except ModelAway:
        if rule.on_failure == "reject":
            field = next(iter(texts))
            yield ScreeningFinding(rule=rule.name, kind=_UNAVAILABLE, verdict=Verdict.REJECT, field=field, count=1)
        return
    for field, found in zip(texts, scores, strict=True):
        matching = sum(found.get(label, 0.0) >= least for label, least in rule.labels.items())
        if matching:
            yield ScreeningFinding(rule=rule.name, kind=rule.kind, verdict=rule.verdict, field=field, count=matching)
