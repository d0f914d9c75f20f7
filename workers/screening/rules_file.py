"""Reads the operator's file of rules: TOML with a `[[rule]]` table for each rule, and gives each rule its matcher.

Every mistake of the file is named at once, with the rule's name and line.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pydantic import TypeAdapter, ValidationError

from schemas.screening import Verdict
from workers.screening.loading import RulesRefused
from workers.screening.matchers import Matcher
from workers.screening.matchers.patterns import PatternRefused, Patterns
from workers.screening.matchers.pii import Pii
from workers.screening.matchers.words import WordLists, without_case
from workers.screening.plain import plain
from workers.screening.rules import PiiRule, RegexRule, Rule, WordsRule

_MOST_BYTES: Final = 1024 * 1024
_MOST_RULES: Final = 256

_RULE: TypeAdapter[Rule] = TypeAdapter(Rule)
_header = re.compile(r"^[ \t]*\[\[[ \t]*rule[ \t]*\]\]", re.MULTILINE)


Placed = list[tuple[str, Rule]]
"""Rules, each behind its place in the file, so that a mistake that is found later can name the place."""


def read_rules(path: Path) -> tuple[Placed, list[str]]:
    """Return the valid rules, and all mistakes in the file. Raises RulesRefused for a file that is no list of rules."""
    text = _text(path)
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise RulesRefused(path, [f"is not TOML: {error}"]) from None
    except RecursionError:
        raise RulesRefused(path, ["is not TOML that can be read: its values are nested too deeply"]) from None
    tables = document.pop("rule", [])
    mistakes = [f"`{name}` is not known here; rules are tables with the heading [[rule]]" for name in document]
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise RulesRefused(path, [*mistakes, "`rule` is not a list of tables; give each rule the heading [[rule]]"])
    if not tables:
        mistakes.append("has no rule; give each rule the heading [[rule]]")
    if len(tables) > _MOST_RULES:
        mistakes.append(f"has {len(tables)} rules, and {_MOST_RULES} are allowed; put patterns into one rule's list")
    rules, wrong = _rules(tables[:_MOST_RULES], _lines(text, len(tables)))
    return rules, mistakes + wrong


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(_MOST_BYTES + 1)
        text = content.decode()
    except OSError as error:
        raise RulesRefused(path, [f"cannot be read ({error.strerror}); POSTBACK_SCREENING__RULES names it"]) from None
    except UnicodeDecodeError:
        raise RulesRefused(path, ["is not UTF-8 text"]) from None
    if len(content) > _MOST_BYTES:
        raise RulesRefused(path, [f"is larger than {_MOST_BYTES} bytes; put words into files that a rule names"])
    return text


def _lines(text: str, rules: int) -> list[int | None]:
    """Return the line of each rule's heading, or None for all if headings and rules differ in number."""
    lines = [text.count("\n", 0, found.start()) + 1 for found in _header.finditer(text)]
    return [*lines] if len(lines) == rules else [None] * rules


def _rules(tables: list[dict[str, Any]], lines: list[int | None]) -> tuple[Placed, list[str]]:
    rules: Placed = []
    mistakes: list[str] = []
    first: dict[str, str] = {}
    for number, (table, line) in enumerate(zip(tables, lines, strict=False), 1):
        place = _place(number, table, line)
        try:
            rule = _RULE.validate_python(table)
        except ValidationError as error:
            mistakes += [f"{place}: {reason}" for reason in _reasons(error)]
            continue
        if rule.name in first:
            mistakes.append(f"{place}: has the name of {first[rule.name]}; give each rule its own name")
        first.setdefault(rule.name, place)
        rules.append((place, rule))
    return rules, mistakes


def _place(number: int, table: dict[str, Any], line: int | None) -> str:
    name = table.get("name")
    shown = f"rule `{name[:64]}`" if isinstance(name, str) else f"rule {number}"
    return f"line {line}, {shown}" if line is not None else shown


def _reasons(error: ValidationError) -> Iterator[str]:
    found = error.errors(include_url=False, include_input=False, include_context=False)
    for details in found:
        place = details["loc"]
        if any(len(place) < len(other["loc"]) and other["loc"][: len(place)] == place for other in found):
            continue  # another error names the faulty part of this value
        kind, message = details["type"], details["msg"].removeprefix("Value error, ")
        path = [str(part) for part in place[1:]]  # the first part is the rule's kind
        if kind == "union_tag_not_found":
            yield "kind: is missing; it is regex, pii, words or classifier"
        elif kind == "union_tag_invalid":
            yield "kind: is not known; it is regex, pii, words or classifier"
        elif kind == "extra_forbidden":
            yield f"{'.'.join(path)}: is no option of this kind of rule; delete it or correct its name"
        elif kind == "string_pattern_mismatch" and path == ["name"]:
            yield "name: is not 1 to 63 lower-case letters, digits and dashes"
        else:
            yield f"{'.'.join(path)}: {message}" if path else message


MatchingRule = RegexRule | PiiRule | WordsRule
"""A rule that finds places in a text."""

_LISTS: Final = Path(__file__).with_name("words")
_EVERYDAY: Final = "everyday"
_MOST_WORDS_BYTES: Final = 4 * 1024 * 1024


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
            return CompiledRule(rule, WordLists(_words_of(rule, folder)), (rule.name,))


def _patterns(rule: RegexRule) -> Patterns:
    for number, pattern in enumerate(rule.patterns, 1):
        try:
            Patterns([pattern], ignore_case=rule.ignore_case)
        except PatternRefused as refused:
            raise RuleRefused(f"pattern {number} of `patterns`: {refused}") from None
    return Patterns(rule.patterns, ignore_case=rule.ignore_case)


def _words_of(rule: WordsRule, folder: Path) -> Iterator[str]:
    """Yield the rule's words without its exceptions, folded as texts are. Raises RuleRefused if no words are left."""
    skipped = _folded(rule.except_words)
    if not rule.everyday:
        skipped |= _folded(_words_in(_LISTS / f"{_EVERYDAY}.txt"))
    listed = {word for name in rule.lists for word in _folded(_words_in(_LISTS / f"{name}.txt"))}
    own = _folded(rule.words) | {word for name in rule.files for word in _folded(_words_in(folder / name))}
    words = (listed - skipped) | (own - _folded(rule.except_words))
    if not words:
        raise RuleRefused("has no words left; name others in `lists`, `files` or `words`")
    yield from words


def _folded(words: Iterable[str]) -> set[str]:
    return {folded for word in words if (folded := without_case(plain(word.strip()).text))}


def _words_in(path: Path) -> list[str]:
    """Return the words of a file that has one word on each line. Raises RuleRefused."""
    try:
        with path.open("rb") as file:
            content = file.read(_MOST_WORDS_BYTES + 1)
        text = content.decode()
    except OSError as error:
        raise RuleRefused(f"files: {path} cannot be read ({error.strerror}); check its path") from None
    except UnicodeDecodeError:
        raise RuleRefused(f"files: {path} is not UTF-8 text; save it as UTF-8") from None
    if len(content) > _MOST_WORDS_BYTES:
        raise RuleRefused(f"files: {path} is larger than {_MOST_WORDS_BYTES} bytes; split its words over rules")
    return [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
