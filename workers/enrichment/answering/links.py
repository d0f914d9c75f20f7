"""Keeps only the job's own links and its sources' addresses in an answer, and only the job's own images. Pure.

A page could otherwise make the model write an image URL that carries the prompt to the page's author. Even the choice
among several URLs could tell that author the prompt's subject. The program that will show the answer is unknown. It may
render Markdown, with or without HTML, or HTML alone, or only look for URLs in plain text. So this module does not
search for bad links. The opening marks of a link, an image or a tag stay only in forms that are known to be harmless.
In any other form, a space is put between the marks. Then every renderer shows plain text (CommonMark 0.31, the
tokenizer of HTML), and no word is lost. The harmless forms:

    ](  ]:      the target of a Markdown link: harmless before a given URL, and before a relative URL that stays in
                the folder of the reader's page
    ![          a Markdown image: harmless with a URL of the job's own
    <x  <!  <?  HTML: harmless if no attribute has a value (`List<int>`, `<b>`), except `script` and `style`, whose
                content is loaded; also harmless with only given URLs and a few attributes that load nothing

Any other URL, with a scheme or with a beginning such as `www.` or `//`, becomes "(link removed)" unless the job or a
source gave this URL. A host without a scheme, such as `a.example/b`, counts as text. An answer in JSON stays JSON:
its decoded strings are cleaned.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_right
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Final

from workers.enrichment.evidence import Evidence

LINK_REMOVED: Final = "(link removed)"

_MARKS: Final = "，。、；：！？（）「」『』【】《》“”‘’„«»…—"  # noqa: RUF001 - they end an address in text
_LETTER: Final = "a-zA-Z\u0130\u0131\u017f\u212a"
"""All letters that `[a-z]` matches if case is ignored; a pattern that ignores case takes three times as long."""
URL: Final = re.compile(
    rf"""(?: [{_LETTER}][{_LETTER}0-9+.-]{{1,30}}+: (?: // | (?:\\?/|\\){{2}} (?=\w) )
           | [wW]{{3}}\. (?=\w)
           | (?<![\w:/\\]) [/\\]{{2,}} (?=[\w-]+ (?:\.[\w-]+)+ (?: :\d+)? [/\\?\#]) )
         (?: [^\s<>"'`\\()\[\]{{}}|{_MARKS}] | \([^\s()<>"\\]{{0,200}}\) )*""",
    re.VERBOSE,
)
_CLOSERS: Final = re.compile(r"""[.,;:!?*_~"'`)\]}>|]*""")
_ENDS: Final = frozenset("\"'`)]}>|" + _MARKS)
"""This module ends a given URL before these characters, but another program may count them as part of the URL."""

_DESTINATION: Final = r"([^\s<>()]{0,2048}(?:\([^\s<>()]{0,200}\)[^\s<>()]{0,200}){0,8})"
_TITLE: Final = r"""(?:\s+(?:"[^"]{0,500}"|'[^']{0,500}'))?\s*\)"""
_INLINE: Final = re.compile(rf"!?\[([^\[\]]{{0,500}})\]\(\s*+<?{_DESTINATION}>?(?:\s[^()\n]{{0,200}}+)?\)")
_NESTED: Final = 2
"""Number of passes over Markdown links. A link may contain an image: the first pass replaces the image, the second the
link."""
_OPENING: Final = re.compile(r"!\[|\]\(|\]:|<(?=[A-Za-z!?])")
_IMAGE: Final = re.compile(rf"!\[[^\[\]]{{0,500}}\]\(<?{_DESTINATION}>?{_TITLE}")
_TARGET: Final = re.compile(rf"\]\((<?){_DESTINATION}>?{_TITLE}")
_TARGET_NEARBY: Final = re.compile(r"\]\(([^()<>]{0,500})[()]")
_DEFINED: Final = re.compile(r"\]:[\s>]*+(<)?([^\s<>\[\]]{0,1000}+)(?(1)|(?![<>\[\]]))")
_LEAVES: Final = re.compile(r"(?<!\w)/|[:\\]|&#?\w+;")
"""Matches the parts by which a URL leaves the folder of the reader's page, and entities, which may hide such a part."""

_AUTOLINK: Final = re.compile(r"<([A-Za-z][A-Za-z0-9+.-]{1,31}:(?!:)[^\s<>]*+)>")
_TAG_WITHOUT_VALUES: Final = re.compile(r"<([A-Za-z][^\s/<>=]{0,200}+)([^>=]{0,300}+)>")
_TAG: Final = re.compile(r"""<([A-Za-z][A-Za-z0-9]*+)((?:\s++[A-Za-z-]{1,30}+="[^"<>]{0,2048}+")*+)\s*+/?>""")
_ATTRIBUTE: Final = re.compile(r"""([A-Za-z-]+)="([^"]*)\"""")
_LOADED: Final = frozenset({"script", "style"})
_LOAD_NOTHING: Final = frozenset(
    {"align", "alt", "class", "colspan", "dir", "lang", "rowspan", "scope", "start", "title"}
)

_LITERAL: Final = re.compile(r'"[^"\\\n]*+(?:\\.[^"\\\n]*+)*+(")?')
_ESCAPED_LITERAL: Final = re.compile(r'"[^"\\\n]*+(?:\\.[^"\\\n]*+)++(")?')


def without_unknown_links(text: str, evidence: Evidence) -> str:
    """Change the text so that renderers find only links and images that the job or a source gave."""
    return _given(evidence).cleaned(text)


@dataclass(frozen=True)
class _Given:
    """The URLs that may stay, without a slash or punctuation at the end."""

    links: frozenset[str]
    images: frozenset[str]
    """The job's own URLs. An image may not have a source's URL: showing the answer would already request the image."""

    @classmethod
    def of(cls, evidence: Evidence) -> _Given:
        own = [found.group() for text in (evidence.question, evidence.conversation) for found in URL.finditer(text)]
        sources = [url for one in evidence.sources for url in (one.id, one.url) if url and URL.match(url)]
        return cls(frozenset(map(_plain, [*own, *sources])), frozenset(map(_plain, own)))

    @cached_property
    def _lengths(self) -> tuple[list[int], list[int]]:
        """Return two lists, sorted together: the length of each given URL's match of `URL`, and its whole length.

        The two lengths differ if a source's URL has characters at which the pattern stops.
        """
        found = {(len(url), len(url)) for url in self.images}
        found |= {(match.end() if (match := URL.match(url)) else 0, len(url)) for url in self.links - self.images}
        parts, wholes = zip(*sorted(found), strict=True) if found else ((), ())
        return list(parts), list(wholes)

    def _lengths_within(self, most: int) -> list[int]:
        """Return the lengths of given URLs that a found URL of length `most` may begin with, the longest first.

        In the text, the pattern `URL` finds at least the part that it finds in the given URL itself. So a given URL
        with a part longer than `most` is left out. This saves time, because the URLs of one job may have a thousand
        different lengths.
        """
        parts, wholes = self._lengths
        return sorted(set(wholes[: bisect_right(parts, most)]), reverse=True)

    def cleaned(self, text: str) -> str:
        if _is_json(text):
            return _LITERAL.sub(self._in_literal, text)
        text = self._unwrapped(_ESCAPED_LITERAL.sub(self._in_literal, text))
        return _OPENING.sub(self._opening, self._without_urls(text))

    def _in_literal(self, literal: re.Match[str]) -> str:
        """Clean the value of a JSON string. An unfinished string stays unfinished; invalid JSON stays unchanged."""
        written, is_whole = literal.group(), literal.group(1) is not None
        try:
            said = json.loads(written if is_whole else f'{written}"', strict=False)
        except ValueError:
            return written
        clean = self.cleaned(said)
        return written if clean == said else _as_literal(clean)[: None if is_whole else -1]

    def _unwrapped(self, text: str) -> str:
        """Replace each Markdown link to an unknown URL by the link's text, which reads better than a gap."""
        for _ in range(_NESTED):
            text = _INLINE.sub(self._link_or_label, text)
        return text

    def _link_or_label(self, link: re.Match[str]) -> str:
        text, url = link.group(1, 2)
        if self._may_lead(url):
            return link.group().replace(f"<{url}>", url)  # in angle brackets, the URL could be read as a tag
        return f"[{text}]" if text.strip().isdigit() else text  # a number in brackets may be a citation

    def _without_urls(self, text: str) -> str:
        kept, position = [], 0
        while (found := URL.search(text, position)) is not None:
            start, end = found.start(), self._end_of_given(text, *found.span())
            kept += [text[position:start], LINK_REMOVED if end is None else text[start:end]]
            position = found.end() if end is None else end
            if end is not None and not _ends(text, end) and not _is_label(text, start, end):
                kept.append(" ")
        return "".join([*kept, text[position:]])

    def _end_of_given(self, text: str, start: int, most: int) -> int | None:
        """Return the end of the given URL at `start`, with closing marks; None if no given URL begins there.

        `most` is the end of the URL that the pattern `URL` found at `start`.
        """
        for length in self._lengths_within(most - start):
            if text[start : start + length] in self.links:
                end = start + length + text.startswith("/", start + length)
                closers = _CLOSERS.match(text, end)
                closed = closers.end() if closers is not None else end
                if _ends(text, closed) or text[end] in _ENDS or text[end].isspace():
                    return closed
        return None

    def _opening(self, found: re.Match[str]) -> str:
        text, start, opening = found.string, found.start(), found.group()
        good = {"![": self._is_own_image, "](": self._is_link, "]:": self._is_definition, "<": self._is_tag}[opening]
        return opening if good(text, start) else f"{opening[0]} {opening[1:]}"

    def _is_own_image(self, text: str, start: int) -> bool:
        image = _IMAGE.match(text, start)
        return image is not None and _plain(image.group(1)) in self.images

    def _is_link(self, text: str, start: int) -> bool:
        nearby, target = _TARGET_NEARBY.match(text, start), _TARGET.match(text, start)
        if nearby is not None and not _LEAVES.search(nearby.group(1)):
            return True
        return target is not None and self._may_lead(target.group(2), in_brackets=bool(target.group(1)))

    def _is_definition(self, text: str, start: int) -> bool:
        defined = _DEFINED.match(text, start)
        return defined is not None and self._may_lead(defined.group(2), in_brackets=bool(defined.group(1)))

    def _is_tag(self, text: str, start: int) -> bool:
        if (link := _AUTOLINK.match(text, start)) is not None:
            return self._may_lead(link.group(1), in_brackets=True)
        if (plain := _TAG_WITHOUT_VALUES.match(text, start)) is not None:
            return plain.group(1).lower() not in _LOADED and "](" not in plain.group(2)  # `](` could begin a link
        if (tag := _TAG.match(text, start)) is None:
            return False
        return all(self._is_harmless(tag.group(1), *one) for one in _ATTRIBUTE.findall(tag.group(2)))

    def _is_harmless(self, element: str, attribute: str, value: str) -> bool:
        where = (element.lower(), attribute.lower())
        if where == ("img", "src"):
            return _plain(value) in self.images
        return self._is_given(value) if where == ("a", "href") else where[1] in _LOAD_NOTHING

    def _may_lead(self, url: str, *, in_brackets: bool = False) -> bool:
        """True if the URL was given or stays in the page's folder.

        In angle brackets, only a given URL without `=` may stay.
        """
        if in_brackets:
            return self._is_given(url) and "=" not in url
        return self._is_given(url) or not _LEAVES.search(url)

    def _is_given(self, url: str) -> bool:
        return _plain(url) in self.links


@lru_cache(maxsize=4)
def _given(evidence: Evidence) -> _Given:
    """Return the URLs that may stay.

    They are cached for the last jobs: an answer has many parts, and messages may be long.
    """
    return _Given.of(evidence)


def _plain(url: str) -> str:
    return url.rstrip(".,;:!?*_").rstrip("/")


def _ends(text: str, position: int) -> bool:
    """True if every program that looks for URLs in text ends a URL at `position`.

    In GFM, only ASCII spaces and `<` end a URL.
    """
    return position >= len(text) or text[position] in " \t\n\v\f\r<"


def _is_label(text: str, start: int, end: int) -> bool:
    """True if the URL is the text of a Markdown link. In a link's text, programs look for no further URLs."""
    before = text[max(0, start - 2) : start]
    return text.startswith("](", end - 1) and before.endswith("[") and not before.startswith("\\")


def _is_json(text: str) -> bool:
    if not text.lstrip().startswith(("{", "[", '"')):
        return False
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _as_literal(text: str) -> str:
    """Write the text as a JSON string. A lone surrogate stays an escape, since UTF-8 cannot hold it."""
    return json.dumps(text, ensure_ascii=any("\ud800" <= character <= "\udfff" for character in text))
