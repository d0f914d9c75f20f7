"""Finds the texts of a job for the rules, and puts changed texts back into the job."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import count
from typing import Any, Final, cast

from schemas.job import (
    MAX_METADATA_CHARS,
    MAX_PARAMETER_CHARS,
    MAX_QUERY_CHARS,
    Job,
    Message,
    ResponseFormat,
    Search,
    SourceDocument,
    Sources,
    TextPart,
)
from schemas.kinds import texts_in, with_texts_in
from schemas.screening import FieldName
from schemas.tools import Tool

Place = tuple[FieldName, str | int]
"""A field, and the text's place in the field: a number, a key, a number with a member such as `2.title`, or 0 for the
only text. The strings of a schema are numbered: `2.0` is the first one of the third tool."""

_MOST_CHARS: dict[FieldName, int] = {"search": MAX_QUERY_CHARS, "metadata": MAX_METADATA_CHARS}
"""Limits of a job's schema, which a text with markers must not exceed either."""
_MEMBERS = ("title", "text")
"""The members of a document that the filter reads; the bytes of `base64` are read later, in confined processes."""
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

    place: Place
    text: str
    parts: tuple[str, ...] = ()
    """The text parts of a message that has some; `text` joins them by line breaks, as the engine does."""

    @property
    def field(self) -> FieldName:
        """The job's field."""
        return self.place[0]

    @property
    def most_chars(self) -> int | None:
        """The maximum number of characters that the schema allows here; None without a limit."""
        is_parameter = self.field == "search" and isinstance(self.place[1], str)
        return MAX_PARAMETER_CHARS if is_parameter else _MOST_CHARS.get(self.field)


def texts_of(job: Job) -> Iterator[JobText]:
    """Return the texts of a job that a rule can read."""
    if job.prompt is not None:
        yield JobText(("prompt", 0), job.prompt)
    yield from _texts_of_chat(job)
    if job.response_format is not None and job.response_format.json_schema is not None:
        schema = job.response_format.json_schema
        yield JobText(("response_format", "name"), schema.name)
        for at, text in _strings_of(schema.schema_):
            yield JobText(("response_format", at), text)
    if job.kind is not None:
        field = cast(FieldName, job.kind.field)
        yield from (JobText((field, key), text) for key, text in texts_in(getattr(job, field)))
    yield from _texts_of_sources(job.sources or Sources())
    for key, value in job.metadata.items():
        yield JobText(("metadata", key), value)


def _texts_of_chat(job: Job) -> Iterator[JobText]:
    for number, message in enumerate(job.messages or ()):
        if message.content is not None:
            yield JobText(("messages", number), message.text, message.texts)
        for at, call in enumerate(message.tool_calls or ()):
            yield JobText(("messages", f"{number}.{at}"), call.function.arguments)
    for number, tool in enumerate(job.tools or ()):
        if tool.function.description is not None:
            yield JobText(("tools", number), tool.function.description)
        for at, text in _strings_of(tool.function.parameters):
            yield JobText(("tools", f"{number}.{at}"), text)


def _texts_of_sources(sources: Sources) -> Iterator[JobText]:
    for number, search in enumerate(sources.all_searches):
        yield JobText(("search", number), search.query)
        for key, value in search.parameters.items():
            yield JobText(("search", f"{number}.{key}"), value)
    for number, document in enumerate(sources.documents):
        for member in _MEMBERS:
            text = getattr(document, member)
            if text is not None:
                yield JobText(("documents", f"{number}.{member}"), text)


def with_texts(job: Job, changed: Mapping[Place, str | tuple[str, ...]]) -> Job:
    """Return the job with the changed texts. The change of a message with text parts is a tuple of its parts."""
    update: dict[str, Any] = {}
    prompt = changed.get(("prompt", 0))
    if prompt is not None:
        update["prompt"] = prompt
    if job.messages is not None:
        update["messages"] = [
            _with_arguments(number, _with_text(message, changed.get(("messages", number))), changed)
            for number, message in enumerate(job.messages)
        ]
    if job.tools is not None:
        update["tools"] = [_with_tool(number, tool, changed) for number, tool in enumerate(job.tools)]
    if job.response_format is not None:
        update["response_format"] = _with_schema(job.response_format, changed)
    if job.kind is not None:
        field = job.kind.field
        of_field = {key: text for (name, key), text in changed.items() if name == field and isinstance(text, str)}
        update[field] = with_texts_in(getattr(job, field), of_field)
    if job.sources is not None:
        update["sources"] = _with_source_texts(job.sources, changed)
    values = {str(key): text for (field, key), text in changed.items() if field == "metadata"}
    if values:
        update["metadata"] = {**job.metadata, **values}
    return job.model_copy(update=update)


def _with_arguments(number: int, message: Message, changed: Mapping[Place, str | tuple[str, ...]]) -> Message:
    if message.tool_calls is None:
        return message
    calls = []
    for at, call in enumerate(message.tool_calls):
        arguments = changed.get(("messages", f"{number}.{at}"), call.function.arguments)
        calls.append(call.model_copy(update={"function": call.function.model_copy(update={"arguments": arguments})}))
    return message.model_copy(update={"tool_calls": calls})


def _with_tool(number: int, tool: Tool, changed: Mapping[Place, str | tuple[str, ...]]) -> Tool:
    function = tool.function
    new = {
        "description": changed.get(("tools", number), function.description),
        "parameters": _with_strings(function.parameters, lambda at: changed.get(("tools", f"{number}.{at}"))),
    }
    return tool.model_copy(update={"function": function.model_copy(update=new)})


def _with_schema(form: ResponseFormat, changed: Mapping[Place, str | tuple[str, ...]]) -> ResponseFormat:
    schema = form.json_schema
    if schema is None:
        return form
    new = {
        "name": changed.get(("response_format", "name"), schema.name),
        "schema_": _with_strings(schema.schema_, lambda at: changed.get(("response_format", at))),
    }
    return form.model_copy(update={"json_schema": schema.model_copy(update=new)})


def _with_source_texts(sources: Sources, changed: Mapping[Place, str | tuple[str, ...]]) -> Sources:
    searches = [_with_search(number, search, changed) for number, search in enumerate(sources.all_searches)]
    search = searches.pop(0) if sources.search is not None else None
    documents = [_with_members(number, document, changed) for number, document in enumerate(sources.documents)]
    return sources.model_copy(update={"search": search, "searches": searches, "documents": documents})


def _with_search(number: int, search: Search, changed: Mapping[Place, str | tuple[str, ...]]) -> Search:
    parameters = {key: changed.get(("search", f"{number}.{key}"), value) for key, value in search.parameters.items()}
    return search.model_copy(update={"query": changed.get(("search", number), search.query), "parameters": parameters})


def _with_members(
    number: int, document: SourceDocument, changed: Mapping[Place, str | tuple[str, ...]]
) -> SourceDocument:
    places = {member: changed.get(("documents", f"{number}.{member}")) for member in _MEMBERS}
    return document.model_copy(update={member: text for member, text in places.items() if text is not None})


def _with_text(message: Message, text: str | tuple[str, ...] | None) -> Message:
    if text is None:
        return message
    if isinstance(text, str):
        return message.model_copy(update={"content": text})
    texts = iter(text)
    content = [
        TextPart(type="text", text=next(texts)) if isinstance(part, TextPart) else part for part in message.parts
    ]
    return message.model_copy(update={"content": content})


# -- strings of a schema ---------------------------------------------------------------------------------------------


def _strings_of(schema: dict[str, Any]) -> list[tuple[int, str]]:
    """Return the author's strings in a JSON Schema, keys and values, each with its number.

    The model reads them all: names of properties, descriptions, enumerated values and examples.
    """
    found: list[tuple[int, str]] = []
    numbers = count()

    def noted(text: str) -> str:
        number = next(numbers)
        if text not in _SCHEMA_WORDS:
            found.append((number, text))
        return text

    _rewritten(schema, noted)
    return found


def _with_strings(schema: dict[str, Any], new: Callable[[int], str | tuple[str, ...] | None]) -> dict[str, Any]:
    """Return the schema with `new(number)` in place of each string for which it is not None."""
    numbers = count()
    return _rewritten(schema, lambda text: cast("str", new(next(numbers)) or text))


def _rewritten(schema: dict[str, Any], rewrite: Callable[[str], str]) -> dict[str, Any]:
    """Return the schema with each key and string replaced by `rewrite` of it, which is called in a fixed order.

    The steps are a list instead of calls, because a schema may be nested deeper than calls may be.
    """
    copy: dict[str, Any] = {}
    steps: list[tuple[dict[str, Any] | list[Any], dict[str, Any] | list[Any]]] = [(schema, copy)]

    def rewritten(value: object) -> object:
        if isinstance(value, str):
            return rewrite(value)
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
            cast("dict[str, Any]", target)[_unused(rewrite(key), target)] = rewritten(value)
    return copy


def _unused(key: str, taken: Mapping[str, Any] | list[Any]) -> str:
    """Return the key, with a number if two redacted names of properties have become one."""
    return key if key not in taken else next(name for n in count(2) if (name := f"{key} {n}") not in taken)
