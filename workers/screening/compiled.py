"""Rules with their matchers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from schemas.screening import Verdict
from workers.screening.matchers import Matcher
from workers.screening.matchers.patterns import PatternRefused, Patterns
from workers.screening.matchers.pii import Pii
from workers.screening.matchers.words import WordLists, without_case
from workers.screening.plain import plain
from workers.screening.rules import PiiRule, RegexRule, WordsRule

MatchingRule = RegexRule | PiiRule | WordsRule
"""A rule that finds places in a text."""

_LISTS: Final = Path(__file__).with_name("words")
_EVERYDAY: Final = "everyday"
_MOST_BYTES: Final = 4 * 1024 * 1024


class RuleRefused(Exception):  # noqa: N818 - named after the event
    """A rule cannot be used. The text names the option and the fix."""


@dataclass(frozen=True, slots=True)
class CompiledRule:
    """A rule and its matcher."""

    rule: MatchingRule
    matcher: Matcher
    labels: tuple[str, ...]
    """The labels of the rule's markers: the kinds of personal data, else the rule's name."""

    @property
    def redacts(self) -> bool:
        """True if the rule puts markers in place of matches."""
        return self.rule.verdict is Verdict.REDACT

    def label(self, kind: str) -> str:
        """Return the label of a marker for a match of this kind."""
        return kind if isinstance(self.rule, PiiRule) else self.rule.name

    def kind(self, label: str) -> str:
        """Return the kind of the matches that this label stands for."""
        return label if isinstance(self.rule, PiiRule) else self.rule.kind


def compiled(rule: MatchingRule, folder: Path) -> CompiledRule:
    """Return the rule with its matcher. `folder` is the folder of the rules' file. Raises RuleRefused."""
    match rule:
        case RegexRule():
            return CompiledRule(rule, _patterns(rule), (rule.name,))
        case PiiRule():
            return CompiledRule(rule, Pii(rule.find, rule.regions), rule.find)
        case WordsRule():
            return CompiledRule(rule, WordLists(_words(rule, folder)), (rule.name,))


def _patterns(rule: RegexRule) -> Patterns:
    for number, pattern in enumerate(rule.patterns, 1):
        try:
            Patterns([pattern], ignore_case=rule.ignore_case)
        except PatternRefused as refused:
            raise RuleRefused(f"pattern {number} of `patterns`: {refused}") from None
    return Patterns(rule.patterns, ignore_case=rule.ignore_case)


def _words(rule: WordsRule, folder: Path) -> Iterator[str]:
    """Yield the rule's words without its exceptions, folded as texts are. Raises RuleRefused if no words are left."""
    skipped = _folded(rule.except_words)
    if not rule.everyday:
        skipped |= _folded(_lines(_LISTS / f"{_EVERYDAY}.txt"))
    listed = {word for name in rule.lists for word in _folded(_lines(_LISTS / f"{name}.txt"))}
    own = _folded(rule.words) | {word for name in rule.files for word in _folded(_lines(folder / name))}
    words = (listed - skipped) | (own - _folded(rule.except_words))
    if not words:
        raise RuleRefused("has no words left; name others in `lists`, `files` or `words`")
    yield from words


def _folded(words: Iterable[str]) -> set[str]:
    return {folded for word in words if (folded := without_case(plain(word.strip()).text))}


def _lines(path: Path) -> list[str]:
    """Return the words of a file that has one word on each line. Raises RuleRefused."""
    try:
        with path.open("rb") as file:
            content = file.read(_MOST_BYTES + 1)
        text = content.decode()
    except OSError as error:
        raise RuleRefused(f"files: {path} cannot be read ({error.strerror}); check its path") from None
    except UnicodeDecodeError:
        raise RuleRefused(f"files: {path} is not UTF-8 text; save it as UTF-8") from None
    if len(content) > _MOST_BYTES:
        raise RuleRefused(f"files: {path} is larger than {_MOST_BYTES} bytes; split its words over rules")
    return [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
