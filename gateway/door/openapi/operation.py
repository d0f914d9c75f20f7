"""An operation of the API, as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from gateway.access import Scope


@dataclass(frozen=True, slots=True)
class Parameter:
    """A parameter of a query or a header field."""

    name: str
    meaning: str
    schema: Mapping[str, Any] = field(default_factory=lambda: {"type": "string"})
    place: str = "query"


@dataclass(frozen=True, slots=True)
class Operation:
    """One method of one path."""

    method: str
    path: str
    """The path with its parameters in braces, such as `/v1/jobs/{job_id}`."""
    name: str
    """The operation's id."""
    summary: str
    scope: Scope
    answer: str | None = None
    """The name of the answer's schema; None for an answer that is not JSON."""
    status: int = 200
    about: str = ""
    parameters: tuple[Parameter, ...] = ()
    body: str | None = None
    """The name of the body's schema."""
    body_type: str = "application/json"
    answer_type: str = "application/json"


PAGING = (
    Parameter("limit", "The maximum number of objects.", {"type": "integer", "minimum": 1, "maximum": 100}),
    Parameter("after", "The id of the last object of the previous page."),
    Parameter("order", "The order by time of creation.", {"enum": ["asc", "desc"]}),
)
IDEMPOTENCY = Parameter(
    "Idempotency-Key",
    "A repeat with the same key and body gets the first answer; another body is a 409.",
    {"type": "string", "pattern": r"^[\x21-\x7e]{1,256}$"},
    "header",
)
