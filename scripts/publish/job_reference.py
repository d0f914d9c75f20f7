"""The reference of jobs, results and events, generated from their models: `docs/reference/jobs.md`."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import TypeAdapter

from schemas.codes import DEAD_LETTER_REASONS, ERROR_CODES
from schemas.event import Event, event_body
from schemas.images import DATA_URL
from schemas.job import (
    MAX_JOB_BYTES,
    TENANT_PATTERN,
    Base64,
    Day,
    Domain,
    Identifier,
    Job,
    Language,
    MediaType,
    Sha256,
    Url,
)
from schemas.kinds import KINDS
from schemas.outcome import Outcome
from schemas.result import MAX_RESULT_BYTES, Result, Support
from schemas.tools import FunctionName
from schemas.urls import PayloadUrl
from scripts.publish.asyncapi import HEADERS, PRODUCER_HEADERS
from scripts.publish.job_examples import (
    CALLED,
    CALLED_CHOICE,
    CALLING,
    CHAT,
    FAILURE,
    HEADER_EXAMPLES,
    JOB,
    KIND_JOBS,
    KIND_RESULTS,
    REFERRING,
    REFUSAL,
    RESULT,
    SAMPLED,
    SAMPLING,
    SCORED,
    SEEING,
)
from scripts.publish.markdown import one_line, table

OUTCOMES: dict[Outcome, str] = {
    Outcome.SUCCEEDED: "`text` has the answer.",
    Outcome.FAILED: "The job was valid, but it has no usable answer; `error` has the reason.",
    Outcome.EXPIRED: "`ttl_seconds` or the `deadline` header passed before the answer was complete.",
    Outcome.CANCELLED: "The job was cancelled before its result was settled.",
    Outcome.REJECTED: "The record is no valid job, or the input filter rejects it; `error` names each field.",
}
SUPPORT: dict[Support, str] = {
    Support.EXACT: "The source has the sentence word for word.",
    Support.FUZZY: "The source has a passage that is nearly the sentence.",
    Support.ENTAILED: "A judge found that the source says so; all numbers, names and dates have their equal there.",
    Support.LEXICAL: "The source has most of the sentence's words, and all of its numbers, names and dates; no judge "
    "has read it.",
    Support.UNSUPPORTED: "The source does not say so.",
    Support.CONTRADICTED: "The source says otherwise: another number, name or quotation, or the opposite.",
    Support.DANGLING: "The sentence cites a number that no source has.",
}

_PATTERNS = {
    TypeAdapter(Identifier).json_schema()["pattern"]: "printable ASCII without spaces",
    TypeAdapter(FunctionName).json_schema()["pattern"]: "1 to 64 letters, digits, `_` or `-`",
    TypeAdapter(Url).json_schema()["pattern"]: "an http or https URL without credentials",
    TypeAdapter(PayloadUrl).json_schema()["pattern"]: "an https URL without credentials, or `s3://BUCKET/KEY`",
    TypeAdapter(Sha256).json_schema()["pattern"]: "64 hexadecimal digits",
    DATA_URL: "a data URL of a png, jpeg, gif or webp image in base64",
    TypeAdapter(Base64).json_schema()["pattern"]: "base64 with padding",
    TypeAdapter(MediaType).json_schema()["pattern"]: "a media type without parameters",
    TypeAdapter(Domain).json_schema()["pattern"]: "a host name in lower case",
    TypeAdapter(Day).json_schema()["pattern"]: "a day as YYYY-MM-DD",
    TypeAdapter(Language).json_schema()["pattern"]: "two letters of ISO 639-1",
    f"^{TENANT_PATTERN}$": "1 to 63 letters, digits, `_` or `-`, a letter or digit first",
}
"""Maps each pattern in the schema to a description of it. A pattern that is missing here raises KeyError."""

_HEAD = f"""# Jobs, results and events

Every field on the wire, with its type, limit, default and an example.
`python -m scripts.publish` writes this page; a test compares it with the code.
The schemas in machine-readable form: [job.json](../../schemas/published/job.json),
[result.json](../../schemas/published/result.json), [event.json](../../schemas/published/event.json) and
[asyncapi.yaml](../../schemas/published/asyncapi.yaml).

- A job is at most {MAX_JOB_BYTES // 1024} KiB, {MAX_JOB_BYTES:,} bytes of its value. A larger job is `rejected`.
- A result is at most {MAX_RESULT_BYTES // 1024} KiB. A larger one becomes `failed`, with the error `result_too_large`.
- A field with neither **required** nor a default may be absent.
- Readers ignore unknown fields. A job's unknown fields are named in its result's `notes`.
"""


def page() -> str:
    """Return the whole page."""
    job, result, event = (model.model_json_schema() for model in (Job, Result, Event))
    return "".join(
        [
            _HEAD,
            _headers(),
            _section(
                *("Job", "The value of a record in `model_requests`, as JSON.", job),
                SAMPLING | CALLING | _merged(KIND_JOBS) | REFERRING | JOB | {"messages": CHAT["messages"]},
            ),
            *_parts(job, JOB, CHAT, SEEING, REFERRING, CALLING, *KIND_JOBS.values()),
            _example("A whole job", JOB),
            _example("A job as a chat, with an answer by a schema", CHAT),
            _example("A job with an image", SEEING),
            _example("A job with its question in a bucket", REFERRING),
            _example("A job for two answers with log-probabilities", SAMPLING),
            _example("A job with tools", CALLING),
            *(_example(f"A job for {kind.answer}", KIND_JOBS[kind.field]) for kind in KINDS),
            _section(
                *("Result", "The value of a record in `model_results`, as JSON.", result),
                SAMPLED | SCORED | CALLED | REFUSAL | _merged(KIND_RESULTS) | FAILURE | RESULT,
            ),
            *_parts(result, RESULT, FAILURE, CALLED, SAMPLED, SCORED, CALLED_CHOICE, *KIND_RESULTS.values()),
            _example("A whole result", RESULT),
            _example("The result of a job for two answers", SAMPLED),
            _example("The result of a job with tools", CALLED),
            _example("The result of a job that the model refuses to answer", REFUSAL),
            *(_example(f"The result of a job for {kind.answer}", KIND_RESULTS[kind.field]) for kind in KINDS),
            _example("A result without an answer", FAILURE),
            _section("Event", "The body of a callback.", event, _event()),
            "\n`data` has every field of the result, and the job's identifier again as `id`.\n",
            _meanings("Outcomes", "outcome", OUTCOMES),
            _meanings("Error codes", "`error.code`", ERROR_CODES),
            _meanings("Support levels", "`support`", SUPPORT),
            _meanings("Reasons of dead letters", "`reason`", DEAD_LETTER_REASONS),
        ]
    )


def _merged(examples: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    return {name: value for example in examples.values() for name, value in example.items()}


def _event() -> dict[str, Any]:
    result = Result.model_validate(RESULT)
    event: dict[str, Any] = json.loads(event_body(result, "msg_6f1c0d3a9be84e0f8d2f8f6f2f8a4b1e", "acme"))
    return {**event, "data": {"id": result.job_id, "job_id": result.job_id, "outcome": result.outcome}}


def _headers() -> str:
    rows = ((f"`{name}`", HEADERS[name]["description"], f"`{HEADER_EXAMPLES[name]}`") for name in PRODUCER_HEADERS)
    return (
        "\n## Headers of a job\n\nAll are optional Kafka record headers.\n"
        "A job is `rejected` if a header disagrees with the body; a `deadline` may stand beside `ttl_seconds`.\n\n"
        + table(("header", "meaning", "example"), rows)
    )


def _parts(schema: Mapping[str, Any], *examples: Mapping[str, Any]) -> Iterator[str]:
    """Yield a section for each nested model, in the order of the first fields that refer to the models."""
    places = {name: place for place, name in reversed([*_named_in(schema, schema, "")])}
    shared = {place for place, count in Counter(places.values()).items() if count > 1}
    for name, place in reversed(places.items()):
        part = schema["$defs"][name]
        kind = f" of the type `{part['properties']['type']['const']}`" if place in shared else ""
        title, whole = f"`{place}`{kind}", {**part, "$defs": schema["$defs"]}
        yield _section(title, part["description"], whole, _at(place, examples), "###")


def _named_in(part: Mapping[str, Any], schema: Mapping[str, Any], place: str) -> Iterator[tuple[str, str]]:
    for field, described in part.get("properties", {}).items():
        for name in _references(described):
            if "properties" in schema["$defs"][name]:
                inside = f"{place}{field}"
                yield inside, name
                yield from _named_in(schema["$defs"][name], schema, f"{inside}.")


def _references(node: object) -> Iterator[str]:
    if isinstance(node, Mapping):
        if "$ref" in node:
            yield node["$ref"].removeprefix("#/$defs/")
        for value in node.values():
            yield from _references(value)
    elif isinstance(node, list):
        for value in node:
            yield from _references(value)


def _at(place: str, examples: tuple[Mapping[str, Any], ...]) -> dict[str, Any]:
    """Return example values of the fields at a dotted place, merged from all examples and from all list items."""
    found: list[Any] = list(examples)
    for step in place.split("."):
        values = [each[step] for each in found if isinstance(each, Mapping) and step in each]
        found = [item for value in values for item in (value if isinstance(value, list) else [value])]
    return {field: value for each in reversed(found) if isinstance(each, Mapping) for field, value in each.items()}


def _section(title: str, about: str, schema: Mapping[str, Any], examples: Mapping[str, Any], level: str = "##") -> str:
    rows = (_row(name, field, schema, examples) for name, field in schema["properties"].items())
    columns = ("field", "type", "limit", "default", "meaning", "example")
    return f"\n{level} {title}\n\n{one_line(about)}\n\n{table(columns, rows)}"


def _row(
    name: str, field: Mapping[str, Any], schema: Mapping[str, Any], examples: Mapping[str, Any]
) -> tuple[str, ...]:
    kinds = [kind for kind in field.get("anyOf", [field]) if kind.get("type") != "null"]
    types = " or ".join(dict.fromkeys(_type(kind, schema["$defs"]) for kind in kinds))
    limits = "; ".join(filter(None, (_limit(kind, schema["$defs"]) for kind in kinds)))
    return (
        *(f"`{name}`", types, limits, _default(name, field, schema)),
        *(one_line(field["description"]), f"`{_shown(field.get('const', examples.get(name)))}`"),
    )


def _type(kind: Mapping[str, Any], parts: Mapping[str, Any]) -> str:
    if "$ref" in kind:
        return _type(parts[kind["$ref"].removeprefix("#/$defs/")], parts)
    if "type" not in kind:
        return " or ".join(dict.fromkeys(_type(each, parts) for each in kind["oneOf"]))
    if kind["type"] == "array":
        inner = _type(kind["items"], parts)
        return f"array of arrays{inner.removeprefix('array')}" if inner.startswith("array") else f"array of {inner}s"
    if isinstance(kind.get("additionalProperties"), Mapping):
        return "object of strings"
    return str(kind["type"])


def _limit(kind: Mapping[str, Any], parts: Mapping[str, Any]) -> str:
    if "$ref" in kind:
        kind = parts[kind["$ref"].removeprefix("#/$defs/")]
    limits = []
    if "const" in kind or "enum" in kind:
        limits.append(", ".join(f"`{choice}`" for choice in kind.get("enum", [kind.get("const")])))
    for unit, suffix in (("items", "Items"), ("keys", "Properties"), ("characters", "Length")):
        limits.append(_between(kind.get(f"min{suffix}"), kind.get(f"max{suffix}"), unit))
    lowest, above = kind.get("minimum"), kind.get("exclusiveMinimum")
    if above is not None:
        limits.append(f"above {_number(above)}, up to {_number(kind['maximum'])}")
    else:
        limits.append(_between(lowest, kind.get("maximum"), ""))
    if "pattern" in kind:
        limits.append(_PATTERNS[kind["pattern"]])
    if kind.get("type") == "array" and (inner := _limit(kind["items"], parts)):
        limits.append(f"each {inner}")
    if isinstance(values := kind.get("additionalProperties"), Mapping):
        keys = _limit(kind.get("propertyNames", {}), parts)
        limits += [f"{what} {each}" for what, each in (("keys", keys), ("values", _limit(values, parts))) if each]
    return ", ".join(filter(None, limits))


def _between(least: float | None, most: float | None, unit: str) -> str:
    if least is None and most is None:
        return ""
    if most is None:
        text = "at least one" if least == 1 else f"at least {_number(least)}"
    else:
        text = f"up to {_number(most)}" if least is None else f"{_number(least)} to {_number(most)}"
    return f"{text} {unit.removesuffix('s') if text.endswith('one') else unit}".rstrip()


def _number(value: float | None) -> str:
    return f"{value:,.10g}" if isinstance(value, float) else f"{value:,}"


def _default(name: str, field: Mapping[str, Any], schema: Mapping[str, Any]) -> str:
    if name in schema.get("required", ()):
        return "**required**"
    default = field.get("default")
    return f"`{_shown(default)}`" if default not in (None, [], {}) else ""


def _shown(value: object) -> str:
    """Return a value as JSON on one line, cut to 80 characters."""
    text = f"{value:g}" if isinstance(value, float) and value < 1_000_000 else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:79]}…"


def _example(title: str, example: Mapping[str, Any]) -> str:
    return f"\n{title}:\n\n```json\n{json.dumps(example, indent=2, ensure_ascii=False)}\n```\n"


def _meanings(title: str, column: str, meanings: Mapping[Any, str]) -> str:
    rows = ((f"`{name}`", meaning) for name, meaning in meanings.items())
    return f"\n## {title}\n\n{table((column, 'meaning'), rows)}"
