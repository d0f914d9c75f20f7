"""Finds the texts of a job for the rules, and puts changed texts back, in one walk over the job."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import Any, Final, TypeVar, cast

from pydantic import BaseModel

from schemas.job import (
    MAX_METADATA_CHARS,
    MAX_PARAMETER_CHARS,
    MAX_QUERY_CHARS,
    Job,
    Message,
    Search,
    SourceDocument,
    TextPart,
)
from schemas.screening import FieldName
from schemas.tools import Tool, ToolCall

M = TypeVar("M", bound=BaseModel)
T = TypeVar("T")

_SCHEMA_WORDS: Final = frozenset((
    "$anchor", "$comment", "$defs", "$dynamicAnchor", "$dynamicRef", "$id", "$ref", "$schema", "$vocabulary",
    "additionalItems", "additionalProperties", "allOf", "anyOf", "const", "contains", "contentEncoding",
    "contentMediaType", "contentSchema", "default", "definitions", "dependencies", "dependentRequired",
    "dependentSchemas", "deprecated", "description", "discriminator", "else", "enum", "example", "examples",
    "exclusiveMaximum", "exclusiveMinimum", "format", "if", "items", "maxContains", "maxItems", "maxLength",
    "maxProperties", "maximum", "minContains", "minItems", "minLength", "minProperties", "minimum", "multipleOf",
    "not", "nullable", "oneOf", "pattern", "patternProperties", "prefixItems", "properties", "propertyNames",
    "readOnly", "required", "strict", "then", "title", "type", "unevaluatedItems", "unevaluatedProperties",
    "uniqueItems", "writeOnly", "array", "boolean", "integer", "null", "number", "object", "string",
))  # fmt: skip
"""The keywords and types of JSON Schema and OpenAPI, which no rule reads: a marker in one would break the schema."""


@dataclass(frozen=True, slots=True)
class JobText:
    """One text of a job."""

    field: FieldName
    """The job's field."""
    text: str
    parts: tuple[str, ...] = ()
    """The text parts of a message that has some; `text` joins them by line breaks, as the engine does."""
    most_chars: int | None = None
    """The maximum number of characters that the schema allows here, also with markers; None without a limit."""


Rewrite = Callable[[JobText], str | tuple[str, ...] | None]
"""Returns the new text, or the new parts of a text with parts; None if the text stays as it is."""


def texts_of(job: Job) -> list[JobText]:
    """Return the texts of a job that a rule can read."""
    found: list[JobText] = []
    rewritten(job, found.append)
    return found


def rewritten(job: Job, rewrite: Rewrite) -> Job:
    """Return the job with `rewrite` of each text that a rule can read; the job itself if no text changes."""

    def one(field: FieldName, text: str, most_chars: int | None = None) -> str:
        return cast("str | None", rewrite(JobText(field, text, (), most_chars))) or text

    new: dict[str, Any] = {}
    if job.prompt is not None:
        new["prompt"] = one("prompt", job.prompt)
    if job.messages is not None:
        new["messages"] = _each(job.messages, partial(_message, rewrite, one))
    if job.tools is not None:
        new["tools"] = _each(job.tools, partial(_tool, one))
    if job.response_format is not None and (schema := job.response_format.json_schema) is not None:
        name = one("response_format", schema.name)
        value = _schema(schema.schema_, partial(one, "response_format"))
        new["response_format"] = _changed(job.response_format, json_schema=_changed(schema, name=name, schema_=value))
    if job.kind is not None:
        new[job.kind.field] = _of_kind(partial(one, cast("FieldName", job.kind.field)), getattr(job, job.kind.field))
    if (sources := job.sources) is not None:
        new["sources"] = _changed(
            sources,
            search=_search(one, sources.search) if sources.search is not None else None,
            searches=_each(sources.searches, partial(_search, one)),
            documents=_each(sources.documents, partial(_document, one)),
        )
    new["metadata"] = {key: one("metadata", value, MAX_METADATA_CHARS) for key, value in job.metadata.items()}
    return _changed(job, **new)


def _changed(model: M, **new: object) -> M:
    """Return the model with these values; the model itself if it has them all. A dictionary may be an equal one."""
    pairs = [(name, value, getattr(model, name)) for name, value in new.items()]
    update = {name: one for name, one, own in pairs if one is not own and not (isinstance(one, dict) and one == own)}
    return model.model_copy(update=update) if update else model


def _each(items: Sequence[T], change: Callable[[T], T]) -> Sequence[T]:
    """Return the changed items; the sequence itself if none changed."""
    new = [change(one) for one in items]
    return items if all(one is before for one, before in zip(new, items, strict=True)) else new


def _message(rewrite: Rewrite, one: Callable[[FieldName, str], str], message: Message) -> Message:
    content = message.content
    if content is not None and (text := rewrite(JobText("messages", message.text, message.texts))) is not None:
        texts = iter(() if isinstance(text, str) else text)
        content = text if isinstance(text, str) else [
            TextPart(type="text", text=next(texts)) if isinstance(part, TextPart) else part for part in message.parts
        ]  # fmt: skip

    def called(call: ToolCall) -> ToolCall:
        arguments = one("messages", call.function.arguments)
        return _changed(call, function=_changed(call.function, arguments=arguments))

    calls = None if message.tool_calls is None else _each(message.tool_calls, called)
    return _changed(message, content=content, tool_calls=calls)


def _tool(one: Callable[[FieldName, str], str], tool: Tool) -> Tool:
    function = tool.function
    description = None if function.description is None else one("tools", function.description)
    parameters = _schema(function.parameters, partial(one, "tools"))
    return _changed(tool, function=_changed(function, description=description, parameters=parameters))


def _of_kind(one: Callable[[str], str], asked: Sequence[str] | BaseModel) -> object:
    """Return the field of a kind of job, such as the texts to embed, with its texts rewritten."""
    if not isinstance(asked, BaseModel):
        return _each(asked, one)
    texts = {name: one(value) for name, value in asked if isinstance(value, str)}
    return _changed(asked, **texts, **{name: _each(value, one) for name, value in asked if isinstance(value, list)})


def _search(one: Callable[[FieldName, str, int], str], search: Search) -> Search:
    query = one("search", search.query, MAX_QUERY_CHARS)
    parameters = {name: one("search", value, MAX_PARAMETER_CHARS) for name, value in search.parameters.items()}
    return _changed(search, query=query, parameters=parameters)


def _document(one: Callable[[FieldName, str], str], document: SourceDocument) -> SourceDocument:
    """Return the document with its title and text; the bytes of `base64` are read later, in confined processes."""
    title, text = document.title, document.text
    return _changed(
        document,
        title=title if title is None else one("documents", title),
        text=text if text is None else one("documents", text),
    )


def _schema(schema: dict[str, Any], one: Callable[[str], str]) -> dict[str, Any]:
    """Return a JSON Schema with its author's strings rewritten, keys and values, in a fixed order.

    The model reads them all: names of properties, descriptions, enumerated values and examples. The steps are a list
    instead of calls, because a schema may be nested deeper than calls may be.
    """
    copy: dict[str, Any] = {}
    steps: list[tuple[dict[str, Any] | list[Any], dict[str, Any] | list[Any]]] = [(schema, copy)]
    is_changed = False

    def text(value: str) -> str:
        nonlocal is_changed
        new = value if value in _SCHEMA_WORDS else one(value)
        is_changed |= new is not value
        return new

    def rewritten(value: object) -> object:
        if isinstance(value, str):
            return text(value)
        if not isinstance(value, dict | list):
            return value
        inner: dict[str, Any] | list[Any] = {} if isinstance(value, dict) else []
        steps.append((value, inner))
        return inner

    while steps:
        source, target = steps.pop()
        if isinstance(source, list):
            cast("list[Any]", target).extend(map(rewritten, source))
            continue
        for key, value in source.items():
            cast("dict[str, Any]", target)[_unused(text(key), target)] = rewritten(value)
    return copy if is_changed else schema


def _unused(key: str, taken: Mapping[str, Any] | list[Any]) -> str:
    """Return the key, with a number if two redacted names of properties have become one."""
    return key if key not in taken else next(name for n in count(2) if (name := f"{key} {n}") not in taken)
