"""The reference of jobs, results and events, generated from their models: `docs/reference/jobs.md`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import TypeAdapter

from console.kind_examples import KIND_JOBS, KIND_RESULTS
from schemas.asyncapi import HEADERS, PRODUCER_HEADERS
from schemas.codes import DEAD_LETTER_REASONS, ERROR_CODES
from schemas.event import Event, event_body
from schemas.job import MAX_JOB_BYTES, TENANT_PATTERN, Base64, Day, Domain, Identifier, Job, Language, MediaType, Url
from schemas.kinds import KINDS
from schemas.outcome import Outcome
from schemas.result import MAX_RESULT_BYTES, Result, Support
from schemas.tools import FunctionName

JOB = {
    "job_id": "order-4711",
    "model_id": "qwen2.5-7b",
    "prompt": "Does aspirin lower the risk of a second stroke?",
    "raw": False,
    "context_window": 8192,
    "temperature": 0.2,
    "top_p": 0.95,
    "stop": ["\n\nQ:"],
    "max_tokens": 256,
    "seed": 7,
    "response_format": {"type": "text"},
    "reasoning": {"effort": "low", "max_tokens": 1024},
    "adapter": "cardiology",
    "callback_url": "https://consumer.example/hook",
    "sources": {
        "urls": ["https://example.org/guideline.html"],
        "documents": [
            {"id": "ward-letter", "title": "Letter of 3 May", "text": "Aspirin was paused before the operation."},
            {"id": "ward-scan", "base64": "JVBERi0xLjcK", "media_type": "application/pdf"},
        ],
        "search": {
            "provider": "labs",
            "query": "creatinine",
            "limit": 5,
            "parameters": {"patient": "p1"},
            "domains": ["who.int"],
            "since": "2024-01-01",
            "until": "2024-12-31",
            "language": "en",
        },
        "searches": [{"provider": "pubmed", "query": "creatinine clearance", "limit": 3}],
        "rewrite": True,
        "budget_seconds": 10,
        "freshness_seconds": 3600,
        "max_chars": 8000,
        "profile": "medical",
        "required": True,
    },
    "priority": 5,
    "ttl_seconds": 3600,
    "metadata": {"ward": "3b"},
    "custom_id": "row-1",
}
"""A job with every field of one question with one answer."""
SAMPLING = {
    "prompt": "Name a fruit.",
    "temperature": 0.8,
    "max_tokens": 8,
    "n": 2,
    "logprobs": True,
    "top_logprobs": 2,
}
"""A job for two answers with log-probabilities."""
CALLING = {
    "messages": [
        {"role": "user", "content": "Is the pharmacy open?"},
        {
            "role": "assistant",
            "tool_calls": [{"id": "call_0", "type": "function", "function": {"name": "clock", "arguments": "{}"}}],
        },
        {"role": "tool", "tool_call_id": "call_0", "content": "Monday, 9:41"},
    ],
    "tools": [
        {"type": "function", "function": {"name": "clock", "description": "The day and the time."}},
        {
            "type": "function",
            "function": {
                "name": "opening_hours",
                "description": "The hours of a shop on a day.",
                "parameters": {
                    "type": "object",
                    "properties": {"shop": {"type": "string"}, "day": {"type": "string"}},
                    "required": ["shop", "day"],
                },
                "strict": True,
            },
        },
    ],
    "tool_choice": {"type": "function", "function": {"name": "opening_hours"}},
    "parallel_tool_calls": False,
}
"""A job with tools, whose chat has a call and what it returned."""
CHAT = {
    "messages": [
        {"role": "system", "content": "Answer with JSON."},
        {"role": "user", "content": [{"type": "text", "text": "Name a fruit."}]},
    ],
    "response_format": {
        "type": "json_schema",
        "json_schema": {
            "name": "fruit",
            "schema": {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]},
            "strict": True,
        },
    },
}
"""A chat job whose answer follows a schema."""
RESULT = {
    "job_id": "order-4711",
    "custom_id": "row-1",
    "model_id": "qwen2.5-7b",
    "outcome": "succeeded",
    "reasoning": "The first trial names a rate of 4 %, the second one of 3 %.",
    "text": "Aspirin lowers the risk of a second stroke [1].",
    "confidence": 0.87,
    "sources": ["pmid:10591382"],
    "source_details": [
        {
            "id": "pmid:10591382",
            "url": "https://pubmed.ncbi.nlm.nih.gov/10591382/",
            "canonical_url": "https://pubmed.ncbi.nlm.nih.gov/10591382",
            "title": "Aspirin after a first stroke",
            "published": "1999-12",
            "doi": "10.1000/182",
        }
    ],
    "citations": [
        {
            "start": 0,
            "end": 47,
            "source": "pmid:10591382",
            "support": "lexical",
            "quote": {
                "exact": "Aspirin reduced the risk of a second stroke",
                "prefix": "follow-up. ",
                "suffix": " by a fifth.",
            },
        }
    ],
    "notes": ["https://example.org/guideline.html: the server answered 404"],
    "screening": [{"rule": "toxicity", "kind": "words", "verdict": "flag", "field": "prompt", "count": 1}],
    "usage": {
        "prompt_tokens": 1204,
        "completion_tokens": 14,
        "total_tokens": 1218,
        "cached_tokens": 1136,
        "cost": 0.000189,
        "currency": "USD",
        "reasoning_tokens": 9,
    },
    "finish_reason": "stop",
    "timings": {"queued_ms": 12.5, "enrich_ms": 840.0, "infer_ms": 412.3},
    "engine": "vllm",
    "metadata": {"ward": "3b"},
    "created_at": 1764022104,
}
"""A successful result with every field; `error` belongs only to other results."""
SAMPLED = {
    "job_id": "order-4711",
    "outcome": "succeeded",
    "text": "Apple",
    "choices": [
        {
            "index": 0,
            "text": "Apple",
            "reasoning": "A common one.",
            "finish_reason": "stop",
            "confidence": 0.61,
            "citations": [],
            "logprobs": [
                {
                    "token": "Apple",
                    "logprob": -0.494296,
                    "top_logprobs": [
                        {"token": "Apple", "logprob": -0.494296},
                        {"token": "Pear", "logprob": -1.386294},
                    ],
                }
            ],
        },
        {
            "index": 1,
            "text": "Pear",
            "finish_reason": "stop",
            "confidence": 0.25,
            "logprobs": [{"token": "Pear", "logprob": -1.386294}],
        },
    ],
    "created_at": 1764022104,
}
"""The result of a job for two answers."""
SCORED = {
    "job_id": "order-4711",
    "outcome": "succeeded",
    "text": "Apple",
    "logprobs": [{"token": "Apple", "logprob": -0.494296, "top_logprobs": [{"token": "Apple", "logprob": -0.494296}]}],
    "created_at": 1764022104,
}
"""The result of a job for one answer with log-probabilities."""
CALLED = {
    "job_id": "order-4711",
    "outcome": "succeeded",
    "text": "",
    "tool_calls": [
        {
            "id": "call_1",
            "type": "function",
            "function": {"name": "opening_hours", "arguments": '{"shop": "pharmacy", "day": "Monday"}'},
        }
    ],
    "finish_reason": "tool_calls",
    "created_at": 1764022104,
}
"""The result of a job with tools."""
CALLED_CHOICE = {"choices": [{"tool_calls": CALLED["tool_calls"]}]}
"""A call in one of several answers."""
FAILURE = {
    "job_id": "order-4711",
    "outcome": "failed",
    "error": {"code": "no_sources", "message": "sources.required is set, and no source could be used"},
    "created_at": 1764022104,
}
"""A result without an answer."""
HEADER_EXAMPLES = {
    "tenant": "acme",
    "deadline": "1764108504000",
    "priority": "5",
    "idempotency-key": "order-4711-try-1",
    "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    "schema": "1",
}

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
    Support.LEXICAL: "The source has most of the sentence's words, and all of its numbers.",
    Support.UNSUPPORTED: "The source lacks the sentence's words or numbers, or says the opposite.",
    Support.DANGLING: "The sentence cites a number that no source has.",
}

_PATTERNS = {
    TypeAdapter(Identifier).json_schema()["pattern"]: "printable ASCII without spaces",
    TypeAdapter(FunctionName).json_schema()["pattern"]: "1 to 64 letters, digits, `_` or `-`",
    TypeAdapter(Url).json_schema()["pattern"]: "an http or https URL without credentials",
    TypeAdapter(Base64).json_schema()["pattern"]: "base64 with padding",
    TypeAdapter(MediaType).json_schema()["pattern"]: "a media type without parameters",
    TypeAdapter(Domain).json_schema()["pattern"]: "a host name in lower case",
    TypeAdapter(Day).json_schema()["pattern"]: "a day as YYYY-MM-DD",
    TypeAdapter(Language).json_schema()["pattern"]: "two letters of ISO 639-1",
    f"^{TENANT_PATTERN}$": "1 to 63 letters, digits, `_` or `-`, a letter or digit first",
}
"""The schema's patterns, in words. An unknown pattern raises KeyError."""

_HEAD = f"""# Jobs, results and events

Every field on the wire, with its type, limit, default and an example.
`python -m console.publish` writes this page; a test compares it with the code.
The same in machine-readable form: [job.json](../../schemas/published/job.json),
[result.json](../../schemas/published/result.json), [event.json](../../schemas/published/event.json) and
[asyncapi.yaml](../../schemas/published/asyncapi.yaml).

- A job is at most {MAX_JOB_BYTES // 1024} KiB, {MAX_JOB_BYTES:,} bytes of its value. A larger one is `rejected`.
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
                SAMPLING | CALLING | _merged(KIND_JOBS) | JOB | {"messages": CHAT["messages"]},
            ),
            *_parts(job, JOB, CHAT, CALLING, *KIND_JOBS.values()),
            _example("A whole job", JOB),
            _example("A job as a chat, with an answer by a schema", CHAT),
            _example("A job for two answers with log-probabilities", SAMPLING),
            _example("A job with tools", CALLING),
            *(_example(f"A job for {kind.answer}", KIND_JOBS[kind.field]) for kind in KINDS),
            _section(
                *("Result", "The value of a record in `model_results`, as JSON.", result),
                SAMPLED | SCORED | CALLED | _merged(KIND_RESULTS) | FAILURE | RESULT,
            ),
            *_parts(result, RESULT, FAILURE, CALLED, SAMPLED, SCORED, CALLED_CHOICE, *KIND_RESULTS.values()),
            _example("A whole result", RESULT),
            _example("The result of a job for two answers", SAMPLED),
            _example("The result of a job with tools", CALLED),
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
    rows = [f"| `{name}` | {HEADERS[name]['description']} | `{HEADER_EXAMPLES[name]}` |\n" for name in PRODUCER_HEADERS]
    return (
        "\n## Headers of a job\n\nAll are optional Kafka record headers.\n"
        "A job is `rejected` if a header disagrees with the body; a `deadline` may stand beside `ttl_seconds`.\n\n"
        f"| header | meaning | example |\n| --- | --- | --- |\n{''.join(rows)}"
    )


def _parts(schema: Mapping[str, Any], *examples: Mapping[str, Any]) -> Iterator[str]:
    """Yield a section for each nested model, in the order of the first fields that refer to the models."""
    places = {name: place for place, name in reversed([*_named_in(schema, schema, "")])}
    for name, place in reversed(places.items()):
        part = schema["$defs"][name]
        yield _section(
            f"`{place}`", part["description"], {**part, "$defs": schema["$defs"]}, _at(place, examples), "###"
        )


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
    rows = [_row(name, field, schema, examples) for name, field in schema["properties"].items()]
    head = "| field | type | limit | default | meaning | example |\n| --- | --- | --- | --- | --- | --- |\n"
    return f"\n{level} {title}\n\n{_one_line(about)}\n\n{head}{''.join(rows)}"


def _row(name: str, field: Mapping[str, Any], schema: Mapping[str, Any], examples: Mapping[str, Any]) -> str:
    kinds = [kind for kind in field.get("anyOf", [field]) if kind.get("type") != "null"]
    types = " or ".join(_type(kind, schema["$defs"]) for kind in kinds)
    limits = "; ".join(filter(None, (_limit(kind, schema["$defs"]) for kind in kinds)))
    cells = (
        *(f"`{name}`", types, limits, _default(name, field, schema)),
        *(_one_line(field["description"]), f"`{_shown(examples[name])}`"),
    )
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |\n"


def _type(kind: Mapping[str, Any], parts: Mapping[str, Any]) -> str:
    if "$ref" in kind:
        return _type(parts[kind["$ref"].removeprefix("#/$defs/")], parts)
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
    rows = "".join(f"| `{name}` | {meaning} |\n" for name, meaning in meanings.items())
    return f"\n## {title}\n\n| {column} | meaning |\n| --- | --- |\n{rows}"


def _one_line(text: str) -> str:
    return " ".join(text.split())
