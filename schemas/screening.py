"""The input filter's words on the wire: its verdicts, and a finding in a job's result or header."""

from __future__ import annotations

import json
from collections.abc import Sequence
from enum import StrEnum
from typing import Annotated, Literal, get_args

from pydantic import Field, TypeAdapter, ValidationError

from schemas.bounded import WireModel


class Verdict(StrEnum):
    """The input filter's decision about a job: the strictest verdict of the filter's rules, from `pass` to `reject`."""

    PASS = "pass"  # noqa: S105 - a verdict
    """No rule matches."""
    FLAG = "flag"
    """The job runs as it is, and its result names the rule."""
    REDACT = "redact"
    """The job runs with a marker, such as `[redacted:card]`, in place of each match."""
    REJECT = "reject"
    """The job ends as `rejected` with the error code `screened`."""

    @property
    def strictness(self) -> int:
        """The verdict's rank, from 0 for `pass` to 3 for `reject`."""
        return _ORDER.index(self)


_ORDER = tuple(Verdict)

FieldName = Literal[
    "prompt",
    "messages",
    "tools",
    "response_format",
    "embed",
    "rerank",
    "score",
    "classify",
    "search",
    "documents",
    "metadata",
]
"""The name of a job's field whose texts the filter reads.

Of `tools`, the filter reads the descriptions and the strings of the parameters' schemas; of `response_format`, the
name and the strings of its schema. `search` is the query of each search in `sources`, and the values of its
parameters. The filter reads `title` and `text` of `sources.documents`, and the values of `metadata`.
"""


Category = Literal[
    "harassment",
    "harassment/threatening",
    "hate",
    "hate/threatening",
    "illicit",
    "illicit/violent",
    "self-harm",
    "self-harm/intent",
    "self-harm/instructions",
    "sexual",
    "sexual/minors",
    "violence",
    "violence/graphic",
]
"""A category of OpenAI's moderations."""
CATEGORIES: tuple[Category, ...] = get_args(Category)


class ScreeningFinding(WireModel):
    """Matches of one rule in one field. No finding contains the matched text."""

    rule: str
    """The rule's name in the operator's file."""
    kind: str
    """The matcher: `regex`, `words`, `classifier`, or a kind of personal data such as `card` or `email`.

    A classifier that gives no answer is `unavailable`.
    """
    verdict: Literal[Verdict.FLAG, Verdict.REDACT, Verdict.REJECT]
    """The rule's verdict."""
    field: FieldName
    """The job's field with the matches."""
    count: int = Field(ge=1)
    """Number of matches; for `redact`, number of markers in the text."""


MOST_FINDINGS = 64
"""The maximum number of findings of a job that travel in its header."""

_FINDINGS: TypeAdapter[list[ScreeningFinding]] = TypeAdapter(
    Annotated[list[ScreeningFinding], Field(max_length=MOST_FINDINGS)]
)


def write_findings(findings: Sequence[ScreeningFinding]) -> bytes:
    """Return the findings as a header's value, in ASCII; those beyond MOST_FINDINGS are left out."""
    return json.dumps([finding.model_dump(mode="json") for finding in findings[:MOST_FINDINGS]]).encode()


def read_findings(text: str) -> tuple[ScreeningFinding, ...]:
    """Return the findings in a header's value; none if it is malformed, because any producer can write the header."""
    try:
        return tuple(_FINDINGS.validate_json(text))
    except ValidationError:
        return ()


def joined(first: Sequence[ScreeningFinding], second: Sequence[ScreeningFinding]) -> tuple[ScreeningFinding, ...]:
    """Return the findings of two filters. If both found the same rule, kind and field, `second`'s finding is kept."""
    found = {(each.rule, each.kind, each.field): each for each in (*first, *second)}
    return tuple(found.values())
