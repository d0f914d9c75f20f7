"""Reads the operator's file of rules: TOML with a `[[rule]]` table for each rule.

Every mistake of the file is named at once, with the rule's name and line.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from pydantic import TypeAdapter, ValidationError

from workers.screening.loading import RulesRefused
from workers.screening.rules import Rule

_MOST_BYTES: Final = 1024 * 1024
_MOST_RULES: Final = 256

_RULE: TypeAdapter[Rule] = TypeAdapter(Rule)
_header = re.compile(r"^[ \t]*\[\[[ \t]*rule[ \t]*\]\]", re.MULTILINE)


class PlacedRule:
    """A rule with its place in the file, so that a mistake found later can name the place."""

    def __init__(self, rule: Rule, place: str) -> None:
        self.rule = rule
        self.place = place


def read_rules(path: Path) -> tuple[list[PlacedRule], list[str]]:
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


def _rules(tables: list[dict[str, Any]], lines: list[int | None]) -> tuple[list[PlacedRule], list[str]]:
    rules: list[PlacedRule] = []
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
        rules.append(PlacedRule(rule, place))
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
