"""Finds elements that a page's own style sheets hide, unless another rule shows them again (CSS Cascade, level 4)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import islice
from typing import Final

from selectolax.lexbor import LexborHTMLParser, LexborNode, SelectolaxError

from workers.enrichment.reading.css import Rule, declarations, resolved, rules
from workers.enrichment.reading.media import EVERYBODY, viewers_of
from workers.enrichment.reading.unseen import DISPUTED, hidden_by, may_hide

MAX_RULES: Final = 5000
MAX_CHARS: Final = 500_000

_UNKNOWN: Final = re.compile(r"(?<!\\):(?:lang|dir)\([^()]*\)|(?<!\\):(?:defined|read-only|scope)\b")
"""Pseudo-classes unknown to the parser, removed from selectors: most selected elements have them anyway."""
_INNER: Final = re.compile(r"\[[^\]]*\]|(?<!\\):[a-z-]+\(.*\)")
"""Parts of a selector with names that the element and its ancestors may lack."""
_NAME: Final = re.compile(r"[.#]((?:[\w-]|[^\x00-\x7f])++)(?!\\)")
_ID: Final = re.compile(r"(?<!\\)#[\w-]")
_CLASS: Final = re.compile(r"(?<!\\)(?:\.|\[|(?<!:):(?!:|not\(|is\(|where\(|has\())")
_TYPE: Final = re.compile(r"(?:^|[\s>+~(])[a-z]", re.IGNORECASE)
_SELECTOR: Final = re.compile(r"(?:[^,(\[\\]|\\.|\((?:[^()]|\([^()]*\))*\)|\[[^\]]*\])+")

_Weight = tuple[bool, int, int, int, int]
"""Rank of declarations: `!important` first, then the selector's ids, classes and types, then place in the sheet."""
_INLINE_IDS: Final = 1_000_000
"""Number of ids that a `style` attribute counts as: more than any selector has."""


@dataclass(frozen=True, slots=True)
class _Styled:
    """One rule with one of its selectors."""

    selector: str
    rule: Rule
    place: int
    ways: frozenset[str]
    """Ways in which the rule hides elements, or shows them again."""

    def weight(self, way: str) -> _Weight:
        return (way in self.rule.declarations.important, *_specificity(self.selector), self.place)


class Sheet:
    """All style sheets inside the page."""

    def __init__(self, tree: LexborHTMLParser) -> None:
        self._tree = tree
        self._rules = list(islice(_rules_of(tree), MAX_RULES))
        declared = (one.declarations.values.items() for one in self._rules if one.may_declare("--"))
        self._variables = {name: value for pairs in declared for name, value in pairs if name.startswith("--")}

    def hidden(self) -> list[LexborNode]:
        """Return the elements that no viewer of `media` sees, each once."""
        nodes: dict[int, LexborNode] = {}
        cascade = _Cascade()
        disputed: set[str] = set()
        for one in self._hiding():
            for node in self.matches(one.selector):
                nodes[node.mem_id] = node
                disputed |= one.ways & DISPUTED
                for way in one.ways:
                    cascade.add(node.mem_id, way, one.rule.viewers, one.weight(way), hides=True)
        for one in self._showing(disputed):
            for node in self.matches(one.selector):
                for way in one.ways if node.mem_id in nodes else ():
                    cascade.add(node.mem_id, way, one.rule.viewers, one.weight(way), hides=False)
        for mem_id, node in nodes.items():
            own = declarations(node.attributes.get("style") or "")
            for way in disputed & own.values.keys():
                cascade.add(mem_id, way, EVERYBODY, (way in own.important, _INLINE_IDS, 0, 0, 0), hides=False)
        return [node for mem_id, node in nodes.items() if cascade.hides(mem_id)]

    def declaring(self, *names: str) -> Iterator[tuple[str, Mapping[str, str]]]:
        """Yield each selector of a rule that declares one of these properties, with the rule's declarations."""
        for one in self._rules:
            if one.may_declare(*names) and any(name in one.declarations.values for name in names):
                values = resolved(one.declarations.values, self._variables)
                yield from ((selector, values) for selector in _selectors(one.selector))

    def matches(self, selector: str) -> list[LexborNode]:
        """Return the matching elements; none for a selector unknown to the parser, or a state such as `:hover`."""
        if not self._names.issuperset(_names(selector)):
            return []
        try:
            return self._tree.css(selector)
        except (SelectolaxError, ValueError):
            return []

    def _hiding(self) -> Iterator[_Styled]:
        for place, rule in enumerate(self._rules):
            if not may_hide(rule.text):
                continue
            hides = hidden_by(resolved(rule.declarations.values, self._variables))
            if hides:
                yield from (_Styled(selector, rule, place, hides) for selector in _selectors(rule.selector))

    def _showing(self, ways: set[str]) -> Iterator[_Styled]:
        for place, rule in enumerate(self._rules):
            if not rule.may_declare(*ways):
                continue
            values = resolved(rule.declarations.values, self._variables)
            shows = frozenset(ways & values.keys()) - hidden_by(values)
            if shows:
                yield from (_Styled(selector, rule, place, shows) for selector in _selectors(rule.selector))

    @cached_property
    def _names(self) -> frozenset[str]:
        """All classes and ids of the page. Rules that need other names are skipped: most rules of a large sheet."""
        names: set[str] = set()
        for node in self._tree.css("[class], [id]"):
            names.update((node.attributes.get("class") or "").split())
            names.add(node.attributes.get("id") or "")
        return frozenset(names)


class _Cascade:
    """The winning declaration for each element, way of hiding and viewer."""

    def __init__(self) -> None:
        self._best: dict[int, dict[tuple[str, str], tuple[_Weight, bool]]] = {}

    def add(self, mem_id: int, way: str, viewers: frozenset[str], weight: _Weight, *, hides: bool) -> None:
        best = self._best.setdefault(mem_id, {})
        for viewer in viewers:
            known = best.get((viewer, way))
            if known is None or weight >= known[0]:
                best[viewer, way] = (weight, hides)

    def hides(self, mem_id: int) -> bool:
        best = self._best[mem_id]
        return {viewer for (viewer, _), (_, hides) in best.items() if hides} == EVERYBODY


def _rules_of(tree: LexborHTMLParser) -> Iterator[Rule]:
    left = MAX_CHARS
    for node in tree.css("style"):
        media = node.attributes.get("media")
        if media is None or viewers_of(f"@media {media}") == EVERYBODY:
            text = node.text()[:left]
            left -= len(text)
            yield from rules(text)


@lru_cache(maxsize=4096)
def _selectors(prelude: str) -> tuple[str, ...]:
    known = _UNKNOWN.sub("", prelude)
    if "," not in known:
        return (known.strip(),)
    return tuple(one.strip() for one in _SELECTOR.findall(known))


@lru_cache(maxsize=4096)
def _names(selector: str) -> frozenset[str]:
    """Return the names that a page needs for the selector to match; leave out names with an escape."""
    return frozenset(_NAME.findall(_INNER.sub("", selector)))


@lru_cache(maxsize=4096)
def _specificity(selector: str) -> tuple[int, int, int]:
    """Count the ids, classes and types; the counts are approximate for selectors inside selectors."""
    return len(_ID.findall(selector)), len(_CLASS.findall(selector)), len(_TYPE.findall(selector))
