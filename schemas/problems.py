"""Problems of a record, named by field for its author, without the rejected values."""

from __future__ import annotations

import re
from dataclasses import dataclass

from pydantic import ValidationError

from schemas.bounded import WireModel
from schemas.job import (
    ImagePart,
    ImageUrl,
    Job,
    JsonSchemaFormat,
    Message,
    Reasoning,
    ResponseFormat,
    Search,
    SourceDocument,
    Sources,
    TextPart,
)
from schemas.kinds import KINDS
from schemas.messages import UNKNOWN_PART
from schemas.tools import CalledFunction, Tool, ToolCall, ToolFunction

MAX_PROBLEMS = 8
"""Limit on the reported problems: enough to repair a record, while a hostile record may have thousands."""

_MODELS: tuple[type[WireModel], ...] = (
    *(Job, Message, TextPart, ImagePart, ImageUrl, Reasoning, ResponseFormat, JsonSchemaFormat),
    *(Sources, Search, SourceDocument),
    *(kind.model for kind in KINDS if kind.model is not None),
    *(Tool, ToolFunction, ToolCall, CalledFunction),
)
_FIELDS = frozenset(info.alias or name for model in _MODELS for name, info in model.model_fields.items())

_NOT_A_URL = "is not an http or https URL without credentials"
_NOT_AN_IDENTIFIER = "has a space or a character outside printable ASCII"
_MISMATCHES = {
    "callback_url": _NOT_A_URL,
    "urls": _NOT_A_URL,
    "payload_url": "is neither an https URL without credentials nor s3://BUCKET/KEY",
    "payload_sha256": "is not 64 hexadecimal digits",
    "url": "is neither an https URL of at most 2,048 characters nor a data URL of a png, jpeg, gif or webp image in "
    "base64, such as data:image/png;base64,iVBORw0KGgo",
    **dict.fromkeys(("job_id", "model_id", "adapter", "provider", "profile", "id"), _NOT_AN_IDENTIFIER),
    "name": "is not 1 to 64 letters, digits, `_` or `-`",
    "base64": "is not base64 with padding (RFC 4648, section 4)",
    "media_type": "is not a media type without parameters, such as application/pdf",
}


@dataclass(frozen=True, slots=True)
class Problem:
    """One problem. `field` is a dotted path such as `messages.0.content`; `reason` is a text for people."""

    field: str
    reason: str

    def __str__(self) -> str:
        return f"{self.field}: {self.reason}"


def problems_of(error: ValidationError) -> tuple[Problem, ...]:
    """Convert at most MAX_PROBLEMS of pydantic's errors, without the rejected values and keys that a user chose."""
    found: dict[str, str] = {}
    for details in error.errors(include_url=False, include_context=False, include_input=False):
        place, kind = _place(details["loc"]), details["type"]
        if kind == UNKNOWN_PART:
            place = f"{place}.type"
        reason = _reason(place, kind, details["msg"])
        found.setdefault(place or (_field_of_rule(reason) if kind == "value_error" else "value"), reason)
        if len(found) > 2 * MAX_PROBLEMS:
            break
    return tuple(Problem(place, reason) for place, reason in _innermost(found).items())[:MAX_PROBLEMS]


def _place(path: tuple[int | str, ...]) -> str:
    """Return the dotted path, without the user's keys below `metadata` and without pydantic's union tags."""
    parts: list[str] = []
    for part in path:
        if isinstance(part, int) or part in _FIELDS:
            parts.append(str(part))
        if part == "metadata":
            break
    return ".".join(parts)


def _reason(place: str, kind: str, message: str) -> str:
    field = next((part for part in reversed(place.split(".")) if not part.isdigit()), "")
    if kind == "json_invalid":
        return message.replace("Invalid JSON", "is not JSON")
    if kind == "model_type" and not place:
        return "is not a JSON object"
    if kind == "string_pattern_mismatch" and field in _MISMATCHES:
        return _MISMATCHES[field]
    return message.removeprefix("Value error, ")


def _field_of_rule(reason: str) -> str:
    """Return the field for a problem of the whole job: the field with which `reason` begins, or else `prompt`."""
    named = re.match(r"`(\w+)`", reason)
    return named[1] if named is not None and named[1] in _FIELDS else "prompt"


def _innermost(found: dict[str, str]) -> dict[str, str]:
    """Return the problems, without those of a value that has a problem further inside.

    For example, `content: should be a string` is left out if the content is a list with a problem in one of its items.
    """
    return {
        place: reason for place, reason in found.items() if not any(other.startswith(f"{place}.") for other in found)
    }


class UnusableLine(ValueError):  # noqa: N818 - named after the line
    """A Batch line cannot become a job. The error's text repeats no input."""

    def __init__(self, *problems: Problem) -> None:
        super().__init__("; ".join(str(problem) for problem in problems))
        self.problems = problems
