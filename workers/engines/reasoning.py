"""A model's reasoning, kept apart from its answer: the text between marks such as `<think>` and `</think>`.

`families` has the marks of each family of models. `parted` reads a whole output, and `Growth` one that still grows.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from workers.engines.families import ReasoningMarks


@dataclass(frozen=True, slots=True)
class Parted:
    """A model's output in two parts."""

    text: str
    """The answer."""
    reasoning: str | None
    """The reasoning without its marks; None if the output has none."""
    end: int
    """Characters of the output up to the end of the reasoning, its closing mark included; 0 without reasoning."""


class Growth:
    """The answer in an output that grows. After leading white space, each piece is read a constant number of times."""

    def __init__(self, marks: ReasoningMarks, *, reasons: bool | None, is_open: bool = False) -> None:
        """`reasons` is False if the request asked for no reasoning. See `parted` for `is_open`."""
        self._marks = marks
        self._may_reason = reasons is not False or is_open
        self._held = ""
        """The part of the output in which a mark may have begun."""
        self.has_begun = False
        """True if the answer has begun."""
        self._is_blank = False
        """True while the answer after a reasoning has only white space, which does not count."""

    def add(self, piece: str) -> str:
        """Take the output's next piece, and return what the answer gains, as `parted` will give it."""
        gained = piece if self.has_begun else self._begun(self._held + piece)
        if self._is_blank:
            gained = gained.lstrip()
            self._is_blank = not gained
        return gained

    def _begun(self, output: str) -> str:
        """Return the answer's begin; empty while the output may be reasoning."""
        _, mark, answer = output.partition(self._marks.closing)
        if mark:
            self.has_begun = self._is_blank = True
            return answer
        began = output.lstrip()
        self._may_reason = self._may_reason or began.startswith(self._marks.opening)
        if self._may_reason:
            self._held = output[1 - len(self._marks.closing) :]
            return ""
        if self._marks.opening.startswith(began):
            self._held = output
            return ""
        self.has_begun = True
        return output


def parted(output: str, marks: ReasoningMarks, *, is_open: bool = False) -> Parted:
    """Separate the reasoning from the answer in a whole output.

    `is_open` is true if the prompt ended with the opening mark. Reasoning without its closing mark lasts to the end. A
    closing mark without an opening mark ends reasoning that began with the output, because some prompts open the
    reasoning, and models nest marks. An opening mark without a closing mark begins reasoning only at the start of the
    output, because an answer may mention the mark.
    """
    found = re.compile(f"({re.escape(marks.opening)})|{re.escape(marks.closing)}")
    reasoning: list[str] = []
    text: list[str] = []
    inside, position, end = is_open, 0, 0
    last_closing, is_blank = output.rfind(marks.closing), True  # search once, since opening marks may repeat
    for mark in found.finditer(output):
        part = output[position : mark.start()]
        (reasoning if inside else text).append(part)
        is_blank = is_blank and not part.strip()
        position = mark.end()
        if not mark[1]:
            if not inside:
                reasoning += text
                text = []
            inside, end = False, position
        elif not inside:
            inside = last_closing >= position or is_blank
            if not inside:
                text.append(mark[0])
    (reasoning if inside else text).append(output[position:])
    if not end and not inside:
        return Parted(output, None, 0)
    return Parted("".join(text).lstrip(), "".join(reasoning).strip(), len(output) if inside else end)
