"""The published schemas accept what the codec accepts, and jobs' own schemas are bounded."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest
import yaml

from schemas import topics
from schemas.codec import InvalidJob, Origin, read_job, write_result
from schemas.event import event_body
from schemas.outcome import Outcome
from schemas.result import Citation, Result, ResultError, Support, Timings, Usage
from schemas.topics import Topics
from scripts.publish.client_shapes import client_shapes
from scripts.publish.wire_schemas import CLIENT, FOLDER, documents
from workers.engines.base import RequestRejected
from workers.engines.vllm.chat import MAX_PATTERNS, MAX_PROPERTIES, MAX_SCHEMA_CHARS, check_schema
from workers.enrichment.answering.profile import Profiles

PUBLISHED = {path.name: path.read_text(encoding="utf-8") for path in FOLDER.iterdir()}
JSON_SCHEMAS = {name: json.loads(text) for name, text in PUBLISHED.items() if name.endswith(".json")}
ASYNCAPI: dict[str, Any] = yaml.safe_load(PUBLISHED["asyncapi.yaml"])
RESULTS = [
    Result(job_id="job_1", outcome=Outcome.FAILED, error=ResultError(code="c", message="m"), created_at=1),
    Result(
        job_id="job_1",
        custom_id="row 1",
        outcome=Outcome.SUCCEEDED,
        text="Because.",
        confidence=0.5,
        sources=["arxiv:1"],
        citations=[Citation(start=0, end=3, source="arxiv:1", support=Support.FUZZY)],
        usage=Usage(prompt_tokens=1),
        timings=Timings(queued_ms=0.5),
        finish_reason="stop",
        created_at=1,
    ),
]


def validator(name: str) -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator(JSON_SCHEMAS[name])


def references(node: object) -> Iterator[str]:
    if isinstance(node, dict):
        if isinstance(node.get("$ref"), str):
            yield node["$ref"]
        for value in node.values():
            yield from references(value)
    elif isinstance(node, list):
        for value in node:
            yield from references(value)


def resolve(reference: str, document: dict[str, Any]) -> Any:
    """The target of a local JSON pointer or of a reference to another document; KeyError if there is none."""
    if not reference.startswith("#/"):
        return JSON_SCHEMAS[reference.removeprefix("./")]
    node: Any = document
    for part in reference.removeprefix("#/").split("/"):
        node = node[part.replace("~1", "/").replace("~0", "~")]
    return resolve(node["$ref"], document) if "$ref" in node else node


def test_the_published_files_are_fresh() -> None:
    assert documents() == PUBLISHED, "run `python -m scripts.publish`"
    assert client_shapes() == CLIENT.read_text(encoding="utf-8"), "run `python -m scripts.publish`"


def test_each_json_schema_is_valid_and_has_a_name() -> None:
    for name, schema in JSON_SCHEMAS.items():
        jsonschema.Draft202012Validator.check_schema(schema)
        assert schema["$id"] == f"urn:postback:schema:{name.removesuffix('.json')}:1"
        assert schema["title"]


def test_every_reference_leads_somewhere() -> None:
    for name, document in {**JSON_SCHEMAS, "asyncapi.yaml": ASYNCAPI}.items():
        found = list(references(document))
        assert found or name == "worker.json"  # a flat document
        assert all(resolve(reference, document) for reference in found), name


def test_the_jobs_schema_agrees_with_the_reader() -> None:
    good = [
        {"prompt": "a"},
        {"prompt": "a", "callback_url": "https://consumer.example/hook", "messages": None, "unknown": 1},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}], "max_tokens": 5},
        {"prompt": "a", "sources": {"urls": ["http://facts.example:8080/a?b"]}, "metadata": {"a": "b"}},
    ]
    bad = [
        {},
        {"prompt": "a", "messages": [{"role": "user", "content": "a"}]},
        {"prompt": None},
        {"prompt": ""},
        {"prompt": "a", "priority": 10},
        {"prompt": "a", "max_tokens": "5"},
        {"prompt": "a", "job_id": "a b"},
        {"prompt": "a", "callback_url": "https://user:pass@consumer.example/"},
        {"prompt": "a", "callback_url": "ftp://consumer.example/"},
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
    ]
    for job in good:
        read_job(json.dumps(job).encode(), None, Origin("topic", 0, 0), 0)
        assert validator("job.json").is_valid(job), job
    for job in bad:
        with pytest.raises(InvalidJob):
            read_job(json.dumps(job).encode(), None, Origin("topic", 0, 0), 0)
        assert not validator("job.json").is_valid(job), job


def test_written_results_and_events_fit_their_schemas_and_events_of_another_kind_do_not() -> None:
    for result in RESULTS:
        event = json.loads(event_body(result, "msg_1", "acme"))
        validator("result.json").validate(json.loads(write_result(result)))
        validator("event.json").validate(event)
        for wrong in ({"type": "batch.completed"}, {"tenant": "no tenant"}, {"data": {"id": "job_1"}}):
            assert not validator("event.json").is_valid({**event, **wrong})
        assert not validator("event.json").is_valid({name: event[name] for name in event if name != "tenant"})


def test_the_asyncapi_document_covers_every_topic_of_a_fleet_and_its_webhook() -> None:
    addresses = {channel["address"] for channel in ASYNCAPI["channels"].values()}

    assert ASYNCAPI["asyncapi"] == "3.0.0"
    assert addresses == {spec.name for spec in Topics().specs(12)} | {None}


def test_the_topics_are_described_as_they_are_made() -> None:
    for spec in Topics().specs(12):
        described = ASYNCAPI["channels"][spec.name]["bindings"]["kafka"]["topicConfiguration"]
        flat = {key: ",".join(value) if isinstance(value, list) else str(value) for key, value in described.items()}

        # AsyncAPI's Kafka binding has no fields for these settings.
        unsaid = {"compression.type", "message.timestamp.type", "max.compaction.lag.ms", "segment.bytes"}
        assert flat == {key: value for key, value in spec.config.items() if key not in unsaid}


def test_every_header_that_records_may_carry_is_described() -> None:
    constants = {value for name, value in vars(topics).items() if name.isupper() and isinstance(value, str)}
    described = {
        header
        for message in ASYNCAPI["components"]["messages"].values()
        for header in message.get("headers", {}).get("properties", {})
    }

    assert constants <= described


def test_every_channel_has_messages_with_payloads_and_every_operation_uses_one_of_them() -> None:
    for channel in ASYNCAPI["channels"].values():
        assert channel["messages"]
        for message in channel["messages"].values():
            assert "payload" in resolve(message["$ref"], ASYNCAPI)
        assert all(resolve(server["$ref"], ASYNCAPI)["protocol"] in ("kafka", "https") for server in channel["servers"])
    for operation in ASYNCAPI["operations"].values():
        place = operation["channel"]["$ref"]
        messages = [reference["$ref"] for reference in operation["messages"]]
        assert operation["action"] in ("send", "receive")
        assert messages
        assert all(message.startswith(f"{place}/messages/") for message in messages)
        assert {message.rpartition("/")[2] for message in messages} <= set(resolve(place, ASYNCAPI)["messages"])


# -- limits of jobs' schemas -------------------------------------------------------------------------------------------


def properties(count: int, **each: str) -> dict[str, Any]:
    return {"type": "object", "properties": {f"k{n}": {"type": "string", **each} for n in range(count)}}


def test_large_schemas_are_taken_and_those_that_would_keep_an_engine_busy_are_rejected_by_name() -> None:
    form = Profiles.load()["finance"].response_format
    assert form is not None
    assert form.json_schema is not None
    check_schema(form.json_schema.schema_)
    check_schema({"anyOf": [properties(MAX_PROPERTIES), properties(MAX_PATTERNS, pattern="^a")]})
    patterns = {"patternProperties": dict.fromkeys("abcdefghijklmnopqrstu")}
    for schema, why in (
        (properties(MAX_PROPERTIES + 1), "an object with 501 properties, and 500 are allowed"),
        ({"items": [{"anyOf": [properties(MAX_PROPERTIES + 1)]}]}, "an object with 501 properties"),
        ({"a": properties(30, pattern="^a"), "b": patterns}, "51"),
        ({"const": "x" * MAX_SCHEMA_CHARS}, "characters, and 65536 are allowed"),
        (json.loads('{"items":' * 900 + json.dumps(properties(501)) + "}" * 900), "501 properties"),
    ):
        with pytest.raises(RequestRejected) as rejected:
            check_schema(schema)
        assert rejected.value.field == "response_format.json_schema.schema"
        assert why in rejected.value.reason
