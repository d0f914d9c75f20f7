"""Unknown fields of a job, most of them misspelt. Readers ignore these fields and name them to the author.

Since the author may choose any names, at most MAX_NAMES are kept, each cut in length, with `?` for anything but
printable ASCII. Values are not kept.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache

from schemas import openai, topics
from schemas.bounded import WireModel
from schemas.job import ImagePart, Job, JsonSchemaFormat, Reasoning, ResponseFormat, Search, SourceDocument, Sources
from schemas.kinds import KINDS
from schemas.problems import Problem
from schemas.tools import ChosenFunction, NamedTool, Tool, ToolFunction

MAX_NAMES = 5
MAX_NAME_CHARACTERS = 64
_ALIKE = 0.75
_LEAST_PART = 3
_OTHER = re.compile(r"[^\x21-\x7e]")
_MODELS: dict[str, type[WireModel]] = {
    "": Job,
    "sources": Sources,
    "sources.search": Search,
    "sources.searches": Search,
    "sources.documents": SourceDocument,
    "response_format": ResponseFormat,
    "response_format.json_schema": JsonSchemaFormat,
    "reasoning": Reasoning,
    **{kind.field: kind.model for kind in KINDS if kind.model is not None},
    "tools": Tool,
    "tools.function": ToolFunction,
    "tool_choice": NamedTool,
    "tool_choice.function": ChosenFunction,
}
_KNOWN = {
    place: tuple(info.alias or name for name, info in model.model_fields.items()) for place, model in _MODELS.items()
}
_CALLED = {
    **dict.fromkeys(("max_completion_tokens", "max_output_tokens", "max_new_tokens"), "max_tokens"),
    "webhook_url": "callback_url",
    "model_name": "model_id",
}
"""Other APIs' names for Postback's fields."""
_HEADERS = (topics.TENANT, topics.DEADLINE, topics.IDEMPOTENCY_KEY, topics.TRACEPARENT, topics.SCHEMA)
_OWN_MODELS = ("reasoning", *(kind.field for kind in KINDS if kind.model is not None))
"""Fields of a job whose value is a model that contains no further models."""


@dataclass(frozen=True, slots=True)
class UnknownFields:
    """The ignored fields of one job."""

    names: tuple[str, ...]
    """The fields' paths, such as `sources.require`, at most MAX_NAMES."""
    count: int

    def __str__(self) -> str:
        """Return a sentence for the job's author."""
        named = ", ".join(map(described, self.names))
        more = f" and {self.count - len(self.names)} more" if self.count > len(self.names) else ""
        return f"unknown fields of the job were ignored: {named}{more}"


def taken_from(job: Job) -> UnknownFields | None:
    """Remove the unknown members that a job was read with (`extra="allow"`). Return their names, or None without any.

    The members' values could take many times the record's size. Unknown members of messages are removed without
    being named: `role` and `content` are required, so a misspelt one already makes the job invalid.
    """
    for message in job.messages or ():
        _removed(message)
        for part in message.parts:
            _removed(part)
            if isinstance(part, ImagePart):
                _removed(part.image_url)
        for call in message.tool_calls or ():
            _removed(call)
            _removed(call.function)
    names = [*_removed(job)]
    if job.sources is not None:
        names += _below("sources", job.sources)
        names += _below("sources.search", job.sources.search)
        for search in job.sources.searches:
            names += _below("sources.searches", search)
        for document in job.sources.documents:
            names += _below("sources.documents", document)
    for field in _OWN_MODELS:
        names += _below(field, getattr(job, field))
    for tool in job.tools or ():
        names += _below("tools", tool)
        names += _below("tools.function", tool.function)
    if isinstance(job.tool_choice, NamedTool):
        names += _below("tool_choice", job.tool_choice)
        names += _below("tool_choice.function", job.tool_choice.function)
    if job.response_format is not None:
        names += _below("response_format", job.response_format)
        names += _below("response_format.json_schema", job.response_format.json_schema)
    return unknown_fields(names) if names else None


def unknown_in(document: object) -> UnknownFields | None:
    """Return the unknown fields of a JSON value that is not a valid job, for its author."""
    if not isinstance(document, dict) or openai.is_batch_line(document):
        return None
    return unknown_fields(name for name, value in document.items() if value is not None and name not in _KNOWN[""])


def unknown_fields(names: Iterable[str]) -> UnknownFields | None:
    """Keep at most MAX_NAMES of these names, cut to MAX_NAME_CHARACTERS; None without names."""
    found = list(names)
    shown = tuple(_OTHER.sub("?", name[:MAX_NAME_CHARACTERS]) for name in found[:MAX_NAMES])
    return UnknownFields(shown, len(found)) if found else None


def joined(first: UnknownFields | None, second: UnknownFields | None) -> UnknownFields | None:
    """Return the unknown fields of `first` and of `second` together; None if both are None."""
    if first is None or second is None:
        return first or second
    return UnknownFields((*first.names, *second.names)[:MAX_NAMES], first.count + second.count)


def refused(unknown: UnknownFields | None) -> tuple[Problem, ...]:
    """Return a problem for each named field, for a reader that refuses unknown fields."""
    return tuple(_problem(name) for name in unknown.names) if unknown is not None else ()


@lru_cache(maxsize=1024)
def described(name: str) -> str:
    """Return a name in quotes, with its place if it is a header's, or a similar known field if there is one."""
    if name in _HEADERS:
        return f"`{name}` (a header of the record, not a field of the job)"
    meant = _meant(name)
    return f"`{name}` (did you mean `{meant}`?)" if meant else f"`{name}`"


def _problem(name: str) -> Problem:
    meant = _meant(name)
    return Problem(name, unknown_reason(meant))


def unknown_reason(meant: str | None) -> str:
    """Return the reason to refuse an unknown field; `meant` is the nearest known field."""
    return f"is unknown; did you mean `{meant}`?" if meant else "is unknown; remove it"


def _meant(name: str) -> str | None:
    """Return the most similar known field of the same object; None if no field is similar."""
    place, dot, own = name.rpartition(".")
    if place == "body":
        known = openai.MEMBERS
        if own in openai.NOT_TAKEN:
            return None
    else:
        known = _KNOWN.get(place, ())
    # `known` also has the fields of other URLs' bodies, perhaps even the unknown field. Never suggest a field for
    # itself.
    meant = nearest(own, (field for field in known if field != own))
    return f"{place}{dot}{meant}" if meant else None


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Return the known field that is most like the name; None if no field is similar."""
    known = tuple(known)
    alike = difflib.get_close_matches(name.lower(), known, 1, _ALIKE)
    parts = [field for field in known if len(name) >= _LEAST_PART and name.lower() in field.split("_")]
    return next(iter((*alike, *(field for field in (_CALLED.get(name),) if field in known), *parts)), None)


def _below(place: str, model: WireModel | None) -> list[str]:
    return [f"{place}.{name}" for name in _removed(model)] if model is not None else []


def _removed(model: WireModel) -> list[str]:
    """Remove a model's extra members; return the names of those that are not null."""
    extra: Mapping[str, object] | None = model.__pydantic_extra__
    if not extra:
        return []
    names = [name for name, value in extra.items() if value is not None]
    model.__pydantic_extra__.clear()  # type: ignore[union-attr]
    return names
