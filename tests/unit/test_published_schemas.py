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
from schemas.publish import FOLDER, documents
from schemas.result import Citation, Result, ResultError, Support, Timings, Usage
from schemas.topics import Topics

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
    assert documents() == PUBLISHED, "run `python -m schemas.publish`"


@pytest.mark.parametrize("name", JSON_SCHEMAS)
def test_each_json_schema_is_valid_and_has_a_name(name: str) -> None:
    jsonschema.Draft202012Validator.check_schema(JSON_SCHEMAS[name])

    assert JSON_SCHEMAS[name]["$id"] == f"urn:postback:schema:{name.removesuffix('.json')}:1"
    assert JSON_SCHEMAS[name]["title"]


@pytest.mark.parametrize(
    "job",
    [
        {"prompt": "a"},
        {"prompt": "a", "callback_url": "https://consumer.example/hook", "messages": None, "unknown": 1},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}], "max_tokens": 5},
        {"prompt": "a", "sources": {"urls": ["http://facts.example:8080/a?b"]}, "metadata": {"a": "b"}},
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
    ],
)
def test_the_jobs_schema_agrees_with_the_reader(job: dict[str, Any]) -> None:
    try:
        read_job(json.dumps(job).encode(), None, Origin("topic", 0, 0), 0)
    except InvalidJob:
        readable = False
    else:
        readable = True

    assert validator("job.json").is_valid(job) is readable


@pytest.mark.parametrize("result", RESULTS)
def test_written_results_and_events_fit_their_schemas(result: Result) -> None:
    validator("result.json").validate(json.loads(write_result(result)))
    validator("event.json").validate(json.loads(event_body(result, "msg_1", "acme")))


def test_an_event_of_another_kind_does_not_fit_the_schema() -> None:
    event = json.loads(event_body(RESULTS[0], "msg_1", "acme"))

    assert not validator("event.json").is_valid({**event, "type": "batch.completed"})
    assert not validator("event.json").is_valid({**event, "tenant": "no tenant"})
    assert not validator("event.json").is_valid({name: event[name] for name in event if name != "tenant"})
    assert not validator("event.json").is_valid({**event, "data": {"id": "job_1"}})


REFERRING = {name: document for name, document in JSON_SCHEMAS.items() if name != "worker.json"}
"""All documents except the flat one, which has no references."""


@pytest.mark.parametrize(("name", "document"), [*REFERRING.items(), ("asyncapi.yaml", ASYNCAPI)])
def test_every_reference_leads_somewhere(name: str, document: dict[str, Any]) -> None:
    found = list(references(document))

    assert found, name
    for reference in found:
        assert resolve(reference, document)


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


def test_every_operation_uses_a_message_of_its_channel() -> None:
    for operation in ASYNCAPI["operations"].values():
        channel = resolve(operation["channel"]["$ref"], ASYNCAPI)
        messages = [reference["$ref"] for reference in operation["messages"]]

        assert operation["action"] in ("send", "receive")
        assert messages
        assert all(message.startswith(f"{operation['channel']['$ref']}/messages/") for message in messages)
        assert {message.rpartition("/")[2] for message in messages} <= set(channel["messages"])


def test_every_channel_has_messages_with_payloads_and_known_servers() -> None:
    for channel in ASYNCAPI["channels"].values():
        assert channel["messages"]
        for message in channel["messages"].values():
            assert "payload" in resolve(message["$ref"], ASYNCAPI)
        assert all(resolve(server["$ref"], ASYNCAPI)["protocol"] in ("kafka", "https") for server in channel["servers"])
