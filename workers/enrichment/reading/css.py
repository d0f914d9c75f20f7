"""Reads style sheets and inline styles into rules and declarations (CSS Syntax, level 3).

tinycss2 takes 3 µs a character, and a page may have two million characters and a second and a half for them. So
tinycss2 reads only declarations with an escape, a comment or a bracket in an unusual place; plain ones are split here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final

import tinycss2

from workers.enrichment.reading.media import EVERYBODY, viewers_of

MAX_DECLARATIONS_CHARS: Final = 5000
"""Cap on the characters that are read of one rule or attribute."""

MAX_NESTING: Final = 12
"""Depth of nested blocks; deeper blocks are not read."""
MAX_SELECTOR_CHARS: Final = 2000

_STRUCTURE: Final = re.compile(
    r"""/\*.*?(?:\*/|\Z) | "(?:[^"\\\n]|\\.)*"? | '(?:[^'\\\n]|\\.)*'? | url\(\s*[^"'()\s][^()]*\)? | \\. | ([{};])""",
    re.VERBOSE | re.DOTALL | re.IGNORECASE,
)
"""Matches braces and semicolons, which end a sheet's parts, and tokens in which these characters mean nothing."""
_COMMENT: Final = re.compile(r"/\*.*?(?:\*/|\Z)", re.DOTALL)
_STRING: Final = re.compile(r"\"[^\"\\;{}\n]*\"|'[^'\\;{}\n]*'")
_NOT_PLAIN: Final = re.compile(r"""[\\"'{}]|/\*|\([^)]*;""")
_VARIABLE: Final = re.compile(r"var\(\s*(--[^\s,()]+)\s*(?:,([^()]*))?\)")
_MAX_VARIABLES: Final = 8
_MAX_VARIABLE_CHARS: Final = 200
_PREFIX: Final = re.compile(r"-(?:webkit|moz|ms|o)-")


@dataclass(frozen=True, slots=True)
class Declarations:
    """Property to value, in lower case, without vendors' prefixes. An `!important` value replaces plain ones."""

    values: dict[str, str] = field(default_factory=dict)
    important: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule of a sheet."""

    selector: str
    text: str
    viewers: frozenset[str]
    """The viewers for which the rule holds, see `media`."""

    @property
    def declarations(self) -> Declarations:
        """The rule's declarations, read on demand: most rules of a sheet neither hide nor show anything."""
        return declarations(self.text)

    def may_declare(self, *names: str) -> bool:
        """True if the rule may declare one of these properties, and so must be parsed."""
        return "\\" in self.text or any(name in self.text.lower() for name in names)


@dataclass(slots=True)
class _Block:
    prelude: str
    own: list[str] = field(default_factory=list)


@lru_cache(maxsize=4096)
def declarations(style: str) -> Declarations:
    """Parse a rule's block or a `style` attribute. Text that is not CSS is dropped."""
    text = style[:MAX_DECLARATIONS_CHARS]
    if '"' in text or "'" in text:
        text = _STRING.sub("''", text) if _NOT_PLAIN.search(_STRING.sub("", text)) is None else text
    pairs = _split(text) if _NOT_PLAIN.search(text.replace("''", "")) is None else _parsed(text)
    values: dict[str, str] = {}
    important: set[str] = set()
    for name, value, is_important in pairs:
        name = _PREFIX.sub("", name, count=1)
        if is_important or name not in important:
            values[name] = value
        if is_important:
            important.add(name)
    return Declarations(values, frozenset(important))


def _split(text: str) -> Iterator[tuple[str, str, bool]]:
    for part in text.lower().split(";"):
        name, colon, value = part.partition(":")
        if colon:
            plain, mark, _ = value.rpartition("!")
            yield name.strip(), (plain if mark else value).strip(), bool(mark)


def _parsed(text: str) -> Iterator[tuple[str, str, bool]]:
    for part in tinycss2.parse_blocks_contents(text, skip_comments=True, skip_whitespace=True):
        if part.type == "declaration":
            yield part.lower_name, tinycss2.serialize(part.value).strip().lower(), part.important


def resolved(values: dict[str, str], variables: Mapping[str, str]) -> dict[str, str]:
    """Replace each `var(…)` in the declarations with the value of the custom property."""
    if not any("var(" in value for value in values.values()):
        return values
    return {name: _resolved(value, variables) for name, value in values.items()}


def _resolved(value: str, variables: Mapping[str, str]) -> str:
    for _ in range(_MAX_VARIABLES):
        found = _VARIABLE.search(value)
        if found is None:
            break
        said = variables.get(found.group(1), found.group(2) or "")
        value = value[: found.start()] + said[:_MAX_VARIABLE_CHARS] + value[found.end() :]
    return value.strip()


def rules(sheet: str) -> Iterator[Rule]:
    """Yield the rules, also nested ones, that hold for at least one viewer of `media` (CSS Nesting, level 1)."""
    blocks: list[_Block] = []
    start = too_deep = 0
    for found in _STRUCTURE.finditer(sheet):
        mark = found.group(1)
        if mark is None:
            continue
        text = sheet[start : found.start()]
        start = found.end()
        if too_deep or (mark == "{" and len(blocks) == MAX_NESTING):
            too_deep += {"{": 1, "}": -1, ";": 0}[mark]
        elif mark == "{":
            blocks.append(_Block(_COMMENT.sub(" ", text).strip()))
        elif blocks:
            blocks[-1].own.append(text)
            if mark == "}":
                yield from _rule(blocks)
                blocks.pop()
    if blocks:
        blocks[-1].own.append(sheet[start:])
    while blocks:  # the sheet's end closes all blocks
        yield from _rule(blocks)
        blocks.pop()


def _rule(blocks: list[_Block]) -> Iterator[Rule]:
    viewers = EVERYBODY
    selector = ""
    for block in blocks:
        if block.prelude.startswith("@"):
            viewers &= viewers_of(block.prelude)
        else:
            selector = _nested(selector, block.prelude)
    text = ";".join(blocks[-1].own)
    if viewers and 0 < len(selector) <= MAX_SELECTOR_CHARS and text and not text.isspace():
        yield Rule(selector, text, viewers)


def _nested(outer: str, inner: str) -> str:
    if not outer:
        return inner
    if len(outer) + len(inner) > MAX_SELECTOR_CHARS:
        return outer + inner  # too long: `_rule` drops it
    return inner.replace("&", f":is({outer})") if "&" in inner else f":is({outer}) {inner}"
