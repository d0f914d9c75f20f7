"""Finds the question in a prompt, and the words of a query that a search service has to match. Pure.

A prompt may be long. It may have instructions like a system prompt, pasted documents, and a question at the start, in
the middle or at the end. Marked pasted parts and instructions are left out. In the remaining text, the question is the
first of these that exists:

    a labelled question
    a question in a paragraph of only questions and instructions
    the last question of the last paragraph, then of the first paragraph, then the longest question
    an order ("Summarise …")
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Final

MAX_QUESTION_CHARS: Final = 300
"""Cap on the code points of a question that is searched for."""
MAX_WORDS: Final = 12
"""Cap on a query's words for a service that matches any word.

In a longer query, common words would outweigh the others.
"""
_ENOUGH: Final = 3
"""A question with fewer words to search for ("Is it safe then?") needs another sentence before it."""

_WORD: Final = re.compile(r"\w+(?:[-'’]\w+)*")  # noqa: RUF001 - typographic
_PASTED: Final = re.compile(
    r"```.*?(?:```|\Z)|~~~.*?(?:~~~|\Z)|\"\"\".*?(?:\"\"\"|\Z)"
    r"|<(?P<tag>[A-Za-z][\w-]{0,30})>.*?(?:</(?P=tag)>|\Z)|^[ \t]*>[^\n]*$",
    re.DOTALL | re.MULTILINE,
)
_DOCUMENT: Final = re.compile(
    r"^\W{0,4}(?:document|context|text|article|abstract|passage|background|source|excerpt|transcript|e-?mail)s?"
    r"(?: \w{1,3})?\W{0,4}:",
    re.IGNORECASE,
)
"""Matches the labels that begin a pasted paragraph."""
_LABEL: Final = re.compile(
    r"^\W{0,4}(?:(?:user|my|the|final|research) )?(?:question|query|task|q|frage|pregunta|user|human)\W{0,4}:\s*",
    re.IGNORECASE,
)
_SENTENCE_END: Final = re.compile(r"(?<=[.!?])[\"')\]”’]*\s+|(?<=[。！？])\s*|\n")  # noqa: RUF001 - full-width marks
_QUESTION: Final = re.compile(r"[?？][\"')\]”’*_]*$")  # noqa: RUF001 - as above
_ORDER: Final = re.compile(
    r"(?:please |now )*(?:summari[sz]e|explain|describe|compare|list|find|discuss|review|outline|tell me|give me|"
    r"assess|evaluate|analy[sz]e|estimate|identify|report)\b",
    re.IGNORECASE,
)
_INSTRUCTION: Final = re.compile(
    r"\byou(?:'re|’re| are| will| should| must| may| have)\b|\byour\b|\b(?:do not|don't|don’t|never|always|make sure|"  # noqa: RUF001
    r"ensure|avoid|act as|respond|reply|cite|quote|use only|based on|step by step|bullets?|json|markdown|concise|"
    r"assistant|question below|following (?:question|document|text)|instructions?|the user)\b",
    re.IGNORECASE,
)

_STOP_WORDS: Final = (
    "a about after again all also am an and any are as at be because been before being below best between but by can "
    "could did do does doing each few for from further give had has have having he her here hers him his how i if in "
    "into is it its itself just know like list may me might more most much must my no nor not of off on once only or "
    "other our out over own please same say see shall she should so some such tell than that the their them then there "
    "these they this those through to too under until up use used very was we were what when where whether which while "
    "who whom whose why will with would you your "
    "question questions answer answers explain describe discuss document documents source sources text summarise "
    "summarize user assistant instruction instructions "
    "aber als am auf bei das dem den der des die ein eine einem einen einer für hat ist mit nicht oder sich sie sind "
    "und von warum was welche welcher welches wie wird wurde zu zum zur "
    "au aux avec ce ces cette comment dans de des du elle en est et il ils la le les leur on ou par pour pourquoi "
    "quand que quel quelle quels quelles qui sa se ses son sont sur un une "
    "al como con cuál cuáles cuando cómo del el ella es está la las los más o para por que qué se son su sus un una y"
)
_STOPPED: Final = frozenset(_STOP_WORDS.split())


def search_words(query: str, most: int = MAX_WORDS) -> list[str]:
    """Return at most `most` words of the query's question, each once and in order, without stop words.

    If the question has only stop words, return the stop words.
    """
    question = question_in(query)
    return (_telling(question) or _once(_WORD.findall(question)))[:most]


def question_in(prompt: str) -> str:
    """Return the prompt's question on one line.

    A long question is cut between two words to at most `MAX_QUESTION_CHARS`. If the question is too short to name a
    subject, another sentence is put before the question. If the prompt has no question, the start of the prompt is
    returned, without instructions if the prompt has other text.
    """
    paragraphs = [_sentences(part) for part in re.split(r"\n\s*\n", _PASTED.sub("\n\n", prompt))]
    paragraphs = [part for part in paragraphs if part] or [part for part in [_sentences(prompt)] if part]
    return _cut(_asked(paragraphs) or " ".join(_subject(paragraphs)))


def _asked(paragraphs: Sequence[Sequence[str]]) -> str:
    """Return the question, and before a short question another sentence; empty if the text has no question."""
    own = [part for part in paragraphs if not _DOCUMENT.match(part[0])] or paragraphs
    for kind, where in ((_labelled, paragraphs), (_question, own), (_order, own)):
        if paragraphs and (chosen := kind(where)) is not None:
            part, at = chosen
            question = _LABEL.sub("", part[at])
            if len(_telling(question)) >= _ENOUGH:
                return question
            before = [one for one in part[:at] if not _INSTRUCTION.search(one)][-1:]
            return " ".join([*(before or _before(paragraphs, part)), question])
    return ""


def _before(paragraphs: Sequence[Sequence[str]], part: Sequence[str]) -> list[str]:
    """Return the first sentence that is no instruction and stands outside the paragraph `part`."""
    others = (one for other in paragraphs if other is not part for one in other)
    return [one for one in others if not _INSTRUCTION.search(one)][:1]


_Place = tuple[Sequence[str], int]


def _labelled(paragraphs: Sequence[Sequence[str]]) -> _Place | None:
    places = [(part, at) for part in paragraphs for at, one in enumerate(part) if _LABEL.match(one)]
    for part, at in reversed(places):
        if _WORD.search(_LABEL.sub("", part[at])):
            return part, at
        if at + 1 < len(part):
            return part, at + 1  # the label has a line of its own; the question is the next line
    return None


def _question(paragraphs: Sequence[Sequence[str]]) -> _Place | None:
    """Return the paragraph and the index of the question that is asked.

    This is the last question of the last paragraph; if there is none, the last question of the first paragraph; else
    the question with the most words to search for. Paragraphs that have only questions and instructions are searched
    first, since other paragraphs may be pasted documents.
    """
    asking = [part for part in paragraphs if all(_is_question(one) or _INSTRUCTION.search(one) for one in part)]
    for part in (*reversed(asking), paragraphs[-1], paragraphs[0]):
        if (at := _last(part, _is_question)) is not None:
            return part, at
    places = [(part, at) for part in paragraphs for at, one in enumerate(part) if _is_question(one)]
    return max(places, key=lambda place: len(_telling(place[0][place[1]])), default=None)


def _is_question(sentence: str) -> bool:
    """True if the sentence is a question with words to search for."""
    return _QUESTION.search(sentence) is not None and bool(_telling(sentence))


def _order(paragraphs: Sequence[Sequence[str]]) -> _Place | None:
    for part in (paragraphs[-1], *paragraphs[:-1]):
        at = _last(part, lambda one: _ORDER.match(one) is not None and len(_telling(one)) >= _ENOUGH)
        if at is not None:
            return part, at
    return None


def _last(part: Sequence[str], test: Callable[[str], bool]) -> int | None:
    return next((at for at in reversed(range(len(part))) if test(part[at])), None)


def _subject(paragraphs: Sequence[Sequence[str]]) -> list[str]:
    said = [one for part in paragraphs for one in part]
    return [one for one in said if not _INSTRUCTION.search(one)] or said


def _sentences(text: str) -> list[str]:
    return [plain for one in _SENTENCE_END.split(text) if (plain := " ".join(one.split())) and _WORD.search(plain)]


def _telling(text: str) -> list[str]:
    return [word for word in _once(_WORD.findall(text)) if word.casefold() not in _STOPPED]


def _once(words: Iterable[str]) -> list[str]:
    return list({word.casefold(): word for word in reversed(list(words))}.values())[::-1]


def _cut(text: str) -> str:
    if len(text) <= MAX_QUESTION_CHARS:
        return text
    return text[: MAX_QUESTION_CHARS + 1].rpartition(" ")[0] or text[:MAX_QUESTION_CHARS]
